//! What every home of the store has to do alike. `conformance!` makes a test of each case:
//!
//! ```ignore
//! tandem_store::conformance!(my_home().await);
//! ```

#![allow(clippy::unwrap_used, reason = "this is a test suite, which happens to live in a library")]

pub mod leases;
pub mod notes;
pub mod objects;
pub mod ownership;
pub mod records;
pub mod watches;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::SignedDuration;
use serde_json::{Value, json};

use crate::{API_VERSION, ApplyOptions, Key, Object, Store, StoreError};

/// A fresh, empty store, and the handles that turn its world.
#[async_trait]
pub trait Home: Send + Sync {
    /// The store.
    fn store(&self) -> Arc<dyn Store>;
    /// Lets time pass for it.
    fn advance(&self, by: Duration);
    /// Turns its wall clock, and that alone.
    fn turn(&self, by: SignedDuration);
    /// Makes it forget past changes, as etcd's compaction does.
    async fn compact(&self);
}

/// Tests of every case; the expression makes a fresh [`Home`]. With `in turn:` it is one test of all cases, one after the
/// other, for homes whose servers are dear.
#[macro_export]
macro_rules! conformance {
    (@cases $how:ident $home:expr) => {
        $crate::conformance!(@$how $home, objects: [
            what_is_created_is_found, defaults_are_filled_in, unknown_fields_are_refused_by_name, rules_of_the_types_hold,
            what_is_immutable_stays, a_huge_object_is_refused, names_are_checked, a_stale_write_is_refused,
            generation_counts_changes_of_spec, status_is_written_apart, a_write_of_nothing_changes_nothing,
            a_dry_run_changes_nothing, a_new_object_of_an_old_name_is_another, terms_never_go_back,
            a_read_manifest_applies_to_what_was_read,
        ]);
        $crate::conformance!(@$how $home, ownership: [
            a_scaled_count_is_kept, a_stated_count_is_disputed, force_takes_over, fields_no_longer_stated_go,
            two_may_state_the_same, updates_take_what_they_change, labels_belong_to_managers,
        ]);
        $crate::conformance!(@$how $home, watches: [
            what_exists_then_a_bookmark, changes_come_in_order, a_watch_resumes, a_watch_from_too_long_ago_expires,
            a_removal_shows_the_last_state, only_what_is_meant, many_watches_see_the_same,
        ]);
        $crate::conformance!(@$how $home, leases: [
            one_holder, an_expired_lease_is_free, a_renewed_lease_holds, terms_grow, the_floor_is_passed, a_released_lease_is_free,
            a_lost_lease_stays_lost, a_wall_clock_an_hour_off_ends_no_lease,
        ]);
        $crate::conformance!(@$how $home, notes: [
            repetitions_add_up, the_ring_is_bounded, notes_go_with_their_object,
        ]);
        $crate::conformance!(@$how $home, records: [
            a_record_is_exchanged, one_of_two_takes_it, collections_are_apart,
        ]);
    };
    (@apart $home:expr, $room:ident: [$($case:ident),* $(,)?]) => {
        mod $room {
            #[allow(unused_imports, reason = "the expression may need nothing of the outer module")]
            use super::*;
            $(
                #[tokio::test]
                async fn $case() {
                    $crate::conformance::$room::$case(&$home).await;
                }
            )*
        }
    };
    (@turn $home:expr, $room:ident: [$($case:ident),* $(,)?]) => {
        $(
            println!("{}: {}", stringify!($room), stringify!($case));
            $crate::conformance::$room::$case(&$home).await;
        )*
    };
    (in turn: $home:expr) => {
        $crate::conformance!(@cases turn $home);
    };
    ($home:expr) => {
        $crate::conformance!(@cases apart $home);
    };
}

/// A deployment that every rule allows.
fn deployment(name: &str) -> Value {
    json!({
        "apiVersion": API_VERSION,
        "kind": "InferenceDeployment",
        "metadata": {"name": name, "namespace": "llm"},
        "spec": {
            "model": {"name": name, "source": "file:///models/tiny"},
            "quant": "Q8_0",
            "context": {"tokens": 1024},
        },
    })
}

/// A host that every rule allows.
fn host(name: &str) -> Value {
    json!({"apiVersion": API_VERSION, "kind": "InferenceHost", "metadata": {"name": name}, "spec": {"term": 1}})
}

fn key(name: &str) -> Key {
    Key::deployment("llm", name)
}

async fn apply(store: &dyn Store, manifest: Value, manager: &str) -> Result<Object, StoreError> {
    Ok(store.apply(manifest, &ApplyOptions::by(manager)).await?.0)
}

async fn applied(store: &dyn Store, name: &str) -> Object {
    apply(store, deployment(name), "ci").await.expect("every rule allows it")
}

/// The sentences of a refusal.
fn refusal<T: std::fmt::Debug>(result: Result<T, StoreError>) -> String {
    match result {
        Err(error @ StoreError::Invalid { .. }) => error.to_string(),
        other => panic!("not refused by a rule: {other:?}"),
    }
}

fn is_conflict<T: std::fmt::Debug>(result: Result<T, StoreError>) -> crate::Version {
    match result {
        Err(StoreError::Conflict { current, .. }) => current,
        other => panic!("not a conflict: {other:?}"),
    }
}

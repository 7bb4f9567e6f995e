//! Who owns a field on apply: redundancy lives in Git, capacity on the scale subresource, and they never fight.

use serde_json::json;

use super::*;
use crate::OwnedField;

fn with_replicas(replicas: i32) -> Value {
    let mut manifest = deployment("kimi");
    manifest["spec"]["replicas"] = json!(replicas);
    manifest
}

fn disputed<T: std::fmt::Debug>(result: Result<T, StoreError>) -> Vec<OwnedField> {
    match result {
        Err(StoreError::FieldConflict { fields, .. }) => fields,
        other => panic!("nobody objects: {other:?}"),
    }
}

/// An apply without `replicas` keeps a scaled count, again and again.
pub async fn a_scaled_count_is_kept(home: &dyn Home) {
    let store = home.store();
    applied(&*store, "kimi").await;
    store.scale(&key("kimi"), 3, "oncall").await.unwrap();
    let mut changed = deployment("kimi");
    changed["spec"]["quant"] = json!("Q4_0");
    for _ in 0..2 {
        let after = apply(&*store, changed.clone(), "ci").await.unwrap();
        assert_eq!((&after.spec()["replicas"], &after.spec()["quant"]), (&json!(3), &json!("Q4_0")));
    }
}

/// An apply that states another count is told whose it is; the same count is no dispute.
pub async fn a_stated_count_is_disputed(home: &dyn Home) {
    let store = home.store();
    applied(&*store, "kimi").await;
    store.scale(&key("kimi"), 3, "oncall").await.unwrap();
    let fields = disputed(apply(&*store, with_replicas(1), "ci").await);
    assert_eq!(fields.len(), 1);
    assert_eq!(fields[0].path, "spec.replicas");
    assert!(fields[0].manager.contains("oncall"));
    assert_eq!(apply(&*store, with_replicas(3), "ci").await.unwrap().spec()["replicas"], 3);
}

/// Force takes the field, and the next scale takes it back.
pub async fn force_takes_over(home: &dyn Home) {
    let store = home.store();
    applied(&*store, "kimi").await;
    store.scale(&key("kimi"), 3, "oncall").await.unwrap();
    let force = ApplyOptions { force: true, ..ApplyOptions::by("ci") };
    assert_eq!(store.apply(with_replicas(1), &force).await.unwrap().0.spec()["replicas"], 1);
    assert_eq!(apply(&*store, with_replicas(2), "ci").await.unwrap().spec()["replicas"], 2);
    store.scale(&key("kimi"), 5, "oncall").await.unwrap();
    assert_eq!(disputed(apply(&*store, with_replicas(2), "ci").await)[0].path, "spec.replicas");
}

/// What a manager stated and no longer states goes back to its default.
pub async fn fields_no_longer_stated_go(home: &dyn Home) {
    let store = home.store();
    apply(&*store, with_replicas(4), "ci").await.unwrap();
    let after = applied(&*store, "kimi").await;
    assert_eq!(after.spec()["replicas"], 1);
}

/// Two managers may agree; the field goes when neither states it.
pub async fn two_may_state_the_same(home: &dyn Home) {
    let store = home.store();
    apply(&*store, with_replicas(4), "one").await.unwrap();
    apply(&*store, with_replicas(4), "two").await.unwrap();
    assert_eq!(apply(&*store, deployment("kimi"), "one").await.unwrap().spec()["replicas"], 4);
    assert_eq!(apply(&*store, deployment("kimi"), "two").await.unwrap().spec()["replicas"], 1);
}

/// A plain update owns what it changes, and only that.
pub async fn updates_take_what_they_change(home: &dyn Home) {
    let store = home.store();
    let mut read = applied(&*store, "kimi").await;
    read.json["spec"]["quant"] = json!("Q4_0");
    store.replace(&read, "editor").await.unwrap();
    assert_eq!(disputed(apply(&*store, deployment("kimi"), "ci").await)[0].path, "spec.quant");
    let mut agreeing = deployment("kimi");
    agreeing["spec"]["quant"] = json!("Q4_0");
    agreeing["spec"]["context"]["tokens"] = json!(2048);
    assert_eq!(apply(&*store, agreeing, "ci").await.unwrap().spec()["context"]["tokens"], 2048);
}

/// Labels are owned one by one.
pub async fn labels_belong_to_managers(home: &dyn Home) {
    let store = home.store();
    let labelled = |label: &str, value: &str| {
        let mut manifest = deployment("kimi");
        manifest["metadata"]["labels"] = json!({ label: value });
        manifest
    };
    apply(&*store, labelled("one", "1"), "one").await.unwrap();
    let both = apply(&*store, labelled("two", "2"), "two").await.unwrap();
    assert_eq!(both.json["metadata"]["labels"], json!({"one": "1", "two": "2"}));
    assert_eq!(disputed(apply(&*store, labelled("one", "x"), "two").await)[0].path, "metadata.labels.one");
    let one = apply(&*store, deployment("kimi"), "one").await.unwrap();
    assert_eq!(one.json["metadata"]["labels"], json!({"two": "2"}));
}

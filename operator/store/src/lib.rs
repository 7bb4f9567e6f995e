//! Where the truth lives: InferenceDeployments and InferenceHosts behind one trait.
//!
//! Every home of the trait behaves as Kubernetes does: a write is admitted by the API types' own rules, carries the version
//! it read, bumps `metadata.generation` only when the spec changes, and an apply owns exactly the fields that it states.
//! [`conformance`] holds a home to that.

mod admission;
mod backup;
mod clock;
#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
mod embedded;
mod error;
mod etcd;
pub mod event;
mod kubernetes;
mod object;
mod ownership;
pub mod platform;
mod revise;
mod sightings;
mod watch;

use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;

pub use backup::{Backup, BackupError, KeptRecord};
pub use clock::{Clock, ManualClock, SystemClock};
pub use embedded::EmbeddedStore;
pub use error::{OwnedField, StoreError};
pub use etcd::{EtcdOptions, EtcdStore, EtcdTls};
pub use event::{Event, EventNote, Severity};
pub use kubernetes::{KubernetesOptions, KubernetesStore};
pub use object::{API_VERSION, Key, Kind, Object, Selector, Version};
pub use platform::Platform;
pub use watch::{Watch, WatchEvent};

/// Largest object, as JSON. Kubernetes' own limit is 1.5 MiB for a whole request.
pub const MAX_OBJECT_BYTES: usize = 1024 * 1024;

/// How an apply is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApplyOptions {
    /// Who applies; owns the fields that the manifest states.
    pub manager: String,
    /// Take over fields that others own.
    pub force: bool,
    /// Answer what would be, change nothing.
    pub dry_run: bool,
}

impl ApplyOptions {
    /// A plain apply by `manager`.
    pub fn by(manager: &str) -> Self {
        Self { manager: manager.to_owned(), force: false, dry_run: false }
    }
}

/// What an apply did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ApplyOutcome {
    /// There was none before.
    Created,
    /// It differs from before.
    Configured,
    /// It is as it was.
    Unchanged,
}

/// Everything of a kind at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Listing {
    /// In order of namespace and name.
    pub objects: Vec<Object>,
    /// A watch from here misses nothing.
    pub version: Version,
}

/// A held lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// Which lease.
    pub name: String,
    /// Who holds it.
    pub holder: String,
    /// Grows with every change of holder.
    pub term: u64,
    /// How long one renewal holds, counted from when the renewal was *sent*.
    pub ttl: Duration,
}

/// A small private document beside the objects: certificates' keys, hashes of join tokens.
#[derive(Clone, PartialEq, Eq)]
pub struct Record {
    /// Key within its collection.
    pub key: String,
    /// What a write must state to replace it.
    pub version: Version,
    /// The document; never logged.
    pub value: Vec<u8>,
}

impl std::fmt::Debug for Record {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Record")
            .field("key", &self.key)
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}

/// A home of the truth. Every write is durable when its future is ready with `Ok`.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// What this home is called in `tandem status`: `embedded`, `etcd`, `kubernetes`.
    fn home(&self) -> &'static str;

    /// The Kubernetes cluster under this home, if there is one.
    fn platform(&self) -> Option<&dyn Platform> {
        None
    }

    /// The object, if there is one.
    async fn get(&self, key: &Key) -> Result<Option<Object>, StoreError>;

    /// Every object that is meant, at one moment.
    async fn list(&self, selector: &Selector) -> Result<Listing, StoreError>;

    /// What a list says now or has said a moment ago, but never older than anything that this store has written, read or listed.
    /// Costs little, however often it is asked.
    async fn recent(&self, selector: &Selector) -> Result<Listing, StoreError> {
        self.list(selector).await
    }

    /// With no `since`: every existing object, a bookmark, then changes in their order. With `since`: the changes after that
    /// version, or [`StoreError::Expired`] when they are no longer kept.
    async fn watch(&self, selector: Selector, since: Option<Version>) -> Result<Watch, StoreError>;

    /// Makes the fields that the manifest states be so, and owned by the manager; fields that this manager stated before and
    /// no longer states go back to their default. Fields of other managers stay, unless forced. `status` is ignored.
    async fn apply(
        &self,
        manifest: Value,
        options: &ApplyOptions,
    ) -> Result<(Object, ApplyOutcome), StoreError>;

    /// Makes a new object, or says that there is one.
    async fn create(&self, object: Value, manager: &str) -> Result<Object, StoreError>;

    /// Replaces spec, labels and annotations of the object that still has `version`; what changes is owned by `manager`.
    async fn replace(&self, object: &Object, manager: &str) -> Result<Object, StoreError>;

    /// Replaces the status of the object that still has `version`; nothing else changes, generation neither.
    async fn replace_status(&self, key: &Key, version: &Version, status: Value)
    -> Result<Object, StoreError>;

    /// Sets `spec.replicas` of a deployment, by `manager`, who owns it from then on.
    async fn scale(&self, key: &Key, replicas: i32, manager: &str) -> Result<Object, StoreError>;

    /// Removes the object, if it still has `version` where one is given.
    async fn delete(&self, key: &Key, version: Option<&Version>) -> Result<Object, StoreError>;

    /// Takes the lease when it is free, expired, or this holder's own. A new holder's term is above the last one and above
    /// `floor`. Fails with [`StoreError::LeaseLost`] when somebody else has it.
    async fn acquire(&self, name: &str, holder: &str, ttl: Duration, floor: u64)
    -> Result<Lease, StoreError>;

    /// Holds the lease for another `ttl`, if it is still this holder's in this term.
    async fn renew(&self, lease: &Lease) -> Result<(), StoreError>;

    /// Lets go of the lease, so that the next holder need not wait for its end. Nothing, if it is no longer held.
    async fn release(&self, lease: &Lease) -> Result<(), StoreError>;

    /// Notes what happened to objects. Equal reason and message add up; an object keeps its newest [`event::MAX_PER_OBJECT`].
    /// Notes about objects that are gone are dropped.
    async fn record_events(&self, notes: Vec<EventNote>) -> Result<(), StoreError>;

    /// What happened to an object, oldest first.
    async fn events(&self, key: &Key) -> Result<Vec<Event>, StoreError>;

    /// One private document.
    async fn record(&self, collection: &str, key: &str) -> Result<Option<Record>, StoreError>;

    /// All private documents of a collection, by key.
    async fn records(&self, collection: &str) -> Result<Vec<Record>, StoreError>;

    /// Writes a private document; `expected` is the version that it replaces, none for a new one.
    async fn put_record(
        &self,
        collection: &str,
        key: &str,
        expected: Option<&Version>,
        value: Vec<u8>,
    ) -> Result<Version, StoreError>;

    /// Removes the private document that still has this version. Of two that try, one succeeds.
    async fn delete_record(&self, collection: &str, key: &str, expected: &Version) -> Result<(), StoreError>;

    /// Everything but events, at one moment. [`StoreError::KeptElsewhere`] where the home has ways of its own.
    async fn export(&self) -> Result<Backup, StoreError> {
        Err(StoreError::KeptElsewhere)
    }

    /// Takes a backup, if it holds nothing yet. Objects keep uid, generation, status and owners; their versions are new.
    async fn import(&self, _backup: Backup) -> Result<(), StoreError> {
        Err(StoreError::KeptElsewhere)
    }

    /// Lets go of everything that another process may want; every later write fails with [`StoreError::Closed`]. What was
    /// written is durable without this.
    async fn close(&self);
}

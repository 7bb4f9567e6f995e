//! The embedded home: conformance, and what only a file has to do.

#![allow(clippy::unwrap_used, reason = "helpers of tests, outside of any test function")]

use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use serde_json::json;
use tandem_store::conformance::Home;
use tandem_store::{
    API_VERSION, EmbeddedStore, EventNote, Key, Kind, ManualClock, Selector, Severity, Store, StoreError,
    SystemClock,
};

struct Embedded {
    store: Arc<EmbeddedStore>,
    clock: Arc<ManualClock>,
    _folder: tempfile::TempDir,
}

#[async_trait]
impl Home for Embedded {
    fn store(&self) -> Arc<dyn Store> {
        Arc::clone(&self.store) as Arc<dyn Store>
    }

    fn advance(&self, by: Duration) {
        self.clock.advance(by);
    }

    fn turn(&self, by: SignedDuration) {
        self.clock.turn(by);
    }

    async fn compact(&self) {
        self.store.compact();
    }
}

async fn embedded() -> Embedded {
    let folder = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::new(Timestamp::UNIX_EPOCH));
    let store = EmbeddedStore::open(&folder.path().join("store.redb"), clock.clone()).await.unwrap();
    Embedded { store: Arc::new(store), clock, _folder: folder }
}

tandem_store::conformance!(embedded().await);

fn host(name: &str) -> serde_json::Value {
    json!({"apiVersion": API_VERSION, "kind": "InferenceHost", "metadata": {"name": name}, "spec": {"term": 1}})
}

async fn open(path: &std::path::Path) -> Result<EmbeddedStore, StoreError> {
    EmbeddedStore::open(path, Arc::new(SystemClock)).await
}

#[tokio::test]
async fn everything_survives_closing_and_opening() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    let (made, lease, version) = {
        let store = open(&path).await.unwrap();
        let made = store.create(host("mac-a"), "operator").await.unwrap();
        let (about, reason, message) = (Key::host("mac-a"), "Joined".to_owned(), "it is here".to_owned());
        let note = EventNote { about, severity: Severity::Normal, reason, message };
        store.record_events(vec![note]).await.unwrap();
        store.put_record("ca", "root", None, b"key".to_vec()).await.unwrap();
        let lease = store.acquire("leader", "first", Duration::from_secs(3600), 7).await.unwrap();
        (made, lease, store.list(&Selector::all(Kind::InferenceHost)).await.unwrap().version)
    };
    let store = open(&path).await.unwrap();
    assert_eq!(store.get(&Key::host("mac-a")).await.unwrap(), Some(made.clone()));
    assert_eq!(store.events(&Key::host("mac-a")).await.unwrap().len(), 1);
    assert_eq!(store.record("ca", "root").await.unwrap().unwrap().value, b"key");
    // Whoever opens the file knows that the last holder is gone; terms go on growing.
    let next = store.acquire("leader", "second", Duration::from_secs(10), 0).await.unwrap();
    assert!(next.term > lease.term);
    assert!(matches!(store.renew(&lease).await, Err(StoreError::LeaseLost { .. })));
    // A watch from the last version goes on; one from before has to list again.
    store.watch(Selector::all(Kind::InferenceHost), Some(version)).await.map(drop).unwrap();
    let newer = store.create(host("mac-b"), "operator").await.unwrap();
    assert_ne!(newer.version, made.version);
}

#[tokio::test]
async fn the_file_is_for_its_owner_only() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    let _store = open(&path).await.unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[tokio::test]
async fn a_second_opener_is_told_why_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    let _store = open(&path).await.unwrap();
    let error = open(&path).await.err().unwrap();
    assert!(matches!(error, StoreError::InUse { .. }));
    assert!(error.to_string().contains("in use by another tandem-operator"), "{error}");
}

#[tokio::test]
async fn a_closed_store_writes_nothing_and_lets_another_open_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    let store = open(&path).await.unwrap();
    store.create(host("mac-a"), "operator").await.unwrap();
    store.close().await;
    assert!(matches!(store.create(host("mac-b"), "operator").await, Err(StoreError::Closed)));
    let next = open(&path).await.unwrap();
    assert_eq!(next.list(&Selector::all(Kind::InferenceHost)).await.unwrap().objects.len(), 1);
}

#[tokio::test]
async fn a_newer_format_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    drop(open(&path).await.unwrap());
    {
        let database = redb::Database::create(&path).unwrap();
        let write = database.begin_write().unwrap();
        write
            .open_table(redb::TableDefinition::<&str, u64>::new("meta"))
            .unwrap()
            .insert("format", 99)
            .unwrap();
        write.commit().unwrap();
    }
    for _ in 0..2 {
        let error = open(&path).await.err().unwrap();
        assert!(matches!(error, StoreError::NewerFormat { found: 99, .. }), "{error}");
        assert!(error.to_string().contains("run the release that wrote it"), "{error}");
    }
}

#[tokio::test]
async fn a_file_that_is_none_of_ours_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    std::fs::write(&path, b"not a database, but long enough to be read as the start of one".repeat(100))
        .unwrap();
    assert!(matches!(open(&path).await.err().unwrap(), StoreError::Storage { .. }));
}

#[tokio::test]
async fn a_watch_that_falls_behind_the_ring_is_told() {
    use futures::StreamExt as _;
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder.path().join("store.redb")).await.unwrap();
    let made = store.create(host("mac-a"), "operator").await.unwrap();
    let mut slow = store.watch(Selector::all(Kind::InferenceHost), Some(made.version)).await.unwrap();
    store.create(host("mac-b"), "operator").await.unwrap();
    store.compact();
    assert!(matches!(slow.next().await, Some(Err(StoreError::Expired { .. }))));
    assert!(slow.next().await.is_none());
}

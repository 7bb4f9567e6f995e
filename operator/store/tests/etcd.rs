//! The home in etcd: conformance on three members, and what happens when members are lost.

#![allow(clippy::unwrap_used, reason = "helpers of tests, outside of any test function")]

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt as _;
use jiff::{SignedDuration, Timestamp};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tandem_servers::Etcd;
use tandem_store::conformance::Home;
use tandem_store::{
    API_VERSION, ApplyOptions, Backup, EmbeddedStore, EtcdOptions, EtcdStore, Key, Kind, ManualClock,
    Selector, Store, StoreError, SystemClock, Watch, WatchEvent,
};
use tokio::sync::Mutex;

const SOON: Duration = Duration::from_secs(60);

struct Members {
    store: Arc<EtcdStore>,
    clock: Arc<ManualClock>,
    etcd: Arc<Mutex<Etcd>>,
}

#[async_trait]
impl Home for Members {
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
        self.etcd.lock().await.compact().unwrap();
    }
}

fn options(etcd: &Etcd, prefix: &str) -> EtcdOptions {
    EtcdOptions { endpoints: etcd.endpoints(), prefix: prefix.to_owned(), ..EtcdOptions::default() }
}

#[tokio::test]
async fn it_does_what_every_home_does() {
    let etcd = Arc::new(Mutex::new(Etcd::start(3).unwrap()));
    let fresh = async || {
        let clock = Arc::new(ManualClock::new(Timestamp::now()));
        let options = options(&*etcd.lock().await, &format!("/tandem-{}", uuid::Uuid::new_v4()));
        let store = Arc::new(EtcdStore::connect(options, clock.clone()).await.unwrap());
        Members { store, clock, etcd: Arc::clone(&etcd) }
    };
    tandem_store::conformance!(in turn: fresh().await);
}

async fn store(etcd: &Etcd) -> EtcdStore {
    EtcdStore::connect(options(etcd, "/tandem"), Arc::new(SystemClock)).await.unwrap()
}

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

async fn apply(store: &EtcdStore, name: &str) -> Result<(), StoreError> {
    store.apply(deployment(name), &ApplyOptions::by("ci")).await.map(drop)
}

async fn hears(watch: &mut Watch, name: &str) {
    let said =
        tokio::time::timeout(SOON, watch.next()).await.expect("the watch has recovered").unwrap().unwrap();
    assert!(matches!(&said, WatchEvent::Added(object) if object.key.name == name), "{said:?}");
}

async fn watch(store: &EtcdStore) -> Watch {
    let mut watch = store.watch(Selector::all(Kind::InferenceDeployment), None).await.unwrap();
    while !matches!(watch.next().await.unwrap().unwrap(), WatchEvent::Bookmark(_)) {}
    watch
}

#[tokio::test]
async fn any_one_member_may_die_or_freeze() {
    let mut etcd = Etcd::start(3).unwrap();
    let store = store(&etcd).await;
    let mut watch = watch(&store).await;
    for (n, name) in ["a", "b", "c"].into_iter().enumerate() {
        etcd.member(n).kill();
        tokio::time::timeout(SOON, apply(&store, name)).await.unwrap().unwrap();
        hears(&mut watch, name).await;
        etcd.member(n).restart().unwrap();
        etcd.wait(n).unwrap();
    }
    for (n, name) in ["d", "e", "f"].into_iter().enumerate() {
        etcd.member(n).signal(Signal::SIGSTOP).unwrap();
        tokio::time::timeout(SOON, async { while apply(&store, name).await.is_err() {} }).await.unwrap();
        hears(&mut watch, name).await;
        etcd.member(n).signal(Signal::SIGCONT).unwrap();
        etcd.wait(n).unwrap();
    }
}

#[tokio::test]
async fn without_a_quorum_writes_fail_in_time_and_all_goes_on_when_it_is_back() {
    let mut etcd = Etcd::start(3).unwrap();
    let store = store(&etcd).await;
    let mut watch = watch(&store).await;
    let lease = store.acquire("leader", "a", Duration::from_secs(3), 0).await.unwrap();
    etcd.member(0).kill();
    etcd.member(1).kill();
    let refused = tokio::time::timeout(SOON, apply(&store, "a")).await.expect("it gives up").unwrap_err();
    assert!(matches!(refused, StoreError::Unreachable { .. }), "{refused}");
    let renewed = tokio::time::timeout(lease.ttl, store.renew(&lease)).await.expect("within the lease");
    assert!(matches!(renewed, Err(StoreError::Unreachable { .. })), "{renewed:?}");
    etcd.member(0).restart().unwrap();
    etcd.wait(0).unwrap();
    tokio::time::timeout(SOON, async { while apply(&store, "b").await.is_err() {} }).await.unwrap();
    loop {
        // Whether the write that failed was done is left open by etcd.
        let said = tokio::time::timeout(SOON, watch.next())
            .await
            .expect("the watch has recovered")
            .unwrap()
            .unwrap();
        if said.object().is_some_and(|object| object.key.name == "b") {
            break;
        }
    }
}

#[tokio::test]
async fn a_stuck_disk_costs_a_leader_and_stuck_disks_cost_time() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: a disk that stalls is mounted by root alone");
        return;
    }
    let mut etcd = Etcd::start_on_disks(3).unwrap();
    let store = store(&etcd).await;
    let mut watch = watch(&store).await;
    // One of the three is the leader.
    for (n, name) in ["a", "b", "c"].into_iter().enumerate() {
        etcd.disk_stalls(n).unwrap();
        tokio::time::timeout(SOON, async { while apply(&store, name).await.is_err() {} }).await.unwrap();
        hears(&mut watch, name).await;
        etcd.disk_goes_on(n).unwrap();
        etcd.wait(n).unwrap();
    }
    let lease = store.acquire("leader", "a", Duration::from_secs(3), 0).await.unwrap();
    for n in 0..3 {
        etcd.disk_stalls(n).unwrap();
    }
    let refused = tokio::time::timeout(SOON, apply(&store, "d")).await.expect("it gives up").unwrap_err();
    assert!(matches!(refused, StoreError::Unreachable { .. }), "{refused}");
    let renewed = tokio::time::timeout(lease.ttl, store.renew(&lease)).await.expect("within the lease");
    assert!(matches!(renewed, Err(StoreError::Unreachable { .. })), "{renewed:?}");
    for n in 0..3 {
        etcd.disk_goes_on(n).unwrap();
    }
    tokio::time::timeout(SOON, async { while apply(&store, "d").await.is_err() {} }).await.unwrap();
    hears(&mut watch, "d").await;
}

#[tokio::test]
async fn a_leader_that_was_away_writes_nothing_even_what_nobody_has_changed() {
    let etcd = Etcd::start(1).unwrap();
    let (old, new) = (store(&etcd).await, store(&etcd).await);
    let ttl = Duration::from_millis(500);
    old.acquire("leader", "a", ttl, 0).await.unwrap();
    let host = json!({"apiVersion": API_VERSION, "kind": "InferenceHost", "metadata": {"name": "mac-a"}, "spec": {"term": 1}});
    let mut read = old.create(host, "tandem-operator").await.unwrap();
    tokio::time::timeout(SOON, async {
        while new.acquire("leader", "b", ttl, 0).await.is_err() {
            tokio::time::sleep(ttl / 5).await;
        }
    })
    .await
    .unwrap();
    read.json["spec"]["unschedulable"] = json!(true);
    let late = old.replace(&read, "tandem-operator").await.unwrap_err();
    assert!(matches!(&late, StoreError::LeaseLost { holder, .. } if holder == "b"), "{late}");
    assert_eq!(new.get(&Key::host("mac-a")).await.unwrap().unwrap().version, read.version);
    new.replace(&read, "tandem-operator").await.unwrap();
}

/// What a store keeps, without what is counted anew.
async fn kept(store: &dyn Store) -> (Vec<Value>, Vec<(String, Vec<u8>)>) {
    let mut objects: Vec<Value> = store.export().await.unwrap().objects;
    objects.iter_mut().for_each(|object| object["metadata"]["resourceVersion"] = Value::Null);
    let records = store.records("members").await.unwrap();
    (objects, records.into_iter().map(|record| (record.key, record.value)).collect())
}

#[tokio::test]
async fn a_backup_goes_from_a_file_to_three_voters_and_back() {
    let etcd = Etcd::start(3).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let open =
        async |name: &str| EmbeddedStore::open(&dir.path().join(name), Arc::new(SystemClock)).await.unwrap();
    let file = open("one.redb").await;
    let host = json!({"apiVersion": API_VERSION, "kind": "InferenceHost", "metadata": {"name": "mac-a"}, "spec": {"term": 1}});
    let host = file.create(host, "tandem-operator").await.unwrap();
    let status = json!({"observedGeneration": 1});
    file.replace_status(&host.key, &host.version, status).await.unwrap();
    file.put_record("members", "tandem://host/mac-a", None, b"\x00{}".to_vec()).await.unwrap();
    let term = file.acquire("leader", "a", Duration::from_secs(1), 41).await.unwrap().term;
    let backup = Backup::decode(&file.export().await.unwrap().encode()).unwrap();

    let voters = store(&etcd).await;
    voters.import(backup.clone()).await.unwrap();
    assert_eq!(kept(&voters).await, kept(&file).await);
    // Who leads next is above whoever led before.
    assert!(voters.acquire("leader", "b", Duration::from_secs(1), 0).await.unwrap().term > term);
    assert!(matches!(voters.import(backup.clone()).await, Err(StoreError::NotEmpty)));
    assert!(matches!(file.import(backup).await, Err(StoreError::NotEmpty)));

    let back = open("two.redb").await;
    back.import(voters.export().await.unwrap()).await.unwrap();
    assert_eq!(kept(&back).await, kept(&file).await);
    let read = back.get(&Key::host("mac-a")).await.unwrap().unwrap();
    assert_eq!(read.json["metadata"]["uid"], host.json["metadata"]["uid"]);
    // It is a store like any other.
    back.replace(&read, "tandem-hosts").await.unwrap();
    assert!(back.acquire("leader", "c", Duration::from_secs(1), 0).await.unwrap().term > term + 1);
}

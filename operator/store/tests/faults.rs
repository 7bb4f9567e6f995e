//! The home on Kubernetes when the API server has a bad day: nothing is missed, nothing doubled, and every wait has an end.

#![allow(clippy::unwrap_used, reason = "helpers of tests, outside of any test function")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::StreamExt as _;
use serde_json::{Value, json};
use tandem_servers::{ControlPlane, Fault, FaultProxy, User};
use tandem_store::{
    API_VERSION, ApplyOptions, Key, Kind, KubernetesOptions, KubernetesStore, Listing, Selector, Store,
    StoreError, SystemClock, Watch, WatchEvent,
};

/// Longer than the store lets a watch be silent.
const SOON: Duration = Duration::from_secs(60);

struct Site {
    plane: ControlPlane,
    proxy: FaultProxy,
    store: Arc<KubernetesStore>,
}

async fn site() -> Site {
    let plane = ControlPlane::start().await.unwrap();
    for namespace in ["llm", "tandem-system"] {
        plane.kubectl(&["create", "namespace", namespace]).unwrap();
    }
    let proxy = FaultProxy::start(plane.client(User::ADMIN).await.unwrap()).await.unwrap();
    let kubeconfig = plane.dir().join("proxy.kubeconfig");
    std::fs::write(&kubeconfig, proxy.kubeconfig()).unwrap();
    let options = KubernetesOptions {
        kubeconfig: Some(kubeconfig),
        namespace: "tandem-system".to_owned(),
        ..KubernetesOptions::default()
    };
    let store = Arc::new(KubernetesStore::connect(options, Arc::new(SystemClock)).await.unwrap());
    Site { plane, proxy, store }
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

impl Site {
    async fn apply(&self, name: &str) {
        self.store.apply(deployment(name), &ApplyOptions::by("ci")).await.unwrap();
    }

    async fn watch(&self) -> Watch {
        let mut watch = self.store.watch(Selector::all(Kind::InferenceDeployment), None).await.unwrap();
        while !matches!(watch.next().await.unwrap().unwrap(), WatchEvent::Bookmark(_)) {}
        watch
    }

    fn names(&self, listing: Result<Listing, StoreError>) -> Vec<String> {
        listing.unwrap().objects.into_iter().map(|object| object.key.name).collect()
    }

    /// Names that a watch says were made, as many as these.
    async fn hears(&self, watch: &mut Watch, names: &[&str]) {
        for name in names {
            let said = tokio::time::timeout(SOON, watch.next()).await.expect("the watch has recovered");
            let WatchEvent::Added(object) = said.unwrap().unwrap() else { panic!("not an addition") };
            assert_eq!(object.key.name, *name);
        }
    }
}

fn is_watch(_: &str, uri: &str) -> bool {
    uri.contains("watch=true") && uri.contains("inferencedeployments")
}

#[tokio::test]
async fn a_busy_server_a_cut_and_a_silent_watch_miss_and_double_nothing() {
    let site = site().await;
    let mut watch = site.watch().await;
    site.apply("a").await;
    site.hears(&mut watch, &["a"]).await;

    // Cut in the middle, refused with 429 and 500, and broken off once more: then it goes on.
    site.proxy.strike(Fault::Refuse(429, 1), 1, is_watch);
    site.proxy.strike(Fault::Refuse(500, 0), 1, is_watch);
    site.proxy.strike(Fault::Cut, 1, is_watch);
    site.proxy.cut_all();
    site.apply("b").await;
    site.apply("c").await;
    site.hears(&mut watch, &["b", "c"]).await;
    site.proxy.struck(3).await;

    // One that says nothing, not even that its time is over.
    site.proxy.strike(Fault::Stall, 1, is_watch);
    site.proxy.cut_all();
    let (struck, heard) = (site.proxy.struck(4), site.hears(&mut watch, &["d"]));
    let apply = async {
        struck.await;
        site.apply("d").await;
    };
    tokio::join!(apply, heard);
}

#[tokio::test]
async fn a_watch_from_too_long_ago_says_so() {
    let site = site().await;
    let all = Selector::all(Kind::InferenceDeployment);
    let version = site.store.list(&all).await.unwrap().version;
    site.proxy.strike(Fault::Gone, 1, is_watch);
    let mut watch = site.store.watch(all, Some(version)).await.unwrap();
    let said = tokio::time::timeout(SOON, watch.next()).await.expect("a word");
    assert!(matches!(said, Some(Err(StoreError::Expired { .. }))), "{said:?}");
    assert!(watch.next().await.is_none());
}

#[tokio::test]
async fn changes_that_the_server_no_longer_keeps_are_told_from_a_new_list() {
    let site = site().await;
    site.apply("a").await;
    site.apply("b").await;
    let mut watch = site.watch().await;
    // While nothing comes through, one goes and one is made; then the server has forgotten both.
    site.proxy.strike(Fault::Stall, 1, is_watch);
    site.proxy.cut_all();
    site.proxy.struck(1).await;
    site.plane.kubectl(&["delete", "infd", "a", "--namespace=llm"]).unwrap();
    site.apply("c").await;
    site.proxy.strike(Fault::Gone, 1, is_watch);
    site.proxy.cut_all();
    let gone = tokio::time::timeout(SOON, watch.next()).await.expect("the watch has recovered").unwrap();
    assert!(matches!(gone, Ok(WatchEvent::Deleted(object)) if object.key.name == "a"));
    site.hears(&mut watch, &["c"]).await;
    site.apply("d").await;
    site.hears(&mut watch, &["d"]).await;
    assert_eq!(
        site.names(site.store.recent(&Selector::all(Kind::InferenceDeployment)).await),
        ["b", "c", "d"]
    );
}

#[tokio::test]
async fn nobody_reads_less_than_what_was_written_here() {
    let site = site().await;
    let all = Selector::all(Kind::InferenceDeployment);
    for name in ["a", "b", "c"] {
        site.apply(name).await;
        assert_eq!(site.names(site.store.recent(&all).await).last().unwrap(), name);
    }
    site.store.delete(&Key::deployment("llm", "b"), None).await.unwrap();
    assert_eq!(site.names(site.store.recent(&all).await), ["a", "c"]);
    // Not even while no change comes through: then the server is asked.
    site.proxy.strike(Fault::Stall, 1, is_watch);
    site.proxy.cut_all();
    site.proxy.struck(1).await;
    site.apply("d").await;
    assert_eq!(site.names(site.store.recent(&all).await), ["a", "c", "d"]);
    drop(site.watch().await);
}

#[tokio::test]
async fn however_many_follow_the_server_sees_one_watch() {
    const READERS: usize = 40;
    let site = site().await;
    let (lists, watches) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let count = (Arc::clone(&lists), Arc::clone(&watches));
    // Strikes nobody, and counts.
    site.proxy.strike(Fault::Cut, 1, move |method, uri| {
        if method == "GET" && uri.contains("/inferencehosts?") {
            let kind = if uri.contains("watch=true") { &count.1 } else { &count.0 };
            kind.fetch_add(1, Ordering::SeqCst);
        }
        false
    });
    let mut readers = Vec::new();
    for number in 0..READERS {
        let host = json!({"apiVersion": API_VERSION, "kind": "InferenceHost", "metadata": {"name": format!("host-{number}")}, "spec": {"term": 1}});
        let key = site.store.create(host, "operator").await.unwrap().key;
        let own = Selector { name: Some(key.name), ..Selector::all(Kind::InferenceHost) };
        let mut watch = site.store.watch(own, None).await.unwrap();
        assert!(matches!(watch.next().await, Some(Ok(WatchEvent::Added(_)))));
        assert!(matches!(watch.next().await, Some(Ok(WatchEvent::Bookmark(_)))));
        readers.push(watch);
    }
    let all = site.store.recent(&Selector::all(Kind::InferenceHost)).await.unwrap();
    assert_eq!(all.objects.len(), READERS);
    for mut object in all.objects.into_iter().rev() {
        object.json["spec"]["unschedulable"] = json!(true);
        site.store.replace(&object, "operator").await.unwrap();
    }
    for watch in &mut readers {
        let said = tokio::time::timeout(SOON, watch.next()).await.expect("a word").unwrap().unwrap();
        let WatchEvent::Modified(object) = said else { panic!("not a change") };
        assert_eq!(object.spec()["unschedulable"], true);
    }
    assert_eq!(lists.load(Ordering::SeqCst), 1);
    // One ends after half a minute, and is begun anew.
    assert!(watches.load(Ordering::SeqCst) < READERS / 4, "{watches:?}");
}

#[tokio::test]
async fn the_api_server_starts_anew_and_watches_go_on_or_say_that_they_cant() {
    let mut site = site().await;
    let mut watch = site.watch().await;
    site.apply("a").await;
    site.hears(&mut watch, &["a"]).await;
    site.plane.api_server().kill();
    site.plane.api_server().restart().unwrap();
    site.plane.wait_ready().await.unwrap();
    site.apply("b").await;
    // What the server remembered went with its process: it may know what came after "a", or that it does not.
    let said = tokio::time::timeout(SOON, watch.next()).await.expect("the watch has recovered").unwrap();
    match said {
        Ok(WatchEvent::Added(object)) => assert_eq!(object.key.name, "b"),
        Err(StoreError::Expired { .. }) => {
            let listing = site.store.list(&Selector::all(Kind::InferenceDeployment)).await.unwrap();
            let names: Vec<String> = listing.objects.into_iter().map(|object| object.key.name).collect();
            assert_eq!(names, ["a", "b"]);
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn writes_are_repeated_while_that_can_help_and_no_longer() {
    let site = site().await;
    let any = |method: &str, uri: &str| method == "PATCH" && uri.contains("inferencedeployments");
    site.proxy.strike(Fault::Refuse(429, 1), 1, any);
    site.proxy.strike(Fault::Refuse(503, 0), 1, any);
    site.proxy.strike(Fault::Cut, 1, any);
    site.apply("a").await;
    site.proxy.struck(3).await;
    assert!(site.store.get(&Key::deployment("llm", "a")).await.unwrap().is_some());

    site.proxy.strike(Fault::Refuse(500, 0), 1000, any);
    let by = ApplyOptions::by("ci");
    let refused = site.store.apply(deployment("b"), &by);
    let error = tokio::time::timeout(SOON, refused).await.expect("it gives up").unwrap_err();
    assert!(matches!(error, StoreError::Refused { code: 500, .. }), "{error}");
}

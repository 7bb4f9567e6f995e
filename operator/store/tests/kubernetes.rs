//! The home on Kubernetes: conformance on a real API server, and what only that has to do.

#![allow(clippy::unwrap_used, reason = "helpers of tests, outside of any test function")]

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use tandem_servers::{ControlPlane, User};
use tandem_store::conformance::Home;
use tandem_store::{KubernetesOptions, KubernetesStore, ManualClock, Store};
use tokio::sync::Mutex;

struct Cluster {
    store: Arc<KubernetesStore>,
    clock: Arc<ManualClock>,
    plane: Arc<Mutex<ControlPlane>>,
}

#[async_trait]
impl Home for Cluster {
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
        let mut plane = self.plane.lock().await;
        plane.etcd().compact().unwrap();
        // What the API server remembers beyond etcd goes with its process.
        plane.api_server().kill();
        plane.api_server().restart().unwrap();
        plane.wait_ready().await.unwrap();
    }
}

async fn plane() -> Arc<Mutex<ControlPlane>> {
    let plane = ControlPlane::start().await.unwrap();
    for namespace in ["llm", "other", "tandem-system"] {
        plane.kubectl(&["create", "namespace", namespace]).unwrap();
    }
    Arc::new(Mutex::new(plane))
}

/// A home in the cluster, with everything of an earlier one removed.
async fn fresh(plane: &Arc<Mutex<ControlPlane>>) -> Cluster {
    let kubeconfig = {
        let plane = plane.lock().await;
        for what in ["infd,secrets,leases,events", "infh"] {
            plane.kubectl(&["delete", what, "--all", "--all-namespaces", "--wait=false"]).unwrap();
        }
        plane.kubeconfig(User::ADMIN).unwrap()
    };
    let clock = Arc::new(ManualClock::new(Timestamp::now()));
    let options = KubernetesOptions {
        kubeconfig: Some(kubeconfig),
        namespace: "tandem-system".to_owned(),
        ..KubernetesOptions::default()
    };
    let store = Arc::new(KubernetesStore::connect(options, clock.clone()).await.unwrap());
    Cluster { store, clock, plane: Arc::clone(plane) }
}

#[tokio::test]
async fn it_does_what_every_home_does() {
    let plane = plane().await;
    tandem_store::conformance!(in turn: fresh(&plane).await);
}

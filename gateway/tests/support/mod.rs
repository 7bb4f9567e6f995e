//! Scripted workers over real mTLS sockets, a gateway in front of them, and a client.
//!
//! A worker's token is a hash of the prompt and all earlier tokens, as text that is cut inside characters: a wrong
//! prefix, a lost, doubled or reordered token changes everything after it.

pub mod client;
pub mod operator;
pub mod worker;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tandem_control_api::{ModelRoute, Replica, RouteTable};
use tandem_gateway::{Fleet, Gateway, HealthBounds, Policy, Table};
use tandem_openai::{Backend, Bounds, Entrance, Limits, Open, router, serve};
use tandem_pki::{CertificateAuthority, HOST_LIFETIME, Identity, install_tls_provider};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use worker::{Script, Worker};

pub async fn soon<T>(event: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), event).await.expect("it should have happened long ago")
}

pub fn authority() -> CertificateAuthority {
    install_tls_provider();
    CertificateAuthority::create(SystemTime::now()).unwrap()
}

/// The route table of one model, `tiny` in namespace `llm`.
pub fn table<'a>(workers: impl IntoIterator<Item = &'a Worker>) -> RouteTable {
    let replica = |worker: &Worker| Replica {
        workload: worker.name.clone(),
        epoch: 1,
        host: "host".to_owned(),
        address: worker.address.to_string(),
        server_name: worker.server_name(),
        numerics_id: worker.script.numerics_id.to_owned(),
        ..Replica::default()
    };
    let model = ModelRoute {
        name: "tiny".to_owned(),
        namespace: "llm".to_owned(),
        deployment: "tiny".to_owned(),
        owns_short_name: true,
        sampling_json: r#"{"temperature": "0.5"}"#.to_owned(),
        replicas: workers.into_iter().map(replica).collect(),
        ..ModelRoute::default()
    };
    RouteTable { version: 1, models: vec![model], ..RouteTable::default() }
}

/// A gateway in front of workers, in this process.
pub struct Site {
    pub workers: Vec<Worker>,
    pub url: String,
    pub fleet: Arc<Fleet>,
    end: oneshot::Sender<()>,
    server: JoinHandle<()>,
    pub gateway: Arc<Gateway>,
}

impl Site {
    /// Workers `a`, `b`, … in order; an idle gateway asks the first one first.
    pub async fn start(scripts: impl IntoIterator<Item = Script>) -> Self {
        Self::with(scripts, Policy::default()).await
    }

    pub async fn with(scripts: impl IntoIterator<Item = Script>, policy: Policy) -> Self {
        Self::behind(scripts, policy, Entrance::from).await
    }

    pub async fn behind(
        scripts: impl IntoIterator<Item = Script>,
        policy: Policy,
        entrance: impl FnOnce(TcpListener) -> Entrance,
    ) -> Self {
        let authority = authority();
        let workers: Vec<Worker> = ["a", "b", "c", "d"]
            .into_iter()
            .zip(scripts)
            .map(|(name, script)| Worker::start(&authority, name, script))
            .collect();
        let edge = Identity::gateway("edge").unwrap();
        let credentials = authority.credentials(&edge, &[], SystemTime::now(), HOST_LIFETIME).unwrap();
        let credentials = tokio::sync::watch::Sender::new(credentials).subscribe();
        let fleet = Fleet::new(credentials, HealthBounds::default());
        fleet.apply(Table::parse(table(&workers)));
        soon(fleet.serving(workers.len())).await;
        let gateway = Arc::new(Gateway::new(fleet.clone(), policy));
        let backend: Arc<dyn Backend> = gateway.clone();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (end, ended) = oneshot::channel::<()>();
        let server = tokio::spawn(serve(
            entrance(listener),
            router(backend, Arc::new(Open), Bounds::default()),
            Limits::default(),
            async {
                ended.await.unwrap_or_default();
            },
        ));
        Self { workers, url, fleet, end, server, gateway }
    }

    /// Ends the gateway, and holds it to having left nothing behind.
    pub async fn finish(self) {
        self.end.send(()).unwrap();
        soon(self.server).await.unwrap();
        soon(self.gateway.settle(Duration::from_secs(20))).await;
        for worker in self.workers {
            if worker.alive() {
                soon(worker.idle()).await;
            }
        }
    }
}

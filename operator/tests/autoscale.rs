//! Kubernetes' own autoscaler scales a deployment by what gateways count. What stands between the two in the field, Prometheus and an
//! adapter, is stood in for here by a server of the external metrics API that says what the test tells it.

#![allow(clippy::unwrap_used, reason = "helpers of tests, outside of any test function")]

mod world;

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime};

use axum::extract::{Path as Segments, Query, State};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};
use tandem_pki::{CertificateAuthority, HOST_LIFETIME, Identity, install_tls_provider};
use tandem_servers::{ControlPlane, Options};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::server::TlsStream;
use world::kubernetes::{OPERATOR, SYSTEM, Site};

/// Streams that run or wait, as gateways would count them.
#[derive(Clone, Default)]
struct Streams(Arc<AtomicI64>);

impl Streams {
    /// Serves the external metrics API on loopback; its port.
    async fn serve(&self) -> u16 {
        let authority = CertificateAuthority::create(SystemTime::now()).unwrap();
        let own = authority.credentials(&Identity::Operator, &[], SystemTime::now(), HOST_LIFETIME).unwrap();
        let chain = CertificateDer::pem_slice_iter(own.certificate_pem.as_bytes()).map(Result::unwrap);
        let key = PrivateKeyDer::from_pem_slice(own.key_pem.as_bytes()).unwrap();
        // The API server shows a certificate of its own cluster: whoever asks is answered.
        let tls =
            ServerConfig::builder().with_no_client_auth().with_single_cert(chain.collect(), key).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let router = Router::new()
            .route("/apis/external.metrics.k8s.io/v1beta1", get(resources))
            .route("/apis/external.metrics.k8s.io/v1beta1/namespaces/{namespace}/{metric}", get(value))
            .with_state(self.clone());
        let listener = Encrypted { listener, tls: TlsAcceptor::from(Arc::new(tls)) };
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        port
    }
}

struct Encrypted {
    listener: TcpListener,
    tls: TlsAcceptor,
}

impl axum::serve::Listener for Encrypted {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let (socket, from) = self.listener.accept().await.unwrap();
            if let Ok(socket) = self.tls.accept(socket).await {
                return (socket, from);
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

async fn resources() -> Json<Value> {
    Json(json!({
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": "external.metrics.k8s.io/v1beta1",
        "resources": [{
            "name": "tandem_streams", "singularName": "", "namespaced": true,
            "kind": "ExternalMetricValueList", "verbs": ["get"],
        }],
    }))
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Labels {
    label_selector: String,
}

async fn value(
    State(streams): State<Streams>,
    Segments((namespace, metric)): Segments<(String, String)>,
    Query(labels): Query<Labels>,
) -> Json<Value> {
    let asked = (namespace.as_str(), metric.as_str(), labels.label_selector.as_str());
    let known = asked == ("llm", "tandem_streams", "name=kimi");
    let value = streams.0.load(Ordering::Relaxed).to_string();
    let item = json!({
        "metricName": metric, "metricLabels": {"name": "kimi"}, "timestamp": jiff::Timestamp::now().to_string(), "value": value,
    });
    Json(json!({
        "kind": "ExternalMetricValueList",
        "apiVersion": "external.metrics.k8s.io/v1beta1",
        "metadata": {},
        "items": if known { vec![item] } else { Vec::new() },
    }))
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = tokio::time::Instant::now() + Duration::from_secs(90);
    while !done() {
        assert!(tokio::time::Instant::now() < end, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_follow_the_streams_and_gitops_leaves_them_as_they_are() {
    install_tls_provider();
    // The stand-in listens on loopback, where no endpoint of a Service may be.
    let api_server = vec!["--enable-aggregator-routing=false".to_owned()];
    let options = Options { controller_manager: true, api_server, ..Options::default() };
    let plane = ControlPlane::start_with(options).await.unwrap();
    let kubeconfig = plane.kubeconfig(OPERATOR).unwrap();
    let site = Site::start_on(plane, kubeconfig).await;
    let plane = &site.plane;
    let streams = Streams::default();
    let port = streams.serve().await;
    let served = json!({"apiVersion": "v1", "kind": "List", "items": [
        {
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "figures", "namespace": SYSTEM},
            "spec": {"type": "ExternalName", "externalName": "localhost", "ports": [{"port": port}]},
        },
        {
            "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
            "metadata": {"name": "v1beta1.external.metrics.k8s.io"},
            "spec": {
                "group": "external.metrics.k8s.io", "version": "v1beta1",
                "groupPriorityMinimum": 100, "versionPriority": 100, "insecureSkipTLSVerify": true,
                "service": {"namespace": SYSTEM, "name": "figures", "port": port},
            },
        },
    ]});
    let file = plane.dir().join("served.json");
    std::fs::write(&file, served.to_string()).unwrap();
    plane.kubectl(&["apply", "-f", &file.display().to_string()]).unwrap();
    plane
        .kubectl(&[
            "wait",
            "--for=condition=Available",
            "--timeout=60s",
            "apiservice/v1beta1.external.metrics.k8s.io",
        ])
        .unwrap();

    let example = |name: &str| {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples").join(name).display().to_string()
    };
    let gitops = ["apply", "--server-side", "--field-manager=gitops", "-f"];
    let kimi = example("kimi.yaml");
    plane.kubectl(&[&gitops[..], &[&kimi]].concat()).unwrap();
    plane.kubectl(&[&gitops[..], &[&example("hpa.yaml")]].concat()).unwrap();
    let said = |path: &str, object: &str| {
        plane.kubectl(&["get", object, "-n", "llm", "-o", &format!("jsonpath={path}")]).unwrap()
    };
    let replicas = || said("{.spec.replicas}", "infd/kimi");
    until("the autoscaler reads the figure", || {
        said("{.status.conditions[?(@.type==\"ScalingActive\")].status}", "hpa/kimi") == "True"
    })
    .await;
    assert_eq!(replicas(), "1", "nobody asks");

    // 17 streams are one more than a copy should have.
    streams.0.store(17, Ordering::Relaxed);
    until("a second copy", || replicas() == "2").await;
    plane.kubectl(&[&gitops[..], &[&kimi]].concat()).unwrap();
    assert_eq!(replicas(), "2", "the manifest was applied again, and does not say how many");
    until("the autoscaler sees what it did", || said("{.status.currentReplicas}", "hpa/kimi") == "2").await;
}

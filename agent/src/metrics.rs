//! Figures for Prometheus, and the port that they are read from. Their names are documented in `docs/metrics.md`.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use axum::Router;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder, prometheus_text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use tandem_crds::{InferenceHostStatus, WorkloadState};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};

/// Readers at once.
const READERS: usize = 8;
/// How long one answer may take, from the connection to its last byte.
const WITHIN: Duration = Duration::from_secs(10);
/// Accept failed; most likely there are no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// What Prometheus expects of text.
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";
/// Every state that a workload can be counted in.
const STATES: [WorkloadState; 8] = [
    WorkloadState::Fetching,
    WorkloadState::Starting,
    WorkloadState::Loading,
    WorkloadState::Ready,
    WorkloadState::Warm,
    WorkloadState::Draining,
    WorkloadState::Failed,
    WorkloadState::Stopped,
];

/// Where bytes of weights came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Origin {
    Source,
    Peer,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfOrigin {
    origin: Origin,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfModel {
    model: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InState {
    state: String,
}

impl EncodeLabelValue for Origin {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), fmt::Error> {
        let word = match self {
            Self::Source => "source",
            Self::Peer => "peer",
        };
        EncodeLabelValue::encode(&word, encoder)
    }
}

/// Everything that is counted. Cheap to share: every figure is atomic.
pub(crate) struct Metrics {
    registry: Registry,
    fetched: Family<OfOrigin, Counter>,
    /// Bytes sent to other hosts.
    pub(crate) served: Counter,
    /// Files that were hashed again and were not what they should be.
    pub(crate) verify_failures: Counter,
    /// Fetches that were tried again.
    pub(crate) fetch_retries: Counter,
    /// Bytes of files that made room for others.
    pub(crate) collected: Counter,
    done: Family<OfModel, Gauge>,
    total: Family<OfModel, Gauge>,
    used: Gauge,
    budget: Gauge<f64, std::sync::atomic::AtomicU64>,
    workloads: Family<InState, Gauge>,
    session: Gauge,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::with_prefix("tandem");
        let version = vec![("version", env!("CARGO_PKG_VERSION"))];
        registry.register("agent_build", "The agent's release", Info::new(version));
        let (fetched, served): (Family<OfOrigin, Counter>, Counter) = Default::default();
        let (verify_failures, fetch_retries, collected): (Counter, Counter, Counter) = Default::default();
        let (done, total): (Family<OfModel, Gauge>, Family<OfModel, Gauge>) = Default::default();
        let (used, budget, session): (Gauge, Gauge<f64, _>, Gauge) = Default::default();
        let workloads = Family::<InState, Gauge>::default();
        let bytes = || Unit::Bytes;
        let of = "Weights fetched, by where they came from";
        registry.register_with_unit("weights_fetched", of, bytes(), fetched.clone());
        registry.register_with_unit("weights_served", "Weights sent to other hosts", bytes(), served.clone());
        let of = "Weights removed to make room for others";
        registry.register_with_unit("weights_collected", of, bytes(), collected.clone());
        let of = "Files of weights that were hashed again and were damaged, changed or unreadable";
        registry.register("weights_verify_failures", of, verify_failures.clone());
        let of = "Fetches of weights that failed and were tried again";
        registry.register("weights_fetch_retries", of, fetch_retries.clone());
        let of = "Verified weights of a model that is being fetched";
        registry.register_with_unit("weights_transfer_done", of, bytes(), done.clone());
        let of = "All weights of a model that is being fetched";
        registry.register_with_unit("weights_transfer_total", of, bytes(), total.clone());
        registry.register_with_unit("weights_store_used", "Weights kept on disk", bytes(), used.clone());
        let of = "What weights may take of the disk; +Inf without a budget";
        registry.register_with_unit("weights_store_budget", of, bytes(), budget.clone());
        let of = "Workloads of this host, by state";
        registry.register("agent_workloads", of, workloads.clone());
        let of = "1 while the agent is in session with an operator, else 0";
        registry.register("agent_session_up", of, session.clone());
        for origin in [Origin::Source, Origin::Peer] {
            drop(fetched.get_or_create(&OfOrigin { origin }));
        }
        budget.set(f64::INFINITY);
        Self {
            registry,
            fetched,
            served,
            verify_failures,
            fetch_retries,
            collected,
            done,
            total,
            used,
            budget,
            workloads,
            session,
        }
    }

    pub(crate) fn fetched(&self, origin: Origin, bytes: u64) {
        self.fetched.get_or_create(&OfOrigin { origin }).inc_by(bytes);
    }

    pub(crate) fn in_session(&self, up: bool) {
        self.session.set(i64::from(up));
    }

    /// Takes over what a report says. `model_of` knows which model a workload serves: of a host's workloads there are few, so
    /// that models make few series, and one ends with its transfer.
    #[allow(clippy::cast_precision_loss, reason = "a budget of more than 8 PiB may be off by a byte")]
    pub(crate) fn reported<'a>(
        &self,
        status: &InferenceHostStatus,
        model_of: impl Fn(&str) -> Option<&'a str>,
    ) {
        let signed = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        for state in STATES {
            let count = status.workloads.iter().filter(|workload| workload.state == state).count();
            let gauge = self.workloads.get_or_create(&InState { state: state.to_string() });
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        self.done.clear();
        self.total.clear();
        for workload in &status.workloads {
            if let (Some(transfer), Some(model)) = (&workload.transfer, model_of(&workload.id)) {
                let model = OfModel { model: model.to_owned() };
                self.done.get_or_create(&model).set(signed(transfer.done_bytes));
                self.total.get_or_create(&model).set(signed(transfer.total_bytes));
            }
        }
        if let Some(weights) = &status.weights {
            self.used.set(signed(weights.used_bytes));
            self.budget.set(weights.budget_bytes.map_or(f64::INFINITY, |budget| budget as f64));
        }
    }

    fn text(&self) -> String {
        let mut text = String::new();
        prometheus_text::encode(&mut text, &self.registry).expect("a string takes all that is written");
        text
    }
}

/// A port that is taken already, from which figures are read by plain HTTP.
pub(crate) struct Port {
    listener: TcpListener,
    router: Router,
}

impl Port {
    pub(crate) async fn open(address: SocketAddr, metrics: Arc<Metrics>) -> Result<Self> {
        let listener = TcpListener::bind(address).await;
        let listener = listener.with_context(|| format!("--metrics-listen {address} can't be used"))?;
        tracing::info!(address = %listener.local_addr()?, "figures for Prometheus are at /metrics");
        let answer = |State(metrics): State<Arc<Metrics>>| async move {
            ([(CONTENT_TYPE, TEXT)], metrics.text()).into_response()
        };
        Ok(Self { listener, router: Router::new().route("/metrics", get(answer)).with_state(metrics) })
    }

    /// Answers for ever.
    pub(crate) async fn serve(self) {
        let seats = Arc::new(Semaphore::new(READERS));
        loop {
            let seat = seats.clone().acquire_owned().await.expect("nobody closes it");
            match self.listener.accept().await {
                Ok((socket, _)) => drop(tokio::spawn(answer(socket, self.router.clone(), seat))),
                Err(error) => {
                    tracing::warn!(%error, "a reader of figures could not be accepted");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

/// One request, one answer.
async fn answer(socket: TcpStream, router: Router, _seat: OwnedSemaphorePermit) {
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .keep_alive(false)
        .serve_connection(TokioIo::new(socket), TowerToHyperService::new(router));
    match timeout(WITHIN, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a reader of figures went away"),
        Err(_) => tracing::debug!("a reader of figures was too slow"),
    }
}

#[cfg(test)]
mod tests {
    use tandem_crds::{TransferStatus, WeightsStatus};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn status(transfer: Option<TransferStatus>) -> InferenceHostStatus {
        let workload = serde_json::json!({"id": "w", "epoch": 1, "state": "Fetching", "transfer": transfer});
        InferenceHostStatus {
            workloads: vec![serde_json::from_value(workload).unwrap()],
            weights: Some(WeightsStatus { used_bytes: 5, ..WeightsStatus::default() }),
            ..InferenceHostStatus::default()
        }
    }

    #[test]
    fn figures_have_the_documented_names_and_end_with_what_they_are_of() {
        let metrics = Metrics::new();
        let transfer = TransferStatus {
            done_bytes: 3,
            total_bytes: 9,
            bytes_per_second: 1,
            eta_seconds: None,
            source_bytes: 3,
            peer_bytes: 0,
        };
        metrics.reported(&status(Some(transfer)), |_| Some("kimi"));
        metrics.fetched(Origin::Peer, 7);
        let text = metrics.text();
        for line in [
            "tandem_weights_fetched_bytes_total{origin=\"peer\"} 7",
            "tandem_weights_fetched_bytes_total{origin=\"source\"} 0",
            "tandem_weights_transfer_done_bytes{model=\"kimi\"} 3",
            "tandem_weights_transfer_total_bytes{model=\"kimi\"} 9",
            "tandem_weights_store_used_bytes 5",
            "tandem_weights_store_budget_bytes +Inf",
            "tandem_agent_workloads{state=\"Fetching\"} 1",
            "tandem_agent_workloads{state=\"Ready\"} 0",
            "tandem_agent_session_up 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        metrics.reported(&status(None), |_| Some("kimi"));
        assert!(!metrics.text().contains("kimi"));
        let documented = include_str!("../../docs/metrics.md");
        for name in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()) {
            assert!(documented.contains(&format!("`{name}")), "docs/metrics.md does not know {name}");
        }
    }

    #[tokio::test]
    async fn the_port_answers_one_request_a_connection_and_nothing_but_figures() {
        let metrics = Arc::new(Metrics::new());
        let port = Port::open("127.0.0.1:0".parse().unwrap(), metrics).await.unwrap();
        let address = port.listener.local_addr().unwrap();
        let serving = tokio::spawn(port.serve());
        for (path, expected) in [("/metrics", "tandem_agent_session_up 0"), ("/", "404 Not Found")] {
            let mut socket = TcpStream::connect(address).await.unwrap();
            let request = format!("GET {path} HTTP/1.1\r\nHost: here\r\n\r\n");
            socket.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            socket.read_to_string(&mut answer).await.unwrap();
            assert!(answer.contains(expected), "{answer}");
        }
        serving.abort();
    }
}

//! Figures for Prometheus, and whether this operator is alive and ready, on a port of their own without TLS. The figures' names
//! are documented in `docs/metrics.md`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use anyhow::{Context as _, Result};
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::encoding::{EncodeLabelSet, prometheus_text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use tandem_crds::{Condition, ConditionStatus, DeploymentRef, InferenceDeploymentStatus};
use tandem_store::Kind;
use tokio::net::TcpListener;

use crate::cluster::Cluster;
use crate::lead::Leader;

/// What Prometheus expects of text.
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";
/// From a millisecond to a minute.
const SECONDS: [f64; 12] = [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0, 60.0];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfCondition {
    namespace: String,
    name: String,
    condition: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfHost {
    host: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfKind {
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfStep {
    step: String,
}

/// Everything that is counted.
pub(crate) struct Metrics {
    registry: Registry,
    leading: Gauge,
    term: Gauge,
    reconciles: Family<Outcome, Counter>,
    reconcile_seconds: Histogram,
    plan_seconds: Histogram,
    steps: Family<OfStep, Counter>,
    failed_writes: Family<OfKind, Counter>,
    conditions: Family<OfCondition, Gauge>,
    hosts: Family<OfHost, Gauge>,
    gateways: Gauge,
    observed: Gauge<f64, AtomicU64>,
}

/// How a look at the cluster ended.
#[derive(Clone, Copy)]
pub(crate) enum Reconciled {
    Done,
    /// Somebody else was faster; it is done anew at once.
    Conflict,
    Failed,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::with_prefix("tandem");
        let version = vec![("version", env!("CARGO_PKG_VERSION"))];
        registry.register("operator_build", "The operator's release", Info::new(version));
        let (leading, term, gateways): (Gauge, Gauge, Gauge) = Default::default();
        let reconciles = Family::<Outcome, Counter>::default();
        let (reconcile_seconds, plan_seconds) = (Histogram::new(SECONDS), Histogram::new(SECONDS));
        let steps = Family::<OfStep, Counter>::default();
        let failed_writes = Family::<OfKind, Counter>::default();
        let conditions = Family::<OfCondition, Gauge>::default();
        let hosts = Family::<OfHost, Gauge>::default();
        let observed = Gauge::<f64, AtomicU64>::default();
        registry.register("operator_leader", "1 while this operator leads, else 0", leading.clone());
        registry.register(
            "operator_term",
            "The term that this operator leads in, or led in last",
            term.clone(),
        );
        let of = "Looks at the whole cluster, by how they ended: success, conflict, error";
        registry.register("operator_reconcile", of, reconciles.clone());
        let of = "How long a look took, from reading the store to the last write";
        registry.register_with_unit("operator_reconcile_time", of, Unit::Seconds, reconcile_seconds.clone());
        registry.register_with_unit(
            "operator_plan_time",
            "How long planning took",
            Unit::Seconds,
            plan_seconds.clone(),
        );
        registry.register("operator_steps", "Steps of plans that were taken, by kind", steps.clone());
        let of = "Writes that the store refused for the object's own sake, by kind; each is tried again, the later the oftener";
        registry.register("operator_failed_writes", of, failed_writes.clone());
        let of = "1 while a deployment's condition is True, else 0; told by the operator that leads";
        registry.register("deployment_condition", of, conditions.clone());
        let of = "1 while a host's agent is heard, else 0; told by the operator that leads";
        registry.register("host_heard", of, hosts.clone());
        let of = "Gateways that follow the routes of the operator that leads";
        registry.register("operator_gateways", of, gateways.clone());
        let of = "When this operator last looked at everything without an error, in seconds since 1970";
        registry.register("operator_last_success_timestamp_seconds", of, observed.clone());
        for result in ["success", "conflict", "error"] {
            drop(reconciles.get_or_create(&Outcome { result }));
        }
        for kind in [Kind::InferenceDeployment, Kind::InferenceHost] {
            drop(failed_writes.get_or_create(&OfKind { kind: kind.as_str() }));
        }
        Self {
            registry,
            leading,
            term,
            reconciles,
            reconcile_seconds,
            plan_seconds,
            steps,
            failed_writes,
            conditions,
            hosts,
            gateways,
            observed,
        }
    }

    pub(crate) fn leads(&self, term: Option<u64>) {
        self.leading.set(i64::from(term.is_some()));
        if let Some(term) = term {
            self.term.set(i64::try_from(term).unwrap_or(i64::MAX));
        } else {
            // What another operator sees is told by that one.
            self.conditions.clear();
            self.hosts.clear();
            self.gateways.set(0);
        }
    }

    pub(crate) fn reconciled(&self, how: Reconciled, took: Duration, now: jiff::Timestamp) {
        let result = match how {
            Reconciled::Done => "success",
            Reconciled::Conflict => "conflict",
            Reconciled::Failed => "error",
        };
        self.reconciles.get_or_create(&Outcome { result }).inc();
        self.reconcile_seconds.observe(took.as_secs_f64());
        if matches!(how, Reconciled::Done) {
            self.observed.set(now.as_duration().as_secs_f64());
        }
    }

    pub(crate) fn planned(&self, took: Duration) {
        self.plan_seconds.observe(took.as_secs_f64());
    }

    pub(crate) fn step(&self, step: &str) {
        self.steps.get_or_create(&OfStep { step: step.to_owned() }).inc();
    }

    pub(crate) fn write_failed(&self, kind: Kind) {
        self.failed_writes.get_or_create(&OfKind { kind: kind.as_str() }).inc();
    }

    /// What is known of every deployment, now.
    pub(crate) fn deployments<'a>(
        &self,
        statuses: impl Iterator<Item = (&'a DeploymentRef, &'a InferenceDeploymentStatus)>,
    ) {
        self.conditions.clear();
        for (key, status) in statuses {
            for Condition { type_, status, .. } in &status.conditions {
                let (namespace, name) = (key.namespace.clone(), key.name.clone());
                let of = OfCondition { namespace, name, condition: type_.clone() };
                self.conditions.get_or_create(&of).set(i64::from(*status == ConditionStatus::True));
            }
        }
    }

    /// Every host, and whether it is heard.
    pub(crate) fn hosts<'a>(&self, hosts: impl Iterator<Item = (&'a String, bool)>, gateways: usize) {
        self.hosts.clear();
        for (host, heard) in hosts {
            self.hosts.get_or_create(&OfHost { host: host.clone() }).set(i64::from(heard));
        }
        self.gateways.set(i64::try_from(gateways).unwrap_or(i64::MAX));
    }

    fn text(&self) -> String {
        let mut text = String::new();
        prometheus_text::encode(&mut text, &self.registry).expect("a string takes all");
        text
    }
}

/// Serves figures and probes until the cluster's shutdown fires.
pub(crate) async fn serve(cluster: Arc<Cluster>, listen: SocketAddr) -> Result<SocketAddr> {
    let listener = TcpListener::bind(listen).await.with_context(|| {
        format!("can't listen on {listen}: stop what listens there, or pass another --metrics-listen")
    })?;
    let address = listener.local_addr().context("the listener has no address")?;
    let shutdown = cluster.shutdown.clone();
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(async || "ok"))
        .route("/readyz", get(ready))
        .with_state(cluster);
    tokio::spawn(async move {
        let served = axum::serve(listener, router).with_graceful_shutdown(shutdown.cancelled_owned());
        if let Err(error) = served.await {
            tracing::error!(%error, "figures are no longer served");
        }
    });
    Ok(address)
}

async fn metrics(State(cluster): State<Arc<Cluster>>) -> impl IntoResponse {
    ([(CONTENT_TYPE, TEXT)], cluster.metrics.text())
}

/// Ready: it knows who leads, so that it can answer whoever calls.
async fn ready(State(cluster): State<Arc<Cluster>>) -> Response {
    match *cluster.leader.borrow() {
        Leader::Unknown => (StatusCode::SERVICE_UNAVAILABLE, "no operator leads yet").into_response(),
        Leader::Here | Leader::Elsewhere(_) => "ok".into_response(),
    }
}

//! Figures of this gateway for Prometheus. Their names are documented in `docs/metrics.md`.

mod serve;
mod stream;

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use prometheus_client::encoding::{EncodeLabelSet, prometheus_text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use tandem_gateway_core::health::Standing;

pub use self::serve::{MetricsError, serve_metrics};
pub(crate) use self::stream::Told;
use crate::access::Access;
use crate::fleet::Fleet;

/// To the first token: a prompt of a million tokens takes minutes.
const FIRST_TOKEN: [f64; 12] = [0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0];
/// Between two tokens.
const BETWEEN: [f64; 10] = [0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0];
/// Without a token because a worker was lost: the published bound lies at 2 s.
const RECOVERY: [f64; 11] = [0.05, 0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 15.0, 60.0];

/// A deployment, as the operator's own figures name it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, EncodeLabelSet)]
struct Of {
    namespace: String,
    name: String,
}

impl Of {
    /// `namespace/name`.
    fn deployment(deployment: &str) -> Self {
        let (namespace, name) = deployment.split_once('/').unwrap_or(("", deployment));
        Self { namespace: namespace.to_owned(), name: name.to_owned() }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfResult {
    namespace: String,
    name: String,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfSeam {
    namespace: String,
    name: String,
    exact: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfKind {
    namespace: String,
    name: String,
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfStanding {
    namespace: String,
    name: String,
    standing: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfReason {
    reason: &'static str,
}

const STANDINGS: [&str; 4] = ["well", "suspected", "convicted", "draining"];

/// How choices end.
const RESULTS: [&str; 12] = [
    "stop",
    "length",
    "tool_calls",
    "client_gone",
    "invalid",
    "not_found",
    "overloaded",
    "unavailable",
    "poisonous",
    "deadline",
    "internal",
    "refused",
];

type Histograms = Family<Of, Histogram, fn() -> Histogram>;

/// Everything that is counted while streams run.
pub(crate) struct Metrics {
    registry: Registry,
    running: Family<Of, Gauge>,
    waiting: Family<Of, Gauge>,
    ended: Family<OfResult, Counter>,
    attempts: Family<Of, Counter>,
    takeovers: Family<OfSeam, Counter>,
    recovery: Histograms,
    first_token: Histograms,
    between: Histograms,
    tokens: Family<OfKind, Counter>,
    /// Deployments that figures were given for.
    known: Mutex<BTreeSet<Of>>,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::with_prefix("tandem_gateway");
        let version = vec![("version", env!("CARGO_PKG_VERSION"))];
        registry.register("build", "The gateway's release", Info::new(version));
        let mut histograms = |name, of, constructor: fn() -> Histogram| {
            let family = Histograms::new_with_constructor(constructor);
            registry.register_with_unit(name, of, Unit::Seconds, family.clone());
            family
        };
        let of = "Time between the tokens on both sides of a takeover";
        let recovery = histograms("recovery", of, || Histogram::new(RECOVERY));
        let of = "From the request to its first token";
        let first_token = histograms("time_to_first_token", of, || Histogram::new(FIRST_TOKEN));
        let between =
            histograms("inter_token", "Between two tokens of one worker", || Histogram::new(BETWEEN));
        let (running, waiting) = (Family::<Of, Gauge>::default(), Family::<Of, Gauge>::default());
        registry.register("streams_running", "Choices that a worker computes", running.clone());
        let of = "Choices that no worker has begun yet: all of its workers are busy, or none is there";
        registry.register("streams_waiting", of, waiting.clone());
        let ended = Family::<OfResult, Counter>::default();
        registry.register("streams", "Choices that ended, by how", ended.clone());
        let attempts = Family::<Of, Counter>::default();
        registry.register("attempts", "Calls of workers", attempts.clone());
        let takeovers = Family::<OfSeam, Counter>::default();
        let of = "Streams that another worker took over in mid-sentence, and whether bit for bit";
        registry.register("takeovers", of, takeovers.clone());
        let tokens = Family::<OfKind, Counter>::default();
        let of = "Tokens of prompts, those of them that a cache had, and tokens that were made";
        registry.register("tokens", of, tokens.clone());
        Self {
            registry,
            running,
            waiting,
            ended,
            attempts,
            takeovers,
            recovery,
            first_token,
            between,
            tokens,
            known: Mutex::default(),
        }
    }

    /// All figures as text: those that are counted, and those that are looked at now.
    pub(crate) fn text(&self, fleet: &Fleet, access: &Access) -> String {
        self.keep_known(fleet);
        let mut text = String::new();
        for registry in [&self.registry, &looked_at(fleet, access)] {
            prometheus_text::encode(&mut text, registry).expect("a string takes all");
        }
        text
    }

    /// The figures of a deployment begin when a gateway serves it, not when it is first asked, and end with it.
    fn keep_known(&self, fleet: &Fleet) {
        let Some(table) = fleet.table() else { return };
        let served: BTreeSet<Of> =
            table.routes.iter().map(|route| Of::deployment(&route.deployment)).collect();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        for of in &served {
            if known.insert(of.clone()) {
                self.begin(of);
            }
        }
        known.retain(|of| {
            let runs = |family: &Family<Of, Gauge>| family.get(of).is_some_and(|gauge| gauge.get() > 0);
            let kept = served.contains(of) || runs(&self.running) || runs(&self.waiting);
            if !kept {
                self.forget(of);
            }
            kept
        });
    }

    fn begin(&self, of: &Of) {
        for family in [&self.running, &self.waiting] {
            drop(family.get_or_create(of));
        }
        drop(self.attempts.get_or_create(of));
        for exact in ["true", "false"] {
            drop(self.takeovers.get_or_create(&seam(of, exact)));
        }
    }

    fn forget(&self, of: &Of) {
        for family in [&self.running, &self.waiting] {
            family.remove(of);
        }
        self.attempts.remove(of);
        for family in [&self.recovery, &self.first_token, &self.between] {
            family.remove(of);
        }
        for result in RESULTS {
            self.ended.remove(&result_of(of, result));
        }
        for exact in ["true", "false"] {
            self.takeovers.remove(&seam(of, exact));
        }
        for kind in ["prompt", "cached", "completion"] {
            self.tokens.remove(&kind_of(of, kind));
        }
    }
}

/// What is known without counting.
fn looked_at(fleet: &Fleet, access: &Access) -> Registry {
    let mut registry = Registry::with_prefix("tandem_gateway");
    let workers = Family::<OfStanding, Gauge>::default();
    let of = "Workers of a deployment, by how this gateway sees them: well, suspected, convicted, draining";
    registry.register("workers", of, workers.clone());
    for route in fleet.table().iter().flat_map(|table| &table.routes) {
        let Of { namespace, name } = Of::deployment(&route.deployment);
        let standing = |standing| OfStanding { namespace: namespace.clone(), name: name.clone(), standing };
        for known in STANDINGS {
            drop(workers.get_or_create(&standing(known)));
        }
        for worker in fleet.view(&route.deployment) {
            let known = match worker.standing {
                _ if worker.draining => "draining",
                Standing::Well => "well",
                Standing::Suspected(_) => "suspected",
                Standing::Convicted(_) => "convicted",
            };
            workers.get_or_create(&standing(known)).inc();
        }
    }
    let refused = Family::<OfReason, Counter>::default();
    let of = "Requests that were not let in: without a key that is known, or past its limit";
    registry.register("refused", of, refused.clone());
    let counts = access.refusals();
    for (reason, count) in [("unauthenticated", counts.unauthenticated), ("limited", counts.limited)] {
        refused.get_or_create(&OfReason { reason }).inc_by(count);
    }
    let connected: Gauge = Gauge::default();
    connected.set(i64::from(fleet.is_led()));
    registry.register("operator_up", "1 while an operator sends route tables, else 0", connected);
    registry
}

fn seam(of: &Of, exact: &'static str) -> OfSeam {
    OfSeam { namespace: of.namespace.clone(), name: of.name.clone(), exact }
}

fn result_of(of: &Of, result: &'static str) -> OfResult {
    OfResult { namespace: of.namespace.clone(), name: of.name.clone(), result }
}

fn kind_of(of: &Of, kind: &'static str) -> OfKind {
    OfKind { namespace: of.namespace.clone(), name: of.name.clone(), kind }
}

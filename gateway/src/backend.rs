//! The gateway as the HTTP layer sees it.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use futures::stream;
use prost::Message;
use tandem_gateway_core::Refusal;
use tandem_gateway_core::budget::Budget;
use tandem_gateway_core::conduct::Policy;
use tandem_gateway_core::quarantine::Quarantine;
use tandem_gateway_core::turns::Turns;
use tandem_openai::{Backend, EventStream, Model};
use tandem_worker_api::{GenerateRequest, Sampling};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::TaskTracker;

use crate::access::Access;
use crate::choice::{AHEAD, Choice};
use crate::fleet::Fleet;
use crate::metrics::{Metrics, Told};
use crate::table::Table;

/// Serves choices on a fleet.
pub struct Gateway {
    fleet: Arc<Fleet>,
    policy: Policy,
    budget: Arc<Mutex<Budget>>,
    quarantine: Arc<Mutex<Quarantine>>,
    metrics: Arc<Metrics>,
    /// How soon places come free, by deployment of the table.
    turns: Mutex<BTreeMap<Arc<str>, Arc<Mutex<Turns>>>>,
    /// Keyed at random, so that nobody can make a request that looks like another's.
    fingerprints: RandomState,
    tasks: TaskTracker,
}

impl Gateway {
    /// Serves on this fleet, as patiently as `policy` says.
    #[must_use]
    pub fn new(fleet: Arc<Fleet>, policy: Policy) -> Self {
        Self {
            fleet,
            policy,
            budget: Arc::default(),
            quarantine: Arc::default(),
            metrics: Arc::new(Metrics::new()),
            turns: Mutex::default(),
            fingerprints: RandomState::new(),
            tasks: TaskTracker::new(),
        }
    }

    /// Of what the client asked; the same for a client's retry.
    fn fingerprint(&self, request: &GenerateRequest) -> u64 {
        let asked = GenerateRequest { id: None, seed: 0, asked_at: 0, ..request.clone() };
        self.fingerprints.hash_one(asked.encode_to_vec())
    }

    /// Figures for Prometheus, as text.
    pub(crate) fn figures(&self, access: &Access) -> String {
        self.metrics.text(&self.fleet, access)
    }

    fn turns(&self, table: &Table, deployment: &Arc<str>) -> Arc<Mutex<Turns>> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        if turns.len() > table.routes.len() {
            turns.retain(|known, _| table.routes.iter().any(|route| route.deployment == *known));
        }
        turns.entry(deployment.clone()).or_default().clone()
    }

    /// Waits, for at most so long, until no choice runs any more and every cancel was sent.
    pub async fn settle(&self, within: Duration) {
        self.tasks.close();
        if tokio::time::timeout(within, self.tasks.wait()).await.is_err() {
            tracing::warn!(left = self.tasks.len(), "choices and attempts are left at the end");
        }
    }
}

impl Backend for Gateway {
    fn models(&self) -> Vec<Model> {
        let Some(table) = self.fleet.table() else { return Vec::new() };
        let model = |route: &crate::Route, name: &String| Model {
            id: name.clone(),
            answers_to: name.clone(),
            created: route.created,
            owned_by: route.namespace.clone(),
            context_tokens: route.context_tokens,
        };
        table.routes.iter().flat_map(|route| route.names.iter().map(move |name| model(route, name))).collect()
    }

    fn ready(&self) -> Result<(), Refusal> {
        match self.fleet.table() {
            Some(_) => Ok(()),
            None => Err(Refusal::Unavailable {
                message: "no operator has sent a route table yet, and there is none from an earlier run"
                    .to_owned(),
                retry_after: Duration::from_secs(1),
            }),
        }
    }

    fn open(&self, request: GenerateRequest) -> EventStream {
        let table = self.fleet.table();
        let found = table.as_ref().and_then(|table| Some((table, table.find(&request.model)?)));
        let Some((table, route)) = found else {
            let message = format!("the model `{}` is not served any more", request.model);
            return stream::iter([Err(Refusal::ModelNotFound(message))]).boxed();
        };
        let fingerprint = self.fingerprint(&request);
        if self.quarantine.lock().unwrap_or_else(PoisonError::into_inner).holds(fingerprint, self.fleet.now())
        {
            return stream::iter([Err(Refusal::Poisonous)]).boxed();
        }
        let (client, events) = mpsc::channel(AHEAD);
        let choice = Choice {
            fleet: self.fleet.clone(),
            deployment: route.deployment.clone(),
            policy: self.policy,
            request: GenerateRequest {
                model: route.model.clone(),
                sampling: Some(with_defaults(request.sampling.unwrap_or_default(), &route.sampling)),
                ..request
            },
            client,
            budget: self.budget.clone(),
            quarantine: self.quarantine.clone(),
            fingerprint,
            tasks: self.tasks.clone(),
            turns: self.turns(table, &route.deployment),
            told: Told::new(self.metrics.clone(), &route.deployment, self.fleet.now()),
        };
        self.budget.lock().unwrap_or_else(PoisonError::into_inner).earn();
        self.tasks.spawn(choice.run());
        ReceiverStream::new(events).boxed()
    }
}

fn with_defaults(asked: Sampling, defaults: &Sampling) -> Sampling {
    Sampling {
        temperature: asked.temperature.or(defaults.temperature),
        top_k: asked.top_k.or(defaults.top_k),
        top_p: asked.top_p.or(defaults.top_p),
        min_p: asked.min_p.or(defaults.min_p),
        repetition_penalty: asked.repetition_penalty.or(defaults.repetition_penalty),
        ..asked
    }
}

//! Which specs a host obeys: the newest of the newest term, once it is written down.

use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Result;
use tandem_agent_core::Observation;
use tandem_crds::InferenceHostSpec;
use tandem_pki::Name;
use tandem_traces::Span;

use super::{Agent, Extra};
use crate::home;

impl Agent {
    /// What this host obeyed when it last ran, so that it serves on without an operator.
    pub(super) fn read_spec(&mut self) {
        let read = || -> Result<Option<InferenceHostSpec>> {
            let Some(bytes) = home::read(&self.home.spec())? else { return Ok(None) };
            let spec: InferenceHostSpec = serde_json::from_slice(&bytes)?;
            self.ledger.clone().accept(&spec)?;
            Ok(Some(spec))
        };
        match read() {
            Ok(Some(spec)) => {
                tracing::info!(term = spec.term, generation = spec.generation, "goes on with the last spec");
                self.take_over(spec, &Span::none());
            }
            Ok(None) => {}
            Err(error) => {
                let error = format!("{error:#}");
                tracing::error!(
                    error,
                    "the last spec can't be used: what runs goes on, and an operator is waited for"
                );
            }
        }
    }

    /// Accepts a spec if the ledger does. It is written down before it is acted on.
    pub(super) fn obey(&mut self, spec: InferenceHostSpec, traceparent: String) {
        if self.spec.as_ref() == Some(&spec) && self.ledger.term() == spec.term {
            self.confirm(true);
            return;
        }
        if let Some(bad) = spec.workloads.iter().find_map(|workload| workload.id.parse::<Name>().err()) {
            tracing::error!(error = %bad, "a spec with such a workload is not obeyed");
            return;
        }
        let obeying = self.traces.go_on(&traceparent, "obey spec");
        if obeying.is_on() {
            obeying.note("host", self.settings.name.to_string());
            obeying.note("generation", i64::try_from(spec.generation).unwrap_or(i64::MAX));
        }
        let mut ledger = self.ledger.clone();
        if let Err(refused) = ledger.accept(&spec) {
            tracing::warn!(%refused, "a spec is not obeyed");
            obeying.fail(&refused.to_string());
            return;
        }
        let json = serde_json::to_vec_pretty(&spec).expect("a spec is JSON");
        let written = home::replace(&self.home.ledger(), &ledger.to_json())
            .and_then(|()| home::replace(&self.home.spec(), &json));
        if let Err(error) = written {
            tracing::error!(%error, "a spec can't be written down, and is not obeyed before that");
            if self.trouble.is_none() {
                let why =
                    format!("the newest spec can't be written to {}: {error}", self.home.root().display());
                self.trouble = Some(why);
            }
            obeying.fail("it can't be written down yet");
            self.waiting = Some((spec, traceparent));
            return;
        }
        (self.trouble, self.waiting) = (None, None);
        tracing::info!(
            term = spec.term,
            generation = spec.generation,
            workloads = spec.workloads.len(),
            "obeys a spec"
        );
        self.ledger = ledger;
        self.term.store(self.ledger.term(), Ordering::SeqCst);
        self.take_over(spec, &obeying);
        self.confirm(true);
    }

    /// Whether an operator says in this session what this host obeys. Only then may weights go: without it, nobody knows
    /// which of them are the last copy.
    pub(super) fn confirm(&mut self, confirmed: bool) {
        self.keeper.obey(self.spec.as_ref().filter(|_| confirmed));
        self.keeper.news.notify_one();
    }

    fn take_over(&mut self, spec: InferenceHostSpec, obeying: &Span) {
        for workload in &spec.workloads {
            let extra = self.extra.entry(workload.id.clone()).or_default();
            if extra.epoch == workload.epoch {
                continue;
            }
            // Also ends what is under way for the epoch before; who listens to its process goes on.
            let (listener, work) = (extra.listener.take(), extra.goes_on(workload));
            let fetches = work.is_some();
            let trace = obeying.child("bring up workload");
            if trace.is_on() {
                trace.note("workload", workload.id.clone());
                trace.note("epoch", i64::try_from(workload.epoch).unwrap_or(i64::MAX));
            }
            *extra = Extra { epoch: workload.epoch, listener, work, trace, ..Extra::default() };
            let observation = self.observed.workloads.entry(workload.id.clone()).or_default();
            let fresh = Observation::default();
            if !fetches {
                (observation.weights, observation.transfer) = (fresh.weights, None);
            }
            observation.credentials = fresh.credentials;
            if observation.last_start.is_none() {
                observation.last_start = last_start(&self.home, &workload.id);
            }
            (observation.failures, observation.failure, observation.restarts) = (0, None, 0);
        }
        self.spec = Some(spec);
    }
}

/// What a start of this workload on this host took when one was last measured.
fn last_start(home: &home::Home, id: &str) -> Option<Duration> {
    let noted = home::read(&home.workload(id).last_start()).ok()??;
    serde_json::from_slice(&noted).ok().map(Duration::from_millis)
}

//! What the runner tells of its processes, and what their ends mean.

use std::time::Duration;

use tandem_agent_core::{Ended, Observation, Process, Weights, cause};

use super::{Agent, Extra};
use crate::error::chain;
use crate::gateway;
use crate::runner::{Exit, Listed, State};

/// A worker that served this long had no part in its earlier failures.
const PROVEN: Duration = Duration::from_secs(600);

impl Agent {
    pub(super) async fn children(&mut self, children: Vec<Listed>) {
        if !std::mem::replace(&mut self.runner_there, true) && self.spec.is_some() {
            // Folders of workloads that were dropped while nobody looked; the plan forgets them.
            for id in self.home.workloads() {
                self.observed.workloads.entry(id).or_default();
            }
        }
        let now = self.now();
        let (gateways, workers): (Vec<_>, Vec<_>) =
            children.into_iter().partition(|listed| listed.id == gateway::ID);
        self.gateway_listed(gateways.first(), now).await;
        for (id, observation) in &mut self.observed.workloads {
            let gone = !workers.iter().any(|listed| listed.id == *id);
            if let (true, Process::Running { .. } | Process::Stopping { .. }) = (gone, &observation.process) {
                // The runner was another one before, and took it along.
                ended(observation, self.extra.entry(id.clone()).or_default(), &Exit::default(), now);
            }
        }
        for listed in workers {
            self.child(listed, now).await;
        }
    }

    async fn child(&mut self, listed: Listed, now: Duration) {
        let Listed { id, epoch, memory_bytes, pid, state } = listed;
        let observation = self.observed.workloads.entry(id.clone()).or_default();
        let extra = self.extra.entry(id.clone()).or_default();
        match state {
            State::Running => observation.process = Process::Running { epoch, memory_bytes },
            State::Stopping => observation.process = Process::Stopping { epoch, memory_bytes },
            State::Exited(mut exit) => {
                // Remembered until here; from now on it is ours to remember. A list that was on its way meanwhile may tell
                // of the same end once more: that one is refused.
                if let Err(error) = self.runner.acknowledge(&id, epoch).await {
                    tracing::debug!(workload = id, error = chain(&error), "an end is not acknowledged");
                    return;
                }
                if let Some(why) = extra.killed.take() {
                    (exit.asked, exit.note) = (false, Some(why));
                }
                observation.process = Process::Running { epoch, memory_bytes };
                ended(observation, extra, &exit, now);
                let cause = observation.last_exit.as_ref().map(|exit| exit.cause.clone());
                if exit.asked {
                    tracing::info!(workload = id, epoch, pid, cause, "a worker has ended as it was told");
                } else {
                    tracing::warn!(workload = id, epoch, pid, cause, "a worker has ended");
                }
                return;
            }
        }
        if epoch == extra.epoch {
            // Found running, after this agent has restarted: that was a start, too.
            extra.starts = extra.starts.max(1);
        }
        if extra.listener.as_ref().is_none_or(|(heard, _)| *heard != pid) {
            (observation.health, observation.endpoint) = (None, None);
            self.listen(&id, epoch, pid);
        }
    }

    pub(super) fn runner_gone(&mut self) {
        self.runner_there = false;
        let now = self.now();
        if let Some(gateway) = self.gateway.as_mut().filter(|gateway| gateway.running || gateway.starting) {
            gateway.failed(now);
        }
        for (id, observation) in &mut self.observed.workloads {
            if observation.process.memory_bytes() > 0
                || matches!(observation.process, Process::Starting { .. })
            {
                ended(observation, self.extra.entry(id.clone()).or_default(), &Exit::default(), now);
            }
        }
    }

    async fn gateway_listed(&mut self, listed: Option<&Listed>, now: Duration) {
        let Some(gateway) = &mut self.gateway else {
            // Of an agent that was started with a gateway before.
            if listed.is_some_and(|listed| listed.state == State::Running)
                && let Err(error) = self.runner.stop(gateway::ID, gateway::EPOCH, gateway::GRACE).await
            {
                tracing::warn!(error = chain(&error), "the gateway can't be stopped");
            }
            return;
        };
        match listed.map(|listed| &listed.state) {
            Some(State::Running | State::Stopping) => gateway.runs(),
            Some(State::Exited(exit)) => {
                if let Err(error) = self.runner.acknowledge(gateway::ID, gateway::EPOCH).await {
                    tracing::debug!(error = chain(&error), "the gateway's end is not acknowledged");
                    return;
                }
                let cause = cause(exit.code, exit.signal, exit.note.as_deref()).cause;
                tracing::warn!(cause, "the gateway has ended");
                gateway.failed(now);
            }
            // The runner was another one before, and took it along.
            None if gateway.running => gateway.failed(now),
            None => {}
        }
    }
}

/// A process is over; remembers how, and when it may be started again.
fn ended(observation: &mut Observation, extra: &mut Extra, exit: &Exit, now: Duration) {
    let epoch = match observation.process {
        Process::Starting { epoch, .. }
        | Process::Running { epoch, .. }
        | Process::Stopping { epoch, .. }
        | Process::Exited { epoch, .. } => epoch,
        Process::None => extra.epoch,
    };
    let served = extra.ready_since.take().map_or(Duration::ZERO, |since| now.saturating_sub(since));
    extra.listener = None;
    (observation.health, observation.endpoint) = (None, None);
    observation.last_exit = Some(cause(exit.code, exit.signal, exit.note.as_deref()));
    if exit.asked {
        observation.process = Process::None;
        return;
    }
    // What an older epoch's process did says nothing of this one's.
    if epoch == extra.epoch {
        observation.failures = if served >= PROVEN { 1 } else { observation.failures.saturating_add(1) };
        observation.failed_at = now;
    }
    let verdict = Ended::of(exit.code);
    if verdict == Ended::DoubtsWeights && epoch == extra.epoch {
        observation.weights = Weights::Doubtful;
    }
    observation.process = Process::Exited { epoch, hopeless: verdict == Ended::Hopeless };
}

//! What to do next. Called after every change of spec or observation; whatever it asks for and is not done yet, it asks
//! for again.

use std::collections::BTreeMap;
use std::time::Duration;

use tandem_crds::{InferenceHostSpec, WorkloadSpec};

use crate::backoff::restart_delay;
use crate::{Credentials, Health, Ledger, Observation, Observed, Process, Weights};

const MEBIBYTE: u64 = 1 << 20;

/// One thing to do, about one workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Bring its files here.
    Fetch {
        /// Its id.
        workload: String,
    },
    /// Hash its files again, and discard those that are damaged.
    Verify {
        /// Its id.
        workload: String,
    },
    /// Get it a key and a certificate.
    Certify {
        /// Its id.
        workload: String,
    },
    /// Start its process.
    Start {
        /// Its id.
        workload: String,
        /// Its start number.
        epoch: u64,
    },
    /// Let it finish what it serves, and end it.
    Stop {
        /// Its id.
        workload: String,
        /// Which of its epochs.
        epoch: u64,
        /// Why, for the log.
        reason: String,
    },
    /// End it at once: it hangs.
    Kill {
        /// Its id.
        workload: String,
        /// Which of its epochs.
        epoch: u64,
        /// Why, for the report.
        reason: String,
    },
    /// Forget it: it is not listed any more, and nothing of it runs.
    Forget {
        /// Its id.
        workload: String,
    },
}

/// What to do now, what not to do and why, and when to look again if nothing happens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// In order.
    pub actions: Vec<Action>,
    /// Why a workload is not started although it is listed, by its id: a sentence.
    pub refusals: BTreeMap<String, String>,
    /// When a wait is over.
    pub wake: Option<Duration>,
}

impl Plan {
    fn wait_until(&mut self, time: Duration) {
        self.wake = Some(self.wake.map_or(time, |earlier| earlier.min(time)));
    }
}

/// Decides what to do. `now` is time since any fixed moment, the same for `observed`.
///
/// A spec of an older term than the ledger's is not acted on at all.
#[must_use]
pub fn reconcile(spec: &InferenceHostSpec, observed: &Observed, ledger: &Ledger, now: Duration) -> Plan {
    let mut plan = Plan::default();
    if spec.term < ledger.term() {
        return plan;
    }
    for (id, observation) in &observed.workloads {
        if !spec.workloads.iter().any(|workload| workload.id == *id) {
            end(&mut plan, id, observation);
        }
    }
    let nothing = Observation::default();
    let running = observed.workloads.values().map(|workload| workload.process.memory_bytes());
    let mut taken: u64 = running.fold(0, u64::saturating_add);
    for workload in &spec.workloads {
        let observation = observed.workloads.get(&workload.id).unwrap_or(&nothing);
        let own = observation.process.memory_bytes();
        let others = taken.saturating_sub(own);
        let room = observed.memory_bytes.saturating_sub(others);
        if advance(&mut plan, workload, observation, ledger, room, now) {
            taken = others.saturating_add(own.max(workload.memory_bytes));
        }
    }
    plan
}

/// A workload that is not listed.
fn end(plan: &mut Plan, id: &str, observation: &Observation) {
    let workload = id.to_owned();
    match observation.process {
        Process::Running { epoch, .. } => {
            let reason = "it is not listed any more".to_owned();
            plan.actions.push(Action::Stop { workload, epoch, reason });
        }
        Process::None | Process::Exited { .. } => plan.actions.push(Action::Forget { workload }),
        Process::Starting { .. } | Process::Stopping { .. } => {}
    }
}

/// Takes a listed workload one step further; says whether its memory is reserved from now on, so that a later one of the list
/// does not take it while this one is being prepared. `room` is what others leave free.
fn advance(
    plan: &mut Plan,
    workload: &WorkloadSpec,
    observation: &Observation,
    ledger: &Ledger,
    room: u64,
    now: Duration,
) -> bool {
    let id = &workload.id;
    let epoch = workload.epoch;
    let refuse = |plan: &mut Plan, why: String| drop(plan.refusals.insert(id.clone(), why));
    if let Some(seen) = ledger.epoch(id).filter(|seen| epoch < *seen) {
        refuse(
            plan,
            format!("epoch {epoch} is older than {seen}, which this host has seen: it needs a higher one"),
        );
        return false;
    }
    let before = match observation.process {
        Process::Running { epoch: running, .. } if running == epoch => {
            if let Some(Health::Hung(why)) = &observation.health {
                plan.actions.push(Action::Kill { workload: id.clone(), epoch, reason: why.clone() });
            }
            return false;
        }
        Process::Starting { .. } | Process::Stopping { .. } => return false,
        Process::Exited { epoch: ended, hopeless: true } if ended == epoch => return false,
        Process::Running { epoch: running, .. } => Some(running),
        Process::None | Process::Exited { .. } => None,
    };
    if workload.memory_bytes > room {
        refuse(
            plan,
            format!(
                "it takes {} of memory, and this host has {} left: place it elsewhere, or stop another workload here",
                mebibytes(workload.memory_bytes.next_multiple_of(MEBIBYTE)),
                mebibytes(room)
            ),
        );
        return false;
    }
    if !prepared(plan, id, observation, now) {
        return true;
    }
    if let Some(running) = before {
        // The old process has served until now, when the new one has all it needs.
        let reason = format!("epoch {epoch} replaces it");
        plan.actions.push(Action::Stop { workload: id.clone(), epoch: running, reason });
    } else if now < observation.next_start() {
        plan.wait_until(observation.next_start());
    } else {
        plan.actions.push(Action::Start { workload: id.clone(), epoch });
    }
    true
}

/// Whether files and credentials are there; asks for what is missing.
fn prepared(plan: &mut Plan, id: &str, observation: &Observation, now: Duration) -> bool {
    let retry_at = |at: Duration, failures: u32| at.saturating_add(restart_delay(failures));
    let fetch = match observation.weights {
        Weights::Absent => true,
        Weights::Failed { at, failures, .. } | Weights::Waiting { at, failures, .. } => {
            let retry = retry_at(at, failures);
            if now < retry {
                plan.wait_until(retry);
            }
            now >= retry
        }
        Weights::Doubtful => {
            plan.actions.push(Action::Verify { workload: id.to_owned() });
            false
        }
        Weights::Fetching { .. } | Weights::Verifying | Weights::Present => false,
    };
    if fetch {
        plan.actions.push(Action::Fetch { workload: id.to_owned() });
    }
    let certify = match observation.credentials {
        Credentials::Absent => true,
        Credentials::Failed { at, failures, .. } if now >= retry_at(at, failures) => true,
        Credentials::Failed { at, failures, .. } => {
            plan.wait_until(retry_at(at, failures));
            false
        }
        Credentials::Requested | Credentials::Valid => false,
    };
    if certify {
        plan.actions.push(Action::Certify { workload: id.to_owned() });
    }
    observation.weights == Weights::Present && observation.credentials == Credentials::Valid
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes / MEBIBYTE)
}

#[cfg(test)]
mod tests;

//! What the host says of its workloads.

use tandem_crds::{InferenceHostSpec, WorkloadState, WorkloadStatus};

use crate::{Credentials, Health, Observation, Observed, Plan, Process, Weights, seconds_to_ready};

/// Longest message, in characters; the schema's limit.
const LONGEST: usize = 1024;

/// Every listed workload, in the spec's order, then those that are ending.
#[must_use]
pub fn report(spec: &InferenceHostSpec, observed: &Observed, plan: &Plan) -> Vec<WorkloadStatus> {
    let nothing = Observation::default();
    let listed = spec.workloads.iter().map(|workload| {
        let observation = observed.workloads.get(&workload.id).unwrap_or(&nothing);
        status(&workload.id, workload.epoch, observation, plan.refusals.get(&workload.id))
    });
    let ending = observed
        .workloads
        .iter()
        .filter(|(id, _)| !spec.workloads.iter().any(|workload| workload.id == **id))
        .map(|(id, observation)| status(id, 0, observation, None));
    listed.chain(ending).collect()
}

fn status(id: &str, listed: u64, observation: &Observation, refusal: Option<&String>) -> WorkloadStatus {
    let Said { state, message, progress } = say(observation, refusal);
    let epoch = match observation.process {
        Process::Starting { epoch, .. }
        | Process::Running { epoch, .. }
        | Process::Stopping { epoch, .. }
        | Process::Exited { epoch, .. } => epoch,
        Process::None => listed,
    };
    let alive = matches!(observation.process, Process::Running { .. } | Process::Stopping { .. });
    WorkloadStatus {
        id: id.to_owned(),
        epoch,
        state,
        endpoint: observation.endpoint.clone().filter(|_| alive),
        server_name: observation.server_name.clone().filter(|_| alive),
        numerics_id: match &observation.health {
            Some(Health::Ready { numerics_id }) if alive => Some(numerics_id.clone()),
            _ => None,
        },
        message: message.map(|text| text.chars().take(LONGEST).collect()),
        restarts: observation.restarts,
        last_exit: observation.last_exit.clone(),
        progress,
        transfer: observation.transfer.filter(|_| matches!(observation.weights, Weights::Fetching { .. })),
        seconds_to_ready: match (&observation.process, &observation.health) {
            (Process::Running { .. }, Some(Health::Warm { warmth, .. })) => {
                seconds_to_ready(warmth, observation.last_start)
            }
            _ => None,
        },
    }
}

struct Said {
    state: WorkloadState,
    message: Option<String>,
    progress: Option<u32>,
}

impl Said {
    fn of(state: WorkloadState) -> Self {
        Self { state, message: None, progress: None }
    }

    fn because(state: WorkloadState, message: &str) -> Self {
        Self { message: Some(message.to_owned()), ..Self::of(state) }
    }
}

fn say(observation: &Observation, refusal: Option<&String>) -> Said {
    use WorkloadState::{Draining, Failed, Loading, Ready, Starting, Warm};
    let mut said = match (&observation.process, &observation.health) {
        (Process::Stopping { .. }, _) | (Process::Running { .. }, Some(Health::Draining)) => {
            Said::of(Draining)
        }
        (Process::Running { .. }, Some(Health::Loading(percent))) => {
            Said { progress: Some((*percent).min(100)), ..Said::of(Loading) }
        }
        (Process::Running { .. }, Some(Health::Ready { .. })) => Said::of(Ready),
        (Process::Running { .. }, Some(Health::Warm { message, .. })) => {
            Said { message: message.clone(), ..Said::of(Warm) }
        }
        (Process::Running { .. }, Some(Health::Failed(why) | Health::Hung(why))) => {
            Said::because(Failed, why)
        }
        (Process::Running { .. }, Some(Health::Silent)) => {
            Said::because(Failed, "its process runs and does not answer")
        }
        (Process::Starting { .. } | Process::Running { .. }, _) => Said::of(Starting),
        (Process::None | Process::Exited { .. }, _) => preparing(observation),
    };
    if let Some(refusal) = refusal {
        match observation.process {
            // What runs goes on; the refusal is about what should replace it.
            Process::None | Process::Exited { .. } => said = Said::because(Failed, refusal),
            _ => said.message = Some(refusal.clone()),
        }
    }
    said
}

/// Nothing runs: how far it is from that.
fn preparing(observation: &Observation) -> Said {
    use WorkloadState::{Failed, Fetching, Starting};
    let ended = || match &observation.last_exit {
        Some(exit) => format!("its process {}", exit.cause),
        None => "it has ended".to_owned(),
    };
    if let Process::Exited { hopeless: true, .. } = observation.process {
        return Said::because(
            Failed,
            &format!("{}; it is not started again before its spec changes", ended()),
        );
    }
    match &observation.weights {
        Weights::Absent => return Said::of(Fetching),
        Weights::Fetching { done, total } => {
            let percent = u128::from(*done) * 100 / u128::from(*total).max(1);
            let percent = u32::try_from(percent).unwrap_or(100).min(100);
            return Said { progress: Some(percent), ..Said::of(Fetching) };
        }
        Weights::Doubtful | Weights::Verifying => {
            return Said::because(Fetching, "a worker could not use the weights: they are hashed again");
        }
        Weights::Waiting { why, .. } => return Said::because(Fetching, why),
        Weights::Failed { why, .. } => return Said::because(Failed, why),
        Weights::Present => {}
    }
    if let Credentials::Failed { why, .. } = &observation.credentials {
        return Said::because(Failed, why);
    }
    if let Some(failure) = &observation.failure {
        return Said::because(Failed, failure);
    }
    if observation.failures > 0 {
        return Said::because(Failed, &format!("{}; it is started again in a moment", ended()));
    }
    Said::of(Starting)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::ledger::tests::{spec, workload};
    use crate::{Amounts, Ledger, Transfer, Warmth, cause, reconcile};

    fn only(observation: Observation) -> WorkloadStatus {
        let spec = spec(1, 1, vec![workload("a", 2, 10)]);
        let observed = Observed { memory_bytes: 100, workloads: [("a".to_owned(), observation)].into() };
        let plan = reconcile(&spec, &observed, &Ledger::new(), Duration::ZERO);
        report(&spec, &observed, &plan).remove(0)
    }

    #[test]
    fn a_workload_passes_through_its_states() {
        let mut seen = Observation::default();
        let state = |seen: &Observation| {
            let status = only(seen.clone());
            (status.state, status.progress)
        };
        assert_eq!(state(&seen), (WorkloadState::Fetching, None));
        seen.weights = Weights::Waiting { why: "waits for a".to_owned(), at: Duration::ZERO, failures: 1 };
        let status = only(seen.clone());
        assert_eq!((status.state, status.message.as_deref()), (WorkloadState::Fetching, Some("waits for a")));
        seen.weights = Weights::Fetching { done: 1, total: 3 };
        seen.transfer =
            Some(Transfer::default().look(Duration::ZERO, Amounts { total: 3, ..Amounts::default() }));
        assert_eq!(state(&seen), (WorkloadState::Fetching, Some(33)));
        assert_eq!(only(seen.clone()).transfer.map(|transfer| transfer.total_bytes), Some(3));
        seen.weights = Weights::Present;
        assert_eq!(state(&seen), (WorkloadState::Starting, None));
        assert_eq!(only(seen.clone()).transfer, None);
        seen.process = Process::Running { epoch: 2, memory_bytes: 10 };
        seen.endpoint = Some("127.0.0.1:9".to_owned());
        assert_eq!(state(&seen), (WorkloadState::Starting, None));
        seen.health = Some(Health::Loading(40));
        assert_eq!(state(&seen), (WorkloadState::Loading, Some(40)));
        seen.health = Some(Health::Ready { numerics_id: "n".to_owned() });
        let status = only(seen.clone());
        assert_eq!((status.state, status.numerics_id.as_deref()), (WorkloadState::Ready, Some("n")));
        assert_eq!(status.endpoint.as_deref(), Some("127.0.0.1:9"));
        seen.process = Process::Exited { epoch: 2, hopeless: false };
        seen.last_exit = Some(cause(None, Some(9), None));
        seen.failures = 1;
        let status = only(seen);
        assert_eq!((status.state, status.endpoint), (WorkloadState::Failed, None));
        assert!(status.message.unwrap().contains("signal 9"));
    }

    #[test]
    fn a_warm_one_says_how_soon_it_would_serve_and_what_is_wrong() {
        let warmth = Warmth { resident: 80, total: 100, disk_rate: 10, memory_rate: 50 };
        let message = Some("memory is short".to_owned());
        let mut seen = Observation {
            process: Process::Running { epoch: 2, memory_bytes: 10 },
            health: Some(Health::Warm { warmth, message: message.clone() }),
            ..Observation::default()
        };
        let status = only(seen.clone());
        assert_eq!((status.state, status.seconds_to_ready), (WorkloadState::Warm, Some(4)));
        assert_eq!((status.message, status.numerics_id), (message, None));
        seen.last_start = Some(Duration::from_secs(5));
        assert_eq!(only(seen.clone()).seconds_to_ready, Some(7));
        // Told to serve, it is not warm any more.
        seen.process = Process::Stopping { epoch: 2, memory_bytes: 10 };
        let status = only(seen);
        assert_eq!((status.state, status.seconds_to_ready), (WorkloadState::Draining, None));
    }

    #[test]
    fn sentences_say_why_something_does_not_run() {
        let ready = Observation {
            weights: Weights::Present,
            credentials: Credentials::Valid,
            ..Observation::default()
        };
        let hopeless = Observation {
            process: Process::Exited { epoch: 2, hopeless: true },
            last_exit: Some(cause(Some(4), None, None)),
            ..ready.clone()
        };
        assert!(only(hopeless).message.unwrap().contains("more memory than this machine has"));
        let spec = spec(1, 1, vec![workload("a", 2, 101 << 20)]);
        let observed = Observed { memory_bytes: 100 << 20, workloads: [("a".to_owned(), ready)].into() };
        let plan = reconcile(&spec, &observed, &Ledger::new(), Duration::ZERO);
        let status = report(&spec, &observed, &plan).remove(0);
        assert_eq!(status.state, WorkloadState::Failed);
        assert!(status.message.unwrap().contains("takes 101 MiB of memory, and this host has 100 MiB left"));
    }

    #[test]
    fn what_ends_is_reported_until_it_is_gone() {
        let observed = Observed {
            memory_bytes: 100,
            workloads: [(
                "old".to_owned(),
                Observation {
                    process: Process::Stopping { epoch: 7, memory_bytes: 1 },
                    ..Observation::default()
                },
            )]
            .into(),
        };
        let statuses = report(&spec(1, 1, vec![]), &observed, &Plan::default());
        assert_eq!(statuses.len(), 1);
        assert_eq!((statuses[0].epoch, statuses[0].state), (7, WorkloadState::Draining));
    }
}

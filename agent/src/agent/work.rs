//! Doing what the plan says: each action is a task whose end is an event.

use std::fs;
use std::time::Duration;

use tandem_agent_core::{Action, Credentials, Process, Weights};
use tandem_control_api::Role;
use tandem_crds::{InferenceHostSpec, WorkloadMode, WorkloadSpec};
use tandem_pki::Identity;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::Agent;
use crate::error::chain;
use crate::event::Event;
use crate::gateway::{ID as GATEWAY, kept};
use crate::health::Listener;
use crate::home;
use crate::runner::Start;
use crate::settings::passed_on;
use crate::worker_spec::worker_spec;

/// A worker drains for 20 s by itself when it is told to end; after this it is killed.
const GRACE: Duration = Duration::from_secs(30);

impl Agent {
    pub(super) async fn act(&mut self, spec: &InferenceHostSpec, action: &Action) {
        let listed = |id: &str| spec.workloads.iter().find(|workload| workload.id == id);
        match action {
            Action::Fetch { workload } => {
                if let Some(workload) = listed(workload) {
                    self.fetch(workload);
                }
            }
            Action::Verify { workload } => {
                if let Some(workload) = listed(workload) {
                    self.verify(workload);
                }
            }
            Action::Certify { workload } => self.certify(workload),
            Action::Start { workload, .. } => {
                if let Some(workload) = listed(workload) {
                    self.start(workload);
                }
            }
            Action::Stop { workload, epoch, reason } => self.stop(workload, *epoch, reason, GRACE).await,
            Action::Kill { workload, epoch, reason } => {
                self.extra.entry(workload.clone()).or_default().killed = Some(reason.clone());
                self.stop(workload, *epoch, reason, Duration::ZERO).await;
            }
            Action::Forget { workload } => self.forget(workload),
        }
    }

    fn identity_of(&self, workload: &str) -> Option<Identity> {
        Some(Identity::Worker { host: self.settings.name.clone(), workload: workload.parse().ok()? })
    }

    /// Whether a folder holds a certificate of this identity that others believe.
    pub(super) fn kept(&self, dir: &std::path::Path, identity: &Identity) -> Credentials {
        kept(dir, identity, &self.operators.credentials().ca_pem)
    }

    fn certify(&mut self, id: &str) {
        let Some(identity) = self.identity_of(id) else { return };
        let observation = self.observed.workloads.entry(id.to_owned()).or_default();
        observation.server_name = Some(identity.server_name());
        let before = std::mem::replace(&mut observation.credentials, Credentials::Requested);
        // From an earlier start of the same workload; no operator is needed for it.
        if before == Credentials::Absent
            && self.kept(&self.home.workload(id).identity(), &identity) == Credentials::Valid
        {
            self.observed.workloads.entry(id.to_owned()).or_default().credentials = Credentials::Valid;
            return;
        }
        self.ask_certificate(Role::Worker, id);
    }

    pub(super) fn certify_gateway(&self) {
        self.ask_certificate(Role::Gateway, GATEWAY);
    }

    /// What runs goes on with new certificates: it looks at its folder by itself.
    pub(super) fn rejoined(&self) {
        let had = |dir: std::path::PathBuf| tandem_pki::Credentials::exist(&dir);
        for id in self.home.workloads() {
            if had(self.home.workload(&id).identity()) {
                self.ask_certificate(Role::Worker, &id);
            }
        }
        if self.gateway.as_ref().is_some_and(|gateway| had(gateway.identity_dir())) {
            self.certify_gateway();
        }
    }

    fn ask_certificate(&self, role: Role, id: &str) {
        let (name, dir) = match (role, &self.gateway) {
            (Role::Gateway, Some(gateway)) => (self.settings.name.to_string(), gateway.identity_dir()),
            _ => (id.to_owned(), self.home.workload(id).identity()),
        };
        let (operators, events, id) = (self.operators.clone(), self.events.clone(), id.to_owned());
        let addresses = vec![self.settings.address.clone()];
        tokio::spawn(async move {
            let result = operators.certify(role, &name, addresses, &dir).await;
            let result = result.map(drop).map_err(|error| chain(&error));
            tell(&events, Event::Certified { id, result }).await;
        });
    }

    pub(super) fn certified(&mut self, id: &str, result: Result<(), String>) {
        let now = self.now();
        let extra = self.extra.entry(id.to_owned()).or_default();
        let credentials = match (id == GATEWAY, &mut self.gateway) {
            (true, Some(gateway)) => &mut gateway.credentials,
            (true, None) => return,
            (false, _) => match self.observed.workloads.get_mut(id) {
                Some(observation) => &mut observation.credentials,
                None => return,
            },
        };
        match result {
            Ok(()) => {
                extra.certify_failures = 0;
                *credentials = Credentials::Valid;
            }
            // A renewal that failed is tried again later; the old certificate still serves.
            Err(why) if *credentials == Credentials::Valid => {
                tracing::warn!(workload = id, error = why, "a certificate can't be renewed");
            }
            Err(why) => {
                tracing::error!(workload = id, error = why, "no certificate");
                extra.certify_failures = extra.certify_failures.saturating_add(1);
                *credentials = Credentials::Failed { why, at: now, failures: extra.certify_failures };
            }
        }
    }

    fn start(&mut self, workload: &WorkloadSpec) {
        let (id, epoch, memory_bytes) = (workload.id.clone(), workload.epoch, workload.memory_bytes);
        let (home, now) = (self.home.workload(&id), self.now());
        let identity = self.identity_of(&id);
        if identity.is_none_or(|identity| self.kept(&home.identity(), &identity) != Credentials::Valid) {
            // It has ended since it was looked at.
            self.observed.workloads.entry(id).or_default().credentials = Credentials::Absent;
            return;
        }
        if !self.has_weights(workload) {
            self.observed.workloads.entry(id).or_default().weights = Weights::Absent;
            return;
        }
        let written = worker_spec(workload, &self.keeper.store, &home, self.settings.worker_listen())
            .map_err(|error| chain(&error))
            .and_then(|spec| {
                let json = serde_json::to_vec_pretty(&spec).expect("a worker's spec is JSON");
                // The endpoint of the process before must not be taken for this one's.
                remove(&home.endpoint())
                    .and_then(|()| home::replace(&home.spec(), &json))
                    .map_err(|error| format!("{} can't be written: {error}", home.root().display()))
            });
        let extra = self.extra.entry(id.clone()).or_default();
        extra.starts = extra.starts.saturating_add(1);
        extra.started_at = Some(now);
        let observation = self.observed.workloads.entry(id.clone()).or_default();
        observation.restarts = extra.starts - 1;
        observation.process = Process::Starting { epoch, memory_bytes };
        observation.failure = None;
        if let Err(why) = written {
            return self.start_failed(&id, epoch, why);
        }
        let command = match workload.mode {
            WorkloadMode::Serve => "replica",
            WorkloadMode::Warm => "warm",
        };
        tracing::info!(workload = id, epoch, command, restarts = observation.restarts, "starts a worker");
        let start = Start {
            id: id.clone(),
            epoch,
            memory_bytes,
            program: self.settings.worker_program.clone(),
            args: [command, "--spec", &home.spec().display().to_string(), "--exit-with-stdin"]
                .map(str::to_owned)
                .to_vec(),
            env: passed_on(),
            log: home.log(),
        };
        let (runner, events) = (self.runner.clone(), self.events.clone());
        let starting = extra.trace.child("start process");
        extra.getting_ready = extra.trace.child("worker gets ready");
        tokio::spawn(async move {
            // That it runs is told by the runner's list.
            let started = runner.start(start).await;
            if let Err(error) = &started {
                starting.fail(&chain(error));
            }
            drop(starting);
            if let Err(error) = started {
                tell(&events, Event::StartFailed { id, epoch, why: chain(&error) }).await;
            }
        });
    }

    pub(super) fn start_failed(&mut self, id: &str, epoch: u64, why: String) {
        let now = self.now();
        let Some(observation) = self.observed.workloads.get_mut(id) else { return };
        if !matches!(observation.process, Process::Starting { epoch: starting, .. } if starting == epoch) {
            return;
        }
        tracing::error!(workload = id, epoch, error = why, "a worker can't be started");
        if let Some(extra) = self.extra.get_mut(id) {
            extra.getting_ready.fail(&why);
            extra.getting_ready = tandem_traces::Span::none();
        }
        observation.process = Process::None;
        (observation.failures, observation.failed_at) = (observation.failures.saturating_add(1), now);
        observation.failure = Some(why);
    }

    async fn stop(&mut self, id: &str, epoch: u64, reason: &str, grace: Duration) {
        tracing::info!(workload = id, epoch, reason, "stops a worker");
        if let Err(error) = self.runner.stop(id, epoch, grace).await {
            // The runner's next list says how it really is.
            tracing::warn!(workload = id, error = chain(&error), "a worker can't be stopped");
            return;
        }
        if let Some(observation) = self.observed.workloads.get_mut(id)
            && let Process::Running { epoch, memory_bytes } = observation.process
        {
            observation.process = Process::Stopping { epoch, memory_bytes };
        }
    }

    fn forget(&mut self, id: &str) {
        tracing::info!(workload = id, "forgets a workload");
        self.observed.workloads.remove(id);
        self.extra.remove(id);
        let home = self.home.workload(id);
        if let Err(error) = fs::remove_dir_all(home.root())
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(workload = id, %error, "its folder can't be removed");
        }
    }

    pub(super) fn listen(&mut self, id: &str, epoch: u64, pid: u32) {
        let Some(identity) = self.identity_of(id) else { return };
        if let Some(observation) = self.observed.workloads.get_mut(id) {
            observation.server_name = Some(identity.server_name());
        }
        let listener = Listener {
            id: id.to_owned(),
            epoch,
            identity,
            endpoint_file: self.home.workload(id).endpoint(),
            operators: self.operators.clone(),
            events: self.events.clone(),
        };
        let task = AbortOnDropHandle::new(tokio::spawn(listener.run()));
        self.extra.entry(id.to_owned()).or_default().listener = Some((pid, task));
    }

    /// Tells one piece of work from another.
    pub(super) fn next_number(&mut self) -> u64 {
        self.works += 1;
        self.works
    }
}

/// Reports what a task has found.
pub(super) async fn tell(events: &mpsc::Sender<Event>, event: Event) {
    if events.send(event).await.is_err() {
        tracing::debug!("the agent is ending");
    }
}

fn remove(path: &std::path::Path) -> std::io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

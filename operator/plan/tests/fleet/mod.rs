//! A fleet that obeys: hosts that run what their specs say, time that passes when told, and every plan linted.
#![allow(dead_code, reason = "each test file uses its part")]

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::core::ObjectMeta;
use tandem_crds::{
    Context, DeploymentRef, Device, DeviceKind, Drain, HostSelector, InferenceDeployment,
    InferenceDeploymentSpec, InferenceHost, InferenceHostSpec, InferenceHostStatus, Model as ModelSpec,
    Placement, Redundancy, ResolvedFile, Sizing, Standby, WeightsStatus, WorkloadMode, WorkloadState,
    WorkloadStatus,
};
use tandem_plan::{HostObservation, Model, Observation, Plan, Resolved, State, lint, plan};

/// Copies and budgets in these tests come in this unit; a host of `n` units offers just enough for `n` after the margin.
pub(crate) const UNIT: u64 = 1 << 30;

pub(crate) struct Machine {
    pub(crate) alive: bool,
    pub(crate) units: u64,
    pub(crate) last_heard: Timestamp,
    pub(crate) running: BTreeMap<String, (u64, WorkloadState)>,
    /// Digests of files on its disk; none: it has not said.
    pub(crate) files: Option<BTreeSet<String>>,
    /// What its warm copies say they take to serve.
    pub(crate) seconds_to_ready: Option<u32>,
}

pub(crate) struct Fleet {
    pub(crate) now: Timestamp,
    pub(crate) state: State,
    pub(crate) machines: BTreeMap<String, Machine>,
    pub(crate) plans: usize,
    /// Hosts that are about to go.
    pub(crate) leaving: std::collections::BTreeSet<String>,
}

pub(crate) fn start_of_time() -> Timestamp {
    "2026-03-01T12:00:00Z".parse().unwrap()
}

pub(crate) fn key(name: &str) -> DeploymentRef {
    DeploymentRef { namespace: "llm".to_owned(), name: name.to_owned() }
}

pub(crate) fn spec(replicas: u32, host_failures: u32) -> InferenceDeploymentSpec {
    InferenceDeploymentSpec {
        model: ModelSpec {
            name: "kimi-k2.5".to_owned(),
            source: "https://m.example.com/kimi/".to_owned(),
            files: Vec::new(),
            credentials: None,
        },
        quant: "Q4_K_M".to_owned(),
        context: Context { tokens: 4096, pool_tokens: Some(16_384), kv_cache: Default::default() },
        redundancy: Redundancy { host_failures, ..Redundancy::default() },
        placement: Placement::default(),
        sampling: None,
        replicas,
    }
}

/// The same, with warm copies to cover failures.
pub(crate) fn warm(replicas: u32, host_failures: u32) -> InferenceDeploymentSpec {
    let redundancy = Redundancy { host_failures, standby: Standby::Warm, ..Redundancy::default() };
    InferenceDeploymentSpec { redundancy, ..spec(replicas, host_failures) }
}

/// A model of which one copy takes `units`, half of it for keys and values.
pub(crate) fn resolved(quant: &str, units: u64) -> Model {
    let total = units * UNIT;
    Model::Resolved(Resolved {
        revision: format!("rev-{quant}"),
        source: "file:///models".to_owned(),
        files: vec![ResolvedFile {
            name: format!("kimi-{quant}.gguf"),
            sha256: digest(quant),
            bytes: total / 2,
        }],
        sizing: Sizing {
            weights_bytes: total / 4,
            kv_bytes: total / 2,
            arena_bytes: total / 4,
            total_bytes: total,
        },
        lacking: Vec::new(),
    })
}

/// The digest of the one file of a quant.
pub(crate) fn digest(quant: &str) -> String {
    let hex: String = quant.bytes().map(|byte| format!("{byte:02x}")).collect();
    format!("{hex:0<64}")
}

impl Fleet {
    pub(crate) fn new() -> Self {
        Self {
            now: start_of_time(),
            state: State { term: 1, ..State::default() },
            machines: BTreeMap::new(),
            plans: 0,
            leaving: std::collections::BTreeSet::new(),
        }
    }

    pub(crate) fn join(&mut self, name: &str, units: u64) {
        self.join_with_labels(name, units, &[]);
    }

    pub(crate) fn join_with_labels(&mut self, name: &str, units: u64, labels: &[(&str, &str)]) {
        let mut host = InferenceHost::new(name, InferenceHostSpec::default());
        host.metadata.labels =
            Some(labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect());
        self.state.hosts.push(host);
        let machine = Machine {
            alive: true,
            units,
            last_heard: self.now,
            running: BTreeMap::new(),
            files: None,
            seconds_to_ready: Some(7),
        };
        self.machines.insert(name.to_owned(), machine);
    }

    pub(crate) fn host(&mut self, name: &str) -> &mut InferenceHost {
        self.state.hosts.iter_mut().find(|host| host.metadata.name.as_deref() == Some(name)).unwrap()
    }

    pub(crate) fn cordon(&mut self, name: &str, on: bool) {
        self.host(name).spec.unschedulable = on;
        if !on {
            self.host(name).spec.drain = None;
        }
    }

    pub(crate) fn drain(&mut self, name: &str) {
        self.cordon(name, true);
        self.host(name).spec.drain = Some(Drain::Requested);
    }

    pub(crate) fn apply(&mut self, name: &str, spec: InferenceDeploymentSpec, units: u64) {
        let model = resolved(&spec.quant, units);
        self.apply_model(name, spec, model);
    }

    /// Creates a deployment or changes its spec; each one is created a second after the one before it.
    pub(crate) fn apply_model(&mut self, name: &str, spec: InferenceDeploymentSpec, model: Model) {
        self.state.models.insert(key(name), model);
        let found =
            self.state.deployments.iter_mut().find(|other| other.metadata.name.as_deref() == Some(name));
        if let Some(deployment) = found {
            if deployment.spec != spec {
                deployment.metadata.generation =
                    deployment.metadata.generation.map(|generation| generation + 1);
                deployment.spec = spec;
            }
            return;
        }
        let age = SignedDuration::from_secs(self.state.deployments.len() as i64);
        let mut deployment = InferenceDeployment::new(name, spec);
        deployment.metadata = ObjectMeta {
            namespace: Some("llm".to_owned()),
            generation: Some(1),
            creation_timestamp: Some(Time(start_of_time() + age)),
            ..deployment.metadata
        };
        self.state.deployments.push(deployment);
    }

    pub(crate) fn deployment(&self, name: &str) -> &InferenceDeployment {
        self.state.deployments.iter().find(|other| other.metadata.name.as_deref() == Some(name)).unwrap()
    }

    pub(crate) fn scale(&mut self, name: &str, replicas: u32) {
        let spec = InferenceDeploymentSpec { replicas, ..self.deployment(name).spec.clone() };
        let model = self.state.models[&key(name)].clone();
        self.apply_model(name, spec, model);
    }

    pub(crate) fn delete(&mut self, name: &str) {
        self.state.deployments.retain(|other| other.metadata.name.as_deref() != Some(name));
        self.state.models.remove(&key(name));
    }

    /// The host dies, with all that runs on it.
    pub(crate) fn kill(&mut self, name: &str) {
        let machine = self.machines.get_mut(name).unwrap();
        machine.alive = false;
        machine.last_heard = self.now;
        machine.running.clear();
    }

    /// The host falls silent and goes on running what it runs.
    pub(crate) fn cut_off(&mut self, name: &str) {
        let machine = self.machines.get_mut(name).unwrap();
        machine.alive = false;
        machine.last_heard = self.now;
    }

    pub(crate) fn revive(&mut self, name: &str) {
        self.machines.get_mut(name).unwrap().alive = true;
    }

    pub(crate) fn remove_host(&mut self, name: &str) {
        self.machines.remove(name);
        self.state.hosts.retain(|host| host.metadata.name.as_deref() != Some(name));
    }

    pub(crate) fn pass(&mut self, seconds: i64) {
        self.now += SignedDuration::from_secs(seconds);
    }

    fn report(&self, name: &str, index: usize, machine: &Machine) -> InferenceHostStatus {
        let workloads = machine.running.iter().map(|(id, (epoch, state))| WorkloadStatus {
            id: id.clone(),
            epoch: *epoch,
            state: *state,
            endpoint: Some(format!("10.0.0.{index}:7000")),
            server_name: Some(format!("{id}.{name}.workers.tandem.internal")),
            numerics_id: Some("exact".to_owned()),
            message: None,
            restarts: 0,
            last_exit: None,
            progress: None,
            transfer: None,
            seconds_to_ready: machine.seconds_to_ready.filter(|_| *state == WorkloadState::Warm),
        });
        // What the margin of a sixteenth leaves is just the units, and less than one more.
        let available = machine.units * UNIT * 16 / 15 + 16;
        let cpu = Device {
            id: "cpu".to_owned(),
            kind: DeviceKind::Cpu,
            name: String::new(),
            memory_bytes: available,
            available_bytes: available,
        };
        InferenceHostStatus {
            devices: vec![cpu],
            workloads: workloads.collect(),
            weights: machine.files.as_ref().map(|files| WeightsStatus {
                files: files.iter().cloned().collect(),
                ..WeightsStatus::default()
            }),
            ..InferenceHostStatus::default()
        }
    }

    pub(crate) fn observation(&mut self) -> Observation {
        let mut observation = Observation { leaving: self.leaving.clone(), ..Observation::default() };
        let reports: Vec<(String, HostObservation)> = self
            .machines
            .iter()
            .enumerate()
            .map(|(index, (name, machine))| {
                let seen = if machine.alive {
                    HostObservation::Known(Box::new(self.report(name, index, machine)))
                } else {
                    HostObservation::Unknown { since: machine.last_heard }
                };
                (name.clone(), seen)
            })
            .collect();
        for (name, seen) in reports {
            if let HostObservation::Known(report) = &seen {
                self.host(&name).status = Some(report.as_ref().clone());
            }
            observation.hosts.insert(name, seen);
        }
        observation
    }

    /// One plan: linted, tried a second time for sameness, and written.
    pub(crate) fn plan(&mut self) -> Plan {
        let observation = self.observation();
        let made = plan(&self.state, &observation, self.now).unwrap();
        let findings = lint(&self.state, &observation, self.now, &made);
        assert!(findings.is_empty(), "{findings:#?}\n{made:#?}");
        assert_eq!(
            made,
            plan(&self.state, &observation, self.now).unwrap(),
            "the same input gave another plan"
        );
        for (name, spec) in &made.specs {
            let spec = spec.clone();
            self.host(name).spec = spec;
        }
        for deployment in &mut self.state.deployments {
            let name = deployment.metadata.name.clone().unwrap();
            deployment.status = made.statuses.get(&key(&name)).cloned();
        }
        self.plans += 1;
        made
    }

    /// Living hosts go one step towards their specs: what is new loads, what loads gets ready, what is dropped ends.
    pub(crate) fn obey(&mut self) -> bool {
        let mut moved = false;
        for (name, machine) in self.machines.iter_mut().filter(|(_, machine)| machine.alive) {
            let spec = self
                .state
                .hosts
                .iter()
                .find(|host| host.metadata.name.as_ref() == Some(name))
                .map(|host| &host.spec);
            let wanted: BTreeMap<String, (u64, WorkloadState)> = spec
                .into_iter()
                .flat_map(|spec| &spec.workloads)
                .map(|workload| {
                    let aim = match workload.mode {
                        WorkloadMode::Serve => WorkloadState::Ready,
                        WorkloadMode::Warm => WorkloadState::Warm,
                    };
                    (workload.id.clone(), (workload.epoch, aim))
                })
                .collect();
            let before = machine.running.clone();
            machine.running.retain(|id, (epoch, state)| {
                *state != WorkloadState::Draining || wanted.get(id).is_some_and(|(now, _)| now == epoch)
            });
            for (id, (epoch, state)) in &mut machine.running {
                match wanted.get(id) {
                    Some((now, aim)) if now == epoch => {
                        if *state == WorkloadState::Loading {
                            *state = *aim;
                        }
                    }
                    Some((now, _)) => {
                        assert!(now > epoch, "{id} goes back to epoch {now}");
                        (*epoch, *state) = (*now, WorkloadState::Loading);
                    }
                    None => *state = WorkloadState::Draining,
                }
            }
            let ready = |id: &String, epoch: u64| {
                machine.running.get(id).is_some_and(|(now, state)| {
                    *now == epoch && matches!(state, WorkloadState::Ready | WorkloadState::Warm)
                })
            };
            if let Some(files) = &mut machine.files {
                let workloads = spec.into_iter().flat_map(|spec| &spec.workloads);
                let here = workloads.filter(|workload| ready(&workload.id, workload.epoch));
                files.extend(here.flat_map(|workload| &workload.files).map(|file| file.sha256.clone()));
            }
            for (id, (epoch, _)) in wanted {
                machine.running.entry(id).or_insert((epoch, WorkloadState::Loading));
            }
            moved |= before != machine.running;
        }
        moved
    }

    /// Living hosts collect all files that they are not told to keep and that nothing there uses.
    pub(crate) fn collect(&mut self) {
        for (name, machine) in self.machines.iter_mut().filter(|(_, machine)| machine.alive) {
            let host = self.state.hosts.iter().find(|host| host.metadata.name.as_ref() == Some(name));
            let Some((spec, files)) = host.map(|host| &host.spec).zip(machine.files.as_mut()) else {
                continue;
            };
            let used = |digest: &String| {
                spec.workloads.iter().flat_map(|workload| &workload.files).any(|file| file.sha256 == *digest)
            };
            files.retain(|digest| spec.keep_files.contains(digest) || used(digest));
        }
    }

    /// Plans and obeys until nothing changes; fails if that takes too long.
    pub(crate) fn settle(&mut self) -> Vec<Plan> {
        let mut plans = Vec::new();
        for _ in 0..60 {
            let made = self.plan();
            let quiet = made.steps.is_empty() && made.specs.is_empty();
            plans.push(made);
            if !self.obey() && quiet {
                let last = self.plan();
                assert!(
                    last.steps.is_empty() && last.specs.is_empty(),
                    "planning again changes {:#?}",
                    last.steps
                );
                let stored: Vec<_> =
                    self.state.deployments.iter().map(|deployment| deployment.status.clone()).collect();
                let again = self.plan();
                let status = |deployment: &InferenceDeployment| {
                    again.statuses.values().any(|s| Some(s) == deployment.status.as_ref())
                };
                assert!(self.state.deployments.iter().all(status));
                let now: Vec<_> =
                    self.state.deployments.iter().map(|deployment| deployment.status.clone()).collect();
                assert_eq!(stored, now, "planning again changes a status");
                return plans;
            }
        }
        panic!("the fleet does not settle: {:#?}", plans.last().map(|plan| &plan.steps));
    }

    /// Where a deployment's first serving copy is meant to be.
    pub(crate) fn host_that_serves(&self, name: &str) -> String {
        let serves = |host: &&InferenceHost| {
            let mut own = host.spec.workloads.iter().filter(|workload| workload.deployment == key(name));
            own.any(|workload| workload.mode.is_serve())
        };
        self.state.hosts.iter().find(serves).and_then(|host| host.metadata.name.clone()).unwrap()
    }

    /// How many of a deployment's copies are meant to serve.
    pub(crate) fn serving(&self, name: &str) -> u32 {
        let own = self.state.hosts.iter().flat_map(|host| &host.spec.workloads);
        own.filter(|workload| workload.deployment == key(name) && workload.mode.is_serve()).count() as u32
    }

    /// Copies of a deployment on each host, by host name.
    pub(crate) fn assigned(&self, name: &str) -> BTreeMap<String, u32> {
        let count = |host: &InferenceHost| {
            host.spec.workloads.iter().filter(|workload| workload.deployment == key(name)).count() as u32
        };
        self.state.hosts.iter().map(|host| (host.metadata.name.clone().unwrap(), count(host))).collect()
    }
}

pub(crate) fn selecting(label: (&str, &str), mut spec: InferenceDeploymentSpec) -> InferenceDeploymentSpec {
    let labels = BTreeMap::from([(label.0.to_owned(), label.1.to_owned())]);
    spec.placement.host_selector = Some(HostSelector { match_labels: labels });
    spec
}

//! What happens in a cluster, and what is stored and seen of it afterwards; told to a planner bit by bit.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use proptest::prelude::*;
use serde_json::json;
use tandem_crds::{
    DeploymentRef, Device, DeviceKind, Drain, HostSelector, InferenceDeployment, InferenceDeploymentSpec,
    InferenceHost, InferenceHostSpec, InferenceHostStatus, Lane, ResolvedFile, Sizing, Standby,
    WeightsStatus, WorkloadSpec, WorkloadState, WorkloadStatus,
};
use tandem_plan::{HostObservation, Model, Observation, Plan, Planner, Resolved, State};

pub(crate) const UNIT: u64 = 1 << 30;
pub(crate) const HOSTS: usize = 9;

/// Two of them name their copies alike, and two are alike but for their namespaces.
pub(crate) const KEYS: [(&str, &str); 6] =
    [("a", "b-c"), ("a-b", "c"), ("a", "d"), ("z", "d"), ("a", "e"), ("z", "f")];

pub(crate) fn start() -> Timestamp {
    "2026-03-01T12:00:00Z".parse().unwrap()
}

pub(crate) fn key(number: usize) -> DeploymentRef {
    let (namespace, name) = KEYS[number % KEYS.len()];
    DeploymentRef { namespace: namespace.to_owned(), name: name.to_owned() }
}

pub(crate) fn digest(version: u8) -> String {
    format!("{version:064x}")
}

pub(crate) fn resolved(version: u8, units: u64) -> Model {
    let total = units * UNIT;
    Model::Resolved(Resolved {
        revision: format!("rev-{version}"),
        source: format!("https://m.example.com/{version}/"),
        files: vec![ResolvedFile { name: "m.gguf".to_owned(), sha256: digest(version), bytes: total / 2 }],
        sizing: Sizing {
            weights_bytes: total / 2,
            kv_bytes: total / 4,
            arena_bytes: total / 4,
            total_bytes: total,
        },
        lacking: Vec::new(),
    })
}

#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) replicas: u32,
    pub(crate) failures: u32,
    pub(crate) warm: bool,
    pub(crate) lane: Lane,
    pub(crate) pool: Option<u8>,
    pub(crate) name: u8,
    pub(crate) version: u8,
    pub(crate) units: u64,
    pub(crate) patience: u32,
}

pub(crate) fn asked() -> impl Strategy<Value = Asked> {
    let lane = prop_oneof![3 => Just(Lane::Production), 1 => Just(Lane::Batch)];
    (
        0_u32..4,
        0_u32..3,
        any::<bool>(),
        lane,
        prop::option::weighted(0.3, 0_u8..2),
        0_u8..3,
        0_u8..4,
        1_u64..4,
        prop_oneof![Just(30_u32), Just(60)],
    )
        .prop_map(|(replicas, failures, warm, lane, pool, name, version, units, patience)| Asked {
            replicas,
            failures,
            warm,
            lane,
            pool,
            name,
            version,
            units,
            patience,
        })
}

pub(crate) fn spec(asked: &Asked) -> InferenceDeploymentSpec {
    let mut spec: InferenceDeploymentSpec = serde_json::from_value(json!({
        "model": {"name": format!("m{}", asked.name), "source": "https://m.example.com/"},
        "quant": format!("Q{}_0", asked.version),
        "context": {"tokens": 4096},
        "replicas": asked.replicas,
        "redundancy": {"hostFailures": asked.failures, "replaceAfterSeconds": asked.patience}
    }))
    .unwrap();
    if asked.warm {
        spec.redundancy.standby = Standby::Warm;
    }
    spec.placement.lane = asked.lane;
    spec.placement.host_selector = asked
        .pool
        .map(|pool| HostSelector { match_labels: BTreeMap::from([("pool".to_owned(), format!("p{pool}"))]) });
    spec
}

#[derive(Clone, Debug)]
pub(crate) enum Event {
    Join {
        host: usize,
        units: u64,
        zone: u8,
        pool: u8,
    },
    Gone(usize),
    Silent(usize),
    Heard(usize),
    NeverSeen(usize),
    Cordon(usize, bool),
    Drain(usize, bool),
    Leaving(usize),
    Relabel(usize, u8),
    Grow(usize, u64),
    Deploy(usize, u8, Asked),
    Scale(usize, u32),
    Delete(usize),
    /// It goes and comes again between two looks.
    Recreate(usize, u8, Asked),
    Model(usize, u8, u64),
    Carry(u16),
    CarryStatuses(u8),
    Obey(usize, WorkloadState),
    ObeyAll,
    Collect(usize),
    Keep(usize, u8),
    Pass(i64),
    Lead,
    Endpoint(u8),
}

pub(crate) fn event() -> impl Strategy<Value = Event> {
    let host = || 0..HOSTS;
    let deployment = || 0..KEYS.len();
    let state = prop_oneof![
        4 => Just(WorkloadState::Ready),
        2 => Just(WorkloadState::Warm),
        2 => Just(WorkloadState::Loading),
        1 => Just(WorkloadState::Starting),
        1 => Just(WorkloadState::Failed),
    ];
    prop_oneof![
        2 => (host(), 1_u64..7, 0_u8..3, 0_u8..2)
            .prop_map(|(host, units, zone, pool)| Event::Join { host, units, zone, pool }),
        1 => host().prop_map(Event::Gone),
        4 => host().prop_map(Event::Silent),
        4 => host().prop_map(Event::Heard),
        1 => host().prop_map(Event::NeverSeen),
        2 => (host(), any::<bool>()).prop_map(|(host, on)| Event::Cordon(host, on)),
        2 => (host(), any::<bool>()).prop_map(|(host, on)| Event::Drain(host, on)),
        1 => host().prop_map(Event::Leaving),
        1 => (host(), 0_u8..2).prop_map(|(host, pool)| Event::Relabel(host, pool)),
        2 => (host(), 1_u64..7).prop_map(|(host, units)| Event::Grow(host, units)),
        5 => (deployment(), 0_u8..3, asked()).prop_map(|(key, age, asked)| Event::Deploy(key, age, asked)),
        3 => (deployment(), 0_u32..4).prop_map(|(key, replicas)| Event::Scale(key, replicas)),
        2 => deployment().prop_map(Event::Delete),
        2 => (deployment(), 0_u8..4, asked()).prop_map(|(key, age, asked)| Event::Recreate(key, age, asked)),
        2 => (deployment(), 0_u8..6, 1_u64..4).prop_map(|(key, what, units)| Event::Model(key, what, units)),
        6 => prop_oneof![3 => Just(u16::MAX), 1 => any::<u16>()].prop_map(Event::Carry),
        3 => any::<u8>().prop_map(Event::CarryStatuses),
        4 => (host(), state).prop_map(|(host, state)| Event::Obey(host, state)),
        6 => Just(Event::ObeyAll),
        1 => host().prop_map(Event::Collect),
        1 => (host(), 0_u8..5).prop_map(|(host, version)| Event::Keep(host, version)),
        4 => prop_oneof![Just(1_i64), Just(4), Just(12), Just(61)].prop_map(Event::Pass),
        1 => Just(Event::Lead),
        1 => (0_u8..2).prop_map(Event::Endpoint),
    ]
}

/// Objects and what is seen, without a rule for who may do what: plans are carried out in part, or late, or not at all.
pub(crate) struct Site {
    pub(crate) now: Timestamp,
    pub(crate) state: State,
    pub(crate) seen: Observation,
    pub(crate) last: Plan,
}

impl Site {
    pub(crate) fn new() -> Self {
        Self {
            now: start(),
            state: State { term: 1, ..State::default() },
            seen: Observation::default(),
            last: Plan::default(),
        }
    }

    pub(crate) fn host(&mut self, number: usize) -> Option<&mut InferenceHost> {
        let name = format!("h{number}");
        self.state.hosts.iter_mut().find(|host| host.metadata.name.as_ref() == Some(&name))
    }

    pub(crate) fn deployment(&mut self, key: &DeploymentRef) -> Option<&mut InferenceDeployment> {
        self.state.deployments.iter_mut().find(|other| same(other, key))
    }

    /// The host's report, changed, and known from now on.
    pub(crate) fn report(&mut self, number: usize, change: impl FnOnce(&mut InferenceHostStatus)) {
        let Some(host) = self.host(number) else { return };
        let mut status = host.status.clone().unwrap_or_default();
        change(&mut status);
        host.status = Some(status.clone());
        self.seen.hosts.insert(format!("h{number}"), HostObservation::Known(Box::new(status)));
    }

    pub(crate) fn obey(&mut self, number: usize, state: Option<WorkloadState>) {
        let Some(host) = self.host(number) else { return };
        let name = host.metadata.name.clone().unwrap();
        let workloads = host.spec.workloads.clone();
        let generation = host.spec.generation;
        self.report(number, |report| {
            report.observed_generation = Some(generation);
            let mut running: Vec<WorkloadStatus> =
                workloads.iter().map(|workload| status(&name, workload, state)).collect();
            for before in &report.workloads {
                if before.state != WorkloadState::Draining && running.iter().all(|now| now.id != before.id) {
                    running.push(WorkloadStatus { state: WorkloadState::Draining, ..before.clone() });
                }
            }
            report.workloads = running;
            let files = report.weights.get_or_insert_with(WeightsStatus::default);
            let here = workloads.iter().flat_map(|workload| &workload.files).map(|file| file.sha256.clone());
            let files: BTreeSet<String> = files.files.iter().cloned().chain(here).collect();
            report.weights = Some(WeightsStatus { files: files.into_iter().collect(), ..Default::default() });
        });
    }

    pub(crate) fn carry_statuses(&mut self, mask: u8) {
        for (number, deployment) in self.state.deployments.iter_mut().enumerate() {
            let status = self.last.statuses.iter().find(|(key, _)| same(deployment, key));
            if mask & (1 << (number % 8)) != 0
                && let Some((_, status)) = status
            {
                deployment.status = Some(status.clone());
            }
        }
    }

    pub(crate) fn happen(&mut self, event: &Event) {
        match event {
            Event::Join { host: number, units, zone, pool } => {
                if self.host(*number).is_none() {
                    let mut host = InferenceHost::new(&format!("h{number}"), InferenceHostSpec::default());
                    host.metadata.labels = Some(BTreeMap::from([
                        ("topology.kubernetes.io/zone".to_owned(), format!("z{zone}")),
                        ("pool".to_owned(), format!("p{pool}")),
                    ]));
                    self.state.hosts.push(host);
                    self.report(*number, |report| report.devices = vec![device(*units)]);
                }
            }
            Event::Gone(number) => {
                let name = format!("h{number}");
                self.state.hosts.retain(|host| host.metadata.name.as_ref() != Some(&name));
                self.seen.hosts.remove(&name);
            }
            Event::Silent(number) => {
                if let Some(seen) = self.seen.hosts.get_mut(&format!("h{number}")) {
                    *seen = HostObservation::Unknown { since: self.now };
                }
            }
            Event::Heard(number) => self.report(*number, |_| {}),
            Event::NeverSeen(number) => {
                self.seen.hosts.remove(&format!("h{number}"));
            }
            Event::Cordon(number, on) => {
                if let Some(host) = self.host(*number) {
                    host.spec.unschedulable = *on;
                }
            }
            Event::Drain(number, on) => {
                if let Some(host) = self.host(*number) {
                    host.spec.drain = on.then_some(Drain::Requested);
                }
            }
            Event::Leaving(number) => {
                let name = format!("h{number}");
                if !self.seen.leaving.remove(&name) {
                    self.seen.leaving.insert(name);
                }
            }
            Event::Relabel(number, pool) => {
                if let Some(host) = self.host(*number) {
                    let labels = host.metadata.labels.get_or_insert_default();
                    labels.insert("pool".to_owned(), format!("p{pool}"));
                }
            }
            Event::Grow(number, units) => {
                self.report(*number, |report| report.devices = vec![device(*units)])
            }
            Event::Deploy(number, age, asked) => self.deploy(&key(*number), *age, asked),
            Event::Scale(number, replicas) => {
                if let Some(deployment) = self.deployment(&key(*number)) {
                    deployment.spec.replicas = *replicas;
                    deployment.metadata.generation = deployment.metadata.generation.map(|last| last + 1);
                }
            }
            Event::Delete(number) => self.delete(&key(*number)),
            Event::Recreate(number, age, asked) => {
                self.delete(&key(*number));
                self.deploy(&key(*number), *age, asked);
            }
            Event::Model(number, what, units) => {
                let model = match what {
                    0 => Model::Resolving,
                    1 => Model::Failed("the source is away".to_owned()),
                    2 => {
                        let Model::Resolved(model) = resolved(2, *units) else { return };
                        Model::Resolved(Resolved { lacking: vec!["Q2_K".to_owned()], ..model })
                    }
                    version => resolved(*version, *units),
                };
                self.state.models.insert(key(*number), model);
            }
            Event::Carry(mask) => {
                let specs = self.last.specs.clone();
                for (number, (name, spec)) in specs.into_iter().enumerate() {
                    if mask & (1 << number) != 0
                        && let Some(host) = self
                            .state
                            .hosts
                            .iter_mut()
                            .find(|host| host.metadata.name.as_deref() == Some(&name))
                    {
                        host.spec = spec;
                    }
                }
                self.carry_statuses(u8::MAX);
            }
            Event::CarryStatuses(mask) => self.carry_statuses(*mask),
            Event::Obey(number, state) => self.obey(*number, Some(*state)),
            Event::ObeyAll => {
                for number in 0..HOSTS {
                    if matches!(self.seen.hosts.get(&format!("h{number}")), Some(HostObservation::Known(_))) {
                        self.obey(number, None);
                    }
                }
            }
            Event::Collect(number) => self.report(*number, |report| {
                if let Some(weights) = &mut report.weights {
                    weights.files.pop();
                }
            }),
            Event::Keep(number, version) => {
                if let Some(host) = self.host(*number) {
                    let digest = digest(*version);
                    if !host.spec.keep_files.contains(&digest) {
                        host.spec.keep_files.push(digest);
                    }
                }
            }
            Event::Pass(seconds) => self.now += SignedDuration::from_secs(*seconds),
            Event::Lead => self.state.term += 1,
            Event::Endpoint(number) => {
                self.seen.endpoint = (*number > 0).then(|| "https://gateway.example.com".to_owned());
            }
        }
    }

    pub(crate) fn delete(&mut self, key: &DeploymentRef) {
        self.state.deployments.retain(|other| !same(other, key));
        self.state.models.remove(key);
    }

    pub(crate) fn deploy(&mut self, key: &DeploymentRef, age: u8, asked: &Asked) {
        self.state.models.entry(key.clone()).or_insert_with(|| resolved(asked.version, asked.units));
        if let Some(deployment) = self.deployment(key) {
            deployment.spec = spec(asked);
            deployment.metadata.generation = deployment.metadata.generation.map(|last| last + 1);
            self.state.models.insert(key.clone(), resolved(asked.version, asked.units));
            return;
        }
        let mut deployment = InferenceDeployment::new(&key.name, spec(asked));
        deployment.metadata.namespace = Some(key.namespace.clone());
        deployment.metadata.generation = Some(1);
        let created = start() + SignedDuration::from_secs(i64::from(age));
        deployment.metadata.creation_timestamp = Some(Time(created));
        self.state.deployments.push(deployment);
    }
}

pub(crate) fn same(deployment: &InferenceDeployment, key: &DeploymentRef) -> bool {
    let metadata = &deployment.metadata;
    metadata.name.as_ref() == Some(&key.name) && metadata.namespace.as_ref() == Some(&key.namespace)
}

pub(crate) fn device(units: u64) -> Device {
    let available = units * UNIT * 16 / 15 + 16;
    Device {
        id: "cpu".to_owned(),
        kind: DeviceKind::Cpu,
        name: String::new(),
        memory_bytes: available,
        available_bytes: available,
    }
}

/// What a host says of a workload; without a state, that it does what it is there for.
pub(crate) fn status(host: &str, workload: &WorkloadSpec, state: Option<WorkloadState>) -> WorkloadStatus {
    let aim = if workload.mode.is_serve() { WorkloadState::Ready } else { WorkloadState::Warm };
    WorkloadStatus {
        id: workload.id.clone(),
        epoch: workload.epoch,
        state: state.unwrap_or(aim),
        endpoint: Some(format!("{host}.example.com:7000")),
        server_name: Some(format!("{}.{host}.workers.tandem.internal", workload.id)),
        numerics_id: Some("exact".to_owned()),
        message: None,
        restarts: 0,
        last_exit: None,
        progress: None,
        transfer: None,
        seconds_to_ready: Some(7),
    }
}

/// Says only what may be otherwise after one event, as one who watches would.
pub(crate) fn tell_of(planner: &mut Planner, site: &Site, event: &Event) {
    let host = |planner: &mut Planner, number: usize| {
        let name = format!("h{number}");
        match site.state.hosts.iter().find(|host| host.metadata.name.as_ref() == Some(&name)) {
            Some(host) => planner.host(host.clone()),
            None => planner.forget_host(&name),
        }
        let seen = site.seen.hosts.get(&name).cloned();
        planner.see(name, seen);
    };
    let deployment = |planner: &mut Planner, number: usize| {
        let key = key(number);
        planner.model(key.clone(), site.state.models.get(&key).cloned());
        match site.state.deployments.iter().find(|other| same(other, &key)) {
            Some(deployment) => planner.deployment(deployment.clone()),
            None => planner.forget_deployment(&key),
        }
    };
    match event {
        Event::Join { host: number, .. }
        | Event::Gone(number)
        | Event::Silent(number)
        | Event::Heard(number)
        | Event::NeverSeen(number)
        | Event::Cordon(number, _)
        | Event::Drain(number, _)
        | Event::Relabel(number, _)
        | Event::Grow(number, _)
        | Event::Obey(number, _)
        | Event::Collect(number)
        | Event::Keep(number, _) => host(planner, *number),
        Event::Leaving(_) => planner.leave(site.seen.leaving.clone()),
        Event::Deploy(number, ..)
        | Event::Scale(number, _)
        | Event::Delete(number)
        | Event::Recreate(number, ..)
        | Event::Model(number, ..) => deployment(planner, *number),
        Event::Carry(_) | Event::CarryStatuses(_) | Event::ObeyAll => {
            (0..HOSTS).for_each(|number| host(planner, number));
            (0..KEYS.len()).for_each(|number| deployment(planner, number));
        }
        Event::Pass(_) => {}
        Event::Lead => planner.lead(site.state.term),
        Event::Endpoint(_) => planner.endpoint(site.seen.endpoint.clone()),
    }
}

//! A planner that follows changes says what a plan in full says, whatever happens.
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

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
use tandem_plan::{HostObservation, Model, Observation, Plan, Planner, Resolved, State, lint, plan};

const UNIT: u64 = 1 << 30;
const HOSTS: usize = 9;

/// Two of them name their copies alike, and two are alike but for their namespaces.
const KEYS: [(&str, &str); 6] = [("a", "b-c"), ("a-b", "c"), ("a", "d"), ("z", "d"), ("a", "e"), ("z", "f")];

fn start() -> Timestamp {
    "2026-03-01T12:00:00Z".parse().unwrap()
}

fn key(number: usize) -> DeploymentRef {
    let (namespace, name) = KEYS[number % KEYS.len()];
    DeploymentRef { namespace: namespace.to_owned(), name: name.to_owned() }
}

fn digest(version: u8) -> String {
    format!("{version:064x}")
}

fn resolved(version: u8, units: u64) -> Model {
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
struct Asked {
    replicas: u32,
    failures: u32,
    warm: bool,
    lane: Lane,
    pool: Option<u8>,
    name: u8,
    version: u8,
    units: u64,
    patience: u32,
}

fn asked() -> impl Strategy<Value = Asked> {
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

fn spec(asked: &Asked) -> InferenceDeploymentSpec {
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
enum Event {
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

fn event() -> impl Strategy<Value = Event> {
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
struct Site {
    now: Timestamp,
    state: State,
    seen: Observation,
    last: Plan,
}

impl Site {
    fn new() -> Self {
        Self {
            now: start(),
            state: State { term: 1, ..State::default() },
            seen: Observation::default(),
            last: Plan::default(),
        }
    }

    fn host(&mut self, number: usize) -> Option<&mut InferenceHost> {
        let name = format!("h{number}");
        self.state.hosts.iter_mut().find(|host| host.metadata.name.as_ref() == Some(&name))
    }

    fn deployment(&mut self, key: &DeploymentRef) -> Option<&mut InferenceDeployment> {
        self.state.deployments.iter_mut().find(|other| same(other, key))
    }

    /// The host's report, changed, and known from now on.
    fn report(&mut self, number: usize, change: impl FnOnce(&mut InferenceHostStatus)) {
        let Some(host) = self.host(number) else { return };
        let mut status = host.status.clone().unwrap_or_default();
        change(&mut status);
        host.status = Some(status.clone());
        self.seen.hosts.insert(format!("h{number}"), HostObservation::Known(Box::new(status)));
    }

    fn obey(&mut self, number: usize, state: Option<WorkloadState>) {
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

    fn carry_statuses(&mut self, mask: u8) {
        for (number, deployment) in self.state.deployments.iter_mut().enumerate() {
            let status = self.last.statuses.iter().find(|(key, _)| same(deployment, key));
            if mask & (1 << (number % 8)) != 0
                && let Some((_, status)) = status
            {
                deployment.status = Some(status.clone());
            }
        }
    }

    fn happen(&mut self, event: &Event) {
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

    fn delete(&mut self, key: &DeploymentRef) {
        self.state.deployments.retain(|other| !same(other, key));
        self.state.models.remove(key);
    }

    fn deploy(&mut self, key: &DeploymentRef, age: u8, asked: &Asked) {
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

fn same(deployment: &InferenceDeployment, key: &DeploymentRef) -> bool {
    let metadata = &deployment.metadata;
    metadata.name.as_ref() == Some(&key.name) && metadata.namespace.as_ref() == Some(&key.namespace)
}

fn device(units: u64) -> Device {
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
fn status(host: &str, workload: &WorkloadSpec, state: Option<WorkloadState>) -> WorkloadStatus {
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
fn tell_of(planner: &mut Planner, site: &Site, event: &Event) {
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

/// Follows one event after the other; how many plans were made, and how many of them thought of a part only.
fn follow(events: &[(Event, bool, bool)]) -> Result<(usize, usize), TestCaseError> {
    let mut site = Site::new();
    let mut planner = Planner::new();
    planner.lead(site.state.term);
    let (mut plans, mut partial) = (0, 0);
    for (event, whole, plans_now) in events {
        site.happen(event);
        if *whole {
            planner.tell(site.state.clone(), site.seen.clone());
        } else {
            tell_of(&mut planner, &site, event);
        }
        if !plans_now {
            continue;
        }
        let full = plan(&site.state, &site.seen, site.now).unwrap();
        let next = planner.plan(site.now).unwrap().clone();
        prop_assert_eq!(&next, &full, "after {:?}", event);
        plans += 1;
        partial += usize::from(planner.decided().is_some_and(|some| some < site.state.deployments.len()));
        site.last = full;
    }
    if planner.plan(site.now).is_ok() {
        prop_assert!(planner.check(site.now).unwrap(), "the newest plan is the one in full");
    }
    Ok((plans, partial))
}

/// Hosts and deployments to begin with, all running.
fn beginning() -> Vec<(Event, bool, bool)> {
    let asked = |number: usize| Asked {
        replicas: 1,
        failures: 1,
        warm: number % 2 == 1,
        lane: Lane::default(),
        pool: None,
        name: (number % 3) as u8,
        version: (number % 4) as u8,
        units: 1,
        patience: 60,
    };
    let hosts =
        (0..HOSTS).map(|host| Event::Join { host, units: 3, zone: (host % 3) as u8, pool: (host % 2) as u8 });
    let deployments = (0..KEYS.len()).map(|number| Event::Deploy(number, number as u8, asked(number)));
    let settle = (0..4).flat_map(|_| [Event::Carry(u16::MAX), Event::ObeyAll]);
    hosts.chain(deployments).chain(settle).map(|event| (event, false, true)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever happens, and whether the planner is told all or only what changed, at once or later: the plan is the one that is
    /// made in full.
    #[test]
    fn following_changes_ends_where_planning_in_full_does(
        settled in any::<bool>(),
        events in prop::collection::vec((event(), prop::bool::weighted(0.3), prop::bool::weighted(0.8)), 1..60),
    ) {
        let mut all = if settled { beginning() } else { Vec::new() };
        all.extend(events);
        follow(&all)?;
    }
}

#[test]
fn a_change_is_thought_about_where_it_is() {
    let mut events = beginning();
    let before = events.len();
    let after = [
        Event::Carry(u16::MAX),
        Event::ObeyAll,
        Event::Silent(0),
        Event::Pass(4),
        Event::Heard(0),
        Event::Obey(1, WorkloadState::Loading),
        Event::Obey(1, WorkloadState::Ready),
        Event::Scale(2, 2),
        Event::Cordon(3, true),
    ];
    events.extend(after.map(|event| (event, false, true)));
    let (_, partial_before) = follow(&events[..before]).unwrap();
    let (plans, partial) = follow(&events).unwrap();
    assert_eq!((plans - before, partial - partial_before), (9, 9), "each of these touches a part");
}

#[test]
fn nothing_is_thought_about_when_nothing_happens() {
    let mut site = Site::new();
    let mut planner = Planner::new();
    for (event, ..) in beginning() {
        site.happen(&event);
        site.last = plan(&site.state, &site.seen, site.now).unwrap();
    }
    site.happen(&Event::Carry(u16::MAX));
    site.happen(&Event::ObeyAll);
    for _ in 0..3 {
        site.last = plan(&site.state, &site.seen, site.now).unwrap();
        site.happen(&Event::CarryStatuses(u8::MAX));
    }
    planner.tell(site.state.clone(), site.seen.clone());
    planner.plan(site.now).unwrap();
    assert_eq!(planner.decided(), Some(KEYS.len()), "the first plan thinks about all");
    planner.tell(site.state.clone(), site.seen.clone());
    site.happen(&Event::Pass(1));
    let made = planner.plan(site.now).unwrap().clone();
    assert!(made.steps.is_empty() && made.specs.is_empty(), "{:#?}", made.steps);
    assert!(lint(planner.state(), planner.observation(), site.now, &made).is_empty());
    assert_eq!(planner.decided(), Some(0));
    // Time has passed for a silent host, and nobody has planned since: what was said then is not what is said now.
    site.happen(&Event::Silent(0));
    planner.tell(site.state.clone(), site.seen.clone());
    planner.plan(site.now).unwrap();
    site.happen(&Event::Pass(61));
    assert!(!planner.check(site.now).unwrap());
    assert_eq!(planner.planned(), &plan(&site.state, &site.seen, site.now).unwrap());
    assert!(planner.check(site.now).unwrap());
}

/// Who holds the room that somebody lacks is told by name, so that it matters even where as much is held as before.
#[test]
fn a_refusal_names_who_holds_the_room_now() {
    let asked = |units, lane| Asked {
        replicas: 1,
        failures: 0,
        warm: false,
        lane,
        pool: None,
        name: 0,
        version: 0,
        units,
        patience: 60,
    };
    let mut site = Site::new();
    let events = [
        Event::Join { host: 0, units: 3, zone: 0, pool: 0 },
        Event::Join { host: 1, units: 2, zone: 0, pool: 0 },
        Event::Deploy(0, 0, asked(2, Lane::Production)),
        Event::Deploy(2, 1, asked(2, Lane::Production)),
        Event::Deploy(4, 2, asked(3, Lane::Production)),
    ];
    let mut planner = Planner::new();
    for event in &events {
        site.happen(event);
    }
    for _ in 0..4 {
        site.last = plan(&site.state, &site.seen, site.now).unwrap();
        site.happen(&Event::Carry(u16::MAX));
        site.happen(&Event::ObeyAll);
    }
    planner.tell(site.state.clone(), site.seen.clone());
    let refused = |plan: &Plan| format!("{:?}", plan.statuses[&key(4)].conditions);
    assert!(refused(planner.plan(site.now).unwrap()).contains("a/d, which is older, holds"));
    let whose = |site: &mut Site, number: usize| site.host(number).unwrap().spec.workloads.clone();
    let (first, second) = (whose(&mut site, 0), whose(&mut site, 1));
    site.host(0).unwrap().spec.workloads = second;
    site.host(1).unwrap().spec.workloads = first;
    planner.tell(site.state.clone(), site.seen.clone());
    let next = planner.plan(site.now).unwrap();
    assert_eq!(next, &plan(&site.state, &site.seen, site.now).unwrap());
    assert!(refused(next).contains("a/b-c, which is older, holds"), "{}", refused(next));
}

#[test]
fn another_leader_ends_planning_and_it_begins_again_above_it() {
    let mut site = Site::new();
    let mut planner = Planner::new();
    planner.lead(site.state.term);
    for (event, ..) in beginning() {
        site.happen(&event);
        tell_of(&mut planner, &site, &event);
        site.last = planner.plan(site.now).unwrap().clone();
    }
    site.host(4).unwrap().spec.term = 7;
    planner.host(site.host(4).unwrap().clone());
    assert_eq!(planner.plan(site.now).unwrap_err().term, 7);
    assert_eq!(planner.plan(site.now).unwrap_err().host, "h4", "it is not forgotten");
    planner.lead(8);
    site.state.term = 8;
    assert_eq!(planner.plan(site.now).unwrap(), &plan(&site.state, &site.seen, site.now).unwrap());
}

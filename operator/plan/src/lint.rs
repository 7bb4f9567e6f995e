//! An independent reading of a plan: what must hold of any plan, checked on the objects themselves, without the planner's own
//! reasoning. A finding is a bug in the planner; the operator does not apply such a plan.

mod standby;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;

use jiff::{SignedDuration, Timestamp};
use tandem_crds::{
    DeploymentRef, DeviceKind, InferenceDeployment, InferenceHost, InferenceHostSpec, WorkloadState,
};

use crate::input::{HostObservation, Model, Observation, State};
use crate::keep::MAX_KEPT;
use crate::output::{Action, Plan, Step};

/// Something that no plan may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding(pub String);

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Checks a plan against what it was made from.
#[must_use]
pub fn lint(state: &State, observation: &Observation, now: Timestamp, plan: &Plan) -> Vec<Finding> {
    let mut lint = Lint::new(state, observation, now, plan);
    lint.specs_go_forward();
    lint.changes_have_steps();
    lint.new_copies_fit_and_are_welcome();
    lint.ids_are_unique();
    lint.the_last_healthy_copy_stays();
    lint.the_last_copy_of_a_file_stays();
    lint.silent_hosts_are_given_time();
    lint.routes_name_what_answers();
    lint.statuses_are_whole();
    lint.warm_copies_stand_in();
    lint.findings
}

/// Namespace and name.
fn key(deployment: &InferenceDeployment) -> (&str, &str) {
    let metadata = &deployment.metadata;
    (metadata.namespace.as_deref().unwrap_or_default(), metadata.name.as_deref().unwrap_or_default())
}

struct Lint<'a> {
    state: &'a State,
    observation: &'a Observation,
    now: Timestamp,
    plan: &'a Plan,
    /// Stored hosts by name.
    hosts: BTreeMap<&'a str, &'a InferenceHost>,
    /// Stored deployments by namespace and name.
    deployments: HashMap<(&'a str, &'a str), &'a InferenceDeployment>,
    /// Hosts whose stored spec lists a copy, by its deployment.
    places: HashMap<(&'a str, &'a str), BTreeSet<&'a str>>,
    findings: Vec<Finding>,
}

impl<'a> Lint<'a> {
    fn new(state: &'a State, observation: &'a Observation, now: Timestamp, plan: &'a Plan) -> Self {
        let named = |host: &'a InferenceHost| Some((host.metadata.name.as_deref()?, host));
        let hosts: BTreeMap<&str, &InferenceHost> = state.hosts.iter().filter_map(named).collect();
        let mut places: HashMap<(&str, &str), BTreeSet<&str>> = HashMap::new();
        for (name, host) in &hosts {
            for of in host.spec.workloads.iter().map(|workload| &workload.deployment) {
                places.entry((&of.namespace, &of.name)).or_default().insert(name);
            }
        }
        let deployments = state.deployments.iter().map(|stored| (key(stored), stored)).collect();
        Self { state, observation, now, plan, hosts, deployments, places, findings: Vec::new() }
    }

    fn find(&mut self, finding: String) {
        self.findings.push(Finding(finding));
    }

    fn stored(&self, host: &str) -> Option<&'a InferenceHostSpec> {
        self.hosts.get(host).map(|stored| &stored.spec)
    }

    fn after(&self, host: &str) -> Option<&'a InferenceHostSpec> {
        self.plan.specs.get(host).or_else(|| self.stored(host))
    }

    fn host_names(&self) -> Vec<&'a str> {
        self.hosts.keys().copied().collect()
    }

    /// Hosts whose stored spec lists copies of a deployment.
    fn hosts_of(&self, deployment: &InferenceDeployment) -> Vec<&'a str> {
        self.places.get(&key(deployment)).into_iter().flatten().copied().collect()
    }

    fn specs_go_forward(&mut self) {
        for (host, spec) in &self.plan.specs {
            let Some(old) = self.stored(host) else {
                self.find(format!("{host} gets a spec but does not exist"));
                continue;
            };
            let (old, mut findings) = (old.clone(), Vec::new());
            if spec.term != self.state.term {
                findings.push(format!(
                    "{host} gets term {} instead of the leader's {}",
                    spec.term, self.state.term
                ));
            }
            let changed = spec.workloads != old.workloads || spec.keep_files != old.keep_files;
            if changed && spec.generation <= old.generation {
                findings.push(format!("{host} changes without a higher generation"));
            }
            if spec.unschedulable != old.unschedulable || spec.drain != old.drain {
                findings
                    .push(format!("{host} is cordoned, uncordoned or drained by a plan; that is for people"));
            }
            for workload in &spec.workloads {
                match old.workloads.iter().find(|other| other.id == workload.id) {
                    Some(before) if workload.epoch < before.epoch => {
                        findings
                            .push(format!("{} on {host} goes back to epoch {}", workload.id, workload.epoch));
                    }
                    Some(before) if workload.epoch == before.epoch => {
                        let same =
                            (&workload.files, &workload.quant, workload.context_tokens, workload.pool_tokens)
                                == (&before.files, &before.quant, before.context_tokens, before.pool_tokens);
                        if !same || workload.kv_cache != before.kv_cache || workload.model != before.model {
                            findings.push(format!(
                                "{} on {host} becomes another under the same epoch",
                                workload.id
                            ));
                        }
                    }
                    _ => {}
                }
            }
            for finding in findings {
                self.find(finding);
            }
        }
    }

    /// Every difference of a spec is some step's, and every step makes a difference.
    fn changes_have_steps(&mut self) {
        let mut findings = Vec::new();
        let mut steps: HashMap<&str, Vec<&Step>> = HashMap::new();
        for step in &self.plan.steps {
            steps.entry(&step.host).or_default().push(step);
        }
        for host in self.host_names() {
            let (Some(old), Some(new)) = (self.stored(host), self.after(host)) else { continue };
            let ids = |spec: &InferenceHostSpec| -> BTreeMap<String, u64> {
                spec.workloads.iter().map(|workload| (workload.id.clone(), workload.epoch)).collect()
            };
            let (old_ids, new_ids) = (ids(old), ids(new));
            let mut expected: BTreeSet<String> = BTreeSet::new();
            expected.extend(
                new_ids
                    .iter()
                    .filter(|(id, epoch)| old_ids.get(*id) != Some(epoch))
                    .map(|(id, _)| id.clone()),
            );
            expected.extend(old_ids.keys().filter(|id| !new_ids.contains_key(*id)).cloned());
            let stated: BTreeSet<String> = steps
                .remove(host)
                .unwrap_or_default()
                .into_iter()
                .filter_map(|step| match &step.action {
                    Action::Start { workload, .. }
                    | Action::Replace { workload, .. }
                    | Action::Promote { workload, .. }
                    | Action::Demote { workload, .. }
                    | Action::Stop { workload, .. } => Some(workload.clone()),
                    Action::Lead { .. } | Action::Revise { .. } => None,
                })
                .collect();
            if expected != stated {
                findings
                    .push(format!("steps on {host} are for {stated:?}, but its spec changes {expected:?}"));
            }
        }
        findings.extend(
            self.plan
                .steps
                .iter()
                .filter(|step| step.reason.is_empty())
                .map(|step| format!("no reason: {step}")),
        );
        findings.into_iter().for_each(|finding| self.find(finding));
    }

    fn new_copies_fit_and_are_welcome(&mut self) {
        let mut findings = Vec::new();
        for step in &self.plan.steps {
            let starts = matches!(step.action, Action::Start { .. });
            if !starts && !matches!(step.action, Action::Replace { .. }) {
                continue;
            }
            let Some(HostObservation::Known(report)) = self.observation.hosts.get(&step.host) else {
                findings.push(format!("{step}: the host is not known to be there"));
                continue;
            };
            let (Some(old), Some(new)) = (self.stored(&step.host), self.after(&step.host)) else { continue };
            if starts
                && (old.unschedulable || old.drain.is_some() || self.observation.leaving.contains(&step.host))
            {
                findings.push(format!("{step}: the host takes nothing new"));
            }
            let devices = report.devices.iter().filter(|device| device.kind == DeviceKind::Cpu);
            let offered: u64 = devices.map(|device| device.available_bytes).sum();
            let taken: u64 = new.workloads.iter().map(|workload| workload.memory_bytes).sum();
            if taken > offered {
                findings.push(format!("{step}: {taken} bytes would be taken of {offered}"));
            }
            if let Some(deployment) = step.deployment() {
                let stored = self.deployments.get(&(deployment.namespace.as_str(), deployment.name.as_str()));
                let labels = self.hosts.get(step.host.as_str());
                let labels = labels.and_then(|host| host.metadata.labels.clone()).unwrap_or_default();
                let selector =
                    stored.and_then(|stored| stored.spec.placement.host_selector.clone()).unwrap_or_default();
                if selector.match_labels.iter().any(|(key, value)| labels.get(key) != Some(value)) {
                    findings.push(format!("{step}: the host does not match the selector"));
                }
                if !matches!(self.state.models.get(deployment), Some(Model::Resolved(_))) {
                    findings.push(format!("{step}: the model is not resolved"));
                }
            }
        }
        findings.into_iter().for_each(|finding| self.find(finding));
    }

    fn ids_are_unique(&mut self) {
        let mut seen = BTreeSet::new();
        let mut twice = Vec::new();
        for host in self.host_names() {
            for workload in self.after(host).into_iter().flat_map(|spec| &spec.workloads) {
                if !seen.insert(workload.id.clone()) {
                    twice.push(format!("{} is assigned twice", workload.id));
                }
            }
        }
        twice.into_iter().for_each(|finding| self.find(finding));
    }

    /// Of a deployment that shall serve and does, one ready copy stays.
    fn the_last_healthy_copy_stays(&mut self) {
        let mut findings = Vec::new();
        for deployment in self.state.deployments.iter().filter(|deployment| deployment.spec.replicas > 0) {
            let mut before = 0;
            let mut after = 0;
            for host in self.hosts_of(deployment) {
                let Some(HostObservation::Known(report)) = self.observation.hosts.get(host) else {
                    continue;
                };
                let (Some(old), Some(new)) = (self.stored(host), self.after(host)) else { continue };
                let own = |workload: &&tandem_crds::WorkloadSpec| {
                    deployment.metadata.name.as_ref() == Some(&workload.deployment.name)
                        && deployment.metadata.namespace.as_ref() == Some(&workload.deployment.namespace)
                };
                for workload in old.workloads.iter().filter(own) {
                    let serves = report.workloads.iter().any(|status| {
                        (&status.id, status.epoch) == (&workload.id, workload.epoch)
                            && status.state == WorkloadState::Ready
                    });
                    before += u32::from(serves);
                    let kept = new
                        .workloads
                        .iter()
                        .any(|other| (&other.id, other.epoch) == (&workload.id, workload.epoch));
                    after += u32::from(serves && kept);
                }
            }
            if before > 0 && after == 0 {
                let name = deployment.metadata.name.as_deref().unwrap_or_default();
                findings.push(format!("{name} loses its last healthy copy"));
            }
        }
        findings.into_iter().for_each(|finding| self.find(finding));
    }

    /// Of a file that a deployment wants, one host that is known to have it goes on keeping it. A host whose list is full is
    /// not asked.
    fn the_last_copy_of_a_file_stays(&mut self) {
        let mut wanted = BTreeSet::new();
        for deployment in &self.state.deployments {
            let status = deployment.status.as_ref().and_then(|status| status.model.as_ref());
            let (namespace, name) = key(deployment);
            let of = DeploymentRef { namespace: namespace.to_owned(), name: name.to_owned() };
            let files = match self.state.models.get(&of) {
                Some(Model::Resolved(resolved)) => resolved.files.as_slice(),
                _ => status.map_or(&[][..], |model| &model.files),
            };
            wanted.extend(files.iter().map(|file| &file.sha256));
        }
        let keeps = |spec: &InferenceHostSpec, digest: &String| {
            spec.keep_files.contains(digest)
                || spec
                    .workloads
                    .iter()
                    .flat_map(|workload| &workload.files)
                    .any(|file| file.sha256 == *digest)
        };
        let (mut before, mut after) = (BTreeSet::new(), BTreeSet::new());
        for host in self.host_names() {
            let Some(HostObservation::Known(report)) = self.observation.hosts.get(host) else { continue };
            let (Some(old), Some(new)) = (self.stored(host), self.after(host)) else { continue };
            for digest in report.weights.iter().flat_map(|weights| &weights.files) {
                if keeps(old, digest) {
                    before.insert(digest.clone());
                }
                if keeps(new, digest) || new.keep_files.len() >= MAX_KEPT {
                    after.insert(digest.clone());
                }
            }
        }
        let lost: Vec<String> = wanted
            .into_iter()
            .filter(|digest| before.contains(*digest) && !after.contains(*digest))
            .map(|digest| format!("the last known copy of the file {digest} is let go of"))
            .collect();
        lost.into_iter().for_each(|finding| self.find(finding));
    }

    /// While a host's silence is young, nothing starts because of it: what its deployments start, they start for other
    /// reasons, which their reasons must not belie.
    fn silent_hosts_are_given_time(&mut self) {
        let mut findings = Vec::new();
        let blaming: Vec<&Step> = self
            .plan
            .steps
            .iter()
            .filter(|step| matches!(step.action, Action::Start { .. }) && step.reason.contains("is silent"))
            .collect();
        for (host, seen) in &self.observation.hosts {
            let HostObservation::Unknown { since } = seen else { continue };
            let (Some(old), Some(new)) = (self.stored(host), self.after(host)) else { continue };
            let silence = format!("host {host} is silent");
            for of in blaming
                .iter()
                .filter(|step| step.reason.contains(&silence))
                .filter_map(|step| step.deployment())
            {
                let Some(deployment) = self.deployments.get(&(of.namespace.as_str(), of.name.as_str()))
                else {
                    continue;
                };
                let patience = i64::from(deployment.spec.redundancy.replace_after_seconds);
                if self.now.duration_since(*since) < SignedDuration::from_secs(patience) {
                    findings.push(format!("{host} is not silent for long enough to be replaced"));
                }
            }
            if self.plan.frozen.is_none() {
                continue;
            }
            for workload in old.workloads.iter().filter(|workload| !new.workloads.contains(workload)) {
                let of = &workload.deployment;
                let deployment = self.deployments.get(&(of.namespace.as_str(), of.name.as_str()));
                if deployment.is_some_and(|deployment| deployment.spec.replicas > 0) {
                    findings.push(format!("{host} loses copies while placement is frozen"));
                }
            }
        }
        findings.into_iter().for_each(|finding| self.find(finding));
    }

    fn routes_name_what_answers(&mut self) {
        let mut owners = BTreeSet::new();
        let mut findings = Vec::new();
        for route in &self.plan.routes {
            if route.owns_short_name && !owners.insert(&route.model) {
                findings.push(format!("{} has two owners", route.model));
            }
            for replica in &route.replicas {
                let seen = self.observation.hosts.get(&replica.host);
                if let Some(HostObservation::Known(report)) = seen {
                    let answers = |status: &tandem_crds::WorkloadStatus| {
                        (&status.id, status.epoch) == (&replica.workload, replica.epoch)
                            && matches!(status.state, WorkloadState::Ready | WorkloadState::Draining)
                    };
                    if !report.workloads.iter().any(answers) {
                        findings.push(format!(
                            "{} on {} is routed to but does not answer",
                            replica.workload, replica.host
                        ));
                    }
                }
                if seen.is_none() {
                    findings.push(format!(
                        "{} on {} is routed to but was never seen",
                        replica.workload, replica.host
                    ));
                }
            }
        }
        findings.extend(
            self.plan
                .routes
                .iter()
                .filter(|route| !owners.contains(&route.model))
                .map(|route| format!("{} has no owner", route.model)),
        );
        findings.into_iter().for_each(|finding| self.find(finding));
    }

    fn statuses_are_whole(&mut self) {
        let mut findings = Vec::new();
        for (key, status) in &self.plan.statuses {
            let types: Vec<&str> =
                status.conditions.iter().map(|condition| condition.type_.as_str()).collect();
            if types != ["Ready", "Redundant", "Degraded", "Reconciling", "Stalled"] {
                findings.push(format!("{key} has the conditions {types:?}"));
            }
            findings.extend(
                status
                    .conditions
                    .iter()
                    .filter(|condition| condition.message.is_empty() || condition.reason.is_empty())
                    .map(|condition| format!("{key}: {} says nothing", condition.type_)),
            );
        }
        if self.plan.statuses.len() != self.state.deployments.len() {
            findings.push("some deployment has no status".to_owned());
        }
        findings.into_iter().for_each(|finding| self.find(finding));
    }
}

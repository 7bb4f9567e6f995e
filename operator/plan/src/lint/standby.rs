//! What no plan may do to warm copies: serve twice for one loss, leave fewer serving than shall, route to one that is only warm,
//! or forget the memory that one will need.

use std::collections::BTreeMap;

use tandem_crds::{InferenceDeployment, Standby, WorkloadMode, WorkloadSpec, WorkloadState, WorkloadStatus};

use super::Lint;
use crate::input::HostObservation;

/// One workload before and after the plan.
struct Turn<'a> {
    host: &'a str,
    before: &'a WorkloadSpec,
    after: &'a WorkloadSpec,
}

impl Turn<'_> {
    fn is(&self, from: WorkloadMode, to: WorkloadMode) -> bool {
        (self.before.mode, self.after.mode) == (from, to)
    }

    /// Whether only mode and start number change, and what needs no start.
    fn is_same_version(&self) -> bool {
        let (before, after) = (self.before, self.after);
        let mut alike = after.clone();
        (alike.epoch, alike.mode, alike.memory_bytes) = (before.epoch, before.mode, before.memory_bytes);
        (alike.source, alike.sampling) = (before.source.clone(), before.sampling.clone());
        alike == *before
    }
}

impl<'a> Lint<'a> {
    pub(super) fn warm_copies_stand_in(&mut self) {
        let mut findings = Vec::new();
        for deployment in &self.state.deployments {
            let name = deployment.metadata.name.as_deref().unwrap_or_default();
            let turns = self.turns(deployment);
            let replicas = deployment.spec.replicas as usize;
            let hot = deployment.spec.redundancy.standby == Standby::Hot;
            let serving = turns.iter().filter(|turn| self.serves(turn) == Some(true)).count();
            for turn in turns.iter().filter(|turn| turn.before.mode != turn.after.mode) {
                let id = &turn.after.id;
                if turn.before.epoch == turn.after.epoch {
                    findings.push(format!("{id} changes between serving and warm under one epoch"));
                }
                let same_version = turn.before.files == turn.after.files;
                if same_version && turn.before.memory_bytes != turn.after.memory_bytes {
                    findings
                        .push(format!("{id} reserves another memory when it serves than while it is warm"));
                }
                // A copy of an older version that serves nobody is replaced by whatever is asked for now.
                let takes = turn.is_same_version() || self.is_ready(turn);
                if turn.is(WorkloadMode::Serve, WorkloadMode::Warm) && (hot || takes && serving < replicas) {
                    findings.push(format!("{name} has {serving} copies that serve, and {id} is made warm"));
                }
                if turn.is(WorkloadMode::Warm, WorkloadMode::Serve) && !hot {
                    let alike = turns
                        .iter()
                        .filter(|other| other.after.files == turn.after.files)
                        .collect::<Vec<_>>();
                    let promoted = alike
                        .iter()
                        .filter(|other| other.is(WorkloadMode::Warm, WorkloadMode::Serve))
                        .count();
                    let there = alike
                        .iter()
                        .filter(|other| self.welcomes(deployment, other.host) && self.serves(other).is_some())
                        .count();
                    let one_more = usize::from(self.has_a_spare(deployment, &alike));
                    if there + promoted > replicas + one_more {
                        findings
                            .push(format!("{name} has {there} of {replicas}, and {promoted} are promoted"));
                    }
                }
            }
        }
        for replica in self.plan.routes.iter().flat_map(|route| &route.replicas) {
            let workloads = self.after(&replica.host).into_iter().flat_map(|spec| &spec.workloads);
            let warm = workloads.filter(|workload| !workload.mode.is_serve());
            if warm.into_iter().any(|w| (&w.id, w.epoch) == (&replica.workload, replica.epoch)) {
                findings.push(format!("{} on {} is routed to and only warm", replica.workload, replica.host));
            }
        }
        findings.into_iter().for_each(|finding| self.find(finding));
    }

    /// A deployment's workloads that stay.
    fn turns(&self, deployment: &InferenceDeployment) -> Vec<Turn<'a>> {
        let own = |workload: &&WorkloadSpec| {
            deployment.metadata.name.as_ref() == Some(&workload.deployment.name)
                && deployment.metadata.namespace.as_ref() == Some(&workload.deployment.namespace)
        };
        let mut turns = Vec::new();
        for host in self.hosts_of(deployment) {
            let (Some(old), Some(new)) = (self.stored(host), self.after(host)) else { continue };
            for before in old.workloads.iter().filter(own) {
                if let Some(after) = new.workloads.iter().find(|other| other.id == before.id) {
                    turns.push(Turn { host, before, after });
                }
            }
        }
        turns
    }

    /// Whether one of these copies could go and the promise would hold: then one more may serve, until that one is gone.
    fn has_a_spare(&self, deployment: &InferenceDeployment, copies: &[&Turn]) -> bool {
        let mut by_host: BTreeMap<&str, u32> = BTreeMap::new();
        for copy in copies {
            *by_host.entry(copy.host).or_default() += 1;
        }
        by_host.keys().any(|host| {
            let without = by_host.iter().map(|(other, count)| count - u32::from(other == host));
            let mut without: Vec<u32> = without.collect();
            without.sort_unstable_by(|a, b| b.cmp(a));
            let failures = deployment.spec.redundancy.host_failures as usize;
            without.iter().skip(failures).sum::<u32>() >= deployment.spec.replicas
        })
    }

    /// Whether a workload serves before the plan.
    fn is_ready(&self, turn: &Turn) -> bool {
        let Some(HostObservation::Known(report)) = self.observation.hosts.get(turn.host) else {
            return false;
        };
        let same =
            |status: &&WorkloadStatus| (&status.id, status.epoch) == (&turn.before.id, turn.before.epoch);
        report.workloads.iter().find(same).is_some_and(|status| status.state == WorkloadState::Ready)
    }

    /// Whether a workload that is left as it is serves (true) or is about to (false); none if neither.
    fn serves(&self, turn: &Turn) -> Option<bool> {
        let Some(HostObservation::Known(report)) = self.observation.hosts.get(turn.host) else {
            return None;
        };
        if !turn.after.mode.is_serve() || turn.before.epoch != turn.after.epoch {
            return None;
        }
        let status =
            report.workloads.iter().find(|s| (&s.id, s.epoch) == (&turn.before.id, turn.before.epoch));
        match status.map(|status| (status.state, status.restarts)) {
            Some((WorkloadState::Ready, _)) => Some(true),
            None | Some((WorkloadState::Starting | WorkloadState::Loading, 0)) => Some(false),
            Some(_) => None,
        }
    }

    /// Whether a host may keep what it has of a deployment.
    fn welcomes(&self, deployment: &InferenceDeployment, host: &str) -> bool {
        let stored = self.hosts.get(host);
        let labels = stored.and_then(|host| host.metadata.labels.clone()).unwrap_or_default();
        let selector = deployment.spec.placement.host_selector.clone().unwrap_or_default();
        !self.observation.leaving.contains(host)
            && stored.is_some_and(|host| host.spec.drain.is_none())
            && selector.match_labels.iter().all(|(key, value)| labels.get(key) == Some(value))
    }
}

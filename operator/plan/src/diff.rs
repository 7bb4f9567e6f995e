//! From decisions to what is written: each changed host's whole spec, and the steps with their reasons.

use std::collections::{BTreeMap, HashMap};

use tandem_crds::{InferenceHostSpec, WorkloadMode, WorkloadSpec};

use crate::input::{Model, Resolved};
use crate::output::{Action, Step, Waiting};
use crate::parse::{Host, Wanted, World};
use crate::place::Decision;
use crate::roll;

/// Longest id: a DNS label.
const MAX_ID: usize = 63;

#[derive(Default)]
pub(crate) struct Diff {
    pub(crate) steps: Vec<Step>,
    pub(crate) specs: BTreeMap<String, InferenceHostSpec>,
    pub(crate) waiting: Vec<Waiting>,
}

/// What a difference is made from, beside the world. It may leave out whatever changes nothing.
pub(crate) struct Changing<'a> {
    /// Hosts whose specs carry an earlier term, in order.
    pub(crate) led: Vec<usize>,
    /// Deployments and what becomes of them, oldest first.
    pub(crate) deployments: Vec<(usize, &'a Decision)>,
    /// The highest start number of an id that some host has or remembers.
    pub(crate) known: &'a dyn Fn(&str) -> Option<u64>,
    /// Files to keep, of those hosts that shall keep others than they do.
    pub(crate) kept: BTreeMap<usize, Vec<String>>,
}

pub(crate) fn diff<'a>(world: &'a World<'a>, changing: Changing<'a>) -> Diff {
    let Changing { led, deployments, known, kept } = changing;
    let mut draft =
        Draft { world, known, specs: BTreeMap::new(), begun: HashMap::new(), diff: Diff::default() };
    for host in led {
        draft.spec(host).term = world.term;
        let reason = "a new leader fences earlier ones out".to_owned();
        draft.step(host, Action::Lead { term: world.term }, reason);
    }
    for copy in world.orphans() {
        let workload = copy.workload;
        draft.spec(copy.host).workloads.retain(|other| other.id != workload.id);
        let action = Action::Stop { deployment: workload.deployment.clone(), workload: workload.id.clone() };
        draft.step(copy.host, action, format!("{} is deleted", workload.deployment));
    }
    for (deployment, decision) in deployments {
        draft.deployment(&world.deployments[deployment], decision);
    }
    draft.finish(kept)
}

/// Every id that some host has or remembers, with the highest epoch known of it.
pub(crate) fn known<'a>(world: &World<'a>) -> HashMap<&'a str, u64> {
    let mut known: HashMap<&str, u64> = HashMap::new();
    for (id, epoch) in world.hosts.iter().flat_map(known_by) {
        let highest = known.entry(id).or_default();
        *highest = epoch.max(*highest);
    }
    known
}

/// The ids that one host has or remembers.
pub(crate) fn known_by<'a>(host: &Host<'a>) -> impl Iterator<Item = (&'a str, u64)> + use<'a> {
    let assigned = host.spec.workloads.iter().map(|workload| (workload.id.as_str(), workload.epoch));
    let reported = host.report.into_iter().flat_map(|report| &report.workloads);
    assigned.chain(reported.map(|status| (status.id.as_str(), status.epoch)))
}

/// Whether what becomes of a deployment changes any host's spec, or leaves something waiting.
pub(crate) fn moves(wanted: &Wanted, decision: &Decision) -> bool {
    let Decision { start, replace, stop, promote, demote, waiting, .. } = decision;
    let decided = [start, replace, stop, promote, demote, waiting].iter().any(|list| !list.is_empty());
    decided
        || match wanted.model {
            Model::Resolved(resolved) => {
                wanted.copies.iter().any(|copy| revises(wanted, resolved, copy.workload))
            }
            Model::Resolving | Model::Failed(_) => false,
        }
}

fn revises(wanted: &Wanted, resolved: &Resolved, running: &WorkloadSpec) -> bool {
    !roll::is_outdated(wanted, resolved, running) && roll::is_revised(wanted, resolved, running)
}

struct Draft<'a> {
    world: &'a World<'a>,
    /// Of those hosts that change.
    specs: BTreeMap<usize, InferenceHostSpec>,
    /// See [`Changing::known`].
    known: &'a dyn Fn(&str) -> Option<u64>,
    /// The same of what this plan starts.
    begun: HashMap<String, u64>,
    diff: Diff,
}

impl Draft<'_> {
    /// What a host's generation becomes if its workloads change.
    fn next(&self, host: usize) -> u64 {
        let host = &self.world.hosts[host];
        let seen = host.report.and_then(|report| report.observed_generation).unwrap_or(0);
        host.spec.generation.max(seen) + 1
    }

    /// A host's spec, to be changed.
    fn spec(&mut self, host: usize) -> &mut InferenceHostSpec {
        self.specs.entry(host).or_insert_with(|| self.world.hosts[host].spec.clone())
    }

    fn step(&mut self, host: usize, action: Action, reason: String) {
        self.diff.steps.push(Step { host: self.world.hosts[host].name.to_owned(), action, reason });
    }

    fn deployment(&mut self, wanted: &Wanted, decision: &Decision) {
        let changed = |index: usize| {
            let mut changes = [&decision.stop, &decision.replace, &decision.promote, &decision.demote]
                .into_iter()
                .flatten();
            changes.any(|(other, _)| *other == index)
        };
        if let Model::Resolved(resolved) = wanted.model {
            for (index, copy) in wanted.copies.iter().enumerate() {
                let running = copy.workload;
                if changed(index) || !revises(wanted, resolved, running) {
                    continue;
                }
                let (id, epoch, mode) = (running.id.clone(), running.epoch, running.mode);
                let action = Action::Revise { deployment: wanted.key.clone(), workload: id.clone() };
                self.put(copy.host, roll::workload(wanted, resolved, id, epoch, mode));
                let reason = "its source, sampling or size changed, which needs no start";
                self.step(copy.host, action, reason.to_owned());
            }
            for (index, reason) in &decision.replace {
                let copy = &wanted.copies[*index];
                let id = copy.workload.id.clone();
                let epoch = self.epoch(&id, copy.host);
                let mode = mode(decision.warm_replaced.contains(index));
                self.put(copy.host, roll::workload(wanted, resolved, id.clone(), epoch, mode));
                let action = Action::Replace { deployment: wanted.key.clone(), workload: id, epoch };
                self.step(copy.host, action, reason.clone());
            }
            for (number, (host, reason)) in decision.start.iter().enumerate() {
                let id = self.free_id(&wanted.key.namespace, &wanted.key.name);
                let epoch = self.epoch(&id, *host);
                let mode = mode(decision.warm_starts.contains(&number));
                let kept = if mode.is_serve() { "" } else { "; it is kept warm" };
                self.put(*host, roll::workload(wanted, resolved, id.clone(), epoch, mode));
                let action = Action::Start { deployment: wanted.key.clone(), workload: id, epoch };
                self.step(*host, action, format!("{reason}{kept}"));
            }
        }
        for (mode, changes) in
            [(WorkloadMode::Serve, &decision.promote), (WorkloadMode::Warm, &decision.demote)]
        {
            for (index, reason) in changes {
                self.turn(wanted, *index, mode, reason);
            }
        }
        for (index, reason) in &decision.stop {
            let copy = &wanted.copies[*index];
            self.spec(copy.host).workloads.retain(|other| other.id != copy.workload.id);
            let action = Action::Stop { deployment: wanted.key.clone(), workload: copy.workload.id.clone() };
            self.step(copy.host, action, reason.clone());
        }
        self.diff.waiting.extend(decision.waiting.iter().map(|(index, reason)| {
            let copy = &wanted.copies[*index];
            Waiting {
                host: self.world.hosts[copy.host].name.to_owned(),
                deployment: wanted.key.clone(),
                workload: copy.workload.id.clone(),
                reason: reason.clone(),
            }
        }));
    }

    /// A copy serves from now on, or is kept warm: the same copy, of whatever version it is, under a new start number.
    fn turn(&mut self, wanted: &Wanted, index: usize, mode: WorkloadMode, reason: &str) {
        let copy = &wanted.copies[index];
        let (deployment, workload) = (wanted.key.clone(), copy.workload.id.clone());
        let epoch = self.epoch(&workload, copy.host);
        self.put(copy.host, WorkloadSpec { epoch, mode, ..copy.workload.clone() });
        let action = match mode {
            WorkloadMode::Serve => Action::Promote { deployment, workload, epoch },
            WorkloadMode::Warm => Action::Demote { deployment, workload, epoch },
        };
        self.step(copy.host, action, reason.to_owned());
    }

    /// Puts a workload in place of the one of its id, or beside the others.
    fn put(&mut self, host: usize, workload: WorkloadSpec) {
        let workloads = &mut self.spec(host).workloads;
        match workloads.iter_mut().find(|other| other.id == workload.id) {
            Some(place) => *place = workload,
            None => workloads.push(workload),
        }
    }

    /// Above every epoch that is known of an id, and never below the generation that first carries it: a host's
    /// generation only grows, so even an id that was forgotten starts above what that host has seen of it.
    fn epoch(&mut self, id: &str, host: usize) -> u64 {
        let newest = self.begun.get(id).copied().or_else(|| (self.known)(id)).unwrap_or(0);
        let epoch = self.next(host).max(newest + 1);
        self.begun.insert(id.to_owned(), epoch);
        epoch
    }

    /// The lowest number that no host has or remembers.
    fn free_id(&mut self, namespace: &str, name: &str) -> String {
        let mut number = 1_u64;
        loop {
            let id = workload_id(namespace, name, number);
            if (self.known)(&id).is_none() && !self.begun.contains_key(&id) {
                return id;
            }
            number += 1;
        }
    }

    fn finish(mut self, mut kept: BTreeMap<usize, Vec<String>>) -> Diff {
        let mut changed = std::mem::take(&mut self.specs);
        for host in kept.keys() {
            changed.entry(*host).or_insert_with(|| self.world.hosts[*host].spec.clone());
        }
        for (index, mut spec) in changed {
            let host = &self.world.hosts[index];
            if let Some(kept) = kept.remove(&index) {
                spec.keep_files = kept;
            }
            if spec.workloads != host.spec.workloads || spec.keep_files != host.spec.keep_files {
                spec.generation = self.next(index);
                spec.workloads.sort_by(|a, b| a.id.cmp(&b.id));
            }
            if spec != *host.spec {
                self.diff.specs.insert(host.name.to_owned(), spec);
            }
        }
        self.diff
    }
}

fn mode(warm: bool) -> WorkloadMode {
    if warm { WorkloadMode::Warm } else { WorkloadMode::Serve }
}

/// `<namespace>-<name>-<number>`; one that is too long for a DNS label is cut, and a hash of the whole keeps it apart.
fn workload_id(namespace: &str, name: &str, number: u64) -> String {
    let whole = format!("{namespace}-{name}");
    let tail = format!("-{number}");
    if whole.len() + tail.len() <= MAX_ID {
        return whole + &tail;
    }
    let hash =
        whole.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    let tail = format!("-{hash:08x}{tail}");
    let head: String = whole.chars().take(MAX_ID - tail.len()).collect();
    format!("{}{tail}", head.trim_end_matches('-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_dns_labels() {
        assert_eq!(workload_id("llm", "kimi", 3), "llm-kimi-3");
        let long = workload_id(&"n".repeat(63), &"m".repeat(63), 12);
        assert!(long.len() <= MAX_ID && long.ends_with("-12"), "{long}");
        assert_ne!(long, workload_id(&"n".repeat(63), &"k".repeat(63), 12));
    }
}

//! From decisions to what is written: each changed host's whole spec, and the steps with their reasons.

use std::collections::{BTreeMap, HashMap};

use tandem_crds::{InferenceHostSpec, WorkloadMode, WorkloadSpec};

use crate::input::Model;
use crate::keep;
use crate::output::{Action, Step, Waiting};
use crate::parse::{Wanted, World};
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

pub(crate) fn diff(world: &World, decisions: &[Decision]) -> Diff {
    let mut draft = Draft::new(world);
    for (index, host) in world.hosts.iter().enumerate() {
        if host.spec.term < world.term {
            draft.spec(index).term = world.term;
            draft.step(
                index,
                Action::Lead { term: world.term },
                "a new leader fences earlier ones out".to_owned(),
            );
        }
    }
    for copy in &world.orphans {
        let workload = copy.workload;
        draft.spec(copy.host).workloads.retain(|other| other.id != workload.id);
        let action = Action::Stop { deployment: workload.deployment.clone(), workload: workload.id.clone() };
        draft.step(copy.host, action, format!("{} is deleted", workload.deployment));
    }
    for (wanted, decision) in world.deployments.iter().zip(decisions) {
        draft.deployment(wanted, decision);
    }
    draft.finish()
}

struct Draft<'a> {
    world: &'a World<'a>,
    /// Of those hosts that change.
    specs: BTreeMap<usize, InferenceHostSpec>,
    /// What each host's generation becomes if its workloads change.
    next: Vec<u64>,
    /// Every id that some host has or remembers, with the highest epoch known of it.
    known: HashMap<&'a str, u64>,
    /// The same of what this plan starts.
    begun: HashMap<String, u64>,
    diff: Diff,
}

impl<'a> Draft<'a> {
    fn new(world: &'a World<'a>) -> Self {
        let mut known: HashMap<&str, u64> = HashMap::new();
        for host in &world.hosts {
            let assigned = host.spec.workloads.iter().map(|workload| (&workload.id, workload.epoch));
            let reported = host.report.into_iter().flat_map(|report| &report.workloads);
            for (id, epoch) in assigned.chain(reported.map(|status| (&status.id, status.epoch))) {
                let highest = known.entry(id).or_default();
                *highest = epoch.max(*highest);
            }
        }
        let next = |host: &crate::parse::Host| {
            let seen = host.report.and_then(|report| report.observed_generation).unwrap_or(0);
            host.spec.generation.max(seen) + 1
        };
        Self {
            world,
            specs: BTreeMap::new(),
            next: world.hosts.iter().map(next).collect(),
            known,
            begun: HashMap::new(),
            diff: Diff::default(),
        }
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
                if changed(index)
                    || roll::is_outdated(wanted, resolved, running)
                    || !roll::is_revised(wanted, resolved, running)
                {
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
        let newest = self.begun.get(id).or_else(|| self.known.get(id)).copied().unwrap_or(0);
        let epoch = self.next[host].max(newest + 1);
        self.begun.insert(id.to_owned(), epoch);
        epoch
    }

    /// The lowest number that no host has or remembers.
    fn free_id(&mut self, namespace: &str, name: &str) -> String {
        let mut number = 1_u64;
        loop {
            let id = workload_id(namespace, name, number);
            if !self.known.contains_key(id.as_str()) && !self.begun.contains_key(&id) {
                return id;
            }
            number += 1;
        }
    }

    fn finish(mut self) -> Diff {
        let kept = keep::keepers(self.world);
        for (index, (host, kept)) in self.world.hosts.iter().zip(kept).enumerate() {
            let same_files = host.spec.keep_files.iter().map(String::as_str).eq(kept.iter().copied());
            let Some(mut spec) =
                self.specs.remove(&index).or_else(|| (!same_files).then(|| host.spec.clone()))
            else {
                continue;
            };
            spec.keep_files = kept.into_iter().map(str::to_owned).collect();
            if spec.workloads != host.spec.workloads || spec.keep_files != host.spec.keep_files {
                spec.generation = self.next[index];
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

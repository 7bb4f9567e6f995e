//! Which copies start, are replaced and stop. Deployments are served oldest first, each by the same few rules:
//!
//! 1. A copy *counts* if it is what the deployment asks for, on a host that may keep it and is not lost.
//! 2. Copies start until the counted ones hold the promise (`replicas` remain after any `hostFailures` hosts vanish), or
//!    as much of it as the hosts allow. The score says where.
//! 3. Copies that don't count stop once ready ones carry the promise without them; never the last healthy one.
//! 4. Counted copies that the promise does not need stop, too, those first that serve least.
//! 5. Of copies that count, all serve with `standby: Hot`; with `Warm`, `replicas` of them do, and the others are kept warm:
//!    see `modes`.
//! 6. Where a new version finds no room beside the old one, copies are replaced in their own place, one at a time.

mod modes;

use std::cmp::Reverse;
use std::collections::BTreeSet;

use jiff::Timestamp;
use tandem_crds::InferenceDeploymentSpec;

pub(crate) use modes::SUSPECTED;

use crate::input::{Model, Resolved};
use crate::parse::{Copy, Host, Presence, Wanted, World};
use crate::refusal::{self, Refusal};
use crate::roll::is_outdated;
use crate::size::{MAX_WORKLOADS, budget};
use crate::survive::survivors;

/// Label that says which zone a host is in.
const ZONE: &str = "topology.kubernetes.io/zone";

/// What becomes of one deployment. Copies are named by their index in [`Wanted::copies`].
#[derive(Default)]
pub(crate) struct Decision {
    /// Hosts on which a new copy starts, with the reason.
    pub(crate) start: Vec<(usize, String)>,
    /// Copies that start again in their own place.
    pub(crate) replace: Vec<(usize, String)>,
    pub(crate) stop: Vec<(usize, String)>,
    /// Warm copies that serve from now on.
    pub(crate) promote: Vec<(usize, String)>,
    /// Copies that serve and are kept warm from now on.
    pub(crate) demote: Vec<(usize, String)>,
    /// Which of `start`, by their place in it, are kept warm.
    pub(crate) warm_starts: BTreeSet<usize>,
    /// Which of `replace`, by their copy, are kept warm.
    pub(crate) warm_replaced: BTreeSet<usize>,
    /// Copies that shall go and can't yet.
    pub(crate) waiting: Vec<(usize, String)>,
    /// Why the promise can't be held with these hosts.
    pub(crate) refusal: Option<Refusal>,
    /// Whether copies run that are no longer what is asked for.
    pub(crate) outdated: bool,
    /// Why a new version can't be applied.
    pub(crate) blocked: Option<String>,
    /// Copies that count, started ones included.
    pub(crate) counted: u32,
    /// Whether every counted copy serves or is warm, as it shall, and nothing else is left over.
    pub(crate) settled: bool,
    /// Copies on hosts that are silent, but not yet for so long that they are lost.
    pub(crate) awaited: Vec<(usize, Timestamp)>,
    /// Copies on hosts that are lost.
    pub(crate) lost: Vec<usize>,
}

/// What there is left to place on: bytes by host and kind of device are one number while copies only run on the CPU.
struct Room {
    /// Negative where more is taken than is offered now, because other programs grew.
    free: Vec<i128>,
    slots: Vec<usize>,
}

impl Room {
    fn of(world: &World, spec: &InferenceDeploymentSpec, taken: &[(u64, usize)]) -> Self {
        let mut room = Self { free: Vec::new(), slots: Vec::new() };
        for (host, (bytes, workloads)) in world.hosts.iter().zip(taken) {
            let offered = host.report.map_or(0, |report| budget(report, &spec.placement.accelerators));
            room.free.push(i128::from(offered) - i128::from(*bytes));
            room.slots.push(MAX_WORKLOADS.saturating_sub(*workloads));
        }
        room
    }

    fn bytes(&self, host: usize) -> u64 {
        u64::try_from(self.free[host].max(0)).unwrap_or(u64::MAX)
    }

    fn copies(&self, host: usize, need: u64) -> u32 {
        let by_bytes = self.bytes(host).checked_div(need).unwrap_or(0);
        u32::try_from(by_bytes.min(self.slots[host] as u64)).unwrap_or(u32::MAX)
    }

    fn take(&mut self, host: usize, bytes: u64) {
        self.free[host] -= i128::from(bytes);
        self.slots[host] = self.slots[host].saturating_sub(1);
    }

    fn give(&mut self, host: usize, bytes: u64) {
        self.free[host] += i128::from(bytes);
        self.slots[host] += 1;
    }
}

/// Where a copy goes: the least score wins, and the order of the fields is the policy.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Score<'a> {
    /// Spread: a host's loss takes all copies on it.
    copies_here: u32,
    /// Spread further: what fails together stands together.
    copies_in_zone: u32,
    /// Share the work.
    workloads_here: usize,
    /// Fill the gap that fits best, so that large ones stay for large models.
    left_over: u64,
    /// Same input, same plan.
    name: &'a str,
}

/// Which copy the promise misses least: the least goes first.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Dispensable<'a> {
    stands: bool,
    /// Copies of its kind, serving or warm, are no more than there shall be.
    of_scarce_mode: bool,
    schedulable: bool,
    copies_here: Reverse<u32>,
    workloads_here: Reverse<usize>,
    id: Reverse<&'a str>,
}

/// Why a copy does not count.
#[derive(Clone, PartialEq, Eq)]
enum Role {
    Counted,
    Outdated,
    Leaving(String),
    Lost,
}

pub(crate) fn decide(world: &World) -> Vec<Decision> {
    let mut taken = vec![(0_u64, 0_usize); world.hosts.len()];
    for copy in world.deployments.iter().flat_map(|wanted| &wanted.copies) {
        let (bytes, workloads) = &mut taken[copy.host];
        *bytes = bytes.saturating_add(copy.workload.memory_bytes);
        *workloads += 1;
    }
    let mut decisions: Vec<Decision> = Vec::with_capacity(world.deployments.len());
    for wanted in &world.deployments {
        let mut one = One::new(world, wanted, &taken);
        let decision = one.decide();
        // What stops keeps its room in this plan; what starts takes it at once.
        for (host, _) in &decision.start {
            let (bytes, workloads) = &mut taken[*host];
            *bytes = bytes.saturating_add(one.need);
            *workloads += 1;
        }
        for (copy, _) in &decision.replace {
            let copy = &wanted.copies[*copy];
            let (bytes, _) = &mut taken[copy.host];
            *bytes = bytes.saturating_sub(copy.workload.memory_bytes).saturating_add(one.need);
        }
        decisions.push(decision);
    }
    decisions
}

/// One deployment's turn.
struct One<'a> {
    world: &'a World<'a>,
    wanted: &'a Wanted<'a>,
    replicas: u32,
    failures: u32,
    need: u64,
    room: Room,
    /// Workloads by host, of all deployments.
    crowd: Vec<usize>,
    roles: Vec<Role>,
    /// Counted copies by host, with those that start.
    counted: Vec<u32>,
    decision: Decision,
}

impl<'a> One<'a> {
    fn new(world: &'a World<'a>, wanted: &'a Wanted<'a>, taken: &[(u64, usize)]) -> Self {
        Self {
            world,
            wanted,
            replicas: wanted.spec.replicas,
            failures: wanted.spec.redundancy.host_failures,
            need: 0,
            room: Room::of(world, wanted.spec, taken),
            crowd: taken.iter().map(|(_, workloads)| *workloads).collect(),
            roles: Vec::new(),
            counted: vec![0; world.hosts.len()],
            decision: Decision::default(),
        }
    }

    fn decide(&mut self) -> Decision {
        if self.replicas == 0 {
            let all = 0..self.wanted.copies.len();
            self.decision.stop = all.map(|copy| (copy, "replicas is 0".to_owned())).collect();
            self.decision.settled = self.decision.stop.is_empty();
            return std::mem::take(&mut self.decision);
        }
        let resolved = match self.wanted.model {
            Model::Resolved(resolved) => Some(resolved),
            Model::Resolving | Model::Failed(_) => None,
        };
        self.need = resolved.map_or(0, |resolved| resolved.sizing.total_bytes);
        self.roles = self.wanted.copies.iter().map(|copy| self.role(copy, resolved)).collect();
        for (index, copy) in self.wanted.copies.iter().enumerate() {
            match (&self.roles[index], self.world.hosts[copy.host].presence) {
                (Role::Counted, _) => self.counted[copy.host] += 1,
                (Role::Lost, _) => self.decision.lost.push(index),
                _ => {}
            }
            if let (Presence::Silent { since }, true) =
                (self.world.hosts[copy.host].presence, self.roles[index] != Role::Lost)
            {
                self.decision.awaited.push((index, since));
            }
        }
        let placing = resolved.filter(|_| self.world.frozen.is_none());
        if let Some(resolved) = placing {
            if self.need == 0 {
                self.decision.refusal = Some(refusal::unknown_size());
            } else if !resolved.lacking.is_empty() {
                self.decision.refusal = Some(refusal::lacks_kernels(&resolved.lacking));
            } else {
                self.replace_broken();
                self.start();
                self.stop_what_does_not_count();
                self.stop_surplus();
                self.replace_in_turn();
                self.explain();
            }
        }
        self.assign_modes(placing.is_some());
        self.decision.outdated = self.roles.contains(&Role::Outdated);
        self.decision.counted = self.counted.iter().sum();
        self.decision.settled = self.is_settled();
        std::mem::take(&mut self.decision)
    }

    fn role(&self, copy: &Copy, resolved: Option<&Resolved>) -> Role {
        let host = &self.world.hosts[copy.host];
        if let Presence::Silent { since } = host.presence
            && self.world.frozen.is_none()
            && self.world.now.duration_since(since) >= self.wanted.patience()
        {
            return Role::Lost;
        }
        if host.is_draining() {
            return Role::Leaving(format!("host {} is being drained", host.name));
        }
        if let Some(reason) = mismatch(host, self.wanted.spec) {
            return Role::Leaving(reason);
        }
        match resolved {
            Some(resolved) if is_outdated(self.wanted, resolved, copy.workload) => Role::Outdated,
            _ => Role::Counted,
        }
    }

    fn accepts(&self, host: usize) -> bool {
        let host = &self.world.hosts[host];
        host.takes_new() && mismatch(host, self.wanted.spec).is_none()
    }

    /// Counted copies that each host could have.
    fn limits(&self) -> Vec<u32> {
        let more = |host| if self.accepts(host) { self.room.copies(host, self.need) } else { 0 };
        self.counted
            .iter()
            .enumerate()
            .map(|(host, here)| here.saturating_add(more(host)).min(self.replicas.max(*here)))
            .collect()
    }

    /// How many copies shall remain after 0, 1, … `hostFailures` failures: `replicas`, or as many as the hosts allow.
    fn goal(&self) -> Vec<u32> {
        let limits = self.limits();
        (0..=self.failures).map(|failures| self.replicas.min(survivors(&limits, failures))).collect()
    }

    fn holds(&self, copies: &[u32], goal: &[u32]) -> bool {
        (0..).zip(goal).all(|(failures, remaining)| survivors(copies, failures) >= *remaining)
    }

    fn has_promise(&self, copies: &[u32]) -> bool {
        survivors(copies, self.failures) >= self.replicas
    }

    /// Whether this decision ends a copy as it is.
    fn goes(&self, index: usize) -> bool {
        self.decision.stop.iter().chain(&self.decision.replace).any(|(other, _)| *other == index)
    }

    /// Copies by host that do now what they are there for, and are not stopped by this decision.
    fn standing(&self, but: Option<usize>) -> Vec<u32> {
        let mut standing = vec![0; self.world.hosts.len()];
        for (index, copy) in self.wanted.copies.iter().enumerate() {
            if copy.stands() && !self.goes(index) && but != Some(index) {
                standing[copy.host] += 1;
            }
        }
        standing
    }

    /// How many of them serve.
    fn serving(&self, but: Option<usize>) -> u32 {
        let serves =
            |(index, copy): &(usize, &Copy)| copy.is_ready() && !self.goes(*index) && but != Some(*index);
        u32::try_from(self.wanted.copies.iter().enumerate().filter(serves).count()).unwrap_or(u32::MAX)
    }

    /// Outdated copies that are of no use are replaced at once, or stop: nothing is lost by it.
    fn replace_broken(&mut self) {
        for (index, copy) in self.wanted.copies.iter().enumerate() {
            let host = &self.world.hosts[copy.host];
            if self.roles[index] != Role::Outdated || copy.stands() || !host.is_known() {
                continue;
            }
            self.room.give(copy.host, copy.workload.memory_bytes);
            if self.room.copies(copy.host, self.need) > 0 && !self.has_promise(&self.counted) {
                self.room.take(copy.host, self.need);
                self.counted[copy.host] += 1;
                self.decision.replace.push((index, self.version_reason()));
            } else {
                // It keeps its room in this plan.
                self.room.take(copy.host, copy.workload.memory_bytes);
                self.decision.stop.push((index, self.version_reason()));
            }
        }
    }

    fn version_reason(&self) -> String {
        format!("generation {} asks for another version", self.wanted.generation)
    }

    fn start(&mut self) {
        let goal = self.goal();
        while !self.holds(&self.counted, &goal) {
            let open = (0..self.world.hosts.len()).filter(|host| self.accepts(*host));
            let fitting = open.filter(|host| self.room.copies(*host, self.need) > 0);
            let Some(host) = fitting.min_by_key(|host| self.score(*host)) else { break };
            let reason = self.start_reason();
            self.room.take(host, self.need);
            self.counted[host] += 1;
            self.crowd[host] += 1;
            self.decision.start.push((host, reason));
        }
    }

    fn score(&self, host: usize) -> Score<'a> {
        let zone = |host: &Host| host.labels.get(ZONE).cloned();
        let here = zone(&self.world.hosts[host]);
        let in_zone = |other: &(usize, &u32)| here.is_some() && zone(&self.world.hosts[other.0]) == here;
        Score {
            copies_here: self.counted[host],
            copies_in_zone: self.counted.iter().enumerate().filter(in_zone).map(|(_, copies)| copies).sum(),
            workloads_here: self.crowd[host],
            left_over: self.room.bytes(host).saturating_sub(self.need),
            name: self.world.hosts[host].name,
        }
    }

    /// The first cause that is not answered by a copy that starts already.
    fn start_reason(&self) -> String {
        let started = self.decision.start.len();
        let mut causes = Vec::new();
        for index in &self.decision.lost {
            let host = &self.world.hosts[self.wanted.copies[*index].host];
            if let Presence::Silent { since } = host.presence {
                let seconds = self.world.now.duration_since(since).as_secs();
                causes.push(format!(
                    "host {} is silent for {seconds} s, so its copy is placed elsewhere",
                    host.name
                ));
            }
        }
        for role in &self.roles {
            match role {
                Role::Leaving(reason) => causes.push(format!("{reason}, so a copy is made elsewhere first")),
                Role::Outdated => causes.push(self.version_reason()),
                Role::Counted | Role::Lost => {}
            }
        }
        causes.into_iter().nth(started).unwrap_or_else(|| self.promise())
    }

    fn promise(&self) -> String {
        match (self.replicas, self.failures) {
            (replicas, 0) => format!("{} shall serve", copies(replicas)),
            (replicas, failures) => format!(
                "{} shall remain after any {} vanish",
                copies(replicas),
                if failures == 1 { "host".to_owned() } else { format!("{failures} hosts") }
            )
            .replace("host vanish", "host vanishes"),
        }
    }

    fn stop_what_does_not_count(&mut self) {
        let goal = self.goal();
        for index in 0..self.wanted.copies.len() {
            let copy = &self.wanted.copies[index];
            let host = &self.world.hosts[copy.host];
            if self.goes(index) {
                continue;
            }
            let without = self.standing(Some(index));
            let serving = self.serving(Some(index));
            let serves = serving >= self.replicas;
            let (may_go, reason) = match &self.roles[index] {
                Role::Counted => continue,
                Role::Lost => (
                    serves && self.has_promise(&without),
                    format!("host {} is lost, and others serve in its place", host.name),
                ),
                // The best that is possible without the leaving hosts must be reached; that may be less than the promise.
                Role::Leaving(reason) => (
                    !copy.stands() && host.is_known() || serves && self.holds(&without, &goal),
                    reason.clone(),
                ),
                Role::Outdated => (serves && self.has_promise(&without), self.version_reason()),
            };
            if may_go {
                self.decision.stop.push((index, reason));
            } else if self.roles[index] != Role::Lost {
                let waits = if serving == 0 {
                    format!(
                        "{reason}; it goes once another copy is ready, since it is the last one that serves"
                    )
                } else {
                    format!("{reason}; it goes once others are ready that hold what is promised")
                };
                self.decision.waiting.push((index, waits));
            }
        }
    }

    fn stop_surplus(&mut self) {
        let goal = self.goal();
        loop {
            let candidates = (0..self.wanted.copies.len()).filter(|index| {
                let done = |(other, _): &(usize, String)| other == index;
                self.roles[*index] == Role::Counted
                    && !self.decision.stop.iter().any(done)
                    && self.is_surplus(*index, &goal)
            });
            let Some(index) = candidates.min_by_key(|index| self.dispensable(*index)) else { return };
            self.counted[self.wanted.copies[index].host] -= 1;
            let reason = format!("it is one more than needed: {}", self.promise());
            self.decision.stop.push((index, reason));
        }
    }

    fn is_surplus(&self, index: usize, goal: &[u32]) -> bool {
        let copy = &self.wanted.copies[index];
        let mut counted = self.counted.clone();
        counted[copy.host] -= 1;
        let serves = || !copy.is_ready() || goal.first().is_none_or(|all| self.serving(Some(index)) >= *all);
        self.holds(&counted, goal)
            && (!copy.stands() || self.holds(&self.standing(Some(index)), goal) && serves())
    }

    fn dispensable(&self, index: usize) -> Dispensable<'a> {
        let copy = &self.wanted.copies[index];
        Dispensable {
            stands: copy.stands(),
            of_scarce_mode: copy.shall_serve() != self.has_surplus_serving(),
            schedulable: self.world.hosts[copy.host].takes_new(),
            copies_here: Reverse(self.counted[copy.host]),
            workloads_here: Reverse(self.crowd[copy.host]),
            id: Reverse(copy.workload.id.as_str()),
        }
    }

    /// A new version that finds no room beside the old one takes the place of one old copy, when all else is well.
    fn replace_in_turn(&mut self) {
        let outdated: Vec<usize> = (0..self.wanted.copies.len())
            .filter(|index| {
                let done = |(other, _): &(usize, String)| other == index;
                self.roles[*index] == Role::Outdated
                    && !self.decision.stop.iter().any(done)
                    && !self.decision.replace.iter().any(done)
            })
            .collect();
        let quiet = self.decision.start.is_empty() && self.decision.replace.is_empty();
        let counted_ready = self
            .wanted
            .copies
            .iter()
            .zip(&self.roles)
            .all(|(copy, role)| *role != Role::Counted || copy.stands());
        if outdated.is_empty() || !quiet || !counted_ready || self.has_promise(&self.counted) {
            return;
        }
        let fits = |index: &usize| {
            let copy = &self.wanted.copies[*index];
            let freed = self.room.free[copy.host] + i128::from(copy.workload.memory_bytes);
            self.world.hosts[copy.host].is_known() && freed >= i128::from(self.need)
        };
        let Some(index) = outdated.into_iter().filter(fits).min_by_key(|index| self.dispensable(*index))
        else {
            if self.decision.stop.is_empty() && self.counted.iter().any(|copies| *copies > 0) {
                self.decision.blocked = Some(format!(
                    "generation {} has room for {} of {}, so old ones stay; add a host, or lower what it asks for",
                    self.wanted.generation,
                    self.counted.iter().sum::<u32>(),
                    copies(self.replicas + self.failures),
                ));
            }
            return;
        };
        if self.serving(Some(index)) == 0 {
            self.decision.blocked = Some(format!(
                "generation {} needs room for a second copy beside the only one that serves; add a host, or scale to 0 and \
                 back, which interrupts",
                self.wanted.generation
            ));
            return;
        }
        let copy = &self.wanted.copies[index];
        self.counted[copy.host] += 1;
        self.decision.waiting.retain(|(other, _)| *other != index);
        self.decision
            .replace
            .push((index, format!("{}, and there is no room beside it", self.version_reason())));
    }

    /// Says what is missing, unless it is only a matter of time.
    fn explain(&mut self) {
        if let Some(sentence) = self.decision.blocked.clone() {
            self.decision.refusal = Some(Refusal { reason: "NoRoomToUpdate", sentence });
            return;
        }
        let rolling = self.roles.contains(&Role::Outdated) && self.counted.iter().any(|copies| *copies > 0);
        if self.has_promise(&self.counted) || rolling {
            return;
        }
        // What the old version holds is room for the new one.
        let mut free: Vec<u64> = (0..self.world.hosts.len()).map(|host| self.room.bytes(host)).collect();
        for (copy, _) in
            self.wanted.copies.iter().zip(&self.roles).filter(|(_, role)| **role == Role::Outdated)
        {
            free[copy.host] = free[copy.host].saturating_add(copy.workload.memory_bytes);
        }
        self.decision.refusal = Some(refusal::explain(&refusal::Case {
            world: self.world,
            wanted: self.wanted,
            need: self.need,
            limits: &self.limits(),
            free: &free,
        }));
    }

    fn is_settled(&self) -> bool {
        let decision = &self.decision;
        decision.start.is_empty()
            && decision.replace.is_empty()
            && decision.stop.is_empty()
            && decision.promote.is_empty()
            && decision.demote.is_empty()
            && self.roles.iter().all(|role| *role == Role::Counted)
            && self.wanted.copies.iter().all(Copy::stands)
            && matches!(self.wanted.model, Model::Resolved(_))
            && !self.wanted.copies.is_empty()
    }
}

/// Why a host may not run a deployment, if it may not.
pub(crate) fn mismatch(host: &Host, spec: &InferenceDeploymentSpec) -> Option<String> {
    let selector = spec.placement.host_selector.as_ref()?;
    let (key, value) =
        selector.match_labels.iter().find(|(key, value)| host.labels.get(*key) != Some(value))?;
    Some(format!("host {} does not have the label {key}={value}", host.name))
}

pub(crate) fn copies(count: u32) -> String {
    if count == 1 { "1 copy".to_owned() } else { format!("{count} copies") }
}

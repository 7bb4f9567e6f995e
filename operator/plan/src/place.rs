//! Which copies start, are replaced and stop. Deployments are served lane by lane, in each the oldest first, and each by the same
//! few rules:
//!
//! 1. A copy *counts* if it is what the deployment asks for, on a host that may keep it and is not lost.
//! 2. Copies start until the counted ones hold the promise (`replicas` remain after any `hostFailures` hosts vanish), or
//!    as much of it as the hosts allow. The score says where.
//! 3. Copies that don't count stop once ready ones carry the promise without them; never the last healthy one.
//! 4. Counted copies that the promise does not need stop, too, those first that serve least.
//! 5. Of copies that count, all serve with `standby: Hot`; with `Warm`, `replicas` of them do, and the others are kept warm:
//!    see `modes`.
//! 6. Where a new version finds no room beside the old one, copies are replaced in their own place, one at a time.

mod ending;
mod ground;
mod modes;
mod turns;

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use tandem_crds::InferenceDeploymentSpec;

pub(crate) use modes::SUSPECTED;

use crate::input::{Model, Resolved};
use crate::parse::{Copy, Host, Presence, Wanted, World};
use crate::refusal::{self, Refusal};
use crate::roll::is_outdated;
use crate::size::MAX_WORKLOADS;
use crate::survive::survivors;

use ground::Part;
pub(crate) use ground::{Ground, Take};
pub(crate) use turns::{Taken, decide, decide_one, turns};

/// Copies of one deployment by host, of those hosts that have any.
pub(crate) type Spread = BTreeMap<usize, u32>;

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
    /// Room that it takes at once.
    pub(crate) takes: Vec<Take>,
    /// Whether it rests on what other deployments have left of the hosts, and on which there are.
    pub(crate) looked: bool,
}

/// What one deployment finds left to place on: the ground, but for what it has given and taken itself.
struct Room<'g, 'a> {
    ground: Part<'g, 'a>,
    /// Bytes and workloads, where they differ from the ground's.
    own: BTreeMap<usize, (i128, usize)>,
    /// Whether anybody asked for more than [`Self::own`].
    looked: Cell<bool>,
}

impl<'g, 'a: 'g> Room<'g, 'a> {
    /// What is left of all hosts.
    fn ground(&self) -> Part<'g, 'a> {
        self.looked.set(true);
        self.ground
    }

    /// Bytes are negative where more is taken than is offered now, because other programs grew.
    fn left(&self, host: usize) -> (i128, usize) {
        let left = || {
            let ground = self.ground();
            (ground.free(host), MAX_WORKLOADS.saturating_sub(ground.crowd(host)))
        };
        self.own.get(&host).copied().unwrap_or_else(left)
    }

    fn bytes(&self, host: usize) -> u64 {
        u64::try_from(self.left(host).0.max(0)).unwrap_or(u64::MAX)
    }

    fn copies(&self, host: usize, need: u64) -> u32 {
        let (bytes, slots) = self.left(host);
        let by_bytes = u64::try_from(bytes.max(0)).unwrap_or(u64::MAX).checked_div(need).unwrap_or(0);
        u32::try_from(by_bytes.min(slots as u64)).unwrap_or(u32::MAX)
    }

    fn take(&mut self, host: usize, bytes: u64) {
        let (free, slots) = self.left(host);
        self.own.insert(host, (free - i128::from(bytes), slots.saturating_sub(1)));
    }

    fn give(&mut self, host: usize, bytes: u64) {
        let (free, slots) = self.left(host);
        self.own.insert(host, (free + i128::from(bytes), slots + 1));
    }
}

/// Where a copy goes: the least score wins, and the order of the fields is the policy.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Score {
    /// Spread: a host's loss takes all copies on it.
    copies_here: u32,
    /// Spread further: what fails together stands together.
    copies_in_zone: u32,
    /// Share the work.
    workloads_here: usize,
    /// Fill the gap that fits best, so that large ones stay for large models.
    left_over: u64,
    /// Same input, same plan: hosts are sorted by name.
    host: usize,
}

/// Why a copy does not count.
#[derive(Clone, PartialEq, Eq)]
enum Role {
    Counted,
    Outdated,
    Leaving(String),
    Lost,
}

/// One deployment's turn.
struct One<'g, 'a> {
    world: &'g World<'a>,
    wanted: &'g Wanted<'a>,
    replicas: u32,
    failures: u32,
    need: u64,
    room: Room<'g, 'a>,
    roles: Vec<Role>,
    /// Counted copies by host, with those that start.
    counted: Spread,
    decision: Decision,
}

impl<'g, 'a: 'g> One<'g, 'a> {
    fn new(world: &'g World<'a>, wanted: &'g Wanted<'a>, ground: &'g Ground) -> Self {
        Self {
            world,
            wanted,
            replicas: wanted.spec.replicas,
            failures: wanted.spec.redundancy.host_failures,
            need: 0,
            room: Room {
                ground: ground.part(world, wanted.spec),
                own: BTreeMap::new(),
                looked: Cell::new(false),
            },
            roles: Vec::new(),
            counted: Spread::new(),
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
                (Role::Counted, _) => *self.counted.entry(copy.host).or_default() += 1,
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
        self.decision.counted = self.counted.values().sum();
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
        host.takes_new() && matches(host, self.wanted.spec)
    }

    /// Counted copies that a host could have.
    fn limit(&self, host: usize) -> u32 {
        let here = self.counted.get(&host).copied().unwrap_or(0);
        let more = if self.accepts(host) { self.room.copies(host, self.need) } else { 0 };
        here.saturating_add(more).min(self.replicas.max(here))
    }

    /// The limits of all hosts that have one: first of those with counted copies.
    fn limits(&self) -> impl Iterator<Item = u32> {
        let others = self.room.ground().fitting(self.need).filter(|host| !self.counted.contains_key(host));
        self.counted.keys().copied().chain(others).map(|host| self.limit(host)).filter(|limit| *limit > 0)
    }

    /// How many copies shall remain after 0, 1, … `hostFailures` failures: `replicas`, or as many as the hosts allow.
    fn goal(&self) -> Vec<u32> {
        if self.has_promise(&self.counted) {
            return self.whole_goal();
        }
        let mut limits = Vec::new();
        // As many hosts as could do at best; then twice as many, until they do or there are no more.
        let mut enough = (self.replicas + self.failures) as usize;
        for limit in self.limits() {
            limits.push(limit);
            if limits.len() >= enough {
                if survivors(limits.iter().copied(), self.failures) >= self.replicas {
                    return self.whole_goal();
                }
                enough *= 2;
            }
        }
        let remaining = |failures| self.replicas.min(survivors(limits.iter().copied(), failures));
        (0..=self.failures).map(remaining).collect()
    }

    /// After fewer failures as many remain at least.
    fn whole_goal(&self) -> Vec<u32> {
        vec![self.replicas; self.failures as usize + 1]
    }

    fn holds(&self, copies: &Spread, goal: &[u32]) -> bool {
        (0..)
            .zip(goal)
            .all(|(failures, remaining)| survivors(copies.values().copied(), failures) >= *remaining)
    }

    fn has_promise(&self, copies: &Spread) -> bool {
        survivors(copies.values().copied(), self.failures) >= self.replicas
    }

    /// Whether this decision ends a copy as it is.
    fn goes(&self, index: usize) -> bool {
        self.decision.stop.iter().chain(&self.decision.replace).any(|(other, _)| *other == index)
    }

    /// Copies by host that do now what they are there for, and are not stopped by this decision.
    fn standing(&self, but: Option<usize>) -> Spread {
        let mut standing = Spread::new();
        for (index, copy) in self.wanted.copies.iter().enumerate() {
            if copy.stands() && !self.goes(index) && but != Some(index) {
                *standing.entry(copy.host).or_default() += 1;
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
                *self.counted.entry(copy.host).or_default() += 1;
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
            let fitting = |host: &usize| self.accepts(*host) && self.room.copies(*host, self.need) > 0;
            let again = self.counted.keys().copied().filter(fitting).map(|host| self.score(host)).min();
            let anew = self.room.ground().best(self.need, &self.counted);
            let Some(host) = again.into_iter().chain(anew).min().map(|best| best.host) else { break };
            let reason = self.start_reason();
            self.room.take(host, self.need);
            *self.counted.entry(host).or_default() += 1;
            self.decision.start.push((host, reason));
        }
    }

    fn score(&self, host: usize) -> Score {
        let zone = self.world.hosts[host].zone;
        let in_zone = |other: &(&usize, &u32)| zone.is_some() && self.world.hosts[*other.0].zone == zone;
        Score {
            copies_here: self.counted.get(&host).copied().unwrap_or(0),
            copies_in_zone: self.counted.iter().filter(in_zone).map(|(_, copies)| copies).sum(),
            workloads_here: self.crowd(host),
            left_over: self.room.bytes(host).saturating_sub(self.need),
            host,
        }
    }

    /// Workloads on a host, of all deployments, with those that start.
    fn crowd(&self, host: usize) -> usize {
        let started = self.decision.start.iter().filter(|(other, _)| *other == host);
        self.room.ground().crowd(host) + started.count()
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

    /// Says what is missing, unless it is only a matter of time.
    fn explain(&mut self) {
        if let Some(sentence) = self.decision.blocked.clone() {
            self.decision.refusal = Some(Refusal { reason: "NoRoomToUpdate", sentence });
            return;
        }
        let rolling = self.roles.contains(&Role::Outdated) && self.counted.values().any(|copies| *copies > 0);
        if self.has_promise(&self.counted) || rolling {
            return;
        }
        // What the old version holds is room for the new one.
        let ground = self.room.ground();
        let mut free = ground.left();
        for host in self.room.own.keys() {
            free[*host] = self.room.bytes(*host);
        }
        for (copy, _) in
            self.wanted.copies.iter().zip(&self.roles).filter(|(_, role)| **role == Role::Outdated)
        {
            free[copy.host] = free[copy.host].saturating_add(copy.workload.memory_bytes);
        }
        self.decision.refusal = Some(refusal::explain(&refusal::Case {
            world: self.world,
            wanted: self.wanted,
            need: self.need,
            limits: &self.limits().collect::<Vec<u32>>(),
            matching: &ground.matching(),
            open: ground.open(),
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

/// Whether a host may run a deployment.
pub(crate) fn matches(host: &Host, spec: &InferenceDeploymentSpec) -> bool {
    let selector = spec.placement.host_selector.as_ref();
    let mut labels = selector.into_iter().flat_map(|selector| &selector.match_labels);
    labels.all(|(key, value)| host.labels.get(key) == Some(value))
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

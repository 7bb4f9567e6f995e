//! What a planner remembers of the last plan, by places in the world. Whoever changes takes out what was remembered of it first, by what it
//! was; the next plan puts in what it is.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use jiff::Timestamp;
use tandem_crds::DeploymentRef;

use super::Named;
use super::files::Files;
use crate::diff::{self, Changing};
use crate::input::{Observation, State};
use crate::joins::{Joins, created};
use crate::output::{Outranked, Plan};
use crate::parse::{self, Host, Presence, Wanted, World};
use crate::place::{self, Decision, Ground, Taken};
use crate::{route, status};

#[derive(Default)]
pub(super) struct Memory {
    joins: Joins,
    /// Places of hosts, by their positions in the state.
    host_places: HashMap<usize, usize>,
    /// None before the first plan.
    ground: Option<Ground>,
    /// Hosts that have or remember an id, and its start number there.
    ids: HashMap<String, Vec<(usize, u64)>>,
    files: Files,
    /// Deployments by the names of their models.
    names: Named,
    /// Deployments whose statuses place something on a host, by host; and the other way round.
    mentions: Vec<BTreeSet<usize>>,
    mentioning: Vec<Vec<usize>>,
    stands: Vec<Option<Stand>>,
    /// Hosts whose specs carry an earlier term.
    led: BTreeSet<usize>,
    decisions: Vec<Decision>,
    /// Deployments that had to look around. Who takes room has.
    looking: BTreeSet<usize>,
    /// Deployments that change what hosts are told, or wait to.
    moving: BTreeSet<usize>,
    /// Deployments that rest on the time.
    restless: BTreeSet<usize>,
    changed: Changed,
    decided: usize,
}

/// What has changed since the last plan.
#[derive(Default)]
struct Changed {
    /// Hosts that are taken out.
    hosts: BTreeSet<usize>,
    /// What they ran.
    tenants: BTreeMap<usize, Vec<(usize, u64)>>,
    /// Deployments that are taken out.
    deployments: BTreeSet<usize>,
    /// Who owned the names that they had.
    owners: BTreeMap<String, Option<usize>>,
    /// Deployments to decide on anew.
    affected: BTreeSet<usize>,
    /// Whether what there is to look at is another.
    around: bool,
}

/// What is seen of a host by those who look around, beside what runs there and what it offers.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stand {
    known: bool,
    silent: bool,
    draining: bool,
    takes_new: bool,
}

impl Stand {
    fn of(host: &Host) -> Self {
        Self {
            known: host.is_known(),
            silent: matches!(host.presence, Presence::Silent { .. }),
            draining: host.is_draining(),
            takes_new: host.takes_new(),
        }
    }
}

impl Memory {
    /// One to which everything is new.
    pub(super) fn of(state: &State) -> Result<Self, Outranked> {
        let joins = Joins::of(state)?;
        let (hosts, deployments) = (joins.hosts.len(), joins.deployments.len());
        let mut memory = Self {
            host_places: joins.hosts.iter().enumerate().map(|(place, position)| (*position, place)).collect(),
            mentions: vec![BTreeSet::new(); hosts],
            mentioning: vec![Vec::new(); deployments],
            stands: vec![None; hosts],
            joins,
            ..Self::default()
        };
        memory.decisions.resize_with(deployments, Decision::default);
        memory.changed.hosts = (0..hosts).collect();
        memory.changed.deployments = (0..deployments).collect();
        Ok(memory)
    }

    /// How many deployments were decided on for the newest plan.
    pub(super) fn decided(&self) -> usize {
        self.decided
    }

    /// A host is about to become another, or to be seen otherwise.
    pub(super) fn take_out_host(&mut self, state: &State, seen: &Observation, position: usize) {
        let Some(place) = self.host_places.get(&position).copied() else { return };
        if !self.changed.hosts.insert(place) {
            return;
        }
        let object = &state.hosts[position];
        let name = object.metadata.name.as_deref().unwrap_or_default();
        let zone = self.joins.zones[place];
        let host = Host::of(object, seen.hosts.get(name), seen.leaving.contains(name), zone);
        for (id, _) in diff::known_by(&host) {
            if let Some(known) = self.ids.get_mut(id) {
                known.retain(|(other, _)| *other != place);
                if known.is_empty() {
                    self.ids.remove(id);
                }
            }
        }
        self.files.take_out_host(place, &host);
        let tenants = self.joins.take_out(place);
        let had = tenants.iter().map(|(deployment, _)| *deployment);
        self.changed.affected.extend(had.chain(self.mentions[place].iter().copied()));
        self.changed.tenants.insert(place, tenants);
    }

    /// A deployment, its model or its status is about to become another.
    pub(super) fn take_out_deployment(&mut self, state: &State, key: &DeploymentRef) {
        let Some(place) = self.joins.places.get(key).copied() else { return };
        if !self.changed.deployments.insert(place) {
            return;
        }
        let wanted = parse::wanted(key, &state.deployments[self.joins.deployments[place]], state);
        self.files.take_out_deployment(place, &wanted);
        let name = &wanted.spec.model.name;
        if let Some(named) = self.names.get_mut(name) {
            self.changed.owners.entry(name.clone()).or_insert_with(|| named.first().copied());
            named.remove(&place);
            if named.is_empty() {
                self.names.remove(name);
            }
        }
        for host in self.mentioning[place].drain(..) {
            self.mentions[host].remove(&place);
        }
    }

    /// Whether a deployment would come last, with no copies of its own that wait for it.
    pub(super) fn would_be_youngest(&self, state: &State, age: Timestamp, key: &DeploymentRef) -> bool {
        let last = self.joins.keys.last().zip(self.joins.deployments.last());
        let youngest =
            last.is_none_or(|(other, position)| (created(&state.deployments[*position]), other) < (age, key));
        youngest && self.joins.orphans.is_empty()
    }

    /// A new one comes last.
    pub(super) fn add_deployment(&mut self, key: DeploymentRef, position: usize) {
        self.changed.deployments.insert(self.decisions.len());
        self.joins.add(key, position);
        self.decisions.push(Decision::default());
        self.mentioning.push(Vec::new());
    }

    /// Something has changed that those see who look around.
    pub(super) fn everybody_looks_again(&mut self) {
        self.changed.around = true;
    }

    /// Plans the next step. False if that can't be done piece by piece; then nothing here may be used again.
    pub(super) fn next(
        &mut self,
        state: &State,
        seen: &Observation,
        now: Timestamp,
        plan: &mut Plan,
    ) -> bool {
        let mut changed = std::mem::take(&mut self.changed);
        if self.ground.is_some() {
            for place in &changed.hosts {
                self.joins.put_in(*place, &state.hosts[self.joins.hosts[*place]]);
            }
        }
        let joins = std::mem::take(&mut self.joins);
        let mut world = parse::world(state, seen, &joins, now);
        let apart = world.frozen.is_none() && {
            self.put_in_hosts(&world, &mut changed);
            self.put_in_deployments(&world, &mut changed);
            self.files.are_apart()
        };
        if apart {
            changed.affected.extend(&self.restless);
            let turns: BTreeSet<usize> = changed.affected.union(&self.looking).copied().collect();
            turns.iter().chain(&self.moving).for_each(|deployment| world.bring(*deployment));
            let decided = self.decide(&world, turns, &changed);
            self.decided = decided.len();
            for deployment in decided {
                self.tell(&world, deployment, seen, plan);
            }
            self.put_together(&world, plan);
        }
        drop(world);
        self.joins = joins;
        apart
    }

    fn put_in_hosts(&mut self, world: &World, changed: &mut Changed) {
        let is_first = self.ground.is_none();
        let ground = self.ground.get_or_insert_with(|| Ground::of(world));
        for place in changed.hosts.iter().copied() {
            let host = &world.hosts[place];
            for (id, epoch) in diff::known_by(host) {
                self.ids.entry(id.to_owned()).or_default().push((place, epoch));
            }
            self.files.put_in_host(place, host);
            if host.spec.term < world.term {
                self.led.insert(place);
            } else {
                self.led.remove(&place);
            }
            let stand = self.stands[place].replace(Stand::of(host));
            let tenants = &world.joins.tenants[place];
            if !is_first {
                let offers = ground.refresh(world, place);
                changed.around |= offers
                    || stand != self.stands[place]
                    || changed.tenants.get(&place).is_none_or(|before| before != tenants);
            }
            changed.affected.extend(tenants.iter().map(|(deployment, _)| *deployment));
        }
    }

    fn put_in_deployments(&mut self, world: &World, changed: &mut Changed) {
        for place in changed.deployments.iter().copied() {
            let wanted = &world.deployments[place];
            if let Some(ground) = &mut self.ground {
                ground.prepare(world, wanted.spec);
            }
            self.files.put_in_deployment(place, wanted);
            let named = self.names.entry(wanted.spec.model.name.clone()).or_default();
            changed.owners.entry(wanted.spec.model.name.clone()).or_insert_with(|| named.first().copied());
            named.insert(place);
            let placements = wanted.prior.into_iter().flat_map(|prior| &prior.placements);
            let hosts: BTreeSet<usize> =
                placements.filter_map(|placement| world.host(&placement.host)).collect();
            for host in &hosts {
                self.mentions[*host].insert(place);
            }
            self.mentioning[place] = hosts.into_iter().collect();
        }
        changed.affected.extend(&changed.deployments);
        // A name that has another owner is told by everybody who has it.
        for (name, before) in &changed.owners {
            let Some(named) = self.names.get(name) else { continue };
            if named.first() != before.as_ref() {
                changed.affected.extend(named);
            }
        }
    }

    /// Decides in turn; which deployments were decided on anew.
    fn decide(&mut self, world: &World, turns: BTreeSet<usize>, changed: &Changed) -> Vec<usize> {
        let Some(ground) = &mut self.ground else { return Vec::new() };
        let mut around = changed.around;
        let mut taken = Taken::default();
        let mut decided = Vec::new();
        for index in place::turns(world, turns.into_iter().collect()) {
            if changed.affected.contains(&index) || around && self.looking.contains(&index) {
                let decision = place::decide_one(world, index, ground);
                around |= decision.takes != self.decisions[index].takes;
                self.decisions[index] = decision;
                decided.push(index);
            }
            taken.take(world, ground, &self.decisions[index].takes);
        }
        taken.give_back(world, ground);
        decided
    }

    /// What is said of one deployment, now that it is decided on.
    fn tell(&mut self, world: &World, place: usize, seen: &Observation, plan: &mut Plan) {
        let (wanted, decision) = (&world.deployments[place], &self.decisions[place]);
        let owner = self.names.get(&wanted.spec.model.name).and_then(BTreeSet::first);
        let owner = owner.map(|owner| world.deployments[*owner].key);
        let status = status::status(world, wanted, decision, owner, seen.endpoint.clone());
        let route = route::route(world, wanted, owner == Some(wanted.key));
        let restless = wanted.prior != Some(&status) || self.rests_on_time(world, place, wanted);
        let moves = diff::moves(wanted, decision);
        for (set, is_in) in
            [(&mut self.looking, decision.looked), (&mut self.moving, moves), (&mut self.restless, restless)]
        {
            if is_in {
                set.insert(place);
            } else {
                set.remove(&place);
            }
        }
        match plan.routes.binary_search_by(|other| other.deployment.cmp(wanted.key)) {
            Ok(at) => plan.routes[at] = route,
            Err(at) => plan.routes.insert(at, route),
        }
        plan.statuses.insert(wanted.key.clone(), status);
    }

    fn rests_on_time(&self, world: &World, place: usize, wanted: &Wanted) -> bool {
        let silent = |host: usize| matches!(world.hosts[host].presence, Presence::Silent { .. });
        wanted.copies.iter().any(|copy| silent(copy.host))
            || self.mentioning[place].iter().any(|host| silent(*host))
    }

    /// What is said of everything that moves.
    fn put_together(&mut self, world: &World, plan: &mut Plan) {
        self.files.settle(world);
        let ids = &self.ids;
        let known = |id: &str| ids.get(id)?.iter().map(|(_, epoch)| *epoch).max();
        let diff = diff::diff(
            world,
            Changing {
                led: self.led.iter().copied().collect(),
                deployments: self.moving.iter().map(|place| (*place, &self.decisions[*place])).collect(),
                known: &known,
                kept: self.files.differing().clone(),
            },
        );
        plan.steps = diff.steps;
        plan.specs = diff.specs;
        plan.waiting = diff.waiting;
        plan.wake_at = route::wake_at(world);
        plan.frozen = None;
    }
}

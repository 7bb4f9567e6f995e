//! What there is to place on, while one deployment after the other takes its part of it. Hosts are held in the order in which
//! placement prefers them, so that one more copy costs a few look-ups and not a look at every host.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use tandem_crds::{Accelerator, InferenceDeploymentSpec};

use super::{Score, Spread, matches};
use crate::parse::{Host, World};
use crate::size::{MAX_WORKLOADS, budget};

/// Most selectors whose hosts are held in order, those first that most deployments have. Others' hosts are gone through.
const MOST_ORDERED: usize = 32;

type Labels = BTreeMap<String, String>;

/// Hosts, by their places in the world, and what is left of them. It outlives a plan, and follows single changes.
pub(crate) struct Ground {
    /// Bytes and workloads by host, of all deployments.
    taken: Vec<(u64, usize)>,
    /// Which hosts take new copies.
    open: Vec<bool>,
    /// By the kinds of device that may compute.
    offers: HashMap<Vec<Accelerator>, Offer>,
    /// Hosts by label and value, of labels that some deployment asks for.
    labelled: HashMap<String, HashMap<String, Vec<usize>>>,
}

/// What hosts have of some kinds of device.
#[derive(Default)]
struct Offer {
    /// By host.
    bytes: Vec<u64>,
    /// All hosts, if many deployments take any.
    anywhere: Option<Ordered>,
    /// Hosts by the labels that many deployments ask for.
    with_labels: HashMap<Labels, Ordered>,
}

impl Offer {
    fn ordered(&self, labels: Option<&Labels>) -> Option<&Ordered> {
        match labels {
            Some(labels) => self.with_labels.get(labels),
            None => self.anywhere.as_ref(),
        }
    }

    fn each(&mut self) -> impl Iterator<Item = (Option<&Labels>, &mut Ordered)> {
        let labelled = self.with_labels.iter_mut().map(|(labels, ordered)| (Some(labels), ordered));
        self.anywhere.iter_mut().map(|ordered| (None, ordered)).chain(labelled)
    }
}

/// Hosts that take new copies, by zone: those first that have the fewest workloads, and of those the ones with the least room.
type Ordered = BTreeMap<Option<usize>, BTreeSet<Rank>>;

/// Workloads, free bytes, and the host.
type Rank = (usize, u64, usize);

impl Ground {
    pub(crate) fn of(world: &World) -> Self {
        let taken = world.joins.taken.clone();
        let open = world.hosts.iter().map(Host::takes_new).collect();
        let mut ground = Self { taken, open, offers: HashMap::new(), labelled: HashMap::new() };
        let mut asked: HashMap<(&[Accelerator], Option<&Labels>), usize> = HashMap::new();
        for wanted in &world.deployments {
            *asked.entry(asks(wanted.spec)).or_default() += 1;
        }
        for (kinds, labels) in asked.keys() {
            ground.offer(world, kinds);
            for (key, value) in labels.iter().copied().flatten() {
                ground.labelled.entry(key.clone()).or_default().entry(value.clone()).or_default();
            }
        }
        ground.find_labels(world);
        let mut by_number: Vec<_> = asked.into_iter().filter(|(_, number)| *number > 1).collect();
        by_number.sort_unstable_by(|a, b| b.1.cmp(&a.1).then(a.0.1.cmp(&b.0.1)));
        for ((kinds, labels), _) in by_number.into_iter().take(MOST_ORDERED) {
            let ordered = ground.order(world, kinds, labels);
            let Some(offer) = ground.offers.get_mut(kinds) else { continue };
            match labels {
                Some(labels) => offer.with_labels.insert(labels.clone(), ordered),
                None => offer.anywhere.replace(ordered),
            };
        }
        ground
    }

    fn offer(&mut self, world: &World, kinds: &[Accelerator]) {
        if !self.offers.contains_key(kinds) {
            let bytes = world.hosts.iter().map(|host| offered(host, kinds)).collect();
            self.offers.insert(kinds.to_vec(), Offer { bytes, ..Offer::default() });
        }
    }

    fn find_labels(&mut self, world: &World) {
        if self.labelled.is_empty() {
            return;
        }
        for (index, host) in world.hosts.iter().enumerate() {
            for (key, value) in host.labels {
                if let Some(hosts) = self.labelled.get_mut(key).and_then(|values| values.get_mut(value)) {
                    hosts.push(index);
                }
            }
        }
    }

    fn order(&self, world: &World, kinds: &[Accelerator], labels: Option<&Labels>) -> Ordered {
        let offered = &self.offers[kinds].bytes;
        let mut ordered = Ordered::new();
        for (index, host) in world.hosts.iter().enumerate().filter(|(_, host)| host.takes_new()) {
            if has(host, labels) {
                ordered.entry(host.zone).or_default().insert(self.rank(index, offered[index]));
            }
        }
        ordered
    }

    fn rank(&self, host: usize, offered: u64) -> Rank {
        let (taken, workloads) = self.taken[host];
        (workloads, offered.saturating_sub(taken), host)
    }

    /// Makes sure that a deployment can be told its part.
    pub(crate) fn prepare(&mut self, world: &World, spec: &InferenceDeploymentSpec) {
        let (kinds, labels) = asks(spec);
        self.offer(world, kinds);
        for (key, value) in labels.into_iter().flatten() {
            let values = self.labelled.entry(key.clone()).or_default();
            values.entry(value.clone()).or_insert_with(|| {
                let hosts = world.hosts.iter().enumerate();
                hosts
                    .filter(|(_, host)| host.labels.get(key) == Some(value))
                    .map(|(index, _)| index)
                    .collect()
            });
        }
    }

    /// The part that a deployment may use.
    pub(super) fn part<'g, 'a>(
        &'g self,
        world: &'g World<'a>,
        spec: &'a InferenceDeploymentSpec,
    ) -> Part<'g, 'a> {
        let (kinds, labels) = asks(spec);
        let offer = &self.offers[kinds];
        let lists = labels.into_iter().flatten();
        let lists = lists.filter_map(|(key, value)| self.labelled.get(key)?.get(value));
        Part {
            ground: self,
            world,
            spec,
            offered: &offer.bytes,
            ordered: offer.ordered(labels),
            labelled: lists.map(Vec::as_slice).min_by_key(|hosts| hosts.len()),
        }
    }

    /// Takes room on a host; what was taken there before.
    pub(crate) fn take(&mut self, world: &World, take: &Take) -> (u64, usize) {
        let before = self.taken[take.host];
        let bytes = before.0.saturating_sub(take.less).saturating_add(take.more);
        self.set(take.host, world.hosts[take.host].zone, (bytes, before.1 + take.workloads));
        before
    }

    /// Sets what is taken on a host.
    pub(crate) fn set(&mut self, host: usize, zone: Option<usize>, after: (u64, usize)) {
        let before = self.taken[host];
        self.taken[host] = after;
        for offer in self.offers.values_mut() {
            let offered = offer.bytes[host];
            for (_, ordered) in offer.each() {
                let Some(zone) = ordered.get_mut(&zone) else { continue };
                if zone.remove(&(before.1, offered.saturating_sub(before.0), host)) {
                    zone.insert((after.1, offered.saturating_sub(after.0), host));
                }
            }
        }
    }

    /// Looks at a host anew; whether it offers something else than before, or something else is taken there.
    pub(crate) fn refresh(&mut self, world: &World, index: usize) -> bool {
        let host = &world.hosts[index];
        let before = self.taken[index];
        let after = world.joins.taken[index];
        self.taken[index] = after;
        self.open[index] = host.takes_new();
        let mut other = before != after;
        for (kinds, offer) in &mut self.offers {
            let now = offered(host, kinds);
            let then = std::mem::replace(&mut offer.bytes[index], now);
            other |= now != then;
            for (labels, ordered) in offer.each() {
                let zone = ordered.entry(host.zone).or_default();
                zone.remove(&(before.1, then.saturating_sub(before.0), index));
                if host.takes_new() && has(host, labels) {
                    zone.insert((after.1, now.saturating_sub(after.0), index));
                }
            }
        }
        other
    }
}

/// Room that a decision takes at once, and that those who come after it don't find.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Take {
    pub(crate) host: usize,
    /// Bytes given back.
    pub(crate) less: u64,
    /// Bytes taken.
    pub(crate) more: u64,
    /// More workloads.
    pub(crate) workloads: usize,
}

fn offered(host: &Host, kinds: &[Accelerator]) -> u64 {
    host.report.map_or(0, |report| budget(report, kinds))
}

fn has(host: &Host, labels: Option<&Labels>) -> bool {
    labels.is_none_or(|labels| labels.iter().all(|(key, value)| host.labels.get(key) == Some(value)))
}

/// What decides on which hosts a deployment may be.
fn asks(spec: &InferenceDeploymentSpec) -> (&[Accelerator], Option<&Labels>) {
    let labels = spec.placement.host_selector.as_ref().map(|selector| &selector.match_labels);
    (&spec.placement.accelerators, labels.filter(|labels| !labels.is_empty()))
}

/// The ground as one deployment sees it.
#[derive(Clone, Copy)]
pub(super) struct Part<'g, 'a> {
    ground: &'g Ground,
    world: &'g World<'a>,
    spec: &'a InferenceDeploymentSpec,
    offered: &'g [u64],
    ordered: Option<&'g Ordered>,
    /// Hosts with the rarest of the labels that are asked for, if any are.
    labelled: Option<&'g [usize]>,
}

impl<'g, 'a: 'g> Part<'g, 'a> {
    /// Workloads on a host, of all deployments.
    pub(super) fn crowd(&self, host: usize) -> usize {
        self.ground.taken[host].1
    }

    /// Negative where more is taken than is offered now, because other programs grew.
    pub(super) fn free(&self, host: usize) -> i128 {
        i128::from(self.offered[host]) - i128::from(self.ground.taken[host].0)
    }

    /// What every host has left.
    pub(super) fn left(&self) -> Vec<u64> {
        self.offered
            .iter()
            .zip(&self.ground.taken)
            .map(|(bytes, taken)| bytes.saturating_sub(taken.0))
            .collect()
    }

    /// Which hosts take new copies.
    pub(super) fn open(&self) -> &'g [bool] {
        &self.ground.open
    }

    /// Every host that a deployment may be on, in order.
    pub(super) fn matching(&self) -> Vec<usize> {
        match self.labelled {
            Some(hosts) => {
                let hosts = hosts.iter().copied();
                hosts.filter(|host| matches(&self.world.hosts[*host], self.spec)).collect()
            }
            None => (0..self.world.hosts.len()).collect(),
        }
    }

    /// Every host that takes new copies and has room for one.
    pub(super) fn fitting(self, need: u64) -> Box<dyn Iterator<Item = usize> + 'g> {
        match self.ordered {
            Some(ordered) => Box::new(
                ordered
                    .values()
                    .flat_map(move |hosts| levels(hosts, need).flatten())
                    .map(|(_, _, host)| host),
            ),
            None => Box::new(self.sought(need).map(|(_, _, host)| host)),
        }
    }

    /// The best host with room, of those that a deployment has no copy on: the one with the least score.
    pub(super) fn best(self, need: u64, counted: &Spread) -> Option<Score> {
        let hosts = &self.world.hosts;
        let is_new = |(_, _, host): &Rank| !counted.contains_key(host);
        let in_zone = |zone: Option<usize>| -> u32 {
            let here = counted.iter().filter(|(host, _)| zone.is_some() && hosts[**host].zone == zone);
            here.map(|(_, copies)| copies).sum()
        };
        let score = |(workloads, free, host): Rank, copies_in_zone| Score {
            copies_here: 0,
            copies_in_zone,
            workloads_here: workloads,
            left_over: free.saturating_sub(need),
            host,
        };
        match self.ordered {
            Some(ordered) => {
                let best_of = |(zone, hosts): (&Option<usize>, &'g BTreeSet<Rank>)| {
                    // The lowest level that has one, and in it the smallest gap that is large enough.
                    let rank = levels(hosts, need).find_map(|mut level| level.find(is_new))?;
                    Some(score(rank, in_zone(*zone)))
                };
                ordered.iter().filter_map(best_of).min()
            }
            None => {
                let ranks = self.sought(need).filter(is_new);
                ranks.map(|rank| score(rank, in_zone(hosts[rank.2].zone))).min()
            }
        }
    }

    /// Hosts with room, found by going through them.
    fn sought(self, need: u64) -> impl Iterator<Item = Rank> + 'g {
        let listed = self.labelled.into_iter().flatten().copied();
        let all = if self.labelled.is_some() { 0..0 } else { 0..self.world.hosts.len() };
        let Self { ground, world, spec, offered, .. } = self;
        let fits = move |host: usize| {
            let rank = ground.rank(host, offered[host]);
            let open = || world.hosts[host].takes_new() && matches(&world.hosts[host], spec);
            (rank.0 < MAX_WORKLOADS && rank.1 >= need && open()).then_some(rank)
        };
        listed.chain(all).filter_map(fits)
    }
}

/// Hosts with room, in groups of equally many workloads.
fn levels(hosts: &BTreeSet<Rank>, need: u64) -> impl Iterator<Item = impl Iterator<Item = Rank>> {
    let mut next = 0;
    std::iter::from_fn(move || {
        let (level, _, _) = *hosts.range((next, 0, 0)..(MAX_WORKLOADS, 0, 0)).next()?;
        next = level + 1;
        Some(hosts.range((level, need, 0)..(level + 1, 0, 0)).copied())
    })
}

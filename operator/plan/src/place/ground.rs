//! What there is to place on, while one deployment after the other takes its part of it. Hosts are held in the order in which
//! placement prefers them, so that one more copy costs a few look-ups and not a look at every host.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use tandem_crds::{Accelerator, InferenceDeploymentSpec};

use super::{Score, Spread, matches};
use crate::parse::World;
use crate::size::{MAX_WORKLOADS, budget};

/// Most selectors whose hosts are held in order, those first that most deployments have. Others' hosts are gone through.
const MOST_ORDERED: usize = 32;

type Labels = BTreeMap<String, String>;

/// Hosts and what is left of them.
pub(super) struct Ground<'a> {
    world: &'a World<'a>,
    /// Bytes and workloads by host, of all deployments.
    taken: Vec<(u64, usize)>,
    /// Bytes by host, for those kinds of device that may compute.
    offered: HashMap<&'a [Accelerator], Vec<u64>>,
    ordered: HashMap<(&'a [Accelerator], Option<&'a Labels>), Ordered>,
    /// Hosts by label and value, of labels that some deployment asks for.
    labelled: HashMap<(&'a str, &'a str), Vec<usize>>,
}

/// Hosts that take new copies, by zone: those first that have the fewest workloads, and of those the ones with the least room.
type Ordered = BTreeMap<Option<usize>, BTreeSet<Rank>>;

/// Workloads, free bytes, and the host.
type Rank = (usize, u64, usize);

impl<'a> Ground<'a> {
    pub(super) fn of(world: &'a World<'a>) -> Self {
        let mut taken = vec![(0_u64, 0_usize); world.hosts.len()];
        for copy in world.deployments.iter().flat_map(|wanted| &wanted.copies) {
            let (bytes, workloads) = &mut taken[copy.host];
            *bytes = bytes.saturating_add(copy.workload.memory_bytes);
            *workloads += 1;
        }
        let mut ground =
            Self { world, taken, offered: HashMap::new(), ordered: HashMap::new(), labelled: HashMap::new() };
        let mut asked: HashMap<(&[Accelerator], Option<&Labels>), usize> = HashMap::new();
        for wanted in &world.deployments {
            *asked.entry(asks(wanted.spec)).or_default() += 1;
        }
        for (kinds, labels) in asked.keys() {
            let hosts =
                || world.hosts.iter().map(|host| host.report.map_or(0, |report| budget(report, kinds)));
            ground.offered.entry(kinds).or_insert_with(|| hosts().collect());
            for (key, value) in labels.iter().copied().flatten() {
                ground.labelled.entry((key, value)).or_default();
            }
        }
        ground.find_labels();
        let mut by_number: Vec<_> = asked.into_iter().filter(|(_, number)| *number > 1).collect();
        by_number.sort_unstable_by(|a, b| b.1.cmp(&a.1).then(a.0.1.cmp(&b.0.1)));
        for ((kinds, labels), _) in by_number.into_iter().take(MOST_ORDERED) {
            let ordered = ground.order(kinds, labels);
            ground.ordered.insert((kinds, labels), ordered);
        }
        ground
    }

    fn find_labels(&mut self) {
        if self.labelled.is_empty() {
            return;
        }
        for (index, host) in self.world.hosts.iter().enumerate() {
            for (key, value) in host.labels {
                if let Some(hosts) = self.labelled.get_mut(&(key.as_str(), value.as_str())) {
                    hosts.push(index);
                }
            }
        }
    }

    fn order(&self, kinds: &[Accelerator], labels: Option<&Labels>) -> Ordered {
        let offered = &self.offered[kinds];
        let mut ordered = Ordered::new();
        for (index, host) in self.world.hosts.iter().enumerate().filter(|(_, host)| host.takes_new()) {
            if labels
                .is_none_or(|labels| labels.iter().all(|(key, value)| host.labels.get(key) == Some(value)))
            {
                ordered.entry(host.zone).or_default().insert(self.rank(index, offered[index]));
            }
        }
        ordered
    }

    fn rank(&self, host: usize, offered: u64) -> Rank {
        let (taken, workloads) = self.taken[host];
        (workloads, offered.saturating_sub(taken), host)
    }

    /// The part that a deployment may use.
    pub(super) fn part(&self, spec: &'a InferenceDeploymentSpec) -> Part<'_, 'a> {
        let (kinds, labels) = asks(spec);
        let lists = labels.into_iter().flatten();
        let lists = lists.filter_map(|(key, value)| self.labelled.get(&(key.as_str(), value.as_str())));
        Part {
            ground: self,
            spec,
            offered: &self.offered[kinds],
            ordered: self.ordered.get(&(kinds, labels)),
            labelled: lists.map(Vec::as_slice).min_by_key(|hosts| hosts.len()),
        }
    }

    /// Takes room on a host, `more` of it and for so many more workloads; `less` is given back.
    pub(super) fn change(&mut self, host: usize, less: u64, more: u64, workloads: usize) {
        let zone = self.world.hosts[host].zone;
        let before = self.taken[host];
        let after = (before.0.saturating_sub(less).saturating_add(more), before.1 + workloads);
        self.taken[host] = after;
        for ((kinds, _), ordered) in &mut self.ordered {
            let Some(zone) = ordered.get_mut(&zone) else { continue };
            let offered = self.offered[kinds][host];
            if zone.remove(&(before.1, offered.saturating_sub(before.0), host)) {
                zone.insert((after.1, offered.saturating_sub(after.0), host));
            }
        }
    }
}

/// What decides on which hosts a deployment may be.
fn asks(spec: &InferenceDeploymentSpec) -> (&[Accelerator], Option<&Labels>) {
    let labels = spec.placement.host_selector.as_ref().map(|selector| &selector.match_labels);
    (&spec.placement.accelerators, labels.filter(|labels| !labels.is_empty()))
}

/// The ground as one deployment sees it.
#[derive(Clone, Copy)]
pub(super) struct Part<'g, 'a> {
    ground: &'g Ground<'a>,
    spec: &'a InferenceDeploymentSpec,
    offered: &'g [u64],
    ordered: Option<&'g Ordered>,
    /// Hosts with the rarest of the labels that are asked for, if any are.
    labelled: Option<&'g [usize]>,
}

impl<'g> Part<'g, '_> {
    /// Workloads on a host, of all deployments.
    pub(super) fn crowd(&self, host: usize) -> usize {
        self.ground.taken[host].1
    }

    /// Negative where more is taken than is offered now, because other programs grew.
    pub(super) fn free(&self, host: usize) -> i128 {
        i128::from(self.offered[host]) - i128::from(self.ground.taken[host].0)
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
        let hosts = &self.ground.world.hosts;
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
        let all = if self.labelled.is_some() { 0..0 } else { 0..self.ground.world.hosts.len() };
        let Self { ground, spec, offered, .. } = self;
        let fits = move |host: usize| {
            let rank = ground.rank(host, offered[host]);
            let open = || ground.world.hosts[host].takes_new() && matches(&ground.world.hosts[host], spec);
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

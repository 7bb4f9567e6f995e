//! What there is to place on, while one deployment after the other takes its part of it. The hosts are held in the order in which
//! placement prefers them, so that one more copy costs a few look-ups and not a look at every host.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use tandem_crds::{Accelerator, InferenceDeploymentSpec};

use super::{Score, Spread, matches};
use crate::parse::World;
use crate::size::{MAX_WORKLOADS, budget};

/// Hosts and what is left of them.
pub(super) struct Ground<'a> {
    world: &'a World<'a>,
    /// Bytes and workloads by host, of all deployments.
    taken: Vec<(u64, usize)>,
    /// By the kinds of device that may compute.
    offers: HashMap<&'a [Accelerator], Offer>,
    /// Hosts by label and value.
    labelled: HashMap<(&'a str, &'a str), Vec<usize>>,
}

/// What hosts offer to those that may use some kinds of device.
struct Offer {
    /// By host.
    bytes: Vec<u64>,
    /// Hosts that take new copies, by zone, those first that have the fewest workloads and then the least room.
    preferred: BTreeMap<Option<usize>, BTreeSet<(usize, u64, usize)>>,
}

impl<'a> Ground<'a> {
    pub(super) fn of(world: &'a World<'a>) -> Self {
        let mut taken = vec![(0_u64, 0_usize); world.hosts.len()];
        for copy in world.deployments.iter().flat_map(|wanted| &wanted.copies) {
            let (bytes, workloads) = &mut taken[copy.host];
            *bytes = bytes.saturating_add(copy.workload.memory_bytes);
            *workloads += 1;
        }
        let mut labelled: HashMap<(&str, &str), Vec<usize>> = HashMap::new();
        let selectors =
            world.deployments.iter().filter_map(|wanted| wanted.spec.placement.host_selector.as_ref());
        for (key, value) in selectors.flat_map(|selector| &selector.match_labels) {
            labelled.entry((key, value)).or_default();
        }
        if !labelled.is_empty() {
            for (index, host) in world.hosts.iter().enumerate() {
                for (key, value) in host.labels {
                    if let Some(hosts) = labelled.get_mut(&(key.as_str(), value.as_str())) {
                        hosts.push(index);
                    }
                }
            }
        }
        let mut ground = Self { world, taken, offers: HashMap::new(), labelled };
        for wanted in &world.deployments {
            let kinds = wanted.spec.placement.accelerators.as_slice();
            if !ground.offers.contains_key(kinds) {
                let offer = ground.offer(kinds);
                ground.offers.insert(kinds, offer);
            }
        }
        ground
    }

    fn offer(&self, kinds: &[Accelerator]) -> Offer {
        let hosts = &self.world.hosts;
        let bytes: Vec<u64> =
            hosts.iter().map(|host| host.report.map_or(0, |report| budget(report, kinds))).collect();
        let mut preferred: BTreeMap<Option<usize>, BTreeSet<(usize, u64, usize)>> = BTreeMap::new();
        for (index, host) in hosts.iter().enumerate().filter(|(_, host)| host.takes_new()) {
            preferred.entry(host.zone).or_default().insert(self.rank(index, bytes[index]));
        }
        Offer { bytes, preferred }
    }

    fn rank(&self, host: usize, offered: u64) -> (usize, u64, usize) {
        let (taken, workloads) = self.taken[host];
        (workloads, offered.saturating_sub(taken), host)
    }

    /// Workloads on a host, of all deployments.
    pub(super) fn crowd(&self, host: usize) -> usize {
        self.taken[host].1
    }

    /// Negative where more is taken than is offered now, because other programs grew.
    pub(super) fn free(&self, host: usize, spec: &InferenceDeploymentSpec) -> i128 {
        let offered = self.offers[spec.placement.accelerators.as_slice()].bytes[host];
        i128::from(offered) - i128::from(self.taken[host].0)
    }

    /// Takes room on a host, `more` of it and for so many more workloads, or gives it back.
    pub(super) fn change(&mut self, host: usize, less: u64, more: u64, workloads: usize) {
        let zone = self.world.hosts[host].zone;
        let before = self.taken[host];
        let after = (before.0.saturating_sub(less).saturating_add(more), before.1 + workloads);
        self.taken[host] = after;
        for offer in self.offers.values_mut() {
            let Some(zone) = offer.preferred.get_mut(&zone) else { continue };
            let offered = offer.bytes[host];
            if zone.remove(&(before.1, offered.saturating_sub(before.0), host)) {
                zone.insert((after.1, offered.saturating_sub(after.0), host));
            }
        }
    }

    /// Hosts that take new copies of a deployment; those with the fewest workloads first, where all qualify.
    pub(super) fn open(&self, spec: &'a InferenceDeploymentSpec) -> Box<dyn Iterator<Item = usize> + '_> {
        match self.with_labels(spec) {
            Some(hosts) => Box::new(hosts.iter().copied().filter(|host| {
                let host = &self.world.hosts[*host];
                host.takes_new() && matches(host, spec)
            })),
            None => {
                let zones = self.offers[spec.placement.accelerators.as_slice()].preferred.values();
                Box::new(zones.flatten().map(|(_, _, host)| *host))
            }
        }
    }

    /// The best host, of those that a deployment has no copy on, with room for one. The score is the same as for every other host.
    pub(super) fn best(
        &self,
        spec: &'a InferenceDeploymentSpec,
        need: u64,
        counted: &Spread,
    ) -> Option<Score> {
        let is_new = |host: &usize| !counted.contains_key(host);
        let in_zone = |zone: Option<usize>| -> u32 {
            let here =
                counted.iter().filter(|(host, _)| zone.is_some() && self.world.hosts[**host].zone == zone);
            here.map(|(_, copies)| copies).sum()
        };
        let score = |(workloads, free, host): (usize, u64, usize), copies_in_zone| Score {
            copies_here: 0,
            copies_in_zone,
            workloads_here: workloads,
            left_over: free.saturating_sub(need),
            host,
        };
        let offer = &self.offers[spec.placement.accelerators.as_slice()];
        if self.with_labels(spec).is_some() {
            let open = self.open(spec).filter(is_new).map(|host| self.rank(host, offer.bytes[host]));
            let fitting = open.filter(|(workloads, free, _)| *workloads < MAX_WORKLOADS && *free >= need);
            return fitting.map(|rank| score(rank, in_zone(self.world.hosts[rank.2].zone))).min();
        }
        let mut best: Option<Score> = None;
        for (zone, hosts) in &offer.preferred {
            let copies_in_zone = in_zone(*zone);
            let mut level = 0;
            // One level after the other of equally many workloads, in each the smallest gap that is large enough.
            while let Some((workloads, _, _)) = hosts.range((level, 0, 0)..(MAX_WORKLOADS, 0, 0)).next() {
                let workloads = *workloads;
                let fitting = hosts.range((workloads, need, 0)..(workloads + 1, 0, 0));
                if let Some(rank) = fitting.copied().find(|(_, _, host)| is_new(host)) {
                    let found = score(rank, copies_in_zone);
                    if best.as_ref().is_none_or(|best| found < *best) {
                        best = Some(found);
                    }
                    break;
                }
                level = workloads + 1;
            }
        }
        best
    }

    /// Hosts with the rarest of the labels that a deployment asks for, if it asks for any.
    fn with_labels(&self, spec: &'a InferenceDeploymentSpec) -> Option<&[usize]> {
        let labels = &spec.placement.host_selector.as_ref()?.match_labels;
        let lists =
            labels.iter().filter_map(|(key, value)| self.labelled.get(&(key.as_str(), value.as_str())));
        lists.map(Vec::as_slice).min_by_key(|hosts| hosts.len())
    }
}

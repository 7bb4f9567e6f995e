//! Which files stay on which hosts, file by file: see [`crate::keep`], whose answer this is.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::keep::{self, Listed, MAX_KEPT};
use crate::parse::{Host, Wanted, World};

/// Deployments and hosts by files.
#[derive(Default)]
pub(super) struct Files {
    /// Which deployments want a file, and on how many hosts at least.
    wanted: HashMap<String, BTreeMap<usize, usize>>,
    /// Known hosts that say they have a file.
    holders: HashMap<String, BTreeSet<usize>>,
    /// Hosts whose specs keep a file.
    keeping: HashMap<String, BTreeSet<usize>>,
    /// Hosts that begin to keep a file.
    joining: HashMap<String, Vec<usize>>,
    /// The same by host.
    joined: HashMap<usize, BTreeSet<String>>,
    /// Known hosts that have so many files that one of them may be the last that they keep: then files hang together.
    crowded: BTreeSet<usize>,
    /// What hosts shall keep, of those that shall keep others than they do.
    differing: BTreeMap<usize, Vec<String>>,
    /// Files and hosts to be looked at anew.
    stale: BTreeSet<String>,
    stale_hosts: BTreeSet<usize>,
}

impl Files {
    /// Whether files can be looked at one by one.
    pub(super) fn are_apart(&self) -> bool {
        self.crowded.is_empty()
    }

    /// What hosts shall keep, of those that shall keep others than they do.
    pub(super) fn differing(&self) -> &BTreeMap<usize, Vec<String>> {
        &self.differing
    }

    pub(super) fn put_in_host(&mut self, place: usize, host: &Host) {
        let listed = Listed::of(host);
        if host.is_known() {
            for digest in &listed.files {
                self.holders.entry((*digest).to_owned()).or_default().insert(place);
                self.stale.insert((*digest).to_owned());
            }
            if !listed.whole && host.spec.keep_files.len() + listed.files.len() >= MAX_KEPT {
                self.crowded.insert(place);
            }
        }
        for digest in &host.spec.keep_files {
            self.keeping.entry(digest.clone()).or_default().insert(place);
            self.stale.insert(digest.clone());
        }
        self.stale_hosts.insert(place);
    }

    pub(super) fn take_out_host(&mut self, place: usize, host: &Host) {
        for digest in Listed::of(host).files {
            remove(&mut self.holders, digest, place);
            self.stale.insert(digest.to_owned());
        }
        for digest in &host.spec.keep_files {
            remove(&mut self.keeping, digest, place);
            self.stale.insert(digest.clone());
        }
        self.crowded.remove(&place);
        self.stale_hosts.insert(place);
    }

    pub(super) fn put_in_deployment(&mut self, place: usize, wanted: &Wanted) {
        let copies = keep::copies(wanted.spec);
        for file in keep::files(wanted.model, wanted.prior) {
            self.wanted.entry(file.sha256.clone()).or_default().insert(place, copies);
            self.stale.insert(file.sha256.clone());
        }
    }

    pub(super) fn take_out_deployment(&mut self, place: usize, wanted: &Wanted) {
        for file in keep::files(wanted.model, wanted.prior) {
            if let Some(deployments) = self.wanted.get_mut(&file.sha256) {
                deployments.remove(&place);
                if deployments.is_empty() {
                    self.wanted.remove(&file.sha256);
                }
            }
            self.stale.insert(file.sha256.clone());
        }
    }

    /// Looks at what has changed.
    pub(super) fn settle(&mut self, world: &World) {
        for digest in std::mem::take(&mut self.stale) {
            for host in self.joining.remove(&digest).unwrap_or_default() {
                if let Some(joined) = self.joined.get_mut(&host) {
                    joined.remove(&digest);
                }
                self.stale_hosts.insert(host);
            }
            self.stale_hosts.extend(self.keeping.get(&digest).into_iter().flatten());
            let Some(copies) = self.wanted.get(&digest).and_then(|wanted| wanted.values().max()) else {
                continue;
            };
            let keeps = |host: usize| {
                let host = &world.hosts[host];
                host.spec.keep_files.contains(&digest) && keep::stays(host, &Listed::of(host), &digest)
            };
            let holders = self.holders.get(&digest).into_iter().flatten().copied();
            let joining = keep::join(world, &digest, *copies, holders, keeps, |_| true);
            for host in &joining {
                self.joined.entry(*host).or_default().insert(digest.clone());
                self.stale_hosts.insert(*host);
            }
            if !joining.is_empty() {
                self.joining.insert(digest, joining);
            }
        }
        for place in std::mem::take(&mut self.stale_hosts) {
            let host = &world.hosts[place];
            let listed = Listed::of(host);
            let prior = host.spec.keep_files.iter();
            let prior = prior
                .filter(|digest| self.wanted.contains_key(*digest) && keep::stays(host, &listed, digest));
            let kept: BTreeSet<&String> =
                prior.chain(self.joined.get(&place).into_iter().flatten()).collect();
            if host.spec.keep_files.iter().eq(kept.iter().copied()) {
                self.differing.remove(&place);
            } else {
                self.differing.insert(place, kept.into_iter().cloned().collect());
            }
        }
    }
}

fn remove(sets: &mut HashMap<String, BTreeSet<usize>>, digest: &str, place: usize) {
    if let Some(set) = sets.get_mut(digest) {
        set.remove(&place);
        if set.is_empty() {
            sets.remove(digest);
        }
    }
}

//! Who is where and who runs what: objects joined by their places in a world, without a look at what is observed. Holds no object, so that
//! it can outlive a plan and follow single changes.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use jiff::Timestamp;
use tandem_crds::{DeploymentRef, InferenceDeployment, InferenceHost};

use crate::input::State;
use crate::output::Outranked;

/// Label that says which zone a host is in.
const ZONE: &str = "topology.kubernetes.io/zone";

/// One workload of one host's spec: the host's place in the world, and the workload's in the spec.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Spot {
    pub(crate) host: usize,
    pub(crate) workload: usize,
}

/// Where everything is. A host's place is its rank by name, a deployment's its rank by age.
#[derive(Default)]
pub(crate) struct Joins {
    /// Positions in [`State::hosts`], by place.
    pub(crate) hosts: Vec<usize>,
    /// Numbers the zone that a host's labels name, by place.
    pub(crate) zones: Vec<Option<usize>>,
    /// Positions in [`State::deployments`], by place.
    pub(crate) deployments: Vec<usize>,
    /// Namespaces and names, by place.
    pub(crate) keys: Vec<DeploymentRef>,
    /// The other way round.
    pub(crate) places: HashMap<DeploymentRef, usize>,
    /// Each deployment's copies, in order.
    pub(crate) copies: Vec<Vec<Spot>>,
    /// Copies whose deployment is gone.
    pub(crate) orphans: BTreeSet<Spot>,
    /// What each host runs, as deployments and their bytes there, oldest deployment first.
    pub(crate) tenants: Vec<Vec<(usize, u64)>>,
    /// Bytes and workloads on each host, of all deployments that there are.
    pub(crate) taken: Vec<(u64, usize)>,
}

impl Joins {
    /// Joins everything.
    ///
    /// # Errors
    /// When a host's spec carries a higher term than the state: another operator leads.
    pub(crate) fn of(state: &State) -> Result<Self, Outranked> {
        let mut joins = Self::default();
        for (position, host) in state.hosts.iter().enumerate() {
            let Some(name) = host.metadata.name.as_ref() else { continue };
            if host.spec.term > state.term {
                return Err(Outranked { host: name.clone(), term: host.spec.term, own: state.term });
            }
            joins.hosts.push(position);
        }
        joins.hosts.sort_by_key(|position| name(&state.hosts[*position]));
        let mut zones: HashMap<&str, usize> = HashMap::new();
        for position in &joins.hosts {
            let labels = state.hosts[*position].metadata.labels.as_ref();
            let numbered = zones.len();
            let zone = labels.and_then(|labels| labels.get(ZONE));
            joins.zones.push(zone.map(|zone| *zones.entry(zone.as_str()).or_insert(numbered)));
        }
        let keyed = |(position, deployment): (usize, &InferenceDeployment)| {
            Some((created(deployment), key(deployment)?, position))
        };
        let mut deployments: Vec<(Timestamp, DeploymentRef, usize)> =
            state.deployments.iter().enumerate().filter_map(keyed).collect();
        deployments.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
        for (_, key, position) in deployments {
            joins.add(key, position);
        }
        joins.tenants.resize_with(joins.hosts.len(), Vec::new);
        joins.taken.resize(joins.hosts.len(), (0, 0));
        for place in 0..joins.hosts.len() {
            joins.put_in(place, &state.hosts[joins.hosts[place]]);
        }
        Ok(joins)
    }

    /// The youngest deployment comes last.
    pub(crate) fn add(&mut self, key: DeploymentRef, position: usize) {
        self.places.insert(key.clone(), self.keys.len());
        self.keys.push(key);
        self.deployments.push(position);
        self.copies.push(Vec::new());
    }

    /// Takes in what a host's spec lists. The host has nothing here.
    pub(crate) fn put_in(&mut self, place: usize, host: &InferenceHost) {
        let mut here: BTreeMap<usize, u64> = BTreeMap::new();
        let (mut bytes, mut workloads) = (0_u64, 0);
        for (number, workload) in host.spec.workloads.iter().enumerate() {
            let spot = Spot { host: place, workload: number };
            let Some(deployment) = self.places.get(&workload.deployment) else {
                self.orphans.insert(spot);
                continue;
            };
            let copies = &mut self.copies[*deployment];
            copies.insert(copies.partition_point(|other| *other < spot), spot);
            let sum = here.entry(*deployment).or_default();
            *sum = sum.saturating_add(workload.memory_bytes);
            bytes = bytes.saturating_add(workload.memory_bytes);
            workloads += 1;
        }
        self.tenants[place] = here.into_iter().collect();
        self.taken[place] = (bytes, workloads);
    }

    /// Takes out all that a host has here; what it had of deployments.
    pub(crate) fn take_out(&mut self, place: usize) -> Vec<(usize, u64)> {
        let tenants = std::mem::take(&mut self.tenants[place]);
        for (deployment, _) in &tenants {
            self.copies[*deployment].retain(|spot| spot.host != place);
        }
        let (first, last) = (Spot { host: place, workload: 0 }, Spot { host: place, workload: usize::MAX });
        let orphans: Vec<Spot> = self.orphans.range(first..=last).copied().collect();
        orphans.iter().for_each(|spot| {
            self.orphans.remove(spot);
        });
        self.taken[place] = (0, 0);
        tenants
    }
}

fn name(host: &InferenceHost) -> &str {
    host.metadata.name.as_deref().unwrap_or_default()
}

/// Namespace and name of an object that has a name.
pub(crate) fn key(deployment: &InferenceDeployment) -> Option<DeploymentRef> {
    let metadata = &deployment.metadata;
    // An object without a namespace can't come out of a store; `default` is where an API server would have put it.
    let namespace = metadata.namespace.clone().unwrap_or_else(|| "default".to_owned());
    Some(DeploymentRef { namespace, name: metadata.name.clone()? })
}

/// When a deployment was created; how old it is decides who comes first.
pub(crate) fn created(deployment: &InferenceDeployment) -> Timestamp {
    deployment.metadata.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0)
}

//! Objects and observations become a world in which illegal values can't be said: sorted, joined, and with the storm guard's
//! verdict.

use std::collections::{BTreeMap, HashMap};

use jiff::{SignedDuration, Timestamp};
use tandem_crds::{
    DeploymentRef, Drain, InferenceDeployment, InferenceDeploymentSpec, InferenceDeploymentStatus,
    InferenceHostSpec, InferenceHostStatus, WorkloadMode, WorkloadSpec, WorkloadState, WorkloadStatus,
};

use crate::input::{HostObservation, Model, Observation, State};
use crate::output::Outranked;

/// Hosts that fall silent within this of each other fell silent at once.
const AT_ONCE: SignedDuration = SignedDuration::from_secs(60);

/// Label that says which zone a host is in.
const ZONE: &str = "topology.kubernetes.io/zone";

/// Everything that a plan rests on.
pub(crate) struct World<'a> {
    pub(crate) term: u64,
    pub(crate) now: Timestamp,
    /// Sorted by name.
    pub(crate) hosts: Vec<Host<'a>>,
    /// What each host runs, as deployments and their bytes there, oldest deployment first.
    pub(crate) tenants: Vec<Vec<(usize, u64)>>,
    /// Oldest first.
    pub(crate) deployments: Vec<Wanted<'a>>,
    /// Copies whose deployment is gone.
    pub(crate) orphans: Vec<Copy<'a>>,
    /// The storm guard's verdict.
    pub(crate) frozen: Option<Storm>,
}

impl World<'_> {
    /// A host's index, by its name.
    pub(crate) fn host(&self, name: &str) -> Option<usize> {
        self.hosts.binary_search_by(|host| host.name.cmp(name)).ok()
    }
}

/// More than half of the hosts fell silent at once.
pub(crate) struct Storm {
    /// When the last of them did.
    pub(crate) since: Timestamp,
    /// For people.
    pub(crate) sentence: String,
}

/// A host, its spec and what is known of it.
pub(crate) struct Host<'a> {
    pub(crate) name: &'a str,
    pub(crate) labels: &'a BTreeMap<String, String>,
    pub(crate) spec: &'a InferenceHostSpec,
    /// It is about to go.
    pub(crate) leaving: bool,
    pub(crate) presence: Presence,
    /// The newest report there is: fresh if the host is known, else as stored.
    pub(crate) report: Option<&'a InferenceHostStatus>,
    /// Numbers the zone that its labels name.
    pub(crate) zone: Option<usize>,
}

/// Whether a host is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Presence {
    Known,
    Silent { since: Timestamp },
    Absent,
}

impl Host<'_> {
    pub(crate) fn is_known(&self) -> bool {
        self.presence == Presence::Known
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.leaving || self.spec.drain == Some(Drain::Requested)
    }

    pub(crate) fn takes_new(&self) -> bool {
        self.is_known() && !self.spec.unschedulable && !self.is_draining()
    }
}

/// A deployment and what there is of it.
pub(crate) struct Wanted<'a> {
    pub(crate) key: DeploymentRef,
    pub(crate) created: Timestamp,
    pub(crate) generation: i64,
    pub(crate) spec: &'a InferenceDeploymentSpec,
    pub(crate) model: &'a Model,
    pub(crate) prior: Option<&'a InferenceDeploymentStatus>,
    /// Sorted by host and id.
    pub(crate) copies: Vec<Copy<'a>>,
}

impl Wanted<'_> {
    pub(crate) fn patience(&self) -> SignedDuration {
        SignedDuration::from_secs(i64::from(self.spec.redundancy.replace_after_seconds))
    }
}

/// A copy that some host's spec lists.
#[derive(Clone, Copy)]
pub(crate) struct Copy<'a> {
    /// Index of its host.
    pub(crate) host: usize,
    pub(crate) workload: &'a WorkloadSpec,
    /// What its host, being known, says of it. Of another epoch, it is of an earlier start.
    pub(crate) reported: Option<&'a WorkloadStatus>,
}

impl Copy<'_> {
    /// Whether it is meant to serve, and not only to be kept warm.
    pub(crate) fn shall_serve(&self) -> bool {
        self.workload.mode.is_serve()
    }

    /// Whether it does what it is there for, as far as a known host says: it serves, or it is warm.
    pub(crate) fn stands(&self) -> bool {
        let as_it_shall = match self.workload.mode {
            WorkloadMode::Serve => WorkloadState::Ready,
            WorkloadMode::Warm => WorkloadState::Warm,
        };
        self.current().is_some_and(|status| status.state == as_it_shall)
    }

    /// Whether it serves, as far as a known host says.
    pub(crate) fn is_ready(&self) -> bool {
        self.current().is_some_and(|status| status.state == WorkloadState::Ready)
    }

    /// The report on this very start.
    pub(crate) fn current(&self) -> Option<&WorkloadStatus> {
        self.reported.filter(|status| status.epoch == self.workload.epoch)
    }
}

pub(crate) fn world<'a>(
    state: &'a State,
    observation: &'a Observation,
    now: Timestamp,
) -> Result<World<'a>, Outranked> {
    let mut hosts = Vec::with_capacity(state.hosts.len());
    let mut zones: HashMap<&str, usize> = HashMap::new();
    for host in &state.hosts {
        let Some(name) = host.metadata.name.as_deref() else { continue };
        if host.spec.term > state.term {
            return Err(Outranked { host: name.to_owned(), term: host.spec.term, own: state.term });
        }
        static NO_LABELS: BTreeMap<String, String> = BTreeMap::new();
        let (presence, report) = match observation.hosts.get(name) {
            Some(HostObservation::Known(report)) => (Presence::Known, Some(report.as_ref())),
            Some(HostObservation::Unknown { since }) => {
                (Presence::Silent { since: *since }, host.status.as_ref())
            }
            None => (Presence::Absent, host.status.as_ref()),
        };
        let labels = host.metadata.labels.as_ref().unwrap_or(&NO_LABELS);
        let numbered = zones.len();
        let zone = labels.get(ZONE).map(|zone| *zones.entry(zone.as_str()).or_insert(numbered));
        let leaving = observation.leaving.contains(name);
        hosts.push(Host { name, labels, spec: &host.spec, leaving, presence, report, zone });
    }
    hosts.sort_by_key(|host| host.name);

    let mut deployments: Vec<Wanted> =
        state.deployments.iter().filter_map(|deployment| wanted(deployment, state)).collect();
    deployments.sort_by(|a, b| (a.created, &a.key).cmp(&(b.created, &b.key)));
    let places: HashMap<DeploymentRef, usize> =
        deployments.iter().enumerate().map(|(place, wanted)| (wanted.key.clone(), place)).collect();
    let mut orphans = Vec::new();
    let mut tenants = Vec::with_capacity(hosts.len());
    for (index, host) in hosts.iter().enumerate() {
        let mut here: BTreeMap<usize, u64> = BTreeMap::new();
        for workload in &host.spec.workloads {
            let reported = host.report.filter(|_| host.is_known());
            let reported =
                reported.and_then(|report| report.workloads.iter().find(|status| status.id == workload.id));
            let copy = Copy { host: index, workload, reported };
            match places.get(&workload.deployment) {
                Some(place) => {
                    deployments[*place].copies.push(copy);
                    let bytes = here.entry(*place).or_default();
                    *bytes = bytes.saturating_add(workload.memory_bytes);
                }
                None => orphans.push(copy),
            }
        }
        tenants.push(here.into_iter().collect());
    }
    let frozen = storm(&hosts);
    Ok(World { term: state.term, now, hosts, tenants, deployments, orphans, frozen })
}

fn wanted<'a>(deployment: &'a InferenceDeployment, state: &'a State) -> Option<Wanted<'a>> {
    let metadata = &deployment.metadata;
    // An object without a namespace can't come out of a store; `default` is where an API server would have put it.
    let namespace = metadata.namespace.clone().unwrap_or_else(|| "default".to_owned());
    let key = DeploymentRef { namespace, name: metadata.name.clone()? };
    Some(Wanted {
        created: metadata.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0),
        generation: metadata.generation.unwrap_or(0),
        spec: &deployment.spec,
        model: state.models.get(&key).unwrap_or(&Model::Resolving),
        prior: deployment.status.as_ref(),
        copies: Vec::new(),
        key,
    })
}

/// The storm guard: when more than half of the hosts (and two at least) fell silent within a minute of each other, it is
/// likelier that the observer is cut off than that they all died. Hosts that died one by one don't count together.
fn storm(hosts: &[Host]) -> Option<Storm> {
    let mut silent: Vec<Timestamp> = hosts
        .iter()
        .filter_map(|host| match host.presence {
            Presence::Silent { since } => Some(since),
            Presence::Known | Presence::Absent => None,
        })
        .collect();
    silent.sort_unstable();
    let total = hosts.iter().filter(|host| host.presence != Presence::Absent).count();
    // The longest run of them within that time; of equally long ones, the last.
    let (mut first, mut largest): (usize, &[Timestamp]) = (0, &[]);
    for last in 0..silent.len() {
        while silent[last].duration_since(silent[first]) > AT_ONCE {
            first += 1;
        }
        if last + 1 - first >= largest.len() {
            largest = &silent[first..=last];
        }
    }
    let count = largest.len();
    (count >= 2 && count * 2 > total).then(|| Storm {
        since: largest.last().copied().unwrap_or_default(),
        sentence: format!(
            "{count} of {total} hosts fell silent at once, so the fault may be on this side: nothing is placed or moved \
             until more than half are heard; delete the InferenceHosts that are gone for good"
        ),
    })
}

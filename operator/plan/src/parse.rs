//! Objects and observations become a world in which illegal values can't be said: sorted, joined, and with the storm guard's
//! verdict.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use tandem_crds::{
    DeploymentRef, Drain, InferenceDeployment, InferenceDeploymentSpec, InferenceDeploymentStatus,
    InferenceHost, InferenceHostSpec, InferenceHostStatus, WorkloadMode, WorkloadSpec, WorkloadState,
    WorkloadStatus,
};

use crate::input::{HostObservation, Model, Observation, State};
use crate::joins::{Joins, Spot, created};

/// Hosts that fall silent within this of each other fell silent at once.
const AT_ONCE: SignedDuration = SignedDuration::from_secs(60);

/// Everything that a plan rests on.
pub(crate) struct World<'a> {
    pub(crate) term: u64,
    pub(crate) now: Timestamp,
    /// Sorted by name.
    pub(crate) hosts: Vec<Host<'a>>,
    /// Who runs what.
    pub(crate) joins: &'a Joins,
    /// Oldest first.
    pub(crate) deployments: Vec<Wanted<'a>>,
    /// The storm guard's verdict.
    pub(crate) frozen: Option<Storm>,
}

impl<'a> World<'a> {
    /// A host's index, by its name.
    pub(crate) fn host(&self, name: &str) -> Option<usize> {
        self.hosts.binary_search_by(|host| host.name.cmp(name)).ok()
    }

    /// Tells a deployment's copies, without which it can't be decided on.
    pub(crate) fn bring(&mut self, deployment: usize) {
        let copies = self.joins.copies[deployment].iter().map(|spot| self.copy(*spot)).collect();
        self.deployments[deployment].copies = copies;
    }

    /// Tells the copies of all.
    pub(crate) fn bring_all(&mut self) {
        (0..self.deployments.len()).for_each(|deployment| self.bring(deployment));
    }

    /// Copies whose deployment is gone.
    pub(crate) fn orphans(&self) -> impl Iterator<Item = Copy<'a>> {
        self.joins.orphans.iter().map(|spot| self.copy(*spot))
    }

    fn copy(&self, spot: Spot) -> Copy<'a> {
        let host = &self.hosts[spot.host];
        let workload = &host.spec.workloads[spot.workload];
        let report = host.report.filter(|_| host.is_known());
        let reported =
            report.and_then(|report| report.workloads.iter().find(|status| status.id == workload.id));
        Copy { host: spot.host, workload, reported }
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

impl<'a> Host<'a> {
    pub(crate) fn of(
        host: &'a InferenceHost,
        seen: Option<&'a HostObservation>,
        leaving: bool,
        zone: Option<usize>,
    ) -> Self {
        static NO_LABELS: BTreeMap<String, String> = BTreeMap::new();
        let (presence, report) = match seen {
            Some(HostObservation::Known(report)) => (Presence::Known, Some(report.as_ref())),
            Some(HostObservation::Unknown { since }) => {
                (Presence::Silent { since: *since }, host.status.as_ref())
            }
            None => (Presence::Absent, host.status.as_ref()),
        };
        Self {
            name: host.metadata.name.as_deref().unwrap_or_default(),
            labels: host.metadata.labels.as_ref().unwrap_or(&NO_LABELS),
            spec: &host.spec,
            leaving,
            presence,
            report,
            zone,
        }
    }

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
    pub(crate) key: &'a DeploymentRef,
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

/// The world as it is now. Deployments are told without their copies: see [`World::bring`].
pub(crate) fn world<'a>(
    state: &'a State,
    observation: &'a Observation,
    joins: &'a Joins,
    now: Timestamp,
) -> World<'a> {
    let mut hosts = Vec::with_capacity(joins.hosts.len());
    // Both are in the order of names.
    let mut seen = observation.hosts.iter().peekable();
    for (position, zone) in joins.hosts.iter().zip(&joins.zones) {
        let host = &state.hosts[*position];
        let name = host.metadata.name.as_deref().unwrap_or_default();
        while seen.next_if(|(other, _)| other.as_str() < name).is_some() {}
        let seen = seen.next_if(|(other, _)| other.as_str() == name).map(|(_, seen)| seen);
        hosts.push(Host::of(host, seen, observation.leaving.contains(name), *zone));
    }
    let wanted =
        |(key, position): (&'a DeploymentRef, &usize)| wanted(key, &state.deployments[*position], state);
    let deployments = joins.keys.iter().zip(&joins.deployments).map(wanted).collect();
    let frozen = storm(&hosts);
    World { term: state.term, now, hosts, joins, deployments, frozen }
}

/// A deployment, without its copies.
pub(crate) fn wanted<'a>(
    key: &'a DeploymentRef,
    deployment: &'a InferenceDeployment,
    state: &'a State,
) -> Wanted<'a> {
    Wanted {
        key,
        created: created(deployment),
        generation: deployment.metadata.generation.unwrap_or(0),
        spec: &deployment.spec,
        model: state.models.get(key).unwrap_or(&Model::Resolving),
        prior: deployment.status.as_ref(),
        copies: Vec::new(),
    }
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

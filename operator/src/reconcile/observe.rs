//! Observe: the store's objects, typed, and which hosts are heard. Changes nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use tandem_crds::condition::{READY, find};
use tandem_crds::{ConditionStatus, DeploymentRef, InferenceDeployment, InferenceHost};
use tandem_plan::HostObservation;
use tandem_store::{Key, Kind, Object, Selector, StoreError};

use crate::cluster::Cluster;

/// Everything that one look sees.
pub(super) struct Observed {
    /// As read, for the versions that writes have to state.
    pub(super) deployments: BTreeMap<DeploymentRef, (Object, InferenceDeployment)>,
    /// As read, by name.
    pub(super) hosts: BTreeMap<String, (Object, InferenceHost)>,
    /// Which of them are heard.
    pub(super) presence: BTreeMap<String, HostObservation>,
    /// Newest term in any host's spec or report: a new leader starts above it.
    pub(super) newest_term: u64,
    /// Newest term that a host has obeyed and that is not of this store: its spec there is older, or it is this leader's own
    /// term and this leader has not told it. The store was restored from a backup; the leader has to rise above it.
    pub(super) unknown_term: u64,
    /// Whether hosts that have reported before may still be about to report to this operator, which has just started.
    pub(super) settling: bool,
    /// How long until time alone changes what is seen.
    pub(super) next_change: Duration,
}

/// How the store is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    /// For what it holds now.
    Listed,
    /// For what this process has been told of it, which may be a moment old. Every write states the version that was read.
    Recent,
}

/// Looks at everything.
pub(super) async fn observe(cluster: &Cluster, reading: Reading) -> Result<Observed, StoreError> {
    let read = async |kind| match reading {
        Reading::Listed => cluster.store.list(&Selector::all(kind)).await,
        Reading::Recent => cluster.store.recent(&Selector::all(kind)).await,
    };
    let deployments = read(Kind::InferenceDeployment).await?;
    let hosts = read(Kind::InferenceHost).await?;
    let names: Vec<String> = hosts.objects.iter().map(|host| host.key.name.clone()).collect();
    cluster.sessions.expect(&names);
    cluster.sessions.look(cluster.clock.elapsed());
    let mut observed = Observed {
        deployments: BTreeMap::new(),
        hosts: BTreeMap::new(),
        presence: BTreeMap::new(),
        newest_term: 0,
        unknown_term: 0,
        settling: false,
        next_change: Duration::MAX,
    };
    for object in deployments.objects {
        let key = DeploymentRef { namespace: object.key.namespace.clone(), name: object.key.name.clone() };
        if let Some(deployment) = typed(&object) {
            observed.deployments.insert(key, (object, deployment));
        }
    }
    for object in hosts.objects {
        let Some(host) = typed::<InferenceHost>(&object) else { continue };
        observed.see(cluster, &object.key.name, &host);
        observed.hosts.insert(object.key.name.clone(), (object, host));
    }
    Ok(observed)
}

impl Observed {
    /// Whether there is such an object.
    pub(super) fn has(&self, key: &Key) -> bool {
        match key.kind {
            Kind::InferenceDeployment => self
                .deployments
                .contains_key(&DeploymentRef { namespace: key.namespace.clone(), name: key.name.clone() }),
            Kind::InferenceHost => self.hosts.contains_key(&key.name),
        }
    }

    fn see(&mut self, cluster: &Cluster, name: &str, host: &InferenceHost) {
        let reported = host.status.as_ref().and_then(|status| status.observed_term).unwrap_or(0);
        let obeyed = cluster.sessions.obeyed_term(name).max(reported);
        self.newest_term = self.newest_term.max(obeyed).max(host.spec.term);
        let own = cluster.leading.borrow().unwrap_or(u64::MAX);
        let foreign = cluster.sessions.foreign_term(name).filter(|term| *term >= own);
        if let Some(term) = foreign.or((obeyed > host.spec.term).then_some(obeyed)) {
            self.unknown_term = self.unknown_term.max(term);
        }
        // A host that has never reported is absent: there is nothing to say about it.
        let (Some(status), Some(silence)) = (&host.status, cluster.sessions.silence(name)) else { return };
        let timing = &cluster.timing;
        let here = cluster.now() - silence.lasted;
        let presence = if silence.ever_heard {
            if silence.lasted < timing.silent_after {
                self.next_change = self.next_change.min(timing.silent_after - silence.lasted);
                HostObservation::Known(Box::new(status.clone()))
            } else {
                HostObservation::Unknown { since: here }
            }
        } else {
            let was_silent =
                find(&status.conditions, READY).filter(|ready| ready.status == ConditionStatus::Unknown);
            if silence.lasted < timing.boot_grace {
                self.next_change = self.next_change.min(timing.boot_grace - silence.lasted);
                // A host that was silent already when the operator before this one ended is not waited for.
                self.settling |= was_silent.is_none();
                HostObservation::Unknown { since: here }
            } else {
                // Silent to that operator and to this one: its time runs on from where it was.
                HostObservation::Unknown {
                    since: was_silent.map_or(here, |ready| here.min(ready.last_transition_time)),
                }
            }
        };
        self.presence.insert(name.to_owned(), presence);
    }
}

/// The store admits only what parses; an object that does not is of another release, and left alone.
fn typed<T: serde::de::DeserializeOwned>(object: &Object) -> Option<T> {
    match serde_json::from_value(object.json.clone()) {
        Ok(value) => Some(value),
        Err(error) => {
            tracing::error!(object = %object.key, %error, "this release can't read the object: it is left alone");
            None
        }
    }
}

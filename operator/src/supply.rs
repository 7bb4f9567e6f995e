//! What each host is told of where weights come from: credentials of its deployments, peers, and the cluster's rules. It goes down
//! the host's session and is written nowhere.

use std::collections::BTreeMap;
use std::sync::Arc;

use tandem_control_api::{Credential, Supply, WeightLink, WeightPeer};
use tandem_crds::{DeploymentRef, InferenceHost, InferenceHostSpec};
use tandem_pki::Identity;
use tandem_plan::HostObservation;
use tandem_plan::supply::Peer;

use crate::cluster::Cluster;
use crate::models::Found;

/// Publishes what each host is told, if it is anything else than before. `planned` are specs that are about to be written: a host
/// has the credential of a workload before the workload.
pub(crate) fn publish(
    cluster: &Cluster,
    hosts: &[InferenceHost],
    planned: &BTreeMap<String, InferenceHostSpec>,
    presence: &BTreeMap<String, HostObservation>,
    credentials: &BTreeMap<DeploymentRef, Found>,
) {
    let hosts: Vec<InferenceHost> = hosts.iter().map(|host| with(host, planned)).collect();
    let mut peers = tandem_plan::supply::peers(&hosts, presence, &cluster.asked.wanted());
    let mut supplies = BTreeMap::new();
    for host in &hosts {
        let Some(name) = &host.metadata.name else { continue };
        let supply = Supply {
            credentials: needed(host, credentials),
            peers: peers.remove(name).unwrap_or_default().iter().filter_map(told).collect(),
            allowed_sources: cluster.sources.allowed.clone(),
            mirrors: cluster.sources.mirrors.clone(),
            s3_region: cluster.sources.s3_region.clone(),
            extra_ca_pem: cluster.sources.extra_ca.clone(),
        };
        supplies.insert(name.clone(), supply);
    }
    cluster.supplies.send_if_modified(|known| {
        let other = **known != supplies;
        if other {
            *known = Arc::new(supplies);
        }
        other
    });
}

/// A host with the workloads that it has and those that it is about to have.
fn with(host: &InferenceHost, planned: &BTreeMap<String, InferenceHostSpec>) -> InferenceHost {
    let mut host = host.clone();
    let next = host.metadata.name.as_ref().and_then(|name| planned.get(name));
    host.spec.workloads.extend(next.into_iter().flat_map(|spec| spec.workloads.iter().cloned()));
    host
}

fn needed(host: &InferenceHost, credentials: &BTreeMap<DeploymentRef, Found>) -> Vec<Credential> {
    let deployments: std::collections::BTreeSet<&DeploymentRef> =
        host.spec.workloads.iter().map(|workload| &workload.deployment).collect();
    let credential = |deployment: &DeploymentRef| {
        let found = credentials.get(deployment)?.as_ref().ok()?.as_ref()?;
        Some(Credential { deployment: deployment.to_string(), secret: found.secret.reveal().to_owned() })
    };
    deployments.into_iter().filter_map(credential).collect()
}

fn told(peer: &Peer) -> Option<WeightPeer> {
    let links = peer.links.iter().map(|path| WeightLink { address: path.address.clone(), tier: path.tier });
    Some(WeightPeer {
        host: peer.host.clone(),
        // A host's name comes out of its certificate, so it is one.
        server_name: Identity::host(&peer.host).ok()?.server_name(),
        links: links.collect(),
    })
}

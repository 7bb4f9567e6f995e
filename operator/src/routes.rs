//! What gateways are told, pure: which replicas answer to which name.
//!
//! A host's silence is no proof that its workers are gone: a silent host's replicas leave the table only while another replica
//! of the deployment is there, so that losing the control plane's wires never takes the last one away.

use std::collections::BTreeMap;

use jiff::Timestamp;
use tandem_control_api::{ModelRoute, Replica, RouteTable};
use tandem_crds::{InferenceDeploymentSpec, InferenceHostSpec, InferenceHostStatus, WorkloadState};
use tandem_store::Object;

/// A deployment as routes see it.
pub(crate) struct RoutedDeployment {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) created: Timestamp,
    pub(crate) uid: String,
    pub(crate) spec: InferenceDeploymentSpec,
}

/// A host as routes see it.
pub(crate) struct RoutedHost {
    pub(crate) name: String,
    pub(crate) spec: InferenceHostSpec,
    pub(crate) status: InferenceHostStatus,
    /// Silent for longer than is usual.
    pub(crate) silent: bool,
    /// This operator has heard it, now or before.
    pub(crate) heard: bool,
    /// Its object, once it has reported.
    pub(crate) reported: Option<Object>,
}

/// The table without its version.
pub(crate) fn table(
    deployments: &[RoutedDeployment],
    hosts: &[RoutedHost],
    revoked: Vec<String>,
) -> RouteTable {
    // The oldest of a name has the short name; the identity decides between two of one second.
    let mut oldest: BTreeMap<&str, &RoutedDeployment> = BTreeMap::new();
    for deployment in deployments {
        let age = |d: &RoutedDeployment| (d.created, d.uid.clone());
        let first = oldest.entry(deployment.spec.model.name.as_str()).or_insert(deployment);
        if age(deployment) < age(first) {
            *first = deployment;
        }
    }
    let mut models: Vec<ModelRoute> = deployments
        .iter()
        .map(|deployment| ModelRoute {
            name: deployment.spec.model.name.clone(),
            namespace: deployment.namespace.clone(),
            deployment: deployment.name.clone(),
            owns_short_name: std::ptr::eq(oldest[deployment.spec.model.name.as_str()], deployment),
            replicas: replicas(deployment, hosts),
            sampling_json: deployment.spec.sampling.as_ref().map_or_else(String::new, |sampling| {
                serde_json::to_string(sampling).expect("sampling is JSON")
            }),
            context_tokens: deployment.spec.context.tokens,
            created: u64::try_from(deployment.created.as_second()).unwrap_or(0),
        })
        .collect();
    models.sort_by(|a, b| (&a.namespace, &a.deployment).cmp(&(&b.namespace, &b.deployment)));
    RouteTable { version: 0, models, revoked }
}

fn replicas(deployment: &RoutedDeployment, hosts: &[RoutedHost]) -> Vec<Replica> {
    let mut heard = Vec::new();
    let mut silent = Vec::new();
    for host in hosts {
        for status in &host.status.workloads {
            let planned = host.spec.workloads.iter().find(|workload| workload.id == status.id);
            let draining = match status.state {
                // Serving, but no longer wanted here: finish what runs.
                WorkloadState::Ready => planned.is_none() || host.spec.drain.is_some(),
                WorkloadState::Draining => true,
                _ => continue,
            };
            let ours = match planned {
                Some(workload) => {
                    workload.deployment.namespace == deployment.namespace
                        && workload.deployment.name == deployment.name
                        && workload.epoch == status.epoch
                }
                // Whose it was is known only while it is planned; gateways know it from their last table.
                None => false,
            };
            let (Some(address), Some(server_name)) = (&status.endpoint, &status.server_name) else {
                continue;
            };
            if !ours {
                continue;
            }
            let replica = Replica {
                workload: status.id.clone(),
                epoch: status.epoch,
                host: host.name.clone(),
                address: address.clone(),
                server_name: server_name.clone(),
                numerics_id: status.numerics_id.clone().unwrap_or_default(),
                quant: planned.map_or_else(String::new, |workload| workload.quant.clone()),
                draining,
            };
            if host.silent { silent.push(replica) } else { heard.push(replica) }
        }
    }
    if heard.iter().any(|replica| !replica.draining) {
        return heard;
    }
    heard.extend(silent);
    heard
}

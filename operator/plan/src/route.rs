//! Where copies answer, for gateways; and when time alone will change a plan.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use tandem_crds::{DeploymentRef, Standby, WorkloadSpec, WorkloadState, WorkloadStatus};

use crate::output::{Replica, Route};
use crate::parse::{Host, Presence, Wanted, World};
use crate::place::SUSPECTED;

/// How long a silent host stays in the routes. Gateways see for themselves within milliseconds whether a copy answers;
/// this bridges a restart of the operator, which hears from its hosts one after the other.
const OUTLIVES_SILENCE: SignedDuration = SignedDuration::from_secs(10);

/// Whose a model's bare name is: the oldest deployment's that has it.
pub(crate) fn owners<'a>(world: &World<'a>) -> BTreeMap<&'a str, &'a DeploymentRef> {
    let mut owners = BTreeMap::new();
    for wanted in &world.deployments {
        owners.entry(wanted.spec.model.name.as_str()).or_insert(wanted.key);
    }
    owners
}

/// One deployment's route.
pub(crate) fn route(world: &World, wanted: &Wanted, owns_short_name: bool) -> Route {
    Route {
        model: wanted.spec.model.name.clone(),
        deployment: wanted.key.clone(),
        owns_short_name,
        replicas: replicas(world, wanted),
        sampling: wanted.spec.sampling.clone(),
        context_tokens: wanted.spec.context.tokens,
        created: wanted.created,
    }
}

fn replicas(world: &World, wanted: &Wanted) -> Vec<Replica> {
    let mut heard = Vec::new();
    let mut silent = Vec::new();
    // A copy is one that a host's spec lists, or one that was placed there before.
    let prior = wanted.prior.into_iter().flat_map(|prior| &prior.placements);
    let places = wanted.copies.iter().map(|copy| copy.host);
    let hosts: BTreeSet<usize> =
        places.chain(prior.filter_map(|placement| world.host(&placement.host))).collect();
    for host in hosts.into_iter().map(|host| &world.hosts[host]) {
        for status in host.report.into_iter().flat_map(|report| &report.workloads) {
            let listed = host.spec.workloads.iter().find(|workload| workload.id == status.id);
            let Some(replica) = replica(host, wanted, listed, status) else { continue };
            match host.presence {
                Presence::Known => heard.push(replica),
                Presence::Silent { since } if world.now.duration_since(since) < OUTLIVES_SILENCE => {
                    heard.push(replica)
                }
                Presence::Silent { .. } => silent.push(replica),
                Presence::Absent => {}
            }
        }
    }
    // A copy that may answer is better than none that does.
    let mut replicas =
        if heard.iter().any(|replica| !replica.draining) { heard } else { [heard, silent].concat() };
    replicas.sort();
    replicas
}

/// A report as a replica of a deployment, if it is one and may be dialled.
fn replica(
    host: &Host,
    wanted: &Wanted,
    listed: Option<&WorkloadSpec>,
    status: &WorkloadStatus,
) -> Option<Replica> {
    // A copy that is no longer listed is known by its server name alone; it belongs to whoever's ids are like its own.
    let listed = listed.filter(|workload| workload.deployment == *wanted.key);
    let current = listed.is_some_and(|workload| workload.epoch == status.epoch);
    let draining = match status.state {
        WorkloadState::Ready => !current,
        WorkloadState::Draining => true,
        _ => return None,
    };
    let quant = match listed {
        Some(workload) => workload.quant.clone(),
        None => wanted
            .prior?
            .placements
            .iter()
            .find(|placement| placement.workload == status.id && placement.host == host.name)
            .map(|_| wanted.spec.quant.clone())?,
    };
    Some(Replica {
        workload: status.id.clone(),
        host: host.name.to_owned(),
        epoch: status.epoch,
        address: status.endpoint.clone()?,
        server_name: status.server_name.clone()?,
        numerics_id: status.numerics_id.clone().unwrap_or_default(),
        quant,
        draining,
    })
}

/// When a silent host will be suspected by some deployment, be lost to it, or leave the routes.
pub(crate) fn wake_at(world: &World) -> Option<Timestamp> {
    let mut moments = Vec::new();
    for (host, tenants) in world.hosts.iter().zip(&world.joins.tenants) {
        let Presence::Silent { since } = host.presence else { continue };
        moments.push(since + OUTLIVES_SILENCE);
        for wanted in tenants.iter().map(|(deployment, _)| &world.deployments[*deployment]) {
            moments.push(since + wanted.patience());
            if wanted.spec.redundancy.standby == Standby::Warm {
                moments.push(since + SUSPECTED);
            }
        }
    }
    if let Some(storm) = &world.frozen {
        moments.extend(
            world.deployments.iter().map(|wanted| storm.since + wanted.patience().max(OUTLIVES_SILENCE)),
        );
    }
    moments.into_iter().filter(|moment| *moment > world.now).min()
}

//! How soon warm copies answer for those that are lost, from what their hosts have measured.

use tandem_crds::WorkloadState;

use super::presumed;
use crate::parse::{Presence, Wanted, World};
use crate::place::SUSPECTED;

/// Such as `Warm ~42 s`: the time after which a silent host is suspected, and what the slowest warm copy takes to serve. Which
/// hosts vanish is not known beforehand, so that the slowest counts even where a faster one might do.
pub(super) fn cover(world: &World, wanted: &Wanted) -> String {
    let reports = wanted.copies.iter().filter(|copy| !copy.shall_serve()).filter_map(|copy| {
        let host = &world.hosts[copy.host];
        let mut statuses = host.report.into_iter().flat_map(|report| &report.workloads);
        let here = host.is_known()
            || matches!(host.presence, Presence::Silent { since }
            if world.now.duration_since(since) < presumed(wanted));
        let workload = copy.workload;
        statuses.find(|status| {
            here && (&status.id, status.epoch) == (&workload.id, workload.epoch)
                && status.state == WorkloadState::Warm
        })
    });
    let seconds: Option<Vec<u32>> = reports.map(|status| status.seconds_to_ready).collect();
    match seconds.and_then(|seconds| seconds.into_iter().max()) {
        Some(seconds) => {
            let detected = u64::try_from(SUSPECTED.as_secs()).unwrap_or(0);
            format!("Warm ~{} s", detected + u64::from(seconds))
        }
        None => "Warm, time not measured yet".to_owned(),
    }
}

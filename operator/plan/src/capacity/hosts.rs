//! What a host offers to a copy: one device's memory, and its disk.

use tandem_crds::{Device, DeviceKind, InferenceHost};

use super::{Limit, LimitKind, Need, Question};
use crate::size::{MAX_WORKLOADS, human, usable};

/// A host's roomiest device of a kind, and what stands against copies on it.
pub(super) struct Seat<'a> {
    pub(super) host: &'a InferenceHost,
    pub(super) device: &'a Device,
    /// What it takes, less the margin and what runs there.
    pub(super) room: u64,
    /// Copies that would fit on all devices of the kind, each on one.
    pub(super) copies: u32,
    pub(super) limits: Vec<Limit>,
}

/// What computes on a host, as it last reported.
pub(super) fn devices(host: &InferenceHost) -> impl Iterator<Item = &Device> {
    host.status.iter().flat_map(|status| &status.devices)
}

/// What people call a kind.
pub(super) fn word(kind: DeviceKind) -> &'static str {
    match kind {
        DeviceKind::Cpu => "CPU",
        DeviceKind::Cuda => "CUDA",
        DeviceKind::Metal => "Metal",
    }
}

/// What each device of a kind takes, in the host's order.
pub(super) fn rooms(host: &InferenceHost, question: &Question<'_>, kind: DeviceKind) -> Vec<u64> {
    // What runs already runs on the processor in this release. What is this deployment's own gives way to it.
    let own = |deployment: &tandem_crds::DeploymentRef| deployment.to_string() == question.deployment;
    let workloads = host.spec.workloads.iter().filter(|workload| !own(&workload.deployment));
    let taken: u64 = workloads.map(|workload| workload.memory_bytes).fold(0, u64::saturating_add);
    let taken = if kind == DeviceKind::Cpu { taken } else { 0 };
    let of_kind = devices(host).filter(|device| device.kind == kind);
    of_kind.map(|device| usable(device.available_bytes).saturating_sub(taken)).collect()
}

/// Where a copy would go on this host, if it has a device of the kind.
pub(super) fn seat<'a>(
    host: &'a InferenceHost,
    question: &Question<'_>,
    need: &Need,
    kind: DeviceKind,
) -> Option<Seat<'a>> {
    let of_kind = devices(host).filter(|device| device.kind == kind);
    let rooms = rooms(host, question, kind);
    let (device, room) = of_kind.zip(rooms.iter().copied()).max_by_key(|(_, room)| *room)?;
    let copies: u64 = rooms.iter().map(|room| room.checked_div(need.total_bytes).unwrap_or(0)).sum();
    let mut seat = Seat {
        host,
        device,
        room,
        copies: u32::try_from(copies.min(MAX_WORKLOADS as u64)).unwrap_or(0),
        limits: Vec::new(),
    };
    if seat.copies == 0 {
        let missing = need.total_bytes - room;
        let where_to = if rooms.len() > 1 { "each device takes" } else { "the device takes" };
        seat.limits.push(Limit {
            limit: LimitKind::DeviceMemory,
            missing_bytes: Some(missing),
            sentence: format!(
                "a copy needs {}, {where_to} {}: {} too little",
                human(need.total_bytes),
                human(room),
                human(missing)
            ),
        });
    }
    if let Some(limit) = disk(host, question, need).or_else(|| selector(host, question)) {
        seat.copies = 0;
        seat.limits.push(limit);
    }
    Some(seat)
}

fn disk(host: &InferenceHost, question: &Question<'_>, need: &Need) -> Option<Limit> {
    let disk = host.status.as_ref()?.disk?;
    // A file:// source may lie where it is read, and takes nothing more.
    if question.spec.model.source.starts_with("file://") || disk.free_bytes >= need.file_bytes {
        return None;
    }
    let missing = need.file_bytes - disk.free_bytes;
    Some(Limit {
        limit: LimitKind::Disk,
        missing_bytes: Some(missing),
        sentence: format!(
            "the files take {} of disk, {} are free: {} too little",
            human(need.file_bytes),
            human(disk.free_bytes),
            human(missing)
        ),
    })
}

fn selector(host: &InferenceHost, question: &Question<'_>) -> Option<Limit> {
    let selector = question.spec.placement.host_selector.as_ref()?;
    let labels = host.metadata.labels.clone().unwrap_or_default();
    let (key, value) = selector.match_labels.iter().find(|(key, value)| labels.get(*key) != Some(value))?;
    Some(Limit {
        limit: LimitKind::HostSelector,
        missing_bytes: None,
        sentence: format!("placement.hostSelector asks for the label {key}={value}"),
    })
}

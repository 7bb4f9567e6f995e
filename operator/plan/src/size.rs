//! Bytes: what a host offers, what a copy takes, and how people read them.

use tandem_crds::{Accelerator, DeviceKind, InferenceHostStatus};

/// One part in this many of a device stays free, for what no plan foresees.
const MARGIN: u64 = 16;

/// Most workloads on one host, as the API has it.
pub(crate) const MAX_WORKLOADS: usize = 64;

/// What copies may take on a host in sum, over its devices of the kinds allowed.
pub(crate) fn budget(report: &InferenceHostStatus, accelerators: &[Accelerator]) -> u64 {
    let allowed = |kind: DeviceKind| {
        accelerators.iter().any(|accelerator| match accelerator {
            Accelerator::Cpu => kind == DeviceKind::Cpu,
        })
    };
    let devices = report.devices.iter().filter(|device| allowed(device.kind));
    devices.map(|device| usable(device.available_bytes)).fold(0, u64::saturating_add)
}

/// What copies may take of what a device says that it has.
pub(crate) fn usable(available: u64) -> u64 {
    available - available / MARGIN
}

/// Bytes for people, such as `4.2 GiB`.
#[must_use]
pub fn human(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut unit = 0;
    let mut tenths = bytes * 10 / 1024;
    while tenths >= 10_240 && unit + 1 < UNITS.len() {
        tenths /= 1024;
        unit += 1;
    }
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_readable() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1_572_864, "1.5 MiB"),
            (402_653_184_000, "375.0 GiB"),
        ] {
            assert_eq!(human(bytes), text);
        }
    }
}

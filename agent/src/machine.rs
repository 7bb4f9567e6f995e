//! What this machine is and has: processor, memory, disk.

use std::fs;
use std::path::PathBuf;

use nix::sys::statvfs::statvfs;
use sysinfo::{
    CpuRefreshKind, MemoryRefreshKind, Pid, ProcessRefreshKind, ProcessesToUpdate, RefreshKind, System,
};
use tandem_crds::{Device, DeviceKind, Disk, HostMemory};

/// Measures again what changes.
pub(crate) struct Machine {
    system: System,
    data_dir: PathBuf,
    limit: Option<u64>,
    processor: String,
}

/// What the host reports of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) device: Device,
    pub(crate) memory: HostMemory,
    pub(crate) disk: Option<Disk>,
}

impl Machine {
    pub(crate) fn new(data_dir: PathBuf, limit: Option<u64>) -> anyhow::Result<Self> {
        let refreshes = RefreshKind::nothing()
            .with_memory(MemoryRefreshKind::nothing().with_ram())
            .with_cpu(CpuRefreshKind::nothing());
        let system = System::new_with_specifics(refreshes)?;
        let brand = system.cpus().first().map(|cpu| cpu.brand().trim()).unwrap_or_default();
        let processor = if brand.is_empty() { System::cpu_arch() } else { brand.to_owned() };
        let processor = format!("{processor}, {} threads", system.cpus().len()).chars().take(128).collect();
        Ok(Self { system, data_dir, limit, processor })
    }

    #[allow(clippy::useless_conversion, reason = "macOS counts blocks of a file system in 32 bits")]
    fn disk(&self) -> Option<Disk> {
        let disk = statvfs(&self.data_dir).ok()?;
        let unit = disk.fragment_size();
        Some(Disk {
            total_bytes: u64::from(disk.blocks()).saturating_mul(unit),
            free_bytes: u64::from(disk.blocks_available()).saturating_mul(unit),
        })
    }

    /// Measures. `own` are the processes of Tandem's workers here, whose memory counts as available to workers.
    pub(crate) fn measure(&mut self, own: &[u32]) -> Facts {
        self.system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
        let own = self.held_by(own);
        let machine = self.system.total_memory();
        let free = self.system.available_memory();
        let (mut total, mut others) = (machine, machine.saturating_sub(free).saturating_sub(own));
        if let Some(group) = self.system.cgroup_limits().filter(|group| group.total_memory < machine) {
            (total, others) = (group.total_memory, group.rss.saturating_sub(own));
        }
        let room = total.saturating_sub(others);
        let available_bytes = self.limit.map_or(room, |limit| limit.min(room));
        Facts {
            device: Device {
                id: "cpu".to_owned(),
                kind: DeviceKind::Cpu,
                name: self.processor.clone(),
                memory_bytes: total,
                available_bytes,
            },
            memory: HostMemory { total_bytes: total, available_bytes: free.min(room) },
            disk: self.disk(),
        }
    }

    /// Bytes of memory that these processes hold and that no file backs: mapped weights can be dropped at any time, and
    /// are counted as free already.
    fn held_by(&mut self, pids: &[u32]) -> u64 {
        let pids: Vec<Pid> = pids.iter().map(|pid| Pid::from_u32(*pid)).collect();
        let memory = ProcessRefreshKind::nothing().with_memory();
        self.system.refresh_processes_specifics(ProcessesToUpdate::Some(&pids), true, memory);
        let held = |pid: &Pid| anonymous(*pid).or_else(|| Some(self.system.process(*pid)?.memory()));
        pids.iter().filter_map(held).sum()
    }
}

impl Facts {
    /// Whether somebody should hear of the difference: more than a fiftieth of the whole.
    pub(crate) fn differ(&self, other: &Self) -> bool {
        let far = |a: u64, b: u64, whole: u64| a.abs_diff(b) > whole / 50;
        let total = self.memory.total_bytes;
        let disk = match (&self.disk, &other.disk) {
            (Some(a), Some(b)) => {
                a.total_bytes != b.total_bytes || far(a.free_bytes, b.free_bytes, a.total_bytes)
            }
            (a, b) => a != b,
        };
        disk || total != other.memory.total_bytes
            || far(self.memory.available_bytes, other.memory.available_bytes, total)
            || far(self.device.available_bytes, other.device.available_bytes, total)
    }
}

/// Linux tells which part of a process no file backs.
fn anonymous(pid: Pid) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// Whether a process is there and not merely waiting to be reaped.
pub(crate) fn is_alive(pid: u32) -> bool {
    let pid = Pid::from_u32(pid);
    let Ok(mut system) = System::new() else { return false };
    system.refresh_processes_specifics(ProcessesToUpdate::Some(&[pid]), true, ProcessRefreshKind::nothing());
    system.process(pid).is_some_and(|process| process.status() != sysinfo::ProcessStatus::Zombie)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_bounds_what_is_offered_and_facts_are_plausible() {
        let dir = tempfile::tempdir().unwrap();
        let all = Machine::new(dir.path().to_owned(), None).unwrap().measure(&[]);
        assert!(all.device.available_bytes > 0 && all.device.available_bytes <= all.device.memory_bytes);
        assert!(all.disk.is_some_and(|disk| disk.total_bytes >= disk.free_bytes && disk.total_bytes > 0));
        assert!(!all.device.name.is_empty());
        let few = Machine::new(dir.path().to_owned(), Some(1 << 20)).unwrap().measure(&[]);
        assert_eq!(few.device.available_bytes, 1 << 20);
        assert!(all.differ(&few));
    }

    #[test]
    fn our_own_memory_is_given_back() {
        let dir = tempfile::tempdir().unwrap();
        let mut machine = Machine::new(dir.path().to_owned(), None).unwrap();
        assert!(machine.held_by(&[std::process::id()]) > 0);
        assert_eq!(machine.held_by(&[]), 0);
        assert!(is_alive(std::process::id()));
    }
}

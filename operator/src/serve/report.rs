//! A host's reports become its object's status: at once when something has happened, now and then when a figure has moved.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tandem_crds::condition::READY;
use tandem_crds::{Condition, ConditionStatus, InferenceHostStatus, TransferStatus};
use tandem_pki::Name;
use tandem_store::{API_VERSION, ApplyOptions, Key, Object, StoreError};

use crate::caller::chain;
use crate::cluster::Cluster;

/// Largest report that is read, in bytes.
const LARGEST: usize = 256 * 1024;
/// How often a figure that merely moves is written.
const NOW_AND_THEN: Duration = Duration::from_secs(10);
/// How often the figures of weights that are on their way are written: somebody may be watching.
const WHILE_MOVING: Duration = Duration::from_secs(5);
/// Writers of one object that may come in between before a write is left to the next report.
const TRIES: usize = 5;
/// Owns the labels that an agent was started with.
const LABELS_OF_AGENT: &str = "tandem-agent";

/// Writes one host's reports.
pub(super) struct Reporter {
    cluster: Arc<Cluster>,
    host: Name,
    /// What was written last, and when.
    written: Option<(InferenceHostStatus, Duration)>,
    /// What was logged last: a report that can't be used comes again every second.
    complaint: String,
}

impl Reporter {
    pub(super) fn new(cluster: Arc<Cluster>, host: Name) -> Self {
        Self { cluster, host, written: None, complaint: String::new() }
    }

    /// Takes a report; what is wrong with it is logged, and the host stays connected.
    pub(super) async fn take(&mut self, json: &str) {
        let status: InferenceHostStatus = match serde_json::from_str(json) {
            Ok(status) if json.len() <= LARGEST => status,
            Ok(_) => return self.complain(&format!("it has {} bytes, and {LARGEST} are read", json.len())),
            Err(error) => return self.complain(&error.to_string()),
        };
        // Said to a leader that was paused meanwhile, and another one may lead: left to the next report.
        if !self.cluster.holds_the_lease() {
            return;
        }
        let now = self.cluster.clock.elapsed();
        if let Some((before, at)) = &self.written
            && !is_due(before, &status, now.saturating_sub(*at))
        {
            return;
        }
        match self.write(&status).await {
            Ok(()) => {
                if self.written.is_none() {
                    self.cluster.wake.notify_one();
                }
                self.written = Some((status, now));
            }
            // Left to the next report, which comes within the report interval.
            Err(error) if error.is_conflict() => {}
            Err(error) => self.complain(&chain(&error)),
        }
    }

    fn complain(&mut self, reason: &str) {
        if self.complaint != reason {
            tracing::warn!(host = %self.host, reason, "the host's report is not taken");
            reason.clone_into(&mut self.complaint);
        }
    }

    async fn write(&self, status: &InferenceHostStatus) -> Result<(), StoreError> {
        let key = Key::host(self.host.as_str());
        let mut tries = 0;
        loop {
            let object =
                self.cluster.store.get(&key).await?.ok_or_else(|| StoreError::NotFound(key.clone()))?;
            let mut new = status.clone();
            new.conditions.retain(|condition| condition.type_ != READY);
            new.conditions.insert(
                0,
                ready(&object, ConditionStatus::True, "Reporting", "the agent reports", self.cluster.now()),
            );
            let json = serde_json::to_value(new).expect("a status is JSON");
            tries += 1;
            match self.cluster.store.replace_status(&key, &object.version, json).await {
                Ok(object) => return self.label(&object, status).await,
                Err(error) if error.is_conflict() && tries < TRIES => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Labels that the agent was started with are the host's labels, unless somebody else has set them.
    async fn label(&self, object: &Object, status: &InferenceHostStatus) -> Result<(), StoreError> {
        let labels = json!(status.labels);
        let manifest = json!({
            "apiVersion": API_VERSION,
            "kind": "InferenceHost",
            "metadata": {"name": object.key.name, "labels": labels},
        });
        match self.cluster.store.apply(manifest, &ApplyOptions::by(LABELS_OF_AGENT)).await {
            Ok(_) => Ok(()),
            Err(error @ StoreError::FieldConflict { .. }) => {
                tracing::warn!(host = %self.host, %error, "the agent's labels are not taken");
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}

/// A host's Ready condition; keeps its time while the answer stays.
pub(crate) fn ready(
    object: &Object,
    status: ConditionStatus,
    reason: &str,
    message: &str,
    now: jiff::Timestamp,
) -> Condition {
    let before = object.status().get("conditions").and_then(Value::as_array).into_iter().flatten();
    let before: Option<Condition> = before
        .filter(|condition| condition["type"] == READY)
        .find_map(|condition| serde_json::from_value(condition.clone()).ok());
    let since =
        before.filter(|before| before.status == status).map_or(now, |before| before.last_transition_time);
    Condition {
        type_: READY.to_owned(),
        status,
        observed_generation: None,
        last_transition_time: since,
        reason: reason.to_owned(),
        message: message.to_owned(),
    }
}

/// Whether a report is written, so long after the one before it.
fn is_due(before: &InferenceHostStatus, after: &InferenceHostStatus, since: Duration) -> bool {
    let moving = after.workloads.iter().any(|workload| workload.transfer.is_some());
    let patience = if moving { WHILE_MOVING } else { NOW_AND_THEN };
    before != after && (has_happened(before, after) || since >= patience)
}

/// Whether two reports differ in more than figures that always move. That a transfer begins or ends is more.
fn has_happened(before: &InferenceHostStatus, after: &InferenceHostStatus) -> bool {
    let still = |status: &InferenceHostStatus| {
        let mut status = status.clone();
        status.memory = None;
        status.disk = None;
        for device in &mut status.devices {
            device.available_bytes = 0;
        }
        for workload in &mut status.workloads {
            workload.progress = None;
            workload.transfer = workload.transfer.map(|_| TransferStatus::default());
            workload.seconds_to_ready = workload.seconds_to_ready.map(|_| 0);
        }
        if let Some(weights) = &mut status.weights {
            weights.used_bytes = 0;
            weights.disk_bytes_per_second = None;
        }
        status
    };
    let budget_moved = before.devices.iter().zip(&after.devices).any(|(before, after)| {
        before.available_bytes.abs_diff(after.available_bytes) > before.memory_bytes / 32
    });
    budget_moved || still(before) != still(after)
}

#[cfg(test)]
mod tests {
    use tandem_crds::{Device, DeviceKind, HostMemory, WeightsStatus, WorkloadState, WorkloadStatus};

    use super::*;

    fn status() -> InferenceHostStatus {
        let cpu = Device {
            id: "cpu".into(),
            kind: DeviceKind::Cpu,
            name: String::new(),
            memory_bytes: 32 << 30,
            available_bytes: 16 << 30,
        };
        InferenceHostStatus { devices: vec![cpu], ..InferenceHostStatus::default() }
    }

    #[test]
    fn a_figure_that_moves_a_little_is_no_event() {
        let mut after = status();
        after.memory = Some(HostMemory { total_bytes: 2, available_bytes: 1 });
        after.devices[0].available_bytes += 1 << 20;
        assert!(!has_happened(&status(), &after));
        after.devices[0].available_bytes += 2 << 30;
        assert!(has_happened(&status(), &after));
    }

    fn workload() -> WorkloadStatus {
        WorkloadStatus {
            id: "w".into(),
            epoch: 1,
            state: WorkloadState::Loading,
            endpoint: None,
            server_name: None,
            numerics_id: None,
            message: None,
            restarts: 0,
            last_exit: None,
            progress: Some(1),
            transfer: None,
            seconds_to_ready: None,
        }
    }

    #[test]
    fn the_beginning_and_the_end_of_a_transfer_are_told_at_once_and_its_figures_every_5_s() {
        let second = Duration::from_secs(1);
        let mut before = status();
        before.workloads.push(workload());
        let mut begun = before.clone();
        begun.workloads[0].transfer =
            Some(TransferStatus { total_bytes: 100, bytes_per_second: 7, ..TransferStatus::default() });
        assert!(is_due(&before, &begun, Duration::ZERO));
        let mut later = begun.clone();
        later.workloads[0].transfer = Some(TransferStatus {
            done_bytes: 50,
            total_bytes: 100,
            eta_seconds: Some(7),
            ..TransferStatus::default()
        });
        let written = (0..60).filter(|n| is_due(&begun, &later, second * *n)).min();
        assert_eq!(written, Some(5));
        assert!(is_due(&later, &before, Duration::ZERO));
        assert!(!is_due(&later, &later, second * 60));
    }

    #[test]
    fn a_file_that_comes_or_goes_is_an_event_and_what_files_take_is_none() {
        let weights = |files: &[&str], used_bytes| {
            let files = files.iter().map(|&file| file.to_owned()).collect();
            let weights = WeightsStatus { files, used_bytes, ..WeightsStatus::default() };
            InferenceHostStatus { weights: Some(weights), ..status() }
        };
        assert!(!has_happened(&weights(&["a"], 1), &weights(&["a"], 2)));
        assert!(has_happened(&weights(&["a"], 1), &weights(&["a", "b"], 1)));
    }

    #[test]
    fn a_workload_that_changes_is_one() {
        let mut before = status();
        before.workloads.push(workload());
        let mut after = before.clone();
        after.workloads[0].progress = Some(50);
        assert!(!has_happened(&before, &after));
        after.workloads[0].state = WorkloadState::Ready;
        assert!(has_happened(&before, &after));
    }
}

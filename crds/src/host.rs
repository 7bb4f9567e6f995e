//! `InferenceHost`: a machine. The operator writes the spec, the report of the host's agent becomes the status.
#![allow(
    clippy::duplicated_attributes,
    reason = "printer columns repeat their type, which the lint takes for a slip"
)]

use std::collections::BTreeMap;

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::condition::Condition;
use crate::deployment::{KvCache, ResolvedFile, Sampling};

/// What shall run on a host. Written by the leading operator alone, but for `unschedulable` and `drain`.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "inference.tandem.dev",
    version = "v1alpha1",
    kind = "InferenceHost",
    shortname = "infh",
    category = "tandem",
    status = "InferenceHostStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "A machine that runs copies of models: what shall run there, and what its agent reports.",
    selectable = ".spec.unschedulable",
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].status"
    ),
    printcolumn(name = "Address", type_ = "string", json_path = ".status.address"),
    printcolumn(name = "Devices", type_ = "string", json_path = ".status.devices[*].name"),
    printcolumn(name = "Workloads", type_ = "string", json_path = ".spec.workloads[*].id"),
    printcolumn(name = "Unschedulable", type_ = "boolean", json_path = ".spec.unschedulable"),
    printcolumn(name = "Version", type_ = "string", json_path = ".status.agentVersion"),
    printcolumn(name = "Term", type_ = "integer", json_path = ".spec.term", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = [
    {
        "rule": "self.term >= oldSelf.term",
        "message": "the term is older than the object's: another operator leads; read the object again, and write only while leading"
    },
    {
        "rule": "self.term > oldSelf.term || self.generation >= oldSelf.generation",
        "message": "within one term a host's generation only grows; read the object again before writing it"
    },
    {
        "rule": "!has(self.drain) || self.unschedulable",
        "message": "a host that is being drained takes nothing new; set unschedulable, too"
    }
]))]
pub struct InferenceHostSpec {
    /// The leader's number. A host refuses a lower one than the newest it has seen.
    pub term: u64,
    /// Grows with every change of `workloads` and `keepFiles`, across terms, too. A host that reports it back has seen this spec.
    pub generation: u64,
    /// Takes no new copies. What runs goes on.
    pub unschedulable: bool,
    /// Asks for what runs here to be moved away: a copy elsewhere is ready before one here ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drain: Option<Drain>,
    /// What shall run. A workload that is not listed is drained and stopped.
    #[schemars(
        length(max = 64),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["id"])
    )]
    pub workloads: Vec<WorkloadSpec>,
    /// Digests of files that stay on this host's disk although no workload here uses them: they may be the last copy of a
    /// model that somebody wants. All others may be collected when the disk's budget is used up.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 256),
        inner(length(min = 64, max = 64)),
        extend("x-kubernetes-list-type" = "set")
    )]
    pub keep_files: Vec<String>,
}

/// Whether what runs on a host is moved away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Drain {
    /// Move everything away.
    Requested,
}

/// One copy of a model, complete: a host needs nothing else to run it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadSpec {
    /// Stable name of the copy, a DNS label.
    #[schemars(
        length(min = 1, max = 63),
        extend("x-kubernetes-validations" = [{
            "rule": "self.matches('^[a-z0-9]([a-z0-9-]*[a-z0-9])?$')",
            "message": "a workload id is a DNS label: a-z, 0-9 and '-', with a letter or digit at both ends"
        }])
    )]
    pub id: String,
    /// Start number. A host runs only the highest it has seen of an id; a higher one replaces what runs.
    pub epoch: u64,
    /// Whether it serves, or is kept warm to serve at once when it is told to.
    #[serde(default, skip_serializing_if = "WorkloadMode::is_serve")]
    pub mode: WorkloadMode,
    /// Whose copy this is.
    pub deployment: DeploymentRef,
    /// The name that clients ask for.
    #[schemars(length(min = 1, max = 63))]
    pub model: String,
    /// Where the files are: the deployment's source, with its revision pinned where it has one.
    #[schemars(length(min = 1, max = 2048))]
    pub source: String,
    /// The files in shard order.
    #[schemars(
        length(min = 1, max = 256),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"])
    )]
    pub files: Vec<ResolvedFile>,
    /// The quantisation, for people and metrics.
    #[schemars(length(min = 1, max = 64))]
    pub quant: String,
    /// Longest sequence in tokens.
    pub context_tokens: u32,
    /// Tokens whose keys and values all sequences share.
    pub pool_tokens: u32,
    /// How keys and values are stored.
    #[serde(default)]
    pub kv_cache: KvCache,
    /// Sampling for requests that don't say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sampling: Option<Sampling>,
    /// Memory that the copy takes, by the sizing. A host refuses to start what exceeds its devices.
    pub memory_bytes: u64,
}

/// What a copy is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum WorkloadMode {
    /// It serves.
    #[default]
    Serve,
    /// Its weights are kept on disk and in the page cache, and nothing is computed.
    Warm,
}

impl WorkloadMode {
    /// Whether it serves: what is not written out.
    #[must_use]
    pub fn is_serve(&self) -> bool {
        *self == Self::Serve
    }
}

/// Names an `InferenceDeployment`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeploymentRef {
    /// Its namespace.
    #[schemars(length(min = 1, max = 63))]
    pub namespace: String,
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

impl std::fmt::Display for DeploymentRef {
    /// As `namespace/name`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// What a host's agent reports. Written on change and coarsely.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct InferenceHostStatus {
    /// `spec.generation` that the host obeys.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<u64>,
    /// `spec.term` that the host obeys.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_term: Option<u64>,
    /// Version of the agent, for people.
    #[schemars(length(max = 64))]
    pub agent_version: String,
    /// Protocol versions that the agent speaks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<ProtocolRange>,
    /// Where gateways and peers dial this host: an IP address or DNS name, without a port.
    #[schemars(length(max = 253))]
    pub address: String,
    /// Labels that the agent was started with. The operator writes them into `metadata.labels`, where selectors look.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    pub labels: BTreeMap<String, String>,
    /// What can compute here.
    #[schemars(
        length(max = 32),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["id"])
    )]
    pub devices: Vec<Device>,
    /// Main memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<HostMemory>,
    /// The disk that holds weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk: Option<Disk>,
    /// Networks that peers may reach this host by.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 16),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["address"])
    )]
    pub links: Vec<Link>,
    /// Verified weights that this host keeps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weights: Option<WeightsStatus>,
    /// How each workload fares, listed in the spec or still ending.
    #[schemars(
        length(max = 128),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["id"])
    )]
    pub workloads: Vec<WorkloadStatus>,
    /// Where clients reach the gateway of this host, if it runs one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048))]
    pub gateway_url: Option<String>,
    /// What else a person should know.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 16),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"])
    )]
    pub conditions: Vec<Condition>,
}

/// Protocol versions from lowest to highest, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProtocolRange {
    /// Oldest spoken.
    pub lowest: u32,
    /// Newest spoken.
    pub highest: u32,
}

/// Something that computes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Device {
    /// Stable name on this host, such as `cpu` or `cuda-0`.
    #[schemars(length(min = 1, max = 63))]
    pub id: String,
    /// What it is.
    pub kind: DeviceKind,
    /// What its maker calls it.
    #[serde(default)]
    #[schemars(length(max = 128))]
    pub name: String,
    /// All of its memory.
    pub memory_bytes: u64,
    /// What Tandem's workloads may take of it in sum, including those that run: all memory less what other programs
    /// and the system hold. It does not shrink when one of Tandem's own workers loads.
    pub available_bytes: u64,
}

/// A kind of device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub enum DeviceKind {
    /// The processor, with main memory.
    #[serde(rename = "CPU")]
    Cpu,
    /// An NVIDIA GPU.
    #[serde(rename = "CUDA")]
    Cuda,
    /// An Apple GPU.
    Metal,
}

/// Main memory of a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HostMemory {
    /// All of it, or the control group's limit where that is lower.
    pub total_bytes: u64,
    /// Free or reclaimable, measured coarsely.
    pub available_bytes: u64,
}

/// A disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Disk {
    /// All of it.
    pub total_bytes: u64,
    /// What the agent may still write, measured coarsely.
    pub free_bytes: u64,
}

/// One network of a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Link {
    /// The host's address there with the network's prefix, such as `10.0.7.12/24`.
    #[schemars(length(min = 1, max = 64))]
    pub address: String,
    /// What the system calls the interface.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub interface: String,
    /// Megabits a second, where the system says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub megabits: Option<u64>,
}

/// Verified weights that a host keeps.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct WeightsStatus {
    /// Port on which other hosts fetch weights from this one, over mutual TLS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// What the files take on disk.
    pub used_bytes: u64,
    /// What they may take, if there is a budget.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget_bytes: Option<u64>,
    /// Digests of whole, verified files; the largest, if there are too many to list.
    #[schemars(length(max = 128), inner(length(min = 64, max = 64)), extend("x-kubernetes-list-type" = "set"))]
    pub files: Vec<String>,
    /// How fast the disk was read when weights were read last, in bytes a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_bytes_per_second: Option<u64>,
}

/// How a transfer of weights fares, as measured coarsely.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TransferStatus {
    /// Verified on this host.
    pub done_bytes: u64,
    /// In all files.
    pub total_bytes: u64,
    /// Bytes a second, averaged over the last seconds.
    pub bytes_per_second: u64,
    /// Seconds until it is done at this rate; absent while nothing moves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eta_seconds: Option<u64>,
    /// Of the bytes that came, those that came from the source itself.
    #[serde(default)]
    pub source_bytes: u64,
    /// Of the bytes that came, those that came from other hosts.
    #[serde(default)]
    pub peer_bytes: u64,
}

/// How one workload fares on its host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadStatus {
    /// As in the spec.
    #[schemars(length(min = 1, max = 63))]
    pub id: String,
    /// Start number of what runs.
    pub epoch: u64,
    /// How far it is.
    pub state: WorkloadState,
    /// `host:port` that gateways and peers dial, once it listens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 270))]
    pub endpoint: Option<String>,
    /// DNS name in its certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub server_name: Option<String>,
    /// Workers with equal ids continue each other's streams bit for bit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub numerics_id: Option<String>,
    /// A sentence on the state, with what to change where something must.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub message: Option<String>,
    /// Times that it was started again under this epoch.
    #[serde(default)]
    pub restarts: u32,
    /// How its process last ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_exit: Option<LastExit>,
    /// Percent of fetching or loading that is done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 100))]
    pub progress: Option<u32>,
    /// How its weights come, while they do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transfer: Option<TransferStatus>,
    /// Of a warm one: seconds from being told to serve until it serves, from rates that this host has measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds_to_ready: Option<u32>,
}

/// How far a workload is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub enum WorkloadState {
    /// Its weights are being fetched and verified.
    Fetching,
    /// Its process is being started.
    Starting,
    /// Its process reads the weights.
    Loading,
    /// It serves.
    Ready,
    /// It does not serve; its weights are on disk and in the page cache, so that it soon can.
    Warm,
    /// It finishes what runs and takes nothing new.
    Draining,
    /// It does not run, and starting it again waits or is of no use; `message` says why.
    Failed,
    /// It has ended as told.
    Stopped,
}

impl std::fmt::Display for WorkloadState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Fetching => "Fetching",
            Self::Starting => "Starting",
            Self::Loading => "Loading",
            Self::Ready => "Ready",
            Self::Warm => "Warm",
            Self::Draining => "Draining",
            Self::Failed => "Failed",
            Self::Stopped => "Stopped",
        })
    }
}

/// How a process ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LastExit {
    /// Exit code, unless a signal ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<i32>,
    /// Signal that ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// The cause in words, such as `killed by the kernel, out of memory`.
    #[schemars(length(max = 256))]
    pub cause: String,
}

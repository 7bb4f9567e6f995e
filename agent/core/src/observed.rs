//! What is known of a host's workloads at one moment.

use std::collections::BTreeMap;
use std::time::Duration;

use tandem_crds::{LastExit, TransferStatus};

use crate::backoff::restart_delay;
use crate::warmth::Warmth;

/// Of the whole host.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// What workloads may take in sum, in bytes.
    pub memory_bytes: u64,
    /// By workload id.
    pub workloads: BTreeMap<String, Observation>,
}

/// Of one workload. Weights, credentials and failures are those of the epoch that the spec lists.
#[derive(Clone, Debug, Default)]
pub struct Observation {
    /// On disk.
    pub weights: Weights,
    /// How they come, while they do.
    pub transfer: Option<TransferStatus>,
    /// For its mTLS port.
    pub credentials: Credentials,
    /// As the runner tells.
    pub process: Process,
    /// As the process itself tells.
    pub health: Option<Health>,
    /// Starts in a row that ended, or could not be made.
    pub failures: u32,
    /// When the last of them was.
    pub failed_at: Duration,
    /// Why a start could not be made.
    pub failure: Option<String>,
    /// Times that it was started again under its epoch.
    pub restarts: u32,
    /// How its process last ended.
    pub last_exit: Option<LastExit>,
    /// `host:port` for gateways and peers.
    pub endpoint: Option<String>,
    /// DNS name in its certificate.
    pub server_name: Option<String>,
    /// What its last start on this host took, under whatever epoch, until it served.
    pub last_start: Option<Duration>,
}

impl Observation {
    /// From when on a start may be tried again.
    #[must_use]
    pub fn next_start(&self) -> Duration {
        self.failed_at.saturating_add(restart_delay(self.failures))
    }
}

/// A workload's files on this host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Weights {
    /// Not looked for yet.
    #[default]
    Absent,
    /// On their way, bytes of bytes.
    Fetching {
        /// Verified so far.
        done: u64,
        /// In all.
        total: u64,
    },
    /// All here, verified.
    Present,
    /// A worker could not use them.
    Doubtful,
    /// Being hashed again.
    Verifying,
    /// They can't come before somebody else has done something; tried again when that is so, and now and then.
    Waiting {
        /// For what: a sentence.
        why: String,
        /// Since when.
        at: Duration,
        /// How often in a row.
        failures: u32,
    },
    /// They could not be fetched.
    Failed {
        /// A sentence.
        why: String,
        /// When.
        at: Duration,
        /// How often in a row.
        failures: u32,
    },
}

/// A workload's key and certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Credentials {
    /// None, or none that is valid still.
    #[default]
    Absent,
    /// Asked for.
    Requested,
    /// Usable.
    Valid,
    /// The operator refused, or could not be asked.
    Failed {
        /// A sentence.
        why: String,
        /// When.
        at: Duration,
        /// How often in a row.
        failures: u32,
    },
}

/// A workload's process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Process {
    /// None, and none that ended under this epoch.
    #[default]
    None,
    /// The runner is told, and hasn't answered yet.
    Starting {
        /// Its start number.
        epoch: u64,
        /// What it takes, in bytes.
        memory_bytes: u64,
    },
    /// It runs.
    Running {
        /// Its start number.
        epoch: u64,
        /// What it takes, in bytes.
        memory_bytes: u64,
    },
    /// It is told to end and finishes what it serves.
    Stopping {
        /// Its start number.
        epoch: u64,
        /// What it takes, in bytes.
        memory_bytes: u64,
    },
    /// It has ended by itself.
    Exited {
        /// Its start number.
        epoch: u64,
        /// Starting it again ends the same way.
        hopeless: bool,
    },
}

impl Process {
    /// What it takes of the host's memory now, in bytes.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        match self {
            Self::Starting { memory_bytes, .. }
            | Self::Running { memory_bytes, .. }
            | Self::Stopping { memory_bytes, .. } => *memory_bytes,
            Self::None | Self::Exited { .. } => 0,
        }
    }
}

/// What a worker last said of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// It reads its weights; percent.
    Loading(u32),
    /// It serves; workers with equal ids continue each other's streams.
    Ready {
        /// Its numerics id.
        numerics_id: String,
    },
    /// It keeps its weights in memory and serves nobody.
    Warm {
        /// How much of them, and how fast they come.
        warmth: Warmth,
        /// What is wrong with that, if something is.
        message: Option<String>,
    },
    /// It finishes what it serves.
    Draining,
    /// It can't serve.
    Failed(String),
    /// It runs and has not answered for some time.
    Silent,
    /// It runs and will not serve again: a sentence that says what it does not do.
    Hung(String),
}

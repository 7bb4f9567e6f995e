//! What agent and runner say to each other: one line of JSON each way, over a Unix socket.
//!
//! `Watch` is answered by the whole list at once and again after every change, until the connection ends. Every other
//! request has one answer.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Longest line, in bytes.
pub(crate) const LONGEST_LINE: usize = 256 * 1024;
/// Processes and remembered ends at once.
pub(crate) const MOST_CHILDREN: usize = 256;

/// From the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Request {
    Start(Start),
    /// SIGTERM now, SIGKILL after the grace; answered at once.
    Stop {
        id: String,
        epoch: u64,
        grace_ms: u64,
    },
    /// The end of this process is known; forget it.
    Acknowledge {
        id: String,
        epoch: u64,
    },
    Watch,
}

/// From the runner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Answer {
    Done,
    Refused(String),
    Children(Vec<Listed>),
}

/// A process to start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Start {
    /// Which workload; one process at a time.
    pub id: String,
    /// Its start number.
    pub epoch: u64,
    /// What it takes of the host's memory, in bytes: kept for an agent that comes back.
    pub memory_bytes: u64,
    /// The executable.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Its whole environment: nothing is inherited.
    pub env: BTreeMap<String, String>,
    /// Where standard output and error go.
    pub log: PathBuf,
}

/// A process that runs, or whose end has not been acknowledged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// As started.
    pub id: String,
    /// As started.
    pub epoch: u64,
    /// As started.
    pub memory_bytes: u64,
    /// Its process id.
    pub pid: u32,
    /// How it is.
    pub state: State,
}

/// How a process is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It runs.
    Running,
    /// It runs and was told to end.
    Stopping,
    /// It has ended.
    Exited(Exit),
}

/// How a process ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Its exit code, unless a signal ended it.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// It was told to end.
    pub asked: bool,
    /// What else is known, such as that the kernel ran out of memory.
    pub note: Option<String>,
}

//! What happens to a host, as its parts tell the agent.

use tandem_agent_core::Health;
use tandem_crds::InferenceHostSpec;

use crate::keeper::{Stock, Wrong};
use crate::runner::Listed;

/// What happens to a host.
pub(crate) enum Event {
    /// The operator's newest word, and the trace that it came of, if any.
    Spec {
        spec: Box<InferenceHostSpec>,
        traceparent: String,
    },
    /// What the runner holds.
    Children(Vec<Listed>),
    /// It holds nothing any more.
    RunnerGone,
    /// No operator speaks to this host any more.
    SessionEnded,
    /// This host's former certificates are worth nothing, nor are those of what it runs.
    Rejoined,
    Fetched {
        id: String,
        number: u64,
        result: Result<(), Missing>,
    },
    /// Files were hashed again; those that are not as they should be.
    Verified {
        id: String,
        number: u64,
        wrong: Vec<Wrong>,
    },
    /// What there is of weights.
    Stocked(Box<Stock>),
    Certified {
        id: String,
        result: Result<(), String>,
    },
    StartFailed {
        id: String,
        epoch: u64,
        why: String,
    },
    Health {
        id: String,
        epoch: u64,
        port: Option<u16>,
        health: Health,
    },
}

/// Why weights are not here.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Missing {
    /// Somebody else has to do something first.
    Waits(String),
    /// There is no room for them.
    NoRoom(String),
    /// Everything else.
    Failed(String),
}

//! The parent of a host's workers. No network, no decisions: it starts, stops, reaps and remembers, so that the agent may
//! crash, restart and be upgraded while workers serve.

mod child;
mod client;
mod log;
mod protocol;
mod server;

pub use client::{Client, RunnerError};
pub use protocol::{Exit, Listed, Start, State};
pub use server::{RunnerArgs, run};

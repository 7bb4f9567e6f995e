//! What an agent decides: a host's spec and what is observed there become actions and a report. Pure; time is an argument.
//!
//! The generation [`Ledger`] decides what may be obeyed at all, [`reconcile`] what to do next, [`report`] what to say, and
//! [`collect`] which weights make room for others.

mod backoff;
mod exit;
mod keep;
mod ledger;
mod observed;
mod reconcile;
mod report;
mod transfer;
mod warmth;

pub use backoff::restart_delay;
pub use exit::{Ended, cause};
pub use keep::{Kept, Pin, Pins, Room, collect};
pub use ledger::{Ledger, LedgerError, Refused};
pub use observed::{Credentials, Health, Observation, Observed, Process, Weights};
pub use reconcile::{Action, Plan, reconcile};
pub use report::report;
pub use transfer::{Amounts, Transfer};
pub use warmth::{Warmth, seconds_to_ready};

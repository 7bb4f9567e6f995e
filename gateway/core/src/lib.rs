//! The pure part of a gateway: which token is the stream's next, what text the tokens make, which replica to ask, whom to
//! let in.
//!
//! Nothing here knows a socket, a clock or randomness. Time comes in as the time since the observer started.

pub mod access;
pub mod budget;
pub mod choose;
pub mod conduct;
mod event;
pub mod fold;
pub mod health;
pub mod ledger;
pub mod quarantine;
#[cfg(test)]
mod script;
pub mod turns;

pub use event::{Alternative, Event, FinishReason, Prompt, Refusal, Rejection, Seam, Token};

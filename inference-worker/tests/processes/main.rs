//! Whole `inference-worker` processes with a random model, as agents and people start them.

#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

mod replica;
#[cfg(feature = "scripted")]
mod scripted;
mod serve;
mod support;
mod warm;

//! The engine on small generated models: against float64, against itself, and against broken files.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod bits;
mod hostile;
mod layer_ranges;
mod memory;
mod reference;
mod sequences;
mod support;
mod trained;
mod weight_types;

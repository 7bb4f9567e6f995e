//! One host of a cluster: an agent that obeys the newest spec, and a runner that is the parent of its workers.

pub mod runner;

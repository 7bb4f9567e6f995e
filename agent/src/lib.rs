//! One host of a cluster: an agent that obeys the newest spec, and a runner that is the parent of its workers.

mod agent;
mod error;
mod event;
mod gateway;
mod health;
mod home;
mod keeper;
mod links;
mod logs;
mod machine;
mod metrics;
mod models;
mod operator;
pub mod runner;
mod session;
mod settings;
mod supervisor;
mod supply;
mod upkeep;
mod worker_spec;

pub use agent::run;
pub use settings::RunArgs;

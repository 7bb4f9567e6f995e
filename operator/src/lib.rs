//! The operator: serves agents, gateways and people over one TLS port; one operator of a cluster leads, and plans.
//!
//! Nothing here touches the data path: without an operator everything that serves goes on serving.

mod admin;
mod asked;
mod attention;
mod authority;
mod caller;
mod cluster;
mod keys;
mod lead;
mod logs;
mod membership;
mod metrics;
mod models;
mod nodes;
mod pods;
mod publish;
mod reconcile;
mod relay;
mod rollout;
mod rotation;
mod run;
mod secrets;
mod serve;
mod sessions;
mod settings;
mod sources;
mod supply;
mod traced;

pub use pods::{ServiceAccount, ServiceAccounts};
pub use run::{Operator, backup, restore, start};
pub use settings::{Settings, SourceSettings, StoreSettings, Timing};

/// Owns what the operator writes into objects.
pub(crate) const MANAGER: &str = "tandem-operator";

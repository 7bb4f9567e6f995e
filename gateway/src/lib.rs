//! A gateway: OpenAI's API for clients, and a ledger of each stream over the workers behind it.
//!
//! [`Fleet`] knows the workers and how they are, [`follow_routes`] keeps it true, [`Gateway`] serves choices on it;
//! [`Access`] knows whom to let in, [`CertificateFiles`] what they see of TLS.

mod access;
mod attempt;
mod backend;
mod choice;
mod clock;
mod fleet;
mod identity;
mod metrics;
mod replica;
mod routes;
mod table;
mod tls;

pub use access::{Access, KeyGate};
pub use backend::Gateway;
pub use fleet::Fleet;
pub use identity::{IdentityError, Join, adopt, identity, keep_renewed};
pub use metrics::{MetricsError, serve_metrics};
pub use routes::{Operator, RoutesFile, RoutesFileError, follow_routes};
pub use table::{ReplicaRoute, Route, Table};
pub use tandem_gateway_core::conduct::Policy;
pub use tandem_gateway_core::health::Bounds as HealthBounds;
pub use tls::{CertificateError, CertificateFiles};

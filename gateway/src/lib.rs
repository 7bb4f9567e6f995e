//! A gateway: OpenAI's API for clients, and a ledger of each stream over the workers behind it.
//!
//! [`Fleet`] knows the workers and how they are, [`follow_routes`] keeps it true, [`Gateway`] serves choices on it;
//! [`Access`] knows whom to let in.

mod access;
mod attempt;
mod backend;
mod choice;
mod clock;
mod fleet;
mod identity;
mod replica;
mod routes;
mod table;

pub use access::{Access, KeyGate};
pub use backend::Gateway;
pub use fleet::Fleet;
pub use identity::{IdentityError, Join, adopt, identity, keep_renewed};
pub use routes::{Operator, RoutesFile, RoutesFileError, follow_routes};
pub use table::{ReplicaRoute, Route, Table};
pub use tandem_gateway_core::conduct::Policy;
pub use tandem_gateway_core::health::Bounds as HealthBounds;

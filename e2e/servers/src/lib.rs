//! Real servers for tests: etcd, Kubernetes control planes and nodes, built from the Go modules in `e2e/tools`; a collector of spans.
//!
//! Every server is a process of its own with its data in a temporary folder and on ports that were free when it started; all end
//! with the value that stands for them, also when a test fails, and with the test's process, also when that is killed.

mod audit;
mod control_plane;
mod disk;
mod etcd;
mod fault;
mod image;
pub mod manifests;
mod node;
pub mod packages;
mod pki;
mod port;
mod process;
pub mod site;
mod spans;
mod tether;
pub mod tools;

pub use audit::AuditEvent;
pub use control_plane::{ControlPlane, Options, User};
pub use etcd::Etcd;
pub use fault::{Fault, FaultProxy};
pub use image::{Image, Stage};
pub use node::{GATEWAY, Machine, Node, POLICIES, Setting, bare, network};
pub use port::free_port;
pub use process::Server;
pub use spans::{Heard, SpanCollector};
pub use tether::Tethered;
pub use tools::{Minor, Tool, Tools};

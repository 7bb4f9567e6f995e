//! The objects of `inference.tandem.dev/v1alpha1`: what people write, what the operator writes, what hosts report.
//!
//! - [`InferenceDeployment`]: a model, kept answering. People write its spec, the operator its status.
//! - [`InferenceHost`]: a machine. The operator writes its spec (what shall run there), its agent's report becomes the status.
//!
//! Everything here is a noun: no I/O, no clock. A field exists once it acts; names are for ever, since there is no
//! conversion between versions.

pub mod admission;
pub mod condition;
pub mod deployment;
mod future;
pub mod host;
pub mod manifest;
pub mod schema;

pub use admission::{Violation, admit};

pub use condition::{Condition, ConditionStatus};
pub use deployment::{
    Accelerator, Context, Credentials, HostSelector, InferenceDeployment, InferenceDeploymentSpec,
    InferenceDeploymentStatus, KvCache, Lane, ListedFile, Model, ModelStatus, Placement, PlacementStatus,
    Recovery, Redundancy, ResolvedFile, Sampling, SecretRef, Sizing, Standby,
};
pub use host::{
    DeploymentRef, Device, DeviceKind, Disk, Drain, HostMemory, InferenceHost, InferenceHostSpec,
    InferenceHostStatus, LastExit, Link, ProtocolRange, TransferStatus, WeightsStatus, WorkloadMode,
    WorkloadSpec, WorkloadState, WorkloadStatus,
};
pub use schema::{Kind, generated_files};

/// API group of all kinds.
pub const GROUP: &str = "inference.tandem.dev";
/// The only version there is.
pub const VERSION: &str = "v1alpha1";
/// As manifests write it.
pub const API_VERSION: &str = "inference.tandem.dev/v1alpha1";

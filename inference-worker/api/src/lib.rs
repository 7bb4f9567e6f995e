//! What workers and those who talk to them agree on: `worker.proto`, the digest that ties frames together, and the
//! files by which an agent starts a worker.

mod digest;
mod spec;

pub use digest::{NotADigest, PrefixDigest};
pub use spec::{
    FileStamp, KvCache, NotASha256, Numerics, PREFILL_ROWS, SamplingDefaults, Sha256Hex, SpecError,
    USUAL_MAX_SEQUENCES, WeightFile, WorkerEndpoint, WorkerExit, WorkerSpec, batch_rows,
};

#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated; the documentation is in worker.proto"
)]
mod generated {
    tonic::include_proto!("tandem.worker.v1alpha1");
}
pub use generated::*;

//! `control.proto`: what agents, gateways and the CLI say to an operator.

#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated; the documentation is in control.proto"
)]
mod generated {
    tonic::include_proto!("tandem.control.v1alpha1");
}
pub use generated::*;

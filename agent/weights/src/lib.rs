//! Weights: where a model's files are, which of them a quant means, and a store on a host that holds them by their hash.
//!
//! Nothing is believed before it is hashed: [`resolve`] hands out headers only of files whose sha256 is the listed one,
//! and a [`Store`] holds only what has the name it is stored under.

mod access;
mod listing;
mod origin;
mod resolve;
mod source;
mod store;
mod sums;

pub use access::{Access, NotACertificate};
pub use listing::{ListedFile, PickError};
pub use origin::TransferError;
pub use resolve::{ResolveError, Resolved, ResolvedFile, resolve};
pub use source::{BadSource, Source};
pub use store::{FetchError, Store, StoreError, VerifyError};
pub use sums::BadSums;
pub use tandem_worker_api::Sha256Hex;

//! Sources: where a model's files are, which of them a quant means, and reading any range of them.
//!
//! Nothing here keeps a file. [`resolve`] finds exact files with their digests; an [`Origin`] reads them. What is read
//! is believed by nobody before it has its digest.

mod access;
mod header;
mod listing;
mod origin;
mod resolve;
mod secret;
mod source;
mod sums;

pub use access::{Access, NotACertificate};
pub use listing::{ListedFile, PickError};
pub use origin::{Body, Origin, TransferError};
pub use resolve::{ResolveError, Resolved, ResolvedFile, resolve};
pub use secret::Secret;
pub use source::{BadSource, Source};
pub use sums::{BadSums, is_inside};
pub use tandem_worker_api::Sha256Hex;

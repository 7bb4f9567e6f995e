//! Sources: where a model's files are, which of them a quant means, and reading any range of them.
//!
//! Nothing here keeps a file. [`resolve`] finds exact files with their digests; an [`Origin`] reads them. What is read
//! is believed by nobody before it has its digest, except that headers are read for sizes.
//!
//! Each protocol comes down to two things: a list of files with digests and lengths, and a GET of a range. Hubs, buckets,
//! registries and web servers all are asked by one client, which looks every name up once and follows redirects by itself,
//! so that no answer can lead to where no model comes from. Programs have installed a TLS provider before they open one.

mod access;
mod address;
mod body;
mod error;
mod header;
mod http;
mod listing;
mod names;
mod origin;
mod quants;
mod resolve;
mod secret;
mod source;
mod sums;

pub use access::{Access, BadAccess, NotACertificate};
pub use body::Body;
pub use error::TransferError;
pub use listing::{ListedFile, PickError};
pub use origin::Origin;
pub use quants::{QuantFile, QuantListing, quants};
pub use resolve::{ResolveError, Resolved, ResolvedFile, resolve};
pub use secret::Secret;
pub use source::{BadSource, Source};
pub use sums::{BadSums, is_inside};
pub use tandem_worker_api::Sha256Hex;

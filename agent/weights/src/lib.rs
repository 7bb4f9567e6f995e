//! Weights on a host: a store that holds files under their own digests, brings them there, and gives them to other hosts.
//!
//! Nothing is believed before it is hashed: a [`Store`] holds only what has the name it is stored under, a [`Fetcher`] brings it
//! piece by piece from its source and from other hosts, and [`serve`] lets these read what is verified.

mod adopt;
mod choose;
mod doubt;
mod download;
mod error;
mod fetch;
mod folder;
mod hash;
mod journal;
mod partial;
mod peers;
mod pieces;
mod progress;
mod receive;
mod record;
mod serve;
mod store;

pub use error::{Changed, FetchError, StoreError, VerifyError};
pub use fetch::{FetchOptions, Fetcher, Order};
pub use peers::{Link, Peer};
pub use pieces::{Cut, Digest};
pub use progress::Progress;
pub use serve::{Sent, serve};
pub use store::{FileState, Store, StoreOptions, StoredFile};

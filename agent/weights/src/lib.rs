//! Weights on a host: a store that holds files under their own digests, and brings them there.
//!
//! Nothing is believed before it is hashed: a [`Store`] holds only what has the name it is stored under.

mod store;

pub use store::{FetchError, Store, StoreError, VerifyError};

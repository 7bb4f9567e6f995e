//! The cluster's certificate authority, kept in the store so that every operator of a cluster has the same.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use tandem_pki::{AuthorityError, CertificateAuthority};
use tandem_store::{Store, StoreError};
use thiserror::Error;

const COLLECTION: &str = "authority";
const CURRENT: &str = "current";

/// The authority could not be had.
#[derive(Debug, Error)]
pub enum NoAuthority {
    /// The store refused.
    #[error("the certificate authority can't be read from the store")]
    Store(#[from] StoreError),
    /// Key or certificate are unusable.
    #[error("the certificate authority is unusable")]
    Authority(#[from] AuthorityError),
    /// The record is not what any release writes.
    #[error("the certificate authority in the store can't be read: restore the store from a backup")]
    Record(#[source] serde_json::Error),
}

#[derive(Serialize, Deserialize)]
struct Saved {
    certificate_pem: String,
    key_pem: String,
}

/// The store's authority; on a cluster's first start a new one, which exactly one of several operators gets to save.
///
/// # Errors
/// See [`NoAuthority`].
pub async fn open(store: &dyn Store, now: SystemTime) -> Result<CertificateAuthority, NoAuthority> {
    loop {
        if let Some(record) = store.record(COLLECTION, CURRENT).await? {
            let saved: Saved = serde_json::from_slice(&record.value).map_err(NoAuthority::Record)?;
            return Ok(CertificateAuthority::load(&saved.certificate_pem, &saved.key_pem)?);
        }
        let fresh = CertificateAuthority::create(now)?;
        let saved = Saved {
            certificate_pem: fresh.certificate_pem().to_owned(),
            key_pem: fresh.key_pem().to_owned(),
        };
        let value = serde_json::to_vec(&saved).map_err(NoAuthority::Record)?;
        match store.put_record(COLLECTION, CURRENT, None, value).await {
            Ok(_) => return Ok(fresh),
            // Another operator was first: its authority is the cluster's.
            Err(error) if error.is_conflict() => {}
            Err(error) => return Err(error.into()),
        }
    }
}

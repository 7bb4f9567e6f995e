//! The cluster's certificate authority, kept in the store so that every operator of a cluster has the same; two of them while
//! one replaces the other.
//!
//! A replacement is three writes of one record, each by compare-and-swap: both are there and the old one signs, both are there
//! and the new one signs, the new one is there alone. Whoever reads the record knows all of it.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tandem_pki::{
    AuthorityError, CertificateAuthority, Credentials, Fingerprint, Identity, Issued, OPERATOR_LIFETIME,
};
use tandem_store::{Record, Store, StoreError, Version};
use thiserror::Error;

use crate::rotation::{Change, Next, Phase};

const COLLECTION: &str = "authority";
const CURRENT: &str = "current";

/// The authority could not be had.
#[derive(Debug, Error)]
pub(crate) enum NoAuthority {
    #[error("the certificate authority can't be read from the store")]
    Store(#[from] StoreError),
    #[error("the certificate authority is unusable")]
    Authority(#[from] AuthorityError),
    #[error("the certificate authority in the store can't be read: restore the store from a backup")]
    Record(#[source] serde_json::Error),
    #[error("the certificate authority is not in the store any more: restore the store from a backup")]
    Gone,
}

#[derive(Clone, Serialize, Deserialize)]
struct Saved {
    certificate_pem: String,
    key_pem: String,
    /// Releases before it was there have one authority for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rotation: Option<SavedRotation>,
}

#[derive(Clone, Serialize, Deserialize)]
struct SavedRotation {
    phase: Phase,
    since: Timestamp,
    other: SavedPair,
    /// URIs of members that are not waited for.
    #[serde(default)]
    without: BTreeSet<String>,
}

#[derive(Clone, Serialize, Deserialize)]
struct SavedPair {
    certificate_pem: String,
    key_pem: String,
}

impl SavedPair {
    fn of(authority: &CertificateAuthority) -> Self {
        Self {
            certificate_pem: authority.certificate_pem().to_owned(),
            key_pem: authority.key_pem().to_owned(),
        }
    }

    fn load(&self) -> Result<CertificateAuthority, AuthorityError> {
        CertificateAuthority::load(&self.certificate_pem, &self.key_pem)
    }
}

/// Every authority that is trusted, and which of them signs.
pub(crate) struct Authorities {
    signing: CertificateAuthority,
    rotation: Option<Rotation>,
    /// Of the record.
    version: Version,
}

/// A replacement under way.
pub(crate) struct Rotation {
    pub(crate) phase: Phase,
    pub(crate) since: Timestamp,
    /// The one that does not sign: the new one first, then the old one.
    other: CertificateAuthority,
    /// Members that are not waited for.
    pub(crate) without: BTreeSet<Identity>,
}

impl Authorities {
    fn of(saved: &Saved, version: Version) -> Result<Self, NoAuthority> {
        let signing = CertificateAuthority::load(&saved.certificate_pem, &saved.key_pem)?;
        let rotation = match &saved.rotation {
            None => None,
            Some(rotation) => Some(Rotation {
                phase: rotation.phase,
                since: rotation.since,
                other: rotation.other.load()?,
                without: rotation.without.iter().filter_map(|uri| Identity::from_uri(uri)).collect(),
            }),
        };
        Ok(Self { signing, rotation, version })
    }

    pub(crate) fn version(&self) -> &Version {
        &self.version
    }

    pub(crate) fn rotation(&self) -> Option<&Rotation> {
        self.rotation.as_ref()
    }

    /// What the decision on the next step goes by.
    pub(crate) fn change(&self) -> Option<Change> {
        Some(Change { phase: self.rotation.as_ref()?.phase, new: self.survivor().fingerprint() })
    }

    /// Oldest first.
    pub(crate) fn all(&self) -> Vec<&CertificateAuthority> {
        match &self.rotation {
            None => vec![&self.signing],
            Some(Rotation { phase: Phase::Introducing, other, .. }) => vec![&self.signing, other],
            Some(Rotation { phase: Phase::Reissuing, other, .. }) => vec![other, &self.signing],
        }
    }

    /// The one that is there after the replacement: what join tokens name.
    pub(crate) fn survivor(&self) -> &CertificateAuthority {
        self.all().pop().expect("there is at least the one that signs")
    }

    pub(crate) fn signing(&self) -> Fingerprint {
        self.signing.fingerprint()
    }

    /// Whether a join token may name this one.
    pub(crate) fn knows(&self, fingerprint: Fingerprint) -> bool {
        self.all().iter().any(|authority| authority.fingerprint() == fingerprint)
    }

    /// Everything to trust, as PEM.
    pub(crate) fn bundle(&self) -> String {
        self.all().iter().map(|authority| authority.certificate_pem()).collect()
    }

    /// As [`CertificateAuthority::sign`], with everything to trust.
    pub(crate) fn sign(
        &self,
        csr_pem: &str,
        identity: &Identity,
        addresses: &[String],
        now: SystemTime,
        lifetime: Duration,
    ) -> Result<Issued, AuthorityError> {
        let issued = self.signing.sign(csr_pem, identity, addresses, now, lifetime)?;
        Ok(Issued { ca_pem: self.bundle(), ..issued })
    }

    /// What an operator shows. Who trusts only the authority that does not sign is led to the one that does: who has a token that
    /// names it, and who was away.
    pub(crate) fn operator(
        &self,
        addresses: &[String],
        now: SystemTime,
    ) -> Result<Credentials, AuthorityError> {
        let own = self.signing.credentials(&Identity::Operator, addresses, now, OPERATOR_LIFETIME)?;
        let led = match &self.rotation {
            None => String::new(),
            Some(rotation) => self.signing.vouched_for_by(&rotation.other, now, OPERATOR_LIFETIME)?,
        };
        Ok(Credentials {
            certificate_pem: format!("{}{led}", own.certificate_pem),
            ca_pem: self.bundle(),
            ..own
        })
    }

    fn save(&self) -> Saved {
        Saved {
            certificate_pem: self.signing.certificate_pem().to_owned(),
            key_pem: self.signing.key_pem().to_owned(),
            rotation: self.rotation.as_ref().map(|rotation| SavedRotation {
                phase: rotation.phase,
                since: rotation.since,
                other: SavedPair::of(&rotation.other),
                without: rotation.without.iter().map(Identity::uri).collect(),
            }),
        }
    }
}

/// The store's authorities; on a cluster's first start a new one, which exactly one of several operators gets to save.
pub(crate) async fn open(store: &dyn Store, now: SystemTime) -> Result<Authorities, NoAuthority> {
    loop {
        if let Some(record) = store.record(COLLECTION, CURRENT).await? {
            return parse(record);
        }
        let fresh = SavedPair::of(&CertificateAuthority::create(now)?);
        let saved = Saved { certificate_pem: fresh.certificate_pem, key_pem: fresh.key_pem, rotation: None };
        match put(store, None, &saved).await {
            Ok(authorities) => return Ok(authorities),
            // Another operator was first: its authority is the cluster's.
            Err(NoAuthority::Store(error)) if error.is_conflict() => {}
            Err(error) => return Err(error),
        }
    }
}

/// The store's authorities, if they are others than these.
pub(crate) async fn newer(store: &dyn Store, than: &Authorities) -> Result<Option<Authorities>, NoAuthority> {
    let record = store.record(COLLECTION, CURRENT).await?.ok_or(NoAuthority::Gone)?;
    if record.version == than.version {
        return Ok(None);
    }
    parse(record).map(Some)
}

fn parse(record: Record) -> Result<Authorities, NoAuthority> {
    let saved = serde_json::from_slice(&record.value).map_err(NoAuthority::Record)?;
    Authorities::of(&saved, record.version)
}

async fn put(store: &dyn Store, before: Option<&Version>, saved: &Saved) -> Result<Authorities, NoAuthority> {
    let value = serde_json::to_vec(saved).map_err(NoAuthority::Record)?;
    let version = store.put_record(COLLECTION, CURRENT, before, value).await?;
    Authorities::of(saved, version)
}

/// Makes a new authority, which is to replace the one that there is, and waits for none of these on the way.
pub(crate) async fn begin(
    store: &dyn Store,
    stable: &Authorities,
    without: BTreeSet<Identity>,
    now: (SystemTime, Timestamp),
) -> Result<Authorities, NoAuthority> {
    let rotation = SavedRotation {
        phase: Phase::Introducing,
        since: now.1,
        other: SavedPair::of(&CertificateAuthority::create(now.0)?),
        without: without.iter().map(Identity::uri).collect(),
    };
    put(store, Some(&stable.version), &Saved { rotation: Some(rotation), ..stable.save() }).await
}

/// Waits for none of these, either.
pub(crate) async fn go_without(
    store: &dyn Store,
    known: &Authorities,
    without: &BTreeSet<Identity>,
) -> Result<Authorities, NoAuthority> {
    let mut saved = known.save();
    if let Some(rotation) = &mut saved.rotation {
        rotation.without.extend(without.iter().map(Identity::uri));
    }
    put(store, Some(&known.version), &saved).await
}

/// The next step of a replacement.
pub(crate) async fn step(
    store: &dyn Store,
    known: &Authorities,
    next: Next,
    now: Timestamp,
) -> Result<Authorities, NoAuthority> {
    let mut saved = known.save();
    saved.rotation = match (next, saved.rotation) {
        (Next::Reissue, Some(rotation)) => {
            let new = std::mem::replace(&mut saved.certificate_pem, rotation.other.certificate_pem);
            let key = std::mem::replace(&mut saved.key_pem, rotation.other.key_pem);
            // Now the old one.
            let other = SavedPair { certificate_pem: new, key_pem: key };
            Some(SavedRotation { phase: Phase::Reissuing, since: now, other, without: rotation.without })
        }
        _ => None,
    };
    put(store, Some(&known.version), &saved).await
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tandem_pki::HOST_LIFETIME;
    use tandem_pki::KeyAndRequest;
    use tandem_store::{EmbeddedStore, SystemClock};

    use super::*;

    #[tokio::test]
    async fn an_authority_is_replaced_in_three_writes_and_any_reader_knows_where_it_is() {
        tandem_pki::install_tls_provider();
        let dir = tempfile::tempdir().unwrap();
        let store = EmbeddedStore::open(&dir.path().join("store.redb"), Arc::new(SystemClock)).await.unwrap();
        let (now, stamp) = (SystemTime::now(), Timestamp::now());
        let first = open(&store, now).await.unwrap();
        let old = first.signing();
        assert!(first.rotation().is_none() && newer(&store, &first).await.unwrap().is_none());

        let away = BTreeSet::from([Identity::host("mac-z").unwrap()]);
        let begun = begin(&store, &first, away.clone(), (now, stamp)).await.unwrap();
        let (new, read) = (begun.survivor().fingerprint(), newer(&store, &first).await.unwrap().unwrap());
        assert_eq!((read.signing(), read.survivor().fingerprint()), (old, new));
        assert_eq!(read.rotation().map(|rotation| &rotation.without), Some(&away));
        assert!(read.knows(old) && read.knows(new) && read.bundle() == begun.bundle());
        // Of two that begin at once one does.
        let late = begin(&store, &first, BTreeSet::new(), (now, stamp)).await.err().unwrap();
        assert!(matches!(late, NoAuthority::Store(error) if error.is_conflict()));

        let signing = step(&store, &read, Next::Reissue, stamp).await.unwrap();
        assert_eq!((signing.signing(), signing.survivor().fingerprint()), (new, new));
        assert_eq!((signing.bundle(), signing.rotation().unwrap().phase), (begun.bundle(), Phase::Reissuing));
        let own = KeyAndRequest::generate().unwrap();
        let host = Identity::host("mac-a").unwrap();
        let issued = signing.sign(&own.csr_pem, &host, &[], now, HOST_LIFETIME).unwrap();
        assert_eq!((issued.issuer, &issued.ca_pem), (new, &begun.bundle()));
        assert!(step(&store, &read, Next::Reissue, stamp).await.is_err(), "a step is taken once");

        let done = step(&store, &signing, Next::Finish, stamp).await.unwrap();
        assert!(done.rotation().is_none() && done.knows(new) && !done.knows(old));
        assert_eq!(open(&store, now).await.unwrap().signing(), new);
    }

    #[test]
    fn a_record_of_an_older_release_is_stable() {
        let pair = SavedPair::of(&CertificateAuthority::create(SystemTime::now()).unwrap());
        let older = serde_json::to_value(&pair).unwrap();
        let saved: Saved = serde_json::from_value(older.clone()).unwrap();
        assert!(saved.rotation.is_none());
        // And an older release reads what this one writes while nothing is replaced.
        assert_eq!(serde_json::to_value(&saved).unwrap(), older);
    }
}

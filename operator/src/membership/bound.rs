//! Which node each host is bound to, as its member's record says.

use std::collections::BTreeMap;

use tandem_pki::Identity;
use tandem_store::{Record, Store, StoreError};

use super::{MEMBERS, Member, read};

/// What was read of a host's record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bound {
    /// UID of its node; none: it has joined by token, or not at all.
    pub(crate) node: Option<String>,
    /// Whether it has certificates that are not revoked.
    pub(crate) certified: bool,
}

impl Bound {
    fn of(record: &Record) -> Self {
        let Some(member) = read::<Member>(record) else { return Self::default() };
        Self { certified: !member.certificates.is_empty(), node: member.bound }
    }
}

/// Every host's.
pub(crate) async fn bound_hosts(store: &dyn Store) -> Result<BTreeMap<String, Bound>, StoreError> {
    let records = store.records(MEMBERS).await?;
    let hosts = records.iter().filter_map(|record| match Identity::from_uri(&record.key)? {
        Identity::Host(name) => Some((name.to_string(), Bound::of(record))),
        _ => None,
    });
    Ok(hosts.collect())
}

/// This one's.
pub(crate) async fn bound_host(store: &dyn Store, host: &str) -> Result<Bound, StoreError> {
    let Ok(identity) = Identity::host(host) else { return Ok(Bound::default()) };
    let record = store.record(MEMBERS, &identity.uri()).await?;
    Ok(record.as_ref().map(Bound::of).unwrap_or_default())
}

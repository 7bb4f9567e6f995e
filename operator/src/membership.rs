//! Who may join and who has: join tokens by the hash of their secret, members with the serials of their certificates.

mod bound;
mod standing;

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tandem_control_api::Role;
use tandem_pki::{Fingerprint, Identity, Issued, JoinToken};
use tandem_store::{Record, Store, StoreError};
use thiserror::Error;

pub(crate) use self::bound::{Bound, bound_host, bound_hosts};
use self::standing::Stand;
pub(crate) use self::standing::{Said, admins, confirm, parties, prune};

const TOKENS: &str = "join-tokens";
const MEMBERS: &str = "members";
const REVOKED: &str = "revoked";

/// How long a token lives unless its maker says.
const DEFAULT_TTL: Duration = Duration::from_secs(3600);
/// How long a token may live.
const LONGEST_TTL: Duration = Duration::from_secs(7 * 24 * 3600);
/// How many tokens may wait to be spent.
const MOST_TOKENS: usize = 1000;
/// How many certificates of one identity may be valid at once; renewed at a third of their life, three are. What is beyond is
/// revoked: a certificate that nobody remembers could not be.
const MOST_CERTIFICATES: usize = 16;
/// How many of all that one member runs.
const MOST_IN_ALL: usize = 1024;

/// Why a token buys nothing. What is wrong with a token that exists is said only to who knows its secret.
#[derive(Debug, Error)]
pub(crate) enum JoinRefused {
    #[error(
        "this join token is not known here: it was used already, has expired, or is of another cluster; make a new one \
         with `tandem join-token`"
    )]
    Unknown,
    #[error("this join token has expired: make a new one with `tandem join-token`")]
    Expired,
    #[error("this join token lets a {} join, not a {}: make one with `tandem join-token --role {}`", word(*.token), word(*.asked), word(*.asked))]
    Role { token: Role, asked: Role },
    #[error("this join token is for {token}, not for {asked}: join as {token}, or make a token for {asked}")]
    Name { token: String, asked: String },
    #[error(
        "{0} has joined already: to let another machine take this name, make a token for it with `tandem join-token --name`"
    )]
    Taken(Identity),
    #[error("this certificate was revoked: join again with a new token")]
    Revoked,
    #[error("there are {MOST_TOKENS} join tokens waiting: let some expire before making more")]
    TooManyTokens,
    #[error("a join token may live at most 7 days, not {0} seconds")]
    TooLong(u32),
    #[error("the store refused")]
    Store(#[from] StoreError),
}

#[derive(Serialize, Deserialize)]
struct Token {
    secret_sha256: String,
    role: i32,
    /// Empty: any name that nobody has.
    name: String,
    expires: Timestamp,
}

/// What the store knows of a member.
#[derive(Serialize, Deserialize)]
struct Member {
    /// Its certificates that haven't ended, and those of what it runs: a renewal leaves the one before valid, a revocation must
    /// reach all of them.
    certificates: Vec<Certified>,
    joined: Timestamp,
    /// UID of the node or pod that it is, in Kubernetes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    bound: Option<String>,
    /// What it has said last of whom it trusts, and what the gateway has that it runs, by their URIs.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    stands: BTreeMap<String, Stand>,
}

impl Member {
    fn new(joined: Timestamp, bound: Option<String>) -> Self {
        Self { certificates: Vec::new(), joined, bound, stands: BTreeMap::new() }
    }
}

/// Who comes with a certificate request.
pub(crate) enum Binding<'a> {
    /// The first to hold the name.
    First,
    /// The member that holds the name already, by its certificate of this serial number.
    Holder(&'a str),
    /// Whoever proved that the name is its own: the node or pod of this UID, or the bearer of a token made for the name.
    TakenOver(Option<String>),
    /// An operator, for an admin whose credentials it keeps.
    Operator,
}

#[derive(Serialize, Deserialize)]
struct Certified {
    serial: String,
    /// URI of the identity that it is for, if not the member's own: a worker, or the gateway of a host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    of: Option<String>,
    /// Seconds since 1970.
    not_after: i64,
    /// Fingerprint of the authority that has signed it; none in records of older releases.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    issuer: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct Revoked {
    /// Seconds since 1970; no need to remember it any longer.
    not_after: i64,
}

/// A certificate that was made and not handed out yet.
pub(crate) struct Made<'a> {
    /// Whom it is for.
    pub(crate) identity: &'a Identity,
    pub(crate) issued: &'a Issued,
}

/// A token that may be spent, once.
pub(crate) struct Spendable {
    record: Record,
    /// Made for exactly this name: may take it over from an earlier holder.
    pub(crate) names_holder: bool,
}

fn word(role: Role) -> &'static str {
    match role {
        Role::Gateway => "gateway",
        Role::Admin => "admin",
        Role::Worker => "worker",
        Role::Host | Role::Unspecified => "host",
    }
}

fn read<T: DeserializeOwned>(record: &Record) -> Option<T> {
    serde_json::from_slice(&record.value).ok()
}

fn write<T: Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("texts and numbers are JSON")
}

/// Makes a token and remembers its hash.
pub(crate) async fn issue_token(
    store: &dyn Store,
    authority: Fingerprint,
    role: Role,
    name: &str,
    ttl_seconds: u32,
    now: Timestamp,
) -> Result<(JoinToken, Timestamp), JoinRefused> {
    let ttl = if ttl_seconds == 0 { DEFAULT_TTL } else { Duration::from_secs(ttl_seconds.into()) };
    if ttl > LONGEST_TTL {
        return Err(JoinRefused::TooLong(ttl_seconds));
    }
    let mut waiting = 0;
    for record in store.records(TOKENS).await? {
        if read::<Token>(&record).is_some_and(|token| token.expires > now) {
            waiting += 1;
        } else {
            remove(store, TOKENS, &record).await?;
        }
    }
    if waiting >= MOST_TOKENS {
        return Err(JoinRefused::TooManyTokens);
    }
    let token = JoinToken::generate(authority);
    let expires = now + ttl;
    let row = Token { secret_sha256: token.secret_hash(), role: role.into(), name: name.to_owned(), expires };
    store.put_record(TOKENS, &token.id(), None, write(&row)).await?;
    Ok((token, expires))
}

/// Whether the token may be spent on this, without spending it.
pub(crate) async fn check_token(
    store: &dyn Store,
    token: &JoinToken,
    role: Role,
    name: &str,
    now: Timestamp,
) -> Result<Spendable, JoinRefused> {
    let record = store.record(TOKENS, &token.id()).await?.ok_or(JoinRefused::Unknown)?;
    let row: Token = read(&record).ok_or(JoinRefused::Unknown)?;
    if row.secret_sha256 != token.secret_hash() {
        return Err(JoinRefused::Unknown);
    }
    if row.expires <= now {
        return Err(JoinRefused::Expired);
    }
    let made_for = Role::try_from(row.role).unwrap_or_default();
    if made_for != role {
        return Err(JoinRefused::Role { token: made_for, asked: role });
    }
    if !row.name.is_empty() && row.name != name {
        return Err(JoinRefused::Name { token: row.name, asked: name.to_owned() });
    }
    Ok(Spendable { record, names_holder: !row.name.is_empty() })
}

/// Spends the token. Of two that try at once, one succeeds.
pub(crate) async fn spend(store: &dyn Store, token: &Spendable) -> Result<(), JoinRefused> {
    match store.delete_record(TOKENS, &token.record.key, &token.record.version).await {
        Ok(()) => Ok(()),
        Err(error) if error.is_conflict() => Err(JoinRefused::Unknown),
        Err(error) => Err(error.into()),
    }
}

/// Whether somebody has joined under this identity.
pub(crate) async fn is_member(store: &dyn Store, identity: &Identity) -> Result<bool, StoreError> {
    Ok(store.record(MEMBERS, &identity.uri()).await?.is_some())
}

/// Whose record a caller's certificate stands in: a host's own gateway is the host's.
pub(crate) async fn member_of(
    store: &dyn Store,
    caller: &Identity,
    serial: &str,
) -> Result<Identity, StoreError> {
    if let Identity::Gateway(name) = caller {
        let host = Identity::Host(name.clone());
        let record = store.record(MEMBERS, &host.uri()).await?;
        let member = record.as_ref().and_then(read::<Member>);
        if member.is_some_and(|member| member.certificates.iter().any(|known| known.serial == serial)) {
            return Ok(host);
        }
    }
    Ok(caller.clone())
}

/// Remembers a certificate under the member that answers for it, before it is handed out: what is not remembered could not be
/// revoked. When another machine takes the name over, the certificates of the one before are revoked; a renewal leaves them,
/// since they still speak for the same machine.
///
/// The record's version orders this against a revocation by another operator: one of the two sees the other.
pub(crate) async fn remember(
    store: &dyn Store,
    member: &Identity,
    made: &Made<'_>,
    binding: &Binding<'_>,
    now: Timestamp,
) -> Result<(), JoinRefused> {
    let of = (made.identity != member).then(|| made.identity.uri());
    loop {
        let before = store.record(MEMBERS, &member.uri()).await?;
        let mut known: Member = before.as_ref().and_then(read).unwrap_or_else(|| Member::new(now, None));
        match binding {
            Binding::First if before.is_some() => return Err(JoinRefused::Taken(member.clone())),
            Binding::First | Binding::Operator => {}
            Binding::Holder(serial) if store.record(REVOKED, serial).await?.is_some() => {
                return Err(JoinRefused::Revoked);
            }
            Binding::Holder(_) => {}
            // The same node comes again, as when its folder was lost: nobody else has its certificates.
            Binding::TakenOver(bound) if bound.is_none() || known.bound != *bound => {
                revoke(store, member, &known.certificates).await?;
                known = Member::new(now, bound.clone());
            }
            Binding::TakenOver(_) => {}
        }
        known.certificates.retain(|certified| certified.not_after > now.as_second());
        let new = Certified {
            serial: made.issued.serial.clone(),
            of: of.clone(),
            not_after: made.issued.not_after,
            issuer: Some(made.issued.issuer.to_string()),
        };
        known.certificates.push(new);
        let dropped = beyond(&mut known.certificates, of.as_deref());
        revoke(store, member, &dropped).await?;
        let expected = before.as_ref().map(|record| &record.version);
        match store.put_record(MEMBERS, &member.uri(), expected, write(&known)).await {
            Ok(_) => return Ok(()),
            Err(error) if error.is_conflict() => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Takes out the oldest that are too many, of this identity and in all.
fn beyond(certificates: &mut Vec<Certified>, of: Option<&str>) -> Vec<Certified> {
    let same = certificates.iter().filter(|known| known.of.as_deref() == of).count();
    let mut of_it = same.saturating_sub(MOST_CERTIFICATES);
    let mut in_all = certificates.len().saturating_sub(MOST_IN_ALL);
    certificates
        .extract_if(.., |known| {
            let of_this = known.of.as_deref() == of && of_it > 0;
            let taken = of_this || in_all > 0;
            if taken {
                of_it -= usize::from(of_this);
                in_all = in_all.saturating_sub(1);
            }
            taken
        })
        .collect()
}

/// No certificate of this member is trusted any more, nor of what it runs. It may join again by a token made for its name. Serial
/// numbers of what was revoked; none when nobody has joined under this identity.
pub(crate) async fn lock_out(
    store: &dyn Store,
    identity: &Identity,
) -> Result<Option<Vec<String>>, StoreError> {
    loop {
        let Some(record) = store.record(MEMBERS, &identity.uri()).await? else { return Ok(None) };
        let Some(member) = read::<Member>(&record) else { return Ok(None) };
        revoke(store, identity, &member.certificates).await?;
        let serials = member.certificates.iter().map(|certified| certified.serial.clone()).collect();
        let member = Member { certificates: Vec::new(), stands: BTreeMap::new(), ..member };
        match store.put_record(MEMBERS, &identity.uri(), Some(&record.version), write(&member)).await {
            Ok(_) => return Ok(Some(serials)),
            Err(error) if error.is_conflict() => {}
            Err(error) => return Err(error),
        }
    }
}

/// A member is gone for good: nobody is let in with its certificates, and its name is free.
pub(crate) async fn forget(store: &dyn Store, identity: &Identity) -> Result<(), StoreError> {
    loop {
        let Some(record) = store.record(MEMBERS, &identity.uri()).await? else { return Ok(()) };
        if let Some(member) = read::<Member>(&record) {
            revoke(store, identity, &member.certificates).await?;
        }
        // One that renews right now must not be left with a certificate.
        match store.delete_record(MEMBERS, &record.key, &record.version).await {
            Ok(()) => return Ok(()),
            Err(error) if error.is_conflict() => {}
            Err(error) => return Err(error),
        }
    }
}

async fn revoke(
    store: &dyn Store,
    identity: &Identity,
    certificates: &[Certified],
) -> Result<(), StoreError> {
    for certified in certificates {
        let row = write(&Revoked { not_after: certified.not_after });
        match store.put_record(REVOKED, &certified.serial, None, row).await {
            Ok(_) => tracing::info!(%identity, serial = certified.serial, "revoked a certificate"),
            Err(error) if error.is_conflict() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Serial numbers that nobody should trust, of certificates that haven't ended by themselves.
pub(crate) async fn revoked(store: &dyn Store, now: Timestamp) -> Result<Vec<String>, StoreError> {
    let mut serials = Vec::new();
    for record in store.records(REVOKED).await? {
        if read::<Revoked>(&record).is_some_and(|row| row.not_after > now.as_second()) {
            serials.push(record.key);
        } else {
            remove(store, REVOKED, &record).await?;
        }
    }
    Ok(serials)
}

async fn remove(store: &dyn Store, collection: &str, record: &Record) -> Result<(), StoreError> {
    match store.delete_record(collection, &record.key, &record.version).await {
        Err(error) if !error.is_conflict() => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_beyond_the_bound_is_the_oldest_of_the_same_identity() {
        let certified = |serial: usize, of: Option<&str>| Certified {
            serial: serial.to_string(),
            of: of.map(str::to_owned),
            not_after: 0,
            issuer: None,
        };
        let mut all: Vec<_> = (0..=MOST_CERTIFICATES).map(|n| certified(n, None)).collect();
        all.insert(0, certified(99, Some("tandem://worker/a/b")));
        let serials = |all: &[Certified]| all.iter().map(|one| one.serial.clone()).collect::<Vec<_>>();
        assert_eq!(serials(&beyond(&mut all, None)), ["0"]);
        assert_eq!(all.len(), MOST_CERTIFICATES + 1);
        assert!(beyond(&mut all, None).is_empty());
        let mut many: Vec<_> = (0..MOST_IN_ALL + 2).map(|n| certified(n, Some(&n.to_string()))).collect();
        assert_eq!(serials(&beyond(&mut many, Some("new"))), ["0", "1"]);
    }
}

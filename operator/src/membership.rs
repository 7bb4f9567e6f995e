//! Who may join and who has: join tokens by the hash of their secret, members with the serials of their certificates.

use std::time::Duration;

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tandem_control_api::Role;
use tandem_pki::{Fingerprint, Identity, JoinToken};
use tandem_store::{Record, Store, StoreError};
use thiserror::Error;

const TOKENS: &str = "join-tokens";
const MEMBERS: &str = "members";
const REVOKED: &str = "revoked";

/// How long a token lives unless its maker says.
const DEFAULT_TTL: Duration = Duration::from_secs(3600);
/// How long a token may live.
const LONGEST_TTL: Duration = Duration::from_secs(7 * 24 * 3600);
/// How many tokens may wait to be spent.
const MOST_TOKENS: usize = 1000;
/// How many certificates of one member are remembered; renewed at a third of their life, three are valid at once.
const MOST_CERTIFICATES: usize = 16;

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
    /// Its certificates that haven't ended: a renewal leaves the one before valid, a revocation must reach both.
    certificates: Vec<Certified>,
    joined: Timestamp,
    /// UID of the node or pod that it is, in Kubernetes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    bound: Option<String>,
}

/// Who comes with a certificate request.
pub(crate) enum Binding {
    /// The member that holds the name already, or the first to hold it.
    Same,
    /// Whoever proved that the name is its own: the node or pod of this UID, or the bearer of a token made for the name.
    TakenOver(Option<String>),
}

#[derive(Serialize, Deserialize)]
struct Certified {
    serial: String,
    /// Seconds since 1970.
    not_after: i64,
}

#[derive(Serialize, Deserialize)]
struct Revoked {
    /// Seconds since 1970; no need to remember it any longer.
    not_after: i64,
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

/// Remembers the newest certificate of a member. When another machine takes the name over, those of the one before are
/// revoked; a renewal leaves them, since they still speak for the same machine.
pub(crate) async fn remember(
    store: &dyn Store,
    identity: &Identity,
    serial: &str,
    not_after: i64,
    binding: Binding,
    now: Timestamp,
) -> Result<(), StoreError> {
    loop {
        let before = store.record(MEMBERS, &identity.uri()).await?;
        let mut member = before.as_ref().and_then(read).unwrap_or(Member {
            certificates: Vec::new(),
            joined: now,
            bound: None,
        });
        if let Binding::TakenOver(bound) = &binding {
            // The same node comes again, as when its folder was lost: nobody else has its certificates.
            if bound.is_none() || member.bound != *bound {
                revoke(store, identity, &member).await?;
                member = Member { certificates: Vec::new(), joined: now, bound: None };
            }
            member.bound.clone_from(bound);
        }
        member.certificates.retain(|certified| certified.not_after > now.as_second());
        let excess = member.certificates.len().saturating_sub(MOST_CERTIFICATES - 1);
        member.certificates.drain(..excess);
        member.certificates.push(Certified { serial: serial.to_owned(), not_after });
        let expected = before.as_ref().map(|record| &record.version);
        match store.put_record(MEMBERS, &identity.uri(), expected, write(&member)).await {
            Ok(_) => return Ok(()),
            Err(error) if error.is_conflict() => {}
            Err(error) => return Err(error),
        }
    }
}

/// A member is gone for good: nobody is let in with its certificates, and its name is free.
pub(crate) async fn forget(store: &dyn Store, identity: &Identity) -> Result<(), StoreError> {
    let Some(record) = store.record(MEMBERS, &identity.uri()).await? else { return Ok(()) };
    if let Some(member) = read::<Member>(&record) {
        revoke(store, identity, &member).await?;
    }
    remove(store, MEMBERS, &record).await
}

async fn revoke(store: &dyn Store, identity: &Identity, member: &Member) -> Result<(), StoreError> {
    for certified in &member.certificates {
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

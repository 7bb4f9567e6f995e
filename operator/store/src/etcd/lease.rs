//! Leases as keys: who holds one, in which term, how long. The term lies in a key of its own, which changes with the holder
//! only, for a leader's writes to compare.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use etcd_client::{Compare, CompareOp, Txn, TxnOp};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use super::client::Client;
use super::keys;
use crate::Lease;
use crate::clock::Clock;
use crate::error::StoreError;
use crate::sightings::Sightings;

/// Races in a row with other holders, after which the next look decides.
const TRIES: usize = 3;

#[derive(Serialize, Deserialize, Clone)]
#[serde(rename_all = "camelCase")]
struct Row {
    /// Empty: it was let go.
    holder: String,
    term: u64,
    lasts_ms: u64,
}

struct Held {
    revision: i64,
    row: Row,
}

/// A lease that nobody holds, of this term: as a row.
pub(super) fn free(term: u64) -> Vec<u8> {
    serde_json::to_vec(&Row { holder: String::new(), term, lasts_ms: 0 }).expect("texts and numbers are JSON")
}

pub(super) struct Leases {
    prefix: String,
    clock: Arc<dyn Clock>,
    seen: Sightings,
    /// The lease that this process holds, as far as it knows.
    own: Mutex<Option<(String, u64)>>,
}

impl Leases {
    pub(super) fn new(prefix: &str, clock: Arc<dyn Clock>) -> Self {
        Self { prefix: prefix.to_owned(), clock, seen: Sightings::default(), own: Mutex::new(None) }
    }

    /// What a leader's write compares: that its term is still the newest.
    pub(super) fn fence(&self) -> Option<Compare> {
        let (name, term) = self.own.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
        Some(Compare::value(keys::term(&self.prefix, &name), CompareOp::Equal, term.to_string()))
    }

    /// Whether this process, if it holds a lease, holds it still.
    pub(super) async fn check(&self, client: &Client) -> Result<(), StoreError> {
        let own = self.own.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some((name, term)) = own else { return Ok(()) };
        match self.get(client, &name).await? {
            Some(held) if held.row.term == term => Ok(()),
            held => Err(lost(&name, held.as_ref())),
        }
    }

    pub(super) async fn acquire(
        &self,
        client: &Client,
        name: &str,
        holder: &str,
        ttl: Duration,
        floor: u64,
    ) -> Result<Lease, StoreError> {
        let mut held = None;
        for _ in 0..TRIES {
            held = ended(ttl, self.get(client, name)).await?;
            let over =
                held.as_ref().is_none_or(|held| held.row.holder.is_empty() || self.is_over(name, held));
            let before = held.as_ref().map_or(0, |held| held.row.term);
            let term = match &held {
                Some(other) if !over && other.row.holder != holder => return Err(lost(name, held.as_ref())),
                // The same holder again, and nobody in between: the same term, unless a higher one was seen elsewhere.
                Some(own) if !over && own.row.term > floor => own.row.term,
                _ => before.max(floor) + 1,
            };
            let lease = Lease { name: name.to_owned(), holder: holder.to_owned(), term, ttl };
            if self.write(client, &lease, held.as_ref(), holder).await? {
                *self.own.lock().unwrap_or_else(PoisonError::into_inner) = Some((name.to_owned(), term));
                return Ok(lease);
            }
        }
        Err(lost(name, held.as_ref()))
    }

    pub(super) async fn renew(&self, client: &Client, lease: &Lease) -> Result<(), StoreError> {
        let held = ended(lease.ttl, self.get(client, &lease.name)).await?;
        let own = held.as_ref().filter(|held| {
            held.row.holder == lease.holder && held.row.term == lease.term && !self.is_over(&lease.name, held)
        });
        if own.is_some() && self.write(client, lease, own, &lease.holder).await? {
            return Ok(());
        }
        let held = ended(lease.ttl, self.get(client, &lease.name)).await?;
        Err(lost(&lease.name, held.as_ref()))
    }

    pub(super) async fn release(&self, client: &Client, lease: &Lease) -> Result<(), StoreError> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner).take();
        let held = self.get(client, &lease.name).await?;
        let own = held.filter(|held| held.row.holder == lease.holder && held.row.term == lease.term);
        if own.is_some() {
            // Refused: somebody was faster, and has it now.
            self.write(client, lease, own.as_ref(), "").await?;
        }
        Ok(())
    }

    fn is_over(&self, name: &str, held: &Held) -> bool {
        let lasts = Duration::from_millis(held.row.lasts_ms);
        self.seen.is_over(name, &held.revision.to_string(), lasts, self.clock.elapsed())
    }

    async fn get(&self, client: &Client, name: &str) -> Result<Option<Held>, StoreError> {
        let mut answer = client.get(keys::lease(&self.prefix, name), None).await?;
        let Some(kv) = answer.take_kvs().pop() else { return Ok(None) };
        let row = serde_json::from_slice(kv.value()).map_err(|error| StoreError::Unreadable {
            what: format!("lease {name}"),
            source: Box::new(error),
        })?;
        self.seen.see(name, &kv.mod_revision().to_string(), self.clock.elapsed());
        Ok(Some(Held { revision: kv.mod_revision(), row }))
    }

    /// Writes who holds the lease, if it still is what was read. Whether it was.
    async fn write(
        &self,
        client: &Client,
        lease: &Lease,
        held: Option<&Held>,
        holder: &str,
    ) -> Result<bool, StoreError> {
        let lasts_ms = u64::try_from(lease.ttl.as_millis()).unwrap_or(u64::MAX);
        let row = Row { holder: holder.to_owned(), term: lease.term, lasts_ms };
        let json = serde_json::to_vec(&row).expect("texts and numbers are JSON");
        let (name, term) = (keys::lease(&self.prefix, &lease.name), keys::term(&self.prefix, &lease.name));
        let compare =
            Compare::mod_revision(name.clone(), CompareOp::Equal, held.map_or(0, |held| held.revision));
        let mut puts = vec![TxnOp::put(name, json, None)];
        if held.is_none_or(|held| held.row.term != lease.term) {
            puts.push(TxnOp::put(term, lease.term.to_string(), None));
        }
        let sent = self.clock.elapsed();
        let answer = ended(lease.ttl, client.txn(Txn::new().when([compare]).and_then(puts))).await?;
        if answer.succeeded() {
            let revision = answer.header().map_or(0, etcd_client::ResponseHeader::revision);
            self.seen.see(&lease.name, &revision.to_string(), sent);
        }
        Ok(answer.succeeded())
    }
}

fn lost(name: &str, held: Option<&Held>) -> StoreError {
    let (holder, term) = held.map_or(("nobody", 0), |held| (held.row.holder.as_str(), held.row.term));
    StoreError::LeaseLost { name: name.to_owned(), holder: holder.to_owned(), term }
}

/// What is not said within half of a lease comes too late for it.
async fn ended<T>(
    ttl: Duration,
    asked: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    timeout(ttl / 2, asked).await.unwrap_or_else(|late| {
        Err(StoreError::Unreachable { server: "etcd".to_owned(), source: Box::new(late) })
    })
}

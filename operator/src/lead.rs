//! Leading: one operator of a cluster holds the lease and with it a term above every term that anybody has seen.

use std::sync::Arc;
use std::time::Duration;

use tandem_store::{Lease, StoreError};

use crate::caller::chain;
use crate::cluster::Cluster;

/// Which lease.
const LEASE: &str = "leader";
/// How much earlier than the store a holder considers its lease over: clocks don't run alike.
const MARGIN: u32 = 10;

/// This operator's hold on leading.
pub(crate) struct Leadership {
    cluster: Arc<Cluster>,
    /// Differs from every other process that ever wanted to lead.
    holder: String,
    held: Option<Held>,
}

struct Held {
    lease: Lease,
    /// Until when it holds, counted from when its last renewal was *sent*.
    until: Duration,
}

impl Leadership {
    pub(crate) fn new(cluster: Arc<Cluster>) -> Self {
        let holder = format!("operator-{}", uuid::Uuid::new_v4());
        Self { cluster, holder, held: None }
    }

    /// How long until this has to be looked at again.
    pub(crate) fn next_look(&self) -> Duration {
        self.cluster.timing.lease / 3
    }

    /// Takes, renews or raises the lease; the term while this operator leads. A new term is above `newest`, the newest that
    /// anybody has seen; a held one is raised when it is not above `unknown`, a term that hosts have obeyed and that the
    /// store knows nothing of.
    pub(crate) async fn keep(&mut self, newest: u64, unknown: u64) -> Option<u64> {
        let before = self.held.as_ref().map(|held| held.lease.term);
        let sent = self.cluster.clock.elapsed();
        let ttl = self.cluster.timing.lease;
        let raised = self.held.as_ref().is_some_and(|held| held.lease.term <= unknown);
        let newest = newest.max(unknown);
        let mut outcome = match &self.held {
            Some(held) if !raised => self.cluster.store.renew(&held.lease).await.map(|()| held.lease.clone()),
            _ => self.cluster.store.acquire(LEASE, &self.holder, ttl, newest).await,
        };
        // It ran out, and nobody else has taken it: this operator may have been paused.
        if matches!(&outcome, Err(StoreError::LeaseLost { holder, .. }) if *holder == self.holder) {
            outcome = self.cluster.store.acquire(LEASE, &self.holder, ttl, newest).await;
        }
        match outcome {
            Ok(lease) => self.held = Some(Held { lease, until: sent + ttl - ttl / MARGIN }),
            Err(StoreError::LeaseLost { holder, term, .. }) => {
                if before.is_some() {
                    tracing::warn!(holder, term, "another operator leads");
                }
                self.held = None;
            }
            // Held as long as the last renewal says, and no longer.
            Err(error) => tracing::warn!(error = chain(&error), "the lease can't be renewed"),
        }
        let term = self.term();
        if term != before {
            match term {
                Some(term) => tracing::info!(term, "this operator leads"),
                None => tracing::warn!("this operator no longer leads"),
            }
        }
        self.cluster.leading.send_if_modified(|known| std::mem::replace(known, term) != term);
        term
    }

    /// The term, if the lease still holds now.
    pub(crate) fn term(&self) -> Option<u64> {
        let held = self.held.as_ref()?;
        (self.cluster.clock.elapsed() < held.until).then_some(held.lease.term)
    }

    /// Makes room for the next leader.
    pub(crate) async fn give_up(&mut self) {
        if let Some(held) = self.held.take()
            && let Err(error) = self.cluster.store.release(&held.lease).await
        {
            tracing::warn!(
                error = chain(&error),
                "the lease can't be released: the next leader waits for its end"
            );
        }
        self.cluster.leading.send_replace(None);
    }
}

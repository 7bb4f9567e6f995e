//! Leading: one operator of a cluster holds the lease and with it a term above every term that anybody has seen.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tandem_pki::Credentials;
use tandem_store::{Lease, StoreError};
use tokio::sync::watch;

use crate::caller::chain;
use crate::cluster::Cluster;
use crate::publish::Publisher;

/// Which lease.
const LEASE: &str = "leader";
/// How much earlier than the store a holder considers its lease over: clocks don't run alike.
const MARGIN: u32 = 10;
/// How often in a lease's length its holder renews it, and others look whether it is free.
const RENEWALS: u32 = 3;
const LOOKS: u32 = 6;

/// Who leads, as far as this operator knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Leader {
    /// It has not looked yet.
    Unknown,
    /// This operator: until another one is known to, even while it can't renew its lease and writes nothing.
    Here,
    /// Another operator, where it says that others reach it.
    Elsewhere(String),
}

/// This operator's hold on leading.
pub(crate) struct Leadership {
    cluster: Arc<Cluster>,
    held: Option<Held>,
}

struct Held {
    lease: Lease,
    /// When its last renewal was sent.
    sent: Duration,
    /// Until when it holds, counted from then.
    until: Duration,
}

impl Leadership {
    pub(crate) fn new(cluster: Arc<Cluster>) -> Self {
        Self { cluster, held: None }
    }

    /// How long until the lease has to be looked at again.
    pub(crate) fn next_look(&self) -> Duration {
        let ttl = self.cluster.timing.lease;
        match &self.held {
            Some(held) => (held.sent + ttl / RENEWALS).saturating_sub(self.cluster.clock.elapsed()),
            None => ttl / LOOKS,
        }
    }

    /// Renews a held lease that is due, and takes a free one; the term while this operator leads.
    pub(crate) async fn look(&mut self) -> Option<u64> {
        if self.held.is_some() && !self.next_look().is_zero() {
            return self.term();
        }
        self.keep(0, 0).await
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
        let holder = &self.cluster.own.holder();
        let mut outcome = match &self.held {
            Some(held) if !raised => self.cluster.store.renew(&held.lease).await.map(|()| held.lease.clone()),
            _ => self.cluster.store.acquire(LEASE, holder, ttl, newest).await,
        };
        // It ran out, and nobody else has taken it: this operator may have been paused.
        if matches!(&outcome, Err(StoreError::LeaseLost { holder: other, .. }) if other == holder) {
            outcome = self.cluster.store.acquire(LEASE, holder, ttl, newest).await;
        }
        match outcome {
            Ok(lease) => {
                let until = sent + ttl - ttl / MARGIN;
                self.held = Some(Held { lease, sent, until });
                self.until(until);
                self.leads(Leader::Here);
            }
            Err(StoreError::LeaseLost { holder, term, .. }) => {
                if before.is_some() {
                    tracing::warn!(holder, term, "another operator leads");
                }
                self.held = None;
                self.until(Duration::ZERO);
                if let Some(url) = url_of(&holder) {
                    self.leads(Leader::Elsewhere(url.to_owned()));
                }
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
        self.cluster.metrics.leads(term);
        term
    }

    fn until(&self, until: Duration) {
        let until = u64::try_from(until.as_millis()).unwrap_or(u64::MAX);
        self.cluster.lease_until.store(until, Ordering::Relaxed);
    }

    fn leads(&self, leader: Leader) {
        let begins = leader == Leader::Here;
        let changed = self.cluster.leader.send_if_modified(|known| {
            let changed = *known != leader;
            *known = leader.clone();
            changed
        });
        if changed && begins {
            // What hosts said to another operator was not silence.
            self.cluster.sessions.listen_anew(self.cluster.clock.elapsed());
        }
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
        self.until(Duration::ZERO);
        self.cluster.leading.send_replace(None);
    }
}

/// Who this operator is to others.
#[derive(Debug)]
pub(crate) struct Own {
    /// Differs from every other process that ever wanted to lead.
    pub(crate) name: String,
    /// Where other operators reach it.
    pub(crate) url: String,
    /// Its certificate, and whom it trusts, newest.
    pub(crate) trust: watch::Sender<Credentials>,
    /// Where it puts whom to trust.
    pub(crate) publisher: Publisher,
}

impl Own {
    pub(crate) fn new(name: &str, url: &str, credentials: Credentials, publisher: Publisher) -> Self {
        let start = uuid::Uuid::new_v4().simple().to_string();
        Self {
            name: format!("{name}-{}", &start[..8]),
            url: url.to_owned(),
            trust: watch::Sender::new(credentials),
            publisher,
        }
    }

    /// Who it is and whom it trusts now.
    pub(crate) fn credentials(&self) -> Credentials {
        self.trust.borrow().clone()
    }

    /// As it stands in the lease: name and URL.
    fn holder(&self) -> String {
        format!("{} {}", self.name, self.url)
    }
}

fn url_of(holder: &str) -> Option<&str> {
    holder.split_once(' ').map(|(_, url)| url)
}

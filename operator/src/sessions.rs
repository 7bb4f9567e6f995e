//! Which hosts are connected to this operator, when each was heard last, and the way to speak to them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use jiff::Timestamp;
use tandem_control_api::OperatorMessage;
use tandem_control_api::operator_message::Message;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::attention::{Attention, Silence};

/// Messages that may wait for one host.
const OUTBOX: usize = 32;

/// What goes down one session's stream.
pub(crate) type Outbox = mpsc::Sender<Result<OperatorMessage, Status>>;

/// Every connected host.
pub(crate) struct Sessions {
    inner: Mutex<Inner>,
}

struct Inner {
    attention: Attention,
    connected: BTreeMap<String, Connected>,
    /// Newest term that each host says it has obeyed; outlives its session.
    terms: BTreeMap<String, u64>,
    /// Newest term that this operator has told each host.
    told: BTreeMap<String, u64>,
    last_seen: BTreeMap<String, Timestamp>,
    opened: u64,
}

struct Connected {
    session: u64,
    outbox: Outbox,
    replaced: CancellationToken,
}

/// A host's session as its task sees it.
pub(crate) struct Session {
    /// Differs from every other session's of this process.
    pub(crate) number: u64,
    /// To the host.
    pub(crate) outbox: Outbox,
    /// Fires when the same host has opened a newer session.
    pub(crate) replaced: CancellationToken,
}

impl Sessions {
    /// Nobody is connected at `now`, by the clock that counts sleep.
    pub(crate) fn new(now: Duration) -> Self {
        Self {
            inner: Mutex::new(Inner {
                attention: Attention::new(now),
                connected: BTreeMap::new(),
                terms: BTreeMap::new(),
                told: BTreeMap::new(),
                last_seen: BTreeMap::new(),
                opened: 0,
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no panic while sessions are changed")
    }

    /// A host has said Hello: its session, which replaces an earlier one, and the stream that goes down to it.
    pub(crate) fn open(
        &self,
        host: &str,
        term: u64,
    ) -> (Session, mpsc::Receiver<Result<OperatorMessage, Status>>) {
        let (outbox, stream) = mpsc::channel(OUTBOX);
        let mut inner = self.lock();
        inner.opened += 1;
        let session =
            Session { number: inner.opened, outbox: outbox.clone(), replaced: CancellationToken::new() };
        let connected = Connected { session: session.number, outbox, replaced: session.replaced.clone() };
        if let Some(before) = inner.connected.insert(host.to_owned(), connected) {
            before.replaced.cancel();
        }
        let newest = inner.terms.entry(host.to_owned()).or_default();
        *newest = term.max(*newest);
        (session, stream)
    }

    /// A session has ended; a newer one of the same host is left alone.
    pub(crate) fn close(&self, host: &str, session: u64) {
        let mut inner = self.lock();
        if inner.connected.get(host).is_some_and(|connected| connected.session == session) {
            inner.connected.remove(host);
        }
    }

    /// A host has said something.
    pub(crate) fn hear(&self, host: &str, elapsed: Duration, now: Timestamp) {
        let mut inner = self.lock();
        inner.attention.hear(host, elapsed);
        inner.last_seen.insert(host.to_owned(), now);
    }

    /// Time passes.
    pub(crate) fn look(&self, elapsed: Duration) {
        self.lock().attention.look(elapsed);
    }

    /// This operator begins to lead: hosts get their time to be heard from now on.
    pub(crate) fn listen_anew(&self, elapsed: Duration) {
        self.lock().attention = Attention::new(elapsed);
    }

    /// These hosts exist: listens for each, and forgets others.
    pub(crate) fn expect(&self, hosts: &[String]) {
        let exist: BTreeSet<&str> = hosts.iter().map(String::as_str).collect();
        let mut inner = self.lock();
        for host in hosts {
            inner.attention.expect(host);
        }
        inner.attention.keep(|host| exist.contains(host));
        let known = |host: &String| exist.contains(host.as_str());
        inner.last_seen.retain(|host, _| known(host));
        inner.terms.retain(|host, _| known(host));
        inner.told.retain(|host, _| known(host));
    }

    /// How long a host has been silent.
    pub(crate) fn silence(&self, host: &str) -> Option<Silence> {
        self.lock().attention.silence(host)
    }

    /// Whether a host has an open session, and when it was heard last.
    pub(crate) fn seen(&self, host: &str) -> (bool, Option<Timestamp>) {
        let inner = self.lock();
        (inner.connected.contains_key(host), inner.last_seen.get(host).copied())
    }

    /// Hosts that have an open session.
    pub(crate) fn connected(&self) -> BTreeSet<String> {
        self.lock().connected.keys().cloned().collect()
    }

    /// The newest term that a host says it has obeyed.
    pub(crate) fn obeyed_term(&self, host: &str) -> u64 {
        self.lock().terms.get(host).copied().unwrap_or(0)
    }

    /// A host was told a spec of this term.
    pub(crate) fn told(&self, host: &str, term: u64) {
        let mut inner = self.lock();
        let newest = inner.told.entry(host.to_owned()).or_default();
        *newest = term.max(*newest);
    }

    /// The term that a host says it has obeyed, if it is newer than all that this operator has told it.
    pub(crate) fn foreign_term(&self, host: &str) -> Option<u64> {
        let inner = self.lock();
        let obeyed = inner.terms.get(host).copied()?;
        (obeyed > inner.told.get(host).copied().unwrap_or(0)).then_some(obeyed)
    }

    /// Says something to a host, if it is connected and its outbox has room.
    pub(crate) fn tell(&self, host: &str, message: Message) -> bool {
        let outbox = self.lock().connected.get(host).map(|connected| connected.outbox.clone());
        outbox.is_some_and(|outbox| outbox.try_send(Ok(OperatorMessage { message: Some(message) })).is_ok())
    }
}

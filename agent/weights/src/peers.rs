//! Other hosts as this one sees them: how each is reached, which pieces of a file it has, and how it fares. Each is followed
//! by a task of its own, which asks for news and waits for them there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use reqwest::{Certificate, Client, Identity, StatusCode, header};
use serde::{Deserialize, Serialize};
use tandem_pki::Credentials;
use tandem_sources::Sha256Hex;
use tokio::net::lookup_host;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, watch};
use tokio::time::{Instant, timeout};
use tokio_util::task::AbortOnDropHandle;

use crate::Digest;
use crate::choose::scores;
use crate::pieces::Cut;

/// Another host that may have weights or want them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its name in the cluster.
    pub host: String,
    /// The name that its certificate must have.
    pub server_name: String,
    /// Where its port for weights answers, by any network.
    pub links: Vec<Link>,
}

/// One way to a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// `host:port`.
    pub address: String,
    /// Lower is faster, and tried first.
    pub tier: u32,
}

/// How long a host waits for news before it says that there are none.
pub(crate) const NEWS_WITHIN: Duration = Duration::from_secs(2);
/// How long a connection may wait for its next request.
pub(crate) const IDLE: Duration = Duration::from_secs(60);
const CONNECT: Duration = Duration::from_secs(2);
/// A better link than the one in use is tried again so often.
const BETTER: Duration = Duration::from_secs(15);
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// An answer about pieces is shorter, in bytes: it has room for half a million of them.
const LONGEST_NEWS: usize = 64 << 20;

/// What a host says about the pieces that it has of a file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct News {
    pub(crate) bytes: u64,
    pub(crate) piece_bytes: u64,
    /// In which run the pieces were counted. Another one than was asked for: forget what was told before.
    pub(crate) run: u64,
    /// How many pieces it has told of in this run, with these.
    pub(crate) told: u32,
    /// Pieces that are here since, in the order in which they came.
    pub(crate) pieces: Vec<(u32, Digest)>,
    /// What it is fetching from the source.
    pub(crate) claims: Vec<u32>,
    /// Whether it fetches from the source at all.
    pub(crate) takes: bool,
    /// Bytes that came to it from the source: they tell a slow host from one that stands still.
    pub(crate) received: u64,
    /// Counts changes of what is said here.
    pub(crate) changes: u64,
}

/// Clients for all links, with this host's certificate. Connections are kept from one file to the next.
#[derive(Debug)]
pub(crate) struct Dials {
    credentials: watch::Receiver<Credentials>,
    made: Mutex<BTreeMap<Way, (String, Arc<Dial>)>>,
}

/// The name that a server must have, and where it is dialled.
type Way = (String, String);

/// A link with its client.
#[derive(Debug)]
pub(crate) struct Dial {
    client: Client,
    base: String,
    pub(crate) tier: u32,
}

impl Dials {
    pub(crate) fn new(credentials: watch::Receiver<Credentials>) -> Self {
        Self { credentials, made: Mutex::default() }
    }

    async fn dial(&self, server_name: &str, link: &Link) -> Result<Arc<Dial>, String> {
        let credentials = self.credentials.borrow().clone();
        let key = (server_name.to_owned(), link.address.clone());
        let shown_and_trusted = format!("{}{}", credentials.certificate_pem, credentials.ca_pem);
        if let Some((with, dial)) = self.made.lock().unwrap_or_else(PoisonError::into_inner).get(&key)
            && *with == shown_and_trusted
            && dial.tier == link.tier
        {
            return Ok(dial.clone());
        }
        let addresses =
            timeout(CONNECT, lookup_host(&link.address)).await.map_err(|error| error.to_string())?;
        let addresses: Vec<_> = addresses.map_err(|error| error.to_string())?.collect();
        let port = addresses.first().ok_or("it has no address")?.port();
        let said = |error: reqwest::Error| error.without_url().to_string();
        let own = format!("{}{}", credentials.certificate_pem, credentials.key_pem);
        let client = Client::builder()
            .tls_certs_only(Certificate::from_pem_bundle(credentials.ca_pem.as_bytes()).map_err(said)?)
            .identity(Identity::from_pem(own.as_bytes()).map_err(said)?)
            .https_only(true)
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT)
            // Less than servers keep a silent connection, or a request may meet one that ends.
            .pool_idle_timeout(IDLE / 2)
            .resolve_to_addrs(server_name, &addresses)
            .build()
            .map_err(said)?;
        let base = format!("https://{server_name}:{port}/v1/weights");
        let dial = Arc::new(Dial { client, base, tier: link.tier });
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        made.insert(key, (shown_and_trusted, dial.clone()));
        Ok(dial)
    }
}

impl Dial {
    /// Asks for one piece.
    pub(crate) async fn read(
        &self,
        sha256: &Sha256Hex,
        cut: &Cut,
        piece: u32,
        within: Duration,
    ) -> Result<reqwest::Response, String> {
        let range = cut.range(piece);
        let request = self
            .client
            .get(format!("{}/{sha256}", self.base))
            .header(header::RANGE, format!("bytes={}-{}", range.start, range.end - 1));
        let response = timeout(within, request.send()).await.map_err(|late| late.to_string())?;
        let response = response.map_err(|error| error.to_string())?;
        match response.status() {
            StatusCode::PARTIAL_CONTENT => Ok(response),
            status => Err(format!("it answers {status}")),
        }
    }

    /// Asks for news since those that are known, and waits for them there. `None`: it neither has the file nor fetches it.
    async fn news(&self, sha256: &Sha256Hex, known: &State) -> Result<Option<News>, String> {
        let State { run, told, changes, .. } = known;
        let wait = if known.answered { NEWS_WITHIN } else { FIRST_NEWS_WITHIN };
        let url = format!(
            "{}/{sha256}/pieces?run={run}&told={told}&changes={changes}&wait={}",
            self.base,
            wait.as_millis()
        );
        let mut response = self
            .client
            .get(url)
            .timeout(wait + CONNECT * 3)
            .send()
            .await
            .map_err(|error| error.without_url().to_string())?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => return Ok(None),
            status => return Err(format!("it answers {status}")),
        }
        let mut bytes = Vec::new();
        while let Some(block) = response.chunk().await.map_err(|error| error.without_url().to_string())? {
            bytes.extend_from_slice(&block);
            if bytes.len() > LONGEST_NEWS {
                return Err("it says too much".to_owned());
            }
        }
        serde_json::from_slice(&bytes).map(Some).map_err(|error| error.to_string())
    }
}

/// How long a host that is asked for the first time may wait for the file to begin there too.
pub(crate) const FIRST_NEWS_WITHIN: Duration = Duration::from_millis(300);

/// A peer, followed for one file.
pub(crate) struct Remote {
    pub(crate) peer: Peer,
    pub(crate) scores: Vec<u64>,
    state: Arc<Mutex<State>>,
    _follows: AbortOnDropHandle<()>,
}

/// What is known of a peer for one file.
#[derive(Debug)]
pub(crate) struct State {
    /// It has said something, or could not be reached.
    pub(crate) answered: bool,
    /// By which it was reached last; none while it can't be, or has nothing to say about the file.
    pub(crate) link: Option<Arc<Dial>>,
    /// Why nothing more is fetched from it for this file.
    pub(crate) aside: Option<String>,
    pub(crate) digests: Vec<Option<Digest>>,
    pub(crate) claims: BTreeSet<u32>,
    pub(crate) takes: bool,
    /// When it was last seen to get on.
    pub(crate) sign: Instant,
    /// Nothing is fetched from it until then, after so many failures in a row.
    pub(crate) rests_until: Option<Instant>,
    failures: u32,
    /// Pieces that are being fetched from it.
    pub(crate) load: usize,
    since: Instant,
    own_pieces: u32,
    run: u64,
    told: u32,
    changes: u64,
    received: u64,
}

impl State {
    fn new(pieces: u32, now: Instant) -> Self {
        Self {
            answered: false,
            link: None,
            aside: None,
            digests: vec![None; pieces as usize],
            claims: BTreeSet::new(),
            takes: false,
            sign: now,
            rests_until: None,
            failures: 0,
            load: 0,
            since: now,
            own_pieces: 0,
            run: 0,
            told: 0,
            changes: 0,
            received: 0,
        }
    }

    /// Takes in what it said. False when it cuts the file another way, so that nothing can be exchanged.
    fn hear(&mut self, news: News, cut: &Cut, now: Instant) -> bool {
        if (news.bytes, news.piece_bytes) != (cut.bytes(), cut.piece_bytes()) {
            return false;
        }
        if news.run != self.run {
            self.digests.fill(None);
            (self.run, self.sign) = (news.run, now);
        }
        let claims: BTreeSet<u32> = news.claims.into_iter().filter(|piece| *piece < cut.count()).collect();
        if !news.pieces.is_empty() || news.received != self.received || claims != self.claims {
            self.sign = now;
        }
        if news.takes && !self.takes {
            (self.since, self.own_pieces, self.sign) = (now, 0, now);
        }
        for (piece, digest) in news.pieces {
            if let Some(slot) = self.digests.get_mut(piece as usize) {
                *slot = Some(digest);
                self.own_pieces += u32::from(self.claims.contains(&piece));
            }
        }
        self.claims = claims;
        (self.takes, self.told, self.changes) = (news.takes, news.told, news.changes);
        self.received = news.received;
        true
    }

    /// How long one of its own pieces takes it, all its connections together.
    pub(crate) fn seconds_per_piece(&self, now: Instant) -> f64 {
        now.duration_since(self.since).as_secs_f64() / f64::from(self.own_pieces.max(1))
    }

    /// A piece came from it, or did not.
    pub(crate) fn gave(&mut self, well: bool, now: Instant) {
        self.failures = if well { 0 } else { self.failures.saturating_add(1) };
        let pause = FIRST_PAUSE.saturating_mul(1 << self.failures.min(8)).min(LONGEST_PAUSE);
        self.rests_until = (!well).then(|| now + pause);
    }
}

impl Remote {
    /// Follows a peer until this is dropped. `told` counts up at every change. `callers` are hosts that ask here.
    pub(crate) fn follow(
        peer: Peer,
        (sha256, cut): (Sha256Hex, Cut),
        dials: Arc<Dials>,
        told: watch::Sender<u64>,
        callers: broadcast::Receiver<Arc<str>>,
    ) -> Self {
        let state = Arc::new(Mutex::new(State::new(cut.count(), Instant::now())));
        let scores = scores(&sha256, cut.count(), &peer.host);
        let follower = Follower { peer: peer.clone(), sha256, cut, dials, told, state: state.clone() };
        Self { peer, scores, state, _follows: AbortOnDropHandle::new(tokio::spawn(follower.run(callers))) }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Follower {
    peer: Peer,
    sha256: Sha256Hex,
    cut: Cut,
    dials: Arc<Dials>,
    told: watch::Sender<u64>,
    state: Arc<Mutex<State>>,
}

impl Follower {
    async fn run(self, mut callers: broadcast::Receiver<Arc<str>>) {
        let mut links = self.peer.links.clone();
        links.sort_by_key(|link| link.tier);
        let (mut in_use, mut since_best) = (0, Instant::now());
        let mut pause = FIRST_PAUSE;
        loop {
            if since_best.elapsed() > BETTER {
                (in_use, since_best) = (0, Instant::now());
            }
            let Some(link) = links.get(in_use) else {
                // None of them leads there.
                self.note(|state| (state.answered, state.link) = (true, None));
                self.rest(pause, &mut callers).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
                (in_use, since_best) = (0, Instant::now());
                continue;
            };
            match self.ask(link).await {
                Ok(true) => pause = FIRST_PAUSE,
                Ok(false) => {
                    self.rest(pause, &mut callers).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
                Err(why) => {
                    let (host, address) = (&self.peer.host, &link.address);
                    tracing::debug!(
                        host,
                        address,
                        why,
                        "another host's weights can't be asked for by this link"
                    );
                    in_use += 1;
                }
            }
        }
    }

    /// Until it is worth asking again: the pause is over, or the peer asks for something itself.
    async fn rest(&self, pause: Duration, callers: &mut broadcast::Receiver<Arc<str>>) {
        let called = async {
            loop {
                match callers.recv().await {
                    Ok(host) if *host != *self.peer.host => {}
                    Ok(_) | Err(RecvError::Lagged(_)) => return,
                    Err(RecvError::Closed) => std::future::pending().await,
                }
            }
        };
        // Either way it is time.
        if timeout(pause, called).await.is_ok() {
            tracing::trace!(host = self.peer.host, "a host that calls is asked at once");
        }
    }

    /// One question. Whether the host has the file or fetches it.
    async fn ask(&self, link: &Link) -> Result<bool, String> {
        let dial = self.dials.dial(&self.peer.server_name, link).await?;
        let known = self.known();
        let news = dial.news(&self.sha256, &known).await?;
        let there = news.is_some();
        let now = Instant::now();
        self.note(|state| {
            state.answered = true;
            state.link = there.then_some(dial);
            match news {
                None => (state.takes, state.claims) = (false, BTreeSet::new()),
                Some(news) => {
                    if !state.hear(news, &self.cut, now) {
                        state.aside = Some("it cuts this file into other pieces".to_owned());
                    }
                }
            }
        });
        Ok(there)
    }

    fn known(&self) -> State {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let known = State::new(0, state.since);
        let State { answered, run, told, changes, .. } = *state;
        State { answered, run, told, changes, ..known }
    }

    fn note(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
        self.told.send_modify(|count| *count += 1);
    }
}

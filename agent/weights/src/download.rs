//! One file's way into the store, piece by piece, from the source and from other hosts at once.
//!
//! One task decides (with [`crate::choose`]) and each piece is a task of its own. Connections to the source and to other
//! hosts are counted apart, so that neither waits for the other.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff};
use tandem_sources::{Origin, TransferError};
use tokio::sync::{OnceCell, OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::choose::{PeerView, View, scores};
use crate::error::StoreError;
use crate::error::{FetchError, is_full};
use crate::fetch::{Order, Shared};
use crate::partial::{Partial, free_bytes};
use crate::peers::{FIRST_NEWS_WITHIN, Remote};
use crate::progress::Part;
use crate::receive::{Bounds, Inflow, Pace, PieceError, Sink, receive};

/// With other hosts about, things are looked at anew so often even when nothing is heard.
const LOOK: Duration = Duration::from_millis(250);
/// Other hosts that begin with the same file at the same time are waited for so long.
const SETTLE: Duration = FIRST_NEWS_WITHIN.saturating_mul(2);
const NEVER: Duration = Duration::from_secs(3600);

/// The source, opened when it is first needed.
pub(crate) type Source = Arc<OnceCell<Origin>>;

pub(crate) struct Download<'a> {
    shared: &'a Shared,
    order: &'a Order,
    partial: Arc<Partial>,
    part: Arc<Part>,
    source: Source,
    scores: Vec<u64>,
    remotes: BTreeMap<String, Remote>,
    peers: watch::Receiver<Vec<crate::Peer>>,
    told: watch::Sender<u64>,
    /// Neither here nor under way nor resting.
    missing: BTreeSet<u32>,
    resting: BTreeMap<u32, Instant>,
    delays: BTreeMap<u32, ExponentialBackoff>,
    tasks: JoinSet<Ended>,
    /// Why nothing more is fetched from the source.
    given_up: Option<FetchError>,
    /// The source gives no ranges.
    whole_only: bool,
    settled_at: Instant,
    seconds_per_piece: f64,
    at_source: Permits,
    at_peers: Permits,
}

/// A share of connections that all files of a host have.
struct Permits {
    all: Arc<Semaphore>,
    spare: Option<OwnedSemaphorePermit>,
    wanted: bool,
}

impl Permits {
    fn of(all: &Arc<Semaphore>) -> Self {
        Self { all: all.clone(), spare: None, wanted: false }
    }

    fn take(&mut self) -> Option<OwnedSemaphorePermit> {
        let taken = self.spare.take().or_else(|| self.all.clone().try_acquire_owned().ok());
        self.wanted = taken.is_none();
        taken
    }
}

struct Ended {
    piece: u32,
    from: Option<String>,
    result: Result<crate::Digest, PieceError>,
    took: Duration,
}

/// A fetch may be dropped at any moment, with what it has promised to others.
impl Drop for Download<'_> {
    fn drop(&mut self) {
        self.partial.rest();
    }
}

impl<'a> Download<'a> {
    pub(crate) fn new(
        shared: &'a Shared,
        order: &'a Order,
        partial: Arc<Partial>,
        part: Arc<Part>,
        source: Source,
    ) -> Self {
        let missing = (0..partial.cut.count()).filter(|piece| !partial.have().has(*piece)).collect();
        Self {
            shared,
            order,
            scores: scores(&partial.sha256, partial.cut.count(), &order.own_host),
            partial,
            part,
            source,
            remotes: BTreeMap::new(),
            peers: order.peers.clone(),
            told: watch::Sender::new(0),
            missing,
            resting: BTreeMap::new(),
            delays: BTreeMap::new(),
            tasks: JoinSet::new(),
            given_up: None,
            whole_only: false,
            settled_at: Instant::now() + SETTLE,
            seconds_per_piece: 0.0,
            at_source: Permits::of(&shared.at_source),
            at_peers: Permits::of(&shared.at_peers),
        }
    }

    /// Fetches pieces until all are here.
    ///
    /// # Errors
    /// When the source fails for good, or too often, and no other host can help; or when the disk fails.
    pub(crate) async fn run(mut self) -> Result<(), FetchError> {
        self.partial.set_takes(true);
        let mut told = self.told.subscribe();
        let mut peers_known = true;
        self.meet();
        loop {
            self.fill();
            if self.partial.have().is_whole() {
                return Ok(());
            }
            if self.tasks.is_empty() && self.whole_only {
                return self.pour().await;
            }
            if let Some(error) = self.hopeless() {
                return Err(error);
            }
            let (source, peers) = (self.at_source.all.clone(), self.at_peers.all.clone());
            let wake = self.wake();
            tokio::select! {
                Some(ended) = self.tasks.join_next() => {
                    self.ended(ended.expect("a piece's task neither panics nor is ended"))?;
                }
                result = self.peers.changed(), if peers_known => {
                    peers_known = result.is_ok();
                    self.meet();
                }
                _ = told.changed() => {}
                Ok(permit) = source.acquire_owned(), if self.at_source.wanted => {
                    (self.at_source.spare, self.at_source.wanted) = (Some(permit), false);
                }
                Ok(permit) = peers.acquire_owned(), if self.at_peers.wanted => {
                    (self.at_peers.spare, self.at_peers.wanted) = (Some(permit), false);
                }
                () = sleep_until(wake) => {}
            }
        }
    }

    /// Follows the peers that there are now.
    fn meet(&mut self) {
        let Some(dials) = &self.shared.dials else { return };
        let peers = self.peers.borrow_and_update().clone();
        self.remotes.retain(|_, remote| peers.contains(&remote.peer));
        for peer in peers {
            if peer.host != self.order.own_host && !self.remotes.contains_key(&peer.host) {
                let (sha256, cut) = (self.partial.sha256, self.partial.cut);
                let (told, callers) = (self.told.clone(), self.shared.store.callers());
                let remote = Remote::follow(peer, (sha256, cut), dials.clone(), told, callers);
                self.remotes.insert(remote.peer.host.clone(), remote);
            }
        }
    }

    /// Begins as many pieces as there are connections for.
    fn fill(&mut self) {
        let now = Instant::now();
        let rested: Vec<u32> =
            self.resting.iter().filter(|(_, until)| **until <= now).map(|(piece, _)| *piece).collect();
        for piece in rested {
            self.resting.remove(&piece);
            self.missing.insert(piece);
        }
        (self.at_source.wanted, self.at_peers.wanted) = (false, false);
        let hosts: Vec<String> = self.remotes.keys().cloned().collect();
        while let Some((piece, peer)) = self.choose(now, |view| view.next_of_peer()) {
            let Some(permit) = self.at_peers.take() else { break };
            self.missing.remove(&piece);
            self.start_at_peer(piece, &hosts[peer], permit);
        }
        let settled = now >= self.settled_at || self.remotes.values().all(|remote| remote.state().answered);
        while settled
            && !self.whole_only
            && self.given_up.is_none()
            && let Some(piece) = self.choose(now, |view| view.next_of_source())
        {
            let Some(permit) = self.at_source.take() else { break };
            self.missing.remove(&piece);
            self.start_at_source(piece, permit);
        }
        // A permit that is not used is not kept from other files.
        (self.at_source.spare, self.at_peers.spare) = (None, None);
    }

    fn choose<T>(&self, now: Instant, choice: impl FnOnce(View<'_>) -> Option<T>) -> Option<T> {
        let states: Vec<_> = self.remotes.values().map(|remote| (remote, remote.state())).collect();
        let peers: Vec<_> = states
            .iter()
            .map(|(remote, state)| PeerView {
                scores: &remote.scores,
                have: &state.digests,
                claims: &state.claims,
                tier: state.link.as_ref().map_or(u32::MAX, |link| link.tier),
                load: state.load,
                gives: state.link.is_some()
                    && state.aside.is_none()
                    && state.rests_until.is_none_or(|until| until <= now),
                takes: state.takes
                    && state.link.is_some()
                    && state.aside.is_none()
                    && now.duration_since(state.sign) < self.shared.options.peer_patience,
                seconds_per_piece: state.seconds_per_piece(now),
            })
            .collect();
        choice(View {
            scores: &self.scores,
            missing: &self.missing,
            seconds_per_piece: self.seconds_per_piece,
            peers: &peers,
        })
    }

    fn bounds(&self) -> Bounds {
        Bounds { limiter: self.shared.limiter.clone(), patience: self.shared.options.patience }
    }

    fn start_at_source(&mut self, piece: u32, permit: OwnedSemaphorePermit) {
        self.partial.claim(piece, true);
        let (partial, part, source, bounds) =
            (self.partial.clone(), self.part.clone(), self.source.clone(), self.bounds());
        let (order, began) = (self.order.clone(), Instant::now());
        self.tasks.spawn(async move {
            let result = async {
                let origin = open(&source, &order).await.map_err(PieceError::Source)?;
                let range = Some(partial.cut.range(piece));
                let body = origin.read(&order.file.name, range).await.map_err(PieceError::Source)?;
                let count = |bytes| {
                    part.add_source(bytes);
                    partial.receive(bytes);
                };
                let digest = receive(&mut Inflow::Source(body), &partial, piece, &bounds, count).await?;
                write_down(&partial, piece, digest).await
            };
            let result = result.await;
            drop(permit);
            Ended { piece, from: None, result, took: began.elapsed() }
        });
    }

    fn start_at_peer(&mut self, piece: u32, host: &str, permit: OwnedSemaphorePermit) {
        let (partial, part, mut bounds) = (self.partial.clone(), self.part.clone(), self.bounds());
        bounds.patience = bounds.patience.min(self.shared.options.peer_patience);
        let began = Instant::now();
        let mut state = self.remotes[host].state();
        state.load += 1;
        let link = state.link.clone().expect("chosen because it is reached");
        let announced = state.digests[piece as usize].expect("chosen because it has the piece");
        drop(state);
        let host = host.to_owned();
        self.tasks.spawn(async move {
            let result = async {
                let response = link.read(&partial.sha256, &partial.cut, piece, bounds.patience).await;
                let mut inflow = Inflow::Peer(response.map_err(PieceError::Peer)?);
                let count = |bytes| part.add_peer(bytes);
                let digest = receive(&mut inflow, &partial, piece, &bounds, count).await?;
                if digest != announced {
                    return Err(PieceError::WrongPiece);
                }
                write_down(&partial, piece, digest).await
            };
            let result = result.await;
            drop(permit);
            Ended { piece, from: Some(host), result, took: began.elapsed() }
        });
    }

    fn ended(&mut self, ended: Ended) -> Result<(), FetchError> {
        let Ended { piece, from, result, took } = ended;
        let now = Instant::now();
        let error = match (result, &from) {
            (Ok(digest), _) => {
                if let Some(remote) = from.and_then(|host| self.remotes.get(&host)) {
                    let mut state = remote.state();
                    state.load = state.load.saturating_sub(1);
                    state.gave(true, now);
                } else {
                    let took = took.as_secs_f64();
                    let first = self.seconds_per_piece == 0.0;
                    self.seconds_per_piece =
                        if first { took } else { 0.75 * self.seconds_per_piece + 0.25 * took };
                }
                self.partial.add(piece, digest);
                self.part.add_done(self.partial.cut.length(piece));
                return Ok(());
            }
            (Err(PieceError::Store(error)), _) => return Err(self.disk(error)),
            (Err(error), Some(host)) => {
                self.missing.insert(piece);
                self.failed_peer(host, piece, &error, now);
                return Ok(());
            }
            (Err(error), None) => error,
        };
        self.partial.claim(piece, false);
        self.failed_source(piece, error, now);
        Ok(())
    }

    fn failed_peer(&self, host: &str, piece: u32, error: &PieceError, now: Instant) {
        let Some(remote) = self.remotes.get(host) else { return };
        let mut state = remote.state();
        state.load = state.load.saturating_sub(1);
        state.gave(false, now);
        let said = if let PieceError::Peer(why) = error { why.as_str() } else { "" };
        tracing::debug!(host, piece, ?error, said, "a piece did not come from another host");
        if matches!(error, PieceError::WrongPiece | PieceError::WrongLength) {
            let why = "it sends other bytes than it announces";
            tracing::warn!(host, piece, file = self.order.file.name, why, "a host is set aside for a file");
            state.aside = Some(why.to_owned());
        }
    }

    fn failed_source(&mut self, piece: u32, error: PieceError, now: Instant) {
        let name = || self.order.file.name.clone();
        let error = match error {
            PieceError::Source(error) => FetchError::Source(error),
            PieceError::WrongLength => {
                FetchError::WrongLength { name: name(), expected: self.order.file.bytes }
            }
            _ => FetchError::Stalled { name: name() },
        };
        let delays = self.delays.entry(piece).or_insert_with(|| self.order.access.backoff().build());
        let delay = if error.is_transient() { error.wait(delays.next()) } else { None };
        match delay {
            Some(delay) => {
                tracing::debug!(
                    piece,
                    error = &error as &dyn std::error::Error,
                    ?delay,
                    "a piece is asked for again"
                );
                self.resting.insert(piece, now + delay);
            }
            None if matches!(error, FetchError::Source(TransferError::WholeInsteadOfRange(_))) => {
                self.whole_only = true;
                self.missing.insert(piece);
            }
            None => {
                self.missing.insert(piece);
                self.given_up.get_or_insert(error);
                // Others shall not wait for what this host can't get.
                self.partial.set_takes(false);
            }
        }
    }

    /// The source has failed, and no other host has or fetches what is missing.
    fn hopeless(&mut self) -> Option<FetchError> {
        if self.given_up.is_none() || !self.tasks.is_empty() {
            return None;
        }
        let now = Instant::now();
        let unsettled = now < self.settled_at && self.remotes.values().any(|remote| !remote.state().answered);
        let helped = self.remotes.values().any(|remote| {
            let state = remote.state();
            let lives = now.duration_since(state.sign) < self.shared.options.peer_patience;
            let offers = self.missing.iter().any(|piece| state.digests[*piece as usize].is_some());
            state.link.is_some() && state.aside.is_none() && (offers || (state.takes && lives))
        });
        if unsettled || helped { None } else { self.given_up.take() }
    }

    fn wake(&self) -> Instant {
        let now = Instant::now();
        let look = now + if self.remotes.is_empty() { NEVER } else { LOOK };
        self.resting.values().copied().chain([look]).min().unwrap_or(look)
    }

    fn disk(&self, error: StoreError) -> FetchError {
        match &error {
            StoreError::Io { source, .. } | StoreError::Disk { source, .. } if is_full(source) => {
                FetchError::DiskFull {
                    name: self.order.file.name.clone(),
                    needed: self.partial.cut.bytes(),
                    free: free_bytes(self.shared.store.partial_folder()).unwrap_or(0),
                    // The rest of a file whose room was taken comes out of it, too.
                    spare: 0,
                    folder: self.shared.store.partial_folder().to_owned(),
                }
            }
            _ => error.into(),
        }
    }

    /// Reads the file from its start in one go, from a source that gives no ranges; pieces that are here are passed over.
    async fn pour(&mut self) -> Result<(), FetchError> {
        tracing::info!(file = self.order.file.name, "the source gives no ranges: the file comes in one go");
        self.partial.set_takes(false);
        let mut delays = self.order.access.backoff().build();
        loop {
            let Err(error) = self.pour_once().await else { return Ok(()) };
            let name = || self.order.file.name.clone();
            let error = match error {
                PieceError::Store(error) => return Err(self.disk(error)),
                PieceError::Source(error) => FetchError::Source(error),
                PieceError::WrongLength => {
                    FetchError::WrongLength { name: name(), expected: self.order.file.bytes }
                }
                _ => FetchError::Stalled { name: name() },
            };
            match error.wait(delays.next()).filter(|_| error.is_transient()) {
                Some(delay) => tokio::time::sleep(delay).await,
                None => return Err(error),
            }
        }
    }

    async fn pour_once(&self) -> Result<(), PieceError> {
        let _permit = self.shared.at_source.acquire().await.expect("it is never closed");
        let origin = open(&self.source, self.order).await.map_err(PieceError::Source)?;
        let body = origin.read(&self.order.file.name, None).await.map_err(PieceError::Source)?;
        let (cut, bounds) = (self.partial.cut, self.bounds());
        if body.file_length.is_some_and(|length| length != cut.bytes()) {
            return Err(PieceError::WrongLength);
        }
        let (mut inflow, mut pace) = (Inflow::Source(body), Pace::default());
        let (mut at, mut sink) = (0_u64, None);
        while let Some(bytes) = bounds.next(&mut inflow, &mut pace).await? {
            self.part.add_source(bytes.len() as u64);
            self.partial.receive(bytes.len() as u64);
            let mut bytes = &bytes[..];
            while !bytes.is_empty() {
                let piece = cut.pieces_of(&(at..at + 1)).start;
                if at >= cut.bytes() {
                    return Err(PieceError::WrongLength);
                }
                let left = cut.range(piece).end - at;
                let (now, later) =
                    bytes.split_at(bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX)));
                if at == cut.range(piece).start && !self.partial.have().has(piece) {
                    sink = Some(Sink::new(&self.partial, piece));
                }
                at += now.len() as u64;
                bytes = later;
                let Some(filling) = &mut sink else { continue };
                filling.push(now).await?;
                if filling.left() == 0 {
                    let digest = sink.take().expect("it was there").finish().await?;
                    self.partial.add(piece, write_down(&self.partial, piece, digest).await?);
                    self.part.add_done(cut.length(piece));
                }
            }
        }
        if at < cut.bytes() { Err(PieceError::Short) } else { Ok(()) }
    }
}

/// Notes a piece whose bytes are written on disk too, where a crowded one may take its time.
pub(crate) async fn write_down(
    partial: &Arc<Partial>,
    piece: u32,
    digest: crate::Digest,
) -> Result<crate::Digest, PieceError> {
    let partial = partial.clone();
    let noting = tokio::task::spawn_blocking(move || partial.write_down(piece, &digest));
    noting.await.expect("writing does not panic").map_err(PieceError::Store)?;
    Ok(digest)
}

/// Opens the source, unless that was done before.
pub(crate) async fn open<'a>(source: &'a Source, order: &Order) -> Result<&'a Origin, TransferError> {
    source.get_or_try_init(|| Origin::open(&order.source, order.credential.as_ref(), &order.access)).await
}

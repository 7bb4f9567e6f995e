//! Bringing files into the store: from where they are, by the cheapest way that ends in the right bytes.
//!
//! Memory: each connection holds two blocks of little more than one mebibyte and what the TLS and HTTP layers buffer, which is
//! less than `8 × (connections + peer_connections)` MiB for all files together, however long they are.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use leaky_bucket::RateLimiter;
use tandem_pki::Credentials;
use tandem_sources::{Access, ResolvedFile, Secret, Sha256Hex, Source, is_inside};
use tokio::sync::{OnceCell, Semaphore, watch};
use tokio_util::task::AbortOnDropHandle;

use crate::Peer;
use crate::download::{Download, open};
use crate::error::{FetchError, StoreError, unsettled};
use crate::hash::Follower;
use crate::partial::Partial;
use crate::peers::Dials;
use crate::pieces::Cut;
use crate::progress::{Part, Progress};
use crate::record::Record;
use crate::store::Store;

/// A file on its way is hashed at most so far at once, and written out after at least so much, in bytes.
const STRIDE: u64 = 64 << 20;

/// How files are fetched, for all files of a host together.
#[derive(Clone, Debug)]
pub struct FetchOptions {
    /// Connections to sources at once.
    pub connections: usize,
    /// Connections to other hosts at once.
    pub peer_connections: usize,
    /// What all connections together may bring, in bytes a second; no bound without.
    pub bytes_per_second: Option<u64>,
    /// Length of pieces, in bytes, instead of the one that follows from a file's length. All hosts must agree on it.
    pub piece_bytes: Option<u64>,
    /// A connection that stands still this long is given up.
    pub patience: Duration,
    /// A host that does not get on for this long is no longer waited for.
    pub peer_patience: Duration,
    /// This host's credentials, by which others let it in. Without them no other host is asked.
    pub credentials: Option<watch::Receiver<Credentials>>,
}

impl Default for FetchOptions {
    fn default() -> Self {
        Self {
            connections: 8,
            peer_connections: 8,
            bytes_per_second: None,
            piece_bytes: None,
            patience: Duration::from_secs(30),
            peer_patience: Duration::from_secs(10),
            credentials: None,
        }
    }
}

/// One wanted file, and whom to ask for it.
#[derive(Clone, Debug)]
pub struct Order {
    /// The file.
    pub file: ResolvedFile,
    /// Where it is.
    pub source: Source,
    /// What its source asks for.
    pub credential: Option<Secret>,
    /// How its source is reached.
    pub access: Access,
    /// Other hosts that may have it or want it too. May change at any time.
    pub peers: watch::Receiver<Vec<Peer>>,
    /// This host's name, as the others know it.
    pub own_host: String,
}

/// Fetches files into a store. Clones share their bounds.
#[derive(Clone, Debug)]
pub struct Fetcher(Arc<Shared>);

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) store: Store,
    pub(crate) options: FetchOptions,
    pub(crate) at_source: Arc<Semaphore>,
    pub(crate) at_peers: Arc<Semaphore>,
    pub(crate) limiter: Option<Arc<RateLimiter>>,
    pub(crate) dials: Option<Arc<Dials>>,
    flights: Mutex<BTreeMap<Sha256Hex, Weak<Flight>>>,
}

/// A file that somebody fetches. Whoever wants it too waits for the turn, and then finds it here.
#[derive(Debug)]
struct Flight {
    part: Arc<Part>,
    turn: tokio::sync::Mutex<()>,
}

impl Fetcher {
    /// Fetches into `store`.
    #[must_use]
    pub fn new(store: Store, options: FetchOptions) -> Self {
        let limiter = options.bytes_per_second.map(|rate| Arc::new(limiter(rate)));
        Self(Arc::new(Shared {
            store,
            at_source: Arc::new(Semaphore::new(options.connections.max(1))),
            at_peers: Arc::new(Semaphore::new(options.peer_connections.max(1))),
            limiter,
            dials: options.credentials.clone().map(|credentials| Arc::new(Dials::new(credentials))),
            flights: Mutex::default(),
            options,
        }))
    }

    /// The store that files come into.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.0.store
    }

    /// Brings a file into the store, unless it is there already, and says where it is. In this order: what the store has and
    /// was touched is hashed again; folders that are adopted are looked through; a local source is cloned where the file system
    /// can; what an earlier fetch left is gone on with; and the rest comes in pieces, from the source and from other hosts.
    ///
    /// Dropping the future ends it at once, and the next fetch goes on from there.
    ///
    /// # Errors
    /// See [`FetchError`]. Transient ones have been retried.
    pub async fn fetch(&self, order: &Order, progress: &Progress) -> Result<PathBuf, FetchError> {
        let file = &order.file;
        if !is_inside(&file.name) {
            return Err(FetchError::Outside(file.name.clone()));
        }
        let flight = self.flight(file);
        progress.follow(file.sha256, &flight.part);
        let _turn = flight.turn.lock().await;
        let path = match self.here(file, progress).await? {
            Some(path) => path,
            None => self.bring(order, &flight.part).await?,
        };
        flight.part.complete();
        self.0.store.touch(&file.sha256);
        Ok(path)
    }

    fn flight(&self, file: &ResolvedFile) -> Arc<Flight> {
        let mut flights = self.0.flights.lock().unwrap_or_else(PoisonError::into_inner);
        flights.retain(|_, flight| flight.strong_count() > 0);
        if let Some(flight) = flights.get(&file.sha256).and_then(Weak::upgrade) {
            return flight;
        }
        let part = Progress::new().part(file.sha256, file.bytes);
        let flight = Arc::new(Flight { part, turn: tokio::sync::Mutex::default() });
        flights.insert(file.sha256, Arc::downgrade(&flight));
        flight
    }

    /// The file, if it is on this host already, here or in somebody's folder.
    async fn here(&self, file: &ResolvedFile, progress: &Progress) -> Result<Option<PathBuf>, FetchError> {
        let store = &self.0.store;
        if store.has(file) {
            return Ok(store.path_of(&file.sha256));
        }
        if let Some(path) = store.believe_again(file, progress).await? {
            return Ok(Some(path));
        }
        Ok(store.adopt(file, progress).await?)
    }

    async fn bring(&self, order: &Order, part: &Arc<Part>) -> Result<PathBuf, FetchError> {
        let source = Arc::new(OnceCell::new());
        // Opening a local folder costs nothing and asks nobody; all others are opened when they are needed.
        if order.source.is_local() {
            let origin = open(&source, order).await?;
            if let Some(original) = origin.local_path(&order.file.name)
                && let Some(path) = self.clone_of(&original, order, part).await?
            {
                return Ok(path);
            }
        }
        part.set_done(0);
        let (partial, follower) = self.begin(order, part).await?;
        self.0.store.comes(&partial);
        let follow = |follower| AbortOnDropHandle::new(tokio::spawn(follow(partial.clone(), follower)));
        let mut whole = follow(follower);
        let settling = AbortOnDropHandle::new(tokio::spawn(settle(partial.clone())));
        let download = || Download::new(&self.0, order, partial.clone(), part.clone(), source.clone());
        download().run().await?;
        settling.await.expect("settling neither panics nor is ended")?;
        let mut found = (&mut whole).await.expect("following neither panics nor is ended")?;
        if found != order.file.sha256 {
            found = self.doubt(order, &partial, part, found).await?;
        }
        if found != order.file.sha256 {
            self.0.store.apart(move |_| partial.remove()).await?;
            let (name, expected) = (order.file.name.clone(), order.file.sha256);
            return Err(FetchError::WrongDigest { name, expected, found });
        }
        self.place(order, partial).await
    }

    /// Opens what is on disk of the file, or begins.
    async fn begin(&self, order: &Order, part: &Arc<Part>) -> Result<(Arc<Partial>, Follower), FetchError> {
        let (store, file, part) = (self.0.store.clone(), order.file.clone(), part.clone());
        // Writes of a fetch that was given up may still be on their way to the disk.
        if let Some(before) = store.partial(&file.sha256) {
            before.quiet().await;
        }
        let cut = self.0.options.piece_bytes.and_then(|piece| Cut::into(file.bytes, piece));
        let cut = cut.unwrap_or(Cut::of(file.bytes));
        let opening = tokio::task::spawn_blocking(move || {
            Partial::open(&store, &file, cut, |bytes| part.add_done(bytes))
        });
        let (partial, follower) = opening.await.expect("opening does not panic")?;
        Ok((Arc::new(partial), follower))
    }

    /// A clone of a local original, which shares its blocks until either is written to, where the file system can do that.
    async fn clone_of(
        &self,
        original: &Path,
        order: &Order,
        part: &Arc<Part>,
    ) -> Result<Option<PathBuf>, FetchError> {
        let (store, file) = (self.0.store.clone(), &order.file);
        let (original, folder) = (original.to_owned(), store.partial_folder().to_owned());
        let cloning = tokio::task::spawn_blocking(move || {
            let clone =
                |path: &Path| reflink_copy::reflink(&original, path).and_then(|()| std::fs::File::open(path));
            tempfile::Builder::new().make_in(folder, clone)
        });
        let Ok(made) = cloning.await.expect("cloning does not panic") else { return Ok(None) };
        let made = made.into_temp_path();
        let length = std::fs::metadata(&made).map_err(crate::error::at(&made))?.len();
        if length != file.bytes {
            return Err(FetchError::WrongLength { name: file.name.clone(), expected: file.bytes });
        }
        let progress = Progress::new();
        progress.follow(file.sha256, part);
        let (hashed, _) = store.hash(&made, length, file.sha256, &progress).await?;
        if hashed.sha256 != file.sha256 {
            let (name, expected, found) = (file.name.clone(), file.sha256, hashed.sha256);
            return Err(FetchError::WrongDigest { name, expected, found });
        }
        let (file, origin) = (file.clone(), order.source.to_string());
        let path = self.0.store.apart(move |store| {
            let path = store.keep(&file.sha256, &made, |stamp| {
                let cut = Cut::of(file.bytes);
                Record::new(file.sha256, cut, hashed.digests, stamp, (&file.name, &origin), None)
            })?;
            // It has another name now.
            std::mem::forget(made);
            store.clear_partial(&file.sha256)?;
            Ok::<_, StoreError>(path)
        });
        Ok(Some(path.await?))
    }

    /// Moves a file whose sha256 is right to its place.
    async fn place(&self, order: &Order, partial: Arc<Partial>) -> Result<PathBuf, FetchError> {
        partial.quiet().await;
        let (name, origin) = (order.file.name.clone(), order.source.to_string());
        let placing = self.0.store.apart(move |store| {
            let digests = partial.have().digests.iter().map(|digest| digest.expect("all are here")).collect();
            let kept = store.keep(&partial.sha256, &partial.path, |stamp| {
                Record::new(partial.sha256, partial.cut, digests, stamp, (&name, &origin), None)
            });
            // After a sync that failed the system may show bytes from memory that the disk does not have.
            if matches!(kept, Err(StoreError::Unsettled { .. })) {
                partial.remove()?;
            }
            let path = kept?;
            partial.remove_journal()?;
            Ok::<_, StoreError>(path)
        });
        Ok(placing.await?)
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.0
    }
}

/// Hashes a file on its way as its front advances, and says what the whole hashes to.
pub(crate) async fn follow(partial: Arc<Partial>, mut follower: Follower) -> Result<Sha256Hex, StoreError> {
    let mut have = partial.watch();
    let length = partial.cut.bytes();
    while follower.at() < length {
        let front = |have: &crate::partial::Have| partial.cut.range(have.front).start;
        let at = follower.at();
        let end = have.wait_for(|have| front(have) > at).await.map(|have| front(&have));
        let end = end.expect("the file holds its sender").min(at + STRIDE);
        let reading = partial.clone();
        let hashing = tokio::task::spawn_blocking(move || {
            follower.advance(&reading.file, &reading.path, end).map(|()| follower)
        });
        follower = hashing.await.expect("hashing does not panic")?;
    }
    Ok(follower.finish())
}

/// Brings what has come to the disk while the rest comes, so that neither waits for the other and little is left for the end. What
/// the disk refuses then is heard of here alone.
async fn settle(partial: Arc<Partial>) -> Result<(), StoreError> {
    let mut have = partial.watch();
    let count = partial.cut.count() as usize;
    let stride = usize::try_from(STRIDE / partial.cut.piece_bytes()).unwrap_or(usize::MAX).max(1);
    let mut settled = 0;
    while settled < count {
        let next = settled.saturating_add(stride).min(count);
        let there = have.wait_for(|have| have.log.len() >= next).await.map(|have| have.log.len());
        settled = there.expect("the file holds its sender");
        let (writing, leave) = (partial.clone(), partial.leave_to_write().await);
        let syncing = tokio::task::spawn_blocking(move || {
            // The next fetch of the file waits for the leave, so that what is removed here is not its own.
            let _leave = leave;
            let synced = writing.file.sync_data().map_err(unsettled(&writing.path));
            synced.or_else(|error| writing.remove().and(Err(error)))
        });
        syncing.await.expect("syncing does not panic")?;
    }
    Ok(())
}

/// A bucket that holds what may come in a tenth of a second.
fn limiter(bytes_per_second: u64) -> RateLimiter {
    let interval = Duration::from_millis(100);
    let refill = usize::try_from(bytes_per_second / 10).unwrap_or(usize::MAX >> 8).max(1);
    RateLimiter::builder().initial(refill).refill(refill).max(refill).interval(interval).fair(true).build()
}

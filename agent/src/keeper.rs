//! The weights of this host as a whole: which stay and why, which make room for others, and what there is.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::{StreamExt, TryStreamExt, stream};
use nix::sys::statvfs::statvfs;
use tandem_agent_core::{Kept, Pins, Room, collect};
use tandem_crds::{InferenceHostSpec, WeightsStatus};
use tandem_sources::{ResolvedFile, Sha256Hex};
use tandem_weights::{
    FetchError, Fetcher, FileState, Order, Progress, Store, StoreError, StoredFile, VerifyError,
};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, interval};

use crate::error::chain;
use crate::metrics::{Metrics, Origin};

/// Files of one model that come at once; connections are shared by all of them.
const AT_ONCE: usize = 4;
/// How often figures of a transfer are brought up to date.
const COUNT: Duration = Duration::from_secs(1);
/// Digests that a status may list.
const MOST_LISTED: usize = 128;
/// Reading less says little about a disk, in bytes.
const WORTH_MEASURING: u64 = 64 << 20;
/// Pulled files that are remembered.
const MOST_PULLED: usize = 4096;

/// What there is, at one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stock {
    pub(crate) files: Vec<StoredFile>,
    /// What they take on disk, in bytes.
    pub(crate) used_bytes: u64,
    /// What is taken for those on their way: all of a file, where its room was reserved before it came.
    reserved: BTreeMap<Sha256Hex, u64>,
}

/// Shared by all that change weights.
pub(crate) struct Keeper {
    pub(crate) store: Store,
    fetcher: Fetcher,
    folder: PathBuf,
    /// What may not go. Held while a file is removed, so that none goes that was just listed.
    pins: watch::Sender<Pins>,
    spec: Mutex<Option<InferenceHostSpec>>,
    /// When files were pulled by hand.
    pulled: Mutex<BTreeMap<Sha256Hex, Instant>>,
    /// Something about the files has changed.
    pub(crate) news: Notify,
    /// How fast files were read last, in bytes a second; 0 before the first.
    disk_rate: AtomicU64,
    metrics: Arc<Metrics>,
}

/// A file that is not what it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wrong {
    pub(crate) sha256: Sha256Hex,
    pub(crate) name: String,
    /// A sentence.
    pub(crate) why: String,
    /// It is not there at all.
    pub(crate) missing: bool,
}

impl Keeper {
    /// Keeps what `fetcher` brings; `folder` is on the disk that it comes to.
    pub(crate) fn new(fetcher: Fetcher, folder: PathBuf, metrics: Arc<Metrics>) -> Self {
        Self {
            store: fetcher.store().clone(),
            fetcher,
            folder,
            pins: watch::Sender::new(Pins::default()),
            spec: Mutex::default(),
            pulled: Mutex::default(),
            news: Notify::new(),
            disk_rate: AtomicU64::new(0),
            metrics,
        }
    }

    /// Takes the operator's newest word on what stays; none while no operator confirms what this host obeys.
    pub(crate) fn obey(&self, spec: Option<&InferenceHostSpec>) {
        *self.spec.lock().unwrap_or_else(PoisonError::into_inner) = spec.cloned();
        self.pin();
    }

    /// Files that were pulled by hand stay for a while.
    pub(crate) fn pulled(&self, files: &[ResolvedFile]) {
        let mut pulled = self.pulled.lock().unwrap_or_else(PoisonError::into_inner);
        for file in files {
            if pulled.len() >= MOST_PULLED
                && let Some(oldest) = pulled.iter().min_by_key(|(_, at)| **at).map(|(digest, _)| *digest)
            {
                pulled.remove(&oldest);
            }
            pulled.insert(file.sha256, Instant::now());
        }
        drop(pulled);
        self.pin();
    }

    fn pin(&self) {
        let pulled = self.pulled.lock().unwrap_or_else(PoisonError::into_inner);
        let ages: Vec<_> = pulled.iter().map(|(digest, at)| (digest.to_string(), at.elapsed())).collect();
        drop(pulled);
        let spec = self.spec.lock().unwrap_or_else(PoisonError::into_inner);
        let pins = Pins::of(spec.as_ref(), ages.iter().map(|(digest, age)| (digest.as_str(), *age)));
        self.pins.send_replace(pins);
    }

    /// Looks at the folders.
    pub(crate) async fn stock(self: &Arc<Self>) -> Result<Stock, StoreError> {
        self.pin();
        let keeper = self.clone();
        on_a_thread(move || {
            let pins = keeper.pins.borrow().clone();
            let mut files = keeper.store.list()?;
            for file in &mut files {
                file.pinned = pins.of_file(&file.sha256.to_string()).map(ToString::to_string);
            }
            let on_their_way = files.iter().filter(|file| matches!(file.state, FileState::Partial(_)));
            let reserved = on_their_way.map(|file| (file.sha256, allocated(&file.path))).collect();
            Ok(Stock { files, used_bytes: keeper.store.used_bytes()?, reserved })
        })
        .await
    }

    /// Removes what may go, the longest unused first, so that these files have room in budget and disk. Says what went. Less
    /// than needed may go: whoever writes sees that there is no room.
    pub(crate) async fn make_room(
        self: &Arc<Self>,
        coming: &[ResolvedFile],
    ) -> Result<Vec<StoredFile>, StoreError> {
        let stock = self.stock().await?;
        let excess = self.room(&stock, stock.lacking(coming)).excess();
        if excess == 0 {
            return Ok(Vec::new());
        }
        self.remove(stock, excess, false).await
    }

    /// Removes what may go until at most `keep_bytes` are kept; says what went, or what would.
    pub(crate) async fn prune(
        self: &Arc<Self>,
        keep_bytes: u64,
        dry_run: bool,
    ) -> Result<Vec<StoredFile>, StoreError> {
        let stock = self.stock().await?;
        let excess = stock.used_bytes.saturating_sub(keep_bytes);
        self.remove(stock, excess, dry_run).await
    }

    /// Makes room, and brings files here, some of them at once.
    pub(crate) async fn bring(
        self: &Arc<Self>,
        orders: Vec<Order>,
        progress: &Progress,
    ) -> Result<(), FetchError> {
        let wanted: Vec<ResolvedFile> = orders.iter().map(|order| order.file.clone()).collect();
        self.make_room(&wanted).await?;
        let fetches = orders.into_iter().map(|order| {
            let (fetcher, progress) = (self.fetcher.clone(), progress.clone());
            async move { fetcher.fetch(&order, &progress).await }
        });
        let all = stream::iter(fetches).buffer_unordered(AT_ONCE).try_for_each(|_| async { Ok(()) });
        tokio::pin!(all);
        let mut counted = Counted { metrics: &self.metrics, progress, source: 0, peer: 0 };
        let mut tick = interval(COUNT);
        loop {
            tokio::select! {
                done = &mut all => return done,
                _ = tick.tick() => counted.count(),
            }
        }
    }

    /// Hashes a file again. One that is wrong is taken out of use at once, so that nobody is served with it; the next fetch
    /// mends it.
    pub(crate) async fn verify(
        &self,
        sha256: Sha256Hex,
        name: &str,
        progress: &Progress,
    ) -> Result<(), Wrong> {
        let start = Instant::now();
        let Err(error) = self.store.verify(&sha256, progress).await else {
            self.has_read(progress.total(), start.elapsed());
            self.store.touch(&sha256);
            return Ok(());
        };
        self.metrics.verify_failures.inc();
        let mut why = chain(&error);
        let missing = matches!(error, VerifyError::Missing(_));
        if !missing && let Err(error) = self.store.discard(&sha256) {
            why = format!("{why}; and it can't be taken out of use: {}", chain(&error));
        }
        tracing::error!(%sha256, name, error = why, "a file of weights is not what it should be");
        self.news.notify_one();
        Err(Wrong { sha256, name: name.to_owned(), why, missing })
    }

    /// Notes how fast files were read; what is read too fast to measure says nothing.
    fn has_read(&self, bytes: u64, took: Duration) {
        if bytes >= WORTH_MEASURING {
            let rate = u128::from(bytes) * 1000 / took.as_millis().max(1);
            self.disk_rate.store(u64::try_from(rate).unwrap_or(u64::MAX), Ordering::Relaxed);
        }
    }

    /// Bytes a second at which files were read last.
    pub(crate) fn disk_rate(&self) -> Option<u64> {
        Some(self.disk_rate.load(Ordering::Relaxed)).filter(|rate| *rate > 0)
    }

    pub(crate) fn room(&self, stock: &Stock, coming: u64) -> Room {
        let options = self.store.options();
        Room {
            used: stock.used_bytes,
            budget: options.budget_bytes,
            free: self.free_bytes(),
            spare: options.spare_bytes,
            coming,
        }
    }

    /// Whether so much can come, once what may go has gone.
    pub(crate) fn has_room(&self, stock: &Stock, coming: u64) -> bool {
        let pins = self.pins.borrow();
        let may_go = stock.own().filter(|file| pins.of_file(&file.digest).is_none()).map(|file| file.bytes);
        self.room(stock, coming).excess() <= may_go.sum()
    }

    /// What is free on the disk of the weights, in bytes.
    #[allow(clippy::useless_conversion, reason = "macOS counts blocks of a file system in 32 bits")]
    pub(crate) fn free_bytes(&self) -> Option<u64> {
        let disk = statvfs(&self.folder).ok()?;
        Some(u64::from(disk.blocks_available()).saturating_mul(disk.fragment_size()))
    }

    async fn remove(
        self: &Arc<Self>,
        stock: Stock,
        excess: u64,
        dry_run: bool,
    ) -> Result<Vec<StoredFile>, StoreError> {
        let keeper = self.clone();
        let gone = on_a_thread(move || {
            let kept: Vec<Kept> = stock.own().collect();
            let chosen = collect(&kept, &keeper.pins.borrow(), excess);
            let chosen: BTreeSet<String> = chosen.into_iter().map(|file| file.digest).collect();
            let mut gone = Vec::new();
            for file in stock.files {
                let digest = file.sha256.to_string();
                if !chosen.contains(&digest) {
                    continue;
                }
                // Held until it is gone: what is listed meanwhile is listed before or after.
                let pins = keeper.pins.borrow();
                if pins.of_file(&digest).is_some() {
                    continue;
                }
                if !dry_run {
                    keeper.store.remove(&file.sha256)?;
                    keeper.metrics.collected.inc_by(file.bytes);
                    tracing::info!(
                        sha256 = digest,
                        name = file.name,
                        bytes = file.bytes,
                        "weights make room"
                    );
                }
                drop(pins);
                gone.push(file);
            }
            Ok(gone)
        })
        .await?;
        if !dry_run && !gone.is_empty() {
            self.news.notify_one();
        }
        Ok(gone)
    }
}

/// What of a transfer the figures know. It is counted up to the last byte, also when the transfer is given up.
struct Counted<'a> {
    metrics: &'a Metrics,
    progress: &'a Progress,
    source: u64,
    peer: u64,
}

impl Counted<'_> {
    fn count(&mut self) {
        let (source, peer) = (self.progress.source_bytes(), self.progress.peer_bytes());
        self.metrics.fetched(Origin::Source, source.saturating_sub(self.source));
        self.metrics.fetched(Origin::Peer, peer.saturating_sub(self.peer));
        (self.source, self.peer) = (source, peer);
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.count();
    }
}

impl Stock {
    /// What the host says of it.
    pub(crate) fn status(&self, port: u16, budget: Option<u64>, disk_rate: Option<u64>) -> WeightsStatus {
        let mut whole: Vec<_> = self.files.iter().filter(|file| file.state == FileState::Verified).collect();
        whole.sort_by(|a, b| (b.bytes, &a.sha256).cmp(&(a.bytes, &b.sha256)));
        whole.truncate(MOST_LISTED);
        let mut files: Vec<String> = whole.iter().map(|file| file.sha256.to_string()).collect();
        files.sort();
        WeightsStatus {
            port: Some(port),
            used_bytes: self.used_bytes,
            budget_bytes: budget,
            files,
            disk_bytes_per_second: disk_rate,
        }
    }

    /// Bytes that the disk still has to take for these files.
    pub(crate) fn lacking(&self, files: &[ResolvedFile]) -> u64 {
        let here = |file: &ResolvedFile| match self.of(&file.sha256).map(|there| &there.state) {
            Some(FileState::Partial(_)) => self.reserved.get(&file.sha256).copied().unwrap_or(0),
            Some(_) => file.bytes,
            None => 0,
        };
        files.iter().map(|file| file.bytes.saturating_sub(here(file))).sum()
    }

    /// The files that are the host's own to remove.
    fn own(&self) -> impl Iterator<Item = Kept> {
        self.files.iter().filter(|file| !file.referred).map(|file| {
            let bytes = self.reserved.get(&file.sha256).copied().unwrap_or(file.bytes);
            Kept { digest: file.sha256.to_string(), bytes, last_used: seconds(file.last_used) }
        })
    }

    pub(crate) fn of(&self, digest: &Sha256Hex) -> Option<&StoredFile> {
        self.files.iter().find(|file| file.sha256 == *digest)
    }
}

/// What a file takes of its disk, in bytes; 0 if it is gone.
fn allocated(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |there| there.len().min(there.blocks().saturating_mul(512)))
}

/// Seconds since 1970.
pub(crate) fn seconds(time: SystemTime) -> i64 {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    i64::try_from(seconds).unwrap_or(i64::MAX)
}

async fn on_a_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    tokio::task::spawn_blocking(work).await.expect("looking at files does not panic")
}

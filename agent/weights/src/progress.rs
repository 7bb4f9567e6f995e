//! How far transfers are, as counters that many may read while they run.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tandem_sources::{ResolvedFile, Sha256Hex};

/// Counts over the files of one order or of many. Clones count the same; reading costs a short lock.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    parts: Arc<Mutex<BTreeMap<Sha256Hex, Arc<Part>>>>,
}

/// One file's counts, in bytes. Two orders for one file share them: it comes once.
#[derive(Debug, Default)]
pub(crate) struct Part {
    total: AtomicU64,
    done: AtomicU64,
    source: AtomicU64,
    peers: AtomicU64,
}

impl Progress {
    /// Counts nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Counts these files into the total before their transfer begins.
    pub fn expect(&self, files: &[ResolvedFile]) {
        for file in files {
            self.part(file.sha256, file.bytes);
        }
    }

    /// Bytes that are here and hashed. Falls when pieces turn out to be wrong.
    #[must_use]
    pub fn done(&self) -> u64 {
        self.sum(|part| &part.done)
    }

    /// Bytes of all files.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.sum(|part| &part.total)
    }

    /// Bytes that came from the source, those that were of no use too.
    #[must_use]
    pub fn source_bytes(&self) -> u64 {
        self.sum(|part| &part.source)
    }

    /// Bytes that came from other hosts, those that were of no use too.
    #[must_use]
    pub fn peer_bytes(&self) -> u64 {
        self.sum(|part| &part.peers)
    }

    fn sum(&self, of: impl Fn(&Part) -> &AtomicU64) -> u64 {
        let parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        parts.values().map(|part| of(part).load(Ordering::Relaxed)).sum()
    }

    pub(crate) fn part(&self, sha256: Sha256Hex, bytes: u64) -> Arc<Part> {
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        let part = parts.entry(sha256).or_default().clone();
        part.total.store(bytes, Ordering::Relaxed);
        part
    }

    /// Counts what another order for the same file counts.
    pub(crate) fn follow(&self, sha256: Sha256Hex, part: &Arc<Part>) {
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        parts.insert(sha256, part.clone());
    }
}

impl Part {
    pub(crate) fn set_done(&self, bytes: u64) {
        self.done.store(bytes, Ordering::Relaxed);
    }

    pub(crate) fn add_done(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn complete(&self) {
        self.set_done(self.total.load(Ordering::Relaxed));
    }

    pub(crate) fn add_source(&self, bytes: u64) {
        self.source.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn add_peer(&self, bytes: u64) {
        self.peers.fetch_add(bytes, Ordering::Relaxed);
    }
}

//! A file on its way: its reserved place on disk, its journal, and what is known of its pieces, also to those who ask over
//! the network. Every wait for the disk is in here or on the callers' blocking threads.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tandem_sources::{ResolvedFile, Sha256Hex};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::Digest;
use crate::error::{FetchError, StoreError, at, at_byte, is_full};
use crate::hash::{BLOCK, Follower};
use crate::journal::{self, BadJournal, Journal};
use crate::pieces::Cut;
use crate::store::Store;

/// More writes than are ever under way.
const WRITES: u32 = 1024;

/// A file on its way.
#[derive(Debug)]
pub(crate) struct Partial {
    pub(crate) sha256: Sha256Hex,
    pub(crate) cut: Cut,
    pub(crate) file: File,
    pub(crate) path: PathBuf,
    journal: Mutex<File>,
    journal_path: PathBuf,
    header: Vec<u8>,
    have: watch::Sender<Have>,
    /// Bytes that came from the source for it, in this process's life: a sign of life for those who wait for pieces.
    received: AtomicU64,
    writes: Arc<Semaphore>,
}

/// Which pieces are here.
#[derive(Debug)]
pub(crate) struct Have {
    /// Another one whenever a piece was taken back, so that `log` only ever grows within one.
    pub(crate) run: u64,
    /// The pieces in the order in which they came.
    pub(crate) log: Vec<u32>,
    /// By index.
    pub(crate) digests: Vec<Option<Digest>>,
    /// So many leading pieces are here without a gap.
    pub(crate) front: u32,
    /// Pieces that are being fetched from the source.
    pub(crate) claims: BTreeSet<u32>,
    /// Whether this host fetches pieces from the source, so that others may rely on it.
    pub(crate) takes: bool,
}

impl Have {
    fn add(&mut self, piece: u32, digest: Digest) {
        let slot = &mut self.digests[piece as usize];
        if slot.replace(digest).is_none() {
            self.log.push(piece);
        }
        while self.digests.get(self.front as usize).is_some_and(Option::is_some) {
            self.front += 1;
        }
    }

    pub(crate) fn is_whole(&self) -> bool {
        self.front as usize == self.digests.len()
    }

    pub(crate) fn has(&self, piece: u32) -> bool {
        self.digests[piece as usize].is_some()
    }
}

impl Partial {
    /// Goes on with what is on disk, or begins: room is reserved before anything is fetched. What the journal says is here
    /// is read and hashed; a piece that differs is not here. Blocks.
    ///
    /// # Errors
    /// When there is no room, or the disk fails.
    pub(crate) fn open(
        store: &Store,
        file: &ResolvedFile,
        cut: Cut,
        seen: impl Fn(u64),
    ) -> Result<(Self, Follower), FetchError> {
        let (path, journal_path) = (store.data_path(&file.sha256), store.journal_path(&file.sha256));
        let kept = read_journal(&journal_path)?.filter(|kept| kept.sha256 == file.sha256 && kept.cut == cut);
        let data = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(kept.is_none())
            .mode(0o600)
            .open(&path)
            .map_err(at(&path))?;
        if let Err(error) = reserve(store, &data, &path, file) {
            // Of a file that has nothing yet, nothing stays behind.
            if kept.is_none() {
                fs::remove_file(&path).map_err(at(&path))?;
            }
            return Err(error);
        }
        let run = rand::random();
        let digests = vec![None; cut.count() as usize];
        let mut have =
            Have { run, log: Vec::new(), digests, front: 0, claims: BTreeSet::new(), takes: false };
        let mut follower = Follower::new();
        for (piece, digest) in kept.map(|kept| kept.pieces).unwrap_or_default() {
            if read_back(&data, &path, &cut, piece, &digest, &mut follower)? {
                have.add(piece, digest);
                seen(cut.length(piece));
            } else {
                tracing::warn!(path = %path.display(), piece, "a piece on disk is not what came: it is fetched again");
            }
        }
        // Written anew: the old one may end in a torn record, after which nothing could be read.
        let known = have.digests.iter().enumerate().filter_map(|(piece, digest)| Some((piece, (*digest)?)));
        store.write_journal(&file.sha256, &cut, known)?;
        let journal = OpenOptions::new().append(true).open(&journal_path).map_err(at(&journal_path))?;
        let partial = Self {
            sha256: file.sha256,
            header: journal::header(&file.sha256, &cut),
            cut,
            file: data,
            path,
            journal: Mutex::new(journal),
            journal_path,
            have: watch::Sender::new(have),
            received: AtomicU64::new(0),
            writes: Arc::new(Semaphore::new(WRITES as usize)),
        };
        Ok((partial, follower))
    }

    pub(crate) fn have(&self) -> watch::Ref<'_, Have> {
        self.have.borrow()
    }

    pub(crate) fn watch(&self) -> watch::Receiver<Have> {
        self.have.subscribe()
    }

    /// Counts bytes that came from the source.
    pub(crate) fn receive(&self, bytes: u64) {
        self.received.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// A leave to write to the file. All are handed back before it is closed or read as a whole.
    pub(crate) async fn leave_to_write(&self) -> OwnedSemaphorePermit {
        self.writes.clone().acquire_owned().await.expect("it is never closed")
    }

    /// Waits until no write is under way, those of a fetch that was given up too.
    pub(crate) async fn quiet(&self) {
        let all = self.writes.acquire_many(WRITES).await;
        drop(all.expect("it is never closed"));
    }

    /// Writes into the journal that a piece's bytes are written. Blocks.
    pub(crate) fn write_down(&self, piece: u32, digest: &Digest) -> Result<(), StoreError> {
        let record = journal::record(&self.header, piece, digest);
        let mut journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
        journal.write_all(&record).map_err(at(&self.journal_path))
    }

    /// From now on the piece is here, for this host and for others.
    pub(crate) fn add(&self, piece: u32, digest: Digest) {
        self.have.send_modify(|have| {
            have.claims.remove(&piece);
            have.add(piece, digest);
        });
    }

    /// Says that a piece is being fetched from the source, or is not any more.
    pub(crate) fn claim(&self, piece: u32, claimed: bool) {
        self.have.send_if_modified(|have| {
            if claimed { have.claims.insert(piece) } else { have.claims.remove(&piece) }
        });
    }

    pub(crate) fn set_takes(&self, takes: bool) {
        self.have.send_if_modified(|have| std::mem::replace(&mut have.takes, takes) != takes);
    }

    /// Nobody fetches it any more: other hosts need not wait for what was on its way.
    pub(crate) fn rest(&self) {
        self.have.send_if_modified(|have| {
            let told = have.takes || !have.claims.is_empty();
            have.takes = false;
            have.claims.clear();
            told
        });
    }

    /// Takes pieces back that turned out to be wrong. Those who were told of them learn it.
    pub(crate) fn withdraw(&self, pieces: &[u32]) {
        self.have.send_modify(|have| {
            for piece in pieces {
                have.digests[*piece as usize] = None;
                have.front = have.front.min(*piece);
            }
            have.run = rand::random();
            have.log.retain(|piece| have.digests[*piece as usize].is_some());
        });
    }

    /// Removes it from the disk.
    pub(crate) fn remove(&self) -> Result<(), StoreError> {
        for path in [&self.path, &self.journal_path] {
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at(path)(error)),
                _ => {}
            }
        }
        Ok(())
    }

    /// Its journal is of no use once the file is in its place.
    pub(crate) fn remove_journal(&self) -> Result<(), StoreError> {
        fs::remove_file(&self.journal_path).map_err(at(&self.journal_path))
    }
}

fn read_journal(path: &Path) -> Result<Option<Journal>, StoreError> {
    let bytes = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        result => result.map_err(at(path))?,
    };
    match journal::parse(&bytes) {
        Ok(journal) => Ok(Some(journal)),
        Err(BadJournal::Newer(found)) => {
            Err(StoreError::Newer { path: path.to_owned(), found, known: journal::VERSION })
        }
        Err(BadJournal::Broken) => {
            tracing::warn!(path = %path.display(), "a journal is damaged: its file is fetched from the start");
            Ok(None)
        }
    }
}

/// Whether a piece on disk is what came once. Pieces at the front feed the hash of the whole in the same reading.
fn read_back(
    data: &File,
    path: &Path,
    cut: &Cut,
    piece: u32,
    expected: &Digest,
    follower: &mut Follower,
) -> Result<bool, StoreError> {
    let range = cut.range(piece);
    let at_front = follower.at() == range.start;
    let mut ahead = follower.clone();
    let mut hasher = blake3::Hasher::new();
    let (mut at, mut block) = (range.start, Vec::new());
    while at < range.end {
        block.resize(BLOCK.min(usize::try_from(range.end - at).unwrap_or(BLOCK)), 0);
        match data.read_exact_at(&mut block, at) {
            Ok(()) => {}
            // A disk that can't read a piece back may well take it again elsewhere.
            Err(error) => {
                let error = at_byte(path, at)(error);
                tracing::warn!(error = &error as &dyn std::error::Error, "a piece can't be read back");
                return Ok(false);
            }
        }
        hasher.update(&block);
        if at_front {
            ahead.feed(&block);
        }
        at += block.len() as u64;
    }
    let right = Digest::from(hasher.finalize()) == *expected;
    if right && at_front {
        *follower = ahead;
    }
    Ok(right)
}

/// Takes the whole file's room on disk before its first byte is fetched.
fn reserve(store: &Store, data: &File, path: &Path, file: &ResolvedFile) -> Result<(), FetchError> {
    // One after the other, or two would both take the same room for free.
    let _alone = store.reserving();
    let there = data.metadata().map_err(at(path))?;
    let needed = file.bytes.saturating_sub(there.len().min(there.blocks() * 512));
    let folder = store.partial_folder();
    let spare = store.options().spare_bytes;
    let free = free_bytes(folder)?.saturating_sub(spare);
    let full =
        || FetchError::DiskFull { name: file.name.clone(), needed, free, spare, folder: folder.to_owned() };
    if needed > free {
        return Err(full());
    }
    if let Some(budget) = store.options().budget_bytes {
        let used = store.used_bytes()?;
        if used.saturating_add(needed) > budget {
            return Err(FetchError::OverBudget { name: file.name.clone(), needed, used, budget });
        }
    }
    match allocate(data, file.bytes).and_then(|()| data.set_len(file.bytes)) {
        Err(error) if is_full(&error) => Err(full()),
        result => Ok(result.map_err(at(path))?),
    }
}

/// What a person without privileges may still write there, in bytes.
#[allow(clippy::useless_conversion, reason = "macOS counts blocks of a file system in 32 bits")]
pub(crate) fn free_bytes(folder: &Path) -> Result<u64, StoreError> {
    let there = nix::sys::statvfs::statvfs(folder).map_err(|error| at(folder)(error.into()))?;
    Ok(u64::from(there.blocks_available()).saturating_mul(there.fragment_size()))
}

#[cfg(target_os = "linux")]
fn allocate(file: &File, bytes: u64) -> io::Result<()> {
    use nix::errno::Errno;
    use nix::fcntl::{FallocateFlags, fallocate};
    let Ok(length) = i64::try_from(bytes) else { return Err(io::ErrorKind::FileTooLarge.into()) };
    if length == 0 {
        return Ok(());
    }
    match fallocate(file, FallocateFlags::empty(), 0, length) {
        // The file system can't; then a full disk is noticed while writing.
        Ok(()) | Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(not(target_os = "linux"))]
fn allocate(_file: &File, _bytes: u64) -> io::Result<()> {
    Ok(())
}

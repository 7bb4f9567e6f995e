//! A host's weights on disk, each file under its own hash: whole and verified, or not there. Shared by all deployments.
//!
//! Layout, of a version that the file `FORMAT` holds:
//! - `sha256/HASH`: whole, verified, readable by their owner only;
//! - `pieces/HASH`: the record of a verified file, its pieces' digests and the marks by which a change is noticed. A file in
//!   `sha256/` without one is hashed before it is used. When it was used last is the record's own modification time;
//! - `partial/HASH.data`, `partial/HASH.journal`: on their way.
//!
//! A file that lies elsewhere (a person's own folder) is known by its record alone, and never deleted.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::time::{Duration, SystemTime};

use nix::fcntl::Flock;
use tandem_sources::{ResolvedFile, Sha256Hex};
use tandem_worker_api::FileStamp;
use tokio::sync::{broadcast, watch};

use crate::error::{Changed, StoreError, VerifyError, at, unsettled};
use crate::folder::{check_format, entries, lock, read_record, remove, sync_folder};
use crate::hash::{Hashed, hash_file};
use crate::journal;
use crate::partial::Partial;
use crate::pieces::Cut;
use crate::progress::Progress;
use crate::record::Record;

/// Files of other programs that are remembered to be none that was wanted.
const MOST_REFUTED: usize = 10_000;
/// Calls of other hosts that a fetch may be behind with; one that is further behind looks at all hosts.
const CALLS: usize = 64;
/// A use is written down when the last one that was is older than this.
const COARSELY: Duration = Duration::from_secs(15 * 60);

/// How a store is kept.
#[derive(Clone, Debug, Default)]
pub struct StoreOptions {
    /// Folders of other programs, such as a Hugging Face cache, that are looked through before a file is fetched. What is
    /// found there is referred to, not copied, and never deleted.
    pub adopt: Vec<PathBuf>,
    /// What the store may take on disk, in bytes. Nothing is removed for it: that is asked for by
    /// [`Store::remove`].
    pub budget_bytes: Option<u64>,
    /// What stays free on the disk, in bytes.
    pub spare_bytes: u64,
}

/// What is known of a file in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredFile {
    /// Its name here.
    pub sha256: Sha256Hex,
    /// Its length.
    pub bytes: u64,
    /// As it was called where it came from; empty when nobody knows.
    pub name: String,
    /// Where it came from, for people.
    pub origin: String,
    /// Where it lies.
    pub path: PathBuf,
    /// Whether it lies in somebody else's folder, and is only referred to.
    pub referred: bool,
    /// When it was used last, to a quarter of an hour.
    pub last_used: SystemTime,
    /// Why it can't be collected, as whoever removes files says.
    pub pinned: Option<String>,
    /// In which state it is.
    pub state: FileState,
}

/// In which state a file is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileState {
    /// Whole, verified, and untouched since.
    Verified,
    /// On its way; so many bytes of it are here.
    Partial(u64),
    /// Verified once, and changed since, in the words of [`Changed`]; or never verified. It is hashed before it is used.
    Changed(String),
}

/// Verified weights on this host. Clones share one store; one process at a time has it open.
#[derive(Clone, Debug)]
pub struct Store(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    whole: PathBuf,
    partial: PathBuf,
    records: PathBuf,
    options: StoreOptions,
    known: RwLock<BTreeMap<Sha256Hex, Arc<Record>>>,
    on_their_way: Mutex<BTreeMap<Sha256Hex, Weak<Partial>>>,
    /// Files of other programs that were hashed and are none of those that were wanted.
    refuted: Mutex<BTreeMap<PathBuf, (FileStamp, Sha256Hex)>>,
    /// Files of which a piece was read otherwise than it was verified, though their marks are as they were.
    suspects: Mutex<BTreeSet<Sha256Hex>>,
    /// Held while room for a file is taken.
    reserving: Mutex<()>,
    /// Counts files that began to come or have come.
    news: watch::Sender<u64>,
    /// Names of hosts that ask for a file for the first time.
    callers: broadcast::Sender<Arc<str>>,
    /// Held while the store is open.
    _lock: Flock<File>,
}

impl Store {
    /// Opens or makes a store. Downloads that were cut off stay, to be resumed; what is broken is cleared away.
    ///
    /// # Errors
    /// When the folder can't be made or read, is of a newer format, or is open in another process.
    pub fn open(folder: &Path, options: StoreOptions) -> Result<Self, StoreError> {
        let [whole, partial, records] = ["sha256", "partial", "pieces"].map(|name| folder.join(name));
        for path in [&whole, &partial, &records] {
            fs::create_dir_all(path).map_err(at(path))?;
        }
        let _lock = lock(folder)?;
        check_format(folder)?;
        let mut known = BTreeMap::new();
        for (path, name) in entries(&records)? {
            if let Some(record) = read_record(&path, &name)? {
                known.insert(record.sha256, Arc::new(record));
            }
        }
        let inner = Inner {
            whole,
            partial,
            records,
            options,
            known: RwLock::new(known),
            on_their_way: Mutex::default(),
            refuted: Mutex::default(),
            suspects: Mutex::default(),
            reserving: Mutex::default(),
            news: watch::Sender::new(0),
            callers: broadcast::Sender::new(CALLS),
            _lock,
        };
        let store = Self(Arc::new(inner));
        store.clear_broken()?;
        Ok(store)
    }

    /// How it is kept.
    #[must_use]
    pub fn options(&self) -> &StoreOptions {
        &self.0.options
    }

    /// Where a file is, if it is here, verified and untouched since. Costs a look at its metadata.
    #[must_use]
    pub fn path_of(&self, sha256: &Sha256Hex) -> Option<PathBuf> {
        let record = self.record(sha256)?;
        let path = self.place(&record);
        self.changed(&record, &path).is_ok().then_some(path)
    }

    /// Whether a file is here, whole, as it was when it was verified.
    #[must_use]
    pub fn has(&self, file: &ResolvedFile) -> bool {
        self.record(&file.sha256).is_some_and(|record| record.bytes == file.bytes)
            && self.path_of(&file.sha256).is_some()
    }

    /// Looks whether a file is still the one that was verified, by its marks alone: any write, truncation or replacement is
    /// noticed, also one under a process that has it mapped. Bytes that the disk itself changed are not; for those there
    /// is [`Store::verify`].
    ///
    /// # Errors
    /// When it is not; the sentence says how.
    pub fn unchanged(&self, sha256: &Sha256Hex) -> Result<(), Changed> {
        let record = self.record(sha256).ok_or(Changed::Unknown(*sha256))?;
        self.changed(&record, &self.place(&record))
    }

    /// The marks of a file that is still the one that was verified: evidence for those who are about to read it.
    ///
    /// # Errors
    /// As [`Store::unchanged`].
    pub fn stamp(&self, sha256: &Sha256Hex) -> Result<FileStamp, Changed> {
        self.unchanged(sha256)?;
        self.record(sha256).map(|record| record.stamp).ok_or(Changed::Unknown(*sha256))
    }

    /// Notes that a file is used now.
    pub fn touch(&self, sha256: &Sha256Hex) {
        let path = self.record_path(sha256);
        let now = SystemTime::now();
        let last = fs::metadata(&path).and_then(|there| there.modified());
        let noted = match last {
            Ok(last) if now.duration_since(last).is_ok_and(|age| age < COARSELY) => Ok(()),
            Ok(_) => File::open(&path).and_then(|file| file.set_modified(now)),
            Err(error) => Err(error),
        };
        if let Err(error) = noted {
            tracing::debug!(path = %path.display(), %error, "a use can't be noted");
        }
    }

    /// All files, whole ones and those on their way, by hash.
    ///
    /// # Errors
    /// When the folders can't be read.
    pub fn list(&self) -> Result<Vec<StoredFile>, StoreError> {
        let known: Vec<_> = self.known().values().cloned().collect();
        let mut files: BTreeMap<_, _> =
            known.iter().map(|record| (record.sha256, self.stored(record))).collect();
        for (path, name) in entries(&self.0.whole)? {
            if let Ok(sha256) = name.parse::<Sha256Hex>() {
                files.entry(sha256).or_insert_with(|| nameless(sha256, path));
            }
        }
        for (path, name) in entries(&self.0.partial)? {
            let Some(sha256) = name.strip_suffix(".journal").and_then(|name| name.parse().ok()) else {
                continue;
            };
            let bytes = fs::read(&path).map_err(at(&path))?;
            if let Ok(journal) = journal::parse(&bytes) {
                let here = journal.pieces.keys().map(|piece| journal.cut.length(*piece)).sum();
                let file = nameless(sha256, self.data_path(&sha256));
                let (bytes, state) = (journal.cut.bytes(), FileState::Partial(here));
                files.entry(sha256).or_insert(StoredFile { bytes, state, ..file });
            }
        }
        Ok(files.into_values().collect())
    }

    /// What the store takes on disk, in bytes: files of its own and what is reserved for those on their way.
    ///
    /// # Errors
    /// When the folders can't be read.
    pub fn used_bytes(&self) -> Result<u64, StoreError> {
        let mut used = 0;
        for folder in [&self.0.whole, &self.0.partial] {
            for (path, _) in entries(folder)? {
                match fs::symlink_metadata(&path) {
                    Ok(there) => used += there.len().min(there.blocks() * 512),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(at(&path)(error)),
                }
            }
        }
        Ok(used)
    }

    /// Hashes a stored file again. Right bytes with other marks, as a restored backup has them, are believed again.
    ///
    /// # Errors
    /// When it is damaged, missing or unreadable.
    pub async fn verify(&self, sha256: &Sha256Hex, progress: &Progress) -> Result<(), VerifyError> {
        let sha256 = *sha256;
        let record = self.record(&sha256);
        let path = record.as_ref().map_or_else(|| self.whole_path(&sha256), |record| self.place(record));
        let metadata = match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(VerifyError::Missing(sha256));
            }
            result => result.map_err(at(&path))?,
        };
        let (hashed, stamp) = self.hash(&path, metadata.len(), sha256, progress).await?;
        if hashed.sha256 != sha256 {
            return Err(VerifyError::Damaged { expected: sha256, found: hashed.sha256 });
        }
        let names = record.as_ref().map_or(("", ""), |record| (&*record.name, &*record.origin));
        let reference = record.as_ref().and_then(|record| record.reference.clone());
        let cut = Cut::of(metadata.len());
        let record = Record::new(sha256, cut, hashed.digests, stamp, names, reference);
        self.apart(|store| store.remember(record)).await?;
        Ok(())
    }

    /// Takes a file out of use that [`Store::verify`] found damaged. The next fetch brings a good one: of a file of the
    /// store's own it reads the pieces again and fetches those that differ. One that is only referred to stays where it
    /// is, and is not used any more.
    ///
    /// # Errors
    /// When it can't be moved or removed. A file that is not there is no error.
    pub fn discard(&self, sha256: &Sha256Hex) -> Result<(), StoreError> {
        let record = self.forget(sha256)?;
        let path = self.whole_path(sha256);
        match record {
            Some(record) if record.reference.is_some() => return Ok(()),
            Some(record) if path.exists() => {
                let data = self.data_path(sha256);
                fs::set_permissions(&path, Permissions::from_mode(0o600)).map_err(at(&path))?;
                self.write_journal(sha256, &record.cut(), record.digests.iter().copied().enumerate())?;
                return fs::rename(&path, &data).map_err(at(&path));
            }
            _ => {}
        }
        remove(&path)
    }

    /// Removes a file that nothing needs: the store's own with its bytes, of one that is only referred to the reference alone.
    /// One that comes just now stays.
    ///
    /// # Errors
    /// When it can't be removed. A file that is not there is no error.
    pub fn remove(&self, sha256: &Sha256Hex) -> Result<(), StoreError> {
        if self.partial(sha256).is_some() {
            return Ok(());
        }
        self.forget(sha256)?;
        remove(&self.whole_path(sha256))?;
        self.clear_partial(sha256)
    }

    /// Removes what an earlier fetch of a file left.
    pub(crate) fn clear_partial(&self, sha256: &Sha256Hex) -> Result<(), StoreError> {
        remove(&self.journal_path(sha256))?;
        remove(&self.data_path(sha256))
    }

    /// Whether a file of another program was hashed already, is untouched since, and is another one.
    pub(crate) fn refuted(&self, path: &Path, file: &ResolvedFile) -> bool {
        let refuted = self.0.refuted.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((stamp, found)) = refuted.get(path) else { return false };
        let now = fs::metadata(path).map(|there| FileStamp::of(&there));
        now.is_ok_and(|now| stamp.difference(&now).is_none()) && *found != file.sha256
    }

    /// Remembers that a file of another program is none that was wanted.
    pub(crate) fn note_refuted(&self, path: PathBuf, stamp: FileStamp, found: Sha256Hex) {
        let mut refuted = self.0.refuted.lock().unwrap_or_else(PoisonError::into_inner);
        if refuted.len() < MOST_REFUTED {
            refuted.insert(path, (stamp, found));
        }
    }

    /// Hashes a file on threads of its own, and takes its marks. It must be the same file before and after.
    pub(crate) async fn hash(
        &self,
        path: &Path,
        bytes: u64,
        part: Sha256Hex,
        progress: &Progress,
    ) -> Result<(Hashed, FileStamp), StoreError> {
        let (path, part) = (path.to_owned(), progress.part(part, bytes));
        // Its end ends the reading, when whoever waits for it is gone.
        let waiting = Arc::new(());
        let gone = Arc::downgrade(&waiting);
        let hashing = tokio::task::spawn_blocking(move || {
            let file = File::open(&path).map_err(at(&path))?;
            let before = FileStamp::of(&file.metadata().map_err(at(&path))?);
            let seen = |at| {
                part.set_done(at);
                gone.strong_count() > 0
            };
            let hashed = hash_file(&file, &path, &Cut::of(bytes), seen)?;
            let after = FileStamp::of(&fs::metadata(&path).map_err(at(&path))?);
            if before.difference(&after).is_some() {
                return Err(StoreError::Unsteady(path));
            }
            Ok((hashed, after))
        });
        let hashed = hashing.await.expect("hashing does not panic");
        drop(waiting);
        hashed
    }

    /// Does what waits for the disk on a thread that may.
    pub(crate) async fn apart<T: Send + 'static, E: Send + 'static>(
        &self,
        work: impl FnOnce(Self) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E> {
        let store = self.clone();
        let working = tokio::task::spawn_blocking(move || work(store));
        working.await.expect("no panic while files are moved and written down")
    }

    pub(crate) fn record(&self, sha256: &Sha256Hex) -> Option<Arc<Record>> {
        self.known().get(sha256).cloned()
    }

    fn known(&self) -> std::sync::RwLockReadGuard<'_, BTreeMap<Sha256Hex, Arc<Record>>> {
        self.0.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes down that a file is verified; from then on it is used.
    pub(crate) fn remember(&self, record: Record) -> Result<(), StoreError> {
        let path = self.record_path(&record.sha256);
        record.write(&path).map_err(at(&path))?;
        sync_folder(&self.0.records)?;
        self.suspects().remove(&record.sha256);
        self.0.known.write().unwrap_or_else(PoisonError::into_inner).insert(record.sha256, Arc::new(record));
        self.announce();
        Ok(())
    }

    /// From then on it is not used; its bytes stay where they are.
    pub(crate) fn forget(&self, sha256: &Sha256Hex) -> Result<Option<Arc<Record>>, StoreError> {
        let path = self.record_path(sha256);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at(&path)(error)),
            _ => {}
        }
        self.suspects().remove(sha256);
        Ok(self.0.known.write().unwrap_or_else(PoisonError::into_inner).remove(sha256))
    }

    /// Where the bytes of a record lie.
    pub(crate) fn place(&self, record: &Record) -> PathBuf {
        record.reference.clone().unwrap_or_else(|| self.whole_path(&record.sha256))
    }

    pub(crate) fn whole_path(&self, sha256: &Sha256Hex) -> PathBuf {
        self.0.whole.join(sha256.to_string())
    }

    pub(crate) fn data_path(&self, sha256: &Sha256Hex) -> PathBuf {
        self.0.partial.join(format!("{sha256}.data"))
    }

    pub(crate) fn journal_path(&self, sha256: &Sha256Hex) -> PathBuf {
        self.0.partial.join(format!("{sha256}.journal"))
    }

    fn record_path(&self, sha256: &Sha256Hex) -> PathBuf {
        self.0.records.join(sha256.to_string())
    }

    pub(crate) fn partial_folder(&self) -> &Path {
        &self.0.partial
    }

    /// Writes a journal that says just this, as a whole.
    pub(crate) fn write_journal(
        &self,
        sha256: &Sha256Hex,
        cut: &Cut,
        pieces: impl Iterator<Item = (usize, crate::Digest)>,
    ) -> Result<(), StoreError> {
        let path = self.journal_path(sha256);
        let mut bytes = journal::header(sha256, cut);
        let header = bytes.clone();
        for (piece, digest) in pieces {
            let piece = u32::try_from(piece).expect("a file has less than 2^32 pieces");
            bytes.extend(journal::record(&header, piece, &digest));
        }
        let beside = path.with_extension("new");
        fs::write(&beside, bytes).map_err(at(&beside))?;
        fs::rename(&beside, &path).map_err(at(&path))
    }

    /// Moves a file whose bytes were just verified to its place, and writes it down. Blocks.
    pub(crate) fn keep(
        &self,
        sha256: &Sha256Hex,
        data: &Path,
        record: impl FnOnce(FileStamp) -> Record,
    ) -> Result<PathBuf, StoreError> {
        let file = File::open(data).map_err(at(data))?;
        file.set_permissions(Permissions::from_mode(0o400)).map_err(at(data))?;
        file.sync_all().map_err(unsettled(data))?;
        let path = self.whole_path(sha256);
        fs::rename(data, &path).map_err(at(&path))?;
        // The rename itself must survive a power cut, or the file is fetched twice.
        sync_folder(&self.0.whole)?;
        // Its marks are taken last: being renamed changes them.
        let stamp = FileStamp::of(&file.metadata().map_err(at(&path))?);
        self.remember(record(stamp))?;
        Ok(path)
    }

    /// A file on its way, if one is.
    pub(crate) fn partial(&self, sha256: &Sha256Hex) -> Option<Arc<Partial>> {
        self.on_their_way().get(sha256)?.upgrade()
    }

    pub(crate) fn comes(&self, partial: &Arc<Partial>) {
        let mut partials = self.on_their_way();
        partials.retain(|_, partial| partial.strong_count() > 0);
        partials.insert(partial.sha256, Arc::downgrade(partial));
        drop(partials);
        self.announce();
    }

    fn on_their_way(&self) -> MutexGuard<'_, BTreeMap<Sha256Hex, Weak<Partial>>> {
        self.0.on_their_way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hears of every file that begins to come or has come.
    pub(crate) fn news(&self) -> watch::Receiver<u64> {
        self.0.news.subscribe()
    }

    fn announce(&self) {
        self.0.news.send_modify(|count| *count += 1);
    }

    pub(crate) fn stored(&self, record: &Record) -> StoredFile {
        let path = self.place(record);
        let state = match self.changed(record, &path) {
            Ok(()) => FileState::Verified,
            Err(how) => FileState::Changed(how.to_string()),
        };
        StoredFile {
            sha256: record.sha256,
            bytes: record.bytes,
            name: record.name.clone(),
            origin: record.origin.clone(),
            path,
            referred: record.reference.is_some(),
            last_used: modified(&self.record_path(&record.sha256)),
            pinned: None,
            state,
        }
    }

    fn changed(&self, record: &Record, path: &Path) -> Result<(), Changed> {
        let differs = |how| Err(Changed::Differs { path: path.to_owned(), how });
        match fs::metadata(path) {
            Err(_) => Err(Changed::Gone(path.to_owned())),
            Ok(now) => match record.stamp.difference(&FileStamp::of(&now)) {
                Some(how) => differs(how),
                None if self.suspects().contains(&record.sha256) => {
                    differs("a piece of it reads otherwise than it did")
                }
                None => Ok(()),
            },
        }
    }

    /// Takes a file out of use until it is hashed again, because a piece of it was read otherwise than it was verified.
    pub(crate) fn suspect(&self, sha256: &Sha256Hex) {
        self.suspects().insert(*sha256);
    }

    fn suspects(&self) -> MutexGuard<'_, BTreeSet<Sha256Hex>> {
        self.0.suspects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To be held while room is taken.
    pub(crate) fn reserving(&self) -> MutexGuard<'_, ()> {
        self.0.reserving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A host asks for a file for the first time: it wants one, so it may soon have something to give too.
    pub(crate) fn called_by(&self, host: &str) {
        // Without a fetch there is nobody who listens.
        if self.0.callers.receiver_count() > 0 && self.0.callers.send(host.into()).is_err() {
            tracing::trace!(host, "the fetch that would have heard of a call has just ended");
        }
    }

    /// Hears of the hosts that call.
    pub(crate) fn callers(&self) -> broadcast::Receiver<Arc<str>> {
        self.0.callers.subscribe()
    }

    /// Removes what can be neither used nor resumed.
    fn clear_broken(&self) -> Result<(), StoreError> {
        for (path, name) in entries(&self.0.partial)? {
            let resumable = name.rsplit_once('.').is_some_and(|(sha256, kind)| {
                sha256.parse().is_ok_and(|sha256: Sha256Hex| {
                    let both = self.data_path(&sha256).exists() && self.journal_path(&sha256).exists();
                    both && !self.whole_path(&sha256).exists() && ["data", "journal"].contains(&kind)
                })
            });
            if !resumable {
                tracing::debug!(path = %path.display(), "clears away what can't be resumed");
                fs::remove_file(&path).map_err(at(&path))?;
            }
        }
        Ok(())
    }
}

fn nameless(sha256: Sha256Hex, path: PathBuf) -> StoredFile {
    StoredFile {
        sha256,
        bytes: fs::metadata(&path).map_or(0, |there| there.len()),
        name: String::new(),
        origin: String::new(),
        last_used: modified(&path),
        path,
        referred: false,
        pinned: None,
        state: FileState::Changed("it is hashed before it is used".to_owned()),
    }
}

fn modified(path: &Path) -> SystemTime {
    fs::metadata(path).and_then(|there| there.modified()).unwrap_or(SystemTime::UNIX_EPOCH)
}

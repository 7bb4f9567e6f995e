//! The embedded home: one file on one machine, written by one process.
//!
//! Objects are held in memory as well, so that a read waits for no disk; a write is first on the disk and then in memory.

mod file;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt as _;
use serde_json::Value;
use tokio::sync::{Mutex, watch};

use self::file::{Change, File, LeaseRow, Loaded};
use crate::clock::Clock;
use crate::error::StoreError;
use crate::event::{self, Event, EventNote};
use crate::object::{Key, Object, Selector, Version};
use crate::revise::{self, Outcome, Stamp, changed, existing, versioned};
use crate::watch::{History, Watch, WatchEvent, follow, listed_first};
use crate::{ApplyOptions, ApplyOutcome, Backup, Lease, Listing, Record, Store};

/// How many changes a watch may be behind.
const HISTORY: usize = 4096;

/// A store in one file, for one machine and for tests.
pub struct EmbeddedStore {
    writer: Arc<Mutex<Writer>>,
    memory: Memory,
    clock: Arc<dyn Clock>,
}

/// What reads look at.
#[derive(Clone)]
struct Memory {
    snapshot: Arc<RwLock<Snapshot>>,
    history: Arc<RwLock<History>>,
    newest: watch::Sender<u64>,
}

impl Memory {
    fn new(loaded: Loaded) -> Self {
        let snapshot = Snapshot::from(loaded);
        Self {
            history: Arc::new(RwLock::new(History::after(snapshot.revision, HISTORY))),
            newest: watch::Sender::new(snapshot.revision),
            snapshot: Arc::new(RwLock::new(snapshot)),
        }
    }

    /// The file was opened again. A write whose outcome the disk left open may have happened after all: then watches list anew.
    fn replace(&self, loaded: Loaded) {
        let loaded = Snapshot::from(loaded);
        let revision = loaded.revision;
        let mut snapshot = self.snapshot.write().expect("no panic while the snapshot is written");
        if snapshot.revision != revision {
            *snapshot = loaded;
            self.history.write().expect("no panic while the history is written").compact(revision);
            self.newest.send_replace(revision);
        }
    }

    /// One change, for whoever lists or watches.
    fn change(&self, revision: u64, key: Key, event: WatchEvent) {
        // Both under the snapshot's lock: whoever lists sees exactly what its watch will not repeat.
        let mut snapshot = self.snapshot.write().expect("no panic while the snapshot is written");
        snapshot.revision = revision;
        match &event {
            WatchEvent::Deleted(_) => snapshot.objects.remove(&key),
            WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                snapshot.objects.insert(key, object.clone())
            }
            WatchEvent::Bookmark(_) => None,
        };
        self.history.write().expect("no panic while the history is written").push(revision, event);
        drop(snapshot);
        self.newest.send_replace(revision);
    }

    fn read<T>(&self, look: impl FnOnce(&Snapshot) -> T) -> T {
        look(&self.snapshot.read().expect("no panic while the snapshot is written"))
    }
}

/// What only the one writer touches.
struct Writer {
    path: PathBuf,
    /// None after the disk has failed: the database refuses everything from then on, and has to be opened again.
    file: Option<File>,
    closed: bool,
    /// Until when leases are held, by the clock that counts sleep. Not in the file: whoever holds the file's lock knows that
    /// every holder of before has ended with its process.
    leases: BTreeMap<String, Duration>,
}

impl Writer {
    fn file(&mut self) -> &mut File {
        self.file.as_mut().expect("work begins with an open file")
    }
}

#[derive(Default)]
struct Snapshot {
    revision: u64,
    objects: BTreeMap<Key, Object>,
}

impl From<Loaded> for Snapshot {
    fn from(loaded: Loaded) -> Self {
        let objects = loaded.objects.into_iter().map(|object| (object.key.clone(), object)).collect();
        Self { revision: loaded.revision, objects }
    }
}

impl EmbeddedStore {
    /// Opens the file, or makes it, readable by its owner only. Fails when another process has it open, and when a newer
    /// release wrote it.
    pub async fn open(path: &Path, clock: Arc<dyn Clock>) -> Result<Self, StoreError> {
        let path = path.to_owned();
        let opened = path.clone();
        let (file, loaded) = tokio::task::spawn_blocking(move || File::open(&opened))
            .await
            .map_err(|_| StoreError::Closed)??;
        let writer = Writer { path, file: Some(file), closed: false, leases: BTreeMap::new() };
        Ok(Self { writer: Arc::new(Mutex::new(writer)), memory: Memory::new(loaded), clock })
    }

    /// Forgets past changes: watches that are behind have to list again.
    pub fn compact(&self) {
        let revision = self.memory.read(|snapshot| snapshot.revision);
        self.memory.history.write().expect("no panic while the history is written").compact(revision);
    }

    /// Runs `work` on the one writer, away from the async threads. It runs to its end even if nobody waits for it any more.
    async fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Writer) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let mut writer = Arc::clone(&self.writer).lock_owned().await;
        let memory = self.memory.clone();
        let work = move || {
            if writer.closed {
                return Err(StoreError::Closed);
            }
            if writer.file.is_none() {
                let (file, loaded) = File::open(&writer.path)?;
                writer.leases.clear();
                writer.file = Some(file);
                memory.replace(loaded);
            }
            let done = work(&mut writer);
            if matches!(done, Err(StoreError::Storage { .. })) {
                writer.file = None;
            }
            done
        };
        tokio::task::spawn_blocking(work).await.map_err(|_| StoreError::Closed)?
    }

    /// One object's read-modify-write: `revise` sees the newest version.
    async fn revise<T: Send + 'static>(
        &self,
        key: Key,
        revise: impl FnOnce(Option<&Object>, &Stamp) -> Result<Outcome<T>, StoreError> + Send + 'static,
    ) -> Result<(Object, T), StoreError> {
        let stamp = Stamp { now: self.clock.now(), uid: uuid::Uuid::new_v4().to_string() };
        let memory = self.memory.clone();
        self.write(move |writer| {
            let (old, revision) =
                memory.read(|snapshot| (snapshot.objects.get(&key).cloned(), snapshot.revision + 1));
            let (json, removed, said) = match revise(old.as_ref(), &stamp)? {
                Outcome::Keep(said) => return Ok((old.expect("only what exists can be kept"), said)),
                Outcome::Write(json, said) => (json, false, said),
                Outcome::Remove(said) => {
                    (old.as_ref().expect("only what exists can be removed").json.clone(), true, said)
                }
            };
            let object = versioned(key.clone(), json, &revision.to_string());
            let change = if removed { Change::Remove(&key) } else { Change::Put(&object) };
            writer.file().commit(revision, change)?;
            let event = match (&old, removed) {
                (_, true) => WatchEvent::Deleted(object.clone()),
                (None, false) => WatchEvent::Added(object.clone()),
                (Some(_), false) => WatchEvent::Modified(object.clone()),
            };
            memory.change(revision, key, event);
            Ok((object, said))
        })
        .await
    }
}

#[async_trait]
impl Store for EmbeddedStore {
    fn home(&self) -> &'static str {
        "embedded"
    }

    async fn get(&self, key: &Key) -> Result<Option<Object>, StoreError> {
        Ok(self.memory.read(|snapshot| snapshot.objects.get(key).cloned()))
    }

    async fn list(&self, selector: &Selector) -> Result<Listing, StoreError> {
        Ok(self.memory.read(|snapshot| Listing {
            objects: snapshot
                .objects
                .values()
                .filter(|object| selector.matches(&object.key))
                .cloned()
                .collect(),
            version: Version(snapshot.revision.to_string()),
        }))
    }

    async fn watch(&self, selector: Selector, since: Option<Version>) -> Result<Watch, StoreError> {
        let (history, newest) = (Arc::clone(&self.memory.history), self.memory.newest.subscribe());
        let Some(since) = since else {
            let listing = self.list(&selector).await?;
            let revision = listing.version.0.parse().expect("this store's versions are numbers");
            let changes = follow(history, newest, selector, revision);
            return Ok(listed_first(listing.objects, listing.version, changes));
        };
        let known = self.memory.read(|snapshot| snapshot.revision);
        let revision = since.0.parse::<u64>().ok().filter(|revision| *revision <= known);
        let kept = |revision: &u64| {
            history.read().expect("no panic while the history is written").reaches(*revision)
        };
        let Some(revision) = revision.filter(kept) else {
            return Err(StoreError::Expired { since });
        };
        Ok(follow(history, newest, selector, revision).boxed())
    }

    async fn apply(
        &self,
        manifest: Value,
        options: &ApplyOptions,
    ) -> Result<(Object, ApplyOutcome), StoreError> {
        let key = revise::key_of(&manifest)?;
        if options.dry_run {
            let old = self.get(&key).await?;
            let stamp = Stamp { now: self.clock.now(), uid: uuid::Uuid::nil().to_string() };
            let (json, outcome) = revise::apply(old.as_ref(), manifest, options, &stamp)?;
            let version = old.map_or_else(|| Version(String::new()), |old| old.version);
            return Ok((Object { key, version, json }, outcome));
        }
        let options = options.clone();
        self.revise(key, move |old, stamp| {
            let (json, outcome) = revise::apply(old, manifest, &options, stamp)?;
            Ok(if outcome == ApplyOutcome::Unchanged {
                Outcome::Keep(outcome)
            } else {
                Outcome::Write(json, outcome)
            })
        })
        .await
    }

    async fn create(&self, object: Value, manager: &str) -> Result<Object, StoreError> {
        let key = revise::key_of(&object)?;
        let manager = manager.to_owned();
        let (object, ()) = self
            .revise(key, move |old, stamp| match old {
                Some(old) => Err(StoreError::AlreadyExists(old.key.clone())),
                None => Ok(Outcome::Write(revise::create(object, &manager, stamp)?, ())),
            })
            .await?;
        Ok(object)
    }

    async fn replace(&self, object: &Object, manager: &str) -> Result<Object, StoreError> {
        let (new, manager) = (object.clone(), manager.to_owned());
        let (object, ()) = self
            .revise(object.key.clone(), move |old, stamp| {
                let old = existing(old, &new.key)?;
                revise::check_version(old, &new.version)?;
                Ok(changed(old, revise::replace(old, &new.json, &manager, stamp)?))
            })
            .await?;
        Ok(object)
    }

    async fn replace_status(
        &self,
        key: &Key,
        version: &Version,
        status: Value,
    ) -> Result<Object, StoreError> {
        let version = version.clone();
        let about = key.clone();
        let (object, ()) = self
            .revise(key.clone(), move |old, stamp| {
                let old = existing(old, &about)?;
                revise::check_version(old, &version)?;
                Ok(changed(old, revise::replace_status(old, status, stamp)?))
            })
            .await?;
        Ok(object)
    }

    async fn scale(&self, key: &Key, replicas: i32, manager: &str) -> Result<Object, StoreError> {
        let (about, manager) = (key.clone(), manager.to_owned());
        let (object, ()) = self
            .revise(key.clone(), move |old, stamp| {
                let old = existing(old, &about)?;
                Ok(changed(old, revise::scale(old, replicas, &manager, stamp)?))
            })
            .await?;
        Ok(object)
    }

    async fn delete(&self, key: &Key, version: Option<&Version>) -> Result<Object, StoreError> {
        let (about, version) = (key.clone(), version.cloned());
        let (object, ()) = self
            .revise(key.clone(), move |old, _| {
                let old = existing(old, &about)?;
                if let Some(version) = version {
                    revise::check_version(old, &version)?;
                }
                Ok(Outcome::Remove(()))
            })
            .await?;
        Ok(object)
    }

    async fn acquire(
        &self,
        name: &str,
        holder: &str,
        ttl: Duration,
        floor: u64,
    ) -> Result<Lease, StoreError> {
        let (name, holder, clock) = (name.to_owned(), holder.to_owned(), Arc::clone(&self.clock));
        self.write(move |writer| {
            let now = clock.elapsed();
            let last = writer.file().lease(&name)?;
            let held = writer.leases.get(&name).is_some_and(|until| *until > now);
            let row = match last {
                Some(row) if held && row.holder != holder => {
                    return Err(StoreError::LeaseLost { name, holder: row.holder, term: row.term });
                }
                // The same holder again, and nobody in between: the same term, unless a higher one was seen elsewhere.
                Some(row) if held && row.term > floor => row,
                last => {
                    let term = last.map_or(0, |row| row.term).max(floor) + 1;
                    let row = LeaseRow { holder, term };
                    writer.file().put_lease(&name, &row)?;
                    row
                }
            };
            writer.leases.insert(name.clone(), now + ttl);
            Ok(Lease { name, holder: row.holder, term: row.term, ttl })
        })
        .await
    }

    async fn renew(&self, lease: &Lease) -> Result<(), StoreError> {
        let (lease, clock) = (lease.clone(), Arc::clone(&self.clock));
        self.write(move |writer| {
            let now = clock.elapsed();
            let row = writer.file().lease(&lease.name)?;
            let own = row.as_ref().is_some_and(|row| row.holder == lease.holder && row.term == lease.term);
            if own && writer.leases.get(&lease.name).is_some_and(|until| *until > now) {
                writer.leases.insert(lease.name, now + lease.ttl);
                return Ok(());
            }
            let (holder, term) = row.map_or_else(|| ("nobody".to_owned(), 0), |row| (row.holder, row.term));
            Err(StoreError::LeaseLost { name: lease.name, holder, term })
        })
        .await
    }

    async fn release(&self, lease: &Lease) -> Result<(), StoreError> {
        let lease = lease.clone();
        self.write(move |writer| {
            let row = writer.file().lease(&lease.name)?;
            if row.is_some_and(|row| row.holder == lease.holder && row.term == lease.term) {
                writer.leases.remove(&lease.name);
            }
            Ok(())
        })
        .await
    }

    async fn record_events(&self, notes: Vec<EventNote>) -> Result<(), StoreError> {
        let notes: Vec<EventNote> = self.memory.read(|snapshot| {
            notes.into_iter().filter(|note| snapshot.objects.contains_key(&note.about)).collect()
        });
        if notes.is_empty() {
            return Ok(());
        }
        let now = self.clock.now();
        self.write(move |writer| {
            let mut rows: BTreeMap<Key, Vec<Event>> = BTreeMap::new();
            for note in &notes {
                if !rows.contains_key(&note.about) {
                    rows.insert(note.about.clone(), writer.file().events(&note.about)?);
                }
                event::add(rows.get_mut(&note.about).expect("inserted above"), note, now);
            }
            writer.file().put_events(&rows)
        })
        .await
    }

    async fn events(&self, key: &Key) -> Result<Vec<Event>, StoreError> {
        let key = key.clone();
        self.write(move |writer| writer.file().events(&key)).await
    }

    async fn record(&self, collection: &str, key: &str) -> Result<Option<Record>, StoreError> {
        let (collection, key) = (collection.to_owned(), key.to_owned());
        self.write(move |writer| writer.file().record(&collection, &key)).await
    }

    async fn records(&self, collection: &str) -> Result<Vec<Record>, StoreError> {
        let collection = collection.to_owned();
        self.write(move |writer| writer.file().records(&collection)).await
    }

    async fn put_record(
        &self,
        collection: &str,
        key: &str,
        expected: Option<&Version>,
        value: Vec<u8>,
    ) -> Result<Version, StoreError> {
        let (collection, key, expected) = (collection.to_owned(), key.to_owned(), expected.cloned());
        self.write(move |writer| writer.file().put_record(&collection, &key, expected.as_ref(), &value)).await
    }

    async fn delete_record(&self, collection: &str, key: &str, expected: &Version) -> Result<(), StoreError> {
        let (collection, key, expected) = (collection.to_owned(), key.to_owned(), expected.clone());
        self.write(move |writer| writer.file().delete_record(&collection, &key, &expected)).await
    }
    async fn export(&self) -> Result<Backup, StoreError> {
        let made = self.clock.now();
        self.write(move |writer| writer.file().export(made)).await
    }

    async fn import(&self, backup: Backup) -> Result<(), StoreError> {
        let memory = self.memory.clone();
        self.write(move |writer| {
            if !writer.file().import(&backup)? {
                return Err(StoreError::NotEmpty);
            }
            memory.replace(writer.file().load()?);
            Ok(())
        })
        .await
    }

    async fn close(&self) {
        let mut writer = Arc::clone(&self.writer).lock_owned().await;
        let close = move || {
            writer.closed = true;
            writer.file = None;
        };
        // Dropping the file waits for the disk; a panic in there has closed it, too.
        tokio::task::spawn_blocking(close).await.unwrap_or_default();
    }
}

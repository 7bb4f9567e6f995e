//! The file itself: tables of JSON in redb, each change one durable transaction. Everything here blocks.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use redb::{
    Database, DatabaseError, ReadableDatabase as _, ReadableTable as _, TableDefinition, WriteTransaction,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::StoreError;
use crate::event::Event;
use crate::object::{Key, Kind, Object, Version};
use crate::revise::versioned;
use crate::{Backup, KeptRecord, Record};

/// Version of this layout. Raised when an older release could misread the file.
pub(super) const FORMAT: u32 = 1;

/// `format`, `revision`, `records` → number.
const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
/// `kind/namespace/name` → object, JSON.
const OBJECTS: TableDefinition<&str, &[u8]> = TableDefinition::new("objects");
/// `kind/namespace/name` → list of events, JSON.
const EVENTS: TableDefinition<&str, &[u8]> = TableDefinition::new("events");
/// name → holder and term, JSON.
const LEASES: TableDefinition<&str, &[u8]> = TableDefinition::new("leases");
/// (collection, key) → (version, document).
const RECORDS: TableDefinition<(&str, &str), (u64, &[u8])> = TableDefinition::new("records");

pub(super) struct File {
    database: Database,
    path: PathBuf,
}

/// What the file held when it was opened.
pub(super) struct Loaded {
    pub(super) revision: u64,
    pub(super) objects: Vec<Object>,
}

/// What becomes of one object.
pub(super) enum Change<'a> {
    Put(&'a Object),
    Remove(&'a Key),
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct LeaseRow {
    pub(super) holder: String,
    pub(super) term: u64,
}

fn row(key: &Key) -> String {
    format!("{}/{}/{}", key.kind, key.namespace, key.name)
}

fn key_of_row(row: &str) -> Option<Key> {
    let mut parts = row.split('/');
    let (kind, namespace, name) = (Kind::parse(parts.next()?)?, parts.next()?, parts.next()?);
    Some(Key { kind, namespace: namespace.to_owned(), name: name.to_owned() })
}

impl File {
    pub(super) fn open(path: &Path) -> Result<(Self, Loaded), StoreError> {
        let storage = |source: Box<dyn std::error::Error + Send + Sync>| StoreError::Storage {
            path: path.to_owned(),
            source,
        };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(|error| storage(error.into()))?;
        let database = redb::Builder::new().create_file(file).map_err(|error| match error {
            DatabaseError::DatabaseAlreadyOpen => StoreError::InUse { path: path.to_owned() },
            other => storage(other.into()),
        })?;
        // The file's own entry has to be durable too.
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            std::fs::File::open(folder)
                .and_then(|folder| folder.sync_all())
                .map_err(|error| storage(error.into()))?;
        }
        let file = Self { database, path: path.to_owned() };
        file.prepare()?;
        let loaded = file.load()?;
        Ok((file, loaded))
    }

    fn storage(&self, source: impl Into<redb::Error>) -> StoreError {
        StoreError::Storage { path: self.path.clone(), source: Box::new(source.into()) }
    }

    fn damaged(&self, what: impl Into<String>) -> StoreError {
        StoreError::Damaged { path: self.path.clone(), what: what.into() }
    }

    /// Checks the format, and makes the tables of a new file.
    fn prepare(&self) -> Result<(), StoreError> {
        self.transaction(|write| {
            let found = write.open_table(META)?.get("format")?.map(|format| format.value());
            Ok(match found {
                Some(found) if found > u64::from(FORMAT) => Some(found),
                _ => {
                    write.open_table(META)?.insert("format", u64::from(FORMAT))?;
                    write.open_table(OBJECTS)?;
                    write.open_table(EVENTS)?;
                    write.open_table(LEASES)?;
                    write.open_table(RECORDS)?;
                    None
                }
            })
        })?
        .map_or(Ok(()), |found| {
            let found = u32::try_from(found).unwrap_or(u32::MAX);
            Err(StoreError::NewerFormat { path: self.path.clone(), found, supported: FORMAT })
        })
    }

    pub(super) fn load(&self) -> Result<Loaded, StoreError> {
        type Rows = Vec<(String, Vec<u8>)>;
        let rows = || -> Result<(u64, Rows), redb::Error> {
            let read = self.database.begin_read()?;
            let revision = read.open_table(META)?.get("revision")?.map_or(0, |revision| revision.value());
            let mut rows = Vec::new();
            for row in read.open_table(OBJECTS)?.iter()? {
                let (key, value) = row?;
                rows.push((key.value().to_owned(), value.value().to_vec()));
            }
            Ok((revision, rows))
        };
        let (revision, rows) = rows().map_err(|error| self.storage(error))?;
        let mut objects = Vec::with_capacity(rows.len());
        for (row, bytes) in rows {
            let key =
                key_of_row(&row).ok_or_else(|| self.damaged(format!("no object can be called {row}")))?;
            let json: Value = serde_json::from_slice(&bytes)
                .map_err(|error| self.damaged(format!("{key} is not JSON: {error}")))?;
            let version = json
                .pointer("/metadata/resourceVersion")
                .and_then(Value::as_str)
                .ok_or_else(|| self.damaged(format!("{key} has no version")))?;
            objects.push(Object { version: Version(version.to_owned()), key, json });
        }
        Ok(Loaded { revision, objects })
    }

    /// One durable transaction; on disk when this returns.
    fn transaction<T>(
        &self,
        work: impl FnOnce(&WriteTransaction) -> Result<T, redb::Error>,
    ) -> Result<T, StoreError> {
        let run = || -> Result<T, redb::Error> {
            let write = self.database.begin_write()?;
            let done = work(&write)?;
            write.commit()?;
            Ok(done)
        };
        run().map_err(|error| self.storage(error))
    }

    /// Writes one object's change; events of a removed object go with it.
    pub(super) fn commit(&mut self, revision: u64, change: Change<'_>) -> Result<(), StoreError> {
        self.transaction(|write| {
            write.open_table(META)?.insert("revision", revision)?;
            match change {
                Change::Put(object) => {
                    let json = object.json.to_string();
                    write.open_table(OBJECTS)?.insert(row(&object.key).as_str(), json.as_bytes())?;
                }
                Change::Remove(key) => {
                    write.open_table(OBJECTS)?.remove(row(key).as_str())?;
                    write.open_table(EVENTS)?.remove(row(key).as_str())?;
                }
            }
            Ok(())
        })
    }

    fn bytes(&self, table: TableDefinition<&str, &[u8]>, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let read = || -> Result<Option<Vec<u8>>, redb::Error> {
            let table = self.database.begin_read()?.open_table(table)?;
            Ok(table.get(key)?.map(|value| value.value().to_vec()))
        };
        read().map_err(|error| self.storage(error))
    }

    pub(super) fn lease(&self, name: &str) -> Result<Option<LeaseRow>, StoreError> {
        self.bytes(LEASES, name)?
            .map(|bytes| {
                serde_json::from_slice(&bytes).map_err(|error| self.damaged(format!("lease {name}: {error}")))
            })
            .transpose()
    }

    pub(super) fn put_lease(&mut self, name: &str, lease: &LeaseRow) -> Result<(), StoreError> {
        let json = serde_json::to_vec(lease).expect("a name and a number are JSON");
        self.transaction(|write| {
            write.open_table(LEASES)?.insert(name, json.as_slice())?;
            Ok(())
        })
    }

    pub(super) fn events(&self, key: &Key) -> Result<Vec<Event>, StoreError> {
        let Some(bytes) = self.bytes(EVENTS, &row(key))? else { return Ok(Vec::new()) };
        serde_json::from_slice(&bytes).map_err(|error| self.damaged(format!("events of {key}: {error}")))
    }

    pub(super) fn put_events(&mut self, rows: &BTreeMap<Key, Vec<Event>>) -> Result<(), StoreError> {
        self.transaction(|write| {
            let mut table = write.open_table(EVENTS)?;
            for (key, events) in rows {
                let json = serde_json::to_vec(events).expect("events are JSON");
                table.insert(row(key).as_str(), json.as_slice())?;
            }
            Ok(())
        })
    }

    pub(super) fn record(&self, collection: &str, key: &str) -> Result<Option<Record>, StoreError> {
        let read = || -> Result<Option<Record>, redb::Error> {
            let table = self.database.begin_read()?.open_table(RECORDS)?;
            Ok(table.get((collection, key))?.map(|row| record(key, row.value())))
        };
        read().map_err(|error| self.storage(error))
    }

    pub(super) fn records(&self, collection: &str) -> Result<Vec<Record>, StoreError> {
        let read = || -> Result<Vec<Record>, redb::Error> {
            let table = self.database.begin_read()?.open_table(RECORDS)?;
            let mut records = Vec::new();
            for row in table.range((collection, "")..)? {
                let (key, value) = row?;
                let (found, key) = key.value();
                if found != collection {
                    break;
                }
                records.push(record(key, value.value()));
            }
            Ok(records)
        };
        read().map_err(|error| self.storage(error))
    }

    /// Replaces the record if it is at `expected`; the outer error is the disk's.
    fn exchange(
        &mut self,
        collection: &str,
        key: &str,
        expected: Option<&Version>,
        value: Option<&[u8]>,
    ) -> Result<Version, StoreError> {
        self.transaction(|write| {
            let mut table = write.open_table(RECORDS)?;
            let current = table.get((collection, key))?.map(|row| row.value().0.to_string());
            if current.as_deref() != expected.map(|version| version.0.as_str()) {
                return Ok(None);
            }
            let mut meta = write.open_table(META)?;
            let version = meta.get("records")?.map_or(0, |count| count.value()) + 1;
            meta.insert("records", version)?;
            match value {
                Some(value) => table.insert((collection, key), (version, value))?.map(|_| ()),
                None => table.remove((collection, key))?.map(|_| ()),
            };
            Ok(Some(Version(version.to_string())))
        })?
        .ok_or_else(|| StoreError::RecordConflict { collection: collection.to_owned(), key: key.to_owned() })
    }

    pub(super) fn put_record(
        &mut self,
        collection: &str,
        key: &str,
        expected: Option<&Version>,
        value: &[u8],
    ) -> Result<Version, StoreError> {
        self.exchange(collection, key, expected, Some(value))
    }

    pub(super) fn delete_record(
        &mut self,
        collection: &str,
        key: &str,
        expected: &Version,
    ) -> Result<(), StoreError> {
        self.exchange(collection, key, Some(expected), None).map(|_| ())
    }
}

impl File {
    /// All tables of one transaction.
    pub(super) fn export(&self, made: Timestamp) -> Result<Backup, StoreError> {
        type Rows = Vec<(String, Vec<u8>)>;
        let rows = || -> Result<(Rows, Rows, Vec<KeptRecord>), redb::Error> {
            let read = self.database.begin_read()?;
            let all = |table| -> Result<Rows, redb::Error> {
                let table: redb::ReadOnlyTable<&str, &[u8]> = read.open_table(table)?;
                let rows = table.iter()?.map(|row| {
                    let (key, value) = row?;
                    Ok((key.value().to_owned(), value.value().to_vec()))
                });
                rows.collect()
            };
            let records = read.open_table(RECORDS)?;
            let records = records.iter()?.map(|row| {
                let (key, value) = row?;
                let (collection, key) = key.value();
                let value = value.value().1.to_vec();
                Ok(KeptRecord { collection: collection.to_owned(), key: key.to_owned(), value })
            });
            Ok((all(OBJECTS)?, all(LEASES)?, records.collect::<Result<_, redb::Error>>()?))
        };
        let (objects, leases, records) = rows().map_err(|error| self.storage(error))?;
        let objects = objects.iter().map(|(row, bytes)| {
            serde_json::from_slice(bytes).map_err(|error| self.damaged(format!("{row} is not JSON: {error}")))
        });
        let terms = leases.iter().map(|(name, bytes)| {
            let lease: LeaseRow = serde_json::from_slice(bytes)
                .map_err(|error| self.damaged(format!("lease {name}: {error}")))?;
            Ok((name.clone(), lease.term))
        });
        Ok(Backup {
            made,
            home: "embedded".to_owned(),
            objects: objects.collect::<Result<_, StoreError>>()?,
            records,
            terms: terms.collect::<Result<_, StoreError>>()?,
        })
    }

    /// All of it in one transaction; false when there is something already.
    pub(super) fn import(&mut self, backup: &Backup) -> Result<bool, StoreError> {
        self.transaction(|write| {
            let mut objects = write.open_table(OBJECTS)?;
            let mut leases = write.open_table(LEASES)?;
            let mut records = write.open_table(RECORDS)?;
            if objects.first()?.is_some() || leases.first()?.is_some() || records.first()?.is_some() {
                return Ok(false);
            }
            let mut revision = 0;
            for json in &backup.objects {
                let Some(key) = Key::of(json) else { continue };
                revision += 1;
                let object = versioned(key, json.clone(), &revision.to_string());
                objects.insert(row(&object.key).as_str(), object.json.to_string().as_bytes())?;
            }
            for (name, &term) in &backup.terms {
                let lease = LeaseRow { holder: "nobody".to_owned(), term };
                let json = serde_json::to_vec(&lease).expect("a name and a number are JSON");
                leases.insert(name.as_str(), json.as_slice())?;
            }
            let mut count = 0;
            for record in &backup.records {
                count += 1;
                records.insert(
                    (record.collection.as_str(), record.key.as_str()),
                    (count, record.value.as_slice()),
                )?;
            }
            let mut meta = write.open_table(META)?;
            meta.insert("revision", revision)?;
            meta.insert("records", count)?;
            Ok(true)
        })
    }
}

fn record(key: &str, (version, value): (u64, &[u8])) -> Record {
    Record { key: key.to_owned(), version: Version(version.to_string()), value: value.to_vec() }
}

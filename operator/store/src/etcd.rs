//! The home in etcd, for clusters without Kubernetes: three voters, one of which may be any small machine.
//!
//! The rules are the embedded home's own. Every write is a transaction that compares what it has read; a leader's writes also
//! compare the term, so that one who was away writes nothing.

mod client;
mod keys;
mod lease;
mod refused;
mod watch;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use etcd_client::{Compare, CompareOp, GetOptions, Txn, TxnOp};
use serde_json::Value;

use self::client::Client;
use self::lease::Leases;
use crate::clock::Clock;
use crate::error::StoreError;
use crate::event::{self, Event, EventNote};
use crate::object::{Key, Object, Selector, Version};
use crate::revise::{self, Outcome, Stamp, changed, existing, versioned};
use crate::watch::{Watch, listed_first};
use crate::{ApplyOptions, ApplyOutcome, Backup, KeptRecord, Lease, Listing, Record, Store};

/// Who writes as the leader.
const MANAGER: &str = "tandem-operator";
/// Other writers of one object that may come in between.
const TRIES: usize = 16;
/// Rows of a backup in one transaction: an object may have 1 MiB, and etcd takes 1.5 MiB at once.
const ROWS_AT_ONCE: usize = 1;

/// How an etcd cluster is reached.
#[derive(Clone, Default)]
pub struct EtcdOptions {
    /// URLs of its members: all of them, so that the loss of one is no loss.
    pub endpoints: Vec<String>,
    /// Under which key everything lies, such as `/tandem`.
    pub prefix: String,
    /// For https.
    pub tls: Option<EtcdTls>,
    /// Name and password, where etcd asks for them.
    pub user: Option<(String, String)>,
}

/// Certificates for etcd, as PEM.
#[derive(Clone, Default)]
pub struct EtcdTls {
    /// Whom to trust.
    pub ca: String,
    /// What to show: certificate and key.
    pub own: Option<(String, String)>,
}

impl std::fmt::Debug for EtcdOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (endpoints, prefix) = (&self.endpoints, &self.prefix);
        f.debug_struct("EtcdOptions")
            .field("endpoints", endpoints)
            .field("prefix", prefix)
            .finish_non_exhaustive()
    }
}

/// A store in an etcd cluster.
pub struct EtcdStore {
    client: Client,
    prefix: String,
    leases: Leases,
    clock: Arc<dyn Clock>,
}

/// What etcd has of an object.
struct Read {
    object: Option<Object>,
    /// Revision of its last write; 0 when there is none.
    revision: i64,
}

impl EtcdStore {
    /// Connects, and sees that the cluster answers.
    ///
    /// # Errors
    /// When no member answers, or the cluster has no leader.
    pub async fn connect(options: EtcdOptions, clock: Arc<dyn Clock>) -> Result<Self, StoreError> {
        let client = Client::connect(&options).await?;
        let prefix = format!("/{}", options.prefix.trim_matches('/'));
        client.get(keys::objects(&prefix), Some(GetOptions::new().with_prefix().with_count_only())).await?;
        let leases = Leases::new(&prefix, Arc::clone(&clock));
        Ok(Self { client, prefix, leases, clock })
    }

    async fn read(&self, key: &Key) -> Result<Read, StoreError> {
        let mut answer = self.client.get(keys::object(&self.prefix, key), None).await?;
        let Some(kv) = answer.take_kvs().pop() else { return Ok(Read { object: None, revision: 0 }) };
        let object = keys::parse(key.clone(), kv.value(), kv.mod_revision())?;
        Ok(Read { object: Some(object), revision: kv.mod_revision() })
    }

    /// One object's read-modify-write: `revise` sees the newest version, and sees it again when somebody was faster.
    async fn revise<T>(
        &self,
        key: &Key,
        manager: &str,
        revise: impl Fn(Option<&Object>, &Stamp) -> Result<Outcome<T>, StoreError>,
    ) -> Result<(Object, T), StoreError> {
        let name = keys::object(&self.prefix, key);
        for _ in 0..TRIES {
            let Read { object: old, revision } = self.read(key).await?;
            let stamp = Stamp { now: self.clock.now(), uid: uuid::Uuid::new_v4().to_string() };
            let (json, operations, said) = match revise(old.as_ref(), &stamp)? {
                Outcome::Keep(said) => return Ok((old.expect("only what exists can be kept"), said)),
                Outcome::Write(json, said) => {
                    let put = TxnOp::put(name.clone(), json.to_string(), None);
                    (json, vec![put], said)
                }
                Outcome::Remove(said) => {
                    let object = old.expect("only what exists can be removed");
                    let events = TxnOp::delete(keys::events(&self.prefix, key), None);
                    (object.json, vec![TxnOp::delete(name.clone(), None), events], said)
                }
            };
            let mut compares = vec![Compare::mod_revision(name.clone(), CompareOp::Equal, revision)];
            compares.extend(self.leases.fence().filter(|_| manager == MANAGER));
            let answer = self.client.txn(Txn::new().when(compares).and_then(operations)).await?;
            if answer.succeeded() {
                let revision = answer.header().map_or(0, etcd_client::ResponseHeader::revision);
                return Ok((versioned(key.clone(), json, &revision.to_string()), said));
            }
            if manager == MANAGER {
                self.leases.check(&self.client).await?;
            }
        }
        let current =
            self.read(key).await?.object.map_or_else(|| Version("0".to_owned()), |object| object.version);
        Err(StoreError::Conflict { key: key.clone(), current })
    }
}

#[async_trait]
impl Store for EtcdStore {
    fn home(&self) -> &'static str {
        "etcd"
    }

    async fn get(&self, key: &Key) -> Result<Option<Object>, StoreError> {
        Ok(self.read(key).await?.object)
    }

    async fn list(&self, selector: &Selector) -> Result<Listing, StoreError> {
        let prefix = keys::of_kind(&self.prefix, selector);
        let mut answer = self.client.get(prefix, Some(GetOptions::new().with_prefix())).await?;
        let revision = answer.header().map_or(0, etcd_client::ResponseHeader::revision);
        let mut objects = Vec::new();
        for kv in answer.take_kvs() {
            let Some(key) = keys::key_of(&self.prefix, kv.key()) else { continue };
            if selector.matches(&key) {
                objects.push(keys::parse(key, kv.value(), kv.mod_revision())?);
            }
        }
        objects.sort_by(|one, other| one.key.cmp(&other.key));
        Ok(Listing { objects, version: Version(revision.to_string()) })
    }

    async fn watch(&self, selector: Selector, since: Option<Version>) -> Result<Watch, StoreError> {
        if let Some(since) = since {
            // One from the future is of another history, as after a restored backup.
            let answer = self
                .client
                .get(keys::objects(&self.prefix), Some(GetOptions::new().with_count_only()))
                .await?;
            let newest = answer.header().map_or(0, etcd_client::ResponseHeader::revision);
            let Some(from) = since.0.parse::<i64>().ok().filter(|since| *since <= newest) else {
                return Err(StoreError::Expired { since });
            };
            return Ok(watch::follow(self.client.clone(), self.prefix.clone(), selector, from));
        }
        let listing = self.list(&selector).await?;
        let from = listing.version.0.parse().expect("this store's versions are numbers");
        let changes = watch::follow(self.client.clone(), self.prefix.clone(), selector, from);
        Ok(listed_first(listing.objects, listing.version, changes))
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
        self.revise(&key, &options.manager, |old, stamp| {
            let (json, outcome) = revise::apply(old, manifest.clone(), options, stamp)?;
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
        let create = |old: Option<&Object>, stamp: &Stamp| match old {
            Some(old) => Err(StoreError::AlreadyExists(old.key.clone())),
            None => Ok(Outcome::Write(revise::create(object.clone(), manager, stamp)?, ())),
        };
        Ok(self.revise(&key, manager, create).await?.0)
    }

    async fn replace(&self, object: &Object, manager: &str) -> Result<Object, StoreError> {
        let replace = |old: Option<&Object>, stamp: &Stamp| {
            let old = existing(old, &object.key)?;
            revise::check_version(old, &object.version)?;
            Ok(changed(old, revise::replace(old, &object.json, manager, stamp)?))
        };
        Ok(self.revise(&object.key, manager, replace).await?.0)
    }

    async fn replace_status(
        &self,
        key: &Key,
        version: &Version,
        status: Value,
    ) -> Result<Object, StoreError> {
        let replace = |old: Option<&Object>, stamp: &Stamp| {
            let old = existing(old, key)?;
            revise::check_version(old, version)?;
            Ok(changed(old, revise::replace_status(old, status.clone(), stamp)?))
        };
        Ok(self.revise(key, MANAGER, replace).await?.0)
    }

    async fn scale(&self, key: &Key, replicas: i32, manager: &str) -> Result<Object, StoreError> {
        let scale = |old: Option<&Object>, stamp: &Stamp| {
            let old = existing(old, key)?;
            Ok(changed(old, revise::scale(old, replicas, manager, stamp)?))
        };
        Ok(self.revise(key, manager, scale).await?.0)
    }

    async fn delete(&self, key: &Key, version: Option<&Version>) -> Result<Object, StoreError> {
        let delete = |old: Option<&Object>, _: &Stamp| {
            let old = existing(old, key)?;
            if let Some(version) = version {
                revise::check_version(old, version)?;
            }
            Ok(Outcome::Remove(()))
        };
        Ok(self.revise(key, "", delete).await?.0)
    }

    async fn acquire(
        &self,
        name: &str,
        holder: &str,
        ttl: Duration,
        floor: u64,
    ) -> Result<Lease, StoreError> {
        self.leases.acquire(&self.client, name, holder, ttl, floor).await
    }

    async fn renew(&self, lease: &Lease) -> Result<(), StoreError> {
        self.leases.renew(&self.client, lease).await
    }

    async fn release(&self, lease: &Lease) -> Result<(), StoreError> {
        self.leases.release(&self.client, lease).await
    }

    async fn record_events(&self, notes: Vec<EventNote>) -> Result<(), StoreError> {
        let mut by_object: std::collections::BTreeMap<Key, Vec<EventNote>> =
            std::collections::BTreeMap::new();
        for note in notes {
            by_object.entry(note.about.clone()).or_default().push(note);
        }
        for (key, notes) in by_object {
            let (object, name) = (keys::object(&self.prefix, &key), keys::events(&self.prefix, &key));
            for _ in 0..TRIES {
                let mut answer = self.client.get(name.clone(), None).await?;
                let known = answer.take_kvs().pop();
                let revision = known.as_ref().map_or(0, etcd_client::KeyValue::mod_revision);
                let mut events: Vec<Event> =
                    known.and_then(|kv| serde_json::from_slice(kv.value()).ok()).unwrap_or_default();
                notes.iter().for_each(|note| event::add(&mut events, note, self.clock.now()));
                let json = serde_json::to_vec(&events).expect("events are JSON");
                let compares = [
                    // Nothing is noted of what is gone.
                    Compare::create_revision(object.clone(), CompareOp::Greater, 0),
                    Compare::mod_revision(name.clone(), CompareOp::Equal, revision),
                ];
                let txn = Txn::new().when(compares).and_then([TxnOp::put(name.clone(), json, None)]);
                if self.client.txn(txn).await?.succeeded() || self.get(&key).await?.is_none() {
                    break;
                }
            }
        }
        Ok(())
    }

    async fn events(&self, key: &Key) -> Result<Vec<Event>, StoreError> {
        let mut answer = self.client.get(keys::events(&self.prefix, key), None).await?;
        let known = answer.take_kvs().pop();
        Ok(known.and_then(|kv| serde_json::from_slice(kv.value()).ok()).unwrap_or_default())
    }

    async fn record(&self, collection: &str, key: &str) -> Result<Option<Record>, StoreError> {
        let mut answer = self.client.get(keys::record(&self.prefix, collection, key), None).await?;
        Ok(answer.take_kvs().pop().map(|kv| Record {
            key: key.to_owned(),
            version: Version(kv.mod_revision().to_string()),
            value: kv.value().to_vec(),
        }))
    }

    async fn records(&self, collection: &str) -> Result<Vec<Record>, StoreError> {
        let prefix = keys::record(&self.prefix, collection, "");
        let mut answer = self.client.get(prefix.clone(), Some(GetOptions::new().with_prefix())).await?;
        let record = |kv: etcd_client::KeyValue| {
            let key = kv.key_str().ok()?.strip_prefix(&prefix)?.to_owned();
            Some(Record { key, version: Version(kv.mod_revision().to_string()), value: kv.value().to_vec() })
        };
        Ok(answer.take_kvs().into_iter().filter_map(record).collect())
    }

    async fn put_record(
        &self,
        collection: &str,
        key: &str,
        expected: Option<&Version>,
        value: Vec<u8>,
    ) -> Result<Version, StoreError> {
        let name = keys::record(&self.prefix, collection, key);
        let put = TxnOp::put(name.clone(), value, None);
        let revision = self.exchange(name, expected, put).await?;
        let raced = || StoreError::RecordConflict { collection: collection.to_owned(), key: key.to_owned() };
        revision.map(|revision| Version(revision.to_string())).ok_or_else(raced)
    }

    async fn delete_record(&self, collection: &str, key: &str, expected: &Version) -> Result<(), StoreError> {
        let name = keys::record(&self.prefix, collection, key);
        let delete = TxnOp::delete(name.clone(), None);
        let raced = || StoreError::RecordConflict { collection: collection.to_owned(), key: key.to_owned() };
        self.exchange(name, Some(expected), delete).await?.map(drop).ok_or_else(raced)
    }

    async fn export(&self) -> Result<Backup, StoreError> {
        // One range is one moment.
        let all = GetOptions::new().with_prefix();
        let mut answer = self.client.get(format!("{}/", self.prefix), Some(all)).await?;
        let mut backup = Backup {
            made: self.clock.now(),
            home: self.home().to_owned(),
            objects: Vec::new(),
            records: Vec::new(),
            terms: BTreeMap::new(),
        };
        for kv in answer.take_kvs() {
            if let Some(key) = keys::key_of(&self.prefix, kv.key()) {
                backup.objects.push(keys::parse(key, kv.value(), kv.mod_revision())?.json);
            } else if let Some((collection, key)) = keys::record_of(&self.prefix, kv.key()) {
                let (collection, key) = (collection.to_owned(), key.to_owned());
                backup.records.push(KeptRecord { collection, key, value: kv.value().to_vec() });
            } else if let Some(name) = keys::term_of(&self.prefix, kv.key()) {
                let term = kv.value_str().ok().and_then(|term| term.parse().ok());
                backup.terms.insert(name.to_owned(), term.unwrap_or_default());
            }
        }
        Ok(backup)
    }

    async fn import(&self, backup: Backup) -> Result<(), StoreError> {
        let all = GetOptions::new().with_prefix().with_count_only();
        if self.client.get(format!("{}/", self.prefix), Some(all)).await?.count() > 0 {
            return Err(StoreError::NotEmpty);
        }
        let mut rows = Vec::new();
        for (name, term) in &backup.terms {
            rows.push((keys::lease(&self.prefix, name), lease::free(*term)));
            rows.push((keys::term(&self.prefix, name), term.to_string().into_bytes()));
        }
        for json in &backup.objects {
            let Some(key) = Key::of(json) else { continue };
            rows.push((keys::object(&self.prefix, &key), json.to_string().into_bytes()));
        }
        for record in backup.records {
            rows.push((keys::record(&self.prefix, &record.collection, &record.key), record.value));
        }
        // Each only where there is nothing: of two that restore at once, one is told.
        for some in rows.chunks(ROWS_AT_ONCE) {
            let absent: Vec<_> = some
                .iter()
                .map(|(key, _)| Compare::create_revision(key.clone(), CompareOp::Equal, 0))
                .collect();
            let puts: Vec<_> =
                some.iter().map(|(key, value)| TxnOp::put(key.clone(), value.clone(), None)).collect();
            if !self.client.txn(Txn::new().when(absent).and_then(puts)).await?.succeeded() {
                return Err(StoreError::NotEmpty);
            }
        }
        Ok(())
    }

    async fn close(&self) {
        self.client.close();
    }
}

impl EtcdStore {
    /// Does this if the key still has the version that was read (none: if there is no such key). The revision, if it did.
    async fn exchange(
        &self,
        name: String,
        expected: Option<&Version>,
        operation: TxnOp,
    ) -> Result<Option<i64>, StoreError> {
        let revision = expected.map_or(Some(0), |version| version.0.parse().ok());
        let Some(revision) = revision else { return Ok(None) };
        let compare = Compare::mod_revision(name, CompareOp::Equal, revision);
        let answer = self.client.txn(Txn::new().when([compare]).and_then([operation])).await?;
        let revision = answer.header().map_or(0, etcd_client::ResponseHeader::revision);
        Ok(answer.succeeded().then_some(revision))
    }
}

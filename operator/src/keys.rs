//! API keys: who may ask the gateways for what, and what each has used.
//!
//! A key lies in the store's private records as a hash, on Kubernetes in a Secret of the operator's own namespace. Gateways get
//! all of them with their routes, so that they let clients in without an operator. Use is one record for all keys: it is
//! written when a gateway reports some, and not otherwise.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use tandem_control_api::{ApiKey, UsageReport};
use tandem_pki::Name;
use tandem_store::{Record, Store, StoreError};
use thiserror::Error;

const KEYS: &str = "api-keys";
const USAGE: &str = "api-key-usage";
const TOTALS: &str = "totals";

/// Keys of all namespaces.
const MOST: usize = 1000;
/// Models that one key may name.
const MOST_MODELS: usize = 64;
const LONGEST_MODEL: usize = 253;
/// Gateways whose last report is remembered; of more, those heard last.
const MOST_RUNS: usize = 256;
/// Longest name of a gateway's start.
const LONGEST_RUN: usize = 64;
/// A start that was not heard for this long has ended, and sends nothing again.
const RUN_FORGOTTEN_AFTER: SignedDuration = SignedDuration::from_hours(24);
/// Writers of one record that may come in between.
const TRIES: usize = 16;

/// Why a key is not made, deleted or counted.
#[derive(Debug, Error)]
pub(crate) enum KeyRefused {
    #[error("`{0}` can't be a namespace: use a DNS label, a-z, 0-9 and '-'")]
    Namespace(String),
    #[error("`{0}` can't be a key's name: use a DNS label, a-z, 0-9 and '-', at most 63")]
    Name(String),
    #[error("`{0}` can't be a model's name here: give it as in spec.model.name, without the namespace")]
    Model(String),
    #[error("a key names at most {MOST_MODELS} models: without any it may use all of its namespace")]
    TooManyModels,
    #[error("the key would have expired already")]
    Expired,
    #[error(
        "key {namespace}/{name} is there already: `tandem keys delete {name} -n {namespace}` takes it back"
    )]
    Exists { namespace: String, name: String },
    #[error("there are {MOST} keys: delete some before making more")]
    TooMany,
    #[error("there is no key {namespace}/{name}: `tandem keys list` shows those that there are")]
    Missing { namespace: String, name: String },
    #[error("the report of use can't be understood: upgrade the gateway")]
    Report,
    #[error("the record of use changes too fast: report again")]
    Busy,
    #[error("the store refused")]
    Store(#[from] StoreError),
}

/// As the store keeps it.
#[derive(Serialize, Deserialize)]
struct Kept {
    sha256: String,
    #[serde(default)]
    models: Vec<String>,
    #[serde(default)]
    requests_per_minute: u32,
    #[serde(default)]
    tokens_per_minute: u64,
    created: Timestamp,
    #[serde(default)]
    expires: Option<Timestamp>,
}

/// What all keys have used.
#[derive(Default, Serialize, Deserialize)]
struct Totals {
    /// By `namespace/name`.
    keys: BTreeMap<String, Used>,
    /// The last report of each start of a gateway: one that comes twice counts once.
    runs: BTreeMap<String, Run>,
}

#[derive(Serialize, Deserialize)]
struct Run {
    number: u64,
    at: Timestamp,
}

/// What one key has used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Used {
    pub(crate) requests: u64,
    pub(crate) prompt_tokens: u64,
    pub(crate) completion_tokens: u64,
    pub(crate) last: Timestamp,
}

/// What may be told of a key.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Summary {
    /// Without its hash.
    pub(crate) key: ApiKey,
    pub(crate) created: Timestamp,
    pub(crate) used: Option<Used>,
}

/// Makes a key of what `asked` says and remembers its hash. Returns it with its text, which nobody can read again.
pub(crate) async fn create(
    store: &dyn Store,
    asked: ApiKey,
    now: Timestamp,
) -> Result<(ApiKey, tandem_pki::ApiKey), KeyRefused> {
    check(&asked, now)?;
    let key = record_key(&asked.namespace, &asked.name);
    if store.records(KEYS).await?.len() >= MOST {
        return Err(KeyRefused::TooMany);
    }
    let text = tandem_pki::ApiKey::generate();
    let kept = Kept {
        sha256: hex::encode(text.digest()),
        models: asked.models,
        requests_per_minute: asked.requests_per_minute,
        tokens_per_minute: asked.tokens_per_minute,
        created: now,
        expires: Some(asked.expires_at).filter(|at| *at > 0).and_then(|at| Timestamp::from_second(at).ok()),
    };
    match store.put_record(KEYS, &key, None, write(&kept)).await {
        Ok(_) => Ok((told(&asked.namespace, &asked.name, &kept), text)),
        Err(error) if error.is_conflict() => {
            Err(KeyRefused::Exists { namespace: asked.namespace, name: asked.name })
        }
        Err(error) => Err(error.into()),
    }
}

/// Every key of a namespace, or of all where it is empty, with what it has used.
pub(crate) async fn list(store: &dyn Store, namespace: &str) -> Result<Vec<Summary>, StoreError> {
    let totals = totals(store.record(USAGE, TOTALS).await?.as_ref());
    let records = store.records(KEYS).await?;
    let summaries = records.iter().filter_map(|record| {
        let (of, name) = record.key.split_once('/')?;
        let kept = kept(record)?;
        (namespace.is_empty() || of == namespace).then(|| Summary {
            key: told(of, name, &kept),
            created: kept.created,
            used: totals.keys.get(&record.key).copied(),
        })
    });
    Ok(summaries.collect())
}

/// Deletes a key, and what was counted for it. Gateways refuse it as soon as they hear.
pub(crate) async fn delete(store: &dyn Store, namespace: &str, name: &str) -> Result<(), KeyRefused> {
    let key = record_key(namespace, name);
    let missing = || KeyRefused::Missing { namespace: namespace.to_owned(), name: name.to_owned() };
    let record = store.record(KEYS, &key).await?.ok_or_else(missing)?;
    match store.delete_record(KEYS, &key, &record.version).await {
        Ok(()) => {}
        // A key never changes: somebody else has deleted it.
        Err(error) if error.is_conflict() => return Err(missing()),
        Err(error) => return Err(error.into()),
    }
    change_totals(store, |totals| totals.keys.remove(&key).is_some()).await
}

/// What gateways are told: every key that has not expired, with its hash.
pub(crate) async fn to_let_in(store: &dyn Store, now: Timestamp) -> Result<Vec<ApiKey>, StoreError> {
    let records = store.records(KEYS).await?;
    let good = records.iter().filter_map(|record| {
        let (namespace, name) = record.key.split_once('/')?;
        let kept = kept(record).filter(|kept| kept.expires.is_none_or(|end| end > now))?;
        Some(ApiKey { sha256: kept.sha256.clone(), ..told(namespace, name, &kept) })
    });
    Ok(good.collect())
}

/// Adds what a gateway reports, unless it was added already. What is said of keys that are gone is dropped.
pub(crate) async fn count(store: &dyn Store, report: &UsageReport, now: Timestamp) -> Result<(), KeyRefused> {
    let run = &report.run;
    if run.is_empty() || run.len() > LONGEST_RUN || report.number == 0 || report.used.len() > MOST {
        return Err(KeyRefused::Report);
    }
    let known: Vec<String> = store.records(KEYS).await?.into_iter().map(|record| record.key).collect();
    change_totals(store, |totals| {
        if totals.runs.get(run).is_some_and(|last| last.number >= report.number) {
            return false;
        }
        totals.runs.retain(|_, run| now.duration_since(run.at) < RUN_FORGOTTEN_AFTER);
        totals.runs.insert(run.clone(), Run { number: report.number, at: now });
        while totals.runs.len() > MOST_RUNS
            && let Some(oldest) = totals.runs.iter().min_by_key(|(_, run)| run.at).map(|(run, _)| run.clone())
        {
            totals.runs.remove(&oldest);
        }
        totals.keys.retain(|key, _| known.contains(key));
        for used in &report.used {
            let key = record_key(&used.namespace, &used.name);
            if !known.contains(&key) {
                continue;
            }
            let total = totals.keys.entry(key).or_default();
            total.requests = total.requests.saturating_add(used.requests);
            total.prompt_tokens = total.prompt_tokens.saturating_add(used.prompt_tokens);
            total.completion_tokens = total.completion_tokens.saturating_add(used.completion_tokens);
            total.last = now;
        }
        true
    })
    .await
}

/// Writes the record of use as `change` leaves it, when that says that there is something to write.
async fn change_totals(
    store: &dyn Store,
    mut change: impl FnMut(&mut Totals) -> bool,
) -> Result<(), KeyRefused> {
    for _ in 0..TRIES {
        let record = store.record(USAGE, TOTALS).await?;
        let mut totals = totals(record.as_ref());
        if !change(&mut totals) {
            return Ok(());
        }
        let before = record.as_ref().map(|record| &record.version);
        match store.put_record(USAGE, TOTALS, before, write(&totals)).await {
            Ok(_) => return Ok(()),
            Err(error) if error.is_conflict() => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(KeyRefused::Busy)
}

fn check(asked: &ApiKey, now: Timestamp) -> Result<(), KeyRefused> {
    let shown = |text: &str| text.chars().take(LONGEST_MODEL).collect::<String>();
    if asked.namespace.parse::<Name>().is_err() {
        return Err(KeyRefused::Namespace(shown(&asked.namespace)));
    }
    if asked.name.parse::<Name>().is_err() {
        return Err(KeyRefused::Name(shown(&asked.name)));
    }
    if asked.models.len() > MOST_MODELS {
        return Err(KeyRefused::TooManyModels);
    }
    for model in &asked.models {
        if model.is_empty() || model.len() > LONGEST_MODEL || model.contains('/') {
            return Err(KeyRefused::Model(shown(model)));
        }
    }
    if asked.expires_at != 0 && asked.expires_at <= now.as_second() {
        return Err(KeyRefused::Expired);
    }
    Ok(())
}

fn told(namespace: &str, name: &str, kept: &Kept) -> ApiKey {
    ApiKey {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        sha256: String::new(),
        models: kept.models.clone(),
        requests_per_minute: kept.requests_per_minute,
        tokens_per_minute: kept.tokens_per_minute,
        expires_at: kept.expires.map_or(0, |end| end.as_second()),
    }
}

fn record_key(namespace: &str, name: &str) -> String {
    format!("{namespace}/{name}")
}

fn kept(record: &Record) -> Option<Kept> {
    let kept = serde_json::from_slice(&record.value);
    kept.inspect_err(|error| tracing::error!(key = record.key, %error, "this release can't read the API key"))
        .ok()
}

fn totals(record: Option<&Record>) -> Totals {
    let read = |record: &Record| {
        serde_json::from_slice(&record.value).unwrap_or_else(|error| {
            tracing::error!(%error, "this release can't read what keys have used: it is counted anew");
            Totals::default()
        })
    };
    record.map(read).unwrap_or_default()
}

fn write<T: Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("texts and numbers are JSON")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tandem_control_api::KeyUsage;
    use tandem_store::{EmbeddedStore, SystemClock};

    use super::*;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    async fn store() -> (tempfile::TempDir, EmbeddedStore) {
        let dir = tempfile::tempdir().unwrap();
        let store = EmbeddedStore::open(&dir.path().join("store.redb"), Arc::new(SystemClock)).await.unwrap();
        (dir, store)
    }

    fn asked(name: &str) -> ApiKey {
        ApiKey { namespace: "llm".to_owned(), name: name.to_owned(), ..ApiKey::default() }
    }

    fn report(run: &str, number: u64, name: &str) -> UsageReport {
        let used = KeyUsage {
            namespace: "llm".to_owned(),
            name: name.to_owned(),
            requests: 1,
            prompt_tokens: 10,
            completion_tokens: 5,
        };
        UsageReport { run: run.to_owned(), number, used: vec![used] }
    }

    #[tokio::test]
    async fn a_key_is_told_once_kept_as_a_hash_and_gone_when_deleted_or_expired() {
        let (_dir, store) = store().await;
        let (_, text) = create(&store, asked("ci"), NOW).await.unwrap();
        let again = create(&store, asked("ci"), NOW).await.unwrap_err();
        assert!(matches!(again, KeyRefused::Exists { .. }), "{again}");
        let record = store.record(KEYS, "llm/ci").await.unwrap().unwrap();
        assert!(!String::from_utf8(record.value).unwrap().contains(&text.to_string()));
        let told = to_let_in(&store, NOW).await.unwrap();
        assert_eq!(told[0].sha256, hex::encode(text.digest()));
        create(&store, ApiKey { expires_at: 60, ..asked("short") }, NOW).await.unwrap();
        let names = |keys: Vec<ApiKey>| keys.into_iter().map(|key| key.name).collect::<Vec<_>>();
        assert_eq!(
            names(to_let_in(&store, Timestamp::from_second(59).unwrap()).await.unwrap()),
            ["ci", "short"]
        );
        assert_eq!(names(to_let_in(&store, Timestamp::from_second(60).unwrap()).await.unwrap()), ["ci"]);
        delete(&store, "llm", "ci").await.unwrap();
        assert!(matches!(delete(&store, "llm", "ci").await, Err(KeyRefused::Missing { .. })));
        assert_eq!(names(to_let_in(&store, NOW).await.unwrap()), ["short"]);
    }

    #[tokio::test]
    async fn use_counts_once_per_report_and_not_for_keys_that_are_gone() {
        let (_dir, store) = store().await;
        create(&store, asked("ci"), NOW).await.unwrap();
        for report in [report("a", 1, "ci"), report("a", 1, "ci"), report("b", 1, "ci"), report("a", 2, "ci")]
        {
            count(&store, &report, NOW).await.unwrap();
        }
        count(&store, &report("a", 3, "gone"), NOW).await.unwrap();
        let used = list(&store, "llm").await.unwrap()[0].used.unwrap();
        assert_eq!((used.requests, used.prompt_tokens, used.completion_tokens), (3, 30, 15));
        delete(&store, "llm", "ci").await.unwrap();
        create(&store, asked("ci"), NOW).await.unwrap();
        assert_eq!(
            list(&store, "").await.unwrap()[0].used,
            None,
            "a new key of the old name begins at nothing"
        );
        assert!(matches!(count(&store, &report("", 1, "ci"), NOW).await, Err(KeyRefused::Report)));
    }

    #[tokio::test]
    async fn what_cannot_be_meant_is_refused_with_the_way_out() {
        let (_dir, store) = store().await;
        let models = |models: &[&str]| models.iter().map(|&model| model.to_owned()).collect();
        for (asked, part) in [
            (ApiKey { namespace: "LLM".to_owned(), ..asked("ci") }, "namespace"),
            (asked("a b"), "key's name"),
            (ApiKey { models: models(&["llm/kimi"]), ..asked("ci") }, "without the namespace"),
            (ApiKey { models: vec!["m".to_owned(); MOST_MODELS + 1], ..asked("ci") }, "at most 64"),
            (ApiKey { expires_at: -1, ..asked("ci") }, "expired"),
        ] {
            let error = create(&store, asked, NOW).await.unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}

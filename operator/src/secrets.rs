//! Secrets: values that go in by the CLI and come out to the hosts that need them, and nowhere else.
//!
//! They lie in the store's private records. A store whose home has secrets of its own reads those instead: this is the one room
//! that knows where they are.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tandem_crds::SecretRef;
use tandem_sources::Secret;
use tandem_store::{Record, Store, StoreError, Version};
use thiserror::Error;

const SECRETS: &str = "secrets";

/// Secrets of all namespaces.
const MOST: usize = 1000;
/// Values of one secret.
const MOST_KEYS: usize = 32;
/// Longest name, and longest key, as the API has it.
const LONGEST_NAME: usize = 253;
/// Longest value, in bytes.
const LONGEST_VALUE: usize = 16 * 1024;
/// Writers of one secret that may come in between.
const TRIES: usize = 8;

/// Why a secret is not taken. No sentence repeats a value.
#[derive(Debug, Error)]
pub(crate) enum SecretRefused {
    #[error("`{0}` can't be a namespace: use a DNS label, a-z, 0-9 and '-'")]
    Namespace(String),
    #[error(
        "`{0}` can't be a secret's name: use a-z, 0-9, '.' and '-', with a letter or digit at both ends, at most {LONGEST_NAME}"
    )]
    Name(String),
    #[error("`{0}` can't be a secret's key: use letters, digits, '.', '_' and '-', at most {LONGEST_NAME}")]
    Key(String),
    #[error("the value of `{0}` is empty: give one, or delete the secret")]
    Empty(String),
    #[error("the value of `{0}` is longer than 16 KiB: a secret holds tokens and passwords, not files")]
    TooLong(String),
    #[error("no value is given: say KEY=VALUE, KEY or --from-file KEY=PATH")]
    Nothing,
    #[error("a secret has at most {MOST_KEYS} values: make another one")]
    TooManyKeys,
    #[error("there are {MOST} secrets: delete some before making more")]
    TooMany,
    #[error("there is no secret {namespace}/{name}: `tandem secret list` shows those that there are")]
    Missing { namespace: String, name: String },
    #[error("secret {namespace}/{name} changes too fast: try again")]
    Busy { namespace: String, name: String },
    #[error(
        "secrets of this cluster are Kubernetes' own: `kubectl create secret generic {name} -n {namespace} --from-literal=KEY=VALUE`, \
         and `kubectl delete secret`"
    )]
    OfKubernetes { namespace: String, name: String },
    #[error("the store refused")]
    Store(#[from] StoreError),
}

/// What may be told of a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Summary {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) keys: Vec<String>,
    pub(crate) changed: Timestamp,
}

/// A credential as it was found, with the version of the secret that it was read from.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Credential {
    pub(crate) secret: Secret,
    pub(crate) version: Version,
}

/// As the store keeps it. It has no `Debug`, so that nothing can print it.
#[derive(Default, Serialize, Deserialize)]
struct Kept {
    values: BTreeMap<String, String>,
    changed: Timestamp,
}

/// Adds or replaces values of a secret, and makes it if there is none.
pub(crate) async fn set(
    store: &dyn Store,
    namespace: &str,
    name: &str,
    values: &BTreeMap<String, String>,
    now: Timestamp,
) -> Result<Summary, SecretRefused> {
    check(namespace, name, values)?;
    if store.platform().is_some() {
        return Err(SecretRefused::OfKubernetes { namespace: namespace.to_owned(), name: name.to_owned() });
    }
    let key = record_key(namespace, name);
    for _ in 0..TRIES {
        let record = store.record(SECRETS, &key).await?;
        if record.is_none() && store.records(SECRETS).await?.len() >= MOST {
            return Err(SecretRefused::TooMany);
        }
        let mut kept = record.as_ref().map(kept).unwrap_or_default();
        kept.values.extend(values.iter().map(|(key, value)| (key.clone(), value.clone())));
        if kept.values.len() > MOST_KEYS {
            return Err(SecretRefused::TooManyKeys);
        }
        kept.changed = now;
        let json = serde_json::to_vec(&kept).expect("texts are JSON");
        let before = record.as_ref().map(|record| &record.version);
        match store.put_record(SECRETS, &key, before, json).await {
            Ok(_) => return Ok(summary(namespace, name, &kept)),
            Err(error) if error.is_conflict() => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(SecretRefused::Busy { namespace: namespace.to_owned(), name: name.to_owned() })
}

/// Every secret of a namespace, or of all where it is empty, without values.
pub(crate) async fn list(store: &dyn Store, namespace: &str) -> Result<Vec<Summary>, StoreError> {
    let records = store.records(SECRETS).await?;
    let summaries = records.iter().filter_map(|record| {
        let (of, name) = record.key.split_once('/')?;
        (namespace.is_empty() || of == namespace).then(|| summary(of, name, &kept(record)))
    });
    Ok(summaries.collect())
}

/// Deletes a secret. Hosts are told to forget it.
pub(crate) async fn delete(store: &dyn Store, namespace: &str, name: &str) -> Result<(), SecretRefused> {
    if store.platform().is_some() {
        return Err(SecretRefused::OfKubernetes { namespace: namespace.to_owned(), name: name.to_owned() });
    }
    let key = record_key(namespace, name);
    let missing = || SecretRefused::Missing { namespace: namespace.to_owned(), name: name.to_owned() };
    for _ in 0..TRIES {
        let record = store.record(SECRETS, &key).await?.ok_or_else(missing)?;
        match store.delete_record(SECRETS, &key, &record.version).await {
            Ok(()) => return Ok(()),
            Err(error) if error.is_conflict() => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(SecretRefused::Busy { namespace: namespace.to_owned(), name: name.to_owned() })
}

/// One value, if there is such a secret and it has such a key.
pub(crate) async fn find(
    store: &dyn Store,
    namespace: &str,
    reference: &SecretRef,
) -> Result<Option<Credential>, StoreError> {
    if let Some(platform) = store.platform() {
        let secret = platform.secret(namespace, &reference.name).await?;
        return Ok(secret.and_then(|secret| {
            let text = String::from_utf8(secret.values.get(&reference.key)?.clone()).ok()?;
            Some(Credential { secret: Secret::new(text.trim_end()), version: secret.version })
        }));
    }
    let record = store.record(SECRETS, &record_key(namespace, &reference.name)).await?;
    Ok(record.and_then(|record| {
        let secret = Secret::new(kept(&record).values.get(&reference.key)?);
        Some(Credential { secret, version: record.version })
    }))
}

/// What to do about a credential that is not there.
pub(crate) fn missing(store: &dyn Store, namespace: &str, reference: &SecretRef) -> String {
    let SecretRef { name, key } = reference;
    if store.platform().is_some() {
        return format!(
            "namespace {namespace} has no secret {name} with a value {key}: run `kubectl create secret generic {name} -n {namespace} \
             --from-file={key}=FILE`"
        );
    }
    format!(
        "namespace {namespace} has no secret {name} with a value {key}: run `tandem secret set {name} {key} -n {namespace}`"
    )
}

fn record_key(namespace: &str, name: &str) -> String {
    format!("{namespace}/{name}")
}

fn kept(record: &Record) -> Kept {
    serde_json::from_slice(&record.value).unwrap_or_else(|error| {
        // Serde's message may quote what it could not read.
        let (line, column) = (error.line(), error.column());
        tracing::error!(
            secret = record.key,
            line,
            column,
            "this release can't read the secret: set it again"
        );
        Kept::default()
    })
}

fn summary(namespace: &str, name: &str, kept: &Kept) -> Summary {
    Summary {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        keys: kept.values.keys().cloned().collect(),
        changed: kept.changed,
    }
}

fn check(namespace: &str, name: &str, values: &BTreeMap<String, String>) -> Result<(), SecretRefused> {
    let end = |text: &str, at: fn(&str) -> Option<char>| {
        at(text).is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit())
    };
    let is_dns = |text: &str, longest: usize, dots: bool| {
        text.len() <= longest
            && end(text, |text| text.chars().next())
            && end(text, |text| text.chars().next_back())
            && text.chars().all(|c| matches!(c, 'a'..='z' | '0'..='9' | '-') || (dots && c == '.'))
    };
    let shown = |text: &str| text.chars().take(LONGEST_NAME).collect::<String>();
    if !is_dns(namespace, 63, false) {
        return Err(SecretRefused::Namespace(shown(namespace)));
    }
    if !is_dns(name, LONGEST_NAME, true) {
        return Err(SecretRefused::Name(shown(name)));
    }
    if values.is_empty() {
        return Err(SecretRefused::Nothing);
    }
    for (key, value) in values {
        let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if key.is_empty() || key.len() > LONGEST_NAME || !key.chars().all(good) {
            return Err(SecretRefused::Key(shown(key)));
        }
        if value.trim().is_empty() {
            return Err(SecretRefused::Empty(key.clone()));
        }
        if value.len() > LONGEST_VALUE {
            return Err(SecretRefused::TooLong(key.clone()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tandem_store::{EmbeddedStore, SystemClock};

    use super::*;

    async fn store() -> (tempfile::TempDir, EmbeddedStore) {
        let dir = tempfile::tempdir().unwrap();
        let store = EmbeddedStore::open(&dir.path().join("store.redb"), Arc::new(SystemClock)).await.unwrap();
        (dir, store)
    }

    fn values(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn reference(name: &str, key: &str) -> SecretRef {
        SecretRef { name: name.to_owned(), key: key.to_owned() }
    }

    #[tokio::test]
    async fn values_are_added_and_replaced_and_found_in_their_own_namespace_only() {
        let (_dir, store) = store().await;
        let now = Timestamp::UNIX_EPOCH;
        set(&store, "llm", "hub", &values(&[("token", "one\n"), ("other", "x")]), now).await.unwrap();
        let first = find(&store, "llm", &reference("hub", "token")).await.unwrap().unwrap();
        assert_eq!(first.secret.reveal(), "one");
        let told = set(&store, "llm", "hub", &values(&[("token", "two")]), now).await.unwrap();
        assert_eq!(told.keys, ["other", "token"]);
        let second = find(&store, "llm", &reference("hub", "token")).await.unwrap().unwrap();
        assert_eq!(second.secret.reveal(), "two");
        assert_ne!(first.version, second.version);
        assert!(find(&store, "prod", &reference("hub", "token")).await.unwrap().is_none());
        assert!(find(&store, "llm", &reference("hub", "nothing")).await.unwrap().is_none());
        assert_eq!(list(&store, "prod").await.unwrap(), []);
        assert_eq!(list(&store, "").await.unwrap(), [told]);
        delete(&store, "llm", "hub").await.unwrap();
        assert!(find(&store, "llm", &reference("hub", "token")).await.unwrap().is_none());
        assert!(matches!(delete(&store, "llm", "hub").await, Err(SecretRefused::Missing { .. })));
    }

    #[tokio::test]
    async fn what_is_out_of_bounds_is_refused_without_a_word_of_its_value() {
        let (_dir, store) = store().await;
        let long = "s3cr3t".repeat(LONGEST_VALUE);
        let many: BTreeMap<String, String> =
            (0..=MOST_KEYS).map(|n| (n.to_string(), "s3cr3t".to_owned())).collect();
        for (namespace, name, values, part) in [
            ("LLM", "hub", values(&[("token", "s3cr3t")]), "namespace"),
            ("llm", "-hub", values(&[("token", "s3cr3t")]), "`-hub` can't be a secret's name"),
            ("llm", "", values(&[("token", "s3cr3t")]), "name"),
            ("llm", "hub", values(&[("a token", "s3cr3t")]), "key"),
            ("llm", "hub", values(&[("token", " \n")]), "is empty"),
            ("llm", "hub", values(&[("token", &long)]), "16 KiB"),
            ("llm", "hub", values(&[]), "KEY=VALUE"),
            ("llm", "hub", many, "at most 32"),
        ] {
            let error = set(&store, namespace, name, &values, Timestamp::UNIX_EPOCH).await.unwrap_err();
            let said = format!("{error} {error:?}");
            assert!(said.contains(part) && !said.contains("s3cr3t"), "{said}");
        }
    }
}

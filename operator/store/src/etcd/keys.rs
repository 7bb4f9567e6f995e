//! Where things lie in etcd.

use serde_json::Value;

use crate::error::StoreError;
use crate::object::{Key, Kind, Object, Selector};
use crate::revise::versioned;

pub(super) fn objects(prefix: &str) -> String {
    format!("{prefix}/objects/")
}

pub(super) fn object(prefix: &str, key: &Key) -> String {
    format!("{prefix}/objects/{}/{}/{}", key.kind, key.namespace, key.name)
}

/// What a list or a watch has to look at: the one object, a namespace, or the kind.
pub(super) fn of_kind(prefix: &str, selector: &Selector) -> String {
    let kind = selector.kind;
    match (&selector.namespace, &selector.name) {
        (Some(namespace), name) if kind.namespaced() => {
            format!("{prefix}/objects/{kind}/{namespace}/{}", name.as_deref().unwrap_or_default())
        }
        (_, Some(name)) if !kind.namespaced() => format!("{prefix}/objects/{kind}//{name}"),
        _ => format!("{prefix}/objects/{kind}/"),
    }
}

pub(super) fn key_of(prefix: &str, key: &[u8]) -> Option<Key> {
    let mut parts = std::str::from_utf8(key).ok()?.strip_prefix(&objects(prefix))?.split('/');
    let (kind, namespace, name) = (Kind::parse(parts.next()?)?, parts.next()?, parts.next()?);
    Some(Key::new(kind, namespace, name))
}

pub(super) fn events(prefix: &str, key: &Key) -> String {
    format!("{prefix}/events/{}/{}/{}", key.kind, key.namespace, key.name)
}

pub(super) fn record(prefix: &str, collection: &str, key: &str) -> String {
    format!("{prefix}/records/{collection}/{key}")
}

/// Collection and key of a record.
pub(super) fn record_of<'a>(prefix: &str, key: &'a [u8]) -> Option<(&'a str, &'a str)> {
    std::str::from_utf8(key).ok()?.strip_prefix(&format!("{prefix}/records/"))?.split_once('/')
}

/// Name of the lease that a term is of.
pub(super) fn term_of<'a>(prefix: &str, key: &'a [u8]) -> Option<&'a str> {
    std::str::from_utf8(key).ok()?.strip_prefix(&format!("{prefix}/terms/"))
}

pub(super) fn lease(prefix: &str, name: &str) -> String {
    format!("{prefix}/leases/{name}")
}

pub(super) fn term(prefix: &str, name: &str) -> String {
    format!("{prefix}/terms/{name}")
}

pub(super) fn parse(key: Key, value: &[u8], revision: i64) -> Result<Object, StoreError> {
    let json: Value = serde_json::from_slice(value)
        .map_err(|error| StoreError::Unreadable { what: key.to_string(), source: Box::new(error) })?;
    Ok(versioned(key, json, &revision.to_string()))
}

//! Private documents as Secrets of the operator's own namespace.
//!
//! A record's key may be anything, and a Secret's name may not: the name carries a digest of the key, an annotation the key.

use k8s_openapi::ByteString;
use kube::core::Request;
use kube::core::params::{DeleteParams, GetParams, ListParams, PostParams, Preconditions};
use serde_json::{Value, json};
use uuid::Uuid;

use super::MANAGER;
use super::api::{Api, Failure};
use crate::Record;
use crate::error::StoreError;
use crate::object::Version;

const COLLECTION: &str = "tandem.dev/collection";
const KEY: &str = "tandem.dev/key";
const TYPE: &str = "tandem.dev/record";

fn path(namespace: &str) -> String {
    format!("/api/v1/namespaces/{namespace}/secrets")
}

/// The name of the Secret: the same for the same key, on every operator.
fn name(collection: &str, key: &str) -> String {
    let digest = Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("{collection}/{key}").as_bytes());
    format!("tandem-{collection}-{}", digest.simple())
}

pub(super) async fn get(
    api: &Api,
    namespace: &str,
    collection: &str,
    key: &str,
) -> Result<Option<Record>, StoreError> {
    let request = Request::new(path(namespace)).get(&name(collection, key), &GetParams::default());
    match api.ask::<Value>(request).await {
        Ok(secret) => Ok(record(&secret)),
        Err(failure) if failure.code() == 404 => Ok(None),
        Err(failure) => Err(failure.into()),
    }
}

pub(super) async fn list(api: &Api, namespace: &str, collection: &str) -> Result<Vec<Record>, StoreError> {
    let params =
        ListParams { label_selector: Some(format!("{COLLECTION}={collection}")), ..ListParams::default() };
    let list: Value = api.ask(Request::new(path(namespace)).list(&params)).await?;
    let mut records: Vec<Record> =
        list["items"].as_array().into_iter().flatten().filter_map(record).collect();
    records.sort_by(|one, other| one.key.cmp(&other.key));
    Ok(records)
}

pub(super) async fn put(
    api: &Api,
    namespace: &str,
    collection: &str,
    key: &str,
    expected: Option<&Version>,
    value: Vec<u8>,
) -> Result<Version, StoreError> {
    let name = name(collection, key);
    let mut secret = json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {COLLECTION: collection, "app.kubernetes.io/managed-by": MANAGER},
            "annotations": {KEY: key},
        },
        "type": TYPE,
        "data": {"value": ByteString(value)},
    });
    let params = PostParams { dry_run: false, field_manager: Some(MANAGER.to_owned()) };
    let request = match expected {
        None => Request::new(path(namespace)).create(&params, secret.to_string().into_bytes()),
        Some(version) => {
            secret["metadata"]["resourceVersion"] = json!(version.0);
            Request::new(path(namespace)).replace(&name, &params, secret.to_string().into_bytes())
        }
    };
    let secret: Value = api.ask(request).await.map_err(|failure| raced(failure, collection, key))?;
    Ok(Version(secret["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned()))
}

pub(super) async fn delete(
    api: &Api,
    namespace: &str,
    collection: &str,
    key: &str,
    expected: &Version,
) -> Result<(), StoreError> {
    let preconditions = Preconditions { resource_version: Some(expected.0.clone()), uid: None };
    let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
    let request = Request::new(path(namespace)).delete(&name(collection, key), &params);
    api.ask::<Value>(request).await.map(drop).map_err(|failure| raced(failure, collection, key))
}

/// Another version, none any more, or one already.
fn raced(failure: Failure, collection: &str, key: &str) -> StoreError {
    match failure.code() {
        404 | 409 => StoreError::RecordConflict { collection: collection.to_owned(), key: key.to_owned() },
        _ => failure.into(),
    }
}

fn record(secret: &Value) -> Option<Record> {
    let text = |pointer: &str| secret.pointer(pointer).and_then(Value::as_str);
    let key = secret["metadata"]["annotations"][KEY].as_str()?.to_owned();
    let value: ByteString = serde_json::from_value(secret["data"]["value"].clone()).unwrap_or_default();
    Some(Record { key, version: Version(text("/metadata/resourceVersion")?.to_owned()), value: value.0 })
}

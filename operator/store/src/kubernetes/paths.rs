//! Where objects lie in the API, and what its JSON is here.

use serde_json::Value;

use crate::error::StoreError;
use crate::object::{API_VERSION, Key, Kind, Object, Version};

/// Path of a collection: in a namespace, or in the whole cluster.
pub(super) fn collection(kind: Kind, namespace: Option<&str>) -> String {
    let plural = match kind {
        Kind::InferenceDeployment => "inferencedeployments",
        Kind::InferenceHost => "inferencehosts",
    };
    match namespace {
        Some(namespace) => format!("/apis/{API_VERSION}/namespaces/{namespace}/{plural}"),
        None => format!("/apis/{API_VERSION}/{plural}"),
    }
}

/// Path of the collection that an object is in. Its names become parts of a path, so that they have to look like names.
pub(super) fn collection_of(key: &Key) -> Result<String, StoreError> {
    let mut problems = Vec::new();
    if !is_name(&key.name) {
        problems.push(format!(
            "metadata.name: {:?} is not a name: use lowercase letters, digits, '-' and '.'",
            key.name
        ));
    }
    if key.kind.namespaced() && !is_name(&key.namespace) {
        problems.push(format!(
            "metadata.namespace: {:?} is not the name of a namespace: use lowercase letters, digits and '-'",
            key.namespace
        ));
    }
    if !problems.is_empty() {
        return Err(StoreError::Invalid { problems });
    }
    Ok(collection(key.kind, key.kind.namespaced().then_some(key.namespace.as_str())))
}

fn is_name(text: &str) -> bool {
    let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    text.len() <= 253
        && edge(text.as_bytes().first())
        && edge(text.as_bytes().last())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'.')
}

/// An object of the API as a store's.
pub(super) fn object(json: Value) -> Option<Object> {
    let text = |pointer: &str| json.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    let kind = Kind::parse(&text("/kind"))?;
    let key = Key::new(kind, &text("/metadata/namespace"), &text("/metadata/name"));
    let version = Version(text("/metadata/resourceVersion"));
    Some(Object { key, version, json })
}

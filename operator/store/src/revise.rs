//! What an object becomes by a write, pure: every rule that a home without Kubernetes' API server needs.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::admission::{admit, check_known};
use crate::error::StoreError;
use crate::object::{API_VERSION, Key, Kind, Object, Version};
use crate::ownership::{self, Operation, Owners};
use crate::{ApplyOptions, ApplyOutcome, MAX_OBJECT_BYTES};

/// What a new version of an object is stamped with.
pub(crate) struct Stamp {
    /// Wall-clock time.
    pub(crate) now: Timestamp,
    /// Identity, should this be a new object.
    pub(crate) uid: String,
}

/// What a write wants to become of an object.
pub(crate) enum Outcome<T> {
    /// This JSON, stamped with a new version.
    Write(Value, T),
    /// Gone.
    Remove(T),
    /// As it was.
    Keep(T),
}

/// Metadata that a writer may state; the store writes the rest.
const WRITABLE_METADATA: [&str; 2] = ["labels", "annotations"];
/// Metadata that is accepted, since an object that was read carries it, and that only the store writes.
const SERVER_METADATA: [&str; 7] =
    ["name", "namespace", "uid", "resourceVersion", "generation", "creationTimestamp", "managedFields"];

/// Which object a manifest is about.
pub(crate) fn key_of(manifest: &Value) -> Result<Key, StoreError> {
    let text = |pointer: &str| manifest.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    if text("/apiVersion") != API_VERSION {
        return Err(invalid(format!("apiVersion is {:?}: write {API_VERSION}", text("/apiVersion"))));
    }
    let Some(kind) = Kind::parse(text("/kind")) else {
        let kind = text("/kind");
        return Err(invalid(format!(
            "kind {kind:?} is not known: write InferenceDeployment or InferenceHost"
        )));
    };
    let name = text("/metadata/name");
    if name.is_empty() {
        return Err(invalid("metadata.name is missing: give the object a name".to_owned()));
    }
    if !kind.namespaced() && !text("/metadata/namespace").is_empty() {
        return Err(invalid(format!("metadata.namespace is set: {kind} has no namespace, take it out")));
    }
    Ok(Key::new(kind, text("/metadata/namespace"), name))
}

/// An object as a store shows it, by the revision that made it.
pub(crate) fn versioned(key: Key, mut json: Value, revision: &str) -> Object {
    json["metadata"]["resourceVersion"] = json!(revision);
    Object { key, version: Version(revision.to_owned()), json }
}

pub(crate) fn existing<'a>(old: Option<&'a Object>, key: &Key) -> Result<&'a Object, StoreError> {
    old.ok_or_else(|| StoreError::NotFound(key.clone()))
}

/// A write that leaves everything as it was is none.
pub(crate) fn changed(old: &Object, new: Value) -> Outcome<()> {
    if old.json == new { Outcome::Keep(()) } else { Outcome::Write(new, ()) }
}

/// The object after an apply, and whether that is a change.
pub(crate) fn apply(
    old: Option<&Object>,
    mut manifest: Value,
    options: &ApplyOptions,
    stamp: &Stamp,
) -> Result<(Value, ApplyOutcome), StoreError> {
    let key = key_of(&manifest)?;
    drop_nulls(&mut manifest);
    check_known(&manifest)?;
    check_metadata(&manifest)?;
    check_preconditions(old, &key, &manifest)?;
    let live = old.map_or_else(|| skeleton(&key), |object| object.json.clone());
    let owners = Owners::of(&live);
    let (object, owners) =
        ownership::apply(&live, &owners, &manifest, &options.manager, options.force, stamp.now)
            .map_err(|fields| StoreError::FieldConflict { key: key.clone(), fields })?;
    let object = finish(old, &key, object, &owners, stamp)?;
    let outcome = match old {
        None => ApplyOutcome::Created,
        Some(old) if old.json == object => ApplyOutcome::Unchanged,
        Some(_) => ApplyOutcome::Configured,
    };
    Ok((object, outcome))
}

/// A new object.
pub(crate) fn create(mut object: Value, manager: &str, stamp: &Stamp) -> Result<Value, StoreError> {
    let key = key_of(&object)?;
    drop_nulls(&mut object);
    check_known(&object)?;
    check_metadata(&object)?;
    let mut new = skeleton(&key);
    write_over(&mut new, &object);
    let owners =
        ownership::update(&Owners::default(), &skeleton(&key), &new, manager, Operation::Update, stamp.now);
    finish(None, &key, new, &owners, stamp)
}

/// The object with the spec, labels and annotations of `new`.
pub(crate) fn replace(old: &Object, new: &Value, manager: &str, stamp: &Stamp) -> Result<Value, StoreError> {
    let mut stated = new.clone();
    drop_nulls(&mut stated);
    check_known(&stated)?;
    check_metadata(&stated)?;
    let mut object = old.json.clone();
    write_over(&mut object, &stated);
    let owners =
        ownership::update(&Owners::of(&old.json), &old.json, &object, manager, Operation::Update, stamp.now);
    finish(Some(old), &old.key, object, &owners, stamp)
}

/// The object with another status.
pub(crate) fn replace_status(old: &Object, mut status: Value, stamp: &Stamp) -> Result<Value, StoreError> {
    drop_nulls(&mut status);
    let mut object = old.json.clone();
    object["status"] = status;
    finish(Some(old), &old.key, object, &Owners::of(&old.json), stamp)
}

/// The deployment with another `spec.replicas`.
pub(crate) fn scale(old: &Object, replicas: i32, manager: &str, stamp: &Stamp) -> Result<Value, StoreError> {
    if old.key.kind != Kind::InferenceDeployment {
        return Err(invalid(format!("{} has no replicas: scale an InferenceDeployment", old.key)));
    }
    let mut object = old.json.clone();
    object["spec"]["replicas"] = json!(replicas);
    let owners =
        ownership::update(&Owners::of(&old.json), &old.json, &object, manager, Operation::Scale, stamp.now);
    finish(Some(old), &old.key, object, &owners, stamp)
}

/// Admits the object and fills in what only the store writes. Its `resourceVersion` stays the old one.
fn finish(
    old: Option<&Object>,
    key: &Key,
    mut object: Value,
    owners: &Owners,
    stamp: &Stamp,
) -> Result<Value, StoreError> {
    let bytes = object.to_string().len();
    if bytes > MAX_OBJECT_BYTES {
        return Err(StoreError::TooLarge { key: key.clone(), bytes, limit: MAX_OBJECT_BYTES });
    }
    {
        let metadata = object["metadata"].as_object_mut().expect("every object starts from a skeleton");
        let uid = old.map_or(stamp.uid.as_str(), Object::uid);
        metadata.insert("uid".to_owned(), json!(uid));
        metadata
            .entry("creationTimestamp")
            .or_insert_with(|| json!(stamp.now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()));
        metadata.entry("generation").or_insert_with(|| json!(1));
        metadata.insert("managedFields".to_owned(), owners.to_json());
    }
    let mut object = admit(&object, old.map(|old| &old.json))?;
    if let Some(old) = old
        && object.get("spec") != old.json.get("spec")
    {
        object["metadata"]["generation"] = json!(old.generation() + 1);
    }
    Ok(object)
}

fn skeleton(key: &Key) -> Value {
    let mut metadata = Map::new();
    metadata.insert("name".to_owned(), json!(key.name));
    if key.kind.namespaced() {
        metadata.insert("namespace".to_owned(), json!(key.namespace));
    }
    json!({"apiVersion": API_VERSION, "kind": key.kind.as_str(), "metadata": metadata, "spec": {}})
}

/// Spec, labels and annotations of `stated` in place of those of `object`.
fn write_over(object: &mut Value, stated: &Value) {
    object["spec"] = stated.get("spec").cloned().unwrap_or_else(|| json!({}));
    for field in WRITABLE_METADATA {
        let metadata = object["metadata"].as_object_mut().expect("every object starts from a skeleton");
        match stated.pointer(&format!("/metadata/{field}")) {
            Some(value) => metadata.insert(field.to_owned(), value.clone()),
            None => metadata.shift_remove(field),
        };
    }
}

/// Refuses what no home takes, whoever merges and admits afterwards.
pub(crate) fn check_stated(manifest: &Value) -> Result<(), StoreError> {
    let mut manifest = manifest.clone();
    drop_nulls(&mut manifest);
    check_known(&manifest)?;
    check_metadata(&manifest)
}

fn check_metadata(object: &Value) -> Result<(), StoreError> {
    let Some(metadata) = object.get("metadata").and_then(Value::as_object) else { return Ok(()) };
    let mut problems: Vec<String> = metadata
        .keys()
        .filter(|key| !WRITABLE_METADATA.contains(&key.as_str()) && !SERVER_METADATA.contains(&key.as_str()))
        .map(|key| format!("metadata.{key} is not supported: take it out"))
        .collect();
    for field in WRITABLE_METADATA {
        let Some(value) = metadata.get(field) else { continue };
        if !value.as_object().is_some_and(|map| map.values().all(Value::is_string)) {
            problems.push(format!("metadata.{field} is not a map of strings: quote its values"));
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(StoreError::Invalid { problems }) }
}

/// A manifest that carries a version or a uid, since somebody read it, applies to that object only.
pub(crate) fn check_preconditions(
    old: Option<&Object>,
    key: &Key,
    manifest: &Value,
) -> Result<(), StoreError> {
    let text = |name: &str| {
        manifest.pointer(&format!("/metadata/{name}")).and_then(Value::as_str).filter(|text| !text.is_empty())
    };
    match old {
        Some(old) => {
            let same = text("resourceVersion").is_none_or(|version| version == old.version.0)
                && text("uid").is_none_or(|uid| uid == old.uid());
            if !same {
                return Err(StoreError::Conflict { key: key.clone(), current: old.version.clone() });
            }
        }
        None if text("resourceVersion").is_some() || text("uid").is_some() => {
            return Err(StoreError::NotFound(key.clone()));
        }
        None => {}
    }
    Ok(())
}

/// Whether the object is still what the writer read.
pub(crate) fn check_version(old: &Object, version: &Version) -> Result<(), StoreError> {
    if old.version == *version {
        Ok(())
    } else {
        Err(StoreError::Conflict { key: old.key.clone(), current: old.version.clone() })
    }
}

/// A null states nothing, as in Kubernetes.
fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, value| !value.is_null());
            map.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

fn invalid(problem: String) -> StoreError {
    StoreError::Invalid { problems: vec![problem] }
}

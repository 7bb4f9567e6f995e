//! Manifests: YAML or JSON text to objects, strictly. Nothing is dropped in silence; every refusal has a path and a way out.

use serde_json::{Map, Value};
use thiserror::Error;

use crate::admission::{Violation, admit, join, kind_of, pruned, values_of};
use crate::schema::Kind;
use crate::{InferenceDeployment, InferenceHost, future};

/// Largest manifest read, as in an API server's own limit.
pub const MAX_BYTES: usize = 1_500_000;
/// Most documents in one manifest.
pub const MAX_DOCUMENTS: usize = 1_000;

/// What `metadata` may hold: what people write, and what a stored object carries when it comes back.
const METADATA: [&str; 14] = [
    "name",
    "namespace",
    "labels",
    "annotations",
    "generateName",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "ownerReferences",
    "finalizers",
    "managedFields",
];

/// One object of a manifest, known to be admissible on its own.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifest {
    /// What it is.
    pub kind: Kind,
    /// `metadata.name`.
    pub name: String,
    /// `metadata.namespace`, if it says.
    pub namespace: Option<String>,
    /// The object as written, less nulls, and *without* defaults: an apply owns the fields that it states.
    pub written: Value,
}

impl Manifest {
    /// The object with its defaults, typed.
    #[must_use]
    pub fn object(&self) -> Object {
        let admitted =
            admit(&whole(self.kind, &self.written), None).expect("a manifest exists once it was admitted");
        match self.kind {
            Kind::InferenceDeployment => Object::Deployment(Box::new(typed(admitted))),
            Kind::InferenceHost => Object::Host(Box::new(typed(admitted))),
        }
    }
}

fn typed<T: serde::de::DeserializeOwned>(admitted: Value) -> T {
    serde_json::from_value(admitted).expect("the schema is derived from the type, so what it admits parses")
}

/// A typed object.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    /// A deployment.
    Deployment(Box<InferenceDeployment>),
    /// A host.
    Host(Box<InferenceHost>),
}

/// A manifest that can't be used.
#[derive(Debug, Error)]
pub enum ManifestError {
    /// More text than any sane manifest has.
    #[error("the manifest has {bytes} bytes; at most {MAX_BYTES} are read: split it into several files")]
    TooLarge {
        /// How much there is.
        bytes: usize,
    },
    /// More documents than are read at once.
    #[error("the manifest has more than {MAX_DOCUMENTS} documents; split it into several files")]
    TooMany,
    /// Not YAML, or YAML that JSON can't say.
    #[error("document {document} is not YAML: {reason}")]
    Syntax {
        /// Counted from 1.
        document: usize,
        /// What the parser says, with line and column.
        reason: String,
    },
    /// An object that breaks the API's rules.
    #[error("document {document}, {object}, is refused:\n{}", lines(violations))]
    Refused {
        /// Counted from 1.
        document: usize,
        /// Such as `InferenceDeployment kimi`.
        object: String,
        /// Everything that is wrong, sorted by path.
        violations: Vec<Violation>,
    },
    /// Nothing in it.
    #[error("the manifest has no object in it")]
    Empty,
}

fn lines(violations: &[Violation]) -> String {
    violations.iter().map(|violation| format!("  {violation}")).collect::<Vec<_>>().join("\n")
}

/// Reads every object of a YAML (or JSON) text; empty documents are skipped.
///
/// # Errors
/// At the first document that is not an admissible object, with all that is wrong with it.
pub fn parse(text: &str) -> Result<Vec<Manifest>, ManifestError> {
    let manifests = documents(text)?.into_iter().collect::<Result<Vec<_>, _>>()?;
    if manifests.is_empty() { Err(ManifestError::Empty) } else { Ok(manifests) }
}

/// As [`parse`], but each document on its own: one that is refused doesn't hide the others. Behind one that is not YAML
/// nothing is read.
///
/// # Errors
/// When there is too much text.
pub fn documents(text: &str) -> Result<Vec<Result<Manifest, ManifestError>>, ManifestError> {
    if text.len() > MAX_BYTES {
        return Err(ManifestError::TooLarge { bytes: text.len() });
    }
    let mut documents = Vec::new();
    for (index, yaml) in serde_yaml::Deserializer::from_str(text).enumerate() {
        if index >= MAX_DOCUMENTS {
            return Err(ManifestError::TooMany);
        }
        let read = document(index + 1, yaml);
        let unreadable = matches!(read, Err(ManifestError::Syntax { .. }));
        documents.extend(read.transpose());
        if unreadable {
            break;
        }
    }
    Ok(documents)
}

/// One document, unless it is empty.
fn document(document: usize, yaml: serde_yaml::Deserializer<'_>) -> Result<Option<Manifest>, ManifestError> {
    let syntax = |reason: String| ManifestError::Syntax { document, reason };
    let yaml: serde_yaml::Value =
        serde::Deserialize::deserialize(yaml).map_err(|error| syntax(error.to_string()))?;
    if yaml.is_null() {
        return Ok(None);
    }
    let value = json(&yaml, "").map_err(syntax)?;
    let refused = |(object, violations)| ManifestError::Refused { document, object, violations };
    check(value).map(Some).map_err(refused)
}

/// Reads one object that is JSON already.
///
/// # Errors
/// As [`parse`].
pub fn from_value(value: Value) -> Result<Manifest, ManifestError> {
    let bytes = value.to_string().len();
    if bytes > MAX_BYTES {
        return Err(ManifestError::TooLarge { bytes });
    }
    check(value).map_err(|(object, violations)| ManifestError::Refused { document: 1, object, violations })
}

/// YAML as JSON. YAML can say more than JSON; what JSON can't say is refused rather than bent.
fn json(yaml: &serde_yaml::Value, path: &str) -> Result<Value, String> {
    use serde_yaml::Value as Yaml;
    let at = || if path.is_empty() { "the document".to_owned() } else { path.to_owned() };
    Ok(match yaml {
        Yaml::Null => Value::Null,
        Yaml::Bool(bool) => Value::Bool(*bool),
        Yaml::String(text) => Value::String(text.clone()),
        Yaml::Number(number) => {
            let number = match (number.as_i64(), number.as_u64(), number.as_f64()) {
                (Some(whole), _, _) => Some(whole.into()),
                (_, Some(whole), _) => Some(whole.into()),
                (_, _, Some(float)) => serde_json::Number::from_f64(float),
                _ => None,
            };
            Value::Number(number.ok_or_else(|| format!("{} is not a finite number", at()))?)
        }
        Yaml::Sequence(items) => Value::Array(
            items
                .iter()
                .enumerate()
                .map(|(index, item)| json(item, &format!("{path}[{index}]")))
                .collect::<Result<_, _>>()?,
        ),
        Yaml::Mapping(mapping) => {
            let mut object = Map::new();
            for (key, value) in mapping {
                let Yaml::String(key) = key else {
                    return Err(format!("a key in {} is not a string; write it in quotes", at()));
                };
                object.insert(key.clone(), json(value, &join(path, key))?);
            }
            Value::Object(object)
        }
        Yaml::Tagged(tagged) => {
            return Err(format!("{} has the tag {}; leave the tag out", at(), tagged.tag));
        }
    })
}

fn check(value: Value) -> Result<Manifest, (String, Vec<Violation>)> {
    let name = value["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let kind = kind_of(&value).map_err(|violation| {
        let written = value["kind"].as_str().unwrap_or("an object without a kind");
        (format!("{written} {name}").trim_end().to_owned(), vec![violation])
    })?;
    let refuse = |violations| (format!("{kind} {name}").trim_end().to_owned(), violations);
    let mut violations = Vec::new();
    check_unknown(kind.schema(), &value, "", &mut violations);
    check_unknown_metadata(&value["metadata"], &mut violations);
    if let Err(others) = admit(&whole(kind, &value), None) {
        violations.extend(others);
    }
    violations.sort();
    if !violations.is_empty() {
        return Err(refuse(violations));
    }
    let namespace = value["metadata"]["namespace"].as_str().map(str::to_owned);
    Ok(Manifest { kind, name, namespace, written: pruned(kind.schema(), &value, true) })
}

/// Fields of an object, however incomplete it is, that no schema describes: for writers that merge before they admit.
#[must_use]
pub fn unknown_fields(value: &Value) -> Vec<Violation> {
    let mut violations = Vec::new();
    if let Ok(kind) = kind_of(value) {
        check_unknown(kind.schema(), value, "", &mut violations);
        check_unknown_metadata(&value["metadata"], &mut violations);
    }
    violations.sort();
    violations
}

/// A host's spec is the operator's: people write labels and annotations, and may leave it out.
fn whole(kind: Kind, value: &Value) -> Value {
    let mut whole = value.clone();
    if let (Kind::InferenceHost, Some(object)) = (kind, whole.as_object_mut()) {
        object.entry("spec").or_insert_with(|| Map::new().into());
    }
    whole
}

/// Reports fields that no schema describes, where an API server would drop them in silence.
fn check_unknown(schema: &Value, value: &Value, path: &str, violations: &mut Vec<Violation>) {
    match value {
        Value::Object(object) if schema["type"] == "object" => {
            for (name, child) in object {
                let path_of_child = join(path, name);
                match schema["properties"].get(name).or_else(|| values_of(schema)) {
                    _ if path.is_empty() && matches!(name.as_str(), "apiVersion" | "kind" | "metadata") => {}
                    Some(described) => check_unknown(described, child, &path_of_child, violations),
                    None if future::is_field(&path_of_child) => {
                        violations.push(Violation::new(&path_of_child, "is not supported yet; leave it out"));
                    }
                    None => {
                        let known = schema["properties"].as_object().into_iter().flat_map(Map::keys);
                        let known = known.map(String::as_str).collect::<Vec<_>>().join(", ");
                        let place = if path.is_empty() { "the object" } else { path };
                        violations.push(Violation::new(
                            &path_of_child,
                            format!("is not a known field; {place} has {known}"),
                        ));
                    }
                }
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                check_unknown(&schema["items"], item, &format!("{path}[{index}]"), violations);
            }
        }
        _ => {}
    }
}

fn check_unknown_metadata(metadata: &Value, violations: &mut Vec<Violation>) {
    for (name, value) in metadata.as_object().into_iter().flatten() {
        let path = join("metadata", name);
        match name.as_str() {
            "labels" | "annotations" => {
                for (key, text) in value.as_object().into_iter().flatten() {
                    if !text.is_string() {
                        violations
                            .push(Violation::new(&join(&path, key), "must be a string; write it in quotes"));
                    }
                }
                if !(value.is_object() || value.is_null()) {
                    violations.push(Violation::new(&path, "must be an object of strings"));
                }
            }
            "name" | "namespace" if !value.is_string() => {
                violations.push(Violation::new(&path, "must be a string; write it in quotes"));
            }
            known if METADATA.contains(&known) => {}
            _ => violations.push(Violation::new(
                &path,
                "is not a known field; people write name, namespace, labels and annotations",
            )),
        }
    }
}

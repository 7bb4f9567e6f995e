//! Objects as the store keeps them: the JSON of an API type, with typed access to what every object has.

use std::fmt;

use serde_json::Value;

/// API group and version of every object here.
pub const API_VERSION: &str = "inference.tandem.dev/v1alpha1";

/// The kinds that a store holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// What somebody wants served; lives in a namespace.
    InferenceDeployment,
    /// A machine: spec by the operator, status by its agent; cluster-scoped.
    InferenceHost,
}

impl Kind {
    /// Name as manifests write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InferenceDeployment => "InferenceDeployment",
            Self::InferenceHost => "InferenceHost",
        }
    }

    /// Reads the name that manifests write.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "InferenceDeployment" => Some(Self::InferenceDeployment),
            "InferenceHost" => Some(Self::InferenceHost),
            _ => None,
        }
    }

    /// Whether objects of this kind live in a namespace.
    pub fn namespaced(self) -> bool {
        matches!(self, Self::InferenceDeployment)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Which object: kind, namespace (empty when cluster-scoped) and name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// The object's kind.
    pub kind: Kind,
    /// Its namespace; empty for cluster-scoped kinds.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl Key {
    /// Key of an InferenceDeployment; an empty namespace means `default`.
    pub fn deployment(namespace: &str, name: &str) -> Self {
        let namespace = if namespace.is_empty() { "default" } else { namespace };
        Self { kind: Kind::InferenceDeployment, namespace: namespace.to_owned(), name: name.to_owned() }
    }

    /// Key of an InferenceHost.
    pub fn host(name: &str) -> Self {
        Self { kind: Kind::InferenceHost, namespace: String::new(), name: name.to_owned() }
    }

    /// Key for a kind; the namespace is defaulted, or dropped where the kind has none.
    pub fn new(kind: Kind, namespace: &str, name: &str) -> Self {
        match kind {
            Kind::InferenceDeployment => Self::deployment(namespace, name),
            Kind::InferenceHost => Self::host(name),
        }
    }
}

impl Key {
    /// Key of an object as JSON, if it is of a kind that stores keep.
    pub fn of(json: &serde_json::Value) -> Option<Self> {
        let text = |pointer| json.pointer(pointer).and_then(serde_json::Value::as_str);
        let kind = Kind::parse(text("/kind")?)?;
        Some(Self::new(kind, text("/metadata/namespace").unwrap_or_default(), text("/metadata/name")?))
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{} {}", self.kind, self.name)
        } else {
            write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
        }
    }
}

/// A resource version: opaque, compared for equality only.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Version(pub String);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One stored object: whole JSON, with the key and version that its metadata states.
#[derive(Debug, Clone, PartialEq)]
pub struct Object {
    /// Which object.
    pub key: Key,
    /// The version that this JSON is.
    pub version: Version,
    /// `apiVersion`, `kind`, `metadata`, `spec`, `status`.
    pub json: Value,
}

impl Object {
    /// Raised by each change of `spec`; starts at 1.
    pub fn generation(&self) -> i64 {
        self.json.pointer("/metadata/generation").and_then(Value::as_i64).unwrap_or(0)
    }

    /// Differs between two objects that had the same name at different times.
    pub fn uid(&self) -> &str {
        self.json.pointer("/metadata/uid").and_then(Value::as_str).unwrap_or_default()
    }

    /// The object's spec; null when it has none.
    pub fn spec(&self) -> &Value {
        self.json.get("spec").unwrap_or(&Value::Null)
    }

    /// The object's status; null until first written.
    pub fn status(&self) -> &Value {
        self.json.get("status").unwrap_or(&Value::Null)
    }
}

/// Which objects a list or a watch is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selector {
    /// Objects of this kind,
    pub kind: Kind,
    /// in this namespace (all, if none),
    pub namespace: Option<String>,
    /// of this name (all, if none).
    pub name: Option<String>,
}

impl Selector {
    /// Every object of one kind.
    pub fn all(kind: Kind) -> Self {
        Self { kind, namespace: None, name: None }
    }

    /// Whether the object of this key is meant.
    pub fn matches(&self, key: &Key) -> bool {
        self.kind == key.kind
            && self.namespace.as_ref().is_none_or(|namespace| *namespace == key.namespace)
            && self.name.as_ref().is_none_or(|name| *name == key.name)
    }
}

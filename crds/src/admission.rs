//! What an API server does to an object before it stores it: prune, default, check the schema, check the CEL rules.

use std::fmt;

use kube::core::cel::{ErrorKind, Validator, apply_defaults};
use serde_json::{Map, Value};

use crate::future;
use crate::schema::Kind;
use crate::{API_VERSION, GROUP};

/// One thing wrong with an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Violation {
    /// Where, such as `spec.redundancy.hostFailures`; empty for the object as a whole.
    pub path: String,
    /// What is wrong and what to change.
    pub message: String,
}

impl Violation {
    pub(crate) fn new(path: &str, message: impl Into<String>) -> Self {
        Self { path: path.to_owned(), message: message.into() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() {
            f.write_str(&self.message)
        } else {
            write!(f, "{}: {}", self.path, self.message)
        }
    }
}

/// Admits a whole object, new or in place of `old`: unknown fields and nulls are pruned, defaults filled in, then schema
/// and CEL rules hold. What comes back is what to store.
///
/// # Errors
/// Everything that is wrong, sorted by path. Rules run only on objects of the right shape, as in an API server.
pub fn admit(new: &Value, old: Option<&Value>) -> Result<Value, Vec<Violation>> {
    let kind = kind_of(new).map_err(|violation| vec![violation])?;
    let schema = kind.schema();
    let object = apply_defaults(schema, &pruned(schema, new, true));
    let mut violations = Vec::new();
    check_metadata(kind, &object, &mut violations);
    check(schema, &object, "", &mut violations);
    if violations.is_empty() {
        let old = old.map(|old| apply_defaults(schema, &pruned(schema, old, true)));
        check_rules(kind, &object, old.as_ref(), &mut violations);
    }
    violations.sort();
    if violations.is_empty() { Ok(object) } else { Err(violations) }
}

/// Reads `apiVersion` and `kind`.
pub(crate) fn kind_of(object: &Value) -> Result<Kind, Violation> {
    if !object.is_object() {
        return Err(Violation::new("", format!("an object is expected here, not {}", name_of_type(object))));
    }
    let known = Kind::ALL.map(Kind::as_str).join(" or ");
    match object.get("apiVersion").and_then(Value::as_str) {
        Some(API_VERSION) => {}
        Some(other) if other.starts_with(GROUP) => {
            return Err(Violation::new(
                "apiVersion",
                format!("`{other}` is not a version of {GROUP} that is served here; use {API_VERSION}"),
            ));
        }
        Some(other) => {
            return Err(Violation::new(
                "apiVersion",
                format!("`{other}` is not served here; use {API_VERSION}"),
            ));
        }
        None => return Err(Violation::new("apiVersion", format!("is missing; write {API_VERSION}"))),
    }
    match object.get("kind").and_then(Value::as_str) {
        Some(name) => Kind::from_name(name)
            .ok_or_else(|| Violation::new("kind", format!("`{name}` is not known; use {known}"))),
        None => Err(Violation::new("kind", format!("is missing; write {known}"))),
    }
}

/// A copy without unknown fields and nulls. `metadata` is kept whole at the root, where no schema describes it.
pub(crate) fn pruned(schema: &Value, value: &Value, root: bool) -> Value {
    match value {
        Value::Object(object) => {
            let mut kept = Map::new();
            for (name, child) in object.iter().filter(|(_, child)| !child.is_null()) {
                let described = schema["properties"].get(name).or_else(|| values_of(schema));
                match described {
                    Some(_) if root && name == "metadata" => kept.insert(name.clone(), child.clone()),
                    Some(described) => kept.insert(name.clone(), pruned(described, child, false)),
                    None if root && matches!(name.as_str(), "apiVersion" | "kind" | "metadata") => {
                        kept.insert(name.clone(), child.clone())
                    }
                    // A value of the wrong type keeps its fields, so that the type is what gets reported.
                    None if schema["type"] != "object" => kept.insert(name.clone(), child.clone()),
                    None => None,
                };
            }
            Value::Object(kept)
        }
        Value::Array(items) => {
            let described = schema.get("items").unwrap_or(&Value::Null);
            Value::Array(items.iter().map(|item| pruned(described, item, false)).collect())
        }
        plain => plain.clone(),
    }
}

/// The schema of a map's values.
pub(crate) fn values_of(schema: &Value) -> Option<&Value> {
    schema.get("additionalProperties").filter(|values| values.is_object())
}

fn check_metadata(kind: Kind, object: &Value, violations: &mut Vec<Violation>) {
    let metadata = &object["metadata"];
    match metadata.get("name").and_then(Value::as_str) {
        None => violations.push(Violation::new("metadata.name", "is missing; every object needs a name")),
        Some(name) => check_label("metadata.name", name, violations),
    }
    match (kind.is_namespaced(), metadata.get("namespace").and_then(Value::as_str)) {
        (true, Some(namespace)) => check_label("metadata.namespace", namespace, violations),
        (true, None) => {}
        (false, Some(_)) => violations.push(Violation::new(
            "metadata.namespace",
            format!("an {kind} belongs to the whole cluster; leave the namespace out"),
        )),
        (false, None) => {}
    }
}

/// Names become parts of workload ids, server names and URLs, so they are DNS labels.
fn check_label(path: &str, name: &str, violations: &mut Vec<Violation>) {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    let inside = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if name.len() > 63
        || !edge(name.chars().next())
        || !edge(name.chars().last())
        || !name.chars().all(inside)
    {
        let message = format!(
            "`{}` is not a name; use 1 to 63 of a-z, 0-9 and '-', with a letter or digit at both ends",
            name.chars().take(80).collect::<String>()
        );
        violations.push(Violation::new(path, message));
    }
}

/// Checks one value against a structural schema.
fn check(schema: &Value, value: &Value, path: &str, violations: &mut Vec<Violation>) {
    match (schema["type"].as_str().unwrap_or_default(), value) {
        ("object", Value::Object(object)) => check_object(schema, object, path, violations),
        ("array", Value::Array(items)) => check_array(schema, items, path, violations),
        ("string", Value::String(text)) => check_string(schema, text, path, violations),
        ("integer", Value::Number(number)) => check_integer(schema, number, path, violations),
        ("boolean", Value::Bool(_)) => {}
        ("string", Value::Number(number)) => violations.push(Violation::new(
            path,
            format!("is a number here but a string in the API; write it in quotes: \"{number}\""),
        )),
        (expected, found) => {
            let found = name_of_type(found);
            violations.push(Violation::new(path, format!("must be {}, not {found}", with_article(expected))));
        }
    }
}

fn check_object(schema: &Value, object: &Map<String, Value>, path: &str, violations: &mut Vec<Violation>) {
    for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if !object.contains_key(name) {
            let described = schema["properties"][name]["description"].as_str().unwrap_or_default();
            let message = format!("is missing. It says: {}", first_sentence(described));
            violations.push(Violation::new(&join(path, name), message));
        }
    }
    if let Some(most) = schema["maxProperties"].as_u64().filter(|most| object.len() as u64 > *most) {
        violations
            .push(Violation::new(path, format!("has {} entries; at most {most} are allowed", object.len())));
    }
    for (name, child) in object {
        if let Some(described) = schema["properties"].get(name).or_else(|| values_of(schema))
            && !(path.is_empty() && name == "metadata")
        {
            check(described, child, &join(path, name), violations);
        }
    }
}

fn check_array(schema: &Value, items: &[Value], path: &str, violations: &mut Vec<Violation>) {
    let count = items.len() as u64;
    if let Some(most) = schema["maxItems"].as_u64().filter(|most| count > *most) {
        violations.push(Violation::new(path, format!("has {count} items; at most {most} are allowed")));
        return;
    }
    if let Some(least) = schema["minItems"].as_u64().filter(|least| count < *least) {
        violations.push(Violation::new(path, format!("has {count} items; at least {least} are needed")));
    }
    for (index, item) in items.iter().enumerate() {
        check(&schema["items"], item, &format!("{path}[{index}]"), violations);
    }
    let keys: Vec<&str> = match schema["x-kubernetes-list-type"].as_str() {
        Some("map") => schema["x-kubernetes-list-map-keys"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect(),
        Some("set") => Vec::new(),
        _ => return,
    };
    let identity = |item: &Value| -> Vec<Value> {
        if keys.is_empty() { vec![item.clone()] } else { keys.iter().map(|key| item[*key].clone()).collect() }
    };
    let mut seen = std::collections::HashSet::new();
    for (index, item) in items.iter().enumerate() {
        let identity = identity(item);
        let shown = identity.iter().map(plain).collect::<Vec<_>>().join(", ");
        if !seen.insert(shown.clone()) {
            violations.push(Violation::new(
                &format!("{path}[{index}]"),
                format!("{shown} is listed twice; keep one"),
            ));
        }
    }
}

fn check_string(schema: &Value, text: &str, path: &str, violations: &mut Vec<Violation>) {
    let length = text.chars().count() as u64;
    if let Some(most) = schema["maxLength"].as_u64().filter(|most| length > *most) {
        violations.push(Violation::new(path, format!("has {length} characters; at most {most} are allowed")));
    }
    if let Some(least) = schema["minLength"].as_u64().filter(|least| length < *least) {
        let message = if length == 0 {
            "is empty; write a value or leave the field out".to_owned()
        } else {
            format!("has {length} characters; at least {least} are needed")
        };
        violations.push(Violation::new(path, message));
    }
    if let Some(allowed) = schema["enum"].as_array() {
        let allowed: Vec<&str> = allowed.iter().filter_map(Value::as_str).collect();
        if !allowed.contains(&text) {
            let what =
                if future::is_value(path, text) { "is not supported yet" } else { "is not known here" };
            violations.push(Violation::new(path, format!("`{text}` {what}; use {}", allowed.join(" or "))));
        }
    }
    if schema["format"] == "date-time" && text.parse::<jiff::Timestamp>().is_err() {
        violations
            .push(Violation::new(path, format!("`{text}` is not a time; write it as 2026-01-31T12:00:00Z")));
    }
}

fn check_integer(schema: &Value, number: &serde_json::Number, path: &str, violations: &mut Vec<Violation>) {
    let highest = if schema["format"] == "int32" { i64::from(i32::MAX) } else { i64::MAX };
    let lowest = schema["minimum"].as_i64().unwrap_or(-highest);
    let highest = schema["maximum"].as_i64().unwrap_or(highest);
    match number.as_i64() {
        Some(whole) if whole < lowest => {
            violations.push(Violation::new(path, format!("is {whole}; use {lowest} or more")));
        }
        Some(whole) if whole > highest => {
            violations.push(Violation::new(path, format!("is {whole}; use at most {highest}")));
        }
        Some(_) => {}
        None => {
            violations.push(Violation::new(path, format!("is {number}; use a whole number up to {highest}")))
        }
    }
}

fn check_rules(kind: Kind, object: &Value, old: Option<&Value>, violations: &mut Vec<Violation>) {
    thread_local! {
        static VALIDATOR: Validator = Validator::new();
    }
    if let Err(errors) = VALIDATOR.with(|validator| validator.validate_compiled(kind.rules(), object, old)) {
        violations.extend(errors.into_vec().into_iter().map(|error| Violation {
            message: match error.kind {
                ErrorKind::ValidationFailure => error.message,
                // A rule that can't be evaluated refuses, as in an API server; it names itself, so that it gets mended.
                _ => format!("the rule `{}` can't be evaluated: {}", error.rule, error.message),
            },
            path: error.field_path,
        }));
    }
}

pub(crate) fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn first_sentence(text: &str) -> &str {
    text.find(". ").map_or(text, |end| &text[..=end])
}

fn name_of_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn with_article(schema_type: &str) -> &str {
    match schema_type {
        "object" => "an object",
        "array" => "a list",
        "string" => "a string",
        "integer" => "a whole number",
        "boolean" => "true or false",
        other => other,
    }
}

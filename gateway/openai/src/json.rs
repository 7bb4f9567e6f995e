//! JSON as strictly as a request deserves: no duplicate keys, no more than 128 levels, nothing after the end.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::error::ApiError;

/// Reads a request's body, which must be one object.
pub(crate) fn object(body: &[u8]) -> Result<Map<String, Value>, ApiError> {
    // serde_json itself stops at 128 levels.
    let mut reader = serde_json::Deserializer::from_slice(body);
    let Unique(value) = Unique::deserialize(&mut reader)
        .and_then(|value| reader.end().map(|()| value))
        .map_err(|error| ApiError::invalid(format!("the body is not JSON that can be read: {error}")))?;
    match value {
        Value::Object(map) => Ok(map),
        other => Err(ApiError::invalid(format!("the body must be a JSON object, not {}", kind(&other)))),
    }
}

/// What a value is, for error messages that don't repeat what a person wrote.
pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// A value in which no object says a key twice: readers disagree about which one counts.
struct Unique(Value);

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(UniqueVisitor).map(Self)
    }
}

struct UniqueVisitor;

impl<'de> Visitor<'de> for UniqueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("a number is out of range"))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E: Error>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut array = Vec::new();
        while let Some(Unique(item)) = items.next_element()? {
            array.push(item);
        }
        Ok(Value::Array(array))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            if map.contains_key(&key) {
                let key: String = key.chars().take(64).collect();
                return Err(A::Error::custom(format!("the key `{key}` is there twice")));
            }
            let Unique(value) = entries.next_value()?;
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_serde_json_reads_is_read_alike() {
        let text = r#"{"b": [1, -2, 3.5, true, null, "ü\n"], "a": {"c": {}}}"#;
        assert_eq!(
            Value::Object(object(text.as_bytes()).unwrap()),
            serde_json::from_str::<Value>(text).unwrap()
        );
    }

    #[test]
    fn hostile_bodies_are_refused() {
        let deep = format!("{{\"a\":{}1{}}}", "[".repeat(10_000), "]".repeat(10_000));
        for (body, expected) in [
            (deep.as_str(), "recursion limit"),
            (r#"{"a": 1, "b": {"c": 1, "c": 2}}"#, "the key `c` is there twice"),
            (r#"{"a": NaN}"#, "can be read"),
            (r#"{"a": 1e999}"#, "out of range"),
            (r#"{"a": 1} {"b": 2}"#, "trailing"),
            ("[1]", "not an array"),
            ("", "EOF"),
            ("{\"a\": \"\\ud800\"}", "can be read"),
        ] {
            let error = format!("{:?}", object(body.as_bytes()).unwrap_err());
            assert!(error.contains(expected), "{expected}: {error}");
        }
        assert!(object(b"{\"a\": \"\xff\"}").is_err(), "not UTF-8");
    }
}

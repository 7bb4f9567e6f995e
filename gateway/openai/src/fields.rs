//! Reads an object field by field; every refusal names the field and what it may hold. `null` is as good as absent.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use crate::error::ApiError;
use crate::json::kind;

pub(crate) struct Fields {
    map: Map<String, Value>,
    /// What comes before the names, such as `stream_options.`.
    path: &'static str,
}

impl Fields {
    pub(crate) fn new(map: Map<String, Value>) -> Self {
        Self { map, path: "" }
    }

    pub(crate) fn take(&mut self, name: &str) -> Option<Value> {
        self.map.remove(name).filter(|value| !value.is_null())
    }

    pub(crate) fn string(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong(name, "a string", &other)),
        }
    }

    pub(crate) fn boolean(&mut self, name: &str) -> Result<Option<bool>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(value)),
            Some(other) => Err(self.wrong(name, "a boolean", &other)),
        }
    }

    pub(crate) fn number(&mut self, name: &str, range: RangeInclusive<f32>) -> Result<Option<f32>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        #[allow(
            clippy::cast_possible_truncation,
            reason = "samplers compute in f32; the range is checked after"
        )]
        let number = value.as_f64().map(|number| number as f32);
        match number.filter(|number| range.contains(number)) {
            Some(number) => Ok(Some(number)),
            None => {
                let expected = format!("a number from {} to {}", range.start(), range.end());
                Err(self.wrong(name, &expected, &value))
            }
        }
    }

    pub(crate) fn count(&mut self, name: &str, range: RangeInclusive<u32>) -> Result<Option<u32>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        match value.as_u64().and_then(|n| u32::try_from(n).ok()).filter(|n| range.contains(n)) {
            Some(number) => Ok(Some(number)),
            None => {
                let expected = format!("a whole number from {} to {}", range.start(), range.end());
                Err(self.wrong(name, &expected, &value))
            }
        }
    }

    pub(crate) fn object(&mut self, name: &str) -> Result<Option<Map<String, Value>>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(map)),
            Some(other) => Err(self.wrong(name, "an object", &other)),
        }
    }

    pub(crate) fn array(&mut self, name: &str) -> Result<Option<Vec<Value>>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Array(items)) => Ok(Some(items)),
            Some(other) => Err(self.wrong(name, "an array", &other)),
        }
    }

    /// The fields of an object in a field.
    pub(crate) fn inner(&mut self, name: &str, path: &'static str) -> Result<Option<Self>, ApiError> {
        Ok(self.object(name)?.map(|map| Self { map, path }))
    }

    /// Refuses a field that would change the answer, and that is not supported.
    pub(crate) fn refuse(&mut self, name: &str, instead: &str) -> Result<(), ApiError> {
        match self.take(name) {
            None => Ok(()),
            Some(_) => Err(self.error(name, format!("`{name}` is not supported yet: {instead}"))),
        }
    }

    pub(crate) fn wrong(&self, name: &str, expected: &str, found: &Value) -> ApiError {
        let found =
            if let Value::Number(number) = found { number.to_string() } else { kind(found).to_owned() };
        self.error(name, format!("`{}{name}` must be {expected}, not {found}", self.path))
    }

    pub(crate) fn error(&self, name: &str, message: String) -> ApiError {
        ApiError::field(format!("{}{name}", self.path), message)
    }
}

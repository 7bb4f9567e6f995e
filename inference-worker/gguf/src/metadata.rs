//! The key–value part of a header, read by key and type.

use std::collections::BTreeMap;

use thiserror::Error;

use crate::value::{Array, StringArray, Value};

/// A file's metadata by key. Keys are unique; their order in the file means nothing.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Metadata {
    values: BTreeMap<String, Value>,
}

/// Why a key could not be read as the type that was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum MetadataError {
    /// The file doesn't have the key.
    #[error("the file has no metadata key `{key}`")]
    Missing {
        /// The key.
        key: String,
    },
    /// The key holds something else.
    #[error("the metadata key `{key}` should hold {wanted}, but holds {found}")]
    WrongKind {
        /// The key.
        key: String,
        /// What was asked for.
        wanted: &'static str,
        /// What is there.
        found: String,
    },
}

impl Metadata {
    /// The value of a key that must be there: `metadata.get::<u32>("llama.block_count")?`.
    ///
    /// Integers of any width are accepted where the value fits, since converters disagree on widths.
    ///
    /// # Errors
    /// When the key is absent, or holds something that isn't a `T`.
    pub fn get<'a, T: FromValue<'a>>(&'a self, key: &str) -> Result<T, MetadataError> {
        self.find(key)?.ok_or_else(|| MetadataError::Missing { key: key.to_owned() })
    }

    /// The value of a key that may be absent.
    ///
    /// # Errors
    /// When the key holds something that isn't a `T`.
    pub fn find<'a, T: FromValue<'a>>(&'a self, key: &str) -> Result<Option<T>, MetadataError> {
        let Some(value) = self.values.get(key) else { return Ok(None) };
        T::from_value(value).map(Some).ok_or_else(|| MetadataError::WrongKind {
            key: key.to_owned(),
            wanted: T::WANTED,
            found: describe(value),
        })
    }

    /// The value as the file types it.
    pub fn value(&self, key: &str) -> Option<&Value> {
        self.values.get(key)
    }

    /// All keys and values, by ascending key.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> {
        self.values.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Whether there are no keys.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Sets a key, and returns what it held before.
    pub fn insert(&mut self, key: impl Into<String>, value: impl Into<Value>) -> Option<Value> {
        self.values.insert(key.into(), value.into())
    }

    pub(crate) fn contains(&self, key: &str) -> bool {
        self.values.contains_key(key)
    }
}

impl<K: Into<String>, V: Into<Value>> FromIterator<(K, V)> for Metadata {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(pairs: I) -> Self {
        Metadata { values: pairs.into_iter().map(|(key, value)| (key.into(), value.into())).collect() }
    }
}

/// The kind, and the value itself where it is short.
fn describe(value: &Value) -> String {
    match value {
        Value::U8(v) => format!("the number {v}"),
        Value::I8(v) => format!("the number {v}"),
        Value::U16(v) => format!("the number {v}"),
        Value::I16(v) => format!("the number {v}"),
        Value::U32(v) => format!("the number {v}"),
        Value::I32(v) => format!("the number {v}"),
        Value::U64(v) => format!("the number {v}"),
        Value::I64(v) => format!("the number {v}"),
        Value::F32(v) => format!("the fraction {v:?}"),
        Value::F64(v) => format!("the fraction {v:?}"),
        Value::Bool(v) => format!("the bool {v}"),
        Value::String(text) if text.len() <= 40 => format!("the string {text:?}"),
        Value::String(text) => format!("a string of {} bytes", text.len()),
        Value::Array(array) => format!("{} of {} elements", value.kind(), array.len()),
    }
}

/// A type that a metadata value can be read as.
pub trait FromValue<'a>: Sized {
    /// What to call it in a message.
    const WANTED: &'static str;
    /// None when the value is of another kind, or out of range.
    fn from_value(value: &'a Value) -> Option<Self>;
}

fn integer(value: &Value) -> Option<i128> {
    Some(match *value {
        Value::U8(v) => v.into(),
        Value::I8(v) => v.into(),
        Value::U16(v) => v.into(),
        Value::I16(v) => v.into(),
        Value::U32(v) => v.into(),
        Value::I32(v) => v.into(),
        Value::U64(v) => v.into(),
        Value::I64(v) => v.into(),
        _ => return None,
    })
}

macro_rules! integers {
    ($($int:ty, $wanted:literal, $many:literal;)*) => {$(
        impl FromValue<'_> for $int {
            const WANTED: &'static str = $wanted;
            fn from_value(value: &Value) -> Option<Self> {
                integer(value)?.try_into().ok()
            }
        }
        impl FromValue<'_> for Vec<$int> {
            const WANTED: &'static str = $many;
            fn from_value(value: &Value) -> Option<Self> {
                fn cast<T: Copy + TryInto<$int>>(values: &[T]) -> Option<Vec<$int>> {
                    values.iter().map(|&v| v.try_into().ok()).collect()
                }
                let Value::Array(array) = value else { return None };
                match array {
                    Array::U8(values) => cast(values),
                    Array::I8(values) => cast(values),
                    Array::U16(values) => cast(values),
                    Array::I16(values) => cast(values),
                    Array::U32(values) => cast(values),
                    Array::I32(values) => cast(values),
                    Array::U64(values) => cast(values),
                    Array::I64(values) => cast(values),
                    _ => None,
                }
            }
        }
    )*};
}
integers! {
    u32, "an integer from 0 to 4294967295", "an array of integers from 0 to 4294967295";
    i32, "an integer of 32 bits", "an array of integers of 32 bits";
    u64, "an integer that is not negative", "an array of integers that are not negative";
    i64, "an integer of 64 bits", "an array of integers of 64 bits";
    usize, "an integer that is not negative", "an array of integers that are not negative";
}

impl FromValue<'_> for f32 {
    const WANTED: &'static str = "a finite number";
    fn from_value(value: &Value) -> Option<Self> {
        let number = match *value {
            Value::F32(v) => v,
            Value::F64(v) => v as f32,
            _ => return None,
        };
        number.is_finite().then_some(number)
    }
}

impl FromValue<'_> for Vec<f32> {
    const WANTED: &'static str = "an array of numbers with a fraction";
    fn from_value(value: &Value) -> Option<Self> {
        match value {
            Value::Array(Array::F32(values)) => Some(values.clone()),
            Value::Array(Array::F64(values)) => Some(values.iter().map(|&v| v as f32).collect()),
            _ => None,
        }
    }
}

impl FromValue<'_> for bool {
    const WANTED: &'static str = "true or false";
    fn from_value(value: &Value) -> Option<Self> {
        match value {
            Value::Bool(v) => Some(*v),
            _ => None,
        }
    }
}

impl<'a> FromValue<'a> for &'a str {
    const WANTED: &'static str = "a string";
    fn from_value(value: &'a Value) -> Option<Self> {
        match value {
            Value::String(text) => Some(text),
            _ => None,
        }
    }
}

impl<'a> FromValue<'a> for &'a StringArray {
    const WANTED: &'static str = "an array of strings";
    fn from_value(value: &'a Value) -> Option<Self> {
        match value {
            Value::Array(Array::String(strings)) => Some(strings),
            _ => None,
        }
    }
}

impl<'a> FromValue<'a> for &'a Array {
    const WANTED: &'static str = "an array";
    fn from_value(value: &'a Value) -> Option<Self> {
        match value {
            Value::Array(array) => Some(array),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Metadata {
        [
            ("small", Value::U8(7)),
            ("wide", Value::U64(1 << 40)),
            ("negative", Value::I32(-1)),
            ("text", Value::from("words")),
            ("long", Value::from("x".repeat(1000))),
            ("nan", Value::F32(f32::NAN)),
            ("list", Value::from(vec![1i16, 2, 3])),
        ]
        .into_iter()
        .collect()
    }

    #[test]
    fn integers_of_any_width_are_read_where_they_fit() {
        let metadata = sample();
        assert_eq!(metadata.get::<u32>("small"), Ok(7));
        assert_eq!(metadata.get::<u64>("wide"), Ok(1 << 40));
        assert_eq!(metadata.get::<i64>("negative"), Ok(-1));
        assert_eq!(metadata.get::<Vec<u32>>("list"), Ok(vec![1, 2, 3]));
        assert!(metadata.get::<u32>("wide").is_err());
        assert!(metadata.get::<u64>("negative").is_err());
    }

    #[test]
    fn an_absent_key_is_an_error_only_where_it_is_required() {
        let metadata = sample();
        assert_eq!(metadata.find::<u32>("absent"), Ok(None));
        assert_eq!(
            metadata.get::<u32>("absent").unwrap_err().to_string(),
            "the file has no metadata key `absent`"
        );
    }

    #[test]
    fn errors_name_the_key_and_say_what_was_found() {
        let metadata = sample();
        let message = |error: MetadataError| error.to_string();
        assert_eq!(
            message(metadata.find::<u32>("text").unwrap_err()),
            "the metadata key `text` should hold an integer from 0 to 4294967295, but holds the string \"words\""
        );
        assert_eq!(
            message(metadata.get::<bool>("long").unwrap_err()),
            "the metadata key `long` should hold true or false, but holds a string of 1000 bytes"
        );
        assert_eq!(
            message(metadata.get::<&str>("list").unwrap_err()),
            "the metadata key `list` should hold a string, but holds an array of i16 of 3 elements"
        );
        assert_eq!(
            message(metadata.get::<f32>("nan").unwrap_err()),
            "the metadata key `nan` should hold a finite number, but holds the fraction NaN"
        );
    }
}

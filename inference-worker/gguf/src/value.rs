//! Metadata values as the file types them.

use crate::cursor::Cursor;
use crate::error::GgufError;

/// One metadata value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Unsigned byte.
    U8(u8),
    /// Signed byte.
    I8(i8),
    /// 16 bits, unsigned.
    U16(u16),
    /// 16 bits, signed.
    I16(i16),
    /// 32 bits, unsigned.
    U32(u32),
    /// 32 bits, signed.
    I32(i32),
    /// Single precision.
    F32(f32),
    /// True or false.
    Bool(bool),
    /// UTF-8 text.
    String(String),
    /// A list of values of one type.
    Array(Array),
    /// 64 bits, unsigned.
    U64(u64),
    /// 64 bits, signed.
    I64(i64),
    /// Double precision.
    F64(f64),
}

/// A list of metadata values of one type. Lists of lists don't exist.
#[derive(Debug, Clone, PartialEq)]
pub enum Array {
    /// Unsigned bytes.
    U8(Vec<u8>),
    /// Signed bytes.
    I8(Vec<i8>),
    /// 16 bits, unsigned.
    U16(Vec<u16>),
    /// 16 bits, signed.
    I16(Vec<i16>),
    /// 32 bits, unsigned.
    U32(Vec<u32>),
    /// 32 bits, signed.
    I32(Vec<i32>),
    /// Single precision.
    F32(Vec<f32>),
    /// True or false.
    Bool(Vec<bool>),
    /// UTF-8 texts.
    String(StringArray),
    /// 64 bits, unsigned.
    U64(Vec<u64>),
    /// 64 bits, signed.
    I64(Vec<i64>),
    /// Double precision.
    F64(Vec<f64>),
}

/// Many strings in one allocation: a vocabulary has some 160,000 of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StringArray {
    text: String,
    /// Where each string ends in `text`; it starts where the one before ends.
    ends: Vec<usize>,
}

impl StringArray {
    /// How many strings there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The string at `index`.
    pub fn get(&self, index: usize) -> Option<&str> {
        let end = *self.ends.get(index)?;
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        Some(&self.text[start..end])
    }

    /// All strings in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &str> {
        (0..self.len()).map(|index| self.get(index).expect("index is below len"))
    }

    /// Adds a string at the end.
    pub fn push(&mut self, string: &str) {
        self.text.push_str(string);
        self.ends.push(self.text.len());
    }
}

impl<S: AsRef<str>> FromIterator<S> for StringArray {
    fn from_iter<I: IntoIterator<Item = S>>(strings: I) -> Self {
        let mut array = StringArray::default();
        strings.into_iter().for_each(|string| array.push(string.as_ref()));
        array
    }
}

/// The ids of value types in files.
pub(crate) mod id {
    pub(crate) const U8: u32 = 0;
    pub(crate) const I8: u32 = 1;
    pub(crate) const U16: u32 = 2;
    pub(crate) const I16: u32 = 3;
    pub(crate) const U32: u32 = 4;
    pub(crate) const I32: u32 = 5;
    pub(crate) const F32: u32 = 6;
    pub(crate) const BOOL: u32 = 7;
    pub(crate) const STRING: u32 = 8;
    pub(crate) const ARRAY: u32 = 9;
    pub(crate) const U64: u32 = 10;
    pub(crate) const I64: u32 = 11;
    pub(crate) const F64: u32 = 12;
}

/// What a string in an array takes at least: its length.
const LEAST_STRING_BYTES: u64 = 8;

impl Value {
    /// What to call this kind of value in a message.
    pub const fn kind(&self) -> &'static str {
        match self {
            Value::U8(_) => "a u8",
            Value::I8(_) => "an i8",
            Value::U16(_) => "a u16",
            Value::I16(_) => "an i16",
            Value::U32(_) => "a u32",
            Value::I32(_) => "an i32",
            Value::F32(_) => "an f32",
            Value::Bool(_) => "a bool",
            Value::String(_) => "a string",
            Value::U64(_) => "a u64",
            Value::I64(_) => "an i64",
            Value::F64(_) => "an f64",
            Value::Array(array) => array.kind(),
        }
    }

    pub(crate) fn read(cursor: &mut Cursor<'_>, key: &str) -> Result<Value, GgufError> {
        const WHAT: &str = "a metadata value";
        let type_id = cursor.u32("a value's type")?;
        Ok(match type_id {
            id::U8 => Value::U8(u8::from_le_bytes(cursor.array(WHAT)?)),
            id::I8 => Value::I8(i8::from_le_bytes(cursor.array(WHAT)?)),
            id::U16 => Value::U16(u16::from_le_bytes(cursor.array(WHAT)?)),
            id::I16 => Value::I16(i16::from_le_bytes(cursor.array(WHAT)?)),
            id::U32 => Value::U32(u32::from_le_bytes(cursor.array(WHAT)?)),
            id::I32 => Value::I32(i32::from_le_bytes(cursor.array(WHAT)?)),
            id::F32 => Value::F32(f32::from_le_bytes(cursor.array(WHAT)?)),
            id::BOOL => Value::Bool(read_bool(cursor.array::<1>(WHAT)?[0], key)?),
            id::STRING => Value::String(cursor.string("a metadata string")?.to_owned()),
            id::ARRAY => Value::Array(Array::read(cursor, key)?),
            id::U64 => Value::U64(u64::from_le_bytes(cursor.array(WHAT)?)),
            id::I64 => Value::I64(i64::from_le_bytes(cursor.array(WHAT)?)),
            id::F64 => Value::F64(f64::from_le_bytes(cursor.array(WHAT)?)),
            id => return Err(GgufError::UnknownValueType { key: key.to_owned(), id }),
        })
    }
}

impl Array {
    /// How many values there are.
    pub fn len(&self) -> usize {
        match self {
            Array::U8(values) => values.len(),
            Array::I8(values) => values.len(),
            Array::U16(values) => values.len(),
            Array::I16(values) => values.len(),
            Array::U32(values) => values.len(),
            Array::I32(values) => values.len(),
            Array::F32(values) => values.len(),
            Array::Bool(values) => values.len(),
            Array::String(values) => values.len(),
            Array::U64(values) => values.len(),
            Array::I64(values) => values.len(),
            Array::F64(values) => values.len(),
        }
    }

    /// Whether there are no values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    const fn kind(&self) -> &'static str {
        match self {
            Array::U8(_) => "an array of u8",
            Array::I8(_) => "an array of i8",
            Array::U16(_) => "an array of u16",
            Array::I16(_) => "an array of i16",
            Array::U32(_) => "an array of u32",
            Array::I32(_) => "an array of i32",
            Array::F32(_) => "an array of f32",
            Array::Bool(_) => "an array of bool",
            Array::String(_) => "an array of strings",
            Array::U64(_) => "an array of u64",
            Array::I64(_) => "an array of i64",
            Array::F64(_) => "an array of f64",
        }
    }

    fn read(cursor: &mut Cursor<'_>, key: &str) -> Result<Array, GgufError> {
        let type_id = cursor.u32("an array's element type")?;
        let count = cursor.u64("an array's length")?;
        Ok(match type_id {
            id::U8 => Array::U8(numbers(cursor, count, u8::from_le_bytes)?),
            id::I8 => Array::I8(numbers(cursor, count, i8::from_le_bytes)?),
            id::U16 => Array::U16(numbers(cursor, count, u16::from_le_bytes)?),
            id::I16 => Array::I16(numbers(cursor, count, i16::from_le_bytes)?),
            id::U32 => Array::U32(numbers(cursor, count, u32::from_le_bytes)?),
            id::I32 => Array::I32(numbers(cursor, count, i32::from_le_bytes)?),
            id::F32 => Array::F32(numbers(cursor, count, f32::from_le_bytes)?),
            id::BOOL => Array::Bool(
                cursor
                    .take(count, ARRAY)?
                    .iter()
                    .map(|&byte| read_bool(byte, key))
                    .collect::<Result<_, _>>()?,
            ),
            id::STRING => Array::String(strings(cursor, count)?),
            id::ARRAY => return Err(GgufError::NestedArray { key: key.to_owned() }),
            id::U64 => Array::U64(numbers(cursor, count, u64::from_le_bytes)?),
            id::I64 => Array::I64(numbers(cursor, count, i64::from_le_bytes)?),
            id::F64 => Array::F64(numbers(cursor, count, f64::from_le_bytes)?),
            id => return Err(GgufError::UnknownValueType { key: key.to_owned(), id }),
        })
    }
}

const ARRAY: &str = "a metadata array";

/// The prefix must hold all of the array before anything is allocated for it.
fn numbers<T, const N: usize>(
    cursor: &mut Cursor<'_>,
    count: u64,
    decode: fn([u8; N]) -> T,
) -> Result<Vec<T>, GgufError> {
    let bytes = cursor.take(count.saturating_mul(N as u64), ARRAY)?;
    Ok(bytes.as_chunks::<N>().0.iter().map(|chunk| decode(*chunk)).collect())
}

fn strings(cursor: &mut Cursor<'_>, count: u64) -> Result<StringArray, GgufError> {
    let limit = cursor.left_in_file() / LEAST_STRING_BYTES;
    if count > limit {
        return Err(GgufError::TooMany { what: "strings in an array", count, limit });
    }
    // What the prefix can hold bounds the allocation; growth beyond it ends in `Incomplete`.
    let expected = count.min(cursor.left_in_prefix() as u64 / LEAST_STRING_BYTES);
    let mut array = StringArray { text: String::new(), ends: Vec::with_capacity(expected as usize) };
    for _ in 0..count {
        array.push(cursor.string("a string in a metadata array")?);
    }
    array.text.shrink_to_fit();
    Ok(array)
}

fn read_bool(byte: u8, key: &str) -> Result<bool, GgufError> {
    match byte {
        0 => Ok(false),
        1 => Ok(true),
        found => Err(GgufError::BadBool { key: key.to_owned(), found }),
    }
}

macro_rules! from_native {
    ($($native:ty => $variant:ident),* $(,)?) => {$(
        impl From<$native> for Value {
            fn from(value: $native) -> Value {
                Value::$variant(value)
            }
        }
        impl From<Vec<$native>> for Value {
            fn from(values: Vec<$native>) -> Value {
                Value::Array(Array::$variant(values))
            }
        }
    )*};
}
from_native! {
    u8 => U8, i8 => I8, u16 => U16, i16 => I16, u32 => U32, i32 => I32, f32 => F32, bool => Bool,
    u64 => U64, i64 => I64, f64 => F64,
}

impl From<&str> for Value {
    fn from(value: &str) -> Value {
        Value::String(value.to_owned())
    }
}

impl From<String> for Value {
    fn from(value: String) -> Value {
        Value::String(value)
    }
}

impl From<StringArray> for Value {
    fn from(values: StringArray) -> Value {
        Value::Array(Array::String(values))
    }
}

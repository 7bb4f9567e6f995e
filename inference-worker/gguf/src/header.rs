//! Reads a whole header and checks every place that it points to.

use std::collections::HashSet;

use crate::cursor::Cursor;
use crate::error::GgufError;
use crate::metadata::Metadata;
use crate::tensor::{RawTensor, TensorInfo};
use crate::value::Value;
use crate::{DEFAULT_ALIGNMENT, MAGIC};

/// The largest header that is read. Kimi's, with 163,840 tokens and their merges, is some 10 MB.
pub const MAX_HEADER_BYTES: u64 = 256 << 20;
/// The most metadata keys that one file may have. Real ones have about a hundred.
pub const MAX_METADATA: u64 = 1 << 16;
/// The most tensors that one file may have. Kimi K2 has 1,096.
pub const MAX_TENSORS: u64 = 1 << 17;

/// The longest metadata key, as the format says.
const MAX_KEY_BYTES: u64 = (1 << 16) - 1;
/// The least bytes of a metadata entry: key length, one byte of key, type, one byte of value.
const LEAST_ENTRY_BYTES: u64 = 8 + 1 + 4 + 1;
const ALIGNMENTS: std::ops::RangeInclusive<u32> = 8..=1 << 20;

/// What one file says about itself, checked: every tensor lies inside the file, aligned, and shares no byte
/// with another.
#[derive(Debug, Clone, PartialEq)]
pub struct Header {
    /// The format's version, 2 or 3.
    pub version: u32,
    /// Tensors start at multiples of this many bytes from `data_offset`, which is one too.
    pub alignment: u64,
    /// Everything but the tensors.
    pub metadata: Metadata,
    /// In the file's order.
    pub tensors: Vec<TensorInfo>,
    /// Where the tensor data starts in the file. May lie past the end of a file without tensors.
    pub data_offset: u64,
    /// The length of the file that the header was checked against.
    pub file_len: u64,
}

impl Header {
    /// Reads the header from the first bytes of a file that is `file_len` bytes long.
    ///
    /// # Errors
    /// [`GgufError::Incomplete`] when the prefix is too short to tell; anything else is the file's fault, and
    /// more bytes won't help.
    pub fn parse(prefix: &[u8], file_len: u64) -> Result<Header, GgufError> {
        let mut cursor = Cursor::new(prefix, file_len);
        let found = cursor.array::<4>("the magic number")?;
        if found != MAGIC {
            return Err(GgufError::WrongMagic { found });
        }
        let version = cursor.u32("the version")?;
        match version {
            2 | 3 => {}
            _ if (1..=0xffff).contains(&version.swap_bytes()) && version > 0xffff => {
                return Err(GgufError::BigEndian);
            }
            _ => return Err(GgufError::UnsupportedVersion { version }),
        }
        let tensor_count = cursor.u64("the tensor count")?;
        let metadata_count = cursor.u64("the metadata count")?;
        bounded("metadata keys", metadata_count, MAX_METADATA, cursor.left_in_file() / LEAST_ENTRY_BYTES)?;
        bounded("tensors", tensor_count, MAX_TENSORS, cursor.left_in_file() / RawTensor::LEAST_BYTES)?;

        let metadata = read_metadata(&mut cursor, metadata_count)?;
        let alignment = alignment(&metadata)?;
        let raw = read_tensors(&mut cursor, tensor_count)?;
        let data_offset = cursor.at().next_multiple_of(alignment);
        let tensors = place(raw, alignment, data_offset, file_len)?;
        Ok(Header { version, alignment, metadata, tensors, data_offset, file_len })
    }

    /// The tensor of this name, by a walk over all; a [`ShardSet`](crate::ShardSet) has an index.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.iter().find(|tensor| tensor.name == name)
    }
}

fn bounded(what: &'static str, count: u64, most: u64, could_hold: u64) -> Result<(), GgufError> {
    let limit = most.min(could_hold);
    if count > limit { Err(GgufError::TooMany { what, count, limit }) } else { Ok(()) }
}

fn read_metadata(cursor: &mut Cursor<'_>, count: u64) -> Result<Metadata, GgufError> {
    let mut metadata = Metadata::default();
    for _ in 0..count {
        let key = cursor.name(MAX_KEY_BYTES, "a metadata key")?;
        if metadata.contains(key) {
            return Err(GgufError::DuplicateKey { key: key.to_owned() });
        }
        let value = Value::read(cursor, key)?;
        metadata.insert(key, value);
    }
    Ok(metadata)
}

fn alignment(metadata: &Metadata) -> Result<u64, GgufError> {
    match metadata.value("general.alignment") {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(Value::U32(found)) if found.is_power_of_two() && ALIGNMENTS.contains(found) => {
            Ok((*found).into())
        }
        Some(Value::U32(found)) => Err(GgufError::BadAlignment { found: found.to_string() }),
        Some(other) => Err(GgufError::BadAlignment { found: other.kind().to_owned() }),
    }
}

fn read_tensors(cursor: &mut Cursor<'_>, count: u64) -> Result<Vec<RawTensor>, GgufError> {
    let expected = count.min(cursor.left_in_prefix() as u64 / RawTensor::LEAST_BYTES);
    let mut tensors: Vec<RawTensor> = Vec::with_capacity(expected as usize);
    for _ in 0..count {
        tensors.push(RawTensor::read(cursor)?);
    }
    Ok(tensors)
}

/// Turns the header's claims into places in the file, or says which claim is impossible.
fn place(
    raw: Vec<RawTensor>,
    alignment: u64,
    data_offset: u64,
    file_len: u64,
) -> Result<Vec<TensorInfo>, GgufError> {
    let mut names = HashSet::with_capacity(raw.len());
    if let Some(twice) = raw.iter().find(|tensor| !names.insert(tensor.name.as_str())) {
        return Err(GgufError::DuplicateTensor { name: twice.name.clone() });
    }
    let tensors = raw
        .into_iter()
        .map(|tensor| {
            let RawTensor { name, dims, rank, ty, relative_offset, bytes } = tensor;
            if !relative_offset.is_multiple_of(alignment) {
                return Err(GgufError::Misaligned { name, offset: relative_offset, alignment });
            }
            let offset = data_offset.checked_add(relative_offset);
            let end = offset.and_then(|offset| offset.checked_add(bytes));
            match (offset, end) {
                (Some(offset), Some(end)) if end <= file_len => {
                    Ok(TensorInfo { name, dims, rank, ty, offset, bytes })
                }
                _ => Err(GgufError::TensorPastEnd { name, offset: relative_offset, bytes, file_len }),
            }
        })
        .collect::<Result<Vec<_>, _>>()?;

    let mut by_offset: Vec<&TensorInfo> = tensors.iter().collect();
    by_offset.sort_unstable_by_key(|tensor| (tensor.offset, tensor.bytes));
    if let Some(pair) = by_offset.windows(2).find(|pair| pair[0].range().end > pair[1].offset) {
        return Err(GgufError::Overlap { first: pair[0].name.clone(), second: pair[1].name.clone() });
    }
    Ok(tensors)
}

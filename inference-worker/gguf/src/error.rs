//! What can be wrong with a file's header.

use thiserror::Error;

use crate::ggml_type::RowError;

/// Why a header could not be read.
///
/// [`Incomplete`](GgufError::Incomplete) is the only one that more bytes of the same file can cure.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum GgufError {
    /// The prefix ended before the header did; nothing wrong has been seen so far.
    #[error("the header goes on: at least the first {needed} bytes of the file are needed")]
    Incomplete {
        /// The least prefix that can bring the next step. A header may need several steps: ask for twice as
        /// much as last time, or this, whichever is more. Never above
        /// [`MAX_HEADER_BYTES`](crate::MAX_HEADER_BYTES), nor the file's length.
        needed: u64,
    },
    /// Not a GGUF file.
    #[error("this is not a GGUF file: it starts with {found:02x?} instead of \"GGUF\"")]
    WrongMagic {
        /// The first four bytes.
        found: [u8; 4],
    },
    /// Written for a big-endian machine.
    #[error("this GGUF file is big-endian; convert it to little-endian")]
    BigEndian,
    /// A version of the format that is too old or too new.
    #[error("GGUF version {version} is not supported; convert the file to version 3 (2 is read too)")]
    UnsupportedVersion {
        /// The version that the file claims.
        version: u32,
    },
    /// Something claims to extend past the file's end.
    #[error(
        "{what} at byte {at} would take {wanted} bytes, but the file ends at {file_len}: it is truncated or corrupt"
    )]
    PastEnd {
        /// What was being read.
        what: &'static str,
        /// Where it starts.
        at: u64,
        /// How long it claims to be; `u64::MAX` when the length doesn't fit in 64 bits.
        wanted: u64,
        /// The file's length.
        file_len: u64,
    },
    /// The header is larger than any real one.
    #[error("{what} at byte {at} would make the header larger than {limit} bytes")]
    HeaderTooLarge {
        /// What was being read.
        what: &'static str,
        /// Where it starts.
        at: u64,
        /// The largest header that is read.
        limit: u64,
    },
    /// A count is larger than any real one, or than the file could hold.
    #[error("the file claims {count} {what}, more than the {limit} that it could hold")]
    TooMany {
        /// What is counted.
        what: &'static str,
        /// The claim.
        count: u64,
        /// The most that is accepted from a file of this size.
        limit: u64,
    },
    /// Text that is not UTF-8.
    #[error("{what} at byte {at} is not UTF-8")]
    NotUtf8 {
        /// What was being read.
        what: &'static str,
        /// Where its first byte is.
        at: u64,
    },
    /// A key or a name of a length that the format forbids.
    #[error("{what} at byte {at} is {len} bytes long; it must be 1 to {limit}")]
    BadNameLength {
        /// What was being read.
        what: &'static str,
        /// Where its first byte is.
        at: u64,
        /// Its length.
        len: u64,
        /// The longest that is accepted.
        limit: u64,
    },
    /// A metadata value of an unknown type.
    #[error("the value of `{key}` has the unknown type id {id}")]
    UnknownValueType {
        /// The key.
        key: String,
        /// The type's id.
        id: u32,
    },
    /// An array of arrays, which no reader of the format accepts.
    #[error("the value of `{key}` is an array of arrays, which is not supported")]
    NestedArray {
        /// The key.
        key: String,
    },
    /// A boolean that is neither 0 nor 1.
    #[error("`{key}` holds the boolean {found}; it must be 0 or 1")]
    BadBool {
        /// The key.
        key: String,
        /// The byte.
        found: u8,
    },
    /// A key that occurs twice.
    #[error("the metadata key `{key}` occurs twice")]
    DuplicateKey {
        /// The key.
        key: String,
    },
    /// `general.alignment` is not usable.
    #[error("`general.alignment` is {found}; it must be a power of two from 8 to 1048576, as a u32")]
    BadAlignment {
        /// What the file says.
        found: String,
    },
    /// A tensor's name that occurs twice.
    #[error("the tensor name `{name}` occurs twice")]
    DuplicateTensor {
        /// The name.
        name: String,
    },
    /// A tensor with no or too many dimensions.
    #[error("the tensor `{name}` has {rank} dimensions; it must have 1 to 4")]
    BadRank {
        /// The tensor.
        name: String,
        /// How many dimensions it claims.
        rank: u32,
    },
    /// A tensor with a dimension of zero.
    #[error("dimension {axis} of the tensor `{name}` is zero")]
    ZeroDimension {
        /// The tensor.
        name: String,
        /// Which dimension, from 0.
        axis: usize,
    },
    /// A tensor of a type that nobody knows, so that not even its size is known.
    #[error("the tensor `{name}` has the unknown element type id {id}")]
    UnknownElementType {
        /// The tensor.
        name: String,
        /// The type's id.
        id: u32,
    },
    /// A tensor of a type that was withdrawn from the format.
    #[error(
        "the tensor `{name}` has the element type {ty}, which was withdrawn from the format; quantise the model again"
    )]
    WithdrawnElementType {
        /// The tensor.
        name: String,
        /// The type's old name.
        ty: &'static str,
    },
    /// A tensor whose rows are not whole blocks.
    #[error("the rows of the tensor `{name}` don't fit its element type")]
    PartialRow {
        /// The tensor.
        name: String,
        /// How.
        source: RowError,
    },
    /// A tensor whose size doesn't fit in 64 bits.
    #[error("the size of the tensor `{name}` does not fit in 64 bits")]
    TensorTooLarge {
        /// The tensor.
        name: String,
    },
    /// A tensor that doesn't start at a multiple of the alignment.
    #[error("the tensor `{name}` starts at {offset}, which is not a multiple of the alignment {alignment}")]
    Misaligned {
        /// The tensor.
        name: String,
        /// Its offset from the start of the tensor data.
        offset: u64,
        /// The file's alignment.
        alignment: u64,
    },
    /// A tensor that leaves the file.
    #[error(
        "the tensor `{name}` takes {bytes} bytes at offset {offset} of the tensor data, which leaves the file of {file_len} bytes: \
         it is truncated or corrupt"
    )]
    TensorPastEnd {
        /// The tensor.
        name: String,
        /// Its offset from the start of the tensor data.
        offset: u64,
        /// Its size.
        bytes: u64,
        /// The file's length.
        file_len: u64,
    },
    /// Two tensors that share bytes.
    #[error("the tensors `{first}` and `{second}` overlap")]
    Overlap {
        /// The one that starts first.
        first: String,
        /// The one that starts before the first has ended.
        second: String,
    },
}

//! Where a tensor lies and what shape it has.

use std::num::TryFromIntError;
use std::ops::Range;

use crate::cursor::Cursor;
use crate::error::GgufError;
use crate::ggml_type::{GgmlType, RowError};

/// The longest tensor name, as the format says.
pub(crate) const MAX_NAME_BYTES: u64 = 64;
const MAX_RANK: usize = 4;

/// One tensor of a file. From [`Header::parse`](crate::Header::parse) it is known to lie inside the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Unique in the model.
    pub name: String,
    /// Sizes in ggml's order, the contiguous one first; 1 where the tensor has fewer dimensions. A matrix
    /// that maps `n` inputs to `m` outputs is `[n, m, 1, 1]`: `m` rows of `n`.
    pub dims: [u64; MAX_RANK],
    /// How many of `dims` the file states, 1 to 4.
    pub rank: usize,
    /// The type of the elements.
    pub ty: GgmlType,
    /// The first byte, counted from the start of the **file**.
    pub offset: u64,
    /// The size in bytes.
    pub bytes: u64,
}

impl TensorInfo {
    /// The stated dimensions, without the padding ones.
    pub fn shape(&self) -> &[u64] {
        &self.dims[..self.rank]
    }

    /// The length of a row: the first dimension.
    pub fn row_len(&self) -> u64 {
        self.dims[0]
    }

    /// How many rows there are over all other dimensions.
    pub fn rows(&self) -> u64 {
        self.dims[1..].iter().product()
    }

    /// Bytes of one row.
    pub fn row_bytes(&self) -> u64 {
        self.bytes / self.rows()
    }

    /// All elements.
    pub fn elements(&self) -> u64 {
        self.dims.iter().product()
    }

    /// The bytes of the file that the tensor takes.
    pub fn range(&self) -> Range<u64> {
        self.offset..self.offset + self.bytes
    }

    /// The same, to index a file that is in memory as a whole.
    ///
    /// # Errors
    /// When the machine's addresses are too short for the file.
    pub fn range_in_memory(&self) -> Result<Range<usize>, TryFromIntError> {
        let range = self.range();
        Ok(range.start.try_into()?..range.end.try_into()?)
    }
}

/// A tensor as the header states it: its place is relative to the tensor data, and unchecked.
pub(crate) struct RawTensor {
    pub(crate) name: String,
    pub(crate) dims: [u64; MAX_RANK],
    pub(crate) rank: usize,
    pub(crate) ty: GgmlType,
    pub(crate) relative_offset: u64,
    pub(crate) bytes: u64,
}

impl RawTensor {
    /// The least bytes of a tensor's entry: name length, one byte of name, rank, one dimension, type, offset.
    pub(crate) const LEAST_BYTES: u64 = 8 + 1 + 4 + 8 + 4 + 8;

    pub(crate) fn read(cursor: &mut Cursor<'_>) -> Result<RawTensor, GgufError> {
        let name = cursor.name(MAX_NAME_BYTES, "a tensor's name")?.to_owned();
        let rank = cursor.u32("a tensor's rank")?;
        if rank == 0 || rank as usize > MAX_RANK {
            return Err(GgufError::BadRank { name, rank });
        }
        let rank = rank as usize;
        let mut dims = [1; MAX_RANK];
        for (axis, dim) in dims[..rank].iter_mut().enumerate() {
            *dim = cursor.u64("a tensor's dimension")?;
            if *dim == 0 {
                return Err(GgufError::ZeroDimension { name, axis });
            }
        }
        let id = cursor.u32("a tensor's type")?;
        let Some(ty) = GgmlType::from_id(id) else {
            return Err(match GgmlType::withdrawn(id) {
                Some(ty) => GgufError::WithdrawnElementType { name, ty },
                None => GgufError::UnknownElementType { name, id },
            });
        };
        let relative_offset = cursor.u64("a tensor's offset")?;
        let bytes = size(&name, dims, ty)?;
        Ok(RawTensor { name, dims, rank, ty, relative_offset, bytes })
    }
}

/// The bytes of a tensor; both they and the number of elements fit in 64 bits.
pub(crate) fn size(name: &str, dims: [u64; MAX_RANK], ty: GgmlType) -> Result<u64, GgufError> {
    let too_large = || GgufError::TensorTooLarge { name: name.to_owned() };
    dims.iter().try_fold(1u64, |product, &dim| product.checked_mul(dim)).ok_or_else(too_large)?;
    let row = ty.row_bytes(dims[0]).map_err(|source| match source {
        RowError::PartialBlock { .. } => GgufError::PartialRow { name: name.to_owned(), source },
        RowError::TooLong { .. } => too_large(),
    })?;
    dims[1..].iter().try_fold(row, |product, &dim| product.checked_mul(dim)).ok_or_else(too_large)
}

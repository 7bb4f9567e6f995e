//! Weights as they lie in a file: typed, shaped views over borrowed bytes.

use std::ops::Range;

/// A block format these kernels compute with. Layouts are ggml's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum WeightType {
    /// 4 bytes a weight.
    F32,
    /// IEEE half, 2 bytes a weight.
    F16,
    /// The upper half of an f32, 2 bytes a weight.
    Bf16,
    /// 32 int8 and an f16 scale, 34 bytes.
    Q8_0,
    /// 32 four-bit quants and an f16 scale, 18 bytes.
    Q4_0,
    /// 256 four-bit quants in 8 sub-blocks with six-bit scales and minima, 144 bytes.
    Q4K,
    /// 256 six-bit quants in 16 sub-blocks with int8 scales, 210 bytes.
    Q6K,
}

/// A ggml type these kernels have no arithmetic for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "tensors of type {name} (ggml type {id}) cannot be computed; use a file whose tensors are F32, F16, BF16, Q8_0, \
     Q4_0, Q4_K or Q6_K"
)]
pub struct UnsupportedType {
    /// ggml's number of the type.
    pub id: u32,
    /// Its usual name, or `unknown`.
    pub name: &'static str,
}

impl WeightType {
    /// Every type, in the order of the enum.
    pub const ALL: [WeightType; 7] =
        [Self::F32, Self::F16, Self::Bf16, Self::Q8_0, Self::Q4_0, Self::Q4K, Self::Q6K];

    /// From ggml's number of a tensor type, as a GGUF file holds it.
    pub fn from_ggml(id: u32) -> Result<Self, UnsupportedType> {
        Self::ALL.into_iter().find(|ty| ty.ggml_id() == id).ok_or(UnsupportedType { id, name: ggml_name(id) })
    }

    /// ggml's number of this type.
    pub fn ggml_id(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q8_0 => 8,
            Self::Q4K => 12,
            Self::Q6K => 14,
            Self::Bf16 => 30,
        }
    }

    /// ggml's name of this type.
    pub fn name(self) -> &'static str {
        ggml_name(self.ggml_id())
    }

    /// Weights in one block; a row is a whole number of blocks.
    pub fn block_len(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 1,
            Self::Q8_0 | Self::Q4_0 => 32,
            Self::Q4K | Self::Q6K => 256,
        }
    }

    /// Bytes of one block.
    pub fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Q8_0 => 34,
            Self::Q4_0 => 18,
            Self::Q4K => 144,
            Self::Q6K => 210,
        }
    }

    /// Bytes of a row of `cols` weights, or why there is no such row.
    pub fn row_bytes(self, cols: usize) -> Result<usize, ShapeError> {
        if !cols.is_multiple_of(self.block_len()) {
            return Err(ShapeError::PartialBlock { ty: self.name(), cols, block: self.block_len() });
        }
        (cols / self.block_len()).checked_mul(self.block_bytes()).ok_or(ShapeError::TooLarge)
    }
}

fn ggml_name(id: u32) -> &'static str {
    match id {
        0 => "F32",
        1 => "F16",
        2 => "Q4_0",
        3 => "Q4_1",
        6 => "Q5_0",
        7 => "Q5_1",
        8 => "Q8_0",
        9 => "Q8_1",
        10 => "Q2_K",
        11 => "Q3_K",
        12 => "Q4_K",
        13 => "Q5_K",
        14 => "Q6_K",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        30 => "BF16",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        40 => "NVFP4",
        _ => "unknown",
    }
}

/// Why bytes and a shape do not make a matrix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ShapeError {
    /// A row would end inside a block.
    #[error("a row of {cols} weights is not a whole number of {ty} blocks of {block}")]
    PartialBlock {
        /// The type's name.
        ty: &'static str,
        /// Weights in a row.
        cols: usize,
        /// Weights in a block.
        block: usize,
    },
    /// The size does not fit the address space.
    #[error("the shape multiplies to more bytes than this machine can address")]
    TooLarge,
    /// The data is longer or shorter than the shape says.
    #[error("{rows} rows of {cols} {ty} weights take {expected} bytes, but there are {actual}")]
    WrongSize {
        /// The type's name.
        ty: &'static str,
        /// Rows, over all matrices of a stack.
        rows: usize,
        /// Weights in a row.
        cols: usize,
        /// Bytes that the shape takes.
        expected: usize,
        /// Bytes given.
        actual: usize,
    },
}

/// `rows × cols` weights, row after row; in ggml's order of dimensions, `{cols, rows}`.
#[derive(Debug, Clone, Copy)]
pub struct WeightMatrix<'a> {
    ty: WeightType,
    rows: usize,
    cols: usize,
    row_bytes: usize,
    data: &'a [u8],
}

impl<'a> WeightMatrix<'a> {
    /// Views `data` as a matrix; its length must be exactly the shape's.
    pub fn new(ty: WeightType, rows: usize, cols: usize, data: &'a [u8]) -> Result<Self, ShapeError> {
        let row_bytes = ty.row_bytes(cols)?;
        let expected = rows.checked_mul(row_bytes).ok_or(ShapeError::TooLarge)?;
        if data.len() != expected {
            return Err(ShapeError::WrongSize { ty: ty.name(), rows, cols, expected, actual: data.len() });
        }
        Ok(Self { ty, rows, cols, row_bytes, data })
    }

    /// The block format.
    pub fn ty(&self) -> WeightType {
        self.ty
    }

    /// Rows: what a product with it has.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Weights in a row: what a vector it multiplies has.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The bytes of one row. Panics when `row` is out of range.
    pub fn row(&self, row: usize) -> &'a [u8] {
        &self.data[row * self.row_bytes..][..self.row_bytes]
    }

    /// Some of its rows as a matrix of their own. Panics when the range is not inside.
    pub fn row_range(&self, rows: Range<usize>) -> WeightMatrix<'a> {
        assert!(rows.start <= rows.end && rows.end <= self.rows, "rows {rows:?} of {}", self.rows);
        let data = &self.data[rows.start * self.row_bytes..rows.end * self.row_bytes];
        WeightMatrix { rows: rows.len(), data, ..*self }
    }
}

/// `count` matrices of one shape and type, one after the other: experts, or heads. In ggml's order of dimensions,
/// `{cols, rows, count}`.
#[derive(Debug, Clone, Copy)]
pub struct WeightStack<'a> {
    all: WeightMatrix<'a>,
    count: usize,
    /// Rows of one matrix as stored, and those of them that this view shows.
    stored_rows: usize,
    shown: (usize, usize),
}

impl<'a> WeightStack<'a> {
    /// Views `data` as a stack; its length must be exactly the shape's.
    pub fn new(
        ty: WeightType,
        count: usize,
        rows: usize,
        cols: usize,
        data: &'a [u8],
    ) -> Result<Self, ShapeError> {
        let all_rows = count.checked_mul(rows).ok_or(ShapeError::TooLarge)?;
        let all = WeightMatrix::new(ty, all_rows, cols, data)?;
        Ok(Self { all, count, stored_rows: rows, shown: (0, rows) })
    }

    /// The same stack showing only some rows of each matrix: the gate half or the up half of a fused tensor. Panics
    /// when the range is not inside.
    pub fn row_range(&self, rows: Range<usize>) -> WeightStack<'a> {
        assert!(rows.start <= rows.end && rows.end <= self.rows(), "rows {rows:?} of {}", self.rows());
        WeightStack { shown: (self.shown.0 + rows.start, self.shown.0 + rows.end), ..*self }
    }

    /// The block format.
    pub fn ty(&self) -> WeightType {
        self.all.ty
    }

    /// Matrices in the stack.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Rows of each matrix.
    pub fn rows(&self) -> usize {
        self.shown.1 - self.shown.0
    }

    /// Weights in a row.
    pub fn cols(&self) -> usize {
        self.all.cols
    }

    /// One matrix. Panics when `index` is out of range.
    pub fn matrix(&self, index: usize) -> WeightMatrix<'a> {
        assert!(index < self.count, "matrix {index} of {}", self.count);
        let first = index * self.stored_rows;
        self.all.row_range(first + self.shown.0..first + self.shown.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_round_trip_through_ggml_numbers() {
        for ty in WeightType::ALL {
            assert_eq!(WeightType::from_ggml(ty.ggml_id()), Ok(ty));
        }
        let refused = WeightType::from_ggml(19).unwrap_err();
        assert!(refused.to_string().contains("IQ1_S"));
        assert_eq!(WeightType::from_ggml(9999).unwrap_err().name, "unknown");
    }

    #[test]
    fn shapes_are_checked() {
        let partial = WeightMatrix::new(WeightType::Q4K, 1, 128, &[]).unwrap_err();
        assert_eq!(partial, ShapeError::PartialBlock { ty: "Q4_K", cols: 128, block: 256 });
        let short = WeightMatrix::new(WeightType::Q8_0, 2, 32, &[0; 67]).unwrap_err();
        assert!(matches!(short, ShapeError::WrongSize { expected: 68, actual: 67, .. }));
        let huge = WeightMatrix::new(WeightType::F32, usize::MAX / 2, 1 << 20, &[]).unwrap_err();
        assert_eq!(huge, ShapeError::TooLarge);
        let huge = WeightStack::new(WeightType::F32, usize::MAX, 2, 1, &[]).unwrap_err();
        assert_eq!(huge, ShapeError::TooLarge);
    }

    #[test]
    fn a_stack_shows_halves_of_its_matrices() {
        let bytes: Vec<u8> = (0..3 * 4 * 2).flat_map(|i| (i as f32).to_le_bytes()).collect();
        let stack = WeightStack::new(WeightType::F32, 3, 4, 2, &bytes).unwrap();
        let upper = stack.row_range(2..4);
        assert_eq!((upper.count(), upper.rows(), upper.cols()), (3, 2, 2));
        let row = upper.matrix(1).row(1);
        assert_eq!(row, [14.0f32, 15.0].map(f32::to_le_bytes).concat());
    }
}

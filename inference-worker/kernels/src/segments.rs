//! Where the heads of a row lie: strided pieces of rows, so that norms, rope and per-head products work in place.

/// Equal pieces inside rows of f32.
///
/// A row is `per_row × stride` values; its piece `i` is the `len` values from `i × stride + offset`. Row after row
/// follow without a gap. A query of 64 heads of 192 whose last 64 are turned by rope is
/// `Segments { per_row: 64, stride: 192, offset: 128, len: 64 }`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segments {
    /// Pieces in a row.
    pub per_row: usize,
    /// Values from one piece's start to the next one's.
    pub stride: usize,
    /// Values before the piece in its stride.
    pub offset: usize,
    /// Values of the piece.
    pub len: usize,
}

impl Segments {
    /// Whole rows of `cols` values.
    pub fn whole(cols: usize) -> Self {
        Self { per_row: 1, stride: cols, offset: 0, len: cols }
    }

    /// Values of a row, pieces and gaps.
    pub fn row_len(&self) -> usize {
        self.per_row * self.stride
    }

    /// Rows in a slice of `values` values. Panics when that is no whole number of rows or a piece leaves its stride.
    pub fn rows_in(&self, values: usize) -> usize {
        assert!(self.offset + self.len <= self.stride, "a piece leaves its stride: {self:?}");
        let row = self.row_len();
        assert!(row > 0 && values.is_multiple_of(row), "{values} values are not whole rows of {row}");
        values / row
    }

    /// Pieces in a slice of `values` values, counted over all rows.
    pub fn pieces_in(&self, values: usize) -> usize {
        self.rows_in(values) * self.per_row
    }

    /// The piece numbered `piece` over all rows.
    pub fn piece<'a>(&self, values: &'a [f32], piece: usize) -> &'a [f32] {
        &values[piece * self.stride + self.offset..][..self.len]
    }
}

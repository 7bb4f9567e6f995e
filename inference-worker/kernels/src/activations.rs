//! Activations in the form that the weights ask for: f32 as they are, or int8 per row and block.
//!
//! A block of 32 (for Q8_0, Q4_0) or 256 (for the K-quants) values is held as int8 and one f32 scale:
//! `scale = m / 127`, `q = value × (127 / m)` rounded to the nearest integer, ties to even, where `m` is the greatest
//! absolute value of the block. A block whose `m` is below 2⁻¹⁰⁰ becomes zeros with scale 0. A NaN or an infinity
//! makes the block's scale NaN, so that a poisoned row shows in every product instead of vanishing in a conversion.
//! Blocks of 256 also carry the sum of each 16 of their int8 values, which minima are multiplied with.

use crate::pool::Pool;
use crate::segments::Segments;
use crate::weights::WeightType;

/// How activations meet quantised weights; a part of a worker's `numerics_id`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mode {
    /// int8 activations, exact integer dots inside a block: the contract.
    Exact,
    /// f32 activations, weights dequantised to f32, dots over 16 lanes: for holding against a float64 oracle.
    Reference,
}

/// The int8 forms that some weights need.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Forms {
    /// Blocks of 32.
    pub blocks32: bool,
    /// Blocks of 256.
    pub blocks256: bool,
}

impl Forms {
    /// What products with weights of these types need in [`Mode::Exact`].
    pub fn of(types: impl IntoIterator<Item = WeightType>) -> Self {
        let mut forms = Self::default();
        for ty in types {
            match ty {
                WeightType::F32 | WeightType::F16 | WeightType::Bf16 => {}
                WeightType::Q8_0 | WeightType::Q4_0 => forms.blocks32 = true,
                WeightType::Q4K | WeightType::Q6K => forms.blocks256 = true,
            }
        }
        forms
    }

    /// Both forms: for scratch that serves any weights.
    pub fn all() -> Self {
        Self { blocks32: true, blocks256: true }
    }
}

/// 32 quantised activations.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Block32 {
    /// What an int8 stands for.
    pub scale: f32,
    /// The int8 values, −127 to 127.
    pub q: [i8; 32],
}

/// 256 quantised activations.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Block256 {
    /// What an int8 stands for.
    pub scale: f32,
    /// The int8 values, −127 to 127.
    pub q: [i8; 256],
    /// The sum of each 16 int8 values.
    pub sums: [i16; 16],
}

/// Scratch that holds quantised rows, allocated once for the greatest batch.
#[derive(Debug, Default)]
pub struct QuantisedRows {
    blocks32: Vec<Block32>,
    blocks256: Vec<Block256>,
}

impl QuantisedRows {
    /// Room for `values` activations (rows × columns of the greatest use) in these forms.
    pub fn with_capacity(values: usize, forms: Forms) -> Self {
        Self {
            blocks32: vec![Block32 { scale: 0.0, q: [0; 32] }; if forms.blocks32 { values / 32 } else { 0 }],
            blocks256: vec![
                Block256 { scale: 0.0, q: [0; 256], sums: [0; 16] };
                if forms.blocks256 { values / 256 } else { 0 }
            ],
        }
    }

    /// The bytes that `with_capacity` allocates.
    pub fn bytes(values: usize, forms: Forms) -> usize {
        let blocks32 = if forms.blocks32 { values / 32 * size_of::<Block32>() } else { 0 };
        let blocks256 = if forms.blocks256 { values / 256 * size_of::<Block256>() } else { 0 };
        blocks32 + blocks256
    }

    /// Prepares whole rows of `cols` values for products: [`QuantisedRows::quantise_segments`] of
    /// `Segments::whole(cols)`.
    pub fn quantise<'a>(
        &'a mut self,
        pool: &Pool,
        mode: Mode,
        values: &'a [f32],
        cols: usize,
        forms: Forms,
    ) -> Activations<'a> {
        self.quantise_segments(pool, mode, values, Segments::whole(cols), forms)
    }

    /// Prepares the pieces of `values` for products, each piece one row. Every row is quantised alone.
    ///
    /// In [`Mode::Reference`] nothing is quantised and `forms` are ignored. Panics when a form's block does not divide
    /// the row, or when the capacity is too small for what is asked.
    pub fn quantise_segments<'a>(
        &'a mut self,
        pool: &Pool,
        mode: Mode,
        values: &'a [f32],
        segments: Segments,
        forms: Forms,
    ) -> Activations<'a> {
        let rows = segments.pieces_in(values.len());
        let cols = segments.len;
        let forms = if mode == Mode::Exact { forms } else { Forms::default() };
        let blocks32 = forms.blocks32.then(|| {
            let row_blocks = blocks_of_row(cols, 32);
            let blocks = room(&mut self.blocks32, rows * row_blocks);
            pool.for_rows(blocks, row_blocks, cols, |row, out| quantise32(segments.piece(values, row), out));
            &*blocks
        });
        let blocks256 = forms.blocks256.then(|| {
            let row_blocks = blocks_of_row(cols, 256);
            let blocks = room(&mut self.blocks256, rows * row_blocks);
            pool.for_rows(blocks, row_blocks, cols, |row, out| quantise256(segments.piece(values, row), out));
            &*blocks
        });
        Activations { mode, rows, cols, values, segments, blocks32, blocks256 }
    }
}

fn blocks_of_row(cols: usize, block: usize) -> usize {
    assert!(cols > 0 && cols.is_multiple_of(block), "rows of {cols} are not whole blocks of {block}");
    cols / block
}

fn room<T>(blocks: &mut [T], needed: usize) -> &mut [T] {
    let capacity = blocks.len();
    assert!(needed <= capacity, "{needed} blocks of activations exceed the capacity of {capacity}");
    &mut blocks[..needed]
}

/// Rows ready to be multiplied with weights: a view of f32 rows and of their int8 forms.
#[derive(Debug, Clone, Copy)]
pub struct Activations<'a> {
    mode: Mode,
    rows: usize,
    cols: usize,
    values: &'a [f32],
    segments: Segments,
    blocks32: Option<&'a [Block32]>,
    blocks256: Option<&'a [Block256]>,
}

impl<'a> Activations<'a> {
    /// f32 rows without an int8 form: enough for f32, f16 and bf16 weights, and for any in [`Mode::Reference`].
    pub fn plain(mode: Mode, values: &'a [f32], cols: usize) -> Self {
        let segments = Segments::whole(cols);
        let rows = segments.rows_in(values.len());
        Self { mode, rows, cols, values, segments, blocks32: None, blocks256: None }
    }

    /// The mode they were prepared for.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Rows, that is, pieces over all tokens.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Values in a row.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// One row as f32.
    pub fn row(&self, row: usize) -> &'a [f32] {
        self.segments.piece(self.values, row)
    }

    #[inline]
    /// One row in blocks of 32. Panics when that form was not asked for.
    pub fn row32(&self, row: usize) -> &'a [Block32] {
        let blocks = self.blocks32.expect("activations were quantised in blocks of 32 for these weights");
        &blocks[row * self.cols / 32..][..self.cols / 32]
    }

    #[inline]
    /// One row in blocks of 256. Panics when that form was not asked for.
    pub fn row256(&self, row: usize) -> &'a [Block256] {
        let blocks = self.blocks256.expect("activations were quantised in blocks of 256 for these weights");
        &blocks[row * self.cols / 256..][..self.cols / 256]
    }
}

crate::versions::versions! {
    fn quantise32(values: &[f32], out: &mut [Block32]) {
        for (values, out) in values.as_chunks().0.iter().zip(out) {
            out.scale = quantise_block(values, &mut out.q);
        }
    }
}

crate::versions::versions! {
    fn quantise256(values: &[f32], out: &mut [Block256]) {
        for (values, out) in values.as_chunks().0.iter().zip(out) {
            out.scale = quantise_block(values, &mut out.q);
            for (sum, q) in out.sums.iter_mut().zip(out.q.as_chunks::<16>().0) {
                // 16 × 127 fits; wrapping, so that a build with overflow checks vectorises too.
                *sum = q.iter().fold(0, |sum, q| sum.wrapping_add(i16::from(*q)));
            }
        }
    }
}

/// Adding and taking away 1.5 × 2²³ rounds a value of less than 2²² to the nearest integer, ties to even.
const TO_INTEGER: f32 = 12_582_912.0;

#[inline(always)]
fn quantise_block<const BLOCK: usize>(values: &[f32; BLOCK], q: &mut [i8; BLOCK]) -> f32 {
    // Bit patterns of absolute values order as the values do, with infinities and NaN above all.
    let mut greatest = 0u32;
    for value in values {
        greatest = greatest.max(value.to_bits() & 0x7fff_ffff);
    }
    let greatest = f32::from_bits(greatest);
    if !greatest.is_finite() {
        q.fill(0);
        return f32::NAN;
    }
    if greatest < f32::from_bits(27 << 23) {
        q.fill(0);
        return 0.0;
    }
    let inverse = 127.0 / greatest;
    for (q, value) in q.iter_mut().zip(values) {
        let whole = (value * inverse + TO_INTEGER) - TO_INTEGER;
        *q = whole as i8;
    }
    greatest / 127.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ramp(n: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7919) % 1009) as f32 * 0.013 - 6.1).collect()
    }

    #[test]
    fn int8_values_are_the_rounded_quotients() {
        let values = ramp(512);
        let pool = Pool::inline();
        let mut scratch = QuantisedRows::with_capacity(512, Forms::all());
        let rows = scratch.quantise(&pool, Mode::Exact, &values, 256, Forms::all());
        for row in 0..2 {
            let x = &values[row * 256..][..256];
            for (block, len) in [(0, 32), (7, 32), (0, 256)] {
                let (q, scale) = if len == 32 {
                    let block = &rows.row32(row)[block];
                    (&block.q[..], block.scale)
                } else {
                    let block = &rows.row256(row)[block];
                    for (i, sum) in block.sums.iter().enumerate() {
                        let q = &block.q[i * 16..][..16];
                        assert_eq!(i32::from(*sum), q.iter().map(|q| i32::from(*q)).sum::<i32>());
                    }
                    (&block.q[..], block.scale)
                };
                let x = &x[block * len..][..len];
                let m = x.iter().fold(0.0f32, |m, x| m.max(x.abs()));
                assert_eq!(scale.to_bits(), (m / 127.0).to_bits());
                for (x, q) in x.iter().zip(q) {
                    assert_eq!(f32::from(*q), (x * (127.0 / m)).round_ties_even());
                }
            }
        }
    }

    #[test]
    fn capacity_is_the_estimate() {
        for forms in
            [Forms::default(), Forms::of([WeightType::Q8_0]), Forms::of([WeightType::Q6K]), Forms::all()]
        {
            let rows = QuantisedRows::with_capacity(4096, forms);
            let held = rows.blocks32.capacity() * size_of::<Block32>()
                + rows.blocks256.capacity() * size_of::<Block256>();
            assert_eq!(held, QuantisedRows::bytes(4096, forms));
        }
    }

    #[test]
    fn tiny_blocks_vanish_and_poison_stays_visible() {
        let mut q = [1i8; 32];
        assert_eq!(quantise_block(&[1e-38; 32], &mut q), 0.0);
        assert_eq!(q, [0; 32]);
        assert_eq!(quantise_block(&[-0.0; 32], &mut q), 0.0);
        let mut values = [1.0f32; 32];
        values[3] = f32::NAN;
        assert!(quantise_block(&values, &mut q).is_nan());
        values[3] = f32::NEG_INFINITY;
        assert!(quantise_block(&values, &mut q).is_nan());
        values[3] = f32::MAX;
        assert_eq!(quantise_block(&values, &mut q), f32::MAX / 127.0);
        assert_eq!(q[3], 127);
        values = [f32::from_bits(27 << 23); 32];
        values[0] = -values[0];
        quantise_block(&values, &mut q);
        assert_eq!((q[0], q[1]), (-127, 127));
    }

    #[test]
    fn pieces_are_rows() {
        let values = ramp(2 * 3 * 48);
        let pool = Pool::inline();
        let mut scratch = QuantisedRows::with_capacity(192, Forms::all());
        let segments = Segments { per_row: 3, stride: 48, offset: 16, len: 32 };
        let forms = Forms::of([WeightType::Q4_0]);
        let rows = scratch.quantise_segments(&pool, Mode::Exact, &values, segments, forms);
        assert_eq!((rows.rows(), rows.cols()), (6, 32));
        assert_eq!(rows.row(4), &values[4 * 48 + 16..][..32]);
        let mut q = [0; 32];
        let scale = quantise_block(rows.row(4).as_array().unwrap(), &mut q);
        assert_eq!(rows.row32(4), [Block32 { scale, q }]);
    }

    #[test]
    #[should_panic(expected = "exceed the capacity")]
    fn too_many_rows_are_refused() {
        let mut scratch = QuantisedRows::with_capacity(32, Forms::all());
        scratch.quantise(&Pool::inline(), Mode::Exact, &[0.0; 64], 32, Forms::of([WeightType::Q8_0]));
    }
}

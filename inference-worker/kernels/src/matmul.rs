//! Products of activations and weights: one matrix, several over the same activations, or one per head.
//!
//! What one output value is, whatever the operation, batch and thread:
//! - f32, f16, bf16 weights, and any weights in [`Mode::Reference`](crate::Mode): the [`lanes`](crate::lanes) dot of the
//!   f32 row and the dequantised weights.
//! - Q8_0, Q4_0: from +0, in ascending blocks of 32, `sum += (d × a) × n`, where `n` is the integer dot, `d` the block's
//!   scale and `a` the activation's.
//! - Q4_K: from +0, in ascending blocks of 256, `sum += (d × a) × n − (dmin × a) × m`, with the integers
//!   `n = Σ scaleⱼ × dotⱼ` and `m = Σ minⱼ × (sum of the activations' int8)ⱼ` over the sub-blocks, converted to f32
//!   (rounded to nearest even where they exceed 2²⁴).
//! - Q6_K: from +0, in ascending blocks of 256, `sum += (d × a) × n` with the integer `n = Σ scaleⱼ × dotⱼ`.

use crate::activations::Activations;
use crate::pool::{Pool, Shared};
use crate::segments::Segments;
use crate::weights::{WeightMatrix, WeightStack};

mod tile;

use tile::{TILE_ROWS, TILE_TOKENS};
pub(crate) use tile::{Tile, multiply};

/// `out[t][r] = weights[r] · activations[t]`; `out` is `activations.rows() × weights.rows()`.
pub fn matmul(pool: &Pool, activations: &Activations<'_>, weights: &WeightMatrix<'_>, out: &mut [f32]) {
    multi_matmul(pool, activations, &mut [(*weights, out)]);
}

/// [`matmul`] of several matrices over the same activations, handed to the threads as one piece of work.
pub fn multi_matmul(
    pool: &Pool,
    activations: &Activations<'_>,
    products: &mut [(WeightMatrix<'_>, &mut [f32])],
) {
    for (weights, out) in &*products {
        check_cols(activations, weights.cols());
        assert_eq!(out.len(), activations.rows() * weights.rows(), "the output is not tokens × weight rows");
    }
    // Each product's row groups are numbered on from those of the products before it.
    let total: usize = products.iter().map(|(weights, _)| groups(weights.rows())).sum();
    let cost = TILE_ROWS * activations.cols() * activations.rows();
    let products = Targets::of(products);
    pool.for_each(total, cost, |mut group| {
        let (weights, out) = products.of_group(&mut group);
        let rows = TILE_ROWS.min(weights.rows() - group * TILE_ROWS);
        let slice = weights.row_range(group * TILE_ROWS..group * TILE_ROWS + rows);
        for_tiles(activations.rows(), |first, tokens| {
            let mut tile = Tile::default();
            multiply(&slice, activations, Rows::from(first, 1, tokens), &mut tile);
            for (row, products) in tile.iter().enumerate().take(rows) {
                for (token, product) in products.iter().enumerate().take(tokens) {
                    let index = (first + token) * weights.rows() + group * TILE_ROWS + row;
                    // SAFETY: a group owns its rows of every token, and each group is visited once.
                    unsafe { out.write(index, *product) };
                }
            }
        });
    });
}

/// One matrix per head: piece `h` of a token's row is multiplied with matrix `h`.
///
/// `activations` hold `tokens × heads` rows, head after head (see
/// [`QuantisedRows::quantise_segments`](crate::QuantisedRows::quantise_segments)); `out` holds one row per token whose
/// piece `h` by `segments` takes the product, and the rest of which is left alone.
pub fn per_head_matmul(
    pool: &Pool,
    activations: &Activations<'_>,
    weights: &WeightStack<'_>,
    out: &mut [f32],
    segments: Segments,
) {
    let heads = weights.count();
    check_cols(activations, weights.cols());
    assert_eq!(
        segments.per_row, heads,
        "the output has another number of pieces than the weights have heads"
    );
    assert_eq!(segments.len, weights.rows(), "the output's pieces are not as long as a head has rows");
    assert_eq!(segments.pieces_in(out.len()), activations.rows(), "the output is not tokens × heads");
    let tokens = activations.rows() / heads;
    let per_head = groups(weights.rows());
    let out = Shared::new(out);
    pool.for_each(heads * per_head, TILE_ROWS * activations.cols() * tokens, |index| {
        let (head, group) = (index / per_head, index % per_head);
        let matrix = weights.matrix(head);
        let rows = TILE_ROWS.min(matrix.rows() - group * TILE_ROWS);
        let slice = matrix.row_range(group * TILE_ROWS..group * TILE_ROWS + rows);
        for_tiles(tokens, |first, count| {
            let mut tile = Tile::default();
            multiply(&slice, activations, Rows::from(first * heads + head, heads, count), &mut tile);
            for (row, products) in tile.iter().enumerate().take(rows) {
                for (token, product) in products.iter().enumerate().take(count) {
                    let piece = (first + token) * heads + head;
                    let index = piece * segments.stride + segments.offset + group * TILE_ROWS + row;
                    // SAFETY: a group owns its rows of its head in every token, and each is visited once.
                    unsafe { out.write(index, *product) };
                }
            }
        });
    });
}

/// Which activation rows a tile multiplies.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rows {
    indices: [usize; TILE_TOKENS],
    count: usize,
}

impl Rows {
    /// `count` rows from `first` in steps of `step`.
    pub(crate) fn from(first: usize, step: usize, count: usize) -> Self {
        Self::of((0..count).map(|i| first + i * step))
    }

    /// At most [`TILE_TOKENS`] rows by number.
    pub(crate) fn of(rows: impl Iterator<Item = usize>) -> Self {
        let mut indices = [0; TILE_TOKENS];
        let mut count = 0;
        for row in rows {
            indices[count] = row;
            count += 1;
        }
        Self { indices, count }
    }

    #[inline(always)]
    fn as_slice(&self) -> &[usize] {
        &self.indices[..self.count]
    }
}

pub(crate) const GROUP: usize = TILE_ROWS;

/// Groups of weight rows that are handed to threads.
pub(crate) fn groups(rows: usize) -> usize {
    rows.div_ceil(TILE_ROWS)
}

/// Calls `work` with the first row and the count of each tile of `rows`.
pub(crate) fn for_tiles(rows: usize, mut work: impl FnMut(usize, usize)) {
    for first in (0..rows).step_by(TILE_TOKENS) {
        work(first, TILE_TOKENS.min(rows - first));
    }
}

pub(crate) fn check_cols(activations: &Activations<'_>, cols: usize) {
    assert_eq!(activations.cols(), cols, "activations and weights differ in columns");
}

/// The products of one call with their outputs opened for writing by groups.
struct Targets<'a, 'w> {
    products: Vec<(WeightMatrix<'w>, Shared<'a, f32>)>,
}

impl<'a, 'w> Targets<'a, 'w> {
    fn of(products: &'a mut [(WeightMatrix<'w>, &mut [f32])]) -> Self {
        Self { products: products.iter_mut().map(|(weights, out)| (*weights, Shared::new(out))).collect() }
    }

    /// The product that a group belongs to; `group` becomes its number within.
    fn of_group(&self, group: &mut usize) -> (&WeightMatrix<'w>, &Shared<'a, f32>) {
        for (weights, out) in &self.products {
            let own = groups(weights.rows());
            if *group < own {
                return (weights, out);
            }
            *group -= own;
        }
        unreachable!("groups are counted over the same products")
    }
}

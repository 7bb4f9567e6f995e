//! The inner product kernels: some weight rows times some activation rows, each block unpacked once for all of them.

use super::Rows;
use crate::activations::{Activations, Mode};
use crate::blocks::{Q4KBlock, Q6KBlock, dequantise, unpack_q4_0, unpack_q8_0};
use crate::lanes::{LANES, add_products, join};
use crate::versions::versions;
use crate::weights::{WeightMatrix, WeightType};

/// Weight rows of a tile.
pub(crate) const TILE_ROWS: usize = 16;
/// Activation rows of a tile.
pub(crate) const TILE_TOKENS: usize = 8;

/// Products by weight row and activation row.
pub(crate) type Tile = [[f32; TILE_TOKENS]; TILE_ROWS];

/// Multiplies at most [`TILE_ROWS`] weight rows with the activation rows; the rest of the tile is left alone.
pub(crate) fn multiply(
    weights: &WeightMatrix<'_>,
    activations: &Activations<'_>,
    rows: Rows,
    tile: &mut Tile,
) {
    assert!(weights.rows() <= TILE_ROWS, "{} weight rows in one tile", weights.rows());
    match (activations.mode(), weights.ty()) {
        (Mode::Reference, _) | (_, WeightType::F32 | WeightType::F16 | WeightType::Bf16) => {
            floats(weights, activations, &rows, tile);
        }
        (Mode::Exact, WeightType::Q8_0) => q8_0(weights, activations, &rows, tile),
        (Mode::Exact, WeightType::Q4_0) => q4_0(weights, activations, &rows, tile),
        (Mode::Exact, WeightType::Q4K) => q4_k(weights, activations, &rows, tile),
        (Mode::Exact, WeightType::Q6K) => q6_k(weights, activations, &rows, tile),
    }
}

/// Weights dequantised at a time: whole blocks of every type, and whole rounds of the lanes.
const STRETCH: usize = 256;

versions! {
    /// Dots over lanes with dequantised weights.
    fn floats(weights: &WeightMatrix<'_>, activations: &Activations<'_>, rows: &Rows, tile: &mut Tile) {
        let ty = weights.ty();
        let mut stretch = [0.0f32; STRETCH];
        for (row, products) in tile.iter_mut().enumerate().take(weights.rows()) {
            let bytes = weights.row(row);
            let mut lanes = [[0.0f32; LANES]; TILE_TOKENS];
            for (start, bytes) in (0..weights.cols()).step_by(STRETCH).zip(bytes.chunks(stretch_bytes(ty))) {
                let len = STRETCH.min(weights.cols() - start);
                dequantise(ty, bytes, &mut stretch[..len]);
                for (token, lanes) in rows.as_slice().iter().zip(&mut lanes) {
                    add_products(lanes, &stretch[..len], &activations.row(*token)[start..start + len]);
                }
            }
            for (sum, lanes) in products.iter_mut().zip(&lanes).take(rows.count) {
                *sum = join(lanes);
            }
        }
    }
}

fn stretch_bytes(ty: WeightType) -> usize {
    STRETCH / ty.block_len() * ty.block_bytes()
}

versions! {
    fn q8_0(weights: &WeightMatrix<'_>, activations: &Activations<'_>, rows: &Rows, tile: &mut Tile) {
        blocks32(weights, activations, rows, tile, unpack_q8_0);
    }
}

versions! {
    fn q4_0(weights: &WeightMatrix<'_>, activations: &Activations<'_>, rows: &Rows, tile: &mut Tile) {
        blocks32(weights, activations, rows, tile, unpack_q4_0);
    }
}

#[inline(always)]
fn blocks32<const BYTES: usize>(
    weights: &WeightMatrix<'_>,
    activations: &Activations<'_>,
    rows: &Rows,
    tile: &mut Tile,
    unpack: impl Fn(&[u8; BYTES]) -> ([i8; 32], f32),
) {
    let mut tokens: [(&[[i8; 32]], &[f32]); TILE_TOKENS] = [(&[], &[]); TILE_TOKENS];
    for (slot, row) in tokens.iter_mut().zip(rows.as_slice()) {
        let (q, scales) = activations.row32(*row);
        *slot = (q.as_chunks().0, scales);
    }
    for (row, products) in tile.iter_mut().enumerate().take(weights.rows()) {
        let (blocks, _) = weights.row(row).as_chunks::<BYTES>();
        let mut sums = [0.0f32; TILE_TOKENS];
        for (b, block) in blocks.iter().enumerate() {
            let (q, d) = unpack(block);
            for ((activation, scales), sum) in tokens.iter().zip(&mut sums).take(rows.count) {
                *sum += (d * scales[b]) * dot(&q, &activation[b]) as f32;
            }
        }
        products[..rows.count].copy_from_slice(&sums[..rows.count]);
    }
}

versions! {
    fn q4_k(weights: &WeightMatrix<'_>, activations: &Activations<'_>, rows: &Rows, tile: &mut Tile) {
        blocks256(weights, activations, rows, tile, Q4KBlock::unpack, |block, q, sums, a| {
            let (mut n, mut m) = (0, 0);
            for j in 0..8 {
                n += block.scales[j] * dot::<32>(part(&block.q, j), part(q, j));
                m += block.mins[j] * (i32::from(sums[2 * j]) + i32::from(sums[2 * j + 1]));
            }
            (block.d * a) * n as f32 - (block.dmin * a) * m as f32
        });
    }
}

versions! {
    fn q6_k(weights: &WeightMatrix<'_>, activations: &Activations<'_>, rows: &Rows, tile: &mut Tile) {
        blocks256(weights, activations, rows, tile, Q6KBlock::unpack, |block, q, _, a| {
            let mut n = 0;
            for j in 0..16 {
                n += block.scales[j] * dot::<16>(part(&block.q, j), part(q, j));
            }
            (block.d * a) * n as f32
        });
    }
}

#[inline(always)]
fn blocks256<const BYTES: usize, B>(
    weights: &WeightMatrix<'_>,
    activations: &Activations<'_>,
    rows: &Rows,
    tile: &mut Tile,
    unpack: impl Fn(&[u8; BYTES]) -> B,
    term: impl Fn(&B, &[i8; 256], &[i16; 16], f32) -> f32,
) {
    type Row<'a> = (&'a [[i8; 256]], &'a [f32], &'a [[i16; 16]]);
    let mut tokens: [Row<'_>; TILE_TOKENS] = [(&[], &[], &[]); TILE_TOKENS];
    for (slot, row) in tokens.iter_mut().zip(rows.as_slice()) {
        let (q, scales, sums) = activations.row256(*row);
        *slot = (q.as_chunks().0, scales, sums.as_chunks().0);
    }
    for (row, products) in tile.iter_mut().enumerate().take(weights.rows()) {
        let (blocks, _) = weights.row(row).as_chunks::<BYTES>();
        let mut totals = [0.0f32; TILE_TOKENS];
        for (b, block) in blocks.iter().enumerate() {
            let block = unpack(block);
            for ((q, scales, sums), total) in tokens.iter().zip(&mut totals).take(rows.count) {
                *total += term(&block, &q[b], &sums[b], scales[b]);
            }
        }
        products[..rows.count].copy_from_slice(&totals[..rows.count]);
    }
}

/// Part `j` of a block's quants.
#[inline(always)]
fn part<const LEN: usize>(block: &[i8; 256], j: usize) -> &[i8; LEN] {
    &block.as_chunks().0[j]
}

/// The exact integer dot: 32 products of int8 stay far below 2³¹. Wrapping, so that a build with overflow checks
/// vectorises too.
#[inline(always)]
fn dot<const LEN: usize>(a: &[i8; LEN], b: &[i8; LEN]) -> i32 {
    let mut sum = 0i32;
    for i in 0..LEN {
        sum = sum.wrapping_add(i32::from(a[i]) * i32::from(b[i]));
    }
    sum
}

#[cfg(test)]
mod tests;

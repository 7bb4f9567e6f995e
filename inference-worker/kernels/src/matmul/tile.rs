//! The inner product kernels: some weight rows times some activation rows, each block unpacked once for all of them.

use super::Rows;
use crate::activations::{Activations, Block32, Block256, Mode};
use crate::blocks::{Q4_0Block, Q4KBlock, Q6KBlock, Q8_0Block, dequantise};
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
        blocks::<34, Q8_0Block>(weights, activations, rows, tile);
    }
}

versions! {
    fn q4_0(weights: &WeightMatrix<'_>, activations: &Activations<'_>, rows: &Rows, tile: &mut Tile) {
        blocks::<18, Q4_0Block>(weights, activations, rows, tile);
    }
}

versions! {
    fn q4_k(weights: &WeightMatrix<'_>, activations: &Activations<'_>, rows: &Rows, tile: &mut Tile) {
        blocks::<144, Q4KBlock>(weights, activations, rows, tile);
    }
}

versions! {
    fn q6_k(weights: &WeightMatrix<'_>, activations: &Activations<'_>, rows: &Rows, tile: &mut Tile) {
        blocks::<210, Q6KBlock>(weights, activations, rows, tile);
    }
}

/// Sums every weight row's terms over ascending blocks.
#[inline(always)]
fn blocks<const BYTES: usize, B: Block<BYTES>>(
    weights: &WeightMatrix<'_>,
    activations: &Activations<'_>,
    rows: &Rows,
    tile: &mut Tile,
) {
    let mut tokens: [&[B::Activations]; TILE_TOKENS] = [&[]; TILE_TOKENS];
    for (token, row) in tokens.iter_mut().zip(rows.as_slice()) {
        *token = B::activations(activations, *row);
    }
    let (fours, ones) = tokens[..rows.count].as_chunks::<4>();
    for (row, products) in tile.iter_mut().enumerate().take(weights.rows()) {
        let (blocks, _) = weights.row(row).as_chunks::<BYTES>();
        for (tokens, products) in fours.iter().zip(products.as_chunks_mut::<4>().0) {
            *products = sums::<BYTES, 4, B>(blocks, *tokens);
        }
        for (token, product) in ones.iter().zip(&mut products[4 * fours.len()..]) {
            [*product] = sums::<BYTES, 1, B>(blocks, [*token]);
        }
    }
}

/// Some activation rows times one weight row. Their number is a constant and the inner loops have no branches, so that
/// the integer dots become multiply-add instructions.
#[inline(always)]
fn sums<const BYTES: usize, const TOKENS: usize, B: Block<BYTES>>(
    blocks: &[[u8; BYTES]],
    tokens: [&[B::Activations]; TOKENS],
) -> [f32; TOKENS] {
    let tokens = tokens.map(|token| &token[..blocks.len()]);
    let mut sums = [0.0f32; TOKENS];
    for (b, block) in blocks.iter().enumerate() {
        let block = B::unpack(block);
        for i in 0..TOKENS {
            sums[i] += block.term(&tokens[i][b]);
        }
    }
    sums
}

/// A block of quantised weights, and what it gives with a block of activations. A trait and no closures: those cannot be
/// told to be inlined, and compiled alone they would lose the instruction set.
trait Block<const BYTES: usize> {
    type Activations;

    fn activations<'a>(activations: &Activations<'a>, row: usize) -> &'a [Self::Activations];
    fn unpack(bytes: &[u8; BYTES]) -> Self;
    fn term(&self, activations: &Self::Activations) -> f32;
}

impl Block<34> for Q8_0Block {
    type Activations = Block32;

    #[inline(always)]
    fn activations<'a>(activations: &Activations<'a>, row: usize) -> &'a [Block32] {
        activations.row32(row)
    }

    #[inline(always)]
    fn unpack(bytes: &[u8; 34]) -> Self {
        Self::unpack(bytes)
    }

    #[inline(always)]
    fn term(&self, a: &Block32) -> f32 {
        (self.d * a.scale) * dot(&self.q, &a.q) as f32
    }
}

impl Block<18> for Q4_0Block {
    type Activations = Block32;

    #[inline(always)]
    fn activations<'a>(activations: &Activations<'a>, row: usize) -> &'a [Block32] {
        activations.row32(row)
    }

    #[inline(always)]
    fn unpack(bytes: &[u8; 18]) -> Self {
        Self::unpack(bytes)
    }

    #[inline(always)]
    fn term(&self, a: &Block32) -> f32 {
        (self.d * a.scale) * dot(&self.q, &a.q) as f32
    }
}

impl Block<144> for Q4KBlock {
    type Activations = Block256;

    #[inline(always)]
    fn activations<'a>(activations: &Activations<'a>, row: usize) -> &'a [Block256] {
        activations.row256(row)
    }

    #[inline(always)]
    fn unpack(bytes: &[u8; 144]) -> Self {
        Self::unpack(bytes)
    }

    #[inline(always)]
    fn term(&self, a: &Block256) -> f32 {
        let mut sums = [0; 8];
        for (sum, [one, two]) in sums.iter_mut().zip(a.sums.as_chunks().0) {
            *sum = i32::from(*one) + i32::from(*two);
        }
        let n = weighted(&self.scales, &dots::<32, 8>(&self.q, &a.q));
        let m = weighted(&self.mins, &sums);
        (self.d * a.scale) * n as f32 - (self.dmin * a.scale) * m as f32
    }
}

impl Block<210> for Q6KBlock {
    type Activations = Block256;

    #[inline(always)]
    fn activations<'a>(activations: &Activations<'a>, row: usize) -> &'a [Block256] {
        activations.row256(row)
    }

    #[inline(always)]
    fn unpack(bytes: &[u8; 210]) -> Self {
        Self::unpack(bytes)
    }

    #[inline(always)]
    fn term(&self, a: &Block256) -> f32 {
        let n = weighted(&self.scales, &dots::<16, 16>(&self.q, &a.q));
        (self.d * a.scale) * n as f32
    }
}

/// The dots of a block's parts, all before anything is made of them: so the compiler keeps to vector instructions.
#[inline(always)]
fn dots<const LEN: usize, const PARTS: usize>(a: &[i8; 256], b: &[i8; 256]) -> [i32; PARTS] {
    let mut dots = [0; PARTS];
    for ((sum, a), b) in dots.iter_mut().zip(a.as_chunks::<LEN>().0).zip(b.as_chunks::<LEN>().0) {
        *sum = dot(a, b);
    }
    dots
}

#[inline(always)]
fn weighted<const PARTS: usize>(weights: &[i32; PARTS], values: &[i32; PARTS]) -> i32 {
    weights.iter().zip(values).fold(0, |sum, (w, v)| sum.wrapping_add(w.wrapping_mul(*v)))
}

/// The exact integer dot. It and what [`weighted`] makes of it stay far below 2³¹; they wrap, so that a build with
/// overflow checks vectorises too.
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

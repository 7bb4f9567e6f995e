//! The kernels against the formulas of [`matmul`](crate::matmul), written weight by weight, and against themselves on
//! every instruction set.

use super::*;
use crate::activations::{Forms, QuantisedRows};
use crate::blocks::f16_to_f32;
use crate::pool::Pool;
use crate::versions::tests::at_each_level;

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn value(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    /// Any bits for quants and small scales, halves of ordinary size for the outer scales.
    fn blocks(&mut self, ty: WeightType, weights: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..ty.row_bytes(weights).unwrap()).map(|_| self.next() as u8).collect();
        for block in bytes.chunks_mut(ty.block_bytes()) {
            let places: &[usize] = match ty {
                WeightType::Q4K => &[0, 2],
                WeightType::Q6K => &[208],
                _ => &[0],
            };
            for at in places {
                block[*at + 1] = block[*at + 1] & 0x83 | 0x28;
            }
        }
        bytes
    }
}

fn half(block: &[u8], at: usize) -> f32 {
    f16_to_f32(u16::from_le_bytes([block[at], block[at + 1]]))
}

/// The value of one row's product by the documented formula.
fn naive(ty: WeightType, bytes: &[u8], activations: &Activations<'_>, token: usize) -> f32 {
    let mut sum = 0.0f32;
    for (b, block) in bytes.chunks(ty.block_bytes()).enumerate() {
        match ty {
            WeightType::Q8_0 | WeightType::Q4_0 => {
                let a = &activations.row32(token)[b];
                let n: i64 = (0..32)
                    .map(|i| {
                        let weight = if ty == WeightType::Q8_0 {
                            i64::from(block[2 + i] as i8)
                        } else {
                            i64::from(block[2 + i % 16] >> (i / 16 * 4) & 15) - 8
                        };
                        weight * i64::from(a.q[i])
                    })
                    .sum();
                sum += (half(block, 0) * a.scale) * n as f32;
            }
            WeightType::Q4K => {
                let a = &activations.row256(token)[b];
                let (mut n, mut m) = (0i64, 0i64);
                for i in 0..256 {
                    let weight = block[16 + i / 64 * 32 + i % 32] >> (i % 64 / 32 * 4) & 15;
                    let (scale, min) = scale_and_min(i / 32, &block[4..16]);
                    let activation = i64::from(a.q[i]);
                    n += i64::from(scale) * i64::from(weight) * activation;
                    m += i64::from(min) * activation;
                }
                sum += (half(block, 0) * a.scale) * n as f32 - (half(block, 2) * a.scale) * m as f32;
            }
            WeightType::Q6K => {
                let a = &activations.row256(token)[b];
                let n: i64 = (0..256)
                    .map(|i| {
                        let (part, lane) = (i % 128 / 32, i % 32);
                        let low = block[i / 128 * 64 + part % 2 * 32 + lane] >> (part / 2 * 4) & 15;
                        let high = block[128 + i / 128 * 32 + lane] >> (part * 2) & 3;
                        let weight = i64::from(low | high << 4) - 32;
                        i64::from(block[192 + i / 16] as i8) * weight * i64::from(a.q[i])
                    })
                    .sum();
                sum += (half(block, 208) * a.scale) * n as f32;
            }
            WeightType::F32 | WeightType::F16 | WeightType::Bf16 => {
                unreachable!("held against f64 elsewhere")
            }
        }
    }
    sum
}

fn scale_and_min(j: usize, bytes: &[u8]) -> (u8, u8) {
    if j < 4 {
        (bytes[j] & 63, bytes[j + 4] & 63)
    } else {
        (bytes[j + 4] & 15 | bytes[j - 4] >> 6 << 4, bytes[j + 4] >> 4 | bytes[j] >> 6 << 4)
    }
}

#[test]
fn exact_products_are_the_formula_to_the_bit_on_every_level() {
    let mut random = Random(1);
    for ty in [WeightType::Q8_0, WeightType::Q4_0, WeightType::Q4K, WeightType::Q6K] {
        for cols in [256, 1536] {
            let bytes = random.blocks(ty, 16 * cols);
            let weights = WeightMatrix::new(ty, 16, cols, &bytes).unwrap();
            let values: Vec<f32> = (0..9 * cols).map(|_| random.value()).collect();
            let mut scratch = QuantisedRows::with_capacity(9 * cols, Forms::all());
            let activations = scratch.quantise(&Pool::inline(), Mode::Exact, &values, cols, Forms::of([ty]));
            for rows in [Rows::from(0, 1, 8), Rows::from(4, 1, 1), Rows::of([8, 0, 5].into_iter())] {
                let tiles = at_each_level(|| {
                    let mut tile = Tile::default();
                    multiply(&weights, &activations, rows, &mut tile);
                    tile
                });
                for (r, products) in tiles[0].iter().enumerate() {
                    for (token, product) in rows.as_slice().iter().zip(products) {
                        let truth = naive(ty, weights.row(r), &activations, *token);
                        assert_eq!(product.to_bits(), truth.to_bits(), "{} row {r} token {token}", ty.name());
                    }
                    assert!(
                        products[rows.count..].iter().all(|p| *p == 0.0),
                        "unused columns stay untouched"
                    );
                }
                assert!(tiles.iter().all(|tile| *tile == tiles[0]), "{} differs between levels", ty.name());
            }
        }
    }
}

#[test]
fn extreme_quants_do_not_overflow() {
    for (ty, fill) in [(WeightType::Q4K, 0xff), (WeightType::Q6K, 0x80), (WeightType::Q8_0, 0x80)] {
        let mut bytes = vec![fill; ty.row_bytes(256).unwrap()];
        for block in bytes.chunks_mut(ty.block_bytes()) {
            let at = if ty == WeightType::Q6K { 208 } else { 0 };
            block[at..at + 2].copy_from_slice(&[0, 0x3c]);
            if ty == WeightType::Q4K {
                block[2..4].copy_from_slice(&[0, 0x3c]);
            }
        }
        let weights = WeightMatrix::new(ty, 1, 256, &bytes).unwrap();
        for value in [1.0f32, -1.0] {
            let values = [value; 256];
            let mut scratch = QuantisedRows::with_capacity(256, Forms::all());
            let activations = scratch.quantise(&Pool::inline(), Mode::Exact, &values, 256, Forms::all());
            for tile in at_each_level(|| {
                let mut tile = Tile::default();
                multiply(&weights, &activations, Rows::from(0, 1, 1), &mut tile);
                tile
            }) {
                assert_eq!(tile[0][0].to_bits(), naive(ty, weights.row(0), &activations, 0).to_bits());
            }
        }
    }
}

#[test]
fn dots_over_lanes_have_equal_bits_on_every_level() {
    let mut random = Random(2);
    for ty in WeightType::ALL {
        let cols = if ty.block_len() == 1 { 1000 } else { 768 };
        let values: Vec<f32> = (0..16 * cols).map(|_| random.value()).collect();
        let bytes = crate::blocks::quantise(ty, &values).unwrap();
        let weights = WeightMatrix::new(ty, 16, cols, &bytes).unwrap();
        let activations = Activations::plain(Mode::Reference, &values, cols);
        let tiles = at_each_level(|| {
            let mut tile = Tile::default();
            multiply(&weights, &activations, Rows::from(0, 2, 8), &mut tile);
            tile
        });
        assert!(tiles.iter().all(|tile| *tile == tiles[0]), "{} differs between levels", ty.name());
        let mut row = vec![0.0; cols];
        for (r, products) in tiles[0].iter().enumerate() {
            crate::blocks::dequantise_row(ty, weights.row(r), &mut row);
            for (token, product) in products.iter().enumerate() {
                let truth = crate::lanes::dot(&row, &values[token * 2 * cols..][..cols]);
                assert_eq!(product.to_bits(), truth.to_bits());
            }
        }
    }
}

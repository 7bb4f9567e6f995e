//! ggml's block formats: taking weights out of them, and putting weights into them.
//!
//! Every format's dequantised weight is one f32 expression, written at its function; products in reference mode use
//! exactly these values.

use crate::weights::{ShapeError, WeightType};

mod float;
mod k_quants;
mod legacy;

pub use float::{bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16};
pub(crate) use k_quants::{Q4KBlock, Q6KBlock};
pub(crate) use legacy::{Q4_0Block, Q8_0Block};

/// Writes the weights of a row, or of any run of whole blocks, to `out`. Panics unless `bytes` are exactly the blocks of
/// `out.len()` weights.
pub fn dequantise_row(ty: WeightType, bytes: &[u8], out: &mut [f32]) {
    check(ty, bytes.len(), out.len());
    dequantise(ty, bytes, out);
}

/// Packs a row, with the simplest choice of scales: for tests and small reference models, not for a model's quality.
/// Panics unless `out` is exactly the blocks of `values.len()` weights.
pub fn quantise_row(ty: WeightType, values: &[f32], out: &mut [u8]) {
    check(ty, out.len(), values.len());
    match ty {
        WeightType::F32 => {
            for (out, value) in out.as_chunks_mut::<4>().0.iter_mut().zip(values) {
                *out = value.to_le_bytes();
            }
        }
        WeightType::F16 => {
            for (out, value) in out.as_chunks_mut::<2>().0.iter_mut().zip(values) {
                *out = f32_to_f16(*value).to_le_bytes();
            }
        }
        WeightType::Bf16 => {
            for (out, value) in out.as_chunks_mut::<2>().0.iter_mut().zip(values) {
                *out = f32_to_bf16(*value).to_le_bytes();
            }
        }
        WeightType::Q8_0 => each_block(values, out, legacy::pack_q8_0),
        WeightType::Q4_0 => each_block(values, out, legacy::pack_q4_0),
        WeightType::Q4K => each_block(values, out, k_quants::pack_q4_k),
        WeightType::Q6K => each_block(values, out, k_quants::pack_q6_k),
    }
}

/// [`quantise_row`] into a fresh vector, for rows of `cols` values or any whole number of them.
pub fn quantise(ty: WeightType, values: &[f32]) -> Result<Vec<u8>, ShapeError> {
    let mut out = vec![0; ty.row_bytes(values.len())?];
    quantise_row(ty, values, &mut out);
    Ok(out)
}

fn check(ty: WeightType, bytes: usize, weights: usize) {
    let expected = ty.row_bytes(weights);
    assert_eq!(expected, Ok(bytes), "{weights} {} weights do not take {bytes} bytes", ty.name());
}

#[inline(always)]
pub(crate) fn dequantise(ty: WeightType, bytes: &[u8], out: &mut [f32]) {
    match ty {
        WeightType::F32 => {
            for (out, bytes) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *out = f32::from_le_bytes(*bytes);
            }
        }
        WeightType::F16 => {
            for (out, bytes) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *out = f16_to_f32(u16::from_le_bytes(*bytes));
            }
        }
        WeightType::Bf16 => {
            for (out, bytes) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *out = bf16_to_f32(u16::from_le_bytes(*bytes));
            }
        }
        WeightType::Q8_0 => {
            for (out, bytes) in out.as_chunks_mut::<32>().0.iter_mut().zip(bytes.as_chunks().0) {
                Q8_0Block::unpack(bytes).dequantise(out);
            }
        }
        WeightType::Q4_0 => {
            for (out, bytes) in out.as_chunks_mut::<32>().0.iter_mut().zip(bytes.as_chunks().0) {
                Q4_0Block::unpack(bytes).dequantise(out);
            }
        }
        WeightType::Q4K => {
            for (out, bytes) in out.as_chunks_mut::<256>().0.iter_mut().zip(bytes.as_chunks().0) {
                Q4KBlock::unpack(bytes).dequantise(out);
            }
        }
        WeightType::Q6K => {
            for (out, bytes) in out.as_chunks_mut::<256>().0.iter_mut().zip(bytes.as_chunks().0) {
                Q6KBlock::unpack(bytes).dequantise(out);
            }
        }
    }
}

fn each_block<const LEN: usize, const BYTES: usize>(
    values: &[f32],
    out: &mut [u8],
    pack: impl Fn(&[f32; LEN], &mut [u8; BYTES]),
) {
    for (values, out) in values.as_chunks().0.iter().zip(out.as_chunks_mut().0) {
        pack(values, out);
    }
}

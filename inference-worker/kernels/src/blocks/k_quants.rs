//! The 256-wide formats: sub-blocks with small integer scales under one f16 scale.

use super::{f16_to_f32, f32_to_f16};

#[inline(always)]
fn half_at(bytes: &[u8], at: usize) -> f32 {
    f16_to_f32(u16::from_le_bytes([bytes[at], bytes[at + 1]]))
}

const LOW_NIBBLES: u64 = 0x0f0f_0f0f_0f0f_0f0f;

/// Q4_K unpacked. The 144 bytes are `d` f16, `dmin` f16, 12 bytes of six-bit scales and minima, and 128 bytes of
/// nibbles: of each 32 bytes, the low nibbles are one sub-block of 32 and the high nibbles the next.
pub(crate) struct Q4KBlock {
    pub(crate) q: [i8; 256],
    pub(crate) scales: [i32; 8],
    pub(crate) mins: [i32; 8],
    pub(crate) d: f32,
    pub(crate) dmin: f32,
}

impl Q4KBlock {
    #[inline(always)]
    pub(crate) fn unpack(block: &[u8; 144]) -> Self {
        let mut q = [0i8; 256];
        let (nibbles, _) = block[16..].as_chunks::<32>();
        for (pair, bytes) in q.as_chunks_mut::<64>().0.iter_mut().zip(nibbles) {
            let (low, high) = pair.split_at_mut(32);
            // Eight at a time: as single bytes this loop is at the mercy of the vectoriser.
            let words = bytes.as_chunks().0.iter().map(|word| u64::from_le_bytes(*word));
            for ((low, high), word) in low.as_chunks_mut().0.iter_mut().zip(high.as_chunks_mut().0).zip(words)
            {
                *low = (word & LOW_NIBBLES).to_le_bytes().map(|q| q as i8);
                *high = (word >> 4 & LOW_NIBBLES).to_le_bytes().map(|q| q as i8);
            }
        }
        let (scales, mins) = six_bit_pairs(&block[4..16]);
        Self { q, scales, mins, d: half_at(block, 0), dmin: half_at(block, 2) }
    }

    /// `(d × scale) × q − (dmin × min)`.
    #[inline(always)]
    pub(crate) fn dequantise(&self, out: &mut [f32; 256]) {
        for (j, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let (d, min) = (self.d * self.scales[j] as f32, self.dmin * self.mins[j] as f32);
            for (out, q) in out.iter_mut().zip(&self.q[j * 32..][..32]) {
                *out = d * f32::from(*q) - min;
            }
        }
    }
}

/// Eight scales and eight minima of six bits in 12 bytes. The first four of each are the low six bits of bytes 0–3 and
/// 4–7; the last four have their low nibbles in bytes 8–11 (scales low, minima high) and their upper two bits on top of
/// bytes 0–3 and 4–7.
#[inline(always)]
fn six_bit_pairs(bytes: &[u8]) -> ([i32; 8], [i32; 8]) {
    let (mut scales, mut mins) = ([0; 8], [0; 8]);
    for j in 0..4 {
        let (a, b, c) = (i32::from(bytes[j]), i32::from(bytes[j + 4]), i32::from(bytes[j + 8]));
        scales[j] = a & 63;
        mins[j] = b & 63;
        scales[j + 4] = c & 15 | a >> 6 << 4;
        mins[j + 4] = c >> 4 | b >> 6 << 4;
    }
    (scales, mins)
}

/// Q6_K unpacked. The 210 bytes are 128 of low nibbles, 64 of upper bit pairs, 16 int8 scales, and `d` f16. The quants
/// come out with 32 taken away.
pub(crate) struct Q6KBlock {
    pub(crate) q: [i8; 256],
    pub(crate) scales: [i32; 16],
    pub(crate) d: f32,
}

impl Q6KBlock {
    #[inline(always)]
    pub(crate) fn unpack(block: &[u8; 210]) -> Self {
        let mut q = [0i8; 256];
        let (low, rest) = block.split_at(128);
        let (high, rest) = rest.split_at(64);
        for half in 0..2 {
            let (low, high, q) =
                (&low[half * 64..][..64], &high[half * 32..][..32], &mut q[half * 128..][..128]);
            for i in 0..32 {
                q[i] = (low[i] & 15 | (high[i] & 3) << 4) as i8 - 32;
                q[i + 32] = (low[i + 32] & 15 | (high[i] >> 2 & 3) << 4) as i8 - 32;
                q[i + 64] = (low[i] >> 4 | (high[i] >> 4 & 3) << 4) as i8 - 32;
                q[i + 96] = (low[i + 32] >> 4 | (high[i] >> 6) << 4) as i8 - 32;
            }
        }
        let mut scales = [0; 16];
        for (scale, byte) in scales.iter_mut().zip(rest) {
            *scale = i32::from(*byte as i8);
        }
        Self { q, scales, d: half_at(rest, 16) }
    }

    /// `(d × scale) × q`.
    #[inline(always)]
    pub(crate) fn dequantise(&self, out: &mut [f32; 256]) {
        for (j, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let d = self.d * self.scales[j] as f32;
            for (out, q) in out.iter_mut().zip(&self.q[j * 16..][..16]) {
                *out = d * f32::from(*q);
            }
        }
    }
}

/// Each sub-block spans its own range from the lesser of 0 and its least value; the range's step and the minimum are
/// rounded to six bits of the greatest.
pub(super) fn pack_q4_k(values: &[f32; 256], block: &mut [u8; 144]) {
    let (subs, _) = values.as_chunks::<32>();
    let (mut steps, mut lows) = ([0.0f32; 8], [0.0f32; 8]);
    for (j, sub) in subs.iter().enumerate() {
        lows[j] = -sub.iter().copied().fold(0.0, f32::min);
        steps[j] = (sub.iter().copied().fold(f32::NEG_INFINITY, f32::max) + lows[j]).max(0.0) / 15.0;
    }
    let (d, scales) = six_bits(&steps);
    let (dmin, mins) = six_bits(&lows);
    *block = [0; 144];
    block[..2].copy_from_slice(&f32_to_f16(d).to_le_bytes());
    block[2..4].copy_from_slice(&f32_to_f16(dmin).to_le_bytes());
    for j in 0..4 {
        block[4 + j] = scales[j] | scales[j + 4] >> 4 << 6;
        block[8 + j] = mins[j] | mins[j + 4] >> 4 << 6;
        block[12 + j] = scales[j + 4] & 15 | mins[j + 4] << 4;
    }
    let (d, dmin) = (f16_to_f32(f32_to_f16(d)), f16_to_f32(f32_to_f16(dmin)));
    for (j, sub) in subs.iter().enumerate() {
        let (step, low) = (d * f32::from(scales[j]), dmin * f32::from(mins[j]));
        for (i, value) in sub.iter().enumerate() {
            let q = if step > 0.0 { ((value + low) / step).round().clamp(0.0, 15.0) as u8 } else { 0 };
            block[16 + j / 2 * 32 + i] |= q << (j % 2 * 4);
        }
    }
}

fn six_bits(values: &[f32; 8]) -> (f32, [u8; 8]) {
    let unit = values.iter().copied().fold(0.0, f32::max) / 63.0;
    (unit, values.map(|v| if unit > 0.0 { (v / unit).round().min(63.0) as u8 } else { 0 }))
}

/// The value that is greatest without its sign becomes −32 in each sub-block of 16; the scales are rounded to int8 with
/// the greatest at −128.
pub(super) fn pack_q6_k(values: &[f32; 256], block: &mut [u8; 210]) {
    let (subs, _) = values.as_chunks::<16>();
    let mut steps = [0.0f32; 16];
    for (step, sub) in steps.iter_mut().zip(subs) {
        *step = sub.iter().fold(0.0f32, |m, v| if v.abs() > m.abs() { *v } else { m }) / -32.0;
    }
    let extreme = steps.iter().fold(0.0f32, |m, v| if v.abs() > m.abs() { *v } else { m });
    *block = [0; 210];
    let half = f32_to_f16(extreme / -128.0);
    block[208..].copy_from_slice(&half.to_le_bytes());
    let d = f16_to_f32(half);
    for (j, sub) in subs.iter().enumerate() {
        let scale = if d != 0.0 { (steps[j] / d).round().clamp(-128.0, 127.0) } else { 0.0 };
        block[192 + j] = scale as i8 as u8;
        let step = d * scale;
        for (i, value) in sub.iter().enumerate() {
            let q = if step != 0.0 { (value / step).round().clamp(-32.0, 31.0) } else { 0.0 };
            let q = (q as i8 + 32) as u8;
            let at = j * 16 + i;
            let (half, within) = (at / 128, at % 128);
            let (quarter, lane) = (within / 32, within % 32);
            block[half * 64 + quarter % 2 * 32 + lane] |= (q & 15) << (quarter / 2 * 4);
            block[128 + half * 32 + lane] |= (q >> 4) << (quarter * 2);
        }
    }
}

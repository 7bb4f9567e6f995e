//! The 32-wide formats: one f16 scale, and 8-bit or 4-bit quants.

use super::{f16_to_f32, f32_to_f16};

#[inline(always)]
fn half_at(bytes: &[u8], at: usize) -> f32 {
    f16_to_f32(u16::from_le_bytes([bytes[at], bytes[at + 1]]))
}

/// Q8_0 unpacked. The 34 bytes are the f16 scale, then 32 int8.
pub(crate) struct Q8_0Block {
    pub(crate) q: [i8; 32],
    pub(crate) d: f32,
}

impl Q8_0Block {
    #[inline(always)]
    pub(crate) fn unpack(block: &[u8; 34]) -> Self {
        let mut q = [0i8; 32];
        for (q, byte) in q.iter_mut().zip(&block[2..]) {
            *q = *byte as i8;
        }
        Self { q, d: half_at(block, 0) }
    }

    /// `d × q`.
    #[inline(always)]
    pub(crate) fn dequantise(&self, out: &mut [f32; 32]) {
        scale(out, &self.q, self.d);
    }
}

/// Q4_0 unpacked. The 18 bytes are the f16 scale, then 16 bytes whose low nibbles are quants 0–15 and high nibbles
/// 16–31. The quants come out with 8 taken away.
pub(crate) struct Q4_0Block {
    pub(crate) q: [i8; 32],
    pub(crate) d: f32,
}

impl Q4_0Block {
    #[inline(always)]
    pub(crate) fn unpack(block: &[u8; 18]) -> Self {
        let mut q = [0i8; 32];
        for i in 0..16 {
            q[i] = (block[2 + i] & 15) as i8 - 8;
            q[i + 16] = (block[2 + i] >> 4) as i8 - 8;
        }
        Self { q, d: half_at(block, 0) }
    }

    /// `d × q`.
    #[inline(always)]
    pub(crate) fn dequantise(&self, out: &mut [f32; 32]) {
        scale(out, &self.q, self.d);
    }
}

#[inline(always)]
fn scale(out: &mut [f32; 32], q: &[i8; 32], d: f32) {
    for (out, q) in out.iter_mut().zip(q) {
        *out = d * f32::from(*q);
    }
}

pub(super) fn pack_q8_0(values: &[f32; 32], block: &mut [u8; 34]) {
    let greatest = values.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    let d = greatest / 127.0;
    let inverse = if d > 0.0 { 1.0 / d } else { 0.0 };
    block[..2].copy_from_slice(&f32_to_f16(d).to_le_bytes());
    for (byte, value) in block[2..].iter_mut().zip(values) {
        *byte = (value * inverse).round() as i8 as u8;
    }
}

/// The value that is greatest without its sign becomes −8, so that the whole range of the nibble is used.
pub(super) fn pack_q4_0(values: &[f32; 32], block: &mut [u8; 18]) {
    let extreme = values.iter().fold(0.0f32, |m, v| if v.abs() > m.abs() { *v } else { m });
    let d = extreme / -8.0;
    let inverse = if d != 0.0 { 1.0 / d } else { 0.0 };
    let nibble = |value: f32| (value * inverse + 8.5).clamp(0.0, 15.0) as u8;
    block[..2].copy_from_slice(&f32_to_f16(d).to_le_bytes());
    for i in 0..16 {
        block[2 + i] = nibble(values[i]) | nibble(values[i + 16]) << 4;
    }
}

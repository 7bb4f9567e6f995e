//! The 32-wide formats: one f16 scale, and 8-bit or 4-bit quants.

use super::{f16_to_f32, f32_to_f16};

#[inline(always)]
fn half_at(bytes: &[u8], at: usize) -> f32 {
    f16_to_f32(u16::from_le_bytes([bytes[at], bytes[at + 1]]))
}

/// Q8_0: the scale, then 32 int8. A weight is `d × q`.
#[inline(always)]
pub(crate) fn unpack_q8_0(block: &[u8; 34]) -> ([i8; 32], f32) {
    let mut q = [0i8; 32];
    for (q, byte) in q.iter_mut().zip(&block[2..]) {
        *q = *byte as i8;
    }
    (q, half_at(block, 0))
}

/// Q4_0: the scale, then 16 bytes whose low nibbles are quants 0–15 and high nibbles 16–31. A weight is `d × (q − 8)`;
/// the quants come out with the 8 taken away.
#[inline(always)]
pub(crate) fn unpack_q4_0(block: &[u8; 18]) -> ([i8; 32], f32) {
    let mut q = [0i8; 32];
    for i in 0..16 {
        q[i] = (block[2 + i] & 15) as i8 - 8;
        q[i + 16] = (block[2 + i] >> 4) as i8 - 8;
    }
    (q, half_at(block, 0))
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

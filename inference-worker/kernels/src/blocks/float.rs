//! Half and brain floats. Written out instead of taken from a crate, because these vectorise inside a loop, where a
//! crate's check of the processor's features before every value would stand in the way.

/// The value of an IEEE half; exact. A NaN stays a NaN.
#[inline(always)]
pub fn f16_to_f32(half: u16) -> f32 {
    let half = u32::from(half);
    // The fields moved into an f32 make the value times 2⁻¹¹², subnormals included; the product is exact.
    let magnitude = f32::from_bits((half & 0x7fff) << 13) * f32::from_bits((127 + 112) << 23);
    let special = if half & 0x7c00 == 0x7c00 { 0x7f80_0000 } else { 0 };
    f32::from_bits(magnitude.to_bits() | special | (half & 0x8000) << 16)
}

/// The nearest IEEE half, ties to even; beyond 65520 an infinity.
#[inline(always)]
pub fn f32_to_f16(value: f32) -> u16 {
    let bits = value.to_bits();
    let sign = (bits >> 16 & 0x8000) as u16;
    let magnitude = bits & 0x7fff_ffff;
    let half = if magnitude > 0x7f80_0000 {
        0x7e00
    } else if magnitude >= 0x4780_0000 {
        // 65536 and above, infinity included.
        0x7c00
    } else if magnitude < 0x3880_0000 {
        // Below 2⁻¹⁴: adding 0.5 leaves the value in units of 2⁻²⁴ in the low bits, rounded by the addition.
        (f32::from_bits(magnitude) + 0.5).to_bits() - 0x3f00_0000
    } else {
        // Rebias the exponent and round the 13 bits away; a carry runs into the exponent as it should.
        (magnitude - (112 << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13
    };
    sign | half as u16
}

/// The value of a brain float; exact.
#[inline(always)]
pub fn bf16_to_f32(brain: u16) -> f32 {
    f32::from_bits(u32::from(brain) << 16)
}

/// The nearest brain float, ties to even.
#[inline(always)]
pub fn f32_to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    if value.is_nan() {
        return (bits >> 16) as u16 | 0x40;
    }
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::{bf16, f16};

    #[test]
    fn every_half_has_its_value() {
        for bits in 0..=u16::MAX {
            let (ours, theirs) = (f16_to_f32(bits), f16::from_bits(bits).to_f32_const());
            assert!(ours.to_bits() == theirs.to_bits() || ours.is_nan() && theirs.is_nan(), "{bits:#x}");
            assert!(theirs.is_nan() || f32_to_f16(ours) == bits, "{bits:#x}");
            let (ours, theirs) = (bf16_to_f32(bits), bf16::from_bits(bits).to_f32_const());
            assert!(ours.to_bits() == theirs.to_bits() || ours.is_nan() && theirs.is_nan(), "{bits:#x}");
            assert!(theirs.is_nan() || f32_to_bf16(ours) == bits, "{bits:#x}");
        }
    }

    #[test]
    fn rounding_is_to_nearest_even_over_the_whole_range() {
        for bits in
            (0..=u32::MAX).step_by(257).chain(0x477f_e000..0x4780_2000).chain(0x3300_0000..0x3300_0100)
        {
            let value = f32::from_bits(bits);
            let (half, brain) = (f32_to_f16(value), f32_to_bf16(value));
            if value.is_nan() {
                assert!(f16_to_f32(half).is_nan() && bf16_to_f32(brain).is_nan());
            } else {
                assert_eq!(half, f16::from_f32_const(value).to_bits(), "{value:e}");
                assert_eq!(brain, bf16::from_f32_const(value).to_bits(), "{value:e}");
            }
        }
    }
}

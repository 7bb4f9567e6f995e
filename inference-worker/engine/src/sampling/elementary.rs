//! Natural exponential and logarithm in plain f64 arithmetic. The platform's own differ in their last bits from one
//! C library to the next, and a drawn token must not.

/// ln 2 in two parts; products of the first with |k| < 2048 are exact.
const LN_2_HIGH: f64 = f64::from_bits(0x3FE6_2E42_FEE0_0000);
const LN_2_LOW: f64 = 1.908_214_929_270_587_7e-10;

/// 1/n! for n = 13 down to 0.
const EXP_TAYLOR: [f64; 14] = [
    1.0 / 6_227_020_800.0,
    1.0 / 479_001_600.0,
    1.0 / 39_916_800.0,
    1.0 / 3_628_800.0,
    1.0 / 362_880.0,
    1.0 / 40_320.0,
    1.0 / 5_040.0,
    1.0 / 720.0,
    1.0 / 120.0,
    1.0 / 24.0,
    1.0 / 6.0,
    0.5,
    1.0,
    1.0,
];

/// 1.5 × 2⁵²: adding it rounds to the nearest integer, ties to even, and leaves that integer in the low bits.
const TO_INTEGER: f64 = 6_755_399_441_055_744.0;

/// eˣ for x ≤ 0; 0 below -708, where the result would leave the normal numbers. Relative error below 4e-16. Without a
/// branch or a call, so that a loop over a vocabulary vectorises.
#[inline(always)]
pub(super) fn exp_of_negative(x: f64) -> f64 {
    debug_assert!(x <= 0.0);
    let x_kept = if x < -708.0 { -708.0 } else { x };
    let shifted = x_kept * std::f64::consts::LOG2_E + TO_INTEGER;
    let k = shifted - TO_INTEGER;
    let r = (x_kept - k * LN_2_HIGH) - k * LN_2_LOW;
    let mut sum = 0.0;
    for coefficient in EXP_TAYLOR {
        sum = sum * r + coefficient;
    }
    // -1022 ≤ k ≤ 0, so the biased exponent is that of a normal number; the shift drops all but k's low bits.
    let scale = f64::from_bits(shifted.to_bits().wrapping_add(1023) << 52);
    if x < -708.0 { 0.0 } else { sum * scale }
}

/// ln x for normal x ≥ 1. Absolute error below 1e-15 times the result, or 1e-16.
pub(super) fn ln_of_at_least_one(x: f64) -> f64 {
    debug_assert!(x >= 1.0);
    let bits = x.to_bits();
    let mut exponent = (bits >> 52) as i64 - 1023;
    let mut mantissa = f64::from_bits((bits & ((1 << 52) - 1)) | (1023 << 52));
    if mantissa > std::f64::consts::SQRT_2 {
        mantissa *= 0.5;
        exponent += 1;
    }
    // ln m = 2 artanh s = 2 (s + s³/3 + s⁵/5 + …), |s| ≤ 0.172.
    let s = (mantissa - 1.0) / (mantissa + 1.0);
    let square = s * s;
    let mut series = 0.0;
    for n in (0..12u32).rev() {
        series = series * square + 1.0 / f64::from(2 * n + 1);
    }
    let k = exponent as f64;
    k * LN_2_HIGH + (2.0 * s * series + k * LN_2_LOW)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_agrees_with_the_platform() {
        for step in 0..70_000 {
            let x = -f64::from(step) * 0.0101;
            let (ours, theirs) = (exp_of_negative(x), x.exp());
            assert!((ours - theirs).abs() <= 4e-16 * theirs, "exp({x}) = {theirs}, not {ours}");
        }
        assert_eq!(exp_of_negative(0.0), 1.0);
        assert_eq!(exp_of_negative(-1000.0), 0.0);
        assert_eq!(exp_of_negative(f64::NEG_INFINITY), 0.0);
    }

    #[test]
    fn ln_agrees_with_the_platform() {
        let mut x = 1.0;
        while x < 1e9 {
            let (ours, theirs) = (ln_of_at_least_one(x), x.ln());
            assert!((ours - theirs).abs() <= 1e-15 * theirs + 1e-16, "ln({x}) = {theirs}, not {ours}");
            x *= 1.000_37;
        }
        assert_eq!(ln_of_at_least_one(1.0), 0.0);
    }
}

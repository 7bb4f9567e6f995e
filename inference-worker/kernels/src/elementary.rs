//! One f32 `exp` for every platform, and what is made of it. The C library's differ from system to system; this one is
//! additions, products and bit patterns, so its bits are the same everywhere and it vectorises.

/// `eˣ` with an error below 1.5 units in the last place where the result is a normal number, and below 1.5 of the
/// smallest positive number where it is not. `exp(0) = 1` exactly; above 88.73 ∞; below −104 zero; NaN stays NaN.
///
/// `x = n ln 2 + r` with `n` the nearest integer to `x / ln 2`, ties to even, and `ln 2` in two parts of which the first
/// times `n` is exact. `eʳ` is Taylor's polynomial of degree 7, by Horner's rule; with `|r| ≤ 0.347` its remainder is
/// below 6 × 10⁻⁹. The power of two is multiplied in two halves, so that only the last product may round.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const TO_INTEGER: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 355.0 / 512.0;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let x = if x < -105.0 { -105.0 } else { x };
    let x = if x > 89.0 { 89.0 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + TO_INTEGER;
    let n = shifted - TO_INTEGER;
    let r = (x - n * LN2_HIGH) - n * LN2_LOW;
    let mut p = 1.0 / 5040.0;
    for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = p * r + coefficient;
    }
    // The low bits of the shifted value are n; for a NaN they are anything, and p is NaN.
    let n = shifted.to_bits().wrapping_sub(TO_INTEGER.to_bits()) as i32;
    let half = n >> 1;
    p * power_of_two(half) * power_of_two(n.wrapping_sub(half))
}

/// 2ⁿ for −126 ≤ n ≤ 127, anything else elsewhere.
#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) as u32) << 23)
}

/// `1 / (1 + e⁻ˣ)`.
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// `x / (1 + e⁻ˣ)`.
#[inline(always)]
pub fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Distance in units of the last place of the true value, the smallest positive number's below the normal range.
    fn error(x: f32) -> f64 {
        let truth = f64::from(x).exp();
        let exponent = truth.log2().floor().max(-126.0) - 23.0;
        (f64::from(exp(x)) - truth).abs() / exponent.exp2()
    }

    #[test]
    fn exp_keeps_its_bound_over_a_dense_sweep() {
        let mut worst = 0.0f64;
        // Every 61st float from 0 to ±105, and all floats around the borders of ranges.
        for bits in (0..105.0f32.to_bits()).step_by(61) {
            for x in [f32::from_bits(bits), -f32::from_bits(bits)] {
                if x < 88.72 {
                    worst = worst.max(error(x));
                }
            }
        }
        for centre in [0.346_573_6f32, 88.722, 87.336, 103.9, 1.0, 104.0] {
            for bits in centre.to_bits() - 5000..centre.to_bits() + 5000 {
                for x in [f32::from_bits(bits), -f32::from_bits(bits)] {
                    if x < 88.722 {
                        worst = worst.max(error(x));
                    }
                }
            }
        }
        assert!(worst < 1.5, "{worst} units in the last place");
    }

    #[test]
    fn exp_at_its_borders() {
        assert_eq!(exp(0.0).to_bits(), 1.0f32.to_bits());
        assert_eq!(exp(-0.0).to_bits(), 1.0f32.to_bits());
        assert_eq!(exp(f32::NEG_INFINITY).to_bits(), 0);
        assert_eq!(exp(-104.5).to_bits(), 0);
        assert_eq!(exp(88.73), f32::INFINITY);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert!(exp(f32::NAN).is_nan());
        assert!(exp(-f32::NAN).is_nan());
    }

    #[test]
    fn gates_agree_with_f64() {
        for i in -4000..4000 {
            let x = i as f32 * 0.025;
            let truth = 1.0 / (1.0 + (-f64::from(x)).exp());
            assert!((f64::from(sigmoid(x)) - truth).abs() <= 3e-7 * truth + 1e-38, "sigmoid({x})");
            let truth = truth * f64::from(x);
            assert!((f64::from(silu(x)) - truth).abs() <= 3e-7 * truth.abs() + 1e-36, "silu({x})");
        }
        assert_eq!((sigmoid(200.0), sigmoid(-200.0), silu(-200.0)), (1.0, 0.0, 0.0));
    }
}

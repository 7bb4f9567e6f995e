//! Sums of f32 in one fixed order: 16 lanes, then a tree.
//!
//! Element `i` is added to lane `i mod 16`, in ascending `i`, every lane starting from +0. Then lane `j` takes lane
//! `j + 8`, then `j + 4`, `j + 2`, `j + 1`; lane 0 is the sum. Sixteen f32 are one AVX-512, two AVX2 or four NEON
//! registers, so each can keep this order at full speed.

/// Lanes of a sum.
pub const LANES: usize = 16;

/// The running state of a sum.
pub type Lanes = [f32; LANES];

/// Joins the lanes by the tree.
#[inline(always)]
pub fn join(lanes: &Lanes) -> f32 {
    let mut eight = [0.0f32; 8];
    for i in 0..8 {
        eight[i] = lanes[i] + lanes[i + 8];
    }
    let four = [eight[0] + eight[4], eight[1] + eight[5], eight[2] + eight[6], eight[3] + eight[7]];
    (four[0] + four[2]) + (four[1] + four[3])
}

/// Adds the products `a[i] × b[i]` into the lanes. Element 0 goes to lane 0, so a sum taken in several calls must have
/// a multiple of 16 elements in each but the last.
#[inline(always)]
pub fn add_products(lanes: &mut Lanes, a: &[f32], b: &[f32]) {
    assert_eq!(a.len(), b.len(), "factors of a dot differ in length");
    let (a, a_rest) = a.as_chunks::<LANES>();
    let (b, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a.iter().zip(b) {
        for i in 0..LANES {
            lanes[i] += a[i] * b[i];
        }
    }
    for (i, (a, b)) in a_rest.iter().zip(b_rest).enumerate() {
        lanes[i] += a * b;
    }
}

/// The dot product.
#[inline(always)]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    add_products(&mut lanes, a, b);
    join(&lanes)
}

/// The sum.
#[inline(always)]
pub fn sum(values: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    let (whole, rest) = values.as_chunks::<LANES>();
    for chunk in whole {
        for i in 0..LANES {
            lanes[i] += chunk[i];
        }
    }
    for (i, value) in rest.iter().enumerate() {
        lanes[i] += value;
    }
    join(&lanes)
}

/// The greatest value; −∞ for none. NaN is never the greatest. Only the sign of a zero could tell the order of comparing.
#[inline(always)]
pub fn max(values: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (whole, rest) = values.as_chunks::<LANES>();
    for chunk in whole {
        for i in 0..LANES {
            lanes[i] = if chunk[i] > lanes[i] { chunk[i] } else { lanes[i] };
        }
    }
    for (i, value) in rest.iter().enumerate() {
        lanes[i] = if *value > lanes[i] { *value } else { lanes[i] };
    }
    lanes.into_iter().fold(f32::NEG_INFINITY, |a, b| if b > a { b } else { a })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rule, said as plainly as possible.
    fn plain_sum(values: impl Iterator<Item = f32>) -> f32 {
        let mut lanes = [0.0f32; 16];
        for (i, value) in values.enumerate() {
            lanes[i % 16] += value;
        }
        let mut width = 8;
        while width > 0 {
            for i in 0..width {
                lanes[i] += lanes[i + width];
            }
            width /= 2;
        }
        lanes[0]
    }

    #[test]
    fn sums_follow_the_rule_to_the_bit() {
        for len in [0, 1, 15, 16, 17, 255, 256, 1000] {
            let a: Vec<f32> = (0..len).map(|i| ((i * 7919) % 1013) as f32 * 0.37 - 150.0).collect();
            let b: Vec<f32> = (0..len).map(|i| ((i * 104_729) % 997) as f32 * 1e-3 - 0.4).collect();
            assert_eq!(sum(&a).to_bits(), plain_sum(a.iter().copied()).to_bits());
            assert_eq!(dot(&a, &b).to_bits(), plain_sum(a.iter().zip(&b).map(|(a, b)| a * b)).to_bits());
        }
    }

    #[test]
    fn max_ignores_nan_and_knows_nothing() {
        assert_eq!(max(&[]), f32::NEG_INFINITY);
        assert_eq!(max(&[f32::NAN, -3.0, f32::NAN, -7.0]), -3.0);
    }
}

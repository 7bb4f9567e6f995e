//! Sums of rows and root-mean-square norms.
//!
//! A norm is, per row or piece of `n` values: `s` the [`lanes`] sum of the squares;
//! `r = 1 / √(s / n + ε)`; then `(x × r) × weight`.

use crate::lanes;
use crate::pool::{Pool, Shared};
use crate::segments::Segments;
use crate::versions::versions;

/// `x += delta`, value by value.
pub fn add(pool: &Pool, x: &mut [f32], delta: &[f32]) {
    assert_eq!(x.len(), delta.len(), "sums of rows of different sizes");
    const CHUNK: usize = 4096;
    let whole = x.len() - x.len() % CHUNK;
    let (chunks, rest) = x.split_at_mut(whole);
    pool.for_rows(chunks, CHUNK, CHUNK, |i, x| add_to(x, &delta[i * CHUNK..][..CHUNK]));
    add_to(rest, &delta[whole..]);
}

/// Adds one bias row to every row of `x`.
pub fn add_bias(pool: &Pool, x: &mut [f32], bias: &[f32]) {
    pool.for_rows(x, bias.len(), bias.len(), |_, x| add_to(x, bias));
}

/// The norm of every row of `weight.len()` values, into `out` of the same size.
pub fn rms_norm(pool: &Pool, x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
    assert_eq!(x.len(), out.len(), "a norm's input and output differ in size");
    let len = weight.len();
    pool.for_rows(out, len, len, |row, out| norm_row(&x[row * len..][..len], weight, epsilon, out));
}

/// `x += delta`, then the norm of `x` into `out`: one pass for the end of a block and the start of the next.
pub fn add_rms_norm(
    pool: &Pool,
    x: &mut [f32],
    delta: &[f32],
    weight: &[f32],
    epsilon: f32,
    out: &mut [f32],
) {
    assert_eq!(x.len(), delta.len(), "sums of rows of different sizes");
    assert_eq!(x.len(), out.len(), "a norm's input and output differ in size");
    let len = weight.len();
    let out = Shared::new(out);
    pool.for_rows(x, len, len, |row, x| {
        add_to(x, &delta[row * len..][..len]);
        // SAFETY: each row is visited once, and rows do not overlap.
        let out = unsafe { out.part(row * len..(row + 1) * len) };
        norm_row(x, weight, epsilon, out);
    });
}

/// The norm of every piece in place; `weight` has the length of a piece.
pub fn rms_norm_in_place(pool: &Pool, x: &mut [f32], segments: Segments, weight: &[f32], epsilon: f32) {
    assert_eq!(segments.len, weight.len(), "a norm's weight is not as long as the pieces");
    segments.rows_in(x.len());
    pool.for_rows(x, segments.stride, segments.len, |_, x| {
        norm_in_place(&mut x[segments.offset..][..segments.len], weight, epsilon);
    });
}

versions! {
    fn add_to(x: &mut [f32], delta: &[f32]) {
        assert_eq!(x.len(), delta.len(), "sums of rows of different sizes");
        for (x, delta) in x.iter_mut().zip(delta) {
            *x += delta;
        }
    }
}

versions! {
    fn norm_row(x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
        let r = inverse_rms(x, epsilon);
        for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
            *out = (x * r) * weight;
        }
    }
}

versions! {
    fn norm_in_place(x: &mut [f32], weight: &[f32], epsilon: f32) {
        let r = inverse_rms(x, epsilon);
        for (x, weight) in x.iter_mut().zip(weight) {
            *x = (*x * r) * weight;
        }
    }
}

#[inline(always)]
fn inverse_rms(x: &[f32], epsilon: f32) -> f32 {
    1.0 / (lanes::dot(x, x) / x.len() as f32 + epsilon).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ramp(n: usize, step: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * step) % 1009) as f32 * 0.01 - 5.0).collect()
    }

    fn oracle(x: &[f32], weight: &[f32], epsilon: f64) -> Vec<f64> {
        let mean = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / x.len() as f64;
        x.iter().zip(weight).map(|(x, w)| f64::from(*x) / (mean + epsilon).sqrt() * f64::from(*w)).collect()
    }

    #[test]
    fn norms_agree_with_f64_and_with_each_other() {
        for len in [1, 7, 16, 100, 7168] {
            let (x, delta, weight) = (ramp(3 * len, 7919), ramp(3 * len, 271), ramp(len, 31));
            for threads in [1, 2, 3] {
                let pool = Pool::new(threads).unwrap();
                let (mut sum, mut out) = (x.clone(), vec![0.0; 3 * len]);
                add_rms_norm(&pool, &mut sum, &delta, &weight, 1e-6, &mut out);
                let mut apart = x.clone();
                add(&pool, &mut apart, &delta);
                assert_eq!(sum, apart);
                let mut alone = vec![0.0; len];
                for row in 0..3 {
                    let (sum, out) = (&sum[row * len..][..len], &out[row * len..][..len]);
                    rms_norm(&pool, sum, &weight, 1e-6, &mut alone);
                    assert_eq!(alone, out, "a row alone has the bits it has among others");
                    for (ours, truth) in out.iter().zip(oracle(sum, &weight, 1e-6)) {
                        assert!((f64::from(*ours) - truth).abs() <= 1e-6 * truth.abs() + 1e-9);
                    }
                }
                let segments = Segments { per_row: 1, stride: len + 5, offset: 3, len };
                let mut padded: Vec<f32> =
                    sum.chunks(len).flat_map(|row| [&[9.0; 3], row, &[8.0; 2]].concat()).collect();
                rms_norm_in_place(&pool, &mut padded, segments, &weight, 1e-6);
                let expected: Vec<f32> =
                    out.chunks(len).flat_map(|row| [&[9.0; 3], row, &[8.0; 2]].concat()).collect();
                assert_eq!(padded, expected);
            }
        }
    }

    #[test]
    fn a_bias_goes_to_every_row() {
        let mut x = vec![1.0, 2.0, 3.0, 4.0];
        add_bias(&Pool::inline(), &mut x, &[0.5, -1.0]);
        assert_eq!(x, [1.5, 1.0, 3.5, 3.0]);
    }
}

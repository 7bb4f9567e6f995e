//! Rotary positions: the angles of a position, and the turning of pairs.

use crate::pool::Pool;
use crate::segments::Segments;

/// How a context beyond the trained one stretches the angles.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Scaling {
    /// Not at all.
    None,
    /// Every frequency divided by the factor.
    Linear {
        /// New context over trained context.
        factor: f64,
    },
    /// YaRN: slow frequencies divided by the factor, fast ones kept, a ramp between.
    Yarn {
        /// New context over trained context.
        factor: f64,
        /// Positions of the trained context.
        original_context: f64,
        /// Turns over the trained context from which on a frequency counts as fast; usually 32.
        beta_fast: f64,
        /// Turns below which it counts as slow; usually 1.
        beta_slow: f64,
    },
}

/// The `dim / 2` frequencies, in radians per position: `base^(−2i / dim)`, scaled, each divided by its factor if there
/// are `factors` (Llama 3's `rope_freqs`). All in f64, with the same bits on every platform.
///
/// YaRN's ramp runs from `⌊c(beta_fast)⌋` (at least 0) to `⌈c(beta_slow)⌉` (at most `dim − 1`), where
/// `c(β) = dim × ln(original_context / 2πβ) / (2 ln base)`; a ramp shorter than 0.001 counts as 0.001.
pub fn frequencies(dim: usize, base: f64, scaling: Scaling, factors: Option<&[f32]>) -> Vec<f64> {
    assert!(dim.is_multiple_of(2), "rope turns pairs, but {dim} is odd");
    let half = dim / 2;
    if let Some(factors) = factors {
        assert_eq!(factors.len(), half, "one factor per frequency");
    }
    (0..half)
        .map(|i| {
            let frequency = libm::pow(base, -((2 * i) as f64) / dim as f64);
            let frequency = factors.map_or(frequency, |factors| frequency / f64::from(factors[i]));
            match scaling {
                Scaling::None => frequency,
                Scaling::Linear { factor } => frequency / factor,
                Scaling::Yarn { factor, original_context, beta_fast, beta_slow } => {
                    let corner = |turns: f64| {
                        let wavelengths = original_context / (turns * 2.0 * std::f64::consts::PI);
                        dim as f64 * libm::log(wavelengths) / (2.0 * libm::log(base))
                    };
                    let low = corner(beta_fast).floor().max(0.0);
                    let high = corner(beta_slow).ceil().min((dim - 1) as f64);
                    let slow = ((i as f64 - low) / (high - low).max(0.001)).clamp(0.0, 1.0);
                    frequency / factor * slow + frequency * (1.0 - slow)
                }
            }
        })
        .collect()
}

/// Cosines and sines for a batch: `cos[t][i] = magnitude × cos(positions[t] × frequencies[i])`, computed in f64 and
/// rounded once. Both outputs are `positions × frequencies`; they serve every layer of a step.
pub fn angles(positions: &[u32], frequencies: &[f64], magnitude: f64, cos: &mut [f32], sin: &mut [f32]) {
    let half = frequencies.len();
    assert_eq!(cos.len(), positions.len() * half, "cosines are not positions × frequencies");
    assert_eq!(sin.len(), positions.len() * half, "sines are not positions × frequencies");
    for (t, position) in positions.iter().enumerate() {
        for (i, frequency) in frequencies.iter().enumerate() {
            let angle = f64::from(*position) * frequency;
            cos[t * half + i] = (magnitude * libm::cos(angle)) as f32;
            sin[t * half + i] = (magnitude * libm::sin(angle)) as f32;
        }
    }
}

/// Which values of a piece turn together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// `2i` with `2i + 1`: deepseek2 and llama files.
    Pairs,
    /// `i` with `i + dim / 2`: qwen files.
    Halves,
}

/// Turns every piece in place: `(a, b)` becomes `(a × cos − b × sin, a × sin + b × cos)`, each product rounded, then
/// the sum. `cos` and `sin` are rows of `segments.len / 2`, one per row of `x`, from [`angles`].
pub fn rope(pool: &Pool, layout: Layout, x: &mut [f32], segments: Segments, cos: &[f32], sin: &[f32]) {
    let rows = segments.rows_in(x.len());
    let half = segments.len / 2;
    assert_eq!(half * 2, segments.len, "rope turns pairs, but pieces have {} values", segments.len);
    assert_eq!(cos.len(), rows * half, "cosines are not rows × half a piece");
    assert_eq!(sin.len(), rows * half, "sines are not rows × half a piece");
    pool.for_rows(x, segments.row_len(), segments.per_row * segments.len, |row, x| {
        let (cos, sin) = (&cos[row * half..][..half], &sin[row * half..][..half]);
        for piece in x.chunks_exact_mut(segments.stride) {
            let piece = &mut piece[segments.offset..][..segments.len];
            for i in 0..half {
                let (first, second) = match layout {
                    Layout::Pairs => (2 * i, 2 * i + 1),
                    Layout::Halves => (i, i + half),
                };
                let (a, b) = (piece[first], piece[second]);
                piece[first] = a * cos[i] - b * sin[i];
                piece[second] = a * sin[i] + b * cos[i];
            }
        }
    });
}

/// Copies the pieces of `from` to those of `to`, piece by piece: a query's turned part to its place behind the absorbed
/// one. Both must have as many pieces of the same length.
pub fn copy_pieces(from: &[f32], from_segments: Segments, to: &mut [f32], to_segments: Segments) {
    assert_eq!(from_segments.len, to_segments.len, "pieces differ in length");
    let pieces = from_segments.pieces_in(from.len());
    assert_eq!(pieces, to_segments.pieces_in(to.len()), "pieces differ in number");
    for piece in 0..pieces {
        let at = piece * to_segments.stride + to_segments.offset;
        to[at..at + to_segments.len].copy_from_slice(from_segments.piece(from, piece));
    }
}

//! From a row of logits to what sampling looks at: the sum of exponentials, and the greatest few.

use crate::elementary::exp;
use crate::lanes::{self, LANES};
use crate::pool::{Pool, Shared};
use crate::versions::versions;

/// A token that may be chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    /// The token's id.
    pub id: u32,
    /// Its logit; its log-probability is this less the row's [`log_sum_exp`].
    pub logit: f32,
}

impl Candidate {
    /// What scratch is filled with.
    pub const NONE: Candidate = Candidate { id: u32::MAX, logit: f32::NEG_INFINITY };
}

/// `max + ln Σ exp(x − max)`: the [`lanes`] sum, its logarithm in f64 rounded once, then one addition. NaN
/// when any logit is NaN.
pub fn log_sum_exp(logits: &[f32]) -> f32 {
    let max = lanes::max(logits);
    max + libm::log(f64::from(sum_exp(logits, max))) as f32
}

versions! {
    fn sum_exp(logits: &[f32], max: f32) -> f32 {
        let mut lanes = [0.0f32; LANES];
        let (whole, rest) = logits.as_chunks::<LANES>();
        for chunk in whole {
            for i in 0..LANES {
                lanes[i] += exp(chunk[i] - max);
            }
        }
        for (i, logit) in rest.iter().enumerate() {
            lanes[i] += exp(logit - max);
        }
        lanes::join(&lanes)
    }
}

/// Per row of `vocabulary` logits the `k` greatest, greatest first and ties to the lower id, and the row's
/// [`log_sum_exp`]. NaN counts as −∞ here and shows in the sum.
///
/// `candidates` is `rows × k` with `1 ≤ k ≤ vocabulary`, `sums` one per row.
pub fn top_candidates(
    pool: &Pool,
    logits: &[f32],
    vocabulary: usize,
    k: usize,
    candidates: &mut [Candidate],
    sums: &mut [f32],
) {
    assert!((1..=vocabulary).contains(&k), "{k} candidates of a vocabulary of {vocabulary}");
    assert_eq!(logits.len(), sums.len() * vocabulary, "logits are not rows × vocabulary");
    assert_eq!(candidates.len(), sums.len() * k, "candidates are not rows × k");
    let sums = Shared::new(sums);
    pool.for_rows(candidates, k, vocabulary * 16, |row, best| {
        let logits = &logits[row * vocabulary..][..vocabulary];
        greatest(logits, best);
        // SAFETY: each row is visited once.
        unsafe { sums.write(row, log_sum_exp(logits)) };
    });
}

/// Keeps `best` sorted while walking over the row; what does not beat the last of a full list is passed over.
fn greatest(logits: &[f32], best: &mut [Candidate]) {
    let mut held = 0;
    for (id, logit) in logits.iter().enumerate() {
        let logit = if logit.is_nan() { f32::NEG_INFINITY } else { *logit };
        if held == best.len() && logit <= best[held - 1].logit {
            continue;
        }
        let place = best[..held].partition_point(|candidate| candidate.logit >= logit);
        held = best.len().min(held + 1);
        best[place..held].rotate_right(1);
        best[place] = Candidate { id: id as u32, logit };
    }
}

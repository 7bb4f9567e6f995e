//! From a row of logits to a token: pure, and equal on every machine.
//!
//! Penalties and bias change the logits; the log-softmax of these is what a token's reported logprob is taken from.
//! Then temperature, top-k, top-p and min-p, in this order, leave the candidates of the draw. Candidates are ordered by
//! descending logit, equal ones by ascending id, and every sum runs in a fixed order in f64.

mod elementary;
mod history;
mod parameters;
mod philox;

use std::cmp::Ordering;

use elementary::{exp_of_negative, ln_of_at_least_one};
use thiserror::Error;

pub use history::History;
pub use parameters::{BadParameter, Sampling};
pub use philox::{Draw, philox4x32};

/// The token that was chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// Its id.
    pub id: u32,
    /// Natural log of its probability before temperature and truncation.
    pub logprob: f32,
    /// The most likely ids with their logprobs, in order; as many as were asked for.
    pub top: Vec<(u32, f32)>,
}

/// Some logit is NaN or infinite: nothing can be drawn from this row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the logits hold a value that is not finite")]
pub struct NotFinite;

/// Chooses the token after a row of logits (one per id of the vocabulary), which it changes by penalties and bias.
///
/// # Errors
/// When a logit is not finite.
///
/// # Panics
/// When the row is empty, or `history` or the bias name ids outside of it.
pub fn choose(
    logits: &mut [f32],
    history: &History,
    sampling: &Sampling,
    draw: Draw,
    top_logprobs: usize,
) -> Result<Choice, NotFinite> {
    sampling.adjust(logits, history);
    if !logits.iter().all(|logit| logit.is_finite()) {
        return Err(NotFinite);
    }
    let logits = &*logits;
    let best = most_likely(logits);
    let peak = f64::from(logits[best as usize]);
    let weights_at = |temperature: f64| -> Vec<f64> {
        logits.iter().map(|&logit| exp_of_negative((f64::from(logit) - peak) / temperature)).collect()
    };
    let weights = weights_at(1.0);

    let id = if sampling.temperature == 0.0 {
        best
    } else if sampling.temperature == 1.0 {
        sampling.draw_from(logits, &weights, draw.uniform())
    } else {
        sampling.draw_from(logits, &weights_at(sampling.temperature.into()), draw.uniform())
    };

    let log_total = ln_of_at_least_one(weights.iter().sum());
    let logprob_of = |id: u32| (f64::from(logits[id as usize]) - peak - log_total) as f32;
    let top = if top_logprobs == 0 {
        Vec::new()
    } else {
        let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
        order_first(&mut ids, top_logprobs, logits);
        ids.truncate(top_logprobs);
        ids.into_iter().map(|id| (id, logprob_of(id))).collect()
    };
    Ok(Choice { id, logprob: logprob_of(id), top })
}

impl Sampling {
    fn adjust(&self, logits: &mut [f32], history: &History) {
        let penalises =
            self.repetition_penalty != 1.0 || self.presence_penalty != 0.0 || self.frequency_penalty != 0.0;
        // A long prompt has many ids to visit for nothing.
        let penalised = penalises.then(|| history.iter()).into_iter().flatten();
        for (id, count) in penalised {
            let logit = &mut logits[id as usize];
            *logit = if *logit > 0.0 {
                *logit / self.repetition_penalty
            } else {
                *logit * self.repetition_penalty
            };
            if count > 0 {
                *logit -= self.presence_penalty + self.frequency_penalty * count as f32;
            }
        }
        for &(id, bias) in &self.logit_bias {
            logits[id as usize] += bias;
        }
    }

    /// Draws among what truncation leaves. A weight is a probability, but for a factor that all share: the most likely
    /// id has weight 1, and is never cut.
    fn draw_from(&self, logits: &[f32], weights: &[f64], uniform: f64) -> u32 {
        let vocab = logits.len();
        let mut ids: Vec<u32> = (0..vocab as u32).collect();
        if self.top_k > 0 && self.top_k < vocab {
            order_first(&mut ids, self.top_k, logits);
            ids.truncate(self.top_k);
        }
        if self.top_p < 1.0 {
            let total: f64 = ids.iter().map(|&id| weights[id as usize]).sum();
            let kept = nucleus(&mut ids, logits, weights, self.top_p * total);
            ids.truncate(kept);
        }
        ids.retain(|&id| weights[id as usize] >= self.min_p && weights[id as usize] > 0.0);
        pick(&ids, weights, uniform)
    }
}

/// Brings the most likely ids that together weigh at least `mass` to the front, in order, and counts them.
fn nucleus(ids: &mut [u32], logits: &[f32], weights: &[f64], mass: f64) -> usize {
    // A nucleus is small most of the time, so order a short front first, and more only if that is not enough.
    let mut ordered = 64;
    loop {
        ordered = ordered.min(ids.len());
        order_first(ids, ordered, logits);
        let mut sum = 0.0;
        for (place, &id) in ids[..ordered].iter().enumerate() {
            sum += weights[id as usize];
            if sum >= mass {
                return place + 1;
            }
        }
        if ordered == ids.len() {
            return ordered;
        }
        ordered *= 16;
    }
}

/// Brings the `count` most likely ids to the front, in order.
fn order_first(ids: &mut [u32], count: usize, logits: &[f32]) {
    let order = |&a: &u32, &b: &u32| by_likelihood(logits, a, b);
    let count = count.min(ids.len());
    if count < ids.len() {
        ids.select_nth_unstable_by(count, order);
    }
    ids[..count].sort_unstable_by(order);
}

/// Descending by logit, then ascending by id. Logits are finite, and -0 equals 0.
fn by_likelihood(logits: &[f32], a: u32, b: u32) -> Ordering {
    let (logit_a, logit_b) = (logits[a as usize], logits[b as usize]);
    logit_b.partial_cmp(&logit_a).unwrap_or(Ordering::Equal).then(a.cmp(&b))
}

fn most_likely(logits: &[f32]) -> u32 {
    (0..logits.len() as u32).min_by(|&a, &b| by_likelihood(logits, a, b)).expect("a vocabulary is not empty")
}

/// The id at `uniform` of the way through all weights.
fn pick(ids: &[u32], weights: &[f64], uniform: f64) -> u32 {
    let total: f64 = ids.iter().map(|&id| weights[id as usize]).sum();
    let target = uniform * total;
    let mut sum = 0.0;
    for &id in ids {
        sum += weights[id as usize];
        if sum > target {
            return id;
        }
    }
    // Rounding can leave the sum a hair below the target.
    *ids.last().expect("truncation keeps the most likely id")
}

#[cfg(test)]
mod tests;

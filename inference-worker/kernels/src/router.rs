//! Which experts a token goes to, and with what weight.

use crate::elementary::{exp, sigmoid};
use crate::lanes;
use crate::pool::{Pool, Shared};
use crate::versions::versions;

/// How logits become probabilities.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gating {
    /// Each expert's own sigmoid: Kimi, DeepSeek V3.
    Sigmoid,
    /// Over all experts: `exp(x − max)`, divided by its [`lanes`] sum.
    Softmax,
}

/// A model's rule of routing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Router {
    /// Experts to choose among.
    pub experts: usize,
    /// Experts chosen per token.
    pub used: usize,
    /// How logits become probabilities.
    pub gating: Gating,
    /// Equal groups of neighbouring experts; 1 for none, at most [`Router::MAX_GROUPS`].
    pub groups: usize,
    /// Groups that experts may be chosen from.
    pub groups_used: usize,
    /// Whether the chosen probabilities are divided by their sum.
    pub normalise: bool,
    /// What the weights are multiplied with.
    pub scale: f32,
}

impl Router {
    /// The greatest number of groups.
    pub const MAX_GROUPS: usize = 64;
}

/// Chooses experts for every row of `logits`, which become probabilities in place.
///
/// Experts are chosen by probability plus bias, greatest first, ties to the lower id; that order is the router's order.
/// With groups, only experts of the best groups stand for choice; a group's score is the sum of its two greatest, ties
/// to the lower group. The weight is the probability without bias; when normalised, divided by the sum of the chosen
/// ones (added in the router's order from +0, at least 2⁻¹⁴); then multiplied with the scale. NaN stands above all
/// numbers, so that a poisoned row keeps its NaN.
///
/// `logits` are `tokens × experts`; `ids` and `weights` become `tokens × used`.
pub fn route(
    pool: &Pool,
    router: &Router,
    logits: &mut [f32],
    bias: Option<&[f32]>,
    ids: &mut [u32],
    weights: &mut [f32],
) {
    let Router { experts, used, groups, groups_used, .. } = *router;
    assert!(0 < used && used <= experts, "{used} of {experts} experts");
    assert!((1..=Router::MAX_GROUPS).contains(&groups) && experts.is_multiple_of(groups), "{groups} groups");
    assert!((1..=groups).contains(&groups_used), "{groups_used} of {groups} groups");
    assert!(used <= experts / groups * groups_used, "the groups used hold fewer than {used} experts");
    let tokens = logits.len() / experts;
    assert_eq!(ids.len(), tokens * used, "ids are not tokens × used experts");
    assert_eq!(weights.len(), tokens * used, "weights are not tokens × used experts");
    if let Some(bias) = bias {
        assert_eq!(bias.len(), experts, "one bias per expert");
    }
    let (ids, weights) = (Shared::new(ids), Shared::new(weights));
    pool.for_rows(logits, experts, experts * (used + 16), |token, probabilities| {
        let own = token * used..(token + 1) * used;
        // SAFETY: each token is visited once, and tokens do not overlap.
        let (ids, weights) = unsafe { (ids.part(own.clone()), weights.part(own)) };
        gate(router.gating, probabilities);
        choose(router, probabilities, bias, ids);
        weigh(router, probabilities, ids, weights);
    });
}

fn gate(gating: Gating, values: &mut [f32]) {
    match gating {
        Gating::Sigmoid => sigmoids(values),
        Gating::Softmax => softmax(values),
    }
}

versions! {
    fn sigmoids(values: &mut [f32]) {
        for value in values {
            *value = sigmoid(*value);
        }
    }
}

versions! {
    fn softmax(values: &mut [f32]) {
        let max = lanes::max(values);
        for value in values.iter_mut() {
            *value = exp(*value - max);
        }
        let sum = lanes::sum(values);
        for value in values.iter_mut() {
            *value /= sum;
        }
    }
}

fn choose(router: &Router, probabilities: &[f32], bias: Option<&[f32]>, ids: &mut [u32]) {
    let score = |expert: usize| probabilities[expert] + bias.map_or(0.0, |bias| bias[expert]);
    let size = router.experts / router.groups;
    let mut open = [true; Router::MAX_GROUPS];
    if router.groups_used < router.groups {
        let mut scores = [0.0; Router::MAX_GROUPS];
        for (group, sum) in scores[..router.groups].iter_mut().enumerate() {
            let members = group * size..(group + 1) * size;
            let best = next(members.clone(), score, None).expect("a group has members");
            let second = next(members, score, Some(best)).map_or(0.0, |second| score(second.expert));
            *sum = score(best.expert) + second;
        }
        open = [false; Router::MAX_GROUPS];
        let mut last = None;
        for _ in 0..router.groups_used {
            let best =
                next(0..router.groups, |group| scores[group], last).expect("no more groups than there are");
            open[best.expert] = true;
            last = Some(best);
        }
    }
    let mut last = None;
    for id in ids {
        let candidates = (0..router.experts).filter(|expert| open[expert / size]);
        let best = next(candidates, score, last).expect("open groups hold enough experts");
        *id = best.expert as u32;
        last = Some(best);
    }
}

/// A place in the order of choice.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Place {
    key: i32,
    expert: usize,
}

impl Place {
    fn before(self, other: Place) -> bool {
        (other.key, self.expert) < (self.key, other.expert)
    }
}

/// The first in the order of choice after `last`.
fn next(
    candidates: impl Iterator<Item = usize>,
    score: impl Fn(usize) -> f32,
    last: Option<Place>,
) -> Option<Place> {
    let mut best: Option<Place> = None;
    for expert in candidates {
        let place = Place { key: order(score(expert)), expert };
        if last.is_none_or(|last| last.before(place)) && best.is_none_or(|best| place.before(best)) {
            best = Some(place);
        }
    }
    best
}

/// An integer that orders as the number does; both zeros are one, and NaN is above all.
fn order(value: f32) -> i32 {
    if value.is_nan() {
        return i32::MAX;
    }
    let bits = (value + 0.0).to_bits() as i32;
    bits ^ (bits >> 31 & i32::MAX)
}

fn weigh(router: &Router, probabilities: &[f32], ids: &[u32], weights: &mut [f32]) {
    let mut sum = 0.0f32;
    for (weight, id) in weights.iter_mut().zip(ids) {
        *weight = probabilities[*id as usize];
        sum += *weight;
    }
    let least = f32::from_bits((127 - 14) << 23);
    let sum = if sum < least { least } else { sum };
    for weight in weights {
        if router.normalise {
            *weight /= sum;
        }
        *weight *= router.scale;
    }
}

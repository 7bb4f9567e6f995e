//! Every operation on every instruction set that this processor has: equal bits.

#[cfg(target_arch = "x86_64")]
use super::Level;
use crate::activations::{Forms, Mode, QuantisedRows};
use crate::attention::{Context, Scratch, Shape, mla_attention};
use crate::kv::{KvPool, KvType};
use crate::pool::Pool;
use crate::router::{Gating, Router, route};
use crate::{experts, logits, norm};

#[cfg(target_arch = "x86_64")]
thread_local! {
    /// Set by tests to hold the versions against each other on one thread.
    pub(super) static FORCED: std::cell::Cell<Option<Level>> = const { std::cell::Cell::new(None) };
}

/// Runs `work` once per level that this processor has, on the calling thread.
#[cfg(target_arch = "x86_64")]
pub(crate) fn at_each_level<R>(mut work: impl FnMut() -> R) -> Vec<R> {
    let best = super::level();
    let mut results = Vec::new();
    for level in [Level::Baseline, Level::Avx2] {
        if level == Level::Baseline || level == best {
            FORCED.set(Some(level));
            results.push(work());
        }
    }
    FORCED.set(None);
    results
}

/// Runs `work` once: there is one level.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn at_each_level<R>(mut work: impl FnMut() -> R) -> Vec<R> {
    vec![work()]
}

fn values(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

#[track_caller]
fn assert_equal_bits(work: impl FnMut() -> Vec<f32>) {
    let results = at_each_level(work);
    let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<u32>>();
    assert!(results.iter().all(|result| bits(result) == bits(&results[0])));
}

#[test]
fn norms() {
    let (x, delta, weight) = (values(3 * 1000, 1), values(3 * 1000, 2), values(1000, 3));
    assert_equal_bits(|| {
        let (mut sum, mut out) = (x.clone(), vec![0.0; 3000]);
        norm::add_rms_norm(&Pool::inline(), &mut sum, &delta, &weight, 1e-6, &mut out);
        [sum, out].concat()
    });
}

#[test]
fn quantising() {
    let x = values(2 * 512, 4);
    assert_equal_bits(|| {
        let mut scratch = QuantisedRows::with_capacity(1024, Forms::all());
        let rows = scratch.quantise(&Pool::inline(), Mode::Exact, &x, 512, Forms::all());
        let narrow = rows.row32(1).iter().flat_map(|a| a.q.map(|q| f32::from(q) * a.scale));
        let wide = rows.row256(1).iter().flat_map(|a| a.q.map(|q| f32::from(q) * a.scale));
        let sums = rows.row256(1).iter().flat_map(|a| a.sums.map(f32::from));
        narrow.chain(wide).chain(sums).collect()
    });
}

#[test]
fn attention() {
    let shape = Shape { heads: 5, kv_heads: 1, key_len: 40, value_len: 24, scale: 0.7 };
    let (rows, queries) = (values(300 * 40, 5), values(5 * 40, 6));
    for ty in [KvType::F32, KvType::F16] {
        let mut latents = KvPool::new(ty, 1, 300, 40);
        latents.store(&(0..300).collect::<Vec<u32>>(), &rows);
        assert_equal_bits(|| {
            let (scratch, mut out) = (Scratch::new(1, 40, 24), vec![0.0; 5 * 24]);
            let context = Context { pages: &[0], len: 300 };
            mla_attention(&Pool::inline(), &shape, &queries, &latents, &[context], &scratch, &mut out);
            out
        });
    }
}

#[test]
fn experts() {
    let (gate, up, shares) = (values(8 * 100, 7), values(8 * 100, 8), values(8, 9));
    assert_equal_bits(|| {
        let (mut hidden, mut out) = (gate.clone(), vec![0.5; 2 * 100]);
        experts::swiglu(&Pool::inline(), &mut hidden, &up);
        experts::combine(&Pool::inline(), &hidden, &shares, 4, &mut out);
        out
    });
}

#[test]
fn routing() {
    let logits = values(3 * 60, 10);
    for gating in [Gating::Sigmoid, Gating::Softmax] {
        let router =
            Router { experts: 60, used: 4, gating, groups: 1, groups_used: 1, normalise: true, scale: 2.0 };
        assert_equal_bits(|| {
            let (mut ids, mut weights) = ([0; 12], vec![0.0; 12]);
            route(&Pool::inline(), &router, &mut logits.clone(), None, &mut ids, &mut weights);
            weights.extend(ids.map(|id| id as f32));
            weights
        });
    }
}

#[test]
fn sums_of_logits() {
    let logits = values(10_001, 11);
    assert_equal_bits(|| vec![logits::log_sum_exp(&logits)]);
}

//! What every layer of one step shares, and the layer itself.

use tandem_kernels::attention::{Context, Scratch};
use tandem_kernels::experts::ExpertGroups;
use tandem_kernels::norm::{add, add_rms_norm, rms_norm};
use tandem_kernels::rope::Layout;
use tandem_kernels::{KvPool, Mode, Pool, QuantisedRows};

use crate::feed_forward;
use crate::files::FileBytes;
use crate::grouped;
use crate::mla;
use crate::shape::{Attention, ModelShape};
use crate::weights::{AttentionWeights, FeedForwardWeights, Layer};

/// What stays the same through the layers of a step.
#[derive(Clone, Copy)]
pub(crate) struct Step<'a> {
    pub(crate) threads: &'a Pool,
    pub(crate) files: &'a FileBytes,
    pub(crate) mode: Mode,
    /// Rows of the step.
    pub(crate) rows: usize,
    pub(crate) width: usize,
    pub(crate) epsilon: f32,
    pub(crate) attention_scale: f32,
    pub(crate) layout: Layout,
    pub(crate) rope_dims: usize,
    /// `rows × rope_dims / 2` each.
    pub(crate) cos: &'a [f32],
    pub(crate) sin: &'a [f32],
    /// Where each row is kept in the pools, and what it may look at.
    pub(crate) slots: &'a [u32],
    pub(crate) contexts: &'a [Context<'a>],
}

/// Memory that each part of a layer may overwrite.
pub(crate) struct Scratchpad<'a> {
    pub(crate) stage: &'a mut [f32],
    pub(crate) quantised: &'a mut QuantisedRows,
    pub(crate) attention: &'a Scratch,
    pub(crate) choices: &'a mut [u32],
    pub(crate) groups: &'a mut ExpertGroups,
}

/// What a layer keeps of every token.
#[derive(Debug)]
pub(crate) enum LayerKv {
    Latent(KvPool),
    KeysAndValues(KvPool, KvPool),
}

/// One layer: `x += attention(norm(x))`, then `x += feed_forward(norm(x))`. `h` and `delta` are as long as `x`.
pub(crate) fn layer(
    step: &Step<'_>,
    shape: &ModelShape,
    weights: &Layer,
    kv: &mut LayerKv,
    scratch: &mut Scratchpad<'_>,
    [x, h, delta]: [&mut [f32]; 3],
) {
    rms_norm(step.threads, x, &weights.attention_norm, step.epsilon, h);
    match (&shape.attention, &weights.attention, kv) {
        (Attention::Mla(mla), AttentionWeights::Mla(weights), LayerKv::Latent(pool)) => {
            mla::attend(step, mla, weights, pool, h, scratch, delta);
        }
        (
            Attention::Grouped(grouped),
            AttentionWeights::Grouped(weights),
            LayerKv::KeysAndValues(keys, values),
        ) => grouped::attend(step, grouped, weights, (keys, values), h, scratch, delta),
        _ => unreachable!("weights and cache are made after the shape's attention"),
    }
    add_rms_norm(step.threads, x, delta, &weights.feed_forward_norm, step.epsilon, h);
    match (&weights.feed_forward, &shape.experts) {
        (FeedForwardWeights::Experts(weights), Some(experts)) => {
            feed_forward::experts(step, experts, weights, h, scratch, delta);
        }
        (FeedForwardWeights::Dense(weights), _) => {
            feed_forward::dense(step, shape.dense_ff, weights, h, scratch, delta);
        }
        (FeedForwardWeights::Experts(_), None) => unreachable!("a shape with expert layers has experts"),
    }
    add(step.threads, x, delta);
}

//! The working memory of a step: sized once from the shape and the greatest batch, then carved anew in every step.

use tandem_kernels::attention::{Context, Scratch};
use tandem_kernels::experts::ExpertGroups;
use tandem_kernels::{Forms, Mode, Pool, QuantisedRows};

use crate::config::EngineConfig;
use crate::shape::{Attention, ModelShape};

/// A named part of the arena.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Region {
    /// What it holds.
    pub name: &'static str,
    /// Its bytes.
    pub bytes: u64,
}

/// How long each part of the arena is. Counts saturate: a plan that large is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ArenaSizes {
    /// f32 that live through a whole step, and those that each stage of a layer carves for itself.
    residual: u64,
    stage: u64,
    /// Values of the widest rows that are quantised, and the forms that the weights need.
    quantised: u64,
    forms: Forms,
    /// Token ids, positions, slots of the KV pool, chosen experts.
    indices: u64,
    /// Choices of experts, and experts; 0 without.
    choices: u64,
    experts: u64,
    /// Key and value lengths of attention.
    attention: (u64, u64),
    /// Rows of a step.
    rows: u64,
}

impl ArenaSizes {
    pub(crate) fn new(shape: &ModelShape, config: &EngineConfig, has_experts: bool, forms: Forms) -> Self {
        let rows = config.max_batch_rows as u64;
        let per_row = PerRow::of(shape, has_experts);
        let (choices, experts) = match &shape.experts {
            Some(experts) if has_experts => (rows.saturating_mul(experts.used as u64), experts.count as u64),
            _ => (0, 0),
        };
        let (key_len, value_len) = match &shape.attention {
            Attention::Mla(mla) => (mla.row(), mla.kv_lora),
            Attention::Grouped(grouped) => (grouped.head, grouped.head),
        };
        Self {
            residual: rows.saturating_mul((3 * shape.width + shape.rope.dims) as u64),
            stage: rows.saturating_mul(per_row.attention.max(per_row.feed_forward)),
            quantised: rows.saturating_mul(per_row.quantised),
            forms: if config.numerics == Mode::Exact { forms } else { Forms::default() },
            indices: rows.saturating_mul(3).saturating_add(choices),
            choices,
            experts,
            attention: (key_len as u64, value_len as u64),
            rows,
        }
    }

    pub(crate) fn regions(&self) -> Vec<Region> {
        let region = |name, bytes| Region { name, bytes };
        // The kernels count in plain arithmetic: ask them only for what is far from the edge.
        let count = |values: u64| usize::try_from(values).ok().filter(|&values| values < 1 << 40);
        let quantised = count(self.quantised).map(|values| QuantisedRows::bytes(values, self.forms) as u64);
        let groups =
            count(self.choices).map(|choices| ExpertGroups::bytes(choices, self.experts as usize) as u64);
        let (key_len, value_len) = self.attention;
        // For the most threads that a pool may have: the plan is one, whichever host the model comes to.
        let attention = Scratch::bytes(Pool::MAX_THREADS, key_len as usize, value_len as usize);
        vec![
            region("residual rows", self.residual.saturating_mul(4)),
            region("stages", self.stage.saturating_mul(4)),
            region("quantised rows", quantised.unwrap_or(u64::MAX)),
            region("indices", self.indices.saturating_mul(4)),
            region("expert groups", groups.unwrap_or(u64::MAX)),
            region("attention", attention as u64),
            region("contexts", self.rows.saturating_mul(size_of::<Context<'_>>() as u64)),
        ]
    }
}

/// f32 that one row needs.
struct PerRow {
    attention: u64,
    feed_forward: u64,
    quantised: u64,
}

impl PerRow {
    fn of(shape: &ModelShape, has_experts: bool) -> Self {
        let (attention, attention_widest) = match &shape.attention {
            Attention::Mla(mla) => {
                let widest = mla.heads * mla.kv_lora.max(mla.nope).max(mla.v);
                (crate::mla::floats_per_row(mla), widest.max(mla.q_lora))
            }
            Attention::Grouped(grouped) => {
                (crate::grouped::floats_per_row(grouped), grouped.heads * grouped.head)
            }
        };
        let mut feed_forward = crate::feed_forward::floats_per_row_dense(shape.dense_ff);
        let mut widest = shape.width.max(attention_widest).max(shape.dense_ff);
        if let Some(experts) = shape.experts.as_ref().filter(|_| has_experts) {
            feed_forward =
                feed_forward.max(crate::feed_forward::floats_per_row_experts(experts, shape.width));
            widest = widest.max(experts.used * experts.ff).max(experts.shared_ff);
        }
        Self { attention: attention as u64, feed_forward: feed_forward as u64, quantised: widest as u64 }
    }
}

/// The working memory itself.
#[derive(Debug)]
pub(crate) struct Arena {
    pub(crate) residual: Vec<f32>,
    pub(crate) stage: Vec<f32>,
    pub(crate) quantised: QuantisedRows,
    pub(crate) indices: Vec<u32>,
    pub(crate) attention: Scratch,
    pub(crate) groups: ExpertGroups,
    /// Empty between steps.
    pub(crate) contexts: Vec<Context<'static>>,
}

impl Arena {
    /// Allocates what [`ArenaSizes::regions`] says. The sizes have been found to fit the address space.
    pub(crate) fn new(sizes: &ArenaSizes) -> Self {
        let (key_len, value_len) = sizes.attention;
        Self {
            residual: vec![0.0; sizes.residual as usize],
            stage: vec![0.0; sizes.stage as usize],
            quantised: QuantisedRows::with_capacity(sizes.quantised as usize, sizes.forms),
            indices: vec![0; sizes.indices as usize],
            attention: Scratch::new(Pool::MAX_THREADS, key_len as usize, value_len as usize),
            groups: ExpertGroups::with_capacity(sizes.choices as usize, sizes.experts as usize),
            contexts: Vec::with_capacity(sizes.rows as usize),
        }
    }
}

/// Empties what a step looked at and keeps its room for the next one, which will look at other pages: collected in
/// place, the room changes its lifetime.
pub(crate) fn emptied<'a>(mut contexts: Vec<Context<'_>>) -> Vec<Context<'a>> {
    contexts.clear();
    contexts.into_iter().map(|_| unreachable!("they were cleared")).collect()
}

/// Cuts pieces of these lengths off the front of a buffer.
///
/// # Panics
/// When the buffer is shorter: it was sized for the greatest batch.
pub(crate) fn carve<T, const N: usize>(buffer: &mut [T], lengths: [usize; N]) -> [&mut [T]; N] {
    let mut rest = buffer;
    lengths.map(|length| {
        let (piece, after) = std::mem::take(&mut rest).split_at_mut(length);
        rest = after;
        piece
    })
}

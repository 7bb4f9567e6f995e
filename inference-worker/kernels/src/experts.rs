//! A mixture's experts: tokens sorted by expert, the experts' products, and the sum of what they gave.
//!
//! A **slot** is one choice of the router: slot `t × used + j` is token `t`'s choice `j`.

use crate::activations::Activations;
use crate::elementary::silu;
use crate::matmul::{GROUP, Rows, Tile, check_cols, for_tiles, groups, multiply};
use crate::pool::{Pool, Shared};
use crate::versions::versions;
use crate::weights::WeightStack;

/// Slots in the order of their experts, so that an expert's weights are read once for all its tokens.
#[derive(Debug)]
pub struct ExpertGroups {
    /// Slots by expert, ascending within one.
    slots: Vec<u32>,
    /// Where each expert's slots start; one more than there are experts.
    starts: Vec<u32>,
    /// Experts that have slots, ascending.
    active: Vec<u32>,
}

impl ExpertGroups {
    /// Room for `slots` choices (tokens × used experts of the greatest batch) among `experts`.
    pub fn with_capacity(slots: usize, experts: usize) -> Self {
        Self {
            slots: Vec::with_capacity(slots),
            starts: vec![0; experts + 1],
            active: Vec::with_capacity(experts),
        }
    }

    /// The bytes that `with_capacity` allocates.
    pub fn bytes(slots: usize, experts: usize) -> usize {
        (slots + experts + 1 + experts) * 4
    }

    /// Sorts the choices of a batch. Panics when they exceed the capacity, or name an expert that is not there.
    pub fn sort(&mut self, ids: &[u32]) {
        let experts = self.starts.len() - 1;
        assert!(ids.len() <= self.slots.capacity(), "{} choices where there is room for fewer", ids.len());
        self.starts.fill(0);
        for id in ids {
            assert!((*id as usize) < experts, "expert {id} of {experts}");
            self.starts[*id as usize + 1] += 1;
        }
        self.active.clear();
        for expert in 0..experts {
            if self.starts[expert + 1] > 0 {
                self.active.push(expert as u32);
            }
            self.starts[expert + 1] += self.starts[expert];
        }
        self.slots.clear();
        self.slots.resize(ids.len(), 0);
        // Placing moves each start to its end, which is the next one's start; shifting them back restores them.
        for (slot, id) in ids.iter().enumerate() {
            let place = &mut self.starts[*id as usize];
            self.slots[*place as usize] = slot as u32;
            *place += 1;
        }
        self.starts.copy_within(0..experts, 1);
        self.starts[0] = 0;
    }

    /// The experts that have slots, ascending: what a decode step reads.
    pub fn active(&self) -> &[u32] {
        &self.active
    }

    /// The slots of an expert, ascending.
    pub fn slots_of(&self, expert: usize) -> &[u32] {
        &self.slots[self.starts[expert] as usize..self.starts[expert + 1] as usize]
    }

    /// Slots in the batch.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether the batch is empty.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }
}

/// `gate = silu(gate) × up`, value by value; see [`silu`].
pub fn swiglu(pool: &Pool, gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len(), "gate and up differ in size");
    const CHUNK: usize = 1024;
    let whole = gate.len() - gate.len() % CHUNK;
    let (chunks, rest) = gate.split_at_mut(whole);
    pool.for_rows(chunks, CHUNK, CHUNK * 16, |i, gate| swiglu_chunk(gate, &up[i * CHUNK..][..CHUNK]));
    swiglu_chunk(rest, &up[whole..]);
}

versions! {
    fn swiglu_chunk(gate: &mut [f32], up: &[f32]) {
        for (gate, up) in gate.iter_mut().zip(up) {
            *gate = silu(*gate) * up;
        }
    }
}

/// For every slot the gated input of its expert's last product: `silu(gate · x) × (up · x)`, products as in
/// [`matmul`](crate::matmul), `x` the slot's token.
///
/// `activations` are one row per token with `used` slots each; `out` is `slots × expert width`. A fused tensor of both
/// is viewed twice with [`WeightStack::row_range`].
pub fn expert_gate_up(
    pool: &Pool,
    activations: &Activations<'_>,
    used: usize,
    gate: &WeightStack<'_>,
    up: &WeightStack<'_>,
    batch: &ExpertGroups,
    out: &mut [f32],
) {
    assert_eq!((gate.rows(), gate.count()), (up.rows(), up.count()), "gate and up differ in shape");
    check_cols(activations, up.cols());
    assert_eq!(activations.rows() * used, batch.len(), "the batch was sorted for other tokens");
    each_tile(
        pool,
        activations,
        gate,
        batch,
        out,
        |slot| slot / used,
        |expert, rows, tile| {
            let mut ups = Tile::default();
            multiply(
                &up.matrix(expert).row_range(rows.weights.clone()),
                activations,
                rows.activations,
                &mut ups,
            );
            for (gates, ups) in tile.iter_mut().zip(&ups) {
                swiglu_chunk(gates, ups);
            }
        },
    );
}

/// For every slot its expert's last product. `activations` are one row per slot; `out` is `slots × model width`.
pub fn expert_down(
    pool: &Pool,
    activations: &Activations<'_>,
    down: &WeightStack<'_>,
    batch: &ExpertGroups,
    out: &mut [f32],
) {
    assert_eq!(activations.rows(), batch.len(), "the batch was sorted for other slots");
    each_tile(pool, activations, down, batch, out, |slot| slot, |_, _, _| {});
}

/// What a tile of a slot's product covers.
struct Covered {
    weights: std::ops::Range<usize>,
    activations: Rows,
}

/// Multiplies every slot with its expert's matrix, lets `after` change each tile, and writes it to the slot's row.
fn each_tile(
    pool: &Pool,
    activations: &Activations<'_>,
    weights: &WeightStack<'_>,
    batch: &ExpertGroups,
    out: &mut [f32],
    activation_of: impl Fn(usize) -> usize + Sync,
    after: impl Fn(usize, &Covered, &mut Tile) + Sync,
) {
    check_cols(activations, weights.cols());
    assert_eq!(weights.count() + 1, batch.starts.len(), "the batch was sorted for another number of experts");
    assert_eq!(out.len(), batch.len() * weights.rows(), "the output is not slots × weight rows");
    let per_expert = groups(weights.rows());
    let tokens = batch.len().div_ceil(batch.active.len().max(1));
    let out = Shared::new(out);
    pool.for_each(batch.active.len() * per_expert, GROUP * activations.cols() * tokens, |index| {
        let (expert, group) = (batch.active[index / per_expert] as usize, index % per_expert);
        let rows = group * GROUP..weights.rows().min((group + 1) * GROUP);
        let matrix = weights.matrix(expert).row_range(rows.clone());
        let slots = batch.slots_of(expert);
        for_tiles(slots.len(), |first, count| {
            let slots = &slots[first..first + count];
            let covered = Covered {
                weights: rows.clone(),
                activations: Rows::of(slots.iter().map(|slot| activation_of(*slot as usize))),
            };
            let mut tile = Tile::default();
            multiply(&matrix, activations, covered.activations, &mut tile);
            after(expert, &covered, &mut tile);
            for (row, products) in rows.clone().zip(&tile) {
                for (slot, product) in slots.iter().zip(products) {
                    // SAFETY: a slot has one expert, and each group of its rows is visited once.
                    unsafe { out.write(*slot as usize * weights.rows() + row, *product) };
                }
            }
        });
    });
}

/// Adds what a token's experts gave to `out`, which holds the shared expert's output or zeros: in the router's order
/// `sum = w₀ × y₀`, then `sum += wⱼ × yⱼ`; then `out += sum`.
///
/// `results` are `slots × width`, `weights` one per slot, `out` is `tokens × width`.
pub fn combine(pool: &Pool, results: &[f32], weights: &[f32], used: usize, out: &mut [f32]) {
    assert!(used > 0 && weights.len().is_multiple_of(used), "weights are not tokens × used experts");
    let tokens = weights.len() / used;
    if tokens == 0 {
        return;
    }
    let width = out.len() / tokens;
    assert_eq!(out.len(), tokens * width, "the output is not tokens × width");
    assert_eq!(results.len(), weights.len() * width, "results are not slots × width");
    pool.for_rows(out, width, width * used, |token, out| {
        let slots = token * used..(token + 1) * used;
        combine_row(&results[slots.start * width..slots.end * width], &weights[slots], out);
    });
}

versions! {
    fn combine_row(results: &[f32], weights: &[f32], out: &mut [f32]) {
        let width = out.len();
        for (i, out) in out.iter_mut().enumerate() {
            let mut sum = weights[0] * results[i];
            for (j, weight) in weights.iter().enumerate().skip(1) {
                sum += weight * results[j * width + i];
            }
            *out += sum;
        }
    }
}

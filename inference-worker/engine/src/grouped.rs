//! Grouped-query attention: several query heads read one head of keys and values.

use tandem_kernels::attention::{Shape, gqa_attention};
use tandem_kernels::matmul::{matmul, multi_matmul};
use tandem_kernels::norm::add_bias;
use tandem_kernels::rope::rope;
use tandem_kernels::{Forms, KvPool, Segments};

use crate::arena::carve;
use crate::shape::Grouped;
use crate::step::{Scratchpad, Step};
use crate::weights::GroupedWeights;

/// f32 of the stage per row: query, key, value, head outputs.
fn lengths(grouped: &Grouped) -> [usize; 4] {
    let (q, kv) = (grouped.heads * grouped.head, grouped.kv_heads * grouped.head);
    [q, kv, kv, q]
}

pub(crate) fn floats_per_row(grouped: &Grouped) -> usize {
    lengths(grouped).iter().sum()
}

/// From normed rows `h` to what attention adds, `out`; writes the rows' keys and values to their pools.
pub(crate) fn attend(
    step: &Step<'_>,
    grouped: &Grouped,
    weights: &GroupedWeights,
    (keys, values): (&mut KvPool, &mut KvPool),
    h: &[f32],
    scratch: &mut Scratchpad<'_>,
    out: &mut [f32],
) {
    let Step { threads, files, mode, rows, .. } = *step;
    let &Grouped { heads, kv_heads, head, .. } = grouped;
    let [q, k, v, head_out] = carve(scratch.stage, lengths(grouped).map(|per_row| per_row * rows));

    let forms = Forms::of([weights.q.ty(), weights.k.ty(), weights.v.ty()]);
    let activations = scratch.quantised.quantise(threads, mode, h, step.width, forms);
    let matrices = [weights.q.view(files), weights.k.view(files), weights.v.view(files)];
    let [q_matrix, k_matrix, v_matrix] = matrices;
    multi_matmul(threads, &activations, &mut [(q_matrix, &mut *q), (k_matrix, &mut *k), (v_matrix, &mut *v)]);
    if let Some([q_bias, k_bias, v_bias]) = &weights.biases {
        add_bias(threads, q, q_bias);
        add_bias(threads, k, k_bias);
        add_bias(threads, v, v_bias);
    }
    let turned = |per_row| Segments { per_row, stride: head, offset: 0, len: step.rope_dims };
    rope(threads, step.layout, q, turned(heads), step.cos, step.sin);
    rope(threads, step.layout, k, turned(kv_heads), step.cos, step.sin);
    keys.store(step.slots, k);
    values.store(step.slots, v);

    let shape = Shape { heads, kv_heads, key_len: head, value_len: head, scale: step.attention_scale };
    gqa_attention(threads, &shape, q, keys, values, step.contexts, scratch.attention, head_out);

    let forms = Forms::of([weights.output.ty()]);
    let activations = scratch.quantised.quantise(threads, mode, head_out, heads * head, forms);
    matmul(threads, &activations, &weights.output.view(files), out);
}

//! Attention over one latent vector per token: absorbed in prefill as in decode.

use tandem_kernels::attention::{Shape, mla_attention};
use tandem_kernels::matmul::{matmul, multi_matmul, per_head_matmul};
use tandem_kernels::norm::rms_norm_in_place;
use tandem_kernels::rope::{copy_pieces, rope};
use tandem_kernels::{Forms, KvPool, Segments};

use crate::arena::carve;
use crate::shape::Mla;
use crate::step::{Scratchpad, Step};
use crate::weights::MlaWeights;

/// f32 of the stage per row: squeezed query, query, cached row, absorbed query, mixed latents, head outputs.
fn lengths(mla: &Mla) -> [usize; 6] {
    let &Mla { heads, q_lora, kv_lora, nope, rope, v } = mla;
    [q_lora, heads * (nope + rope), mla.row(), heads * mla.row(), heads * kv_lora, heads * v]
}

pub(crate) fn floats_per_row(mla: &Mla) -> usize {
    lengths(mla).iter().sum()
}

/// From normed rows `h` to what attention adds, `out`; writes the rows' latents to the pool.
pub(crate) fn attend(
    step: &Step<'_>,
    mla: &Mla,
    weights: &MlaWeights,
    pool: &mut KvPool,
    h: &[f32],
    scratch: &mut Scratchpad<'_>,
    out: &mut [f32],
) {
    let Step { threads, files, mode, rows, .. } = *step;
    let &Mla { heads, q_lora, kv_lora, nope, rope: turned, v } = mla;
    let row = mla.row();
    let [q_a, q, kept, query, mixed, head_out] =
        carve(scratch.stage, lengths(mla).map(|per_row| per_row * rows));

    let forms = Forms::of([weights.q_a.ty(), weights.kv_a.ty()]);
    let activations = scratch.quantised.quantise(threads, mode, h, step.width, forms);
    let (q_a_matrix, kv_a_matrix) = (weights.q_a.view(files), weights.kv_a.view(files));
    multi_matmul(threads, &activations, &mut [(q_a_matrix, &mut *q_a), (kv_a_matrix, &mut *kept)]);

    let latent = Segments { per_row: 1, stride: row, offset: 0, len: kv_lora };
    rms_norm_in_place(threads, kept, latent, &weights.kv_norm, step.epsilon);
    let key_turned = Segments { per_row: 1, stride: row, offset: kv_lora, len: turned };
    rope(threads, step.layout, kept, key_turned, step.cos, step.sin);
    pool.store(step.slots, kept);

    rms_norm_in_place(threads, q_a, Segments::whole(q_lora), &weights.q_norm, step.epsilon);
    let forms = Forms::of([weights.q_b.ty()]);
    let activations = scratch.quantised.quantise(threads, mode, q_a, q_lora, forms);
    matmul(threads, &activations, &weights.q_b.view(files), q);

    // The query that meets a cached row: [k_b · q without position | turned q].
    let head = nope + turned;
    let q_nope = Segments { per_row: heads, stride: head, offset: 0, len: nope };
    let q_turned = Segments { per_row: heads, stride: head, offset: nope, len: turned };
    rope(threads, step.layout, q, q_turned, step.cos, step.sin);
    let absorbed = Segments { per_row: heads, stride: row, offset: 0, len: kv_lora };
    let behind = Segments { per_row: heads, stride: row, offset: kv_lora, len: turned };
    copy_pieces(q, q_turned, query, behind);
    let forms = Forms::of([weights.k_b.ty()]);
    let activations = scratch.quantised.quantise_segments(threads, mode, q, q_nope, forms);
    per_head_matmul(threads, &activations, &weights.k_b.stack(files), query, absorbed);

    let shape = Shape { heads, kv_heads: 1, key_len: row, value_len: kv_lora, scale: step.attention_scale };
    mla_attention(threads, &shape, query, pool, step.contexts, scratch.attention, mixed);

    let per_head = Segments { per_row: heads, stride: kv_lora, offset: 0, len: kv_lora };
    let forms = Forms::of([weights.v_b.ty()]);
    let activations = scratch.quantised.quantise_segments(threads, mode, mixed, per_head, forms);
    let outputs = Segments { per_row: heads, stride: v, offset: 0, len: v };
    per_head_matmul(threads, &activations, &weights.v_b.stack(files), head_out, outputs);

    let forms = Forms::of([weights.output.ty()]);
    let activations = scratch.quantised.quantise(threads, mode, head_out, heads * v, forms);
    matmul(threads, &activations, &weights.output.view(files), out);
}

//! The feed-forward part of a layer: one gated network, or routed experts beside a shared one.

use tandem_kernels::experts::{combine, expert_down, expert_gate_up, swiglu};
use tandem_kernels::matmul::{matmul, multi_matmul};
use tandem_kernels::router::{Gating, Router, route};
use tandem_kernels::{Activations, Forms};

use crate::arena::carve;
use crate::shape::Experts;
use crate::step::{Scratchpad, Step};
use crate::weights::{ExpertWeights, Gated};

/// f32 of the stage per row: gate, up.
pub(crate) fn floats_per_row_dense(ff: usize) -> usize {
    2 * ff
}

/// f32 of the stage per row: router's logits, shares, experts' inner rows, their results, shared gate and up.
fn expert_lengths(experts: &Experts, width: usize) -> [usize; 6] {
    let &Experts { count, used, ff, shared_ff, .. } = experts;
    [count, used, used * ff, used * width, shared_ff, shared_ff]
}

pub(crate) fn floats_per_row_experts(experts: &Experts, width: usize) -> usize {
    expert_lengths(experts, width).iter().sum()
}

/// From normed rows `h` to what a dense network adds, `out`.
pub(crate) fn dense(
    step: &Step<'_>,
    ff: usize,
    weights: &Gated,
    h: &[f32],
    scratch: &mut Scratchpad<'_>,
    out: &mut [f32],
) {
    let Step { threads, files, mode, rows, .. } = *step;
    let [gate, up] = carve(scratch.stage, [ff * rows, ff * rows]);
    let forms = Forms::of([weights.gate.ty(), weights.up.ty()]);
    let activations = scratch.quantised.quantise(threads, mode, h, step.width, forms);
    multi_matmul(
        threads,
        &activations,
        &mut [(weights.gate.view(files), &mut *gate), (weights.up.view(files), &mut *up)],
    );
    swiglu(threads, gate, up);
    let activations = scratch.quantised.quantise(threads, mode, gate, ff, Forms::of([weights.down.ty()]));
    matmul(threads, &activations, &weights.down.view(files), out);
}

/// From normed rows `h` to what the experts add, `out`: the shared expert's output, plus the routed ones' in the router's
/// order.
pub(crate) fn experts(
    step: &Step<'_>,
    experts: &Experts,
    weights: &ExpertWeights,
    h: &[f32],
    scratch: &mut Scratchpad<'_>,
    out: &mut [f32],
) {
    let Step { threads, files, mode, rows, width, .. } = *step;
    let &Experts { count, used, ff, shared_ff, groups, groups_used, normalise, scale, .. } = experts;
    let [logits, shares, inner, results, shared_gate, shared_up] =
        carve(scratch.stage, expert_lengths(experts, width).map(|per_row| per_row * rows));

    let [gate_ty, up_ty] = weights.gate_up.types();
    let shared_types = weights.shared.iter().flat_map(|shared| [shared.gate.ty(), shared.up.ty()]);
    let forms = Forms::of(shared_types.chain([weights.router.ty(), gate_ty, up_ty]));
    let activations = scratch.quantised.quantise(threads, mode, h, width, forms);
    shared_products(step, weights, &activations, logits, shared_gate, shared_up);

    let router =
        Router { experts: count, used, gating: Gating::Sigmoid, groups, groups_used, normalise, scale };
    let [ids] = carve(scratch.choices, [used * rows]);
    route(threads, &router, logits, Some(&weights.bias), ids, shares);
    scratch.groups.sort(ids);
    let (gate, up) = weights.gate_up.views(files);
    expert_gate_up(threads, &activations, used, &gate, &up, scratch.groups, inner);
    let activations = scratch.quantised.quantise(threads, mode, inner, ff, Forms::of([weights.down.ty()]));
    expert_down(threads, &activations, &weights.down.stack(files), scratch.groups, results);

    match &weights.shared {
        Some(shared) => {
            swiglu(threads, shared_gate, shared_up);
            let forms = Forms::of([shared.down.ty()]);
            let activations = scratch.quantised.quantise(threads, mode, shared_gate, shared_ff, forms);
            matmul(threads, &activations, &shared.down.view(files), out);
        }
        None => out.fill(0.0),
    }
    combine(threads, results, shares, used, out);
}

/// The products that all rows go through: the router's, and the shared expert's gate and up.
fn shared_products(
    step: &Step<'_>,
    weights: &ExpertWeights,
    activations: &Activations<'_>,
    logits: &mut [f32],
    gate: &mut [f32],
    up: &mut [f32],
) {
    let Step { threads, files, .. } = *step;
    let router = (weights.router.view(files), logits);
    match &weights.shared {
        Some(shared) => {
            let (gate, up) = ((shared.gate.view(files), gate), (shared.up.view(files), up));
            multi_matmul(threads, activations, &mut [router, gate, up]);
        }
        None => multi_matmul(threads, activations, &mut [router]),
    }
}

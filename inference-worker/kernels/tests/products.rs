//! Products against float64, and their bits against batch, neighbours, threads and the operation they are part of.

mod random;

use random::{Random, bits, matrix, weights};
use tandem_kernels::elementary::silu;
use tandem_kernels::embed::embed;
use tandem_kernels::experts::{ExpertGroups, combine, expert_down, expert_gate_up, swiglu};
use tandem_kernels::matmul::{matmul, multi_matmul, per_head_matmul};
use tandem_kernels::{Activations, Forms, Mode, Pool, QuantisedRows, Segments, WeightStack, WeightType};

/// The activations that a product sees: in exact mode the int8 ones.
fn seen(activations: &Activations<'_>, ty: WeightType, row: usize) -> Vec<f64> {
    let int8 =
        |q: &[i8], scale: f32| q.iter().map(|q| f64::from(*q) * f64::from(scale)).collect::<Vec<f64>>();
    match (activations.mode(), ty.block_len()) {
        (Mode::Exact, 32) => activations.row32(row).iter().flat_map(|a| int8(&a.q, a.scale)).collect(),
        (Mode::Exact, 256) => activations.row256(row).iter().flat_map(|a| int8(&a.q, a.scale)).collect(),
        _ => activations.row(row).iter().map(|value| f64::from(*value)).collect(),
    }
}

fn prepare<'a>(
    scratch: &'a mut QuantisedRows,
    mode: Mode,
    values: &'a [f32],
    cols: usize,
    ty: WeightType,
) -> Activations<'a> {
    scratch.quantise(&Pool::inline(), mode, values, cols, Forms::of([ty]))
}

#[test]
fn products_agree_with_f64() {
    let mut random = Random::new(1);
    for ty in WeightType::ALL {
        for mode in [Mode::Exact, Mode::Reference] {
            let (tokens, rows, cols) = (11, 37, 1536);
            let (bytes, w) = weights(&mut random, ty, rows * cols);
            let x = random.values(tokens * cols);
            let mut scratch = QuantisedRows::with_capacity(tokens * cols, Forms::all());
            let activations = prepare(&mut scratch, mode, &x, cols, ty);
            let mut out = vec![0.0; tokens * rows];
            matmul(&Pool::inline(), &activations, &matrix(ty, rows, cols, &bytes), &mut out);
            for token in 0..tokens {
                let x = seen(&activations, ty, token);
                for row in 0..rows {
                    let terms = x.iter().zip(&w[row * cols..]).map(|(x, w)| x * f64::from(*w));
                    let (truth, size) =
                        terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()));
                    let error = (f64::from(out[token * rows + row]) - truth).abs();
                    assert!(error <= 1e-6 * size, "{} {mode:?}: {error:e} of {size}", ty.name());
                }
            }
        }
    }
}

#[test]
fn exact_products_stay_near_the_true_ones() {
    let mut random = Random::new(2);
    for ty in WeightType::ALL {
        let (rows, cols) = (16, 2048);
        let (bytes, w) = weights(&mut random, ty, rows * cols);
        let x = random.values(cols);
        let mut scratch = QuantisedRows::with_capacity(cols, Forms::all());
        let mut out = vec![0.0; rows];
        let activations = prepare(&mut scratch, Mode::Exact, &x, cols, ty);
        matmul(&Pool::inline(), &activations, &matrix(ty, rows, cols, &bytes), &mut out);
        for row in 0..rows {
            let truth: f64 = x.iter().zip(&w[row * cols..]).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
            // Rounding to int8 moves each of 2048 terms by a uniform error of at most 1/254 times a weight.
            assert!((f64::from(out[row]) - truth).abs() < 0.25, "{}: {} for {truth}", ty.name(), out[row]);
        }
    }
}

#[test]
fn bits_do_not_depend_on_batch_threads_or_company() {
    let mut random = Random::new(3);
    let (tokens, cols) = (19, 512);
    let x = random.values(tokens * cols);
    for mode in [Mode::Exact, Mode::Reference] {
        for ty in WeightType::ALL {
            let (bytes, _) = weights(&mut random, ty, 100 * cols);
            let w = matrix(ty, 100, cols, &bytes);
            let mut scratch = QuantisedRows::with_capacity(tokens * cols, Forms::all());
            let mut alone = Vec::new();
            for token in 0..tokens {
                let activations = prepare(&mut scratch, mode, &x[token * cols..][..cols], cols, ty);
                let mut out = vec![0.0; 100];
                matmul(&Pool::inline(), &activations, &w, &mut out);
                alone.extend(bits(&out));
            }
            for threads in [1, 2, 3] {
                let pool = Pool::new(threads).unwrap();
                let activations = scratch.quantise(&pool, mode, &x, cols, Forms::all());
                let mut out = vec![f32::NAN; tokens * 100];
                matmul(&pool, &activations, &w, &mut out);
                assert_eq!(bits(&out), alone, "{} {mode:?}, {threads} threads", ty.name());

                let (mut first, mut second) = (vec![f32::NAN; tokens * 30], vec![f32::NAN; tokens * 70]);
                multi_matmul(
                    &pool,
                    &activations,
                    &mut [(w.row_range(0..30), &mut first), (w.row_range(30..100), &mut second)],
                );
                let joined: Vec<f32> =
                    first.chunks(30).zip(second.chunks(70)).flat_map(|(a, b)| [a, b].concat()).collect();
                assert_eq!(bits(&joined), alone, "{} {mode:?}, split in two", ty.name());
            }
        }
    }
}

#[test]
fn heads_multiply_their_own_pieces() {
    let mut random = Random::new(4);
    let (tokens, heads, rows, cols) = (10, 6, 40, 128);
    let x = random.values(tokens * heads * 192);
    let pieces = Segments { per_row: heads, stride: 192, offset: 0, len: cols };
    for ty in [WeightType::F32, WeightType::F16, WeightType::Q8_0, WeightType::Q4_0] {
        let (bytes, _) = weights(&mut random, ty, heads * rows * cols);
        let stack = WeightStack::new(ty, heads, rows, cols, &bytes).unwrap();
        for threads in [1, 2, 3] {
            let pool = Pool::new(threads).unwrap();
            let mut scratch = QuantisedRows::with_capacity(tokens * heads * cols, Forms::all());
            let activations = scratch.quantise_segments(&pool, Mode::Exact, &x, pieces, Forms::of([ty]));
            let target = Segments { per_row: heads, stride: rows + 3, offset: 2, len: rows };
            let mut out = vec![-7.0; tokens * target.row_len()];
            per_head_matmul(&pool, &activations, &stack, &mut out, target);
            let mut other = QuantisedRows::with_capacity(cols, Forms::all());
            for token in 0..tokens {
                for head in 0..heads {
                    let piece = pieces.piece(&x, token * heads + head);
                    let activations = prepare(&mut other, Mode::Exact, piece, cols, ty);
                    let mut alone = vec![0.0; rows];
                    matmul(&pool, &activations, &stack.matrix(head), &mut alone);
                    assert_eq!(bits(target.piece(&out, token * heads + head)), bits(&alone));
                }
            }
            let gaps = out.iter().filter(|value| **value == -7.0).count();
            assert_eq!(gaps, tokens * heads * 3, "what lies between pieces is left alone");
        }
    }
}

#[test]
fn experts_are_plain_products_of_their_tokens() {
    let mut random = Random::new(5);
    let (tokens, used, experts, width, ff) = (23, 3, 7, 256, 512);
    let x = random.values(tokens * width);
    // Expert 4 gets nobody, expert 1 nearly everybody.
    let ids: Vec<u32> = (0..tokens)
        .flat_map(|token| [1, [0, 2, 3, 5, 6][token % 5], if token % 5 == 4 { 0 } else { 6 }])
        .collect();
    let shares = random.values(tokens * used);
    for (mode, gate_ty, down_ty) in [
        (Mode::Exact, WeightType::Q4K, WeightType::Q6K),
        (Mode::Exact, WeightType::Q8_0, WeightType::Q4_0),
        (Mode::Exact, WeightType::F16, WeightType::F32),
        (Mode::Reference, WeightType::Q4_0, WeightType::Q8_0),
    ] {
        let (gate_up, _) = weights(&mut random, gate_ty, experts * 2 * ff * width);
        let fused = WeightStack::new(gate_ty, experts, 2 * ff, width, &gate_up).unwrap();
        let (gate, up) = (fused.row_range(0..ff), fused.row_range(ff..2 * ff));
        let (down, _) = weights(&mut random, down_ty, experts * width * ff);
        let down = WeightStack::new(down_ty, experts, width, ff, &down).unwrap();

        let mut truth = vec![0.25; tokens * width];
        for token in 0..tokens {
            let mut scratch = QuantisedRows::with_capacity(width, Forms::all());
            let mut inner = QuantisedRows::with_capacity(ff, Forms::all());
            let activations = prepare(&mut scratch, mode, &x[token * width..][..width], width, gate_ty);
            let mut sum = vec![0.0f32; width];
            for j in 0..used {
                let expert = ids[token * used + j] as usize;
                let (mut g, mut u, mut y) = (vec![0.0; ff], vec![0.0; ff], vec![0.0; width]);
                matmul(&Pool::inline(), &activations, &gate.matrix(expert), &mut g);
                matmul(&Pool::inline(), &activations, &up.matrix(expert), &mut u);
                swiglu(&Pool::inline(), &mut g, &u);
                let hidden = prepare(&mut inner, mode, &g, ff, down_ty);
                matmul(&Pool::inline(), &hidden, &down.matrix(expert), &mut y);
                for (sum, y) in sum.iter_mut().zip(&y) {
                    let term = shares[token * used + j] * y;
                    *sum = if j == 0 { term } else { *sum + term };
                }
            }
            for (truth, sum) in truth[token * width..].iter_mut().zip(&sum) {
                *truth += sum;
            }
        }

        for threads in [1, 2, 3] {
            let pool = Pool::new(threads).unwrap();
            let mut scratch = QuantisedRows::with_capacity(tokens * width, Forms::all());
            let mut inner = QuantisedRows::with_capacity(tokens * used * ff, Forms::all());
            let mut batch = ExpertGroups::with_capacity(tokens * used, experts);
            batch.sort(&ids);
            assert_eq!(batch.active(), [0, 1, 2, 3, 5, 6]);
            assert!(batch.slots_of(4).is_empty());
            assert_eq!(batch.slots_of(1).len(), tokens);
            let activations = scratch.quantise(&pool, mode, &x, width, Forms::of([gate_ty]));
            let mut hidden = vec![f32::NAN; tokens * used * ff];
            expert_gate_up(&pool, &activations, used, &gate, &up, &batch, &mut hidden);
            let hidden = inner.quantise(&pool, mode, &hidden, ff, Forms::of([down_ty]));
            let mut results = vec![f32::NAN; tokens * used * width];
            expert_down(&pool, &hidden, &down, &batch, &mut results);
            let mut out = vec![0.25; tokens * width];
            combine(&pool, &results, &shares, used, &mut out);
            assert_eq!(bits(&out), bits(&truth), "{mode:?} {threads} threads");
        }
    }
}

#[test]
fn a_batch_can_be_sorted_again() {
    let mut batch = ExpertGroups::with_capacity(6, 4);
    for _ in 0..2 {
        batch.sort(&[3, 0, 3, 1, 0, 3]);
        assert_eq!(batch.slots_of(3), [0, 2, 5]);
        assert_eq!(batch.slots_of(0), [1, 4]);
        assert_eq!(batch.slots_of(2), [0u32; 0]);
        batch.sort(&[2]);
        assert_eq!((batch.active(), batch.slots_of(2), batch.len()), (&[2][..], &[0][..], 1));
        batch.sort(&[]);
        assert!(batch.is_empty() && batch.active().is_empty());
    }
}

#[test]
fn swiglu_is_silu_times_up() {
    let mut random = Random::new(6);
    let (gate, up) = (random.values(5000), random.values(5000));
    for threads in [1, 2, 3] {
        let mut out = gate.clone();
        swiglu(&Pool::new(threads).unwrap(), &mut out, &up);
        for ((out, gate), up) in out.iter().zip(&gate).zip(&up) {
            assert_eq!(out.to_bits(), (silu(*gate) * up).to_bits());
        }
    }
}

#[test]
fn embedding_reads_rows() {
    let mut random = Random::new(7);
    for ty in WeightType::ALL {
        let (bytes, w) = weights(&mut random, ty, 9 * 256);
        let mut out = vec![0.0; 3 * 256];
        embed(&Pool::inline(), &matrix(ty, 9, 256, &bytes), &[8, 0, 8], &mut out);
        assert_eq!(bits(&out), bits(&[&w[8 * 256..], &w[..256], &w[8 * 256..]].concat()));
    }
}

#[test]
#[should_panic(expected = "token id 9 is outside a vocabulary of 9")]
fn embedding_refuses_ids_outside() {
    embed(&Pool::inline(), &matrix(WeightType::F32, 9, 1, &[0; 36]), &[9], &mut [0.0]);
}

#[test]
#[should_panic(expected = "differ in columns")]
fn products_check_columns() {
    let activations = Activations::plain(Mode::Exact, &[0.0; 8], 8);
    matmul(&Pool::inline(), &activations, &matrix(WeightType::F32, 1, 4, &[0; 16]), &mut [0.0]);
}

#[test]
#[should_panic(expected = "quantised in blocks of 32")]
fn products_want_the_right_form() {
    let activations = Activations::plain(Mode::Exact, &[0.0; 32], 32);
    matmul(&Pool::inline(), &activations, &matrix(WeightType::Q8_0, 1, 32, &[0; 34]), &mut [0.0]);
}

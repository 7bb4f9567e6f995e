//! The prefilter of sampling against a full sort in float64.

mod random;

use random::{Random, bits};
use tandem_kernels::Pool;
use tandem_kernels::logits::{Candidate, log_sum_exp, top_candidates};

#[test]
fn sums_agree_with_f64() {
    let mut random = Random::new(1);
    for (len, spread) in [(1, 1.0), (17, 30.0), (163_840, 8.0), (163_840, 0.01)] {
        let logits: Vec<f32> = random.values(len).iter().map(|x| x * spread).collect();
        let truth = logits.iter().map(|x| f64::from(*x).exp()).sum::<f64>().ln();
        let ours = f64::from(log_sum_exp(&logits));
        assert!((ours - truth).abs() <= 2e-6 * truth.abs().max(1.0), "{ours} for {truth}");
    }
    assert!(log_sum_exp(&[1.0, f32::NAN]).is_nan());
    assert_eq!(log_sum_exp(&[1e30, 1e30]), 1e30);
    assert_eq!(log_sum_exp(&[f32::NEG_INFINITY, 2.5]), 2.5);
}

#[test]
fn candidates_are_the_start_of_a_sort() {
    let mut random = Random::new(2);
    let (rows, vocabulary) = (5, 3000);
    // Few distinct values, so that ties abound.
    let logits: Vec<f32> =
        random.values(rows * vocabulary).iter().map(|x| (x * 100.0).round() * 0.25).collect();
    for k in [1, 40, vocabulary] {
        let mut first = None;
        for threads in [1, 2, 3] {
            let pool = Pool::new(threads).unwrap();
            let (mut best, mut sums) = (vec![Candidate::NONE; rows * k], vec![0.0; rows]);
            top_candidates(&pool, &logits, vocabulary, k, &mut best, &mut sums);
            for (row, logits) in logits.chunks(vocabulary).enumerate() {
                let mut order: Vec<usize> = (0..vocabulary).collect();
                order.sort_by(|a, b| logits[*b].partial_cmp(&logits[*a]).unwrap());
                for (candidate, id) in best[row * k..][..k].iter().zip(order) {
                    assert_eq!(*candidate, Candidate { id: id as u32, logit: logits[id] });
                }
                assert_eq!(sums[row].to_bits(), log_sum_exp(logits).to_bits());
            }
            assert_eq!(*first.get_or_insert(bits(&sums)), bits(&sums));
        }
    }
}

#[test]
fn nan_is_never_a_candidate_before_a_number() {
    let (mut best, mut sums) = ([Candidate::NONE; 3], [0.0]);
    top_candidates(&Pool::inline(), &[f32::NAN, -5.0, f32::NAN, 7.0], 4, 3, &mut best, &mut sums);
    assert_eq!(best.map(|candidate| candidate.id), [3, 1, 0]);
    assert!(sums[0].is_nan());
}

use proptest::prelude::*;

use super::*;

const LOGITS: [f32; 6] = [1.0, 3.0, 0.5, 3.0, -2.0, 2.0];

fn draw_at(index: u32) -> Draw {
    Draw { seed: 42, choice: 0, index, draw: 0 }
}

fn drawn(logits: &[f32], sampling: &Sampling, index: u32) -> u32 {
    choose(&mut logits.to_vec(), &History::default(), sampling, draw_at(index), 0).unwrap().id
}

/// Pearson's statistic of `draws` draws against the probabilities they should have.
fn chi_square(sampling: &Sampling, expected: &[f64], draws: u32) -> f64 {
    let mut counts = vec![0u32; expected.len()];
    for index in 0..draws {
        counts[drawn(&LOGITS, sampling, index) as usize] += 1;
    }
    expected
        .iter()
        .zip(&counts)
        .map(|(&probability, &count)| {
            if probability == 0.0 {
                assert_eq!(count, 0, "a token was drawn that truncation cuts");
                return 0.0;
            }
            let expected = probability * f64::from(draws);
            (f64::from(count) - expected).powi(2) / expected
        })
        .sum()
}

fn softmax(keep: &[usize], temperature: f64) -> Vec<f64> {
    let weights: Vec<f64> = (0..LOGITS.len())
        .map(|id| if keep.contains(&id) { (f64::from(LOGITS[id]) / temperature).exp() } else { 0.0 })
        .collect();
    let total: f64 = weights.iter().sum();
    weights.iter().map(|weight| weight / total).collect()
}

#[test]
fn draws_follow_the_distribution() {
    let base = Sampling::default;
    // Softmax at temperature 1, descending: ids 1 and 3 have 0.374 each, 5 has 0.138, 0 has 0.051, 2 has 0.031.
    for (sampling, keep, temperature) in [
        (base(), vec![0, 1, 2, 3, 4, 5], 1.0),
        (Sampling { temperature: 0.5, ..base() }, vec![0, 1, 2, 3, 4, 5], 0.5),
        (Sampling { top_k: 3, ..base() }, vec![1, 3, 5], 1.0),
        (Sampling { top_p: 0.8, ..base() }, vec![1, 3, 5], 1.0),
        (Sampling { min_p: 0.13, ..base() }, vec![0, 1, 3, 5], 1.0),
        (Sampling { top_k: 4, top_p: 0.9, min_p: 0.5, ..base() }, vec![1, 3], 1.0),
    ] {
        let statistic = chi_square(&sampling, &softmax(&keep, temperature), 20_000);
        // Five degrees of freedom at most: 20.5 is exceeded once in a thousand seeds, and this seed is fixed.
        assert!(statistic < 20.5, "{sampling:?} gives {statistic}");
    }
}

#[test]
fn the_statistic_notices_a_wrong_distribution() {
    let statistic = chi_square(&Sampling::default(), &softmax(&[0, 1, 2, 3, 4, 5], 0.9), 20_000);
    assert!(statistic > 20.5, "a temperature off by a tenth gives only {statistic}");
}

#[test]
fn a_shifted_draw_changes_the_output() {
    let output = |shift: u32| -> Vec<u32> {
        (0..64).map(|index| drawn(&LOGITS, &Sampling::default(), index + shift)).collect()
    };
    assert_eq!(output(0), output(0));
    assert_ne!(output(0), output(1));
}

#[test]
fn equal_logits_go_to_the_lower_id() {
    assert_eq!(drawn(&LOGITS, &Sampling::greedy(), 0), 1);
    assert_eq!(drawn(&LOGITS, &Sampling { top_k: 1, ..Sampling::default() }, 9), 1);
    assert_eq!(drawn(&LOGITS, &Sampling { top_p: 0.0, ..Sampling::default() }, 9), 1);
    assert_eq!(drawn(&[-0.0, 0.0], &Sampling::greedy(), 0), 0);
}

#[test]
fn logprobs_are_of_the_distribution_before_temperature() {
    let sampling = Sampling { temperature: 0.3, top_k: 2, ..Sampling::default() };
    let choice = choose(&mut LOGITS.to_vec(), &History::default(), &sampling, draw_at(3), 4).unwrap();
    let probabilities = softmax(&[0, 1, 2, 3, 4, 5], 1.0);
    let logprob = |id: u32| probabilities[id as usize].ln() as f32;
    assert!((choice.logprob - logprob(choice.id)).abs() < 1e-6);
    assert_eq!(choice.top.iter().map(|&(id, _)| id).collect::<Vec<_>>(), [1, 3, 5, 0]);
    for (id, value) in choice.top {
        assert!((value - logprob(id)).abs() < 1e-6);
    }
}

#[test]
fn penalties_and_bias_change_the_logits() {
    let history = History::of(&[0, 4], &[1, 1]);
    let adjusted = |sampling: &Sampling| {
        let mut logits = LOGITS.to_vec();
        sampling.adjust(&mut logits, &history);
        logits
    };
    let base = Sampling::default;
    assert_eq!(adjusted(&base()), LOGITS);
    assert_eq!(adjusted(&Sampling { repetition_penalty: 2.0, ..base() }), [0.5, 1.5, 0.5, 3.0, -4.0, 2.0]);
    assert_eq!(adjusted(&Sampling { presence_penalty: 1.0, ..base() }), [1.0, 2.0, 0.5, 3.0, -2.0, 2.0]);
    assert_eq!(adjusted(&Sampling { frequency_penalty: 1.0, ..base() }), [1.0, 1.0, 0.5, 3.0, -2.0, 2.0]);
    assert_eq!(
        adjusted(&Sampling { logit_bias: vec![(3, -100.0)], ..base() }),
        [1.0, 3.0, 0.5, -97.0, -2.0, 2.0]
    );
}

#[test]
fn a_row_that_is_not_finite_is_refused() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut logits = [0.0, bad, 1.0];
        let chosen = choose(&mut logits, &History::default(), &Sampling::greedy(), draw_at(0), 0);
        assert_eq!(chosen, Err(NotFinite));
    }
}

proptest! {
    /// The short-front search for a nucleus gives what sorting everything gives.
    #[test]
    fn a_nucleus_is_what_a_full_sort_finds(
        logits in prop::collection::vec(-4i32..4, 1..300),
        top_p in 0.0f64..1.0,
    ) {
        let logits: Vec<f32> = logits.iter().map(|&logit| logit as f32).collect();
        let weights: Vec<f64> = logits.iter().map(|&logit| f64::from(logit).exp()).collect();
        let total: f64 = weights.iter().sum();

        let mut sorted: Vec<u32> = (0..logits.len() as u32).collect();
        sorted.sort_by(|&a, &b| by_likelihood(&logits, a, b));
        let mut sum = 0.0;
        let needed = sorted.iter().position(|&id| { sum += weights[id as usize]; sum >= top_p * total });
        let needed = needed.map_or(sorted.len(), |place| place + 1);

        let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
        let kept = nucleus(&mut ids, &logits, &weights, top_p * total);
        prop_assert_eq!(&ids[..kept], &sorted[..needed]);
    }
}

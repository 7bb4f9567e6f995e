//! The router against a plain sort in float64, and its rules where numbers tie, vanish or are none.

mod random;

use random::{Random, bits};
use tandem_kernels::Pool;
use tandem_kernels::router::{Gating, Router, route};

const KIMI: Router = Router {
    experts: 384,
    used: 8,
    gating: Gating::Sigmoid,
    groups: 1,
    groups_used: 1,
    normalise: true,
    scale: 2.827,
};

struct Choice {
    ids: Vec<u32>,
    weights: Vec<f32>,
}

fn run(router: &Router, threads: usize, logits: &[f32], bias: Option<&[f32]>) -> Choice {
    let slots = logits.len() / router.experts * router.used;
    let (mut ids, mut weights) = (vec![u32::MAX; slots], vec![f32::NAN; slots]);
    let pool = Pool::new(threads).expect("a few threads");
    route(&pool, router, &mut logits.to_vec(), bias, &mut ids, &mut weights);
    Choice { ids, weights }
}

/// The ids in order and their weights, by sorting.
fn oracle(router: &Router, logits: &[f32], bias: Option<&[f32]>) -> Vec<(u32, f64)> {
    let logits: Vec<f64> = logits.iter().map(|x| f64::from(*x)).collect();
    let total: f64 = logits.iter().map(|x| x.exp()).sum();
    let p: Vec<f64> = logits
        .iter()
        .map(|x| match router.gating {
            Gating::Sigmoid => 1.0 / (1.0 + (-x).exp()),
            Gating::Softmax => x.exp() / total,
        })
        .collect();
    let score = |e: usize| p[e] + bias.map_or(0.0, |bias| f64::from(bias[e]));
    let size = router.experts / router.groups;
    let mut groups: Vec<(f64, usize)> = (0..router.groups)
        .map(|g| {
            let mut scores: Vec<f64> = (g * size..(g + 1) * size).map(score).collect();
            scores.sort_by(|a, b| b.total_cmp(a));
            (scores[..2.min(size)].iter().sum(), g)
        })
        .collect();
    groups.sort_by(|a, b| b.0.total_cmp(&a.0));
    let open: Vec<usize> = groups[..router.groups_used].iter().map(|group| group.1).collect();
    let mut order: Vec<usize> = (0..router.experts).filter(|e| open.contains(&(e / size))).collect();
    order.sort_by(|a, b| score(*b).total_cmp(&score(*a)));
    order.truncate(router.used);
    let sum: f64 = order.iter().map(|e| p[*e]).sum();
    let share = if router.normalise { sum } else { 1.0 };
    order.iter().map(|e| (*e as u32, p[*e] / share * f64::from(router.scale))).collect()
}

#[test]
fn choices_are_those_of_a_sort() {
    let mut random = Random::new(1);
    let deepseek = Router { experts: 256, groups: 8, groups_used: 4, scale: 2.5, ..KIMI };
    let qwen = Router { experts: 128, gating: Gating::Softmax, scale: 1.0, ..KIMI };
    let raw = Router { experts: 60, used: 4, gating: Gating::Softmax, normalise: false, scale: 1.0, ..KIMI };
    for router in [KIMI, deepseek, qwen, raw] {
        let logits: Vec<f32> = random.values(40 * router.experts).iter().map(|x| x * 5.0).collect();
        let biases: Vec<f32> = random.values(router.experts).iter().map(|x| x * 0.3).collect();
        for bias in [None, Some(&biases[..])] {
            let all = run(&router, 1, &logits, bias);
            for (token, row) in logits.chunks(router.experts).enumerate() {
                let own = token * router.used..(token + 1) * router.used;
                for (slot, (id, weight)) in own.clone().zip(oracle(&router, row, bias)) {
                    assert_eq!(all.ids[slot], id, "{router:?} token {token}");
                    assert!((f64::from(all.weights[slot]) - weight).abs() <= 1e-6 * weight);
                }
                let alone = run(&router, 1, row, bias);
                assert_eq!(alone.ids, all.ids[own.clone()]);
                assert_eq!(bits(&alone.weights), bits(&all.weights[own]));
            }
            for threads in [2, 3] {
                let other = run(&router, threads, &logits, bias);
                assert_eq!((other.ids, bits(&other.weights)), (all.ids.clone(), bits(&all.weights)));
            }
        }
    }
}

#[test]
fn the_bias_chooses_but_does_not_weigh() {
    let router = Router { experts: 3, used: 1, normalise: false, scale: 1.0, ..KIMI };
    let choice = run(&router, 1, &[0.0, 3.0, 0.0], Some(&[0.0, 0.0, 2.0]));
    assert_eq!((choice.ids, choice.weights), (vec![2], vec![0.5]));
}

#[test]
fn ties_go_to_the_lower_id_and_the_lower_group() {
    let router = Router { experts: 8, used: 3, normalise: true, scale: 1.0, ..KIMI };
    assert_eq!(run(&router, 1, &[0.5; 8], None).ids, [0, 1, 2]);
    // Scores of +0 and −0 tie too.
    let bias = [-0.5; 8];
    assert_eq!(run(&router, 1, &[0.0; 8], Some(&bias)).ids, [0, 1, 2]);
    let router = Router { groups: 4, groups_used: 2, ..router };
    assert_eq!(run(&router, 1, &[0.5; 8], None).ids, [0, 1, 2]);
    assert_eq!(run(&router, 1, &[0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0], None).ids, [2, 3, 4]);
}

#[test]
fn vanishing_weights_stay_finite_and_poison_stays_visible() {
    let router = Router { experts: 4, used: 2, normalise: true, scale: 1.0, ..KIMI };
    let choice = run(&router, 1, &[-200.0; 4], None);
    assert_eq!((choice.ids, choice.weights), (vec![0, 1], vec![0.0, 0.0]));
    let choice = run(&router, 1, &[1.0, f32::NAN, 2.0, f32::NAN], None);
    assert_eq!(choice.ids, [1, 3]);
    assert!(choice.weights.iter().all(|weight| weight.is_nan()));
}

#[test]
#[should_panic(expected = "fewer than 3 experts")]
fn groups_must_hold_the_choice() {
    run(&Router { experts: 8, used: 3, groups: 4, groups_used: 1, ..KIMI }, 1, &[0.0; 8], None);
}

//! The contract's rounding on a trained model, where a small error stays small: the tiny model of the examples.

use std::path::Path;

use tandem_engine::{Engine, EngineConfig, ModelFiles, Pool};

use crate::support::{config, exact, in_chunks};

/// A question and the start of its answer, in the model's own tokens.
const STORY: [u32; 97] = [
    507, 291, 510, 54, 81, 321, 68, 258, 403, 88, 451, 258, 457, 71, 488, 68, 13, 506, 508, 292, 510, 51,
    346, 82, 304, 259, 403, 88, 361, 424, 75, 472, 11, 478, 268, 259, 457, 71, 488, 68, 421, 68, 375, 280,
    326, 335, 220, 16, 13, 220, 49, 333, 13, 306, 421, 68, 375, 280, 293, 275, 347, 365, 78, 471, 259, 279,
    410, 308, 470, 13, 306, 266, 445, 79, 296, 263, 498, 325, 293, 393, 79, 264, 11, 380, 259, 457, 71, 488,
    68, 266, 267, 70, 407, 366, 66, 68, 13,
];

/// The natural logarithms of the probabilities behind a row of logits.
fn log_probabilities(logits: &[f32]) -> Vec<f64> {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let shifted: Vec<f64> = logits.iter().map(|&logit| f64::from(logit - most)).collect();
    let log_sum = shifted.iter().map(|v| v.exp()).sum::<f64>().ln();
    shifted.into_iter().map(|v| v - log_sum).collect()
}

/// llama.cpp drifts by 9e-5 on such text, by its own rounding; so does this engine.
#[test]
fn int8_activations_hardly_change_what_a_trained_model_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/tiny-kimi/tiny-kimi-Q4_K_M.gguf");
    let run = |config: EngineConfig| {
        let files = ModelFiles::open(&path, "unverified").unwrap();
        let mut engine = Engine::load(files, config, Pool::new(2).unwrap(), &mut |_, _| {}).unwrap();
        let vocab = engine.shape().vocab;
        let logits = in_chunks(&mut engine, &STORY, STORY.len());
        logits.chunks_exact(vocab).map(log_probabilities).collect::<Vec<_>>()
    };
    let (truth, rounded) = (run(config()), run(exact()));
    let divergence =
        |(p, q): (&Vec<f64>, &Vec<f64>)| p.iter().zip(q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>();
    let mean = truth.iter().zip(&rounded).map(divergence).sum::<f64>() / STORY.len() as f64;
    println!("mean KL {mean:.1e}");
    assert!(mean < 5e-4, "mean KL {mean}");
    // Were the model not understood at all, agreement with itself would say nothing: it knows how its story goes on.
    let known = truth.iter().zip(&STORY[1..]).filter(|(p, next)| p[**next as usize] > 0.5f64.ln()).count();
    assert!(known > STORY.len() / 3, "only {known} of the story's tokens are likely");
}

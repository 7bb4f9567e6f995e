//! Logits against float64, with f32 activations and cache.

use tandem_engine::{DecodeModel, EngineConfig};
use tandem_gguf::{Value, Writer};
use tandem_reference::Reference;
use tandem_reference::deepseek2::Deepseek2;
use tandem_reference::dense::{Dense, Family};
use tandem_reference::file::{as_f32, random_file, writer};
use tandem_reference::rope::Yarn;

use crate::support::{bits, config, difference, forward, in_chunks, load, rows, tokens};

/// Rounding alone; some ten times what is seen.
const TOLERANCE: f64 = 1e-3;

/// Prints what is seen, and fails beyond the tolerance.
fn hold(what: &str, found: &[f32], expected: &[Vec<f64>]) {
    let (difference, greatest) = difference(found, expected);
    println!("{what}: max |difference| {difference:.1e}, max |logit| {greatest:.2}");
    assert!(difference < TOLERANCE, "{what}: {difference} > {TOLERANCE}");
}

fn hold_short_prompt(what: &str, shape: &dyn Reference) {
    let tokens = tokens(1, 40);
    let mut engine = load(&random_file(shape, 5), config());
    let found = in_chunks(&mut engine, &tokens, 16);
    hold(what, &found, &shape.logits(&shape.random_weights(5), &tokens, 0));
}

#[test]
fn kimi_agrees() {
    hold_short_prompt("deepseek2", &Deepseek2::tiny());
}

#[test]
fn kimi_without_yarn_agrees() {
    hold_short_prompt("deepseek2 without yarn", &Deepseek2 { yarn: None, ..Deepseek2::tiny() });
}

#[test]
fn fused_gate_and_up_agree() {
    let shape = Deepseek2 { fused_gate_up: true, ..Deepseek2::tiny() };
    hold_short_prompt("deepseek2 with fused gate and up", &shape);
}

#[test]
fn experts_from_the_best_groups_agree() {
    let shape = Deepseek2 { groups: 4, groups_used: 2, normalise: false, ..Deepseek2::tiny() };
    hold_short_prompt("deepseek2 with groups", &shape);
    // Were the groups ignored, other experts would be chosen.
    let (tokens, weights) = (tokens(1, 40), shape.random_weights(5));
    let all = Deepseek2 { groups: 1, groups_used: 1, ..shape.clone() };
    let grouped: Vec<f32> = shape.logits(&weights, &tokens, 0).concat().iter().map(|&v| v as f32).collect();
    assert!(difference(&grouped, &all.logits(&weights, &tokens, 0)).0 > 100.0 * TOLERANCE);
}

#[test]
fn llama_agrees() {
    hold_short_prompt("llama", &Dense::llama());
}

#[test]
fn llama_with_heads_of_their_own_length_and_partial_rope_agrees() {
    hold_short_prompt("llama, head 96, rope 32", &Dense { head: 96, rope: 32, ..Dense::llama() });
}

#[test]
fn qwen2_agrees() {
    hold_short_prompt("qwen2", &Dense::qwen2());
}

#[test]
fn qwen2_with_an_output_matrix_of_its_own_agrees() {
    hold_short_prompt("qwen2, untied", &Dense { tied: false, ..Dense::qwen2() });
}

/// Runs a prompt that passes position 4096 and compares its last rows.
fn last_rows_past_4096(shape: &dyn Reference) -> (Vec<f32>, Vec<Vec<f64>>) {
    const PROMPT: usize = 4160;
    const LAST: usize = 16;
    let tokens = tokens(2, PROMPT);
    let config = EngineConfig { context_tokens: 4608, pool_tokens: 4608, max_batch_rows: 520, ..config() };
    let mut engine = load(&random_file(shape, 6), config);
    engine.reserve(0, PROMPT as u32).unwrap();
    let mut found = Vec::new();
    for (i, part) in tokens.chunks(520).enumerate() {
        let mut rows = rows(0, i * 520, part);
        rows.iter_mut().for_each(|row| row.wants_logits = row.position as usize >= PROMPT - LAST);
        found.extend(forward(&mut engine, &rows));
    }
    (found, shape.logits(&shape.random_weights(6), &tokens, PROMPT - LAST))
}

fn yarn(beta_fast: f64, beta_slow: f64) -> Option<Yarn> {
    Some(Yarn { factor: 32.0, original: 4096, beta_fast, beta_slow, log_multiplier: 0.1 })
}

/// One head and short rows: float64 in plain loops takes a second.
fn long_kimi(yarn: Option<Yarn>) -> Deepseek2 {
    Deepseek2 { heads: 1, kv_lora: 32, rope: 16, yarn, ..Deepseek2::minute() }
}

#[test]
fn kimi_past_position_4096_agrees_with_betas_32_and_1() {
    let (found, expected) = last_rows_past_4096(&long_kimi(yarn(32.0, 1.0)));
    hold("deepseek2 past 4096, betas 32/1", &found, &expected);
}

#[test]
fn kimi_past_position_4096_agrees_with_betas_1_and_1() {
    let (found, expected) = last_rows_past_4096(&long_kimi(yarn(1.0, 1.0)));
    hold("deepseek2 past 4096, betas 1/1", &found, &expected);
}

/// What the comparison is worth: each of these keys, slightly off, must show.
#[test]
fn a_slightly_wrong_value_of_a_key_is_seen() {
    let (shape, tokens) = (Deepseek2::tiny(), tokens(1, 40));
    let weights = shape.random_weights(5);
    let expected = shape.logits(&weights, &tokens, 0);
    let wrong: [(&str, Value); 9] = [
        ("rope.freq_base", 49_000.0f32.into()),
        ("rope.scaling.factor", 33.0f32.into()),
        ("rope.scaling.type", "none".into()),
        ("rope.scaling.yarn_log_multiplier", 0.099f32.into()),
        ("rope.scaling.yarn_beta_fast", 1.0f32.into()),
        ("attention.layer_norm_rms_epsilon", 1e-3f32.into()),
        ("expert_weights_scale", 2.82f32.into()),
        ("expert_weights_norm", false.into()),
        ("expert_used_count", 3u32.into()),
    ];
    for (key, value) in wrong {
        let mut writer = writer(&shape, &weights, &|_, tensor| as_f32(tensor));
        writer.set(format!("deepseek2.{key}"), value);
        let found = in_chunks(&mut load(&writer.finish().unwrap(), config()), &tokens, 40);
        let (difference, _) = difference(&found, &expected);
        println!("wrong {key}: {difference:.1e}");
        assert!(difference > TOLERANCE, "a wrong {key} makes a difference of {difference} only");
    }
}

#[test]
fn absent_betas_are_32_and_1() {
    let (shape, tokens) = (Deepseek2::tiny(), tokens(1, 40));
    assert_eq!(shape.yarn, yarn(32.0, 1.0));
    let weights = shape.random_weights(5);
    let with = in_chunks(&mut load(&random_file(&shape, 5), config()), &tokens, 40);
    let mut writer = Writer::new();
    writer.set("general.architecture", "deepseek2");
    for (key, value) in shape.metadata().into_iter().filter(|(key, _)| !key.contains("yarn_beta")) {
        writer.set(key, value);
    }
    for (name, tensor) in &weights.tensors {
        let dims: Vec<u64> = tensor.dims.iter().map(|&d| d as u64).collect();
        writer.f32_tensor(name.as_str(), &dims, &tensor.values);
    }
    let without = in_chunks(&mut load(&writer.finish().unwrap(), config()), &tokens, 40);
    assert_eq!(bits(&with), bits(&without));
}

#[test]
fn the_betas_matter() {
    let (tokens, betas) = (tokens(1, 40), [yarn(32.0, 1.0), yarn(1.0, 1.0)]);
    let [wide, narrow] = betas.map(|yarn| {
        let shape = Deepseek2 { yarn, ..Deepseek2::tiny() };
        shape.logits(&shape.random_weights(5), &tokens, 0)
    });
    let wide: Vec<f32> = wide.concat().iter().map(|&v| v as f32).collect();
    assert!(difference(&wide, &narrow).0 > 10.0 * TOLERANCE, "a test can't tell the betas apart");
}

#[test]
fn llama_and_qwen2_past_position_4096_agree() {
    for family in [Family::Llama, Family::Qwen2] {
        let shape = match family {
            Family::Llama => Dense::llama(),
            Family::Qwen2 => Dense::qwen2(),
        };
        let shape = Dense { head: 16, rope: 16, ..shape.minute() };
        let (found, expected) = last_rows_past_4096(&shape);
        hold(&format!("{family:?} past 4096"), &found, &expected);
    }
}

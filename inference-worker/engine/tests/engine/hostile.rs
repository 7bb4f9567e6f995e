//! Broken models give errors that name what is wrong, and never a panic.

use std::sync::atomic::AtomicU64;

use tandem_engine::{DecodeModel, Engine, ForwardError, ModelFiles, Pool, plan};
use tandem_gguf::{GgmlType, Value, Writer};
use tandem_reference::Reference;
use tandem_reference::deepseek2::Deepseek2;
use tandem_reference::dense::Dense;
use tandem_reference::file::{as_f32, random_file};
use tandem_reference::random::Random;
use tandem_reference::tensor::Weights;

use crate::support::{config, files, rows};

/// A model with changed metadata and tensors.
struct Draft {
    architecture: &'static str,
    metadata: Vec<(String, Value)>,
    weights: Weights,
}

impl Draft {
    fn of(shape: &dyn Reference) -> Self {
        Self {
            architecture: shape.architecture(),
            metadata: shape.metadata(),
            weights: shape.random_weights(1),
        }
    }

    fn set(mut self, key: &str, value: impl Into<Value>) -> Self {
        let key = format!("{}.{key}", self.architecture);
        self.metadata.retain(|(k, _)| *k != key);
        self.metadata.push((key, value.into()));
        self
    }

    fn without(mut self, key: &str) -> Self {
        let key = format!("{}.{key}", self.architecture);
        let before = self.metadata.len();
        self.metadata.retain(|(k, _)| *k != key);
        assert!(self.metadata.len() < before, "{key} was there");
        self
    }

    fn writer(&self) -> Writer {
        let mut writer = Writer::new();
        writer.set("general.architecture", self.architecture);
        for (key, value) in &self.metadata {
            writer.set(key.as_str(), value.clone());
        }
        for (name, tensor) in &self.weights.tensors {
            let dims: Vec<u64> = tensor.dims.iter().map(|&d| d as u64).collect();
            let encoded = as_f32(tensor);
            writer.tensor(name.as_str(), &dims, encoded.ty, encoded.bytes);
        }
        writer
    }

    /// The whole chain of what loading says.
    fn refusal(&self) -> String {
        refusal(&self.writer().finish().unwrap())
    }
}

fn refusal(file: &[u8]) -> String {
    let error =
        Engine::load(files(file), config(), Pool::inline(), &mut |_, _| {}).expect_err("the model is broken");
    let mut message = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        message.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    message
}

fn kimi() -> Draft {
    Draft::of(&Deepseek2::minute())
}

fn llama() -> Draft {
    Draft::of(&Dense::llama().minute())
}

#[test]
fn an_unknown_architecture_is_refused_by_name() {
    let mut draft = llama();
    draft.architecture = "mamba";
    assert_eq!(
        draft.refusal(),
        "the architecture \"mamba\" is not supported; supported are deepseek2, llama, qwen2"
    );
}

#[test]
fn every_missing_key_is_named() {
    let optional = ["vocab_size", "expert_group", "rope.scaling.type", "yarn_beta", "freq_base"];
    let optional_of_llama = ["rope.dimension_count", "head_count_kv"];
    for shape in [&Deepseek2::minute() as &dyn Reference, &Dense::llama().minute(), &Dense::qwen2().minute()]
    {
        let mut named = 0;
        for (key, _) in shape.metadata().iter().filter(|(key, _)| key.starts_with(shape.architecture())) {
            let is_optional = optional.iter().any(|part| key.contains(part))
                || (shape.architecture() != "deepseek2" && optional_of_llama.iter().any(|k| key.contains(k)));
            if is_optional {
                continue;
            }
            let mut draft = Draft::of(shape);
            draft.metadata.retain(|(k, _)| k != key);
            let message = draft.refusal();
            assert!(message.contains(key.as_str()), "without {key}: {message}");
            named += 1;
        }
        assert!(named >= 6, "{} has required keys", shape.architecture());
    }
}

#[test]
fn every_missing_tensor_is_named() {
    for shape in [&Deepseek2::minute() as &dyn Reference, &Dense::llama().minute(), &Dense::qwen2().minute()]
    {
        let whole = Draft::of(shape);
        for name in whole.weights.tensors.keys() {
            // Without these a file is another model, and a whole one.
            if ["output.weight", "rope_freqs.weight"].contains(&name.as_str()) {
                continue;
            }
            let mut draft = Draft::of(shape);
            draft.weights.tensors.remove(name);
            let message = draft.refusal();
            assert!(message.contains(name.as_str()), "without {name}: {message}");
        }
    }
}

#[test]
fn every_tensor_of_another_shape_is_named_with_both_shapes() {
    for shape in [&Deepseek2::minute() as &dyn Reference, &Dense::llama().minute(), &Dense::qwen2().minute()]
    {
        for (name, dims) in shape.shapes() {
            for axis in 0..dims.len() {
                // The vocabulary's size is read from this one.
                if name == "token_embd.weight" && axis == 1 {
                    continue;
                }
                let mut draft = Draft::of(shape);
                let mut wrong = dims.clone();
                wrong[axis] += 1;
                let tensor = shape.random_tensor(&mut Random::new(1), &name, &wrong);
                draft.weights.insert(name.as_str(), tensor);
                let message = draft.refusal();
                let both = message.contains(&format!("{wrong:?}")) && message.contains(&format!("{dims:?}"));
                assert!(both && message.contains(&name), "{name} {wrong:?}: {message}");
            }
        }
    }
}

#[test]
fn contradictions_name_the_key_and_both_values() {
    let cases: [(Draft, &str, [&str; 2]); 12] = [
        (kimi().set("attention.head_count_kv", 2u32), "head_count_kv", ["2", "1"]),
        (kimi().set("attention.key_length", 192u32), "key_length", ["192", "96"]),
        (kimi().set("attention.value_length", 128u32), "value_length", ["128", "64"]),
        (kimi().set("attention.key_length_mla", 32u32), "key_length_mla", ["32", "32"]),
        (kimi().set("leading_dense_block_count", 3u32), "leading_dense_block_count", ["3", "2"]),
        (kimi().set("expert_group_count", 3u32), "expert_group_count", ["3", "8"]),
        (kimi().set("expert_group_used_count", 2u32), "expert_group_used_count", ["2", "1"]),
        (kimi().set("expert_used_count", 9u32), "expert_used_count", ["9", "8"]),
        (kimi().set("expert_gating_func", 1u32), "expert_gating_func", ["1", "2"]),
        (kimi().set("rope.scaling.type", "longrope"), "rope.scaling.type", ["longrope", "yarn"]),
        (llama().set("attention.head_count_kv", 4u32), "head_count_kv", ["4", "2"]),
        (llama().set("rope.dimension_count", 34u32), "rope.dimension_count", ["34", "32"]),
    ];
    for (draft, key, values) in cases {
        let message = draft.refusal();
        assert!(message.contains(key), "{key}: {message}");
        assert!(values.iter().all(|value| message.contains(value)), "{key} {values:?}: {message}");
    }
}

#[test]
fn numbers_without_sense_are_refused() {
    let nonsense: [Value; 6] =
        [0u32.into(), u32::MAX.into(), u64::MAX.into(), (-1i32).into(), "many".into(), true.into()];
    let sizes = ["block_count", "embedding_length", "attention.head_count", "feed_forward_length"];
    for value in nonsense {
        for key in sizes {
            for draft in [kimi(), llama()] {
                let message = draft.set(key, value.clone()).refusal();
                assert!(message.contains(key), "{key} = {value:?}: {message}");
            }
        }
    }
    for value in [0.0f32, -1.0, f32::NAN, f32::INFINITY] {
        for key in ["attention.layer_norm_rms_epsilon", "rope.freq_base", "rope.scaling.factor"] {
            let message = kimi().set(key, value).refusal();
            assert!(message.contains(key), "{key} = {value}: {message}");
        }
    }
}

/// Whatever a key holds, the engine either refuses the model or runs it.
#[test]
fn no_value_of_any_key_brings_the_engine_down() {
    let values: [Value; 14] = [
        0u32.into(),
        1u32.into(),
        2u32.into(),
        7u32.into(),
        128u32.into(),
        (1u32 << 24).into(),
        u32::MAX.into(),
        u64::MAX.into(),
        (-1i32).into(),
        f32::MIN_POSITIVE.into(),
        f32::MAX.into(),
        f32::NAN.into(),
        "none".into(),
        false.into(),
    ];
    let (mut refused, mut run) = (0, 0);
    for shape in [&Deepseek2::minute() as &dyn Reference, &Dense::llama().minute(), &Dense::qwen2().minute()]
    {
        let own =
            |(key, _): &(String, Value)| key.strip_prefix(shape.architecture()).map(|k| k[1..].to_owned());
        for key in shape.metadata().iter().filter_map(own) {
            for value in &values {
                let file = Draft::of(shape).set(&key, value.clone()).writer().finish().unwrap();
                let Ok(mut engine) = Engine::load(files(&file), config(), Pool::inline(), &mut |_, _| {})
                else {
                    refused += 1;
                    continue;
                };
                engine.reserve(0, 3).unwrap();
                let mut logits = vec![0.0; 3 * engine.vocab_size()];
                match engine.forward(&rows(0, 0, &[1, 2, 3]), &AtomicU64::new(0), &mut logits) {
                    Ok(()) | Err(ForwardError::NotFinite { .. }) => run += 1,
                    Err(other) => panic!("{key} = {value:?}: {other}"),
                }
            }
        }
    }
    assert!(refused > 500 && run > 50, "{refused} refused, {run} run");
}

#[test]
fn a_tensor_without_a_place_in_the_graph_is_refused_by_name() {
    let mut draft = llama();
    let norm = draft.weights.get("output_norm.weight").clone();
    draft.weights.insert("blk.1.attn_q_norm.weight", norm);
    let message = draft.refusal();
    assert!(message.contains("blk.1.attn_q_norm.weight"), "{message}");
}

#[test]
fn files_from_before_kv_b_was_split_are_refused_clearly() {
    let message = kimi().without("attention.key_length_mla").refusal();
    assert!(message.contains("attn_kv_b") && message.contains("attn_k_b"), "{message}");
}

#[test]
fn a_llama_with_experts_is_refused() {
    let message = llama().set("expert_count", 8u32).refusal();
    assert!(message.contains("llama.expert_count is 8"), "{message}");
}

#[test]
fn types_without_kernels_are_refused_with_the_tensor() {
    let shape = Dense::llama();
    let draft = Draft::of(&shape);
    for (name, ty, bytes, wanted) in [
        ("blk.0.ffn_up.weight", GgmlType::Q2K, 84, "Q2_K"),
        ("output_norm.weight", GgmlType::F16, 512, "F16"),
    ] {
        let mut writer = Writer::new();
        writer.set("general.architecture", "llama");
        draft.metadata.iter().for_each(|(key, value)| {
            writer.set(key.as_str(), value.clone());
        });
        for (other, tensor) in &draft.weights.tensors {
            let dims: Vec<u64> = tensor.dims.iter().map(|&d| d as u64).collect();
            let rows: usize = tensor.dims[1..].iter().product();
            if other == name {
                writer.tensor(name, &dims, ty, vec![0; rows * bytes]);
            } else {
                let encoded = as_f32(tensor);
                writer.tensor(other.as_str(), &dims, encoded.ty, encoded.bytes);
            }
        }
        let message = refusal(&writer.finish().unwrap());
        assert!(message.contains(name) && message.contains(wanted), "{message}");
    }
}

#[test]
fn a_model_in_several_files_is_one_model() {
    let shape = Dense::qwen2().minute();
    let shards = Draft::of(&shape).writer().finish_shards(3).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = |number: usize| folder.path().join(format!("m-{number:05}-of-00003.gguf"));
    for (i, shard) in shards.iter().enumerate() {
        std::fs::write(path(i + 1), shard).unwrap();
    }
    let split = ModelFiles::open(&path(1), "digest").unwrap();
    let single = files(&random_file(&shape, 1));
    assert_eq!(
        plan(split.headers(), &config()).unwrap().weight_bytes,
        plan(single.headers(), &config()).unwrap().weight_bytes
    );
    let run = |files| {
        let mut engine = Engine::load(files, config(), Pool::inline(), &mut |_, _| {}).unwrap();
        crate::support::bits(&crate::support::in_chunks(&mut engine, &[1, 2, 3], 3))
    };
    assert_eq!(run(split), run(single));

    std::fs::remove_file(path(2)).unwrap();
    let message = ModelFiles::open(&path(1), "digest").unwrap_err();
    let cause = std::error::Error::source(&message).unwrap().to_string();
    assert!(cause.contains("m-00002-of-00003.gguf"), "{cause}");
}

//! Small models as files, and engines that run them.

use std::sync::atomic::AtomicU64;

use tandem_engine::{DecodeModel, Engine, EngineConfig, KvType, Mode, ModelFiles, Pool, Row};
use tandem_gguf::GgmlType;
use tandem_kernels::WeightType;
use tandem_kernels::blocks::quantise;
use tandem_reference::Reference;
use tandem_reference::deepseek2::Deepseek2;
use tandem_reference::file::{Encoded, as_f32, writer};
use tandem_reference::random::Random;
use tandem_reference::tensor::{Tensor, Weights};

/// f32 throughout, as the float64 reference is compared with.
pub(crate) fn config() -> EngineConfig {
    EngineConfig {
        context_tokens: 256,
        pool_tokens: 1024,
        kv_type: KvType::F32,
        numerics: Mode::Reference,
        layers: None,
        max_sequences: 4,
        max_batch_rows: 128,
    }
}

/// As replicas run.
pub(crate) fn exact() -> EngineConfig {
    EngineConfig { kv_type: KvType::F16, numerics: Mode::Exact, ..config() }
}

/// Every part of Kimi K2, small, with rows of whole 256-blocks where K-quants need them.
pub(crate) fn small_kimi() -> Deepseek2 {
    Deepseek2 {
        layers: 2,
        dense_ff: 256,
        q_lora: 64,
        kv_lora: 256,
        rope: 32,
        nope: 32,
        v: 64,
        experts: 8,
        used: 2,
        vocab: 260,
        ..Deepseek2::tiny()
    }
}

/// Maps the bytes of one file.
pub(crate) fn files(bytes: &[u8]) -> ModelFiles {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, bytes).unwrap();
    // The mapping outlives the name.
    ModelFiles::open(&path, "sha256-of-a-test").unwrap()
}

pub(crate) fn load(bytes: &[u8], config: EngineConfig) -> Engine {
    load_with(2, bytes, config)
}

pub(crate) fn load_with(threads: usize, bytes: &[u8], config: EngineConfig) -> Engine {
    Engine::load(files(bytes), config, Pool::new(threads).unwrap(), &mut |_, _| {}).unwrap()
}

/// A model whose matrices have the given type wherever their rows are whole blocks of it.
pub(crate) fn quantised_file(shape: &dyn Reference, weights: &Weights, ty: WeightType) -> Vec<u8> {
    let encode = |name: &str, tensor: &Tensor| encode(name, tensor, ty);
    writer(shape, weights, &encode).finish().unwrap()
}

/// K-quants need rows of 256, so what has shorter rows is Q8_0, as in real files; vectors and routers stay f32.
fn encode(name: &str, tensor: &Tensor, ty: WeightType) -> Encoded {
    let is_matrix = tensor.dims.len() > 1 && !name.ends_with("ffn_gate_inp.weight");
    let fits = |ty: &WeightType| tensor.dims[0].is_multiple_of(ty.block_len());
    match [ty, WeightType::Q8_0].into_iter().find(fits).filter(|_| is_matrix) {
        Some(ty) => Encoded {
            ty: GgmlType::from_id(ty.ggml_id()).unwrap(),
            bytes: quantise(ty, &tensor.values).unwrap(),
        },
        None => as_f32(tensor),
    }
}

/// A model in which types are mixed per tensor, as in published files.
pub(crate) fn mixed_file(shape: &dyn Reference, weights: &Weights) -> Vec<u8> {
    let encode = |name: &str, tensor: &Tensor| {
        let ty = match name.rsplit('.').nth(1) {
            Some("attn_q_a" | "ffn_gate_exps" | "ffn_up_exps") => WeightType::Q4K,
            Some("ffn_down_exps" | "output" | "ffn_down") => WeightType::Q6K,
            Some("attn_kv_a_mqa" | "attn_v" | "ffn_up_shexp") => WeightType::Q4_0,
            Some("token_embd" | "attn_k") => WeightType::F16,
            Some("ffn_gate_shexp") => WeightType::Bf16,
            _ => WeightType::Q8_0,
        };
        self::encode(name, tensor, ty)
    };
    writer(shape, weights, &encode).finish().unwrap()
}

/// The same tokens for the same seed.
pub(crate) fn tokens(seed: u64, count: usize) -> Vec<u32> {
    Random::new(seed).tokens(count, 256)
}

/// Rows of consecutive tokens of a sequence, all with logits.
pub(crate) fn rows(sequence: u32, first: usize, tokens: &[u32]) -> Vec<Row> {
    let row = |(i, &token): (usize, &u32)| Row {
        sequence,
        position: (first + i) as u32,
        token,
        wants_logits: true,
    };
    tokens.iter().enumerate().map(row).collect()
}

/// The logits of some rows.
pub(crate) fn forward(engine: &mut Engine, rows: &[Row]) -> Vec<f32> {
    let wanted = rows.iter().filter(|row| row.wants_logits).count();
    let mut logits = vec![f32::NAN; wanted * engine.vocab_size()];
    engine.forward(rows, &AtomicU64::new(0), &mut logits).unwrap();
    logits
}

/// The logits after each token, computed `chunk` tokens at a time in slot 0.
pub(crate) fn in_chunks(engine: &mut Engine, tokens: &[u32], chunk: usize) -> Vec<f32> {
    engine.reserve(0, tokens.len() as u32).unwrap();
    let mut logits = Vec::new();
    for (i, part) in tokens.chunks(chunk).enumerate() {
        logits.extend(forward(engine, &rows(0, i * chunk, part)));
    }
    logits
}

pub(crate) fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// The greatest difference, and the greatest of the expected values.
pub(crate) fn difference(found: &[f32], expected: &[Vec<f64>]) -> (f64, f64) {
    let expected: Vec<f64> = expected.iter().flatten().copied().collect();
    assert_eq!(found.len(), expected.len());
    let pairs = found.iter().zip(&expected);
    let most = |values: &mut dyn Iterator<Item = f64>| {
        values.fold(0.0, |most: f64, value| if value > most || value.is_nan() { value } else { most })
    };
    (
        most(&mut pairs.map(|(&found, expected)| (f64::from(found) - expected).abs())),
        most(&mut expected.iter().map(|value| value.abs())),
    )
}

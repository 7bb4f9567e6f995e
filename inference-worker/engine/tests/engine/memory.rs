//! The plan from headers, for Kimi K2 what is known of it.

use tandem_engine::memory::PlanError;
use tandem_engine::{EngineConfig, KvType, Mode, plan};
use tandem_gguf::{GgmlType, Header, ShardSet, Writer};
use tandem_reference::Reference;
use tandem_reference::deepseek2::Deepseek2;
use tandem_reference::dense::Dense;
use tandem_reference::rope::Yarn;

const GIB: f64 = (1u64 << 30) as f64;

/// Kimi K2's true shape.
fn kimi_k2() -> Deepseek2 {
    Deepseek2 {
        layers: 61,
        dense_layers: 1,
        width: 7168,
        dense_ff: 18_432,
        heads: 64,
        q_lora: 1536,
        kv_lora: 512,
        rope: 64,
        nope: 128,
        v: 128,
        experts: 384,
        used: 8,
        expert_ff: 2048,
        vocab: 163_840,
        context: 131_072,
        yarn: Some(Yarn {
            factor: 32.0,
            original: 4096,
            beta_fast: 1.0,
            beta_slow: 1.0,
            log_multiplier: 0.1,
        }),
        ..Deepseek2::tiny()
    }
}

/// The headers of a model of this shape, without weights: experts in Q4_K, other matrices in Q8_0.
fn headers(shape: &dyn Reference) -> ShardSet {
    let mut writer = Writer::new();
    writer.set("general.architecture", shape.architecture());
    for (key, value) in shape.metadata() {
        writer.set(key, value);
    }
    for (name, dims) in shape.shapes() {
        let dims: Vec<u64> = dims.iter().map(|&d| d as u64).collect();
        let ty = match dims.len() {
            1 => GgmlType::F32,
            _ if name.ends_with("_exps.weight") => GgmlType::Q4K,
            _ if name.ends_with("ffn_gate_inp.weight") => GgmlType::F32,
            _ => GgmlType::Q8_0,
        };
        writer.declare(name, &dims, ty);
    }
    let (header, len) = writer.header().unwrap();
    ShardSet::assemble(vec![Header::parse(&header, len).unwrap()]).unwrap()
}

fn served(context_tokens: u32) -> EngineConfig {
    EngineConfig {
        context_tokens,
        pool_tokens: context_tokens,
        kv_type: KvType::F16,
        numerics: Mode::Exact,
        layers: None,
        max_sequences: 8,
        max_batch_rows: 512,
    }
}

#[test]
fn kimi_k2_needs_what_is_known_of_it() {
    let headers = headers(&kimi_k2());
    let at_32k = plan(&headers, &served(32 << 10)).unwrap();
    assert_eq!(at_32k.kv.bytes_per_token, 70_272);
    let gib = |tokens: u32| plan(&headers, &served(tokens)).unwrap().kv.bytes as f64 / GIB;
    assert_eq!(format!("{:.1} {:.1}", gib(32 << 10), gib(128 << 10)), "2.1 8.6");
    assert_eq!(at_32k.weight_bytes, headers.tensor_bytes(), "every tensor is read");
    assert_eq!(at_32k.total_bytes, at_32k.weight_bytes + at_32k.kv.bytes + at_32k.arena_bytes);
    println!(
        "K2, Q4_K experts: weights {:.1} GiB, arena {:.2} GiB",
        at_32k.weight_bytes as f64 / GIB,
        at_32k.arena_bytes as f64 / GIB
    );
    assert!(at_32k.arena_bytes as f64 / GIB < 1.0, "the arena of 512 rows is small beside the weights");
}

#[test]
fn stages_of_kimi_k2_add_up() {
    let headers = headers(&kimi_k2());
    let part = |layers| plan(&headers, &EngineConfig { layers: Some(layers), ..served(32 << 10) }).unwrap();
    let (first, last, whole) = (part(0..30), part(30..61), part(0..61));
    assert_eq!(first.weight_bytes + last.weight_bytes, whole.weight_bytes);
    assert_eq!(first.kv.bytes + last.kv.bytes, whole.kv.bytes);
}

#[test]
fn what_cannot_be_addressed_is_refused() {
    let shape = Dense { heads: 1 << 20, kv_heads: 1 << 20, head: 1 << 20, rope: 2, ..Dense::llama() };
    assert_eq!(plan(&headers(&shape), &served(131_072)), Err(PlanError::TooLarge));
}

#[test]
fn every_setting_outside_its_range_is_refused_by_name() {
    let headers = headers(&kimi_k2());
    let served = served(32 << 10);
    let refused = [
        (EngineConfig { context_tokens: 131_073, pool_tokens: 131_073, ..served.clone() }, "context_tokens"),
        (EngineConfig { pool_tokens: 100, ..served.clone() }, "pool_tokens"),
        (EngineConfig { max_sequences: 0, ..served.clone() }, "max_sequences"),
        (EngineConfig { max_batch_rows: 0, ..served.clone() }, "max_batch_rows"),
        (EngineConfig { layers: Some(60..62), ..served.clone() }, "60..62"),
        (EngineConfig { layers: Some(3..3), ..served.clone() }, "3..3"),
    ];
    for (config, name) in refused {
        let message = plan(&headers, &config).unwrap_err().to_string();
        assert!(message.contains(name), "{message}");
    }
}

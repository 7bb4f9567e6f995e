//! What the operator says that a copy takes is what its worker maps and allocates, to the byte. That the worker's plan is what
//! it allocates is held by the engine's `tests/allocation.rs`.
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

use std::path::{Path, PathBuf};

use inference_worker::loading::{Opened, Purpose};
use tandem_crds::{Context, KvCache};
use tandem_gguf::{Header, ShardSet};
use tandem_plan::sizing;
use tandem_worker_api::WorkerSpec;

fn tiny_kimi() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/tiny-kimi/tiny-kimi-Q4_K_M.gguf")
}

/// A spec as agents write them, from the fields that they leave to the default on.
fn spec(context: &Context, threads: Option<u32>) -> WorkerSpec {
    let mut json = serde_json::json!({
        "workload": "llm-tiny-1", "epoch": 1, "model": "tiny", "deployment": "llm/tiny",
        "files": [{"path": tiny_kimi(), "sha256": "0".repeat(64)}],
        "context_tokens": context.tokens, "pool_tokens": context.pool(),
        "kv_cache": format!("{:?}", context.kv_cache),
        "sampling": {}, "listen": "127.0.0.1:0", "credentials_dir": "/c", "endpoint_file": "/run/e.json",
    });
    if let Some(threads) = threads {
        json["threads"] = threads.into();
    }
    WorkerSpec::parse(json.to_string().as_bytes()).unwrap()
}

#[test]
fn the_size_in_a_status_is_the_plan_of_its_worker_on_any_host() {
    let file = std::fs::read(tiny_kimi()).unwrap();
    let header = Header::parse(&file, file.len() as u64).unwrap();
    let headers = ShardSet::assemble(vec![header]).unwrap();
    for (tokens, pool_tokens, kv_cache) in [
        (4096, Some(16_384), KvCache::F16),
        (4096, None, KvCache::F32),
        (16, Some(16), KvCache::F16),
        (1000, Some(1001), KvCache::F16),
    ] {
        let context = Context { tokens, pool_tokens, kv_cache };
        let sizing = sizing::size(&headers, &context).unwrap();
        assert_eq!(
            sizing.total_bytes,
            sizing.weights_bytes + sizing.kv_bytes + sizing.arena_bytes,
            "{context:?}"
        );
        for threads in [None, Some(1), Some(2), Some(4096)] {
            let purpose = Purpose::of(&spec(&context, threads));
            let plan = Opened::files(&[tiny_kimi()], "digest", &purpose).unwrap().plan;
            assert_eq!(plan.total_bytes, sizing.total_bytes, "{context:?} on {threads:?} threads");
            assert_eq!(
                (plan.weight_bytes, plan.kv.bytes, plan.arena_bytes),
                (sizing.weights_bytes, sizing.kv_bytes, sizing.arena_bytes)
            );
        }
        println!("{tokens} of {pool_tokens:?} {kv_cache:?}: {} bytes", sizing.total_bytes);
    }
}

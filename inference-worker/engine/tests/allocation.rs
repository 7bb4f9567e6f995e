//! What an engine and its scheduler allocate is what the plan says, to the byte. A test alone in its process, since it
//! counts every allocation.
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

use std::alloc::System;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::AtomicU64;

use cap::Cap;
use tandem_engine::scheduler::{Limits, Scheduler};
use tandem_engine::{
    DecodeModel, Engine, EngineConfig, KvType, Mode, ModelFiles, ModelShape, Pool, Row, plan,
};
use tandem_reference::Reference;
use tandem_reference::deepseek2::Deepseek2;
use tandem_reference::dense::Dense;
use tandem_reference::file::random_file;

#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, usize::MAX);

#[test]
fn mapped_and_allocated_bytes_are_the_plan() {
    let kimi = Deepseek2 { layers: 3, experts: 8, used: 2, ..Deepseek2::tiny() };
    let fused = Deepseek2 { fused_gate_up: true, ..kimi.clone() };
    let tied = Dense { rope_factors: false, tied: true, ..Dense::llama() };
    let shapes: [&dyn Reference; 5] = [&kimi, &fused, &Dense::llama(), &tied, &Dense::qwen2()];
    let folder = tempfile::tempdir().unwrap();
    for shape in shapes {
        let path = folder.path().join("model.gguf");
        std::fs::write(&path, random_file(shape, 1)).unwrap();
        for (kv_type, numerics) in [(KvType::F16, Mode::Exact), (KvType::F32, Mode::Reference)] {
            for layers in [None, Some(0..1), Some(1..2)] {
                let config = EngineConfig {
                    context_tokens: 1000,
                    pool_tokens: 3000,
                    kv_type,
                    numerics,
                    layers,
                    max_sequences: 5,
                    max_batch_rows: 96,
                };
                holds(&path, config);
            }
        }
    }
    // As a deployment loads it.
    let trained =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/tiny-kimi/tiny-kimi-Q4_K_M.gguf");
    let deployed = EngineConfig {
        context_tokens: 4096,
        pool_tokens: 16_384,
        kv_type: KvType::F16,
        numerics: Mode::Exact,
        layers: None,
        max_sequences: 16,
        max_batch_rows: 144,
    };
    holds(&trained, deployed);
}

fn holds(path: &Path, config: EngineConfig) {
    let files = ModelFiles::open(path, "digest").unwrap();
    let planned = plan(files.headers(), &config).unwrap();
    let shape = ModelShape::read(files.headers()).unwrap();
    drop(files);
    let context = format!("{} {:?} {:?}", shape.architecture.name(), config.numerics, config.layers);
    let is_whole = planned.layers == shape.all_layers();
    let (max_batch_rows, max_sequences) = (config.max_batch_rows, config.max_sequences);

    // The threads are the process's, and the plan knows nothing of them.
    let threads = Pool::inline();
    let before = ALLOCATOR.allocated();
    let files = ModelFiles::open(path, "digest").unwrap();
    let mut engine = Engine::load(files, config, threads, &mut |_, _| {}).unwrap();
    let loaded = ALLOCATOR.allocated();
    if !is_whole {
        // A stage is stepped without a scheduler.
        let scheduled = planned.arena.iter().find(|region| region.name == "rows of the scheduler").unwrap();
        let allocated = (loaded - before) as u64;
        let last =
            planned.arena.iter().find(|region| region.name == "logits").map_or(0, |region| region.bytes);
        assert_eq!(
            planned.weight_bytes + allocated + scheduled.bytes + last,
            planned.total_bytes,
            "{context}"
        );
        return;
    }

    let mut logits = vec![0.0; engine.vocab_size()];
    let ready = ALLOCATOR.allocated();
    for sequence in 0..3 {
        let count = max_batch_rows as u32;
        engine.reserve(sequence, count).unwrap();
        let row =
            |position| Row { sequence, position, token: position % 256, wants_logits: position + 1 == count };
        let rows: Vec<Row> = (0..count).map(row).collect();
        engine.forward(&rows, &AtomicU64::new(0), &mut logits).unwrap();
        drop(rows);
        assert_eq!(ALLOCATOR.allocated(), ready, "{context}: a step kept or gave back memory");
    }
    drop(logits);

    let limits = Limits { active: max_sequences as usize, waiting: 1, prefill_rows: max_batch_rows };
    let scheduler = Scheduler::new(engine, BTreeSet::new(), limits).unwrap();
    let allocated = (ALLOCATOR.allocated() - before) as u64;
    assert_eq!(planned.allocated_bytes(), allocated, "{context}: {:#?}", planned.arena);
    assert_eq!(planned.weight_bytes + allocated, planned.total_bytes);
    drop(scheduler);
    assert_eq!(ALLOCATOR.allocated(), before, "{context}: something outlives the engine");
    // At the end, since captured output is allocated, too.
    println!("{context}: {} mapped + {allocated} allocated = {}", planned.weight_bytes, planned.total_bytes);
}

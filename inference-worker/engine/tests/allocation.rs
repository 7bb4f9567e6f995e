//! What an engine allocates is what its plan says. A test alone in its process, since it counts every allocation.

use std::alloc::System;
use std::sync::atomic::AtomicU64;

use cap::Cap;
use tandem_engine::{DecodeModel, Engine, EngineConfig, KvType, Mode, ModelFiles, Row, plan};
use tandem_reference::Reference;
use tandem_reference::deepseek2::Deepseek2;
use tandem_reference::dense::Dense;
use tandem_reference::file::random_file;

#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, usize::MAX);

/// Names of tensors, places of weights, threads' own bookkeeping: what no plan of a real model would notice.
const BOOKKEEPING: u64 = 48 << 10;

#[test]
fn loading_allocates_the_plan_and_stepping_nothing_that_stays() {
    let kimi = Deepseek2 { layers: 2, experts: 8, used: 2, ..Deepseek2::tiny() };
    let shapes: [&dyn Reference; 2] = [&kimi, &Dense::llama()];
    let folder = tempfile::tempdir().unwrap();
    for (shape, (kv_type, numerics)) in shapes
        .into_iter()
        .flat_map(|s| [(KvType::F16, Mode::Exact), (KvType::F32, Mode::Reference)].map(|c| (s, c)))
    {
        let path = folder.path().join("model.gguf");
        std::fs::write(&path, random_file(shape, 1)).unwrap();
        let config = EngineConfig {
            context_tokens: 1000,
            pool_tokens: 3000,
            kv_type,
            numerics,
            threads: 2,
            layers: None,
            max_sequences: 5,
            max_batch_rows: 96,
        };
        let files = ModelFiles::open(&path, "digest").unwrap();
        let planned = plan(files.headers(), &config).unwrap();
        let before = ALLOCATOR.allocated();
        let mut engine = Engine::load(files, config, &mut |_, _| {}).unwrap();
        let allocated = (ALLOCATOR.allocated() - before) as u64;

        assert_eq!(engine.memory(), &planned);
        let wanted = planned.allocated_bytes();
        println!("{} {numerics:?}: planned {wanted}, allocated {allocated}", shape.architecture());
        assert!(
            (wanted..wanted + BOOKKEEPING).contains(&allocated),
            "planned {wanted}, allocated {allocated}"
        );

        let mut logits = vec![0.0; engine.vocab_size()];
        let ready = ALLOCATOR.allocated();
        for sequence in 0..3 {
            engine.reserve(sequence, 96).unwrap();
            let row =
                |position| Row { sequence, position, token: position % 256, wants_logits: position == 95 };
            let rows: Vec<Row> = (0..96).map(row).collect();
            engine.forward(&rows, &AtomicU64::new(0), &mut logits).unwrap();
        }
        let kept = ALLOCATOR.allocated() as i64 - ready as i64;
        assert!(kept.unsigned_abs() < BOOKKEEPING, "three steps kept {kept} bytes");
    }
}

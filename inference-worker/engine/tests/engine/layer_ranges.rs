//! Two engines with a part of the layers each are one engine with all.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use tandem_engine::engine::{Input, Output};
use tandem_engine::{DecodeModel, Engine, EngineConfig, ForwardError, KvType, Row, numerics_id, plan};
use tandem_reference::Reference;
use tandem_reference::deepseek2::Deepseek2;
use tandem_reference::dense::Dense;

use crate::support::{bits, exact, files, in_chunks, load, mixed_file, rows, small_kimi, tokens};

fn part(file: &[u8], layers: Range<u32>) -> Engine {
    load(file, EngineConfig { layers: Some(layers), ..exact() })
}

/// Gives rows from stage to stage; counts the layers that were ticked.
fn chain(stages: &mut [Engine], rows: &[Row], ticks: &AtomicU64) -> Vec<f32> {
    let width = stages[0].shape().width;
    let vocab = stages[0].vocab_size();
    let last = stages.len() - 1;
    let mut hidden = vec![0.0; rows.len() * width];
    let mut logits = vec![0.0; rows.len() * vocab];
    for (stage, engine) in stages.iter_mut().enumerate() {
        let from = hidden.clone();
        let input = if stage == 0 { Input::Tokens } else { Input::Activations(&from) };
        let output =
            if stage == last { Output::Logits(&mut logits) } else { Output::Activations(&mut hidden) };
        engine.forward_hidden(rows, input, ticks, output).unwrap();
    }
    logits
}

#[test]
fn chained_ranges_equal_the_whole_bit_for_bit() {
    let kimi = Deepseek2 { layers: 3, ..small_kimi() };
    let tied = Dense { layers: 3, ..Dense::qwen2() };
    let llama = Dense { layers: 3, ..Dense::llama() };
    let shapes: [&dyn Reference; 3] = [&kimi, &tied, &llama];
    let tokens = tokens(30, 40);
    for shape in shapes {
        let file = mixed_file(shape, &shape.random_weights(10));
        let whole = bits(&in_chunks(&mut load(&file, exact()), &tokens, 40));
        for cuts in [vec![0..1, 1..3], vec![0..2, 2..3], vec![0..1, 1..2, 2..3]] {
            let mut stages: Vec<Engine> = cuts.iter().map(|range| part(&file, range.clone())).collect();
            stages.iter_mut().for_each(|engine| engine.reserve(0, 40).unwrap());
            let ticks = AtomicU64::new(0);
            let mut found = chain(&mut stages, &rows(0, 0, &tokens[..25]), &ticks);
            found.extend(chain(&mut stages, &rows(0, 25, &tokens[25..]), &ticks));
            assert!(bits(&found) == whole, "{} {cuts:?}", shape.architecture());
            assert_eq!(ticks.load(Ordering::Relaxed), 2 * 3, "one tick per layer and step");
        }
    }
}

#[test]
fn parts_need_less_memory_and_refuse_what_they_cannot_do() {
    let shape = small_kimi();
    let file = mixed_file(&shape, &shape.random_weights(10));
    let (mut first, mut last) = (part(&file, 0..1), part(&file, 1..2));
    let planned = |layers| plan(files(&file).headers(), &EngineConfig { layers, ..exact() }).unwrap();
    let whole = planned(None);
    let weights = |layers| planned(Some(layers)).weight_bytes;
    assert_eq!(weights(0..1) + weights(1..2), whole.weight_bytes);
    assert_eq!(planned(Some(0..1)).kv.bytes * 2, whole.kv.bytes);

    first.reserve(0, 1).unwrap();
    last.reserve(0, 1).unwrap();
    let (row, ticks) = (rows(0, 0, &[7]), AtomicU64::new(0));
    let mut logits = vec![0.0; shape.vocab];
    let refused = first.forward(&row, &ticks, &mut logits).unwrap_err();
    assert!(matches!(refused, ForwardError::LayerRange { first: 0, end: 1, layers: 2, .. }), "{refused}");
    let refused = last.forward(&row, &ticks, &mut logits).unwrap_err();
    assert!(matches!(refused, ForwardError::LayerRange { first: 1, end: 2, layers: 2, .. }), "{refused}");
    let hidden = vec![0.0; shape.width - 1];
    let short = last.forward_hidden(&row, Input::Activations(&hidden), &ticks, Output::Logits(&mut logits));
    assert!(matches!(short, Err(ForwardError::BufferLength { what: "input", .. })));
    assert_eq!(ticks.load(Ordering::Relaxed), 0);
}

#[test]
fn the_numerics_id_names_what_the_bits_depend_on() {
    let shape = small_kimi();
    let file = mixed_file(&shape, &shape.random_weights(10));
    let id = |config| numerics_id(&files(&file), &config);
    let own = id(exact());
    assert!(own.starts_with("sha256-of-a-test/"), "{own}");
    assert_ne!(own, id(EngineConfig { kv_type: KvType::F32, ..exact() }));
    assert_ne!(own, id(EngineConfig { numerics: tandem_engine::Mode::Reference, ..exact() }));
    assert_eq!(own, id(EngineConfig { max_batch_rows: 7, layers: Some(0..1), ..exact() }));
}

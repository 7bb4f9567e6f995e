//! A row's logits have the same bits alone, beside others, in any chunks, on any number of threads.

use std::ops::Range;

use proptest::prelude::*;
use tandem_engine::{DecodeModel, Engine, EngineConfig, KvType, Mode, Row};
use tandem_reference::Reference;
use tandem_reference::dense::Dense;

use crate::support::{
    bits, config, exact, forward, in_chunks, load, load_with, mixed_file, rows, small_kimi, tokens,
};

/// More than a chunk of attention, so that parts are merged.
const PROMPT: usize = 290;

fn long(config: EngineConfig) -> EngineConfig {
    EngineConfig { context_tokens: 512, pool_tokens: 1536, max_batch_rows: 512, ..config }
}

fn file(shape: &dyn Reference) -> Vec<u8> {
    mixed_file(shape, &shape.random_weights(9))
}

fn shapes() -> [Box<dyn Reference>; 3] {
    [Box::new(small_kimi()), Box::new(Dense::llama()), Box::new(Dense::qwen2())]
}

#[test]
fn prefill_and_decode_give_equal_bits() {
    let tokens = tokens(4, PROMPT);
    for shape in shapes() {
        let file = file(shape.as_ref());
        for kv_type in [KvType::F32, KvType::F16] {
            for numerics in [Mode::Exact, Mode::Reference] {
                let config = long(EngineConfig { kv_type, numerics, ..exact() });
                let whole = in_chunks(&mut load(&file, config.clone()), &tokens, PROMPT);
                let single = in_chunks(&mut load(&file, config), &tokens, 1);
                assert!(bits(&whole) == bits(&single), "{} {kv_type:?} {numerics:?}", shape.architecture());
            }
        }
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let tokens = tokens(4, 70);
    for shape in shapes() {
        let file = file(shape.as_ref());
        let run = |threads| {
            let mut engine = load_with(threads, &file, exact());
            (
                bits(&in_chunks(&mut engine, &tokens[..64], 64)),
                bits(&forward_at(&mut engine, 64, &tokens[64..])),
            )
        };
        let alone = run(1);
        for threads in [2, 3, 7] {
            assert!(run(threads) == alone, "{} with {threads} threads", shape.architecture());
        }
    }
}

fn forward_at(engine: &mut Engine, first: usize, tokens: &[u32]) -> Vec<f32> {
    engine.reserve(0, (first + tokens.len()) as u32).unwrap();
    forward(engine, &rows(0, first, tokens))
}

/// How a sequence of [`PROMPT`] tokens is cut, and what else is in each of the calls.
#[derive(Debug, Clone)]
struct Schedule {
    /// Lengths of the parts, adding up to the prompt.
    parts: Vec<usize>,
    /// For each part: how many rows of a neighbour come before it, and how many after.
    neighbours: Vec<(usize, usize)>,
    /// A sequence that is started and dropped first, so that pages lie scattered.
    dropped: usize,
}

fn schedule() -> impl Strategy<Value = Schedule> {
    let cuts = prop::collection::btree_set(1..PROMPT, 0..12);
    cuts.prop_flat_map(|cuts| {
        let ends: Vec<usize> = cuts.into_iter().chain([PROMPT]).collect();
        let starts = [0].into_iter().chain(ends.iter().copied());
        let parts: Vec<usize> = starts.zip(&ends).map(|(start, end)| end - start).collect();
        let neighbours = prop::collection::vec((0..6usize, 0..6usize), parts.len());
        (Just(parts), neighbours, 0..100usize).prop_map(|(parts, neighbours, dropped)| Schedule {
            parts,
            neighbours,
            dropped,
        })
    })
}

fn run(engine: &mut Engine, tokens: &[u32], schedule: &Schedule) -> Vec<f32> {
    const OURS: u32 = 2;
    let (before, after) = (self::tokens(50, 128), self::tokens(51, 128));
    engine.reserve(3, schedule.dropped as u32 + 1).unwrap();
    engine.reserve(OURS, 1).unwrap();
    engine.release(3);
    let (mut done, mut before_done, mut after_done) = (0, 0, 0);
    let mut logits = Vec::new();
    for (part, (ahead, behind)) in schedule.parts.iter().zip(&schedule.neighbours) {
        let ours = rows(OURS, done, &tokens[done..done + part]);
        let silent = |sequence, tokens: &[u32], range: Range<usize>| -> Vec<Row> {
            let quiet = |row: Row| Row { wants_logits: false, ..row };
            rows(sequence, range.start, &tokens[range]).into_iter().map(quiet).collect()
        };
        let ahead = silent(0, &before, before_done..before_done + ahead);
        let behind = silent(1, &after, after_done..after_done + behind);
        engine.reserve(0, (before_done + ahead.len()) as u32).unwrap();
        engine.reserve(OURS, (done + part) as u32).unwrap();
        engine.reserve(1, (after_done + behind.len()) as u32).unwrap();
        before_done += ahead.len();
        after_done += behind.len();
        done += part;
        logits.extend(forward(engine, &[ahead, ours, behind].concat()));
    }
    (0..4).for_each(|sequence| engine.release(sequence));
    logits
}

#[test]
fn any_chunks_and_neighbours_give_equal_bits() {
    let tokens = tokens(4, PROMPT);
    for shape in shapes() {
        let mut engine = load(&file(shape.as_ref()), long(exact()));
        let alone = bits(&in_chunks(&mut engine, &tokens, PROMPT));
        engine.release(0);
        let mut runner = proptest::test_runner::TestRunner::new_with_rng(
            ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() },
            proptest::test_runner::TestRng::deterministic_rng(prop::test_runner::RngAlgorithm::ChaCha),
        );
        let engine = std::cell::RefCell::new(engine);
        runner
            .run(&schedule(), |schedule| {
                let found = run(&mut engine.borrow_mut(), &tokens, &schedule);
                prop_assert!(bits(&found) == alone, "{} differs", shape.architecture());
                Ok(())
            })
            .unwrap();
    }
}

#[test]
fn interleaved_rows_of_sequences_give_the_bits_that_each_has_alone() {
    let shape = small_kimi();
    let file = file(&shape);
    let prompts = [tokens(20, 33), tokens(21, 33), tokens(22, 33)];
    let alone: Vec<Vec<u32>> =
        prompts.iter().map(|tokens| bits(&in_chunks(&mut load(&file, exact()), tokens, 33))).collect();
    let mut engine = load(&file, exact());
    (0..3).for_each(|slot| engine.reserve(slot, 33).unwrap());
    let row = |position: usize, slot: usize| Row {
        sequence: slot as u32,
        position: position as u32,
        token: prompts[slot][position],
        wants_logits: true,
    };
    let rows: Vec<Row> = (0..33).flat_map(|position| (0..3).map(move |slot| row(position, slot))).collect();
    let logits = forward(&mut engine, &rows);
    let vocab = engine.vocab_size();
    for (i, (row, logits)) in rows.iter().zip(logits.chunks_exact(vocab)).enumerate() {
        let own = &alone[row.sequence as usize][row.position as usize * vocab..][..vocab];
        assert!(bits(logits) == own, "row {i}");
    }
}

#[test]
fn a_rewritten_tail_leaves_no_trace() {
    let file = file(&small_kimi());
    let (tokens, wrong) = (tokens(4, 60), tokens(23, 60));
    let alone = bits(&in_chunks(&mut load(&file, exact()), &tokens, 60));
    let mut engine = load(&file, exact());
    let mut found = in_chunks(&mut engine, &tokens[..37], 37);
    forward_at(&mut engine, 37, &wrong[37..]);
    engine.truncate(0, 37);
    found.extend(forward_at(&mut engine, 37, &tokens[37..]));
    assert!(bits(&found) == alone);
}

#[test]
fn a_changed_token_changes_the_bits_of_every_later_row() {
    let file = file(&small_kimi());
    let first = tokens(4, 20);
    let mut second = first.clone();
    second[0] ^= 1;
    let [first, second] = [first, second].map(|tokens| in_chunks(&mut load(&file, config()), &tokens, 20));
    let vocab = first.len() / 20;
    for (row, (a, b)) in first.chunks_exact(vocab).zip(second.chunks_exact(vocab)).enumerate() {
        assert!(bits(a) != bits(b), "row {row} doesn't see the first token");
    }
}

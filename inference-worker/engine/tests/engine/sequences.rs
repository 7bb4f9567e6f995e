//! Slots, pages, and rows that break the rules.

use std::sync::atomic::AtomicU64;

use tandem_engine::decode::RowFault;
use tandem_engine::{DecodeModel, Engine, EngineConfig, ForwardError, OutOfPages, Pool, Row, plan};
use tandem_gguf::GgmlType;
use tandem_reference::Reference;
use tandem_reference::deepseek2::Deepseek2;
use tandem_reference::file::{Encoded, as_f32, random_file, writer};
use tandem_reference::tensor::Tensor;

use crate::support::{bits, config, forward, in_chunks, load, rows, tokens};

fn minute(config: EngineConfig) -> Engine {
    load(&random_file(&Deepseek2::minute(), 1), config)
}

#[test]
fn a_full_pool_refuses_and_release_makes_room() {
    let mut engine = minute(EngineConfig { context_tokens: 64, pool_tokens: 64, ..config() });
    let page = engine.pages().tokens_per_page;
    assert_eq!(engine.pages().total * page, 64);
    engine.reserve(0, page + 1).unwrap();
    assert_eq!(
        engine.reserve(1, 1),
        Err(OutOfPages::PoolExhausted { sequence: 1, needed: 1, free: 0 }),
        "both pages belong to the first"
    );
    assert_eq!(engine.reserve(0, 65), Err(OutOfPages::ContextOverflow { sequence: 0, asked: 65, limit: 64 }));
    forward(&mut engine, &rows(0, 0, &tokens(1, 40)));
    engine.truncate(0, 3);
    assert_eq!(engine.pages().free, 1);
    engine.reserve(1, 1).unwrap();
    engine.release(0);
    engine.release(1);
    assert_eq!(engine.pages().free, engine.pages().total);
}

#[test]
fn a_reused_page_shows_nothing_of_its_last_owner() {
    let tokens = tokens(2, 40);
    let alone = bits(&in_chunks(&mut minute(config()), &tokens, 40));
    let mut engine = minute(EngineConfig { context_tokens: 64, pool_tokens: 64, ..config() });
    in_chunks(&mut engine, &self::tokens(3, 64), 64);
    engine.release(0);
    assert!(bits(&in_chunks(&mut engine, &tokens, 40)) == alone);
}

#[test]
fn rows_that_break_the_rules_are_refused_and_nothing_is_written() {
    let mut engine = minute(EngineConfig { max_batch_rows: 40, ..config() });
    engine.reserve(0, 32).unwrap();
    let row = |sequence, position, token| Row { sequence, position, token, wants_logits: false };
    let next = |expected| RowFault::NotNext { expected };
    let cases = [
        (vec![row(9, 0, 0)], 0, RowFault::UnknownSequence),
        (vec![row(0, 0, 260)], 0, RowFault::UnknownToken(260)),
        (vec![row(0, 1, 0)], 0, next(0)),
        (vec![row(0, 0, 0), row(0, 2, 0)], 1, next(1)),
        (vec![row(0, 0, 0), row(0, 0, 0)], 1, next(1)),
        (vec![row(1, 0, 0)], 0, RowFault::NotReserved),
        ((0..33).map(|position| row(0, position, 0)).collect(), 32, RowFault::NotReserved),
    ];
    let ticks = AtomicU64::new(0);
    for (rows, at, fault) in cases {
        let Row { sequence, position, .. } = rows[at];
        let expected = ForwardError::BadRow { row: at, sequence, position, fault };
        assert_eq!(engine.forward(&rows, &ticks, &mut []), Err(expected));
    }
    let many: Vec<Row> = (0..41).map(|position| row(0, position, 0)).collect();
    assert_eq!(
        engine.forward(&many, &ticks, &mut []),
        Err(ForwardError::TooManyRows { rows: 41, limit: 40 })
    );
    assert_eq!(
        engine.forward(&rows(0, 0, &[1]), &ticks, &mut [0.0; 259]),
        Err(ForwardError::BufferLength { what: "logits", actual: 259, expected: 260 })
    );
    // The sequence is still empty.
    forward(&mut engine, &rows(0, 0, &[1, 2]));
    assert_eq!(engine.forward(&[], &ticks, &mut []), Ok(()));
}

#[test]
fn logits_that_are_not_numbers_name_their_sequence_and_spare_the_others() {
    // The embedding of one token is NaN.
    const POISON: u32 = 77;
    let shape = Deepseek2::minute();
    let encode = |name: &str, tensor: &Tensor| -> Encoded {
        let mut tensor = tensor.clone();
        if name == "token_embd.weight" {
            tensor.values[POISON as usize * shape.width..][..shape.width].fill(f32::NAN);
        }
        let encoded = as_f32(&tensor);
        assert_eq!(encoded.ty, GgmlType::F32);
        encoded
    };
    let file = writer(&shape, &shape.random_weights(1), &encode).finish().unwrap();
    let alone = bits(&in_chunks(&mut load(&file, config()), &[5, 6], 2));

    let mut engine = load(&file, config());
    (0..3).for_each(|slot| engine.reserve(slot, 4).unwrap());
    let batch = [rows(2, 0, &[9, POISON]), rows(1, 0, &[5, 6]), rows(0, 0, &[POISON])].concat();
    let mut logits = vec![0.0; 5 * shape.vocab];
    let refused = engine.forward(&batch, &AtomicU64::new(0), &mut logits).unwrap_err();
    assert_eq!(refused, ForwardError::NotFinite { sequences: vec![0, 2] });
    assert!(bits(&logits[2 * shape.vocab..4 * shape.vocab]) == alone, "the neighbour is unharmed");
    // It goes on where it was.
    forward(&mut engine, &rows(1, 2, &[7]));
}

#[test]
fn ticks_count_layers() {
    let mut engine = minute(config());
    engine.reserve(0, 8).unwrap();
    let ticks = AtomicU64::new(10);
    let mut logits = vec![0.0; 3 * engine.vocab_size()];
    engine.forward(&rows(0, 0, &[1, 2, 3]), &ticks, &mut logits).unwrap();
    assert_eq!(ticks.into_inner(), 10 + u64::from(engine.shape().layers));
}

#[test]
fn loading_tells_its_progress_to_the_last_byte() {
    let file = random_file(&Deepseek2::minute(), 1);
    let mut told = Vec::new();
    let files = crate::support::files(&file);
    let total = plan(files.headers(), &config()).unwrap().weight_bytes;
    Engine::load(files, config(), Pool::inline(), &mut |done, total| told.push((done, total))).unwrap();
    assert_eq!(told.first(), Some(&(0, total)));
    assert_eq!(told.last(), Some(&(total, total)));
    assert!(told.is_sorted());
}

#[test]
fn an_engine_moves_between_threads() {
    fn moves<T: Send>() {}
    moves::<Engine>();
}

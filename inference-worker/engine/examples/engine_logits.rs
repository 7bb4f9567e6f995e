//! An engine's logits, to be held against other engines: `engine_logits exact|reference model.gguf 17 4 255` prints the
//! logits after each of the tokens, a line each.

use std::path::Path;
use std::sync::atomic::AtomicU64;

use tandem_engine::{DecodeModel, Engine, EngineConfig, KvType, Mode, ModelFiles, Pool, Row};

const USAGE: &str = "engine_logits exact|reference FILE TOKEN…";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [numerics, path, tokens @ ..] = arguments.as_slice() else { return Err(USAGE.into()) };
    let (numerics, kv_type) = match numerics.as_str() {
        "exact" => (Mode::Exact, KvType::F16),
        "reference" => (Mode::Reference, KvType::F32),
        _ => return Err(USAGE.into()),
    };
    let tokens = tokens.iter().map(|id| id.parse()).collect::<Result<Vec<u32>, _>>()?;
    let count = u32::try_from(tokens.len())?.max(1);
    let config = EngineConfig {
        context_tokens: count,
        pool_tokens: count,
        kv_type,
        numerics,
        layers: None,
        max_sequences: 1,
        max_batch_rows: tokens.len().max(1),
    };
    let files = ModelFiles::open(Path::new(path), "unverified")?;
    let mut engine = Engine::load(files, config, Pool::new(2)?, &mut |_, _| {})?;
    engine.reserve(0, count)?;
    let row = |(position, &token): (u32, &u32)| Row { sequence: 0, position, token, wants_logits: true };
    let rows: Vec<Row> = (0..).zip(&tokens).map(row).collect();
    let mut logits = vec![0.0; rows.len() * engine.vocab_size()];
    engine.forward(&rows, &AtomicU64::new(0), &mut logits)?;
    for row in logits.chunks_exact(engine.vocab_size()) {
        let row: Vec<String> = row.iter().map(|logit| format!("{logit:.9e}")).collect();
        println!("{}", row.join(" "));
    }
    Ok(())
}

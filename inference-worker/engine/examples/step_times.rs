//! How fast an engine computes: `step_times model.gguf [threads]` prints prefill and decode tokens per second.

use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use tandem_engine::{DecodeModel, Engine, EngineConfig, KvType, Mode, ModelFiles, Pool, Row};

const PROMPT: u32 = 256;
const DECODED: u32 = 64;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("name a model's first file")?;
    let threads = arguments.next().map_or(Ok(2), |count| count.parse())?;
    let config = EngineConfig {
        context_tokens: 512,
        pool_tokens: 512,
        kv_type: KvType::F16,
        numerics: Mode::Exact,
        layers: None,
        max_sequences: 1,
        max_batch_rows: PROMPT as usize,
    };
    let files = ModelFiles::open(Path::new(&path), "unverified")?;
    let mut engine = Engine::load(files, config, Pool::new(threads)?, &mut |_, _| {})?;
    let (vocab, ticks) = (engine.vocab_size(), AtomicU64::new(0));
    let mut logits = vec![0.0; vocab];
    engine.reserve(0, PROMPT + DECODED)?;
    let row = |position| Row { sequence: 0, position, token: position % 100, wants_logits: true };

    let start = Instant::now();
    let prompt = |position| Row { wants_logits: position + 1 == PROMPT, ..row(position) };
    engine.forward(&(0..PROMPT).map(prompt).collect::<Vec<_>>(), &ticks, &mut logits)?;
    println!("prefill {:.0} tokens/s", f64::from(PROMPT) / start.elapsed().as_secs_f64());

    let start = Instant::now();
    for position in PROMPT..PROMPT + DECODED {
        engine.forward(&[row(position)], &ticks, &mut logits)?;
    }
    println!("decode {:.1} tokens/s", f64::from(DECODED) / start.elapsed().as_secs_f64());
    Ok(())
}

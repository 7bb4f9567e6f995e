//! How fast the operations run here: `cargo run --release -p tandem-kernels --example speed [threads]`.
//!
//! Products print weight bytes and multiplications per second; compare bytes with what the machine's memory gives.

use std::time::{Duration, Instant};

use tandem_kernels::attention::{Context, Scratch, Shape, mla_attention};
use tandem_kernels::matmul::matmul;
use tandem_kernels::{Forms, KvPool, KvType, Mode, Pool, QuantisedRows, WeightMatrix, WeightType, blocks};

/// Seconds of one call, the least of several over a third of a second.
fn seconds(mut work: impl FnMut()) -> f64 {
    let (begin, mut least) = (Instant::now(), f64::INFINITY);
    loop {
        let call = Instant::now();
        work();
        least = least.min(call.elapsed().as_secs_f64());
        if begin.elapsed() > Duration::from_millis(300) {
            return least;
        }
    }
}

fn main() {
    let threads = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(1);
    let pool = Pool::new(threads).expect("compute threads start");
    println!("{threads} thread(s)");
    products(&pool);
    attention(&pool);
}

fn products(pool: &Pool) {
    let (rows, cols) = (4096, 7168);
    let values: Vec<f32> = (0..rows * cols).map(|i| ((i * 7919) % 8191) as f32 / 4096.0 - 1.0).collect();
    for ty in WeightType::ALL {
        let bytes = blocks::quantise(ty, &values).expect("whole blocks");
        let weights = WeightMatrix::new(ty, rows, cols, &bytes).expect("bytes of this shape");
        for tokens in [1, 8, 64] {
            let x = &values[..tokens * cols];
            let mut scratch = QuantisedRows::with_capacity(tokens * cols, Forms::all());
            let activations = scratch.quantise(pool, Mode::Exact, x, cols, Forms::of([ty]));
            let mut out = vec![0.0; tokens * rows];
            let time = seconds(|| matmul(pool, &activations, &weights, &mut out));
            let (giga_bytes, giga_products) =
                (bytes.len() as f64 / time / 1e9, (tokens * rows * cols) as f64 / time / 1e9);
            println!(
                "{:5} × {tokens:2} tokens: {giga_bytes:6.2} GB/s of weights, {giga_products:7.2} G products/s",
                ty.name()
            );
        }
    }
    for (name, forms) in [
        ("32", Forms { blocks32: true, blocks256: false }),
        ("256", Forms { blocks32: false, blocks256: true }),
    ] {
        let mut scratch = QuantisedRows::with_capacity(64 * cols, Forms::all());
        let time = seconds(|| {
            scratch.quantise(pool, Mode::Exact, &values[..64 * cols], cols, forms);
        });
        println!("quantise in blocks of {name}: {:.2} G values/s", (64 * cols) as f64 / time / 1e9);
    }
}

fn attention(pool: &Pool) {
    let shape = Shape { heads: 64, kv_heads: 1, key_len: 576, value_len: 512, scale: 0.1 };
    let positions = 4096;
    for ty in [KvType::F32, KvType::F16] {
        let mut latents = KvPool::new(ty, positions / 256, 256, 576);
        let rows: Vec<f32> =
            (0..positions * 576).map(|i| ((i * 7919) % 8191) as f32 / 4096.0 - 1.0).collect();
        latents.store(&(0..positions as u32).collect::<Vec<u32>>(), &rows);
        let pages: Vec<u32> = (0..positions as u32 / 256).collect();
        let scratch = Scratch::new(pool.threads(), 576, 512);
        let mut out = vec![0.0; 64 * 512];
        let context = Context { pages: &pages, len: positions };
        let time = seconds(|| {
            mla_attention(pool, &shape, &rows[..64 * 576], &latents, &[context], &scratch, &mut out);
        });
        let products = (64 * positions * (576 + 512)) as f64;
        println!(
            "MLA, {ty:?}, {positions} positions: {:.2} ms a token, {:.2} G products/s",
            time * 1e3,
            products / time / 1e9
        );
    }
}

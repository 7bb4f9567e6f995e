//! Attention against float64, and its bits against pages, batches and threads.

mod random;

use random::{Random, bits};
use tandem_kernels::attention::{
    CHUNK, Context, Part, Scratch, Shape, finish, gqa_attention, merge, mla_attention,
};
use tandem_kernels::elementary::exp;
use tandem_kernels::{KvPool, KvType, Pool, lanes};

const PAGE: usize = 48;

/// Keeps `rows` at positions 0.. of a sequence with these pages.
fn keep(pool: &mut KvPool, pages: &[u32], rows: &[f32]) {
    let slots: Vec<u32> = (0..rows.len() / pool.row_len()).map(|p| pool.slot(pages, p) as u32).collect();
    pool.store(&slots, rows);
}

/// The softmax-weighted sum in f64, over rows as they are kept.
fn oracle(query: &[f32], keys: &[Vec<f32>], values: &[Vec<f32>], scale: f32) -> Vec<f64> {
    let scores: Vec<f64> = keys
        .iter()
        .map(|key| {
            query.iter().zip(key).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum::<f64>() * f64::from(scale)
        })
        .collect();
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = scores.iter().map(|score| (score - max).exp()).sum();
    (0..values[0].len())
        .map(|i| scores.iter().zip(values).map(|(s, v)| (s - max).exp() / sum * f64::from(v[i])).sum())
        .collect()
}

/// Rows of one head as the pool holds them.
fn kept(pool: &KvPool, pages: &[u32], len: usize, offset: usize, width: usize) -> Vec<Vec<f32>> {
    (0..len)
        .map(|position| {
            let mut row = vec![0.0; width];
            pool.load(pool.slot(pages, position), offset, &mut row);
            row
        })
        .collect()
}

fn assert_near(ours: &[f32], truth: &[f64]) {
    for (ours, truth) in ours.iter().zip(truth) {
        assert!((f64::from(*ours) - truth).abs() < 3e-6, "{ours} for {truth}");
    }
}

#[test]
fn mla_agrees_with_f64_and_keeps_its_bits() {
    let mut random = Random::new(1);
    let shape = Shape { heads: 12, kv_heads: 1, key_len: 72, value_len: 64, scale: 0.31 };
    // Two sequences in interleaved pages; lengths at and around the chunks' borders.
    let pages: Vec<u32> = (0..32).map(|i| (i * 7 + 3) % 32).collect();
    let (one, two) = pages.split_at(16);
    for ty in [KvType::F32, KvType::F16] {
        let mut latents = KvPool::new(ty, 32, PAGE, shape.key_len);
        keep(&mut latents, one, &random.values(700 * shape.key_len));
        keep(&mut latents, two, &random.values(700 * shape.key_len));
        let contexts: Vec<Context<'_>> =
            [(one, 1), (one, CHUNK), (two, CHUNK + 1), (one, 700), (two, 2 * CHUNK), (two, 699), (one, 17)]
                .map(|(pages, len)| Context { pages, len })
                .to_vec();
        let query_len = shape.heads * shape.key_len;
        let out_len = shape.heads * shape.value_len;
        let queries: Vec<f32> = random.values(contexts.len() * query_len).iter().map(|q| q * 3.0).collect();
        let mut alone = Vec::new();
        for (token, context) in contexts.iter().enumerate() {
            let scratch = Scratch::new(1, shape.key_len, shape.value_len);
            let mut out = vec![f32::NAN; out_len];
            let query = &queries[token * query_len..][..query_len];
            mla_attention(&Pool::inline(), &shape, query, &latents, &[*context], &scratch, &mut out);
            let keys = kept(&latents, context.pages, context.len, 0, shape.key_len);
            let values = kept(&latents, context.pages, context.len, 0, shape.value_len);
            for head in 0..shape.heads {
                let truth =
                    oracle(&query[head * shape.key_len..][..shape.key_len], &keys, &values, shape.scale);
                assert_near(&out[head * shape.value_len..][..shape.value_len], &truth);
            }
            alone.extend(bits(&out));
        }
        for threads in [1, 2, 3, 8] {
            let pool = Pool::new(threads).unwrap();
            let scratch = Scratch::new(threads, shape.key_len, shape.value_len);
            let mut out = vec![f32::NAN; contexts.len() * out_len];
            mla_attention(&pool, &shape, &queries, &latents, &contexts, &scratch, &mut out);
            assert_eq!(bits(&out), alone, "{ty:?} on {threads} threads");
        }
    }
}

/// The four steps of the module's doc for one head, position by position.
fn documented(query: &[f32], keys: &[Vec<f32>], values: &[Vec<f32>], scale: f32) -> Vec<f32> {
    let width = values[0].len();
    let (mut total_max, mut total_sum, mut total) = (f32::NEG_INFINITY, 0.0f32, vec![0.0f32; width]);
    for start in (0..keys.len()).step_by(CHUNK) {
        let chunk = start..keys.len().min(start + CHUNK);
        let scores: Vec<f32> = keys[chunk.clone()].iter().map(|key| lanes::dot(query, key) * scale).collect();
        let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weights: Vec<f32> = scores.iter().map(|score| exp(score - max)).collect();
        let mut vector = vec![0.0f32; width];
        for (weight, value) in weights.iter().zip(&values[chunk]) {
            for (sum, value) in vector.iter_mut().zip(value) {
                *sum += weight * value;
            }
        }
        let new_max = total_max.max(max);
        let (a, b) = (exp(total_max - new_max), exp(max - new_max));
        total_sum = total_sum * a + lanes::sum(&weights) * b;
        total_max = new_max;
        for (total, value) in total.iter_mut().zip(&vector) {
            *total = *total * a + value * b;
        }
    }
    total.iter().map(|value| value / total_sum).collect()
}

#[test]
fn bits_are_those_of_the_documented_order() {
    let mut random = Random::new(9);
    let shape = Shape { heads: 3, kv_heads: 1, key_len: 50, value_len: 33, scale: 0.9 };
    let pages: Vec<u32> = (0..17).rev().collect();
    let mut latents = KvPool::new(KvType::F16, 17, PAGE, 50);
    keep(&mut latents, &pages, &random.values(800 * 50));
    let queries = random.values(3 * 50);
    let scratch = Scratch::new(1, 50, 33);
    for len in [1, 15, 16, 255, 256, 257, 511, 800] {
        let mut out = vec![0.0; 3 * 33];
        let context = Context { pages: &pages, len };
        mla_attention(&Pool::inline(), &shape, &queries, &latents, &[context], &scratch, &mut out);
        let (keys, values) = (kept(&latents, &pages, len, 0, 50), kept(&latents, &pages, len, 0, 33));
        for (query, out) in queries.chunks(50).zip(out.chunks(33)) {
            assert_eq!(bits(out), bits(&documented(query, &keys, &values, 0.9)), "{len} positions");
        }
    }
}

#[test]
fn gqa_reads_the_head_that_its_group_shares() {
    let mut random = Random::new(2);
    let shape = Shape { heads: 6, kv_heads: 2, key_len: 32, value_len: 24, scale: 0.2 };
    let pages = [2, 0, 1, 4, 3, 5, 7, 6];
    for ty in [KvType::F32, KvType::F16] {
        let mut keys = KvPool::new(ty, 8, PAGE, 64);
        let mut values = KvPool::new(ty, 8, PAGE, 48);
        keep(&mut keys, &pages, &random.values(300 * 64));
        keep(&mut values, &pages, &random.values(300 * 48));
        let contexts = [1, 100, 300, 257].map(|len| Context { pages: &pages, len });
        let queries: Vec<f32> = random.values(4 * 6 * 32).iter().map(|q| q * 4.0).collect();
        let mut first = None;
        for threads in [1, 2, 3] {
            let pool = Pool::new(threads).unwrap();
            let scratch = Scratch::new(threads, 32, 24);
            let mut out = vec![f32::NAN; 4 * 6 * 24];
            gqa_attention(&pool, &shape, &queries, &keys, &values, &contexts, &scratch, &mut out);
            for (token, context) in contexts.iter().enumerate() {
                for head in 0..6 {
                    let (query, kv) = (&queries[(token * 6 + head) * 32..][..32], head / 3);
                    let k = kept(&keys, &pages, context.len, kv * 32, 32);
                    let v = kept(&values, &pages, context.len, kv * 24, 24);
                    assert_near(&out[(token * 6 + head) * 24..][..24], &oracle(query, &k, &v, 0.2));
                }
            }
            assert_eq!(*first.get_or_insert(bits(&out)), bits(&out));
        }
    }
}

#[test]
fn pages_and_later_rows_do_not_show() {
    let mut random = Random::new(3);
    let shape = Shape { heads: 4, kv_heads: 1, key_len: 40, value_len: 32, scale: 0.2 };
    let rows = random.values(600 * 40);
    let query = random.values(4 * 40);
    let mut results = Vec::new();
    for (page_len, kept_rows) in [(1, 600), (7, 600), (256, 520), (1000, 520)] {
        let pages: Vec<u32> = (0..600usize.div_ceil(page_len) as u32).rev().collect();
        let mut latents = KvPool::new(KvType::F32, pages.len(), page_len, 40);
        keep(&mut latents, &pages, &rows[..kept_rows * 40]);
        let scratch = Scratch::new(1, 40, 32);
        let mut out = vec![0.0; 4 * 32];
        let context = Context { pages: &pages, len: 520 };
        mla_attention(&Pool::inline(), &shape, &query, &latents, &[context], &scratch, &mut out);
        results.push(bits(&out));
    }
    assert!(results.iter().all(|result| *result == results[0]));
}

#[test]
fn merging_with_nothing_changes_nothing() {
    let part = Part { max: -3.0, sum: 1.7 };
    let vector = [0.3, -2.0];
    let (mut total, mut sum) = (Part::NOTHING, [0.0; 2]);
    merge(&mut total, &mut sum, part, &vector);
    assert_eq!((total, bits(&sum)), (part, bits(&vector)));
    merge(&mut total, &mut sum, Part::NOTHING, &[0.0; 2]);
    assert_eq!((total, bits(&sum)), (part, bits(&vector)));
    finish(total, &mut sum);
    assert_eq!(bits(&sum), bits(&[0.3 / 1.7, -2.0 / 1.7]));
}

#[test]
fn scratch_is_the_estimate() {
    let piece = 4 * (8 * (256 + 512) + 576) + size_of::<std::sync::Mutex<Vec<f32>>>();
    assert_eq!(Scratch::bytes(3, 576, 512), 3 * piece);
}

#[test]
#[should_panic(expected = "scratch for fewer threads")]
fn scratch_must_serve_every_thread() {
    let shape = Shape { heads: 1, kv_heads: 1, key_len: 2, value_len: 2, scale: 1.0 };
    let latents = KvPool::new(KvType::F32, 1, 1, 2);
    let (pool, scratch) = (Pool::new(2).unwrap(), Scratch::new(1, 2, 2));
    let context = Context { pages: &[0], len: 1 };
    mla_attention(&pool, &shape, &[0.0; 2], &latents, &[context], &scratch, &mut [0.0; 2]);
}

//! Attention of query heads over kept rows: MLA's shared latent, or grouped keys and values.
//!
//! For one query head of a token that sees positions `0..len`:
//! 1. The context is cut at absolute multiples of [`CHUNK`]; chunks are taken in ascending order.
//! 2. In a chunk, `score = (query · key) × scale` with the [`lanes`] dot; `max` is the greatest score;
//!    `e = exp(score − max)`; `sum` is the lanes sum of `e`, in ascending positions from the chunk's first; and the
//!    vector is, from +0 in ascending positions, `vector += e × value`, for each of its values.
//! 3. [`merge`] joins a chunk's part into what the chunks before it gave, starting from nothing.
//! 4. The result is `vector / sum`.
//!
//! A kept f16 row is widened to f32 exactly; the query stays f32.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use crate::elementary::exp;
use crate::kv::KvPool;
use crate::lanes;
use crate::pool::Pool;
use crate::versions::versions;

/// Positions of a part of the context.
pub const CHUNK: usize = 256;

/// Heads that read a kept row together, at most. It has no part in the bits.
const GROUP: usize = 8;

/// The sizes of an attention.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shape {
    /// Query heads; a multiple of `kv_heads`. Head `h` reads keys and values of head `h / (heads / kv_heads)`.
    pub heads: usize,
    /// Heads in a row of keys and of values; 1 for MLA.
    pub kv_heads: usize,
    /// Values of a query head and of a key: for MLA the latent and the turned part, 576.
    pub key_len: usize,
    /// Values of a result head: for MLA the latent, 512.
    pub value_len: usize,
    /// What a dot of query and key is multiplied with.
    pub scale: f32,
}

/// What one token may look at: the first `len` positions of a sequence that has these pages.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// The sequence's pages in the pool, in order.
    pub pages: &'a [u32],
    /// Positions to attend to: the token's own position plus one. At least 1.
    pub len: usize,
}

/// Working memory of an attention, a piece per thread, allocated once.
#[derive(Debug)]
pub struct Scratch {
    threads: Vec<Mutex<Vec<f32>>>,
}

impl Scratch {
    /// For pools of up to `threads` threads and shapes up to these lengths.
    pub fn new(threads: usize, key_len: usize, value_len: usize) -> Self {
        let values = scratch_values(key_len, value_len);
        Self { threads: (0..threads.max(1)).map(|_| Mutex::new(vec![0.0; values])).collect() }
    }

    /// The bytes that `new` allocates.
    pub fn bytes(threads: usize, key_len: usize, value_len: usize) -> usize {
        threads.max(1) * (scratch_values(key_len, value_len) * 4 + size_of::<Mutex<Vec<f32>>>())
    }
}

/// Scores and vectors of a group, and one widened row.
fn scratch_values(key_len: usize, value_len: usize) -> usize {
    GROUP * (CHUNK + value_len) + key_len.max(value_len)
}

/// Absorbed multi-query attention over shared latents. A kept row is the key, and its first `value_len` values are the
/// value.
///
/// `queries` are `contexts × heads × key_len`, `out` is `contexts × heads × value_len`; `shape.kv_heads` must be 1.
pub fn mla_attention(
    pool: &Pool,
    shape: &Shape,
    queries: &[f32],
    latents: &KvPool,
    contexts: &[Context<'_>],
    scratch: &Scratch,
    out: &mut [f32],
) {
    assert_eq!(shape.kv_heads, 1, "MLA keeps one latent for all heads");
    assert!(shape.value_len <= shape.key_len, "MLA's value is the start of its key");
    assert_eq!(latents.row_len(), shape.key_len, "a kept latent is not as long as a key");
    attend(pool, shape, queries, latents, latents, contexts, scratch, out);
}

/// Grouped-query attention over separate keys and values, each row `kv_heads` heads.
///
/// `queries` are `contexts × heads × key_len`, `out` is `contexts × heads × value_len`.
#[expect(
    clippy::too_many_arguments,
    reason = "keys and values are two pools; a struct would only rename them"
)]
pub fn gqa_attention(
    pool: &Pool,
    shape: &Shape,
    queries: &[f32],
    keys: &KvPool,
    values: &KvPool,
    contexts: &[Context<'_>],
    scratch: &Scratch,
    out: &mut [f32],
) {
    assert_eq!(keys.row_len(), shape.kv_heads * shape.key_len, "a row of keys is not heads × key length");
    assert_eq!(
        values.row_len(),
        shape.kv_heads * shape.value_len,
        "a row of values is not heads × value length"
    );
    attend(pool, shape, queries, keys, values, contexts, scratch, out);
}

#[expect(clippy::too_many_arguments, reason = "the common body of the two operations above")]
fn attend(
    pool: &Pool,
    shape: &Shape,
    queries: &[f32],
    keys: &KvPool,
    values: &KvPool,
    contexts: &[Context<'_>],
    scratch: &Scratch,
    out: &mut [f32],
) {
    let Shape { heads, kv_heads, key_len, value_len, scale } = *shape;
    assert!(kv_heads > 0 && heads.is_multiple_of(kv_heads), "{heads} heads over {kv_heads} kept heads");
    assert_eq!(
        queries.len(),
        contexts.len() * heads * key_len,
        "queries are not contexts × heads × key length"
    );
    assert_eq!(
        out.len(),
        contexts.len() * heads * value_len,
        "output is not contexts × heads × value length"
    );
    assert!(scratch.threads.len() >= pool.threads(), "attention scratch for fewer threads than the pool has");
    let longest = contexts.iter().map(|context| context.len).max().unwrap_or(0);
    let group = group(pool, contexts.len(), heads, heads / kv_heads);
    pool.for_rows(out, group * value_len, group * longest * (key_len + value_len), |unit, out| {
        let (token, first) = (unit * group / heads, unit * group % heads);
        let kv_head = first / (heads / kv_heads);
        let job = Job {
            queries: &queries[(token * heads + first) * key_len..][..group * key_len],
            keys: Kept { pool: keys, offset: kv_head * key_len, len: key_len },
            values: Kept { pool: values, offset: kv_head * value_len, len: value_len },
            pages: contexts[token].pages,
            scale,
        };
        // A panic elsewhere leaves nothing behind that the next use would read.
        let mut memory = scratch.threads[pool.slot()].lock().unwrap_or_else(PoisonError::into_inner);
        attend_group(&job, contexts[token].len, &mut memory, out);
    });
}

/// Heads that share a unit of work: as many as share a kept head, but not so many that threads stand idle.
fn group(pool: &Pool, tokens: usize, heads: usize, sharing: usize) -> usize {
    let wanted = (tokens * heads / (pool.threads() * 2)).clamp(1, GROUP);
    (1..=wanted).rev().find(|group| sharing.is_multiple_of(*group)).unwrap_or(1)
}

/// The head of a pool's rows that a group reads.
#[derive(Clone, Copy)]
struct Kept<'a> {
    pool: &'a KvPool,
    offset: usize,
    len: usize,
}

/// Some query heads of one token that read the same kept head.
struct Job<'a> {
    queries: &'a [f32],
    keys: Kept<'a>,
    values: Kept<'a>,
    pages: &'a [u32],
    scale: f32,
}

/// Steps 1 to 4 for the heads of a job; `out` is `heads × value_len`.
fn attend_group(job: &Job<'_>, len: usize, memory: &mut [f32], out: &mut [f32]) {
    let value_len = job.values.len;
    let heads = out.len() / value_len;
    let needed = heads * (CHUNK + value_len) + job.keys.len.max(value_len);
    assert!(memory.len() >= needed, "attention scratch of {} values where {needed} are needed", memory.len());
    let (scores, memory) = memory.split_at_mut(heads * CHUNK);
    let (vectors, row) = memory.split_at_mut(heads * value_len);
    let mut totals = [Part::NOTHING; GROUP];
    out.fill(0.0);
    for start in (0..len).step_by(CHUNK) {
        let mut parts = [Part::NOTHING; GROUP];
        partial(job, start..len.min(start + CHUNK), scores, row, &mut parts[..heads], vectors);
        for (head, (total, part)) in totals.iter_mut().zip(&parts).take(heads).enumerate() {
            let at = head * value_len;
            merge(total, &mut out[at..at + value_len], *part, &vectors[at..at + value_len]);
        }
    }
    for (total, out) in totals.iter().zip(out.chunks_exact_mut(value_len)) {
        finish(*total, out);
    }
}

/// What a range of positions gave to one head, beside its vector.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Part {
    /// The greatest score.
    pub max: f32,
    /// The sum of `exp(score − max)`.
    pub sum: f32,
}

impl Part {
    /// No position at all; its vector is zero.
    pub const NOTHING: Part = Part { max: f32::NEG_INFINITY, sum: 0.0 };
}

/// Joins the part of later positions into that of earlier ones: with `m` the greater maximum,
/// `a = exp(max₁ − m)` and `b = exp(max₂ − m)`, sums and vectors become `x₁ × a + x₂ × b`.
pub fn merge(into: &mut Part, into_vector: &mut [f32], part: Part, vector: &[f32]) {
    let max = if part.max > into.max { part.max } else { into.max };
    let (a, b) = (exp(into.max - max), exp(part.max - max));
    into.sum = into.sum * a + part.sum * b;
    into.max = max;
    for (into, value) in into_vector.iter_mut().zip(vector) {
        *into = *into * a + value * b;
    }
}

/// Divides a merged vector by its sum.
pub fn finish(part: Part, vector: &mut [f32]) {
    for value in vector {
        *value /= part.sum;
    }
}

versions! {
    /// Step 2 for positions of one chunk. `scores` are `heads × CHUNK`, `vectors` `heads × value_len`; `row` holds the
    /// longer of a key and a value.
    fn partial(
        job: &Job<'_>,
        positions: Range<usize>,
        scores: &mut [f32],
        row: &mut [f32],
        parts: &mut [Part],
        vectors: &mut [f32],
    ) {
        let (keys, values) = (job.keys, job.values);
        let count = positions.len();
        for (j, position) in positions.clone().enumerate() {
            let key = &mut row[..keys.len];
            keys.pool.load(keys.pool.slot(job.pages, position), keys.offset, key);
            for (query, scores) in job.queries.chunks_exact(keys.len).zip(scores.chunks_exact_mut(CHUNK)) {
                scores[j] = lanes::dot(query, key) * job.scale;
            }
        }
        for (part, scores) in parts.iter_mut().zip(scores.chunks_exact_mut(CHUNK)) {
            let scores = &mut scores[..count];
            part.max = lanes::max(scores);
            for score in scores.iter_mut() {
                *score = exp(*score - part.max);
            }
            part.sum = lanes::sum(scores);
        }
        vectors.fill(0.0);
        for (j, position) in positions.enumerate() {
            let value = &mut row[..values.len];
            values.pool.load(values.pool.slot(job.pages, position), values.offset, value);
            for (vector, scores) in vectors.chunks_exact_mut(values.len).zip(scores.chunks_exact(CHUNK)) {
                let weight = scores[j];
                for (sum, value) in vector.iter_mut().zip(&*value) {
                    *sum += weight * value;
                }
            }
        }
    }
}

//! A loaded model: its weights in the mapping, its KV pool, and the step that computes rows.

use std::hint::black_box;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use tandem_kernels::attention::Context;
use tandem_kernels::embed::embed;
use tandem_kernels::matmul::matmul;
use tandem_kernels::norm::rms_norm;
use tandem_kernels::rope::{angles, frequencies};
use tandem_kernels::{Forms, KERNEL_REVISION, KvPool, KvType, Mode, Pool};

use crate::arena::{Arena, carve, emptied};
use crate::config::EngineConfig;
use crate::decode::{DecodeModel, ForwardError, OutOfPages, Pages, Row, RowFault};
use crate::files::{FileBytes, ModelFiles};
use crate::memory::{self, Blueprint, MemoryPlan, PlanError};
use crate::pages::{PageTable, TOKENS_PER_PAGE};
use crate::shape::{Attention, ModelShape};
use crate::step::{LayerKv, Scratchpad, Step, layer};
use crate::tensors::TensorError;
use crate::weights::{Ends, Finder, Layer};

/// Why a model could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The model, or the configuration for it, is not one that can be run.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A tensor can't be used.
    #[error(transparent)]
    Tensor(#[from] TensorError),
}

/// What a step starts from.
#[derive(Debug, Clone, Copy)]
pub enum Input<'a> {
    /// The rows' tokens: the engine holds layer 0.
    Tokens,
    /// Rows as the stage before gave them out: `rows × width`.
    Activations(&'a [f32]),
}

/// What a step gives out.
#[derive(Debug)]
pub enum Output<'a> {
    /// Logits of the rows that want them, `vocab` each: the engine holds the last layer.
    Logits(&'a mut [f32]),
    /// All rows for the next stage: `rows × width`.
    Activations(&'a mut [f32]),
}

/// A model, or a range of its layers, ready to compute.
#[derive(Debug)]
pub struct Engine {
    files: FileBytes,
    shape: ModelShape,
    config: EngineConfig,
    held: Range<u32>,
    threads: Pool,
    ends: Ends,
    layers: Vec<Layer>,
    /// Radians per position of each pair that rope turns.
    frequencies: Vec<f64>,
    kv: Vec<LayerKv>,
    pages: PageTable,
    arena: Arena,
}

impl Engine {
    /// Allocates what the plan says and reads every weight once, so that the first step finds them in memory. Of the files
    /// only the mappings stay.
    ///
    /// `progress` hears bytes read and bytes in all, often enough to show that loading lives.
    pub fn load(
        files: ModelFiles,
        config: EngineConfig,
        threads: Pool,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self, LoadError> {
        let Blueprint { shape, arena: sizes, plan } = Blueprint::of_runnable(files.headers(), &config)?;
        let finder = Finder { files: &files, shape: &shape };
        let ends = finder.ends(&plan.layers)?;
        let layers = finder.layers(&plan.layers)?;
        read_weights(&files, &plan, progress);

        let rope = &shape.rope;
        let frequencies = frequencies(rope.dims, rope.base, rope.scaling, ends.rope_factors.as_deref());
        let kept = |len| KvPool::new(config.kv_type, plan.kv.pages as usize, TOKENS_PER_PAGE as usize, len);
        let rows = memory::kept_rows(&shape);
        let kv = plan.layers.clone().map(|_| match (&shape.attention, rows.as_slice()) {
            (Attention::Mla(_), &[latent]) => LayerKv::Latent(kept(latent)),
            (_, rows) => LayerKv::KeysAndValues(kept(rows[0]), kept(rows[1])),
        });
        Ok(Self {
            kv: kv.collect(),
            pages: PageTable::new(plan.kv.pages, config.max_sequences, config.context_tokens),
            arena: Arena::new(&sizes),
            files: files.into_bytes(),
            shape,
            config,
            held: plan.layers,
            threads,
            ends,
            layers,
            frequencies,
        })
    }

    /// The model's sizes.
    pub fn shape(&self) -> &ModelShape {
        &self.shape
    }

    /// What it was loaded for.
    pub fn config(&self) -> &EngineConfig {
        &self.config
    }

    /// [`DecodeModel::forward`] for an engine with any range of layers.
    pub fn forward_hidden(
        &mut self,
        rows: &[Row],
        input: Input<'_>,
        ticks: &AtomicU64,
        output: Output<'_>,
    ) -> Result<(), ForwardError> {
        self.check(rows, &input, &output)?;
        let not_finite = self.step(rows, input, ticks, output);
        self.pages.written(rows);
        if not_finite.is_empty() { Ok(()) } else { Err(ForwardError::NotFinite { sequences: not_finite }) }
    }

    fn check(&mut self, rows: &[Row], input: &Input<'_>, output: &Output<'_>) -> Result<(), ForwardError> {
        let range = |reason| ForwardError::LayerRange {
            first: self.held.start,
            end: self.held.end,
            layers: self.shape.layers,
            reason,
        };
        let length = |what, actual, expected| {
            if actual == expected {
                Ok(())
            } else {
                Err(ForwardError::BufferLength { what, actual, expected })
            }
        };
        if rows.len() > self.config.max_batch_rows {
            return Err(ForwardError::TooManyRows { rows: rows.len(), limit: self.config.max_batch_rows });
        }
        match input {
            Input::Tokens if self.ends.embedding.is_none() => {
                return Err(range("it starts from activations, not from tokens"));
            }
            Input::Tokens => {}
            Input::Activations(values) => length("input", values.len(), rows.len() * self.shape.width)?,
        }
        match output {
            Output::Logits(_) if self.ends.output.is_none() => {
                return Err(range("it ends in activations, not in logits"));
            }
            Output::Logits(logits) => {
                let wanted = rows.iter().filter(|row| row.wants_logits).count();
                length("logits", logits.len(), wanted * self.shape.vocab)?;
            }
            Output::Activations(values) => length("output", values.len(), rows.len() * self.shape.width)?,
        }
        let unknown = |row: &Row| row.token as usize >= self.shape.vocab;
        if let Some(index) = rows.iter().position(unknown) {
            let Row { sequence, position, token, .. } = rows[index];
            let fault = RowFault::UnknownToken(token);
            return Err(ForwardError::BadRow { row: index, sequence, position, fault });
        }
        self.pages.check(rows)
    }

    /// Computes checked rows; gives back the sequences whose output is not finite.
    fn step(&mut self, rows: &[Row], input: Input<'_>, ticks: &AtomicU64, output: Output<'_>) -> Vec<u32> {
        let Self { files, shape, config, threads, ends, layers, frequencies, kv, pages, arena, .. } = self;
        let (count, width) = (rows.len(), shape.width);
        if count == 0 {
            return Vec::new();
        }
        let half = frequencies.len();
        let [x, h, delta, cos, sin] = carve(
            &mut arena.residual,
            [count * width, count * width, count * width, count * half, count * half],
        );
        let indices_left = arena.indices.len() - 3 * config.max_batch_rows;
        let [tokens, positions, slots, choices] =
            carve(&mut arena.indices, [count, count, count, indices_left]);
        for (i, row) in rows.iter().enumerate() {
            tokens[i] = row.token;
            positions[i] = row.position;
            slots[i] = pages.slot(row.sequence, row.position);
        }
        let mut contexts: Vec<Context<'_>> = std::mem::take(&mut arena.contexts);
        contexts.extend(
            rows.iter().map(|row| Context { pages: pages.of(row.sequence), len: row.position as usize + 1 }),
        );
        angles(positions, frequencies, 1.0, cos, sin);
        let step = Step {
            threads,
            files,
            mode: config.numerics,
            rows: count,
            width,
            epsilon: shape.epsilon,
            attention_scale: shape.attention_scale,
            layout: shape.rope.layout,
            rope_dims: shape.rope.dims,
            cos,
            sin,
            slots,
            contexts: &contexts,
        };
        let mut scratch = Scratchpad {
            stage: &mut arena.stage,
            quantised: &mut arena.quantised,
            attention: &arena.attention,
            choices,
            groups: &mut arena.groups,
        };
        let not_finite = threads.run(|| {
            match (input, &ends.embedding) {
                (Input::Activations(values), _) => x.copy_from_slice(values),
                (Input::Tokens, Some(table)) => embed(threads, &table.view(files), tokens, x),
                (Input::Tokens, None) => unreachable!("checked: the engine holds the embedding"),
            }
            for (weights, kv) in layers.iter().zip(kv) {
                layer(&step, shape, weights, kv, &mut scratch, [&mut *x, &mut *h, &mut *delta]);
                ticks.fetch_add(1, Ordering::Relaxed);
            }
            match (output, &ends.output) {
                (Output::Activations(values), _) => {
                    values.copy_from_slice(x);
                    not_finite(rows.iter(), values, width)
                }
                (Output::Logits(logits), Some((norm, matrix))) => {
                    let wanted = || rows.iter().enumerate().filter(|(_, row)| row.wants_logits);
                    let gathered = &mut delta[..wanted().count() * width];
                    for ((i, _), into) in wanted().zip(gathered.chunks_exact_mut(width)) {
                        into.copy_from_slice(&x[i * width..][..width]);
                    }
                    let h = &mut h[..gathered.len()];
                    rms_norm(threads, gathered, norm, step.epsilon, h);
                    let forms = Forms::of([matrix.ty()]);
                    let activations = scratch.quantised.quantise(threads, step.mode, h, width, forms);
                    matmul(threads, &activations, &matrix.view(files), logits);
                    not_finite(wanted().map(|(_, row)| row), logits, shape.vocab)
                }
                (Output::Logits(_), None) => unreachable!("checked: the engine holds the output matrix"),
            }
        });
        arena.contexts = emptied(contexts);
        not_finite
    }
}

impl DecodeModel for Engine {
    fn vocab_size(&self) -> usize {
        self.shape.vocab
    }

    fn context_tokens(&self) -> u32 {
        self.config.context_tokens
    }

    fn max_sequences(&self) -> u32 {
        self.pages.max_sequences()
    }

    fn max_batch_rows(&self) -> usize {
        self.config.max_batch_rows
    }

    fn pages(&self) -> Pages {
        self.pages.pages()
    }

    fn reserve(&mut self, sequence: u32, tokens: u32) -> Result<(), OutOfPages> {
        self.pages.reserve(sequence, tokens)
    }

    fn truncate(&mut self, sequence: u32, tokens: u32) {
        self.pages.truncate(sequence, tokens);
    }

    fn release(&mut self, sequence: u32) {
        self.pages.truncate(sequence, 0);
    }

    fn forward(&mut self, rows: &[Row], ticks: &AtomicU64, logits: &mut [f32]) -> Result<(), ForwardError> {
        self.forward_hidden(rows, Input::Tokens, ticks, Output::Logits(logits))
    }
}

/// The sequences of rows whose values are not all finite, ascending.
fn not_finite<'a>(rows: impl Iterator<Item = &'a Row>, values: &[f32], per_row: usize) -> Vec<u32> {
    let mut sequences: Vec<u32> = rows
        .zip(values.chunks_exact(per_row))
        .filter(|(_, values)| values.iter().any(|value| !value.is_finite()))
        .map(|(row, _)| row.sequence)
        .collect();
    sequences.sort_unstable();
    sequences.dedup();
    sequences
}

/// Touches every page of the weights, in file order of the graph.
fn read_weights(files: &ModelFiles, plan: &MemoryPlan, progress: &mut dyn FnMut(u64, u64)) {
    /// The smallest page of the systems we run on.
    const PAGE: usize = 4096;
    /// Progress is told after this many bytes.
    const STRIDE: usize = 64 << 20;
    let mut done = 0;
    progress(done, plan.weight_bytes);
    for weight in &plan.weights {
        let Some((file, info)) = files.headers().tensor(&weight.name) else { continue };
        let Ok(range) = info.range_in_memory() else { continue };
        for stride in files.bytes().of(file)[range].chunks(STRIDE) {
            black_box(stride.iter().step_by(PAGE).fold(0u8, |sum, byte| sum.wrapping_add(*byte)));
            done += stride.len() as u64;
            progress(done, plan.weight_bytes);
        }
    }
}

/// Engines of equal id continue each other's sequences bit for bit: weights digest, back end, kernel revision, tensor
/// parallelism, type of the cache and numerics mode.
pub fn numerics_id(files: &ModelFiles, config: &EngineConfig) -> String {
    let weights_digest = files.weights_digest();
    let kv = match config.kv_type {
        KvType::F32 => "f32",
        KvType::F16 => "f16",
    };
    let mode = match config.numerics {
        Mode::Exact => "exact",
        Mode::Reference => "reference",
    };
    format!("{weights_digest}/cpu/kernels-{KERNEL_REVISION}/tp-1/kv-{kv}/{mode}")
}

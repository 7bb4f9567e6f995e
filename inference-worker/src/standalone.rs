//! One model from the command line: what `serve` and `plan` are told, and how the memory plan reads.

use std::fmt::Write;
use std::num::NonZeroU32;
use std::ops::Range;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use indicatif::BinaryBytes;
use tandem_engine::ModelShape;
use tandem_worker_api::{KvCache, Numerics};

use crate::loading::{LoadError, Opened, Purpose};

/// Context where none is asked for: long enough for a conversation, and its cache fits beside most models.
const USUAL_CONTEXT: u32 = 8192;

/// A model file and what it is loaded for.
#[derive(Debug, Clone, Args)]
pub struct ModelArgs {
    /// The model's GGUF file; of several shards, the first
    #[arg(value_name = "MODEL.gguf")]
    pub model: PathBuf,
    /// Longest sequence in tokens, prompt and answer together [default: 8192, or what the model can]
    #[arg(long, value_name = "TOKENS")]
    pub context: Option<NonZeroU32>,
    /// Tokens whose keys and values all sequences share [default: twice the context]
    #[arg(long, value_name = "TOKENS")]
    pub pool: Option<NonZeroU32>,
    /// How keys and values are stored
    #[arg(long, value_enum, default_value = "f16")]
    pub kv: KvArg,
    /// Arithmetic: `exact` is fast and repeatable, `reference` has f32 activations
    #[arg(long, value_enum, default_value = "exact")]
    pub numerics: NumericsArg,
    /// Threads that compute [default: one per core]
    #[arg(long, value_name = "N")]
    pub threads: Option<NonZeroU32>,
    /// Sequences computed at once; more wait
    #[arg(long, value_name = "N", default_value = "8")]
    pub max_sequences: NonZeroU32,
    /// Layers to hold, such as 0..30, for one stage of a sharded replica
    #[arg(long, value_name = "A..B", value_parser = layers)]
    pub layers: Option<Range<u32>>,
}

/// `--kv`
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum KvArg {
    /// Two bytes a value
    F16,
    /// Four bytes a value
    F32,
}

/// `--numerics`
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum NumericsArg {
    /// 8-bit activations
    Exact,
    /// f32 activations, slow
    Reference,
}

impl ModelArgs {
    /// Reads the model's headers.
    ///
    /// # Errors
    /// When they are not of a model that can be run this way.
    pub fn open(&self) -> Result<Opened, LoadError> {
        Opened::first_file(&self.model, |shape| self.purpose(shape))
    }

    fn purpose(&self, shape: &ModelShape) -> Purpose {
        let usual = USUAL_CONTEXT.min(shape.context_tokens);
        let context_tokens = self.context.map_or(usual, NonZeroU32::get);
        Purpose {
            context_tokens,
            pool_tokens: self.pool.map_or(context_tokens.saturating_mul(2), NonZeroU32::get),
            kv_cache: match self.kv {
                KvArg::F16 => KvCache::F16,
                KvArg::F32 => KvCache::F32,
            },
            numerics: match self.numerics {
                NumericsArg::Exact => Numerics::Exact,
                NumericsArg::Reference => Numerics::Reference,
            },
            threads: self.threads,
            max_sequences: self.max_sequences,
            layers: self.layers.clone(),
        }
    }
}

fn layers(text: &str) -> Result<Range<u32>, String> {
    let range = text.split_once("..").and_then(|(a, b)| Some(a.parse().ok()?..b.parse().ok()?));
    match range {
        Some(range) if !range.is_empty() => Ok(range),
        _ => Err("write the first layer and the one after the last, such as 0..30".to_owned()),
    }
}

/// The memory plan as a few lines.
#[must_use]
pub fn describe(opened: &Opened) -> String {
    let (plan, shape, config) = (&opened.plan, &opened.shape, opened.config());
    let bytes = |bytes: u64| BinaryBytes(bytes).to_string();
    let pool_tokens = u64::from(plan.kv.pages) * u64::from(plan.kv.tokens_per_page);
    let mut text = String::new();
    let mut line = |name: &str, value: String, what: String| {
        writeln!(text, "  {name:<10}{value:>12}  {what}").expect("strings take everything");
    };
    let layers = if plan.layers == shape.all_layers() {
        format!("{} layers", shape.layers)
    } else {
        format!("layers {}..{} of {}", plan.layers.start, plan.layers.end, shape.layers)
    };
    let tensors = plan.weights.len();
    line("weights", bytes(plan.weight_bytes), format!("{layers}, {tensors} tensors, mapped from the file"));
    line(
        "KV pool",
        bytes(plan.kv.bytes),
        format!("{pool_tokens} tokens of {} bytes in {} pages", plan.kv.bytes_per_token, plan.kv.pages),
    );
    line("arena", bytes(plan.arena_bytes), format!("{} rows in a step", config.max_batch_rows));
    line("total", bytes(plan.total_bytes), format!("for a context of {} tokens", config.context_tokens));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_of_layers_is_read() {
        assert_eq!(layers("3..30"), Ok(3..30));
        for bad in ["", "3", "3..", "..3", "5..5", "9..2", "-1..2", "a..b"] {
            assert!(layers(bad).is_err(), "{bad}");
        }
    }
}

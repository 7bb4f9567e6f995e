//! What an engine is loaded for, checked against the model.

use std::ops::Range;

use tandem_kernels::{KvType, Mode};

use crate::shape::ModelShape;

/// The most rows that a step may be configured for.
pub const MAX_BATCH_ROWS: usize = 1 << 14;
/// The most sequences that an engine may be configured for.
pub const MAX_SEQUENCES: u32 = 1 << 14;

/// How an engine is loaded. How many threads compute is no part of it: neither bits nor memory depend on them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineConfig {
    /// The longest sequence, in tokens.
    pub context_tokens: u32,
    /// Tokens that the KV pool holds for all sequences together; rounded up to whole pages.
    pub pool_tokens: u32,
    /// What cached values are stored as.
    pub kv_type: KvType,
    /// How activations meet quantised weights.
    pub numerics: Mode,
    /// The layers to hold; all where none are given.
    pub layers: Option<Range<u32>>,
    /// Sequences that may hold pages at once.
    pub max_sequences: u32,
    /// Rows that one step may have.
    pub max_batch_rows: usize,
}

/// Why a model can't be loaded this way.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A number outside of its range.
    #[error("{name} is {value}; it must be {wanted}")]
    OutOfRange {
        /// Which setting.
        name: &'static str,
        /// Its value.
        value: u64,
        /// What is accepted.
        wanted: String,
    },
    /// Layers that the model doesn't have.
    #[error("the layers {first}..{end} are not a range of the model's {layers} layers")]
    Layers {
        /// The first layer asked for.
        first: u32,
        /// One past the last.
        end: u32,
        /// How many the model has.
        layers: u32,
    },
}

impl EngineConfig {
    /// The layers to hold, once the rest of the settings fits the model too.
    pub fn check(&self, shape: &ModelShape) -> Result<Range<u32>, ConfigError> {
        in_range("context_tokens", self.context_tokens.into(), 1, shape.context_tokens.into())?;
        in_range("pool_tokens", self.pool_tokens.into(), self.context_tokens.into(), 1 << 31)?;
        in_range("max_sequences", self.max_sequences.into(), 1, MAX_SEQUENCES.into())?;
        in_range("max_batch_rows", self.max_batch_rows as u64, 1, MAX_BATCH_ROWS as u64)?;
        let layers = self.layers.clone().unwrap_or(shape.all_layers());
        if layers.is_empty() || layers.end > shape.layers {
            return Err(ConfigError::Layers { first: layers.start, end: layers.end, layers: shape.layers });
        }
        Ok(layers)
    }
}

fn in_range(name: &'static str, value: u64, least: u64, most: u64) -> Result<(), ConfigError> {
    if (least..=most).contains(&value) {
        Ok(())
    } else {
        Err(ConfigError::OutOfRange { name, value, wanted: format!("from {least} to {most}") })
    }
}

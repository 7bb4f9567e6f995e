//! Metadata of one model, read by the architecture's own keys, with bounds on what a size may be.

use tandem_gguf::{FromValue, MetadataError, ShardSet};

use crate::shape::ShapeError;

/// No size of any model comes near this; products of two of them fit 64 bits.
const MAX_SIZE: usize = 1 << 24;
/// No model has more layers.
const MAX_LAYERS: u32 = 4096;

/// Why a key can't be used.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum KeyError {
    /// Missing, or of another kind.
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    /// A number outside of what is sensible.
    #[error("{key} is {value}; it must be {wanted}")]
    OutOfRange {
        /// The key.
        key: String,
        /// Its value.
        value: String,
        /// What is accepted.
        wanted: String,
    },
    /// The vocabulary's size follows from a tensor that isn't there.
    #[error(
        "the file has no tensor token_embd.weight, and {key} doesn't give the size of the vocabulary either"
    )]
    NoVocabulary {
        /// The key.
        key: String,
    },
}

/// The metadata and tensor names of a model.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Keys<'a> {
    headers: &'a ShardSet,
}

impl<'a> Keys<'a> {
    /// Those of a model's files.
    pub(crate) fn new(headers: &'a ShardSet) -> Self {
        Self { headers }
    }

    /// `general.architecture`.
    pub(crate) fn architecture(&self) -> Result<&'a str, KeyError> {
        Ok(self.headers.metadata().get("general.architecture")?)
    }

    /// The whole key behind an architecture's own.
    pub(crate) fn full(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture().unwrap_or("general"))
    }

    /// Whether the file has the key.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.headers.metadata().value(&self.full(key)).is_some()
    }

    /// Whether the file has the tensor.
    pub(crate) fn has_tensor(&self, name: &str) -> bool {
        self.headers.tensor(name).is_some()
    }

    fn get<T: FromValue<'a>>(&self, key: &str) -> Result<T, KeyError> {
        Ok(self.headers.metadata().get(&self.full(key))?)
    }

    /// A count that may be 0.
    pub(crate) fn u32(&self, key: &str) -> Result<u32, KeyError> {
        self.get(key)
    }

    /// A count that may be 0 and is at most `most`.
    pub(crate) fn u32_at_most(&self, key: &str, most: u32) -> Result<u32, KeyError> {
        let value = self.u32(key)?;
        if value > most { Err(self.out_of_range(key, value, format!("at most {most}"))) } else { Ok(value) }
    }

    /// A size: at least 1.
    pub(crate) fn size(&self, key: &str) -> Result<usize, KeyError> {
        let value: usize = self.get(key)?;
        if (1..=MAX_SIZE).contains(&value) {
            Ok(value)
        } else {
            Err(self.out_of_range(key, value, format!("from 1 to {MAX_SIZE}")))
        }
    }

    /// An even size.
    pub(crate) fn even(&self, key: &str) -> Result<usize, KeyError> {
        let value = self.size(key)?;
        if value.is_multiple_of(2) {
            Ok(value)
        } else {
            Err(self.out_of_range(key, value, "even".to_owned()))
        }
    }

    /// A finite number.
    pub(crate) fn f64(&self, key: &str) -> Result<f64, KeyError> {
        Ok(f64::from(self.get::<f32>(key)?))
    }

    /// A finite number above 0.
    pub(crate) fn positive(&self, key: &str) -> Result<f64, KeyError> {
        let value = self.f64(key)?;
        if value > 0.0 { Ok(value) } else { Err(self.out_of_range(key, value, "above 0".to_owned())) }
    }

    /// A switch.
    pub(crate) fn bool(&self, key: &str) -> Result<bool, KeyError> {
        self.get(key)
    }

    /// The number of layers.
    pub(crate) fn layers(&self) -> Result<u32, KeyError> {
        let layers = self.u32("block_count")?;
        if (1..=MAX_LAYERS).contains(&layers) {
            Ok(layers)
        } else {
            Err(self.out_of_range("block_count", layers, format!("from 1 to {MAX_LAYERS}")))
        }
    }

    /// What norms add to the mean square.
    pub(crate) fn epsilon(&self) -> Result<f32, KeyError> {
        Ok(self.positive("attention.layer_norm_rms_epsilon")? as f32)
    }

    /// The rope's base. The format says 10000 where the key is missing.
    pub(crate) fn rope_base(&self) -> Result<f64, KeyError> {
        if !self.has("rope.freq_base") {
            return Ok(10_000.0);
        }
        let base = self.positive("rope.freq_base")?;
        if base > 1.0 {
            Ok(base)
        } else {
            Err(self.out_of_range("rope.freq_base", base, "above 1".to_owned()))
        }
    }

    /// The rope's scaling by name.
    pub(crate) fn rope_scaling(&self) -> Result<Option<&'a str>, KeyError> {
        Ok(self.headers.metadata().find(&self.full("rope.scaling.type"))?)
    }

    /// The size of the vocabulary: rows of the embedding, or what the metadata says in a stage's file without it.
    pub(crate) fn vocab(&self) -> Result<usize, KeyError> {
        match self.headers.tensor("token_embd.weight") {
            Some((_, info)) if info.rows() <= MAX_SIZE as u64 => Ok(info.rows() as usize),
            Some((_, info)) => Err(KeyError::OutOfRange {
                key: "the rows of token_embd.weight".to_owned(),
                value: info.rows().to_string(),
                wanted: format!("at most {MAX_SIZE}"),
            }),
            None if self.has("vocab_size") => self.size("vocab_size"),
            None => Err(KeyError::NoVocabulary { key: self.full("vocab_size") }),
        }
    }

    /// Fails unless the size under `key` is `wanted`, for the reason given.
    pub(crate) fn must_be(&self, key: &str, wanted: usize, reason: &str) -> Result<(), ShapeError> {
        let value = self.size(key)?;
        if value == wanted {
            return Ok(());
        }
        Err(self.contradiction(key, value, format!("it must be {wanted}: {reason}")))
    }

    /// A value that contradicts another.
    pub(crate) fn contradiction(&self, key: &str, value: usize, other: String) -> ShapeError {
        ShapeError::Contradiction { key: self.full(key), value: value.to_string(), other }
    }

    /// A value that the engine doesn't compute.
    pub(crate) fn variant(&self, key: &str, supported: &'static str) -> ShapeError {
        let (metadata, full) = (self.headers.metadata(), self.full(key));
        let value = match (metadata.get::<i64>(&full), metadata.get::<&str>(&full)) {
            (Ok(number), _) => number.to_string(),
            (_, Ok(text)) => text.to_owned(),
            _ => "something else".to_owned(),
        };
        ShapeError::Variant { key: full, value, supported }
    }

    fn out_of_range(&self, key: &str, value: impl ToString, wanted: String) -> KeyError {
        KeyError::OutOfRange { key: self.full(key), value: value.to_string(), wanted }
    }
}

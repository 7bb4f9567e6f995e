//! What is known of a model: its headers, or what the catalogue says in their place.

use tandem_crds::Context;
use tandem_engine::ModelShape;
use tandem_engine::config::ConfigError;
use tandem_engine::memory::PlanError;
use tandem_engine::shape::ShapeError;
use tandem_gguf::ShardSet;

use super::{Exactness, Limit, LimitKind, Need};
use crate::catalogue::{Catalogue, Model};
use crate::sizing;

/// A model, as far as it is known.
#[derive(Debug)]
pub struct ModelFacts {
    quant: String,
    model: Option<&'static Model>,
    headers: ShardSet,
    file_bytes: u64,
    known: Known,
    others: Vec<OtherQuant>,
}

/// Where it is known from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Known {
    /// The headers of the very files.
    Headers,
    /// The catalogue: the shape is the model's, the weights are as many bytes as the files.
    Catalogue {
        /// The catalogue's own source.
        source: String,
        /// Types of the matrices.
        types: Vec<String>,
        /// Weights that a token reads.
        active_bytes: Option<u64>,
    },
}

/// Another quant of the same model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtherQuant {
    /// Its name.
    pub quant: String,
    /// Bytes of its files, which are those of its weights but for some megabytes.
    pub bytes: u64,
}

impl ModelFacts {
    /// From the headers of its files. `others` are quants of the same place; where none are known, those of the catalogue are
    /// taken.
    #[must_use]
    pub fn from_headers(source: &str, quant: &str, headers: ShardSet, others: Vec<OtherQuant>) -> Self {
        let file_bytes = headers.headers().iter().map(|header| header.file_len).sum();
        let model = Catalogue::built_in().model_of(source);
        let mut facts =
            Self { quant: quant.to_owned(), model, headers, file_bytes, known: Known::Headers, others };
        facts.sort_others();
        facts
    }

    /// From the catalogue; nothing where it doesn't know the model or the quant.
    #[must_use]
    pub fn from_catalogue(source: &str, quant: &str) -> Option<Self> {
        let model = Catalogue::built_in().model_of(source)?;
        let known = model.quant(quant)?;
        let mut facts = Self {
            quant: known.quant.clone(),
            model: Some(model),
            headers: Catalogue::built_in().headers(model, Some(known))?,
            file_bytes: known.bytes,
            known: Known::Catalogue {
                source: known.source.clone(),
                types: known.types.clone(),
                active_bytes: known.active_bytes,
            },
            others: Vec::new(),
        };
        facts.sort_others();
        Some(facts)
    }

    /// The same model in another quant, of which only the bytes of its files are known: cache and working memory are the
    /// shape's. The quant whose headers these are stays as it is.
    #[must_use]
    pub fn for_quant(&self, quant: &str, bytes: u64, others: &[OtherQuant]) -> Self {
        let known = self.model.and_then(|model| model.quant(quant));
        let is_own = quant.eq_ignore_ascii_case(&self.quant);
        let mut facts = Self {
            quant: quant.to_owned(),
            model: self.model,
            headers: self.headers.clone(),
            file_bytes: bytes,
            known: match &self.known {
                Known::Headers if is_own => Known::Headers,
                _ => Known::Catalogue {
                    source: known.map_or("the length of its files".to_owned(), |known| known.source.clone()),
                    types: known.map_or_else(Vec::new, |known| known.types.clone()),
                    active_bytes: known.and_then(|known| known.active_bytes),
                },
            },
            others: others.to_vec(),
        };
        facts.sort_others();
        facts
    }

    fn sort_others(&mut self) {
        if self.others.is_empty() {
            let known = self.model.iter().flat_map(|model| &model.quants);
            self.others =
                known.map(|known| OtherQuant { quant: known.quant.clone(), bytes: known.bytes }).collect();
        }
        self.others.retain(|other| !other.quant.eq_ignore_ascii_case(&self.quant));
        self.others.sort_by_key(|other| std::cmp::Reverse(other.bytes));
    }

    pub(super) fn quant(&self) -> &str {
        &self.quant
    }

    pub(super) fn model_name(&self) -> Option<&'static str> {
        self.model.map(|model| model.name.as_str())
    }

    /// Largest first.
    pub(super) fn others(&self) -> &[OtherQuant] {
        &self.others
    }

    pub(super) fn shape(&self) -> Option<ModelShape> {
        ModelShape::read(&self.headers).ok()
    }

    /// In words.
    #[must_use]
    pub fn known_from(&self) -> String {
        match &self.known {
            Known::Headers => {
                let files = self.headers.headers().len();
                format!("the headers of {files} file{}", if files == 1 { "" } else { "s" })
            }
            Known::Catalogue { source, .. } => {
                let shape = self.model.map_or("", |model| Catalogue::built_in().source_of_shape(model));
                format!("the catalogue: size from {source}; shape from {shape}")
            }
        }
    }

    /// What a copy takes under a context.
    ///
    /// # Errors
    /// When no engine of this release could run it so, whatever the host.
    pub fn need(&self, context: &Context) -> Result<Need, Limit> {
        let plan = sizing::plan(&self.headers, context).map_err(|error| self.refused(&error))?;
        let (exactness, weights_bytes) = match &self.known {
            Known::Headers => (Exactness::Exact, plan.weight_bytes),
            Known::Catalogue { .. } => (Exactness::Estimated, self.file_bytes),
        };
        Ok(Need {
            exactness,
            weights_bytes,
            kv_bytes: plan.kv.bytes,
            kv_bytes_per_token: plan.kv.bytes_per_token,
            arena_bytes: plan.arena_bytes,
            total_bytes: weights_bytes.saturating_add(plan.kv.bytes).saturating_add(plan.arena_bytes),
            file_bytes: self.file_bytes,
            active_bytes_per_token: self.active_bytes(weights_bytes),
        })
    }

    /// Weights that one token of one sequence reads: every matrix, but of the experts only those it is sent to, and of the
    /// embedding one row.
    fn active_bytes(&self, weights_bytes: u64) -> u64 {
        if let Known::Catalogue { active_bytes: Some(known), .. } = &self.known {
            return *known;
        }
        let Some(shape) = self.shape() else { return weights_bytes };
        let (used, count) =
            shape.experts.as_ref().map_or((1, 1), |experts| (experts.used as u128, experts.count as u128));
        let of = |name: &str, bytes: u64| match name {
            name if name.contains("_exps.") => u128::from(bytes) * used / count,
            "token_embd.weight" if !shape.tied_output => u128::from(bytes) / shape.vocab.max(1) as u128,
            _ => u128::from(bytes),
        };
        let active: u128 = self.headers.tensors().map(|(_, tensor)| of(&tensor.name, tensor.bytes)).sum();
        // Scaled where the headers are the catalogue's, whose types are not the files'.
        let all = u128::from(self.headers.tensor_bytes().max(1));
        u64::try_from(active * u128::from(weights_bytes) / all).unwrap_or(u64::MAX)
    }

    /// Types of its tensors that this release doesn't compute.
    pub(super) fn lacking_limit(&self, context: &Context) -> Option<Limit> {
        let lacking: Vec<String> = match &self.known {
            Known::Headers => {
                let lacking = sizing::lacking(&self.headers, context).ok()?;
                lacking.into_iter().map(str::to_owned).collect()
            }
            Known::Catalogue { types, .. } => sizing::not_computed(types.iter().map(String::as_str)),
        };
        (!lacking.is_empty()).then(|| Limit {
            limit: LimitKind::TypeNotSupported,
            missing_bytes: None,
            sentence: format!("this release's kernels lack {}", lacking.join(", ")),
        })
    }

    fn refused(&self, error: &PlanError) -> Limit {
        let limit = match error {
            PlanError::Config(ConfigError::OutOfRange { name: "context_tokens", .. }) => {
                let most = self.shape().map_or(0, |shape| shape.context_tokens);
                return Limit {
                    limit: LimitKind::ContextTooLong,
                    missing_bytes: None,
                    sentence: format!(
                        "the model was made for contexts of up to {most} tokens: lower context.tokens"
                    ),
                };
            }
            PlanError::Shape(
                ShapeError::Architecture { .. } | ShapeError::Unsplit { .. } | ShapeError::Variant { .. },
            ) => LimitKind::ArchitectureNotSupported,
            PlanError::TooLarge => LimitKind::DeviceMemory,
            _ => LimitKind::ArchitectureNotSupported,
        };
        Limit { limit, missing_bytes: None, sentence: error.to_string() }
    }
}

//! Weights from verified files to a model that is ready to compute, with progress.

use std::io;
use std::num::NonZeroU32;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tandem_engine::files::OpenError;
use tandem_engine::memory::PlanError;
use tandem_engine::{
    Engine, EngineConfig, KvType, MemoryPlan, Mode, ModelFiles, ModelShape, Pool, PoolError, numerics_id,
    plan,
};
use tandem_kernels::map::MapError;
use tandem_worker_api::{KvCache, Numerics, Sha256Hex, WorkerExit, WorkerSpec, batch_rows};
use thiserror::Error;

use crate::model_text::{ModelText, TextError};
use crate::text::Text;
use crate::worker::{Load, Loaded};

/// What a model is loaded for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Purpose {
    /// Longest sequence.
    pub context_tokens: u32,
    /// Tokens whose KV all sequences share.
    pub pool_tokens: u32,
    /// How keys and values are stored.
    pub kv_cache: KvCache,
    /// Which arithmetic.
    pub numerics: Numerics,
    /// Threads that compute; `None`: one per core.
    pub threads: Option<NonZeroU32>,
    /// Sequences computed at once.
    pub max_sequences: NonZeroU32,
    /// Layers to hold; `None`: all.
    pub layers: Option<Range<u32>>,
}

impl Purpose {
    /// What a spec asks for.
    #[must_use]
    pub fn of(spec: &WorkerSpec) -> Self {
        Self {
            context_tokens: spec.context_tokens.get(),
            pool_tokens: spec.pool_tokens.get(),
            kv_cache: spec.kv_cache,
            numerics: spec.numerics,
            threads: spec.threads,
            max_sequences: spec.max_sequences,
            layers: None,
        }
    }

    /// The same in the engine's words.
    #[must_use]
    pub fn engine_config(&self) -> EngineConfig {
        EngineConfig {
            context_tokens: self.context_tokens,
            pool_tokens: self.pool_tokens,
            kv_type: match self.kv_cache {
                KvCache::F16 => KvType::F16,
                KvCache::F32 => KvType::F32,
            },
            numerics: match self.numerics {
                Numerics::Exact => Mode::Exact,
                Numerics::Reference => Mode::Reference,
            },
            layers: self.layers.clone(),
            max_sequences: self.max_sequences.get(),
            max_batch_rows: batch_rows(self.max_sequences),
        }
    }

    fn threads(&self) -> usize {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        self.threads.map_or_else(cores, |threads| threads.get() as usize)
    }
}

/// Why a model is not ready to compute.
#[derive(Debug, Error)]
pub enum LoadError {
    /// A file can't be read.
    #[error("{path} can't be read")]
    Read {
        /// Which.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A file holds something else than it should.
    #[error("{path} has sha256 {found}, not {expected}; remove it, so that it is fetched again")]
    Digest {
        /// Which.
        path: PathBuf,
        /// What its bytes hash to.
        found: Sha256Hex,
        /// What they should.
        expected: Sha256Hex,
    },
    /// A file is no longer the one that was verified.
    #[error(
        "{path} is not what was verified any more: {what}; let nobody write to files that models are read from"
    )]
    Changed {
        /// Which.
        path: PathBuf,
        /// What has happened to it.
        what: &'static str,
    },
    /// A file can't be looked at.
    #[error("the weights can't be kept in memory")]
    Map(#[from] MapError),
    /// The files are no model.
    #[error("the files are not a model that can be run")]
    Open(#[from] OpenError),
    /// The model has no memory plan for this purpose.
    #[error("the model can't be run this way")]
    Plan(#[from] PlanError),
    /// Its text.
    #[error("the model's text can't be used")]
    Text(#[from] TextError),
    /// Ids without logits.
    #[error("the tokenizer has {tokenizer} tokens, but the model only {model}")]
    Vocabulary {
        /// Tokens in the vocabulary.
        tokenizer: usize,
        /// Rows of the output matrix.
        model: usize,
    },
    /// The plan is larger than the machine.
    #[error(
        "the memory plan needs {needed} bytes, but this machine has {memory}; use a smaller quant, context or pool"
    )]
    Memory {
        /// Bytes in the plan.
        needed: u64,
        /// Bytes of memory.
        memory: u64,
    },
    /// The machine does not say what it has.
    #[error("how much memory this machine has can't be told: {0}")]
    UnknownMemory(String),
    /// Threads.
    #[error("the threads that compute could not be started")]
    Threads(#[from] PoolError),
    /// The engine.
    #[error("the engine can't load the model")]
    Engine(#[from] tandem_engine::LoadError),
}

impl LoadError {
    /// How a worker that can't load for this reason ends.
    #[must_use]
    pub fn exit(&self) -> WorkerExit {
        match self {
            Self::Read { source, .. } if source.kind() != io::ErrorKind::NotFound => WorkerExit::Failed,
            Self::Read { .. }
            | Self::Digest { .. }
            | Self::Open(_)
            | Self::Text(_)
            | Self::Vocabulary { .. } => WorkerExit::BadWeights,
            Self::Plan(PlanError::Config(_)) => WorkerExit::BadSpec,
            Self::Plan(PlanError::TooLarge) | Self::Memory { .. } => WorkerExit::OutOfMemory,
            Self::Plan(_) => WorkerExit::BadWeights,
            // Whoever starts it again hashes first what has changed.
            Self::Changed { .. } | Self::Map(_) | Self::Threads(_) | Self::UnknownMemory(_) => {
                WorkerExit::Failed
            }
            Self::Engine(_) => WorkerExit::BadWeights,
        }
    }
}

/// A model whose headers are read, and what it would take.
pub struct Opened {
    files: ModelFiles,
    config: EngineConfig,
    threads: usize,
    /// Every byte that the engine would hold.
    pub plan: MemoryPlan,
    /// The model's sizes.
    pub shape: ModelShape,
    /// The model's own name for itself, if it has one.
    pub name: Option<String>,
}

impl Opened {
    /// Reads the headers of a model whose files are known.
    ///
    /// # Errors
    /// When they are no model, or it can't be run this way.
    pub fn files(paths: &[PathBuf], weights_digest: &str, purpose: &Purpose) -> Result<Self, LoadError> {
        Self::new(ModelFiles::open_all(paths, weights_digest)?, purpose)
    }

    /// Reads the headers of a model by its first file. The others lie beside it.
    ///
    /// # Errors
    /// As [`Opened::files`].
    pub fn first_file(path: &Path, purpose: impl FnOnce(&ModelShape) -> Purpose) -> Result<Self, LoadError> {
        let files = ModelFiles::open(path, "unverified")?;
        let shape = ModelShape::read(files.headers()).map_err(PlanError::from)?;
        Self::new(files, &purpose(&shape))
    }

    fn new(files: ModelFiles, purpose: &Purpose) -> Result<Self, LoadError> {
        let config = purpose.engine_config();
        let plan = plan(files.headers(), &config)?;
        let shape = ModelShape::read(files.headers()).map_err(PlanError::from)?;
        let name = files.headers().metadata().find::<&str>("general.name").ok().flatten().map(str::to_owned);
        Ok(Self { files, config, threads: purpose.threads(), plan, shape, name })
    }

    /// What the engine would be told.
    #[must_use]
    pub fn config(&self) -> &EngineConfig {
        &self.config
    }

    /// The model's tokenizer and template.
    ///
    /// # Errors
    /// When there are none that can be used.
    pub fn text(&self) -> Result<ModelText, LoadError> {
        Ok(ModelText::from_metadata(self.files.headers().metadata())?)
    }

    /// Reads all weights. `load` shows this progress unless it has shown that of verification already.
    ///
    /// # Errors
    /// When there is not enough memory, or the engine finds something wrong with the weights.
    pub fn load(self, load: &Load) -> Result<Loaded<Engine>, LoadError> {
        let text = self.text()?;
        let (tokenizer, model) = (text.vocab_size(), self.shape.vocab);
        if tokenizer > model {
            return Err(LoadError::Vocabulary { tokenizer, model });
        }
        let memory = physical_memory()?;
        if self.plan.total_bytes > memory {
            return Err(LoadError::Memory { needed: self.plan.total_bytes, memory });
        }
        let verified = load.total.load(Ordering::Relaxed) > 0;
        let numerics_id = numerics_id(&self.files, &self.config);
        let threads = Pool::new(self.threads)?;
        let engine = Engine::load(self.files, self.config, threads, &mut |done, total| {
            if !verified {
                load.total.store(total, Ordering::Relaxed);
                load.done.store(done, Ordering::Relaxed);
            }
        })?;
        Ok(Loaded { model: engine, text: Arc::new(text), numerics_id })
    }
}

fn physical_memory() -> Result<u64, LoadError> {
    let mut system = sysinfo::System::new().map_err(|error| LoadError::UnknownMemory(error.to_string()))?;
    system.refresh_memory();
    Ok(system.total_memory())
}

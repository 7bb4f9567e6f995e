//! Runs a model: its shape and memory plan from GGUF headers, a paged KV cache, and the forward pass
//! of several sequences at once, by the numerics contract that makes takeovers exact.
//!
//! With f32 activations and cache the logits agree with a float64 reference to some 1e-5 (see `tests/engine/reference.rs`).
//! With int8 activations and an f16 cache, 400 tokens of the tiny trained model in `examples/` drift from that by a mean KL
//! of 9.3e-5, where llama.cpp's rounding drifts by 9.5e-5; `examples/engine_logits.rs` prints what such comparisons need.
//!
//! ```no_run
//! use std::path::Path;
//! use std::sync::atomic::AtomicU64;
//!
//! use tandem_engine::{DecodeModel, Engine, EngineConfig, KvType, Mode, ModelFiles, Pool, Row};
//!
//! let files = ModelFiles::open(Path::new("model-00001-of-00004.gguf"), "sha256:…")?;
//! let config = EngineConfig {
//!     context_tokens: 4096,
//!     pool_tokens: 16_384,
//!     kv_type: KvType::F16,
//!     numerics: Mode::Exact,
//!     layers: None,
//!     max_sequences: 16,
//!     max_batch_rows: 256,
//! };
//! println!("{} bytes", tandem_engine::plan(files.headers(), &config)?.total_bytes);
//! let threads = Pool::new(8)?;
//! let mut engine = Engine::load(files, config, threads, &mut |done, total| println!("{done} of {total}"))?;
//!
//! engine.reserve(0, 1)?;
//! let mut logits = vec![0.0; engine.vocab_size()];
//! let row = Row { sequence: 0, position: 0, token: 17, wants_logits: true };
//! engine.forward(&[row], &AtomicU64::new(0), &mut logits)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod arena;
pub mod config;
pub mod decode;
pub mod engine;
mod feed_forward;
pub mod files;
mod grouped;
mod keys;
pub mod memory;
mod mla;
pub mod pages;
pub mod sampling;
pub mod scheduler;
pub mod shape;
mod step;
pub mod tensors;
mod weights;

pub use config::EngineConfig;
pub use decode::{DecodeModel, ForwardError, OutOfPages, Pages, Row};
pub use engine::{Engine, Input, LoadError, Output, numerics_id};
pub use files::ModelFiles;
pub use memory::{MemoryPlan, plan, size};
pub use shape::ModelShape;
pub use tandem_kernels::pool::PoolError;
pub use tandem_kernels::{KvType, Mode, Pool};

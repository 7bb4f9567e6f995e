//! Runs a model: its shape and memory plan from GGUF headers, a paged KV cache, and the forward pass
//! of several sequences at once, by the numerics contract that makes takeovers exact.

mod arena;
pub mod config;
pub mod decode;
pub mod engine;
mod feed_forward;
pub mod files;
mod grouped;
pub mod keys;
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
pub use engine::{Engine, LoadError};
pub use files::ModelFiles;
pub use memory::{MemoryPlan, plan};
pub use shape::ModelShape;
pub use tandem_kernels::{KvType, Mode};

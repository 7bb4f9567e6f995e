//! The arithmetic of a model: block formats, the list of operations, threads, and file mapping.
//!
//! # The contract
//! **A row's bits depend on the row, the weights and the position alone**: not on the batch, the chunking of a prompt,
//! the neighbours in it, or the number of threads. Each operation's doc says in which order it adds; whoever writes a
//! faster body of one keeps that order. What all of them share:
//!
//! - **f32 sums** (norms, softmax sums, dots with f32, f16 and bf16 weights) run over 16 lanes, element `i` into lane
//!   `i mod 16` in ascending `i`, then a fixed tree joins the lanes: see [`lanes`].
//! - **No fused multiply-add.** A product is rounded, then the sum is rounded. On x86 without compile-time FMA
//!   `f32::mul_add` is a library call, and a body that fuses has other bits than one that does not. Rust never fuses
//!   on its own.
//! - **Quantised weights** meet activations quantised per row and block to int8: see [`activations`]. Dots inside a
//!   block are exact integers; one f32 term per block; terms are added in ascending order of blocks. K is one split.
//! - **Attention** cuts the context at absolute multiples of [`attention::CHUNK`] positions and merges the parts in
//!   ascending order.
//! - **`exp`** is our own: see [`elementary`]. Divisions, square roots and conversions are IEEE 754's, to nearest even.
//!
//! Mismatched shapes are programmer errors and panic with a message; what comes from a file or a peer returns a typed
//! error.

pub mod activations;
pub mod attention;
pub mod blocks;
pub mod elementary;
pub mod embed;
pub mod experts;
pub mod kv;
pub mod lanes;
pub mod logits;
pub mod map;
pub mod matmul;
pub mod norm;
pub mod pool;
pub mod rope;
pub mod router;
pub mod segments;
pub mod weights;

mod versions;

pub use activations::{Activations, Forms, Mode, QuantisedRows};
pub use kv::{KvPool, KvType};
pub use map::MappedFile;
pub use pool::Pool;
pub use segments::Segments;
pub use weights::{WeightMatrix, WeightStack, WeightType};

/// Raised whenever any operation's bits change; part of a worker's `numerics_id`.
pub const KERNEL_REVISION: u32 = 1;

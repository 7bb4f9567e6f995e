//! What the engine is held against: float64 forward passes in plain loops, and generators of small random
//! models of the same shapes. Only tests use it.
//!
//! How it is known to be right, over 40 positions of random models:
//!
//! | held against | deepseek2 | llama | qwen2 | logits up to |
//! |---|---|---|---|---|
//! | an independent float64 forward pass in numpy | 1.3e-13 | | | 4.3 |
//! | llama.cpp (llama-cpp-python 0.3.36), f32 cache | 5.2e-5 | 2.0e-6 | 2.7e-5 | 4.2, 3.6, 184 |
//!
//! Each figure is the greatest difference of any logit; the most likely token was the same at every position. `examples/logits.rs`
//! writes the models and prints the logits, so that any other engine can be held against it in the same way.

pub mod arithmetic;
pub mod deepseek2;
pub mod dense;
pub mod file;
pub mod metadata;
pub mod random;
pub mod rope;
pub mod tensor;
pub mod true_shape;

use random::Random;
use tandem_gguf::Value;
use tensor::{Tensor, Weights};

/// A model's shape, from which everything else follows.
pub trait Reference {
    /// `general.architecture` of its files.
    fn architecture(&self) -> &'static str;

    /// Logits per row.
    fn vocab(&self) -> usize;

    /// The metadata of its files, apart from `general.architecture`.
    fn metadata(&self) -> Vec<(String, Value)>;

    /// Its tensors and their dimensions, contiguous one first.
    fn shapes(&self) -> Vec<(String, Vec<usize>)>;

    /// Random values for one of its tensors.
    fn random_tensor(&self, random: &mut Random, name: &str, dims: &[usize]) -> Tensor;

    /// The logits after each of `tokens[from..]`, which start at position 0.
    fn logits(&self, weights: &Weights, tokens: &[u32], from: usize) -> Vec<Vec<f64>>;

    /// Random weights: the same for the same seed.
    fn random_weights(&self, seed: u64) -> Weights {
        let mut random = Random::new(seed);
        let mut weights = Weights::default();
        for (name, dims) in self.shapes() {
            let tensor = self.random_tensor(&mut random, &name, &dims);
            weights.insert(name, tensor);
        }
        weights
    }
}

/// A tensor's name without its layer.
fn part_of(name: &str) -> &str {
    name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')).map_or(name, |(_, part)| part)
}

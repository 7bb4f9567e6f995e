//! Named arrays of weights, kept as f32 (what a file holds) and used as f64.

use std::collections::BTreeMap;

use crate::random::Random;

/// An array as GGUF describes it: `dims[0]` is the contiguous dimension, so a matrix that maps `n` inputs
/// to `m` outputs is `[n, m]`, and a stack of `e` of them `[n, m, e]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    /// Lengths, contiguous dimension first.
    pub dims: Vec<usize>,
    /// The values, `dims` product of them.
    pub values: Vec<f32>,
}

impl Tensor {
    /// Normal numbers times `scale`.
    pub fn random(random: &mut Random, dims: &[usize], scale: f64) -> Self {
        let count = dims.iter().product();
        Self { dims: dims.to_vec(), values: (0..count).map(|_| (random.normal() * scale) as f32).collect() }
    }

    /// A matrix, or a stack of them, whose outputs have about the variance of its inputs.
    pub fn random_matrix(random: &mut Random, dims: &[usize]) -> Self {
        Self::random(random, dims, 1.0 / (dims[0] as f64).sqrt())
    }

    /// A norm's gain: ones and some noise.
    pub fn random_gain(random: &mut Random, width: usize) -> Self {
        let mut gain = Self::random(random, &[width], 0.1);
        gain.values.iter_mut().for_each(|v| *v += 1.0);
        gain
    }

    /// Multiplies every value.
    pub fn times(mut self, factor: f32) -> Self {
        self.values.iter_mut().for_each(|v| *v *= factor);
        self
    }

    /// Row `index` of a matrix, as f64.
    pub fn row(&self, index: usize) -> Vec<f64> {
        let width = self.dims[0];
        self.values[index * width..][..width].iter().map(|&v| f64::from(v)).collect()
    }

    /// All values as f64.
    pub fn vector(&self) -> Vec<f64> {
        self.values.iter().map(|&v| f64::from(v)).collect()
    }

    /// The matrix times `x`.
    pub fn apply(&self, x: &[f64]) -> Vec<f64> {
        self.apply_nth(0, x)
    }

    /// Matrix `n` of a stack, times `x`.
    pub fn apply_nth(&self, n: usize, x: &[f64]) -> Vec<f64> {
        let (inputs, outputs) = (self.dims[0], self.dims[1]);
        assert_eq!(inputs, x.len(), "a matrix of {inputs} inputs meets a vector of {}", x.len());
        self.values[n * inputs * outputs..][..inputs * outputs]
            .chunks_exact(inputs)
            .map(|row| row.iter().zip(x).map(|(&w, &x)| f64::from(w) * x).sum())
            .collect()
    }
}

/// A model's tensors by name.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Weights {
    /// Name to tensor; iterated, and so written, in the order of names.
    pub tensors: BTreeMap<String, Tensor>,
}

impl Weights {
    /// Adds a tensor.
    pub fn insert(&mut self, name: impl Into<String>, tensor: Tensor) {
        self.tensors.insert(name.into(), tensor);
    }

    /// A tensor that the forward pass needs.
    ///
    /// # Panics
    /// When it is missing: the reference is used by tests, on models they made.
    pub fn get(&self, name: &str) -> &Tensor {
        self.tensors.get(name).unwrap_or_else(|| panic!("the model has no tensor {name}"))
    }

    /// Tensor `name` of layer `layer`.
    pub fn layer(&self, layer: usize, name: &str) -> &Tensor {
        self.get(&format!("blk.{layer}.{name}"))
    }
}

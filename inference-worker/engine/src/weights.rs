//! Where each weight lies in the mapped files, by its part in the graph.
//!
//! Matrices stay in the mapping and are viewed where they are used; gains and biases, a few values each, are copied.

use std::ops::Range;

use tandem_kernels::{WeightMatrix, WeightStack, WeightType};

use crate::files::{FileBytes, ModelFiles};
use crate::shape::{Attention, Experts, ModelShape};
use crate::tensors::TensorError;

/// A matrix, or a stack of them, in a mapped file.
#[derive(Debug, Clone)]
pub(crate) struct Matrix {
    file: usize,
    range: Range<usize>,
    ty: WeightType,
    cols: usize,
    rows: usize,
    count: usize,
}

impl Matrix {
    pub(crate) fn ty(&self) -> WeightType {
        self.ty
    }

    pub(crate) fn view<'a>(&self, files: &'a FileBytes) -> WeightMatrix<'a> {
        WeightMatrix::new(self.ty, self.rows, self.cols, self.bytes(files))
            .expect("the header gives a tensor the bytes of its dimensions")
    }

    pub(crate) fn stack<'a>(&self, files: &'a FileBytes) -> WeightStack<'a> {
        WeightStack::new(self.ty, self.count, self.rows, self.cols, self.bytes(files))
            .expect("the header gives a tensor the bytes of its dimensions")
    }

    pub(crate) fn bytes<'a>(&self, files: &'a FileBytes) -> &'a [u8] {
        &files.of(self.file)[self.range.clone()]
    }
}

/// What comes before, after and beside the layers; each only where the range of layers needs it.
#[derive(Debug)]
pub(crate) struct Ends {
    pub(crate) embedding: Option<Matrix>,
    pub(crate) output: Option<(Vec<f32>, Matrix)>,
    pub(crate) rope_factors: Option<Vec<f32>>,
}

#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) attention_norm: Vec<f32>,
    pub(crate) attention: AttentionWeights,
    pub(crate) feed_forward_norm: Vec<f32>,
    pub(crate) feed_forward: FeedForwardWeights,
}

#[derive(Debug)]
pub(crate) enum AttentionWeights {
    Mla(MlaWeights),
    Grouped(GroupedWeights),
}

#[derive(Debug)]
pub(crate) struct MlaWeights {
    pub(crate) q_a: Matrix,
    pub(crate) q_norm: Vec<f32>,
    pub(crate) q_b: Matrix,
    pub(crate) kv_a: Matrix,
    pub(crate) kv_norm: Vec<f32>,
    /// Per head, from a query without position to the latent.
    pub(crate) k_b: Matrix,
    /// Per head, from the latent to the head's output.
    pub(crate) v_b: Matrix,
    pub(crate) output: Matrix,
}

#[derive(Debug)]
pub(crate) struct GroupedWeights {
    pub(crate) q: Matrix,
    pub(crate) k: Matrix,
    pub(crate) v: Matrix,
    /// Of query, key and value.
    pub(crate) biases: Option<[Vec<f32>; 3]>,
    pub(crate) output: Matrix,
}

#[derive(Debug)]
pub(crate) enum FeedForwardWeights {
    Dense(Gated),
    Experts(Box<ExpertWeights>),
}

/// `down(silu(gate(x)) · up(x))`.
#[derive(Debug)]
pub(crate) struct Gated {
    pub(crate) gate: Matrix,
    pub(crate) up: Matrix,
    pub(crate) down: Matrix,
}

#[derive(Debug)]
pub(crate) struct ExpertWeights {
    pub(crate) router: Matrix,
    pub(crate) bias: Vec<f32>,
    pub(crate) gate_up: GateUp,
    pub(crate) down: Matrix,
    pub(crate) shared: Option<Gated>,
}

/// The experts' gate and up.
#[derive(Debug)]
pub(crate) enum GateUp {
    Apart(Matrix, Matrix),
    /// Gate's rows, then up's, in each expert's matrix.
    Fused(Matrix),
}

impl GateUp {
    pub(crate) fn types(&self) -> [WeightType; 2] {
        match self {
            Self::Apart(gate, up) => [gate.ty(), up.ty()],
            Self::Fused(both) => [both.ty(); 2],
        }
    }

    pub(crate) fn views<'a>(&self, files: &'a FileBytes) -> (WeightStack<'a>, WeightStack<'a>) {
        match self {
            Self::Apart(gate, up) => (gate.stack(files), up.stack(files)),
            Self::Fused(both) => {
                let both = both.stack(files);
                let half = both.rows() / 2;
                (both.row_range(0..half), both.row_range(half..2 * half))
            }
        }
    }
}

/// What remembering where the weights of these layers lie takes, beside the values that are copied.
pub(crate) fn places(layers: usize, with_experts: usize) -> u64 {
    (layers * size_of::<Layer>() + with_experts * size_of::<ExpertWeights>()) as u64
}

/// Finds the weights of tensors that [`tensors::check`](crate::tensors::check) has accepted.
pub(crate) struct Finder<'a> {
    pub(crate) files: &'a ModelFiles,
    pub(crate) shape: &'a ModelShape,
}

impl Finder<'_> {
    pub(crate) fn ends(&self, layers: &Range<u32>) -> Result<Ends, TensorError> {
        let shape = self.shape;
        let output = if layers.end == shape.layers {
            let matrix = if shape.tied_output { "token_embd.weight" } else { "output.weight" };
            Some((self.vector("output_norm.weight")?, self.matrix(matrix)?))
        } else {
            None
        };
        Ok(Ends {
            embedding: if layers.start == 0 { Some(self.matrix("token_embd.weight")?) } else { None },
            output,
            rope_factors: if shape.rope_factors { Some(self.vector("rope_freqs.weight")?) } else { None },
        })
    }

    /// Each of these layers.
    pub(crate) fn layers(&self, layers: &Range<u32>) -> Result<Vec<Layer>, TensorError> {
        // A collected result would grow as it goes, and end with more room than it needs.
        let mut found = Vec::with_capacity(layers.len());
        for layer in layers.clone() {
            found.push(self.layer(layer)?);
        }
        Ok(found)
    }

    fn layer(&self, layer: u32) -> Result<Layer, TensorError> {
        let matrix = |name: &str| self.matrix(&format!("blk.{layer}.{name}.weight"));
        let vector = |name: &str| self.vector(&format!("blk.{layer}.{name}"));
        let gated = |suffix: &str| -> Result<Gated, TensorError> {
            Ok(Gated {
                gate: matrix(&format!("ffn_gate{suffix}"))?,
                up: matrix(&format!("ffn_up{suffix}"))?,
                down: matrix(&format!("ffn_down{suffix}"))?,
            })
        };
        let attention = match &self.shape.attention {
            Attention::Mla(_) => AttentionWeights::Mla(MlaWeights {
                q_a: matrix("attn_q_a")?,
                q_norm: vector("attn_q_a_norm.weight")?,
                q_b: matrix("attn_q_b")?,
                kv_a: matrix("attn_kv_a_mqa")?,
                kv_norm: vector("attn_kv_a_norm.weight")?,
                k_b: matrix("attn_k_b")?,
                v_b: matrix("attn_v_b")?,
                output: matrix("attn_output")?,
            }),
            Attention::Grouped(grouped) => AttentionWeights::Grouped(GroupedWeights {
                q: matrix("attn_q")?,
                k: matrix("attn_k")?,
                v: matrix("attn_v")?,
                biases: if grouped.biases {
                    Some([vector("attn_q.bias")?, vector("attn_k.bias")?, vector("attn_v.bias")?])
                } else {
                    None
                },
                output: matrix("attn_output")?,
            }),
        };
        let feed_forward = match &self.shape.experts {
            Some(Experts { fused_gate_up, shared_ff, .. }) if layer >= self.shape.dense_layers => {
                FeedForwardWeights::Experts(Box::new(ExpertWeights {
                    router: matrix("ffn_gate_inp")?,
                    bias: vector("exp_probs_b.bias")?,
                    gate_up: if *fused_gate_up {
                        GateUp::Fused(matrix("ffn_gate_up_exps")?)
                    } else {
                        GateUp::Apart(matrix("ffn_gate_exps")?, matrix("ffn_up_exps")?)
                    },
                    down: matrix("ffn_down_exps")?,
                    shared: if *shared_ff > 0 { Some(gated("_shexp")?) } else { None },
                }))
            }
            _ => FeedForwardWeights::Dense(gated("")?),
        };
        Ok(Layer {
            attention_norm: vector("attn_norm.weight")?,
            attention,
            feed_forward_norm: vector("ffn_norm.weight")?,
            feed_forward,
        })
    }

    fn matrix(&self, name: &str) -> Result<Matrix, TensorError> {
        let missing = || TensorError::Missing { name: name.to_owned() };
        let (file, info) = self.files.headers().tensor(name).ok_or_else(missing)?;
        let unsupported = |source| TensorError::Unsupported { name: name.to_owned(), source };
        Ok(Matrix {
            file,
            range: info.range_in_memory().map_err(|_| TensorError::Beyond { name: name.to_owned() })?,
            ty: WeightType::from_ggml(info.ty.id()).map_err(unsupported)?,
            cols: info.dims[0] as usize,
            rows: info.dims[1] as usize,
            count: info.dims[2] as usize,
        })
    }

    fn vector(&self, name: &str) -> Result<Vec<f32>, TensorError> {
        let matrix = self.matrix(name)?;
        let bytes = matrix.bytes(self.files.bytes()).as_chunks::<4>().0;
        Ok(bytes.iter().map(|&b| f32::from_le_bytes(b)).collect())
    }
}

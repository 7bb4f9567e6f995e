//! The tensors that a range of layers needs, by name and dimensions.

use std::collections::HashSet;
use std::ops::Range;

use tandem_gguf::{GgmlType, ShardSet, TensorInfo};
use tandem_kernels::WeightType;
use tandem_kernels::weights::UnsupportedType;

use crate::shape::{Attention, Experts, Grouped, Mla, ModelShape};

/// What a tensor is used as, which decides the types it may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A matrix, or a stack of them, that activations are multiplied with: any type the kernels compute.
    Matrix,
    /// A norm's gain, a bias, rope factors: f32.
    Vector,
}

/// A tensor that must be in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its name.
    pub name: String,
    /// Its dimensions in ggml's order, the contiguous one first.
    pub dims: Vec<u64>,
    /// How it is used.
    pub role: Role,
}

/// The tensors that an engine with these layers reads: no others are touched.
pub fn needed(shape: &ModelShape, layers: &Range<u32>) -> Vec<TensorSpec> {
    let mut list = List { prefix: String::new(), specs: Vec::new() };
    let (width, vocab) = (shape.width, shape.vocab);
    let (is_first, is_last) = (layers.start == 0, layers.end == shape.layers);
    if is_first || (is_last && shape.tied_output) {
        list.matrix("token_embd.weight", &[width, vocab]);
    }
    if is_last {
        list.vector("output_norm.weight", width);
        if !shape.tied_output {
            list.matrix("output.weight", &[width, vocab]);
        }
    }
    if shape.rope_factors {
        list.vector("rope_freqs.weight", shape.rope.dims / 2);
    }
    for layer in layers.clone() {
        list.prefix = format!("blk.{layer}.");
        list.vector("attn_norm.weight", width);
        match &shape.attention {
            Attention::Mla(mla) => list.mla(mla, width),
            Attention::Grouped(grouped) => list.grouped(grouped, width),
        }
        list.vector("ffn_norm.weight", width);
        match &shape.experts {
            Some(experts) if layer >= shape.dense_layers => list.experts(experts, width),
            _ => {
                list.matrix("ffn_gate.weight", &[width, shape.dense_ff]);
                list.matrix("ffn_up.weight", &[width, shape.dense_ff]);
                list.matrix("ffn_down.weight", &[shape.dense_ff, width]);
            }
        }
    }
    list.specs
}

struct List {
    prefix: String,
    specs: Vec<TensorSpec>,
}

impl List {
    fn add(&mut self, name: &str, dims: &[usize], role: Role) {
        let dims = dims.iter().map(|&d| d as u64).collect();
        self.specs.push(TensorSpec { name: format!("{}{name}", self.prefix), dims, role });
    }

    fn matrix(&mut self, name: &str, dims: &[usize]) {
        self.add(name, dims, Role::Matrix);
    }

    fn vector(&mut self, name: &str, length: usize) {
        self.add(name, &[length], Role::Vector);
    }

    fn mla(&mut self, mla: &Mla, width: usize) {
        self.matrix("attn_q_a.weight", &[width, mla.q_lora]);
        self.vector("attn_q_a_norm.weight", mla.q_lora);
        self.matrix("attn_q_b.weight", &[mla.q_lora, mla.heads * (mla.nope + mla.rope)]);
        self.matrix("attn_kv_a_mqa.weight", &[width, mla.row()]);
        self.vector("attn_kv_a_norm.weight", mla.kv_lora);
        self.matrix("attn_k_b.weight", &[mla.nope, mla.kv_lora, mla.heads]);
        self.matrix("attn_v_b.weight", &[mla.kv_lora, mla.v, mla.heads]);
        self.matrix("attn_output.weight", &[mla.heads * mla.v, width]);
    }

    fn grouped(&mut self, grouped: &Grouped, width: usize) {
        let (q, kv) = (grouped.heads * grouped.head, grouped.kv_heads * grouped.head);
        for (name, outputs) in [("attn_q", q), ("attn_k", kv), ("attn_v", kv)] {
            self.matrix(&format!("{name}.weight"), &[width, outputs]);
            if grouped.biases {
                self.vector(&format!("{name}.bias"), outputs);
            }
        }
        self.matrix("attn_output.weight", &[q, width]);
    }

    fn experts(&mut self, experts: &Experts, width: usize) {
        let &Experts { count, ff, shared_ff, .. } = experts;
        self.matrix("ffn_gate_inp.weight", &[width, count]);
        self.vector("exp_probs_b.bias", count);
        if experts.fused_gate_up {
            self.matrix("ffn_gate_up_exps.weight", &[width, 2 * ff, count]);
        } else {
            self.matrix("ffn_gate_exps.weight", &[width, ff, count]);
            self.matrix("ffn_up_exps.weight", &[width, ff, count]);
        }
        self.matrix("ffn_down_exps.weight", &[ff, width, count]);
        if shared_ff > 0 {
            self.matrix("ffn_gate_shexp.weight", &[width, shared_ff]);
            self.matrix("ffn_up_shexp.weight", &[width, shared_ff]);
            self.matrix("ffn_down_shexp.weight", &[shared_ff, width]);
        }
    }
}

/// Why a model's tensors can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TensorError {
    /// The files don't have it.
    #[error("the model has no tensor {name}")]
    Missing {
        /// The tensor.
        name: String,
    },
    /// A layer has a tensor that the architecture's graph has no place for.
    #[error(
        "the engine doesn't know what to do with the tensor {name}; without it the model would compute something else"
    )]
    Unknown {
        /// The tensor.
        name: String,
    },
    /// Its dimensions contradict the metadata.
    #[error("the tensor {name} is {found:?}, but the metadata calls for {wanted:?}")]
    Dimensions {
        /// The tensor.
        name: String,
        /// What the file says.
        found: Vec<u64>,
        /// What the metadata calls for.
        wanted: Vec<u64>,
    },
    /// A gain or bias of another type than f32.
    #[error("the tensor {name} is {found}; norms and biases must be F32")]
    NotF32 {
        /// The tensor.
        name: String,
        /// Its type.
        found: &'static str,
    },
    /// This machine's addresses don't reach it.
    #[error("the tensor {name} lies beyond what this machine can address")]
    Beyond {
        /// The tensor.
        name: String,
    },
    /// A type without kernels.
    #[error("the tensor {name} can't be multiplied with")]
    Unsupported {
        /// The tensor.
        name: String,
        /// Its type, and which are computed.
        source: UnsupportedType,
    },
}

/// Layer tensors that some files carry beside what they were split into or computed from.
const REDUNDANT: [&str; 2] = ["attn_kv_b.weight", "attn_rot_embd.weight"];

/// Fails when one of the layers has a tensor that isn't in the list: a variant of the architecture would otherwise be
/// computed as if it were the usual one.
pub fn check_no_other(
    headers: &ShardSet,
    layers: &Range<u32>,
    specs: &[TensorSpec],
) -> Result<(), TensorError> {
    let known: HashSet<&str> = specs.iter().map(|spec| spec.name.as_str()).collect();
    for (_, info) in headers.tensors() {
        let Some((layer, part)) = info.name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) else {
            continue;
        };
        let is_held = layer.parse().is_ok_and(|layer| layers.contains(&layer));
        if is_held && !known.contains(info.name.as_str()) && !REDUNDANT.contains(&part) {
            return Err(TensorError::Unknown { name: info.name.clone() });
        }
    }
    Ok(())
}

/// Checks that every tensor of the list is there, of the right dimensions, and f32 where nothing else is read. Whether the
/// kernels compute a matrix's type is [`check_computed`]'s question.
pub fn check<'a>(headers: &'a ShardSet, specs: &[TensorSpec]) -> Result<Vec<&'a TensorInfo>, TensorError> {
    let check = |spec: &TensorSpec| {
        let name = || spec.name.clone();
        let (_, info) = headers.tensor(&spec.name).ok_or_else(|| TensorError::Missing { name: name() })?;
        let mut wanted = [1; 4];
        wanted[..spec.dims.len()].copy_from_slice(&spec.dims);
        if info.dims != wanted {
            let (found, wanted) = (info.shape().to_vec(), spec.dims.clone());
            return Err(TensorError::Dimensions { name: name(), found, wanted });
        }
        match spec.role {
            Role::Vector if info.ty != GgmlType::F32 => {
                Err(TensorError::NotF32 { name: name(), found: info.ty.name() })
            }
            Role::Vector | Role::Matrix => Ok(info),
        }
    };
    specs.iter().map(check).collect()
}

/// Checks that the kernels compute the type of every matrix of the list.
pub fn check_computed(headers: &ShardSet, specs: &[TensorSpec]) -> Result<(), TensorError> {
    for spec in specs.iter().filter(|spec| spec.role == Role::Matrix) {
        let missing = || TensorError::Missing { name: spec.name.clone() };
        let (_, info) = headers.tensor(&spec.name).ok_or_else(missing)?;
        WeightType::from_ggml(info.ty.id())
            .map_err(|source| TensorError::Unsupported { name: spec.name.clone(), source })?;
    }
    Ok(())
}

//! The memory that an engine takes, from headers alone. The plan is the estimate *and* what is allocated.

use std::collections::BTreeSet;
use std::ops::Range;

use tandem_gguf::{GgmlType, ShardSet};
use tandem_kernels::{Forms, KvPool, WeightType};

use crate::arena::{ArenaSizes, Region};
use crate::config::{ConfigError, EngineConfig};
use crate::decode::Row;
use crate::files::FileBytes;
use crate::pages::{PageTable, TOKENS_PER_PAGE};
use crate::shape::{Attention, ModelShape, ShapeError};
use crate::step::LayerKv;
use crate::tensors::{self, Role, TensorError};
use crate::weights;

/// Why there is no plan.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PlanError {
    /// The metadata describes no model that can be run.
    #[error(transparent)]
    Shape(#[from] ShapeError),
    /// The tensors aren't what the metadata calls for.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// The configuration doesn't fit the model.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The sum doesn't fit any machine.
    #[error("the model with this configuration takes more memory than a machine can address")]
    TooLarge,
}

/// A tensor that the engine reads in place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightBytes {
    /// Its name.
    pub name: String,
    /// Its bytes in the file.
    pub bytes: u64,
}

/// The KV pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KvPlan {
    /// Pages in the pool.
    pub pages: u32,
    /// Positions in a page.
    pub tokens_per_page: u32,
    /// Bytes of one token over the engine's layers.
    pub bytes_per_token: u64,
    /// Bytes of the pool.
    pub bytes: u64,
}

/// Every byte that an engine holds, and its scheduler between steps. The process around them, with its threads' stacks
/// and the model's vocabulary, is beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryPlan {
    /// The layers that the engine holds.
    pub layers: Range<u32>,
    /// The tensors that it reads, in the order of the graph. They are used where the file is mapped.
    pub weights: Vec<WeightBytes>,
    /// Cached rows.
    pub kv: KvPlan,
    /// Everything else that is allocated.
    pub arena: Vec<Region>,
    /// Types of its matrices that the kernels don't compute, by ascending id. A plan that has any is a size and no more.
    pub lacking: Vec<GgmlType>,
    /// Sum of the weights.
    pub weight_bytes: u64,
    /// Sum of the arena.
    pub arena_bytes: u64,
    /// Weights, KV pool and arena.
    pub total_bytes: u64,
}

impl MemoryPlan {
    /// What is allocated: the plan without the weights.
    pub fn allocated_bytes(&self) -> u64 {
        self.kv.bytes + self.arena_bytes
    }
}

/// What an engine would hold for the model with these headers: needs no weights.
///
/// # Errors
/// When no engine could run it, be it for the types of its tensors.
pub fn plan(headers: &ShardSet, config: &EngineConfig) -> Result<MemoryPlan, PlanError> {
    Blueprint::of_runnable(headers, config).map(|blueprint| blueprint.plan)
}

/// The same for a model whose tensors may be of types that the kernels don't compute yet: each takes the bytes that it
/// takes in its file, and activations are taken to meet it in blocks as they meet its neighbours. Says nothing of whether
/// the model runs; see [`MemoryPlan::lacking`].
///
/// # Errors
/// When the metadata describes no model that the engine knows, or its tensors are others than it calls for.
pub fn size(headers: &ShardSet, config: &EngineConfig) -> Result<MemoryPlan, PlanError> {
    Blueprint::draw(headers, config).map(|blueprint| blueprint.plan)
}

/// The plan and the sizes it was added up from: what loading follows.
pub(crate) struct Blueprint {
    pub(crate) shape: ModelShape,
    pub(crate) arena: ArenaSizes,
    pub(crate) plan: MemoryPlan,
}

impl Blueprint {
    /// Of a model that can be computed.
    pub(crate) fn of_runnable(headers: &ShardSet, config: &EngineConfig) -> Result<Self, PlanError> {
        let blueprint = Self::draw(headers, config)?;
        if !blueprint.plan.lacking.is_empty() {
            tensors::check_computed(headers, &tensors::needed(&blueprint.shape, &blueprint.plan.layers))?;
        }
        Ok(blueprint)
    }

    fn draw(headers: &ShardSet, config: &EngineConfig) -> Result<Self, PlanError> {
        let shape = ModelShape::read(headers)?;
        let layers = config.check(&shape)?;
        let specs = tensors::needed(&shape, &layers);
        let infos = tensors::check(headers, &specs)?;
        tensors::check_no_other(headers, &layers, &specs)?;

        let weights: Vec<WeightBytes> =
            infos.iter().map(|info| WeightBytes { name: info.name.clone(), bytes: info.bytes }).collect();
        let matrices = infos.iter().zip(&specs).filter(|(_, spec)| spec.role == Role::Matrix);
        let types: BTreeSet<GgmlType> = matrices.map(|(info, _)| info.ty).collect();
        let lacking = types.iter().copied().filter(|ty| !is_computed(*ty)).collect();
        let has_experts = layers.end > shape.dense_layers;
        let arena = ArenaSizes::new(&shape, config, has_experts, forms(&types));

        let kv = kv(&shape, config, &layers);
        let copied = infos
            .iter()
            .zip(&specs)
            .filter(|(info, spec)| spec.role == Role::Vector && info.ty == GgmlType::F32)
            .map(|(info, _)| info.bytes);
        let with_experts =
            layers.len().saturating_sub(shape.dense_layers.saturating_sub(layers.start) as usize);
        let with_experts = if shape.experts.is_some() { with_experts } else { 0 };
        let mut regions = arena.regions();
        regions.push(Region { name: "norms and biases", bytes: sum(copied) });
        regions.push(Region {
            name: "page table",
            bytes: PageTable::bytes(kv.pages, config.max_sequences, config.context_tokens),
        });
        regions.push(Region {
            name: "places of weights and rows",
            bytes: sum([
                weights::places(layers.len(), with_experts),
                FileBytes::allocated(headers.headers().len()),
                (layers.len() * size_of::<LayerKv>()) as u64,
                (shape.rope.dims / 2 * size_of::<f64>()) as u64,
            ]),
        });
        regions.push(Region {
            name: "rows of the scheduler",
            bytes: (config.max_batch_rows * size_of::<Row>()) as u64,
        });
        if layers.end == shape.layers {
            let rows = config.max_batch_rows.min(config.max_sequences as usize) as u64;
            let values = rows.saturating_mul(shape.vocab as u64);
            regions.push(Region { name: "logits", bytes: values.saturating_mul(size_of::<f32>() as u64) });
        }

        let weight_bytes = sum(weights.iter().map(|w| w.bytes));
        let arena_bytes = sum(regions.iter().map(|r| r.bytes));
        let total_bytes = sum([weight_bytes, kv.bytes, arena_bytes]);
        if total_bytes > isize::MAX as u64 {
            return Err(PlanError::TooLarge);
        }
        let plan = MemoryPlan {
            layers,
            weights,
            kv,
            arena: regions,
            lacking,
            weight_bytes,
            arena_bytes,
            total_bytes,
        };
        Ok(Self { shape, arena, plan })
    }
}

/// Whether the kernels compute matrices of this type.
pub fn is_computed(ty: GgmlType) -> bool {
    WeightType::from_ggml(ty.id()).is_ok()
}

/// The blocks in which activations meet weights of these types.
fn forms(types: &BTreeSet<GgmlType>) -> Forms {
    let (mut known, mut forms) = (Vec::new(), Forms::default());
    for ty in types {
        match WeightType::from_ggml(ty.id()) {
            Ok(ty) => known.push(ty),
            Err(_) if ty.block_len() == 256 => forms.blocks256 = true,
            Err(_) => forms.blocks32 = true,
        }
    }
    let of_known = Forms::of(known);
    Forms { blocks32: forms.blocks32 | of_known.blocks32, blocks256: forms.blocks256 | of_known.blocks256 }
}

fn sum(bytes: impl IntoIterator<Item = u64>) -> u64 {
    bytes.into_iter().fold(0, u64::saturating_add)
}

/// The lengths of the rows that a layer keeps per token: the latent, or keys and values.
pub(crate) fn kept_rows(shape: &ModelShape) -> Vec<usize> {
    match &shape.attention {
        Attention::Mla(mla) => vec![mla.row()],
        Attention::Grouped(grouped) => vec![grouped.kv_heads * grouped.head; 2],
    }
}

fn kv(shape: &ModelShape, config: &EngineConfig, layers: &Range<u32>) -> KvPlan {
    let pages = config.pool_tokens.div_ceil(TOKENS_PER_PAGE);
    // One page of one token is a row.
    let row = |len: usize| KvPool::bytes(config.kv_type, 1, 1, len) as u64;
    let bytes_per_token = sum(kept_rows(shape).into_iter().map(row)).saturating_mul(layers.len() as u64);
    let tokens = u64::from(pages) * u64::from(TOKENS_PER_PAGE);
    KvPlan {
        pages,
        tokens_per_page: TOKENS_PER_PAGE,
        bytes_per_token,
        bytes: bytes_per_token.saturating_mul(tokens),
    }
}

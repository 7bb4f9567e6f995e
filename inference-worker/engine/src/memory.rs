//! The memory that an engine takes, from headers alone. The plan is the estimate *and* what is allocated.

use std::ops::Range;

use tandem_gguf::{GgmlType, ShardSet};
use tandem_kernels::{KvPool, WeightType};

use crate::arena::{ArenaSizes, Region};
use crate::config::{ConfigError, EngineConfig};
use crate::pages::{PageTable, TOKENS_PER_PAGE};
use crate::shape::{Attention, ModelShape, ShapeError};
use crate::tensors::{self, Role, TensorError};

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

/// Every byte that an engine holds.
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
pub fn plan(headers: &ShardSet, config: &EngineConfig) -> Result<MemoryPlan, PlanError> {
    Blueprint::draw(headers, config).map(|blueprint| blueprint.plan)
}

/// The plan and the sizes it was added up from: what loading follows.
pub(crate) struct Blueprint {
    pub(crate) shape: ModelShape,
    pub(crate) arena: ArenaSizes,
    pub(crate) plan: MemoryPlan,
}

impl Blueprint {
    pub(crate) fn draw(headers: &ShardSet, config: &EngineConfig) -> Result<Self, PlanError> {
        let shape = ModelShape::read(headers)?;
        let layers = config.check(&shape)?;
        let specs = tensors::needed(&shape, &layers);
        let infos = tensors::check(headers, &specs)?;
        tensors::check_no_other(headers, &layers, &specs)?;

        let weights: Vec<WeightBytes> =
            infos.iter().map(|info| WeightBytes { name: info.name.clone(), bytes: info.bytes }).collect();
        let matrices = infos.iter().zip(&specs).filter(|(_, spec)| spec.role == Role::Matrix);
        let types = matrices.filter_map(|(info, _)| WeightType::from_ggml(info.ty.id()).ok());
        let has_experts = layers.end > shape.dense_layers;
        let arena = ArenaSizes::new(&shape, config, has_experts, types);

        let kv = kv(&shape, config, &layers);
        let copied = infos
            .iter()
            .zip(&specs)
            .filter(|(info, spec)| spec.role == Role::Vector && info.ty == GgmlType::F32)
            .map(|(info, _)| info.bytes);
        let mut regions = arena.regions();
        regions.push(Region { name: "norms and biases", bytes: sum(copied) });
        regions.push(Region {
            name: "page table",
            bytes: PageTable::bytes(kv.pages, config.max_sequences, config.context_tokens),
        });

        let weight_bytes = sum(weights.iter().map(|w| w.bytes));
        let arena_bytes = sum(regions.iter().map(|r| r.bytes));
        let total_bytes = sum([weight_bytes, kv.bytes, arena_bytes]);
        if total_bytes > isize::MAX as u64 {
            return Err(PlanError::TooLarge);
        }
        let plan = MemoryPlan { layers, weights, kv, arena: regions, weight_bytes, arena_bytes, total_bytes };
        Ok(Self { shape, arena, plan })
    }
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

//! What one copy of a model takes: the engine's own memory plan, from GGUF headers alone. Operator, `tandem plan` and
//! workers all ask here or ask what is asked here, so that there is one number.

use tandem_crds::{Context, KvCache, Sizing};
use tandem_engine::memory::{self, MemoryPlan, PlanError};
use tandem_engine::{EngineConfig, KvType, Mode};
use tandem_gguf::{GgmlType, ShardSet};
use tandem_worker_api::{USUAL_MAX_SEQUENCES, batch_rows};

/// The memory of one copy under this context, to the byte what a worker maps and allocates for it. A model with tensors of
/// types that this release doesn't compute is sized all the same; [`lacking`] names them.
///
/// # Errors
/// When the headers are of no model that the engine knows, or the context doesn't fit the model.
pub fn size(headers: &ShardSet, context: &Context) -> Result<Sizing, PlanError> {
    plan(headers, context).map(|plan| Sizing {
        weights_bytes: plan.weight_bytes,
        kv_bytes: plan.kv.bytes,
        arena_bytes: plan.arena_bytes,
        total_bytes: plan.total_bytes,
    })
}

/// The whole plan behind [`size`].
///
/// # Errors
/// As [`size`].
pub fn plan(headers: &ShardSet, context: &Context) -> Result<MemoryPlan, PlanError> {
    memory::size(headers, &deployed(context))
}

/// The types of a model's matrices that this release doesn't compute, such as `Q2_K`. While there are any, no worker loads
/// it.
///
/// # Errors
/// As [`size`].
pub fn lacking(headers: &ShardSet, context: &Context) -> Result<Vec<&'static str>, PlanError> {
    plan(headers, context).map(|plan| plan.lacking.iter().map(|ty| ty.name()).collect())
}

/// Of these types by name, those that this release doesn't compute; a name that is of no type is one of them.
#[must_use]
pub fn not_computed<'a>(types: impl Iterator<Item = &'a str>) -> Vec<String> {
    let is_computed = |name: &str| GgmlType::from_name(name).is_some_and(memory::is_computed);
    types.filter(|name| !is_computed(name)).map(str::to_owned).collect()
}

/// What agents have workers load deployments for.
#[must_use]
pub fn deployed(context: &Context) -> EngineConfig {
    EngineConfig {
        context_tokens: context.tokens,
        pool_tokens: context.pool(),
        kv_type: match context.kv_cache {
            KvCache::F16 => KvType::F16,
            KvCache::F32 => KvType::F32,
        },
        numerics: Mode::Exact,
        layers: None,
        max_sequences: USUAL_MAX_SEQUENCES.get(),
        max_batch_rows: batch_rows(USUAL_MAX_SEQUENCES),
    }
}

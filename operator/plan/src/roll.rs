//! What a copy shall be: the workload that a deployment asks for, and whether one that runs still is that.

use tandem_crds::{WorkloadMode, WorkloadSpec};

use crate::input::Resolved;
use crate::parse::Wanted;

/// The workload that a deployment asks for now.
pub(crate) fn workload(
    wanted: &Wanted,
    resolved: &Resolved,
    id: String,
    epoch: u64,
    mode: WorkloadMode,
) -> WorkloadSpec {
    let spec = wanted.spec;
    WorkloadSpec {
        id,
        epoch,
        mode,
        deployment: wanted.key.clone(),
        model: spec.model.name.clone(),
        source: resolved.source.clone(),
        files: resolved.files.clone(),
        quant: spec.quant.clone(),
        context_tokens: spec.context.tokens,
        pool_tokens: spec.context.pool(),
        kv_cache: spec.context.kv_cache,
        sampling: spec.sampling.clone(),
        memory_bytes: resolved.sizing.total_bytes,
    }
}

/// Whether a copy must start again to be what its deployment asks for. Where the same bytes come from, how requests are
/// sampled and what the copy is thought to weigh do not need a start; whether it serves or is kept warm is no version.
pub(crate) fn is_outdated(wanted: &Wanted, resolved: &Resolved, running: &WorkloadSpec) -> bool {
    let WorkloadSpec {
        id: _,
        epoch: _,
        mode: _,
        deployment,
        model,
        source: _,
        files,
        quant,
        context_tokens,
        pool_tokens,
        kv_cache,
        sampling: _,
        memory_bytes: _,
    } = running;
    let spec = wanted.spec;
    deployment != wanted.key
        || *model != spec.model.name
        || *files != resolved.files
        || *quant != spec.quant
        || *context_tokens != spec.context.tokens
        || *pool_tokens != spec.context.pool()
        || *kv_cache != spec.context.kv_cache
}

/// Whether what needs no start differs in a copy that is not outdated.
pub(crate) fn is_revised(wanted: &Wanted, resolved: &Resolved, running: &WorkloadSpec) -> bool {
    running.source != resolved.source
        || running.sampling != wanted.spec.sampling
        || running.memory_bytes != resolved.sizing.total_bytes
}

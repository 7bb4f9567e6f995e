//! Rules of thumb that people know, beside what is computed here, and why they differ.

use tandem_crds::{DeviceKind, InferenceDeploymentSpec};
use tandem_engine::shape::Attention;

use super::{Fleet, ModelFacts, Need, hosts};
use crate::size::{human, usable};

/// A sentence or two for each rule whose number is another one here.
#[must_use]
pub fn rules_of_thumb(
    facts: &ModelFacts,
    spec: &InferenceDeploymentSpec,
    need: &Need,
    fleets: &[Fleet],
) -> Vec<String> {
    let mut notes = vec![format!(
        "Weights, cache and working memory: {} + {} + {} = {}. The cache is {} bytes a token times {} tokens, rounded up to \
         whole pages; working memory is that of one step, planned before anything is loaded.",
        human(need.weights_bytes),
        human(need.kv_bytes),
        human(need.arena_bytes),
        human(need.total_bytes),
        need.kv_bytes_per_token,
        spec.context.pool(),
    )];
    notes.extend(latent(facts, spec, need));
    notes.extend(together(need, fleets));
    notes.extend(four_fifths(fleets));
    notes.extend(wired(fleets));
    notes.push(format!(
        "\"Twice the file on disk\": not here. A download is written in its place and hashed while it comes, so the disk \
         needs the files once, {}.",
        human(need.file_bytes)
    ));
    notes
}

/// `head_count_kv × (key + value)`, which is what most calculators multiply.
fn latent(facts: &ModelFacts, spec: &InferenceDeploymentSpec, need: &Need) -> Option<String> {
    let shape = facts.shape()?;
    let Attention::Mla(mla) = &shape.attention else { return None };
    let bytes = need.kv_bytes_per_token / u64::from(shape.layers) / mla.row() as u64;
    let per_head = mla.nope + mla.rope + mla.v;
    let rule = (mla.heads * per_head) as u64 * bytes * u64::from(shape.layers);
    let tokens = u64::from(spec.context.pool());
    Some(format!(
        "\"Heads × ({} + {}) for the cache\": that would be {rule} bytes a token, {} for this pool. This architecture keeps one \
         vector of {} values a layer for all {} heads, from which keys and values are both read: {} bytes, {:.1} times less.",
        mla.nope + mla.rope,
        mla.v,
        human(rule.saturating_mul(tokens)),
        mla.row(),
        mla.heads,
        need.kv_bytes_per_token,
        rule as f64 / need.kv_bytes_per_token.max(1) as f64,
    ))
}

/// RAM + VRAM ≥ model.
fn together(need: &Need, fleets: &[Fleet]) -> Option<String> {
    let mixed = fleets.iter().flat_map(|fleet| &fleet.hosts).find_map(|host| {
        let sum = |kind| hosts::devices(host).filter(|d| d.kind == kind).map(|d| d.memory_bytes).sum::<u64>();
        let (ram, vram) = (sum(DeviceKind::Cpu), sum(DeviceKind::Cuda));
        (ram > 0 && vram > 0).then(|| (host.metadata.name.clone().unwrap_or_default(), ram, vram))
    });
    let (name, ram, vram) = mixed?;
    let enough =
        if ram.saturating_add(vram) >= need.total_bytes { "is enough" } else { "is too little, too" };
    Some(format!(
        "\"RAM + VRAM ≥ model\": {name} has {} + {} = {}, which {enough} for {}. It counts on experts in main memory \
         beside a GPU, which is not supported yet: a copy lies on one device.",
        human(ram),
        human(vram),
        human(ram.saturating_add(vram)),
        human(need.total_bytes)
    ))
}

/// What macOS lets a GPU have.
fn wired(fleets: &[Fleet]) -> Option<String> {
    let mut devices = fleets.iter().flat_map(|fleet| &fleet.hosts).flat_map(hosts::devices);
    let device = devices.find(|d| d.kind == DeviceKind::Metal && d.available_bytes < d.memory_bytes)?;
    Some(format!(
        "Metal on {}: {} of {} is what macOS lets the GPU wire as long as nobody raises `iogpu.wired_limit_mb`; what the host \
         then reports is what counts. Its CPU and its GPU share one memory: the two rows are not added up.",
        device.name,
        human(device.available_bytes),
        human(device.memory_bytes)
    ))
}

/// 0.8 of memory.
fn four_fifths(fleets: &[Fleet]) -> Option<String> {
    let device = fleets
        .iter()
        .flat_map(|fleet| &fleet.hosts)
        .flat_map(hosts::devices)
        .max_by_key(|device| (device.kind != DeviceKind::Cpu, device.memory_bytes))?;
    let rule = u64::try_from(u128::from(device.memory_bytes) * 4 / 5).unwrap_or(u64::MAX);
    Some(format!(
        "\"0.8 of memory\": of {} that would be {}. Here it is what the device itself says that it can give, {}, less one \
         part in 16: {}.",
        device.name,
        human(rule),
        human(device.available_bytes),
        human(usable(device.available_bytes))
    ))
}

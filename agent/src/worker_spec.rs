//! From a workload of the host's spec to the file that a worker reads.

use std::net::SocketAddr;
use std::num::NonZeroU32;

use tandem_crds::{ResolvedFile, Sampling, WorkloadSpec};
use tandem_weights::{Changed, Store};
use tandem_worker_api::{
    KvCache, NotASha256, Numerics, SamplingDefaults, Sha256Hex, USUAL_MAX_SEQUENCES, WeightFile, WorkerSpec,
};
use thiserror::Error;

use crate::home::WorkloadHome;

/// A workload that no worker could run.
#[derive(Debug, Error)]
pub(crate) enum UnusableWorkload {
    #[error("`{0}` is 0")]
    Zero(&'static str),
    #[error("sampling.{name}, `{value}`, is not a number")]
    NotANumber { name: &'static str, value: String },
    #[error("a file has no usable sha256")]
    Digest(#[from] NotASha256),
    #[error(transparent)]
    Weights(#[from] Changed),
}

pub(crate) fn worker_spec(
    workload: &WorkloadSpec,
    store: &Store,
    home: &WorkloadHome,
    listen: SocketAddr,
) -> Result<WorkerSpec, UnusableWorkload> {
    let tokens = |name, count| NonZeroU32::new(count).ok_or(UnusableWorkload::Zero(name));
    let file = |file: &ResolvedFile| {
        let sha256 = file.sha256.parse()?;
        // The worker hashes nothing that is as it was then.
        let verified = Some(store.stamp(&sha256)?);
        store.touch(&sha256);
        let path = store.path_of(&sha256).ok_or(Changed::Unknown(sha256))?;
        Ok(WeightFile { path, sha256, verified })
    };
    Ok(WorkerSpec {
        workload: workload.id.clone(),
        epoch: workload.epoch,
        model: workload.model.clone(),
        deployment: workload.deployment.to_string(),
        files: workload.files.iter().map(file).collect::<Result<_, UnusableWorkload>>()?,
        context_tokens: tokens("contextTokens", workload.context_tokens)?,
        pool_tokens: tokens("poolTokens", workload.pool_tokens)?,
        kv_cache: match workload.kv_cache {
            tandem_crds::KvCache::F16 => KvCache::F16,
            tandem_crds::KvCache::F32 => KvCache::F32,
        },
        numerics: Numerics::Exact,
        threads: None,
        // What `tandem_plan::sizing` sizes a copy for.
        max_sequences: USUAL_MAX_SEQUENCES,
        sampling: workload.sampling.as_ref().map(sampling).transpose()?.unwrap_or_default(),
        listen,
        credentials_dir: home.identity(),
        endpoint_file: home.endpoint(),
    })
}

/// The files as the store knows them.
pub(crate) fn files(workload: &WorkloadSpec) -> Result<Vec<tandem_sources::ResolvedFile>, NotASha256> {
    let known = |file: &ResolvedFile| {
        let sha256: Sha256Hex = file.sha256.parse()?;
        Ok(tandem_sources::ResolvedFile { name: file.name.clone(), sha256, bytes: file.bytes })
    };
    workload.files.iter().map(known).collect()
}

fn sampling(given: &Sampling) -> Result<SamplingDefaults, UnusableWorkload> {
    let number = |name, value: &Option<String>| {
        let parse = |text: &String| {
            let bad = || UnusableWorkload::NotANumber { name, value: text.clone() };
            text.parse::<f32>().map_err(|_| bad())
        };
        value.as_ref().map(parse).transpose()
    };
    Ok(SamplingDefaults {
        temperature: number("temperature", &given.temperature)?,
        top_k: given.top_k,
        top_p: number("topP", &given.top_p)?,
        min_p: number("minP", &given.min_p)?,
        repetition_penalty: number("repetitionPenalty", &given.repetition_penalty)?,
    })
}

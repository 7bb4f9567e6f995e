//! How fast a copy would decode and how soon it would serve: ceilings and rates, never promises.

use serde::Serialize;
use tandem_crds::{Device, InferenceDeploymentSpec, InferenceHost};

use super::{ModelFacts, Need, Question};
use crate::catalogue::Catalogue;

/// A disk's rate where a host has not measured its own: what a plain NVMe drive reads.
const DISK_BYTES_PER_SECOND: u64 = 2_000_000_000;

/// Fewer bytes a token than this lie in caches, or wait for something else than memory: bandwidth says nothing of them.
const LEAST_ACTIVE_BYTES: u64 = 500_000_000;

/// Decoding of one stream, in tokens a second.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Speed {
    /// What decoding has reached of its ceiling elsewhere, with a full context.
    pub at_least: f64,
    /// The ceiling: the device's bandwidth over the weights that a token reads.
    pub at_most: f64,
    /// `estimated`, and from what.
    pub basis: String,
    /// What somebody measured of this quant on such a device, with which engine and who says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub measured: Option<String>,
}

/// Until a first copy serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Ready {
    /// Fetching all files at `downloadBytesPerSecond`; 0 for files that are there.
    pub download_seconds: u64,
    /// Reading the weights at `diskBytesPerSecond`.
    pub load_seconds: u64,
    /// As was asked.
    pub download_bytes_per_second: u64,
    /// As the host has measured, else taken for granted.
    pub disk_bytes_per_second: u64,
}

pub(super) fn of(
    facts: &ModelFacts,
    spec: &InferenceDeploymentSpec,
    need: &Need,
    device: &Device,
) -> Option<Speed> {
    if need.active_bytes_per_token < LEAST_ACTIVE_BYTES {
        return None;
    }
    let catalogue = Catalogue::built_in();
    let (bandwidth, source) = catalogue.bandwidth(device.kind, &device.name)?;
    let context = need.kv_bytes_per_token.saturating_mul(u64::from(spec.context.tokens));
    let ceiling = |bytes: u64| bandwidth as f64 / bytes.max(1) as f64;
    let full = need.active_bytes_per_token.saturating_add(context);
    let measured = facts
        .model_name()
        .and_then(|model| catalogue.measured(model, facts.quant(), device.kind, &device.name));
    let (share, share_source) = catalogue.share();
    Some(Speed {
        at_least: tenths(ceiling(full) * share),
        at_most: tenths(ceiling(need.active_bytes_per_token)),
        basis: format!(
            "estimated: at most the device's bandwidth ({source}) over the bytes that a token reads, at least {share} of that \
             with a full context ({share_source})"
        ),
        measured: measured.map(|measured| {
            format!(
                "{} tokens/s measured on {} with {} ({})",
                measured.decode, measured.device, measured.engine, measured.source
            )
        }),
    })
}

fn tenths(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

pub(super) fn ready(question: &Question<'_>, need: &Need, host: &InferenceHost) -> Ready {
    let weights = host.status.as_ref().and_then(|status| status.weights.as_ref());
    let disk =
        weights.and_then(|weights| weights.disk_bytes_per_second).unwrap_or(DISK_BYTES_PER_SECOND).max(1);
    let download = question.download_bytes_per_second.max(1);
    let is_here = question.spec.model.source.starts_with("file://");
    Ready {
        download_seconds: if is_here { 0 } else { need.file_bytes.div_ceil(download) },
        load_seconds: need.weights_bytes.div_ceil(disk),
        download_bytes_per_second: download,
        disk_bytes_per_second: disk,
    }
}

//! The tiny model and its manifest, as examples/ has them.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_yaml::Value;

use crate::Site;

/// The deployment of examples/tiny.yaml, as the CLI names it.
pub const DEPLOYMENT: &str = "infd/tiny-kimi";
/// What clients call its model.
pub const MODEL: &str = "tiny-kimi";
const FILE: &str = "tiny-kimi-Q4_K_M.gguf";

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("e2e lies in the workspace").join("examples")
}

/// The tiny model's file.
#[must_use]
pub fn model_file() -> PathBuf {
    examples().join("tiny-kimi").join(FILE)
}

/// examples/tiny.yaml with a copy of the model in the site's folder as its source, surviving `host_failures`.
///
/// # Errors
/// When the example can't be read.
pub fn manifest(site: &Site, host_failures: u64) -> Result<Value> {
    let folder = site.model_folder(&model_file(), FILE)?;
    let text =
        fs::read_to_string(examples().join("tiny.yaml")).context("examples/tiny.yaml can't be read")?;
    let mut manifest: Value = serde_yaml::from_str(&text).context("examples/tiny.yaml is no YAML")?;
    manifest["spec"]["model"]["source"] = format!("file://{}", folder.display()).into();
    manifest["spec"]["redundancy"]["hostFailures"] = host_failures.into();
    Ok(manifest)
}

/// Applies it and waits until all copies are ready.
///
/// # Errors
/// When the operator refuses, or the copies are not ready within two minutes.
pub fn deploy(site: &Site, host_failures: u64) -> Result<()> {
    site.apply(&serde_yaml::to_string(&manifest(site, host_failures)?)?)?;
    let condition = if host_failures == 0 { "Ready" } else { "Redundant" };
    site.wait_for(DEPLOYMENT, condition, Duration::from_secs(120))
}

//! Where tools are kept between runs, and where this workspace lies.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// `$TANDEM_CACHE`, else `tandem` in the user's cache folder. Deleting it costs time only.
pub(crate) fn dir() -> Result<PathBuf> {
    if let Some(dir) = env::var_os("TANDEM_CACHE") {
        return Ok(dir.into());
    }
    if let Some(dir) = env::var_os("XDG_CACHE_HOME") {
        return Ok(PathBuf::from(dir).join("tandem"));
    }
    let home =
        env::var_os("HOME").context("neither TANDEM_CACHE nor HOME is set: say where tools may be kept")?;
    let caches = if cfg!(target_os = "macos") { "Library/Caches" } else { ".cache" };
    Ok(PathBuf::from(home).join(caches).join("tandem"))
}

/// The folder with the workspace's Cargo.toml.
pub(crate) fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace")
}

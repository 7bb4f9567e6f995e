//! A bench of throughput means nothing in a debug build: this program builds itself and the others for release, and starts
//! itself again.

use std::env;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::cargo::cargo;

/// Where the bench is to run.
pub(crate) enum Release {
    /// Here: this is the release build.
    Here,
    /// Another process has run it.
    Ran,
}

/// Runs this command line in a release build, unless this is one. The bench starts other programs, too.
pub(crate) fn again() -> Result<Release> {
    build(&["--workspace", "--bins"])
}

/// The same for a bench that runs in this program alone.
pub(crate) fn alone() -> Result<Release> {
    build(&["--package", "xtask"])
}

/// The same for a bench that starts one program of this package beside itself.
pub(crate) fn with(package: &str) -> Result<Release> {
    build(&["--package", "xtask", "--package", package, "--bins"])
}

fn build(what: &[&str]) -> Result<Release> {
    if !cfg!(debug_assertions) {
        return Ok(Release::Here);
    }
    let mut build = cargo();
    build.args(["build", "--release", "--quiet"]).args(what);
    eprintln!("▸ Building for release; the first time takes some minutes");
    ensure!(build.status().context("cargo can't be started")?.success(), "the release build failed");
    let own = env::current_exe()?;
    let profiles =
        own.parent().and_then(|dir| dir.parent()).context("this program is in no target folder")?;
    let status = Command::new(profiles.join("release/xtask")).args(env::args_os().skip(1)).status();
    ensure!(status.context("the release build can't be started")?.success(), "the bench failed");
    Ok(Release::Ran)
}

//! The programs that a site is made of: built, and where they are.

use std::io::IsTerminal;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use crate::cargo::cargo;

/// Builds what the site starts. Cargo's own progress goes to a terminal.
pub(crate) fn build() -> Result<()> {
    let mut command = cargo();
    command.args(["build", "--workspace", "--bins"]);
    if !std::io::stderr().is_terminal() {
        command.arg("--quiet");
    }
    let status = command.status().context("cargo can't be started")?;
    if !status.success() {
        bail!("the programs could not be built");
    }
    Ok(())
}

/// Where Cargo put this very program, and with it the others.
pub(crate) fn dir() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    Ok(own.parent().context("this program is in no folder")?.to_owned())
}

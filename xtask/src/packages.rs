//! Packages of the system, named up front and installed where that is allowed.

use std::env;

use anyhow::Result;
use tandem_servers::packages;

use crate::steps::Outcome;

/// Set to anything: nothing is installed.
const KEEP: &str = "TANDEM_NO_INSTALL";

/// As a step: what is missing is named before anything else takes time.
pub(crate) fn step() -> Result<Outcome> {
    if !cfg!(target_os = "linux") {
        return Ok(Outcome::Skipped("clusters of real nodes run on Linux only".to_owned()));
    }
    let missing = packages::missing();
    if missing.is_empty() {
        return Ok(Outcome::Passed);
    }
    let names = missing.join(" ");
    if !packages::may_install() || env::var_os(KEEP).is_some() {
        return Ok(Outcome::Skipped(format!(
            "for clusters of real nodes, install these as root: apt-get install {names}"
        )));
    }
    eprintln!("installing {names} (with {KEEP}=1 nothing is installed)");
    // Without a network the rest can be run still; the step that wants them is skipped by name.
    Ok(match packages::install(&missing) {
        Ok(()) => Outcome::Passed,
        Err(error) => Outcome::Skipped(format!("{error:#}")),
    })
}

//! Cargo, as a person would start it in the workspace.

use std::env;
use std::ffi::OsStr;
use std::process::Command;

use crate::cache;

/// What Cargo tells a program that it runs, this one among them. Handed on, it looks to build scripts that ask for it (ring's
/// does) like a change, and most of the workspace would be built anew each time.
const OF_THIS_PACKAGE: [&str; 4] = ["CARGO_MANIFEST_", "CARGO_PKG_", "CARGO_BIN_", "CARGO_CRATE_"];

/// Cargo itself.
pub(crate) fn cargo() -> Command {
    command(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// A program that starts Cargo.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.current_dir(cache::workspace());
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(|name| OF_THIS_PACKAGE.iter().any(|prefix| name.starts_with(prefix))) {
            command.env_remove(name);
        }
    }
    command
}

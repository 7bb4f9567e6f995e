//! Programs from Cargo's registry, pinned, each built into the cache on first use.

use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};

use crate::cache;
use crate::cargo::cargo;

/// One program, and the version that its settings in this workspace are written for.
pub(crate) struct Installed {
    name: &'static str,
    version: &'static str,
    /// Further arguments of `cargo install`.
    arguments: &'static [&'static str],
}

/// What deny.toml is written for.
pub(crate) const CARGO_DENY: Installed = Installed { name: "cargo-deny", version: "0.20.2", arguments: &[] };

/// What .config/nextest.toml is written for; without what would let it replace itself.
pub(crate) const CARGO_NEXTEST: Installed = Installed {
    name: "cargo-nextest",
    version: "0.9.151",
    arguments: &["--no-default-features", "--features", "default-no-update"],
};

impl Installed {
    /// Where it is, after building it if need be.
    pub(crate) fn path(&self) -> Result<PathBuf> {
        let Self { name, version, arguments } = self;
        let root = cache::dir()?.join(format!("{name}-{version}"));
        let program = root.join("bin").join(name);
        if program.is_file() {
            return Ok(program);
        }
        eprintln!("building {name} {version} into {} (some minutes, once)", root.display());
        let status = cargo()
            .args(["install", name, "--locked", "--quiet", "--version", version, "--root"])
            .arg(&root)
            .args(*arguments)
            // Built once and run for seconds: their own profiles optimise at length, across crates.
            .envs([
                ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "0"),
                ("CARGO_PROFILE_RELEASE_LTO", "off"),
                ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16"),
                ("CARGO_PROFILE_RELEASE_DEBUG", "0"),
            ])
            .env_remove("CARGO_TARGET_DIR")
            .stdin(Stdio::null())
            .status()
            .context("cargo could not be started")?;
        ensure!(status.success(), "{name} {version} could not be built");
        Ok(program)
    }
}

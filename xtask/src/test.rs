//! `cargo xtask test`: every check in the order in which a mistake is cheapest to find.

use std::env;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use clap::Args;

use crate::steps::{Outcome, Steps, run};
use crate::{cache, demo, e2e, packages, sdk, tools};

/// The scripted worker, and the tests that need it. Programs are built with it too, so that nothing is built twice.
const FEATURES: [&str; 2] = ["--features", "inference-worker/scripted"];

/// The version of cargo-deny that deny.toml is written for.
const CARGO_DENY: &str = "0.20.2";

#[derive(Args)]
pub(crate) struct Options {
    /// Leave out what takes minutes: the cluster, the demo, and the Python SDK against real servers.
    #[arg(long)]
    quick: bool,
}

pub(crate) fn all(options: &Options) -> Result<()> {
    let mut steps = Steps::default();
    steps.step("system packages", packages::step)?;
    steps.step("format", || run(cargo().args(["fmt", "--all", "--check"])))?;
    steps.step("lints", || {
        let clippy = ["clippy", "--workspace", "--all-targets", "--quiet"];
        run(cargo().args(clippy).args(FEATURES).args(["--", "-D", "warnings"]))
    })?;
    steps.step("licences, bans and sources", deny)?;
    steps.step("test servers", tools::step)?;
    // The programs first: end-to-end tests start them, and Cargo builds no other package's programs for a test.
    steps.step("programs", || {
        run(cargo().args(["build", "--workspace", "--bins", "--quiet"]).args(FEATURES))
    })?;
    steps.step("tests", || run(cargo().args(["test", "--workspace", "--quiet"]).args(FEATURES)))?;
    if options.quick {
        steps.step("cluster", || Ok(Outcome::Skipped("--quick".to_owned())))?;
        steps.step("OpenAI SDK", || Ok(Outcome::Skipped("--quick".to_owned())))?;
        steps.step("demo", || Ok(Outcome::Skipped("--quick".to_owned())))?;
    } else {
        let scenarios = ["node-death", "uninstall"].map(str::to_owned);
        steps.step("cluster", || e2e::step(&scenarios, false))?;
        steps.step("OpenAI SDK", sdk::run)?;
        steps.step("demo", || demo::run(&demo::Options::for_test()).map(|()| Outcome::Passed))?;
    }
    steps.finish();
    Ok(())
}

fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(cache::workspace());
    command
}

/// Without the advisory database, which needs the network: that is `cargo deny check advisories`, by hand or by schedule.
fn deny() -> Result<Outcome> {
    let program = cargo_deny()?;
    run(Command::new(program).current_dir(cache::workspace()).args([
        "--locked",
        "check",
        "--hide-inclusion-graph",
        "bans",
        "licenses",
        "sources",
    ]))
}

/// The pinned cargo-deny, built into the cache on first use.
fn cargo_deny() -> Result<PathBuf> {
    let root = cache::dir()?.join(format!("cargo-deny-{CARGO_DENY}"));
    let program = root.join("bin/cargo-deny");
    if program.is_file() {
        return Ok(program);
    }
    eprintln!("building cargo-deny {CARGO_DENY} into {} (some minutes, once)", root.display());
    let status = cargo()
        .args(["install", "cargo-deny", "--locked", "--quiet", "--version", CARGO_DENY, "--root"])
        .arg(&root)
        .env_remove("CARGO_TARGET_DIR")
        .stdin(Stdio::null())
        .status()
        .context("cargo could not be started")?;
    anyhow::ensure!(status.success(), "cargo-deny {CARGO_DENY} could not be built");
    Ok(program)
}

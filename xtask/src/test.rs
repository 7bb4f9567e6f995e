//! `cargo xtask test`: every check in the order in which a mistake is cheapest to find.

use std::fs;
use std::thread;

use anyhow::{Context, Result};
use clap::Args;

use crate::cargo::{cargo, command};
use crate::installed::{CARGO_DENY, CARGO_NEXTEST};
use crate::steps::{Outcome, Steps, run};
use crate::tools::Ahead;
use crate::{cache, demo, e2e, packages, sdk, tools};

/// The scripted worker, and the tests that need it. Programs are built with it too, so that nothing is built twice.
const FEATURES: [&str; 2] = ["--features", "inference-worker/scripted"];

/// Tests at once, for each core: half of the time of most is waiting for servers.
const TESTS_PER_CORE: usize = 2;

#[derive(Args)]
pub(crate) struct Options {
    /// Leave out what takes minutes: the cluster, the demo, and the Python SDK against real servers.
    #[arg(long)]
    quick: bool,
}

pub(crate) fn all(options: &Options) -> Result<()> {
    let mut steps = Steps::default();
    steps.step("system packages", packages::step)?;
    let ahead = Ahead::begin()?;
    steps.step("format", || run(cargo().args(["fmt", "--all", "--check"])))?;
    steps.step("lints", || {
        let clippy = ["clippy", "--workspace", "--all-targets", "--quiet"];
        run(cargo().args(clippy).args(FEATURES).args(["--", "-D", "warnings"]))
    })?;
    steps.step("licences, bans and sources", deny)?;
    steps.step("test servers", || {
        let outcome = tools::step();
        ahead.finish().and(outcome)
    })?;
    // Together, so that both rest on the same libraries. The programs by name: end-to-end tests start them, and Cargo builds no
    // other package's programs for a test.
    steps.step("programs and tests", || {
        run(cargo().args(["build", "--workspace", "--bins", "--tests", "--quiet"]).args(FEATURES))
    })?;
    steps.step("tests", tests)?;
    steps.step("examples in documentation", || {
        run(cargo().args(["test", "--workspace", "--doc", "--quiet"]).args(FEATURES))
    })?;
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

/// Every test but those in documentation, which nextest doesn't run.
fn tests() -> Result<Outcome> {
    let at_once = thread::available_parallelism().map_or(1, usize::from) * TESTS_PER_CORE;
    run(command(CARGO_NEXTEST.path()?)
        .args(["nextest", "run", "--workspace", "--cargo-quiet"])
        .args(FEATURES)
        .args(["--test-threads", &at_once.to_string()]))?;
    let report = cache::workspace().join("target/nextest/default/junit.xml");
    let report =
        fs::read_to_string(&report).with_context(|| format!("{} can't be read", report.display()))?;
    let skipped = skipped(&report);
    Ok(if skipped.is_empty() { Outcome::Passed } else { Outcome::Partly(skipped) })
}

/// Tests that say `skipped: REASON`, and ended well: `NAME (REASON)`.
fn skipped(report: &str) -> Vec<String> {
    let mut skipped = Vec::new();
    let mut test = "";
    for line in report.lines() {
        if let Some((_, rest)) = line.split_once("<testcase name=\"") {
            test = rest.split('"').next().unwrap_or_default();
        }
        if let Some((_, why)) = line.split_once("skipped: ") {
            skipped.push(format!("{test}: {}", why.split("</").next().unwrap_or_default()));
        }
    }
    skipped
}

/// Without the advisory database, which needs the network: that is `cargo deny check advisories`, by hand or by schedule.
fn deny() -> Result<Outcome> {
    run(command(CARGO_DENY.path()?).args([
        "--locked",
        "check",
        "--hide-inclusion-graph",
        "bans",
        "licenses",
        "sources",
    ]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_that_says_that_it_was_skipped_is_named() {
        let report = "<testcase name=\"a_disk_stalls\" classname=\"x\">\n<system-err>running 1 test\nskipped: not root\n</system-err>\n\
             <testcase name=\"another\"><system-err>skipped: no tmpfs (EPERM)</system-err></testcase>\n<testcase name=\"fine\"/>";
        assert_eq!(skipped(report), ["a_disk_stalls: not root", "another: no tmpfs (EPERM)"]);
    }
}

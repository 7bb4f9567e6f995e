//! `cargo xtask`: everything a developer or a curious person runs, each doing its own set-up.

mod bench;
mod cache;
mod cargo;
mod crds;
mod demo;
mod e2e;
mod installed;
mod manifests;
mod packages;
mod programs;
mod sdk;
mod steps;
mod test;
mod tools;

use std::env;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use tandem_servers::Minor;
use tandem_servers::tools::MINOR;

/// Build, test and show Tandem.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    /// Which minor of Kubernetes tests run against: `1.N`, `oldest` or `newest` [default: $TANDEM_KUBERNETES, else the newest].
    #[arg(long, value_name = "MINOR", global = true)]
    kubernetes: Option<String>,
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Start an operator, three hosts and two gateways on this machine, kill the host that serves a stream, and watch it go on.
    Demo(demo::Options),
    /// Run every check: format, lints, licences, unit and integration tests with real processes, the demo.
    Test(test::Options),
    /// Measure what the documents claim.
    #[command(subcommand)]
    Bench(bench::Bench),
    /// Hold the official OpenAI SDK for Python against `inference-worker serve` and a gateway; a step of `test`.
    Sdk,
    /// Build the servers that tests run against, from the Go modules in e2e/tools, into the cache.
    Tools(tools::Options),
    /// Install the chart on a real cluster of two nodes, in namespaces of this machine, and kill a node in mid-stream.
    E2e(e2e::Options),
    /// Write the chart as plain YAML into charts/plain, and as a base for kustomize into charts/kustomize.
    Manifests,
    /// Write the CustomResourceDefinitions in crds/ from the Rust types.
    Crds,
}

fn main() -> ExitCode {
    let Arguments { kubernetes, task } = Arguments::parse();
    match kubernetes.map_or(Ok(()), |minor| choose(&minor)).and_then(|()| run(&task)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Tests are processes of their own and learn of the minor from their environment. This process has the one that it was started with,
/// so it starts itself once more with the right one.
fn choose(minor: &str) -> Result<()> {
    let minor = Minor::named(minor)?.to_string();
    if env::var(MINOR).is_ok_and(|chosen| chosen == minor) {
        return Ok(());
    }
    let program = env::current_exe().context("this program's own path is unknown")?;
    let error = Command::new(program).args(env::args_os().skip(1)).env(MINOR, minor).exec();
    Err(error).context("this program can't be started again")
}

fn run(task: &Task) -> Result<()> {
    match task {
        Task::Demo(options) => demo::run(options),
        Task::Test(options) => test::all(options),
        Task::Bench(bench) => bench::run(bench),
        Task::Sdk => steps::alone("OpenAI SDK", || {
            programs::build()?;
            sdk::run()
        }),
        Task::Tools(options) => tools::build(options),
        Task::E2e(options) => e2e::run(options),
        Task::Manifests => manifests::write(),
        Task::Crds => crds::write(),
    }
}

//! `cargo xtask`: everything a developer or a curious person runs, each doing its own set-up.

mod bench;
mod cache;
mod crds;
mod demo;
mod e2e;
mod manifests;
mod programs;
mod sdk;
mod steps;
mod test;
mod tools;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Build, test and show Tandem.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
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
    match run(&Arguments::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
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

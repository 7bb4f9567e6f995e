//! `tandem-agent run` obeys an operator; `tandem-agent runner` holds the workers.

use std::io::IsTerminal;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand, ValueEnum};
use tandem_agent::RunArgs;
use tandem_agent::runner::{self, RunnerArgs};
use tracing_subscriber::EnvFilter;

/// Makes this machine a host of a Tandem cluster.
#[derive(Debug, Parser)]
#[command(name = "tandem-agent", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// How log lines on standard error look. RUST_LOG says which there are
    #[arg(long, global = true, value_enum, default_value = "text")]
    log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    /// For people
    Text,
    /// One object a line
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Join a cluster and run what its operators place here
    Run(Box<RunArgs>),
    /// Hold the workers of an agent. The agent starts this itself
    Runner(RunnerArgs),
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    log_to_stderr(cli.log_format);
    tandem_pki::install_tls_provider();
    match run(cli.command).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tandem-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command) -> Result<()> {
    match command {
        Command::Run(args) => tandem_agent::run(*args).await,
        Command::Runner(args) => runner::run(&args).await,
    }
}

fn log_to_stderr(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().init(),
    }
}

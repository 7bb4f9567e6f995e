//! Runs one model: under an agent, alone behind an OpenAI API, or only as far as its headers.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use inference_worker::replica::{self, ReplicaArgs};
use inference_worker::serve::{self, ServeArgs};
use inference_worker::standalone::{ModelArgs, describe};
use inference_worker::tokenize::{self, TokenizeArgs};
use inference_worker::warm::{self, WarmArgs};
use tandem_worker_api::WorkerExit;
use tokio::runtime::{Builder, Runtime};
use tracing_subscriber::EnvFilter;

/// Runs one large language model from GGUF files.
#[derive(Debug, Parser)]
#[command(name = "inference-worker", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// How log lines on standard error look. RUST_LOG says which there are, such as `debug` or `tandem_engine=trace`
    #[arg(long, global = true, value_enum, default_value = "text")]
    log_format: LogFormat,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LogFormat {
    /// For people
    Text,
    /// One object a line
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve one replica to gateways, as an agent says in a spec
    ///
    /// Exit codes: 0 told to stop and drained; 1 an error that a restart may cure; 2 the spec or the command line can't be
    /// used; 3 weights missing, wrong, or of no model this worker can run; 4 the memory plan does not fit this machine;
    /// 5 the decode thread panicked.
    Replica(ReplicaArgs),
    /// Keep a replica's weights in memory and serve nobody, so that a replica starts soon
    ///
    /// Exit codes as of `replica`.
    Warm(WarmArgs),
    /// Serve a model alone, with an OpenAI API on HTTP
    Serve(ServeArgs),
    /// Say how much memory a model takes, from its headers
    Plan(ModelArgs),
    /// Show the tokens of a text
    Tokenize(TokenizeArgs),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    log_to_stderr(cli.log_format);
    tandem_pki::install_tls_provider();
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err((exit, error)) => {
            eprintln!("inference-worker: {error:#}");
            ExitCode::from(exit.code())
        }
    }
}

fn run(command: Command) -> Result<(), (WorkerExit, anyhow::Error)> {
    match command {
        Command::Replica(args) => {
            let runtime = runtime()?;
            let outcome = runtime.block_on(replica::run(&args));
            end(runtime);
            outcome.map_err(|error| (error.exit(), error.into()))
        }
        Command::Warm(args) => {
            let runtime = runtime()?;
            let outcome = runtime.block_on(warm::run(&args));
            end(runtime);
            outcome.map_err(|error| (error.exit(), error.into()))
        }
        Command::Serve(args) => {
            let runtime = runtime()?;
            let outcome = runtime.block_on(serve::run(&args));
            end(runtime);
            outcome.map_err(failed)
        }
        Command::Plan(args) => {
            let opened = args.open().map_err(|error| (error.exit(), error.into()))?;
            if let Some(name) = &opened.name {
                println!("{name}");
            }
            print!("{}", describe(&opened));
            Ok(())
        }
        Command::Tokenize(args) => {
            println!("{}", tokenize::run(&args).map_err(failed)?);
            Ok(())
        }
    }
}

fn failed(error: impl Into<anyhow::Error>) -> (WorkerExit, anyhow::Error) {
    (WorkerExit::Failed, error.into())
}

fn runtime() -> Result<Runtime, (WorkerExit, anyhow::Error)> {
    // The cores belong to the model; what is done here is little.
    Builder::new_multi_thread().worker_threads(2).enable_all().build().map_err(failed)
}

/// A prompt that is being tokenised must not hold up the end.
fn end(runtime: Runtime) {
    runtime.shutdown_timeout(Duration::from_millis(100));
}

fn log_to_stderr(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => log.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => log.json().init(),
    }
}

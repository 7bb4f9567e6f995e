//! A worker over a model of a few lines: the same service, ports, certificates and signals as a real one, with output
//! that depends on every row of KV, and times as they are asked for. For tests of whoever talks to workers.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use inference_worker::loading::LoadError;
use inference_worker::replica::{Port, ReplicaError, end_of_stdin, read_spec};
use inference_worker::scripted::load;
use inference_worker::worker::{Settings, Worker};
use tandem_engine::scheduler::scripted::{Pace, Script};
use tandem_worker_api::WorkerSpec;

/// Serves a scripted model as an agent's spec says; the weights in it are not looked at.
#[derive(Debug, Parser)]
#[command(name = "scripted-worker", version)]
struct Args {
    /// The same JSON that `inference-worker replica` reads
    #[arg(long, value_name = "FILE")]
    spec: PathBuf,
    /// Time of a step
    #[arg(long, value_name = "MS", default_value_t = 0.0)]
    token_ms: f64,
    /// Rows of prompts in a second; 0 is no limit
    #[arg(long, value_name = "N", default_value_t = 0.0)]
    prefill_tokens_per_s: f64,
    /// Two workers that differ in this say different things
    #[arg(long, default_value_t = 0)]
    divergence: u64,
    /// A KV position whose row is lost: what a test must notice
    #[arg(long, value_name = "POSITION")]
    zeroed_row: Option<u32>,
    /// A token after which the logits are NaN
    #[arg(long, value_name = "ID")]
    poison: Option<u32>,
    /// A token at which the model panics
    #[arg(long, value_name = "ID")]
    crash: Option<u32>,
    /// Drain at once and end when standard input ends
    #[arg(long)]
    exit_with_stdin: bool,
    /// How long attempts may go on after SIGTERM
    #[arg(long, value_name = "SECONDS", default_value_t = 20)]
    drain_seconds: u64,
    /// How long an attempt goes on when nobody listens to it
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    grace_seconds: u64,
}

fn main() -> ExitCode {
    let args = Args::parse();
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_max_level(tracing::Level::INFO).init();
    tandem_pki::install_tls_provider();
    match serve(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let exit = error.exit();
            eprintln!("scripted-worker: {:#}", anyhow::Error::from(error));
            ExitCode::from(exit.code())
        }
    }
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn serve(args: &Args) -> Result<(), ReplicaError> {
    let spec = read_spec(&args.spec)?;
    let script = script(args, &spec);
    let settings = Settings::of(&spec, Duration::from_secs(args.grace_seconds));
    let port = Port::open(&spec.credentials_dir, spec.listen).await?;
    let (worker, ended) = Worker::start(settings, move |_| Ok::<_, LoadError>(load(script)))?;
    let stdin = args.exit_with_stdin.then(end_of_stdin).transpose().map_err(ReplicaError::Process)?;
    port.serve(worker, ended, &spec.endpoint_file, Duration::from_secs(args.drain_seconds), stdin).await
}

fn script(args: &Args, spec: &WorkerSpec) -> Script {
    let base = Script::default();
    let per_row = if args.prefill_tokens_per_s > 0.0 { 1.0 / args.prefill_tokens_per_s } else { 0.0 };
    Script {
        context: spec.context_tokens.get(),
        pages: spec.pool_tokens.get().div_ceil(base.tokens_per_page),
        sequences: spec.max_sequences.get(),
        batch_rows: 256,
        divergence: args.divergence,
        poison: args.poison,
        crash: args.crash,
        zeroed_row: args.zeroed_row,
        pace: Pace {
            per_step: Duration::from_secs_f64(args.token_ms.clamp(0.0, 1e6) / 1000.0),
            per_row: Duration::from_secs_f64(per_row.min(1e3)),
        },
        ..base
    }
}

//! `tandem-operator`: the control plane's process.

mod store_flags;

use std::io::{IsTerminal as _, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand, ValueEnum};
use tandem_operator::{Settings, SourceSettings, Timing};
use tandem_traces::{TraceFlags, Traces};
use tracing_subscriber::EnvFilter;

/// The control plane of Tandem: keeps what was asked for running on the hosts that there are.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run an operator until it is told to end.
    Run(Box<Run>),
    /// Write everything that the store keeps into a file: objects, members, secrets and the authority with its key.
    ///
    /// An embedded store must not be in use: `tandem backup` asks the operator that uses it. In Kubernetes, back up the cluster.
    Backup(Kept),
    /// Put a backup into an empty store: an embedded one, or one in etcd, whichever it was made of.
    Restore(Kept),
}

#[derive(Args)]
struct Kept {
    /// The backup. It holds the cluster's private keys: keep it where only you read.
    file: PathBuf,
    /// Folder of an embedded store.
    #[arg(long, env = "TANDEM_OPERATOR_DATA_DIR")]
    data_dir: Option<PathBuf>,
    #[command(flatten)]
    store: store_flags::StoreFlags,
}

/// Largest backup that is read.
const LARGEST_BACKUP: u64 = 1 << 30;

impl Kept {
    async fn backup(self) -> anyhow::Result<()> {
        let bytes = tandem_operator::backup(&self.store.settings()?, self.data_dir.as_deref()).await?;
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&self.file)
            .with_context(|| format!("{}: choose a name that is not there yet", self.file.display()))?;
        file.write_all(&bytes)
            .and_then(|()| file.sync_all())
            .with_context(|| self.file.display().to_string())?;
        println!(
            "{} written: {} bytes. Whoever reads it can be anybody in the cluster.",
            self.file.display(),
            bytes.len()
        );
        Ok(())
    }

    async fn restore(self) -> anyhow::Result<()> {
        let path = self.file.display().to_string();
        let size = std::fs::metadata(&self.file).with_context(|| format!("{path} can't be read"))?.len();
        anyhow::ensure!(size <= LARGEST_BACKUP, "{path} has {size} bytes: no backup is that large");
        let bytes = std::fs::read(&self.file).with_context(|| format!("{path} can't be read"))?;
        let said = tandem_operator::restore(&self.store.settings()?, self.data_dir.as_deref(), &bytes)
            .await
            .with_context(|| format!("{path} can't be restored"))?;
        println!("restored {said}. Start the operators; hosts and gateways find them again.");
        Ok(())
    }
}

fn kept(work: impl Future<Output = anyhow::Result<()>>) -> ExitCode {
    tandem_pki::install_tls_provider();
    let ended = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime.block_on(work),
        Err(error) => Err(error.into()),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

#[derive(Args)]
struct Run {
    /// Folder of the store and of the first admin's credentials; made on the first start. Not needed in Kubernetes.
    #[arg(long, env = "TANDEM_OPERATOR_DATA_DIR")]
    data_dir: Option<PathBuf>,
    #[command(flatten)]
    store: store_flags::StoreFlags,
    /// What this operator is called among the operators of a cluster, such as its pod's name.
    #[arg(long, env = "POD_NAME", value_name = "NAME")]
    name: Option<String>,
    /// Where the other operators of a cluster reach this one [default: the first advertised address].
    #[arg(long, env = "TANDEM_OPERATOR_PEER_URL", value_name = "URL")]
    peer_url: Option<String>,
    /// Where to listen for agents, gateways and the CLI.
    #[arg(long, env = "TANDEM_OPERATOR_LISTEN", default_value = "0.0.0.0:7443")]
    listen: SocketAddr,
    /// Serve figures for Prometheus at /metrics and probes at /livez and /readyz here, without TLS [default: off]
    #[arg(long, value_name = "ADDRESS:PORT", env = "TANDEM_METRICS_LISTEN")]
    metrics_listen: Option<SocketAddr>,
    /// IP address or DNS name at which others reach this operator; repeat it for several. The first one is written into
    /// DATA-DIR/admin/tandem.yaml.
    #[arg(long, env = "TANDEM_OPERATOR_ADVERTISE", value_delimiter = ',')]
    advertise: Vec<String>,
    /// Prefix of sources that models may come from, such as `hf://unsloth/`; repeat it for several. Without it, all may.
    #[arg(
        long = "allow-source",
        env = "TANDEM_OPERATOR_ALLOW_SOURCE",
        value_name = "PREFIX",
        value_delimiter = ','
    )]
    allow_sources: Vec<String>,
    /// Where to fetch from instead, as FROM=TO, such as `hf://=https://hub.example.com/`; repeat it for several, in the order to
    /// try. Hosts do the same.
    #[arg(long = "mirror", env = "TANDEM_OPERATOR_MIRROR", value_name = "FROM=TO", value_delimiter = ',')]
    mirrors: Vec<String>,
    /// A mirror of the hub: the same as `--mirror hf://=URL`, after those that are given.
    #[arg(long, env = "HF_ENDPOINT", value_name = "URL")]
    hf_endpoint: Option<String>,
    /// An S3 store of your own, as https://host/, for s3:// sources. Hosts use it, too.
    #[arg(long, env = "TANDEM_OPERATOR_S3_ENDPOINT", value_name = "URL")]
    s3_endpoint: Option<String>,
    /// Region of S3 stores [default: us-east-1].
    #[arg(long, env = "TANDEM_OPERATOR_S3_REGION", value_name = "REGION")]
    s3_region: Option<String>,
    /// File of authorities to trust beside the system's when models are fetched, as PEM. Hosts do the same.
    #[arg(long, env = "TANDEM_OPERATOR_EXTRA_CA", value_name = "FILE")]
    extra_ca: Option<PathBuf>,
    /// How long each phase of `tandem authority rotate` lasts after its slowest host or gateway, in seconds.
    ///
    /// In this time workers, other operators and gateways that are just connecting notice what was written for them. Raise it where
    /// clocks stop or networks are cut for longer; lower it to try things out, with several operators not below 10.
    #[arg(
        long,
        env = "TANDEM_OPERATOR_AUTHORITY_SETTLE_SECONDS",
        value_name = "SECONDS",
        default_value_t = Timing::default().settle.as_secs(),
        value_parser = clap::value_parser!(u64).range(3..=3600),
        hide_short_help = true
    )]
    authority_settle_seconds: u64,
    #[command(flatten)]
    traces: TraceFlags,
    /// How log lines on standard error look. RUST_LOG says which there are.
    #[arg(long, value_enum, default_value = "text")]
    log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    /// For people
    Text,
    /// One object a line
    Json,
}

fn main() -> ExitCode {
    let run = match Cli::parse().command {
        Command::Run(run) => run,
        Command::Backup(backup) => return kept(backup.backup()),
        Command::Restore(restore) => return kept(restore.restore()),
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let colours = std::io::stderr().is_terminal();
    let log =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colours);
    match run.log_format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
    tandem_pki::install_tls_provider();
    tandem_pki::raise_open_files();

    if run.data_dir.is_none() && !run.store.is_kubernetes() {
        return fail(&anyhow::anyhow!(
            "give --data-dir: the store, or the first admin's credentials, lie there"
        ));
    }
    let service_accounts = run.store.service_accounts();
    let store = match run.store.settings() {
        Ok(store) => store,
        Err(error) => return fail(&error),
    };
    let instance = run.name.as_deref().unwrap_or("operator");
    // Ends last, and sends what is left.
    let collector = match run.traces.collector("tandem-operator", instance) {
        Ok(collector) => collector,
        Err(error) => return fail(&error.into()),
    };
    let mut mirrors = run.mirrors;
    mirrors.extend(run.hf_endpoint.map(|url| format!("hf://={}/", url.trim_end_matches('/'))));
    let settings = Settings {
        data_dir: run.data_dir,
        service_accounts,
        store,
        name: run.name,
        peer_url: run.peer_url,
        listen: run.listen,
        metrics_listen: run.metrics_listen,
        advertise: run.advertise,
        timing: Timing { settle: Duration::from_secs(run.authority_settle_seconds), ..Timing::default() },
        traces: Traces::to(collector.as_ref()),
        sources: SourceSettings {
            allowed: run.allow_sources,
            mirrors,
            s3_endpoint: run.s3_endpoint,
            s3_region: run.s3_region,
            extra_ca: run.extra_ca,
        },
    };
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error.into()),
    };
    let ended = runtime.block_on(async {
        let operator = tandem_operator::start(settings).await?;
        let shutdown = operator.shutdown_handle();
        tokio::spawn(async move {
            told_to_end().await;
            tracing::info!("told to end");
            shutdown.cancel();
        });
        operator.ended().await
    });
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("tandem-operator: {error:#}");
    ExitCode::FAILURE
}

async fn told_to_end() {
    use tokio::signal::unix::{SignalKind, signal};
    let listen = |kind| signal(kind).expect("these signals can be listened for");
    let (mut terminate, mut interrupt) = (listen(SignalKind::terminate()), listen(SignalKind::interrupt()));
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

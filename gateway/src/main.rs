//! The gateway's command line.

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::{Parser, ValueEnum};
use tandem_gateway::{
    Access, CertificateFiles, Fleet, Gateway, HealthBounds, Join, KeyGate, Operator, Policy, RoutesFile,
    Table, adopt, follow_routes, identity, keep_renewed, serve_metrics,
};
use tandem_openai::{Backend, Bounds, Entrance, Limits, router, serve};
use tandem_pki::{PodFiles, local_address_towards};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing_subscriber::EnvFilter;

/// How long cancels may take after the last client was let go.
const SETTLE: Duration = Duration::from_secs(2);

/// OpenAI's API in front of a cluster's workers. Keeps each stream going when its worker dies.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Args {
    /// An operator, https://HOST:PORT; repeat it for several
    #[arg(long, env = "TANDEM_OPERATOR", value_delimiter = ',', required = true)]
    operator: Vec<String>,
    /// File with the join token, for the first start
    #[arg(long, env = "TANDEM_JOIN_TOKEN_FILE")]
    join_token_file: Option<PathBuf>,
    /// The join token itself. Other users of this machine can read command lines: prefer the file or the variable
    #[arg(long, env = "TANDEM_JOIN_TOKEN", hide_env_values = true, conflicts_with = "join_token_file")]
    join_token: Option<String>,
    /// File with the token of this pod's service account, projected for the audience tandem-operator: instead of a join token
    #[arg(
        long,
        value_name = "FILE",
        env = "TANDEM_SERVICE_ACCOUNT_TOKEN_FILE",
        requires = "ca_file",
        conflicts_with_all = ["join_token", "join_token_file"]
    )]
    service_account_token_file: Option<PathBuf>,
    /// File with the cluster's authorities, as PEM, as the operator publishes them
    #[arg(long, value_name = "FILE", env = "TANDEM_CA_FILE", requires = "service_account_token_file")]
    ca_file: Option<PathBuf>,
    /// This gateway's name in the cluster, a DNS label
    #[arg(long, env = "TANDEM_GATEWAY_NAME")]
    name: String,
    /// Folder of credentials and of the last route table
    #[arg(long, env = "TANDEM_GATEWAY_DATA_DIR")]
    data_dir: PathBuf,
    /// Where clients are served: without TLS, unless --tls-cert and --tls-key are given
    #[arg(long, env = "TANDEM_GATEWAY_LISTEN", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// File with the certificate that clients see, and its chain, as PEM. It is read anew when it changes
    #[arg(long, value_name = "FILE", env = "TANDEM_GATEWAY_TLS_CERT", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// File with that certificate's private key, as PEM
    #[arg(long, value_name = "FILE", env = "TANDEM_GATEWAY_TLS_KEY", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Serve figures for Prometheus at /metrics, and /livez and /readyz, here [default: they are off]
    #[arg(long, value_name = "ADDRESS:PORT", env = "TANDEM_GATEWAY_METRICS_LISTEN")]
    metrics_listen: Option<SocketAddr>,
    /// Let in clients without an API key, to every model and without limits. On loopback they are let in anyway
    #[arg(long, env = "TANDEM_GATEWAY_UNAUTHENTICATED")]
    unauthenticated: bool,
    /// Where clients reach this gateway [default: http(s)://LISTEN, with the address towards the operator for 0.0.0.0]
    #[arg(long, env = "TANDEM_GATEWAY_ADVERTISE")]
    advertise: Option<String>,
    /// Seconds that one request may take in all
    #[arg(long, env = "TANDEM_REQUEST_SECONDS", default_value_t = 3600)]
    request_seconds: u64,
    /// Seconds that a request waits for a worker when none can take it
    #[arg(long, env = "TANDEM_WAIT_SECONDS", default_value_t = 30)]
    wait_seconds: u64,
    /// Seconds that streams may go on after SIGTERM
    #[arg(long, env = "TANDEM_GRACE_SECONDS", default_value_t = 30)]
    grace_seconds: u64,
    /// How log lines on standard error look. RUST_LOG says which there are
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
    let args = Args::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    match args.log_format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
    tandem_pki::install_tls_provider();
    tandem_pki::raise_open_files();
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tandem-gateway: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn run(args: Args) -> anyhow::Result<()> {
    let token = match &args.join_token_file {
        Some(path) => {
            Some(std::fs::read_to_string(path).with_context(|| format!("{}: no token", path.display()))?)
        }
        None => args.join_token,
    };
    let files = args.service_account_token_file.zip(args.ca_file);
    let pod = files.map(|(token, ca)| PodFiles { token, ca });
    let join = Join { operators: args.operator.clone(), token, pod, name: args.name };
    let dir = args.data_dir.join("identity");
    let credentials = Arc::new(watch::Sender::new(identity(&dir, &join).await?));

    let listener = TcpListener::bind(args.listen)
        .await
        .with_context(|| format!("can't listen on {}: choose another --listen", args.listen))?;
    let address = listener.local_addr()?;
    let files = args.tls_cert.zip(args.tls_key);
    let files = files.map(|(certificate, key)| CertificateFiles { certificate, key });
    let mut upkeep = JoinSet::new();
    let (entrance, scheme) = match files {
        None => (Entrance::from(listener), "http"),
        Some(files) => {
            let (newest, settings) = watch::channel(files.load()?);
            upkeep.spawn(files.keep_fresh(newest));
            (Entrance::with_tls(listener, settings), "https")
        }
    };

    let fleet = Fleet::new(credentials.subscribe(), HealthBounds::default());
    let access = Access::new(args.unauthenticated || address.ip().is_loopback());
    let file = RoutesFile::new(&args.data_dir);
    match file.load() {
        Ok(Some(table)) => {
            access.apply(&table.keys);
            fleet.apply(Table::parse(table));
        }
        Ok(None) => {}
        Err(error) => tracing::warn!("{:#}", anyhow::Error::from(error)),
    }
    let advertise = match args.advertise {
        Some(url) => url,
        None => format!("{scheme}://{}", reachable(address, &args.operator[0])),
    };
    let operator = Operator {
        urls: args.operator,
        credentials: credentials.clone(),
        identity: dir.clone(),
        advertise,
        issuer: Arc::default(),
    };
    upkeep.spawn(follow_routes(operator.clone(), fleet.clone(), access.clone(), file));
    upkeep.spawn(access.clone().keep_reporting(operator.clone()));
    upkeep.spawn(adopt(dir, credentials));
    upkeep.spawn(keep_renewed(operator.clone()));

    let policy = Policy {
        deadline: Duration::from_secs(args.request_seconds),
        replica: Duration::from_secs(args.wait_seconds),
        ..Policy::default()
    };
    let gateway = Arc::new(Gateway::new(fleet, policy));
    if let Some(listen) = args.metrics_listen {
        let address = serve_metrics(listen, gateway.clone(), access.clone()).await?;
        tracing::info!(%address, "serves figures");
    }
    let backend: Arc<dyn Backend> = gateway.clone();
    let limits = Limits { grace: Duration::from_secs(args.grace_seconds), ..Limits::default() };
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    if args.unauthenticated && !address.ip().is_loopback() {
        tracing::warn!("whoever reaches this gateway may use every model: clients without a key are let in");
    }
    tracing::info!(%address, scheme, "serving");
    let gate = Arc::new(KeyGate(access.clone()));
    serve(entrance, router(backend, gate, Bounds::default()), limits, async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("told to stop; streams may finish");
    })
    .await;
    upkeep.abort_all();
    gateway.settle(SETTLE).await;
    // What the last streams have used.
    if timeout(SETTLE, access.report(&operator)).await.is_err() {
        tracing::warn!("what keys have used in the last seconds was not counted: no operator answers");
    }
    Ok(())
}

/// Who listens everywhere is reached at the address that leads to the operator.
fn reachable(listening: SocketAddr, operator: &str) -> SocketAddr {
    if !listening.ip().is_unspecified() {
        return listening;
    }
    match local_address_towards(operator) {
        Ok(ip) => SocketAddr::new(ip, listening.port()),
        Err(error) => {
            tracing::warn!(%error, "can't tell at which address clients reach this gateway: give --advertise");
            listening
        }
    }
}

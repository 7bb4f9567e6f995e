//! A worker under an agent: told by a spec what to serve, heard on its own mTLS port, ended by a signal.

use std::fs;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use tandem_pki::{ClientCertificates, Credentials, CredentialsError, TlsError, incoming, kept_fresh};
use tandem_worker_api::worker_server::{Worker as WorkerRpc, WorkerServer};
use tandem_worker_api::{SpecError, WorkerEndpoint, WorkerExit, WorkerSpec};
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tonic::transport::Server;

use crate::loading::{LoadError, Opened, Purpose};
use crate::service::{Callers, service};
use crate::verified::{unchanged, verify, weights_digest};
use crate::worker::{Ended, Settings, Worker, WorkerFailure};

/// A connection is given up when its other end answers nothing for twice this.
const KEEPALIVE: Duration = Duration::from_secs(5);
/// Streams that are over have this long to be read to their end when the process ends.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// Streams on one connection.
const MAX_STREAMS: u32 = 4096;

/// Arguments of `inference-worker replica`.
#[derive(Debug, Args)]
pub struct ReplicaArgs {
    /// JSON file that says what to serve and where to listen
    #[arg(long, value_name = "FILE")]
    pub spec: PathBuf,
    /// Drain at once and end when standard input ends: whoever started this has died
    #[arg(long)]
    pub exit_with_stdin: bool,
    /// How long attempts may go on after SIGTERM, before they are told to continue elsewhere
    #[arg(long, value_name = "SECONDS", default_value_t = 20)]
    pub drain_seconds: u64,
    /// How long an attempt goes on when nobody listens to it
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    pub grace_seconds: u64,
}

/// Why a replica ended otherwise than it was told.
#[derive(Debug, Error)]
pub enum ReplicaError {
    /// The spec's file.
    #[error("the spec {path} can't be read")]
    SpecFile {
        /// Which.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The spec.
    #[error("the spec can't be used")]
    Spec(#[from] SpecError),
    /// Who it is.
    #[error("the credentials can't be used")]
    Credentials(#[from] CredentialsError),
    /// How it shows itself.
    #[error("the credentials can't be used")]
    Tls(#[from] TlsError),
    /// Where it listens.
    #[error("can't listen on {address}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// How others find it.
    #[error("the endpoint file {path} can't be written")]
    EndpointFile {
        /// Which.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The server.
    #[error("the server can't go on")]
    Server(#[from] tonic::transport::Error),
    /// The system.
    #[error("the process can't be set up")]
    Process(#[source] io::Error),
    /// What it computes.
    #[error(transparent)]
    Worker(#[from] WorkerFailure<LoadError>),
}

impl ReplicaError {
    /// The exit code's meaning.
    #[must_use]
    pub fn exit(&self) -> WorkerExit {
        match self {
            Self::SpecFile { .. } | Self::Spec(_) => WorkerExit::BadSpec,
            Self::Worker(WorkerFailure::Load(error)) => error.exit(),
            Self::Worker(WorkerFailure::Unusable(_)) => WorkerExit::BadSpec,
            Self::Worker(WorkerFailure::Decode(_)) => WorkerExit::Crashed,
            Self::Credentials(_)
            | Self::Tls(_)
            | Self::Listen { .. }
            | Self::EndpointFile { .. }
            | Self::Server(_)
            | Self::Process(_)
            | Self::Worker(WorkerFailure::Thread(_)) => WorkerExit::Failed,
        }
    }
}

/// Serves until told to stop.
///
/// # Errors
/// When it can't start, or can't go on.
pub async fn run(args: &ReplicaArgs) -> Result<(), ReplicaError> {
    let spec = read_spec(&args.spec)?;
    let settings = Settings::of(&spec, Duration::from_secs(args.grace_seconds));
    let (weights, purpose) = (spec.files.clone(), Purpose::of(&spec));
    let port = Port::open(&spec.credentials_dir, spec.listen).await?;
    let (worker, ended) = Worker::start(settings, move |load| {
        let verified = verify(&weights, load)?;
        let digest = weights_digest(&weights);
        let paths: Vec<PathBuf> = weights.into_iter().map(|file| file.path).collect();
        let loaded = Opened::files(&paths, &digest, &purpose)?.load(load)?;
        // What is mapped by now is what was verified.
        unchanged(&verified)?;
        Ok(loaded)
    })?;
    let stdin = args.exit_with_stdin.then(end_of_stdin).transpose().map_err(ReplicaError::Process)?;
    port.serve(worker, ended, &spec.endpoint_file, Duration::from_secs(args.drain_seconds), stdin).await
}

/// What the agent has written.
///
/// # Errors
/// When the file can't be read or used.
pub fn read_spec(path: &Path) -> Result<WorkerSpec, ReplicaError> {
    let json = fs::read(path).map_err(|source| ReplicaError::SpecFile { path: path.to_owned(), source })?;
    Ok(WorkerSpec::parse(&json)?)
}

/// A bound port with credentials, on which a worker is about to answer.
pub struct Port {
    listener: TcpListener,
    address: SocketAddr,
    credentials: watch::Receiver<Credentials>,
}

impl Port {
    /// Binds.
    ///
    /// # Errors
    /// When the credentials or the address can't be used.
    pub async fn open(credentials_dir: &Path, address: SocketAddr) -> Result<Self, ReplicaError> {
        // The agent renews them, and says there whom not to trust, while this process runs.
        let credentials = kept_fresh(credentials_dir.to_owned(), Credentials::load(credentials_dir)?);
        let listen = |source| ReplicaError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        Ok(Self { listener, address, credentials })
    }

    /// Answers for `worker` until a signal, the end of `stdin` or the worker's own end.
    ///
    /// # Errors
    /// When the worker or the server can't go on.
    pub async fn serve(
        self,
        worker: Arc<Worker>,
        ended: Ended<LoadError>,
        endpoint_file: &Path,
        drain: Duration,
        stdin: Option<oneshot::Receiver<()>>,
    ) -> Result<(), ReplicaError> {
        let mut terminate = signal(SignalKind::terminate()).map_err(ReplicaError::Process)?;
        let mut answering = self.answer(service(worker.clone(), Callers::Certified), endpoint_file)?;

        let mut phase = worker.phase();
        let log_phases = async {
            loop {
                tracing::info!(phase = ?*phase.borrow_and_update(), "worker");
                if phase.changed().await.is_err() {
                    return;
                }
            }
        };
        let stdin = async {
            match stdin {
                Some(end) => drop(end.await),
                None => std::future::pending().await,
            }
        };
        let result = tokio::select! {
            ended = ended => ended.unwrap_or(Ok(())).map_err(ReplicaError::from),
            () = stdin => {
                tracing::warn!("standard input has ended; draining at once");
                drain_for(&worker, Duration::ZERO).await;
                Ok(())
            }
            _ = terminate.recv() => {
                tracing::info!(?drain, "told to end; draining");
                drain_for(&worker, drain).await;
                Ok(())
            }
            _ = tokio::signal::ctrl_c() => {
                drain_for(&worker, Duration::ZERO).await;
                Ok(())
            }
            served = answering.ended() => served,
            () = log_phases => Ok(()),
        };
        worker.stop();
        answering.close().await;
        result
    }

    /// Begins to answer with `service`, and tells where.
    ///
    /// # Errors
    /// When the endpoint file can't be written or TLS not be set up.
    pub fn answer<S: WorkerRpc>(
        self,
        service: WorkerServer<S>,
        endpoint_file: &Path,
    ) -> Result<Answering, ReplicaError> {
        let (stop, stopped) = oneshot::channel::<()>();
        let callers = incoming(self.listener, self.credentials, ClientCertificates::Required)?;
        let server = Server::builder()
            .http2_keepalive_interval(Some(KEEPALIVE))
            .http2_keepalive_timeout(Some(KEEPALIVE))
            .max_concurrent_streams(MAX_STREAMS)
            .add_service(service)
            .serve_with_incoming_shutdown(callers, async { drop(stopped.await) });
        let server = tokio::spawn(server);
        write_endpoint(endpoint_file, self.address)
            .map_err(|source| ReplicaError::EndpointFile { path: endpoint_file.to_owned(), source })?;
        tracing::info!(address = %self.address, "listening");
        Ok(Answering { server, stop })
    }
}

/// A server that answers until it is closed.
pub struct Answering {
    server: JoinHandle<Result<(), tonic::transport::Error>>,
    stop: oneshot::Sender<()>,
}

impl Answering {
    /// Waits for its end, which nobody has asked for.
    ///
    /// # Errors
    /// When it could not go on.
    pub async fn ended(&mut self) -> Result<(), ReplicaError> {
        match (&mut self.server).await {
            Ok(served) => Ok(served?),
            Err(join) => Err(ReplicaError::Process(io::Error::other(join))),
        }
    }

    /// Takes no more calls, and lets what is said be heard to its end, for some time.
    pub async fn close(self) {
        drop(self.stop);
        if !self.server.is_finished() && tokio::time::timeout(LAST_WORDS, self.server).await.is_err() {
            tracing::info!("some connections were still open at the end");
        }
    }
}

async fn drain_for(worker: &Worker, deadline: Duration) {
    match worker.drain(deadline).await {
        Ok(moved) => tracing::info!(moved, "drained"),
        Err(error) => tracing::warn!(%error, "could not drain"),
    }
}

/// Resolves when standard input ends. A thread reads it, since a pending read would hold up the runtime's end.
///
/// # Errors
/// When the system has no thread for it.
pub fn end_of_stdin() -> io::Result<oneshot::Receiver<()>> {
    let (end, ended) = oneshot::channel();
    std::thread::Builder::new().name("stdin".to_owned()).spawn(move || {
        let mut ignored = [0; 256];
        while matches!(io::stdin().read(&mut ignored), Ok(read) if read > 0) {}
        drop(end);
    })?;
    Ok(ended)
}

/// Writes beside and renames: a reader sees all or nothing.
fn write_endpoint(path: &Path, address: SocketAddr) -> io::Result<()> {
    let endpoint = WorkerEndpoint { address, pid: std::process::id() };
    let beside = path.with_extension("new");
    let mut file = fs::File::create(&beside)?;
    file.write_all(&serde_json::to_vec(&endpoint)?)?;
    fs::rename(&beside, path)
}

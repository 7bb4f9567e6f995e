//! A worker that serves alone: the OpenAI HTTP API over the model in this process.

use std::io::{self, IsTerminal};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;
use futures::StreamExt;
use futures::stream;
use indicatif::{ProgressBar, ProgressStyle};
use tandem_openai::{Backend, Bounds, EventStream, Limits, Model, Open, Refusal, router, single_attempt};
use tandem_worker_api::{GenerateRequest, SamplingDefaults};
use thiserror::Error;
use tokio::net::TcpListener;

use crate::loading::LoadError;
use crate::standalone::{ModelArgs, describe};
use crate::worker::{Ended, Phase, Settings, Worker, WorkerFailure};

/// How often a progress bar moves.
const FRAME: Duration = Duration::from_millis(100);
/// Streams may go on for so long after Ctrl-C; a second one ends them.
const GRACE: Duration = Duration::from_secs(10);
/// When a client whose request met a loading model may try again.
const RETRY: Duration = Duration::from_secs(2);

/// Arguments of `inference-worker serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Address to listen on. There is no TLS and no password: other machines reach it when this is not loopback
    #[arg(long, default_value = "127.0.0.1")]
    host: IpAddr,
    /// Port to listen on; 0 takes a free one
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// Name that clients ask for [default: the model's own, or its file's]
    #[arg(long)]
    name: Option<String>,
}

/// Why a model is not served.
#[derive(Debug, Error)]
pub enum ServeError {
    /// Only a part of a model.
    #[error("--layers: a range is for a sharded replica, which is not supported yet; serve the whole model")]
    Layers,
    /// The port.
    #[error("can't listen on {address}; choose another --port")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// The model.
    #[error(transparent)]
    Model(#[from] LoadError),
    /// What it computes.
    #[error(transparent)]
    Worker(#[from] WorkerFailure<LoadError>),
    /// The decode thread.
    #[error("the worker ended while loading")]
    Gone,
}

/// Serves until Ctrl-C or SIGTERM.
///
/// # Errors
/// When the model can't be loaded, or the worker breaks.
pub async fn run(args: &ServeArgs) -> Result<(), ServeError> {
    if args.model.layers.is_some() {
        return Err(ServeError::Layers);
    }
    let address = SocketAddr::new(args.host, args.port);
    let listen = |source| ServeError::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(listen)?;
    let address = listener.local_addr().map_err(listen)?;

    let opened = args.model.open()?;
    let name = args.name.clone().or_else(|| opened.name.clone()).unwrap_or_else(|| stem(&args.model));
    eprint!("{name}\n{}", describe(&opened));
    let settings = Settings {
        models: vec![name.clone()],
        workload: String::new(),
        epoch: 0,
        sampling: SamplingDefaults::default(),
        max_sequences: args.model.max_sequences.get() as usize,
        // A client that went away is not coming back: there is nothing to attach with.
        grace: Duration::ZERO,
    };
    let (worker, mut ended) = Worker::start(settings, move |load| opened.load(load))?;
    show_loading(&worker).await;
    if *worker.phase().borrow() != Phase::Ready {
        return (&mut ended).await.unwrap_or(Ok(())).map_err(ServeError::from).and(Err(ServeError::Gone));
    }
    eprintln!("{name} answers on http://{address}/v1");
    serve(listener, &worker, ended).await
}

fn stem(args: &ModelArgs) -> String {
    args.model.file_stem().map_or_else(|| "model".to_owned(), |stem| stem.to_string_lossy().into_owned())
}

/// Returns when the worker has loaded, or failed.
async fn show_loading(worker: &Worker) {
    let mut phase = worker.phase();
    let bar = if io::stderr().is_terminal() { ProgressBar::new(0) } else { ProgressBar::hidden() };
    let style = ProgressStyle::with_template("loading {wide_bar} {binary_bytes}/{binary_total_bytes} {eta}");
    bar.set_style(style.expect("the template is well-formed"));
    let moving = async {
        let mut frames = tokio::time::interval(FRAME);
        loop {
            frames.tick().await;
            bar.set_length(worker.load().total.load(Ordering::Relaxed));
            bar.set_position(worker.load().done.load(Ordering::Relaxed));
        }
    };
    tokio::select! {
        // The worker is held, so that its phase can't be gone.
        _ = phase.wait_for(|phase| *phase != Phase::Loading) => {}
        () = moving => {}
    }
    bar.finish_and_clear();
}

async fn serve(
    listener: TcpListener,
    worker: &Arc<Worker>,
    ended: Ended<LoadError>,
) -> Result<(), ServeError> {
    let created = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let backend = Arc::new(InProcess { worker: worker.clone(), created });
    let mut outcome = Ok(());
    let end = async {
        tokio::select! {
            () = interrupted() => eprintln!("ending; streams may finish within {} s", GRACE.as_secs()),
            ended = ended => outcome = ended.unwrap_or(Ok(())),
        }
    };
    let limits = Limits { grace: GRACE, ..Limits::default() };
    tandem_openai::serve(listener, router(backend, Arc::new(Open), Bounds::default()), limits, end).await;
    worker.stop();
    Ok(outcome?)
}

async fn interrupted() {
    let terminate = async {
        match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
            Ok(mut terminate) => drop(terminate.recv().await),
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        () = terminate => {}
    }
}

/// The worker in this process, as the HTTP layer asks it.
struct InProcess {
    worker: Arc<Worker>,
    created: u64,
}

impl Backend for InProcess {
    fn models(&self) -> Vec<Model> {
        let model = |id: &String| Model {
            id: id.clone(),
            answers_to: id.clone(),
            created: self.created,
            owned_by: "inference-worker".to_owned(),
            context_tokens: self.worker.context_tokens(),
        };
        self.worker.models().iter().map(model).collect()
    }

    fn ready(&self) -> Result<(), Refusal> {
        let unavailable =
            |message: &str| Err(Refusal::Unavailable { message: message.to_owned(), retry_after: RETRY });
        match &*self.worker.phase().borrow() {
            Phase::Ready => Ok(()),
            Phase::Loading => unavailable("the model is still being loaded"),
            Phase::Draining | Phase::Stopped => unavailable("this worker is ending"),
            Phase::Failed(why) => unavailable(why),
        }
    }

    fn open(&self, request: GenerateRequest) -> EventStream {
        let worker = self.worker.clone();
        let asked = request.clone();
        let events = stream::once(async move { worker.generate(asked).await })
            .flatten()
            // Who falls behind hears no more, which the ledger takes for a broken worker.
            .filter_map(|event| async move { event.ok() });
        single_attempt(&request, events)
    }
}

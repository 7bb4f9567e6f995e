//! One worker, whoever talks to it: requests in, logs of attempts out, its state for all to see.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::stream::{self, Stream};
use tandem_engine::decode::DecodeModel;
use tandem_engine::scheduler::{Limits, Scheduler, Unusable};
use tandem_worker_api::{
    AttemptId, GenerateEvent, GenerateRequest, HealthReport, LoadProgress, PREFILL_ROWS, Rejected,
    SamplingDefaults, WorkerSpec, generate_event, health_report::State, rejected::Code,
};
use thiserror::Error;
use tokio::sync::{oneshot, watch};

use crate::attempts::{AttemptKey, Attempts, FellBehind, Listener};
use crate::decoding::{Command, DecodeFailure, Decoder, Decoding, NotTaken, Running, Work, guarded, warm_up};
use crate::request::{invalid, parse, rejected};
use crate::text::Text;

/// Jobs that wait, for each one that can run.
const WAITING_PER_ACTIVE: usize = 4;

/// What a worker is called, and how it treats those who talk to it.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Every name that a client may ask for; at least one, the short one first.
    pub models: Vec<String>,
    /// Which workload of its host; empty for a worker that serves alone.
    pub workload: String,
    /// The workload's start number.
    pub epoch: u64,
    /// For requests that don't say.
    pub sampling: SamplingDefaults,
    /// Sequences computed at once.
    pub max_sequences: usize,
    /// How long an attempt goes on when nobody listens to it.
    pub grace: Duration,
}

impl Settings {
    /// As an agent's spec says.
    #[must_use]
    pub fn of(spec: &WorkerSpec, grace: Duration) -> Self {
        let namespace = spec.deployment.split_once('/').map(|(namespace, _)| namespace);
        let long_name = namespace.map(|namespace| format!("{namespace}/{}", spec.model));
        Self {
            models: std::iter::once(spec.model.clone()).chain(long_name).collect(),
            workload: spec.workload.clone(),
            epoch: spec.epoch,
            sampling: spec.sampling,
            max_sequences: spec.max_sequences.get() as usize,
            grace,
        }
    }
}

/// A model that is ready to compute.
pub struct Loaded<M> {
    /// The model.
    pub model: M,
    /// Its tokenizer and template.
    pub text: Arc<dyn Text>,
    /// Equal ids continue bit for bit.
    pub numerics_id: String,
}

/// Why a worker does not compute, or no longer.
#[derive(Debug, Error)]
pub enum WorkerFailure<L: std::error::Error + 'static> {
    /// It never started.
    #[error("the model can't be loaded")]
    Load(#[source] L),
    /// The model has no room for a scheduler.
    #[error("the model can't be scheduled")]
    Unusable(#[from] Unusable),
    /// It broke while computing.
    #[error("the worker can't go on computing")]
    Decode(#[from] DecodeFailure),
    /// The system has no thread for it.
    #[error("the decode thread can't be started")]
    Thread(#[source] std::io::Error),
}

/// Where a worker is in its life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// Weights are being verified and mapped.
    Loading,
    /// It takes requests.
    Ready,
    /// It takes no new ones.
    Draining,
    /// It computes nothing any more; why.
    Failed(String),
    /// The process is about to end.
    Stopped,
}

/// Bytes of weights, for whoever waits.
#[derive(Debug, Default)]
pub struct Load {
    /// Verified and mapped so far.
    pub done: AtomicU64,
    /// In all files.
    pub total: AtomicU64,
}

/// A worker that was asked for something it can't do now.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NotServed {
    /// The attempt is unknown, or its grace period is over.
    #[error("this attempt is not known here; start another")]
    UnknownAttempt,
    /// See [`FellBehind`].
    #[error(transparent)]
    FellBehind(#[from] FellBehind),
    /// The decode thread is gone, or has too much to hear.
    #[error("{0}")]
    Unavailable(String),
}

/// What an accepted model adds to a worker.
struct Ready {
    text: Arc<dyn Text>,
    numerics_id: String,
    context_tokens: u32,
}

/// One worker.
pub struct Worker {
    settings: Settings,
    phase: watch::Sender<Phase>,
    ready: OnceLock<Ready>,
    decoder: Decoder,
    attempts: Arc<Attempts>,
    work: watch::Receiver<Work>,
    load: Arc<Load>,
    ticks: Arc<AtomicU64>,
}

/// How the decode thread ended. Waiting for it is optional.
pub type Ended<L> = oneshot::Receiver<Result<(), WorkerFailure<L>>>;

/// The events of one attempt.
pub type Events = Pin<Box<dyn Stream<Item = Result<GenerateEvent, FellBehind>> + Send>>;

impl Worker {
    /// Starts the decode thread, which calls `load` first. The worker answers at once; see [`Worker::phase`].
    ///
    /// # Errors
    /// When the system has no thread for it.
    pub fn start<M, L>(
        settings: Settings,
        load: impl FnOnce(&Load) -> Result<Loaded<M>, L> + Send + 'static,
    ) -> Result<(Arc<Self>, Ended<L>), WorkerFailure<L>>
    where
        M: DecodeModel + 'static,
        L: std::error::Error + Send + 'static,
    {
        let (decoder, inbox) = Decoder::new();
        let work_sender = watch::Sender::new(Work::default());
        let worker = Arc::new(Self {
            settings,
            phase: watch::Sender::new(Phase::Loading),
            ready: OnceLock::new(),
            decoder,
            attempts: Arc::default(),
            work: work_sender.subscribe(),
            load: Arc::default(),
            ticks: Arc::default(),
        });
        let (end, ended) = oneshot::channel();
        // The thread ends when the last worker handle is gone, so it must not hold one while it runs.
        let weak = Arc::downgrade(&worker);
        let (progress, ticks) = (worker.load.clone(), worker.ticks.clone());
        let max_sequences = worker.settings.max_sequences;
        let body = move || {
            let prepare = || {
                let decoding = prepare(
                    load(&progress).map_err(WorkerFailure::Load)?,
                    max_sequences,
                    ticks,
                    work_sender,
                )?;
                if let Some(worker) = weak.upgrade() {
                    worker.accept(&decoding);
                }
                Ok(decoding)
            };
            let result = guarded(prepare).and_then(|mut decoding: Decoding<M>| {
                let outcome = guarded(|| decoding.run(&inbox));
                if let Err(error) = &outcome {
                    decoding.running.fail_all(&inbox, &chain(error));
                }
                outcome.map_err(WorkerFailure::Decode)
            });
            if let (Err(error), Some(worker)) = (&result, weak.upgrade()) {
                worker.phase.send_replace(Phase::Failed(chain(error)));
            }
            // Whoever started this may not care.
            drop(end.send(result));
        };
        std::thread::Builder::new().name("decode".to_owned()).spawn(body).map_err(WorkerFailure::Thread)?;
        Ok((worker, ended))
    }

    fn accept<M: DecodeModel>(&self, decoding: &Decoding<M>) {
        let ready = Ready {
            text: decoding.text.clone(),
            numerics_id: decoding.numerics_id.clone(),
            context_tokens: decoding.scheduler.model().context_tokens(),
        };
        // Only the decode thread calls this, and once.
        drop(self.ready.set(ready));
        self.phase.send_if_modified(|phase| {
            let loading = *phase == Phase::Loading;
            if loading {
                *phase = Phase::Ready;
            }
            loading
        });
    }

    /// Where the worker is in its life, now and from now on.
    #[must_use]
    pub fn phase(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    /// Every name that a client may ask for.
    #[must_use]
    pub fn models(&self) -> &[String] {
        &self.settings.models
    }

    /// Longest sequence; 0 while loading.
    #[must_use]
    pub fn context_tokens(&self) -> u32 {
        self.ready.get().map_or(0, |ready| ready.context_tokens)
    }

    /// Bytes of weights.
    #[must_use]
    pub fn load(&self) -> &Load {
        &self.load
    }

    /// Starts an attempt and listens to it; a refusal is its only event.
    ///
    /// The attempt goes on without a listener for the grace period.
    pub async fn generate(self: &Arc<Self>, request: GenerateRequest) -> Events {
        match self.begin(request).await {
            Ok(listener) => events(listener),
            Err(rejected) => Box::pin(stream::iter([Ok(GenerateEvent {
                event: Some(generate_event::Event::Rejected(rejected)),
            })])),
        }
    }

    async fn begin(self: &Arc<Self>, request: GenerateRequest) -> Result<Listener, Rejected> {
        match &*self.phase.borrow() {
            Phase::Ready => {}
            Phase::Loading => {
                return Err(rejected(Code::Loading, "the weights are still being loaded; try again soon"));
            }
            Phase::Draining | Phase::Stopped => {
                return Err(rejected(Code::Draining, "this worker is draining; try another replica"));
            }
            Phase::Failed(why) => {
                return Err(rejected(Code::Overloaded, format!("this worker failed: {why}")));
            }
        }
        if !self.settings.models.contains(&request.model) {
            let message = format!(
                "no model `{}` here; this worker serves `{}`",
                request.model, self.settings.models[0]
            );
            return Err(Rejected { code: Code::ModelNotFound.into(), message, param: "model".to_owned() });
        }
        let Some(id) = &request.id else {
            return Err(invalid("the request names no attempt".to_owned(), "id"));
        };
        let key = AttemptKey::from(id);
        let worker = self.clone();
        // Rendering and tokenising a long prompt takes long enough to hold up every other connection.
        let parsed = tokio::task::spawn_blocking(move || {
            let ready = worker.ready.get().expect("a worker is ready once its model is accepted");
            parse(&request, &*ready.text, &worker.settings.sampling)
        })
        .await
        .map_err(|_| invalid("this prompt can't be rendered".to_owned(), "messages"))??;

        let log = self.attempts.open(&key).map_err(|error| rejected(Code::Overloaded, error.to_string()))?;
        let listener = log.listen();
        let submit = Command::Submit {
            key: key.clone(),
            job: Box::new(parsed.job),
            opens_thinking: parsed.opens_thinking,
            log: log.clone(),
        };
        if let Err(error) = self.decoder.send(submit) {
            self.attempts.forget(&key);
            return Err(rejected(Code::Overloaded, error.to_string()));
        }
        self.end_when_abandoned(key, &log);
        Ok(listener)
    }

    fn end_when_abandoned(&self, key: AttemptKey, log: &Arc<crate::attempts::Log>) {
        let (log, attempts, decoder) = (log.clone(), self.attempts.clone(), self.decoder.clone());
        let grace = self.settings.grace;
        tokio::spawn(async move {
            log.abandoned(grace).await;
            while decoder.send(Command::Cancel(key.clone())) == Err(NotTaken::Busy) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            attempts.forget(&key);
        });
    }

    /// Listens to a running attempt from a frame on.
    ///
    /// # Errors
    /// When the attempt, or that frame, is no longer known.
    pub fn attach(&self, id: &AttemptId, from_index: u32) -> Result<Events, NotServed> {
        let log = self.attempts.find(&id.into()).ok_or(NotServed::UnknownAttempt)?;
        Ok(events(log.attach(from_index)?))
    }

    /// Ends an attempt within a step. One that is over or unknown is not touched.
    ///
    /// # Errors
    /// When the decode thread can't be told.
    pub fn cancel(&self, id: &AttemptId) -> Result<(), NotServed> {
        match self.decoder.send(Command::Cancel(id.into())) {
            // What has ended computes nothing.
            Ok(()) | Err(NotTaken::Ended) => Ok(()),
            Err(error) => Err(NotServed::Unavailable(error.to_string())),
        }
    }

    /// Takes no new attempts, and waits until none runs. Those that run at the deadline are told to continue elsewhere;
    /// returns how many.
    ///
    /// # Errors
    /// When the decode thread can't be told.
    pub async fn drain(&self, deadline: Duration) -> Result<u32, NotServed> {
        let was_loading = self.phase.send_if_modified(|phase| match phase {
            Phase::Ready | Phase::Loading => {
                *phase = Phase::Draining;
                true
            }
            Phase::Draining | Phase::Failed(_) | Phase::Stopped => false,
        }) && self.ready.get().is_none();
        if was_loading || matches!(*self.phase.borrow(), Phase::Failed(_) | Phase::Stopped) {
            return Ok(0);
        }
        let ended = |_| NotServed::Unavailable(NotTaken::Ended.to_string());
        let (done, drained) = oneshot::channel();
        self.tell(Command::Drain(done))?;
        drained.await.map_err(ended)?;
        let mut work = self.work.clone();
        let quiet = work.wait_for(|work| work.active + work.waiting == 0);
        if let Ok(quiet) = tokio::time::timeout(deadline, quiet).await {
            return quiet.map(|_| 0).map_err(|_| NotServed::Unavailable(NotTaken::Ended.to_string()));
        }
        let (done, moved) = oneshot::channel();
        self.tell(Command::MoveAll(done))?;
        moved.await.map(|moved| moved as u32).map_err(ended)
    }

    /// Ends health reports, which go on for ever otherwise. A worker that failed has said its last already.
    pub fn stop(&self) {
        self.phase.send_if_modified(|phase| {
            let healthy = !matches!(phase, Phase::Failed(_));
            if healthy {
                *phase = Phase::Stopped;
            }
            healthy
        });
    }

    fn tell(&self, command: Command) -> Result<(), NotServed> {
        self.decoder.send(command).map_err(|error| NotServed::Unavailable(error.to_string()))
    }

    /// How the worker is, now.
    #[must_use]
    pub fn health(&self) -> HealthReport {
        let work = *self.work.borrow();
        let (state, message) = match &*self.phase.borrow() {
            Phase::Loading => (State::Loading, String::new()),
            Phase::Ready => (State::Ready, String::new()),
            Phase::Draining | Phase::Stopped => (State::Draining, String::new()),
            Phase::Failed(why) => (State::Failed, why.clone()),
        };
        HealthReport {
            state: state.into(),
            ticks: self.ticks.load(Ordering::Relaxed),
            active: work.active as u32,
            waiting: work.waiting as u32,
            numerics_id: self.ready.get().map(|ready| ready.numerics_id.clone()).unwrap_or_default(),
            model: self.settings.models[0].clone(),
            workload: self.settings.workload.clone(),
            epoch: self.settings.epoch,
            load: Some(LoadProgress {
                bytes_done: self.load.done.load(Ordering::Relaxed),
                bytes_total: self.load.total.load(Ordering::Relaxed),
            }),
            message,
            kv_pages_free: work.pages_free.into(),
            kv_pages_total: work.pages_total.into(),
            context_tokens: self.context_tokens(),
            warmth: None,
        }
    }
}

/// A scheduler over a model that has computed something already.
fn prepare<M: DecodeModel, L: std::error::Error>(
    loaded: Loaded<M>,
    max_sequences: usize,
    ticks: Arc<AtomicU64>,
    work: watch::Sender<Work>,
) -> Result<Decoding<M>, WorkerFailure<L>> {
    let Loaded { mut model, text, numerics_id } = loaded;
    warm_up(&mut model, &ticks).map_err(DecodeFailure::from)?;
    let limits = Limits {
        active: max_sequences,
        waiting: max_sequences * WAITING_PER_ACTIVE,
        prefill_rows: PREFILL_ROWS,
    };
    let scheduler = Scheduler::new(model, text.end_ids(), limits)?;
    let decoding = Decoding { scheduler, text, numerics_id, ticks, work, running: Running::default() };
    decoding.report();
    Ok(decoding)
}

fn events(listener: Listener) -> Events {
    Box::pin(stream::unfold(Some(listener), |listener| async move {
        let mut listener = listener?;
        let event = listener.next().await?;
        let more = event.is_ok();
        Some((event, more.then_some(listener)))
    }))
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

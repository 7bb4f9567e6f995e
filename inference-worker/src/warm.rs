//! A worker that keeps its weights in memory and serves nobody, so that a replica on this host starts without waiting for a disk.
//!
//! It verifies the files unless there is evidence that they were not touched since somebody did, reads them in, and looks again and
//! again which pages the system still has. It says so on the port on which a replica would serve.

mod pages;
mod patience;
mod service;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use clap::Args;
use tandem_worker_api::{HealthReport, LoadProgress, Warmth, WeightFile, WorkerSpec, health_report::State};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::loading::LoadError;
use crate::replica::{Port, ReplicaError, end_of_stdin, read_spec};
use crate::verified::{Verified, unchanged, verify};
use crate::worker::{Load, WorkerFailure};
use pages::{Pages, Pass, Rates};
use patience::Patience;

/// Asking which pages are there takes at most one part in this many of a core's time.
const ASKING_SHARE: u32 = 20;

/// Arguments of `inference-worker warm`.
#[derive(Debug, Args)]
pub struct WarmArgs {
    /// The JSON file that a replica would be started with
    #[arg(long, value_name = "FILE")]
    pub spec: PathBuf,
    /// End when standard input ends: whoever started this has died
    #[arg(long)]
    pub exit_with_stdin: bool,
    /// How often to look which pages are still in memory
    #[arg(long, value_name = "MS", default_value_t = 5000, value_parser = clap::value_parser!(u64).range(1..))]
    pub look_every_ms: u64,
}

/// Where a warm worker is in its life.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Phase {
    /// Weights are verified, or read in for the first time.
    Loading,
    /// They were all read in, and this is what the system has kept of them. Words, if that is not as it should be.
    Warm(Warmth, String),
    /// The process is about to end; why, if it is not as it was told.
    Ended(String),
}

/// What is known of one warm worker.
pub(crate) struct Warm {
    phase: watch::Sender<Phase>,
    load: Load,
    model: String,
    workload: String,
    epoch: u64,
}

impl Warm {
    fn of(spec: &WorkerSpec) -> Self {
        Self {
            phase: watch::Sender::new(Phase::Loading),
            load: Load::default(),
            model: spec.model.clone(),
            workload: spec.workload.clone(),
            epoch: spec.epoch,
        }
    }

    /// Where it is, now and from now on.
    pub(crate) fn phase(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    /// How it is, now.
    pub(crate) fn health(&self) -> HealthReport {
        let (state, warmth, message) = match &*self.phase.borrow() {
            Phase::Loading => (State::Loading, None, String::new()),
            Phase::Warm(warmth, message) => (State::Warm, Some(*warmth), message.clone()),
            Phase::Ended(why) if why.is_empty() => (State::Draining, None, String::new()),
            Phase::Ended(why) => (State::Failed, None, why.clone()),
        };
        HealthReport {
            state: state.into(),
            model: self.model.clone(),
            workload: self.workload.clone(),
            epoch: self.epoch,
            load: Some(LoadProgress {
                bytes_done: self.load.done.load(Ordering::Relaxed),
                bytes_total: self.load.total.load(Ordering::Relaxed),
            }),
            message,
            warmth,
            ..HealthReport::default()
        }
    }
}

/// Keeps weights warm until told to stop.
///
/// # Errors
/// When it can't start, or the weights are not what they should be.
pub async fn run(args: &WarmArgs) -> Result<(), ReplicaError> {
    let spec = read_spec(&args.spec)?;
    let warm = Arc::new(Warm::of(&spec));
    let port = Port::open(&spec.credentials_dir, spec.listen).await?;
    let mut terminate = signal(SignalKind::terminate()).map_err(ReplicaError::Process)?;
    let mut answering = port.answer(service::service(warm.clone()), &spec.endpoint_file)?;
    let stdin = args.exit_with_stdin.then(end_of_stdin).transpose().map_err(ReplicaError::Process)?;
    // What the keeper waits on between two looks; dropped when all is over.
    let (over, until_over) = mpsc::channel();
    let every = Duration::from_millis(args.look_every_ms);
    let kept = warm.clone();
    let keeping = tokio::task::spawn_blocking(move || keep(&spec.files, &kept, every, &until_over));
    let stdin = async {
        match stdin {
            Some(end) => drop(end.await),
            None => std::future::pending().await,
        }
    };
    let result = tokio::select! {
        kept = keeping => match kept {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(WorkerFailure::Load(error).into()),
            Err(join) => Err(ReplicaError::Process(std::io::Error::other(join))),
        },
        () = stdin => Ok(()),
        _ = terminate.recv() => Ok(()),
        _ = tokio::signal::ctrl_c() => Ok(()),
        served = answering.ended() => served,
    };
    drop(over);
    let why = result.as_ref().err().map(|error| crate::worker::chain(error)).unwrap_or_default();
    warm.phase.send_replace(Phase::Ended(why));
    answering.close().await;
    result
}

/// Verifies, reads in and looks, until it is over.
fn keep(
    files: &[WeightFile],
    warm: &Warm,
    every: Duration,
    until_over: &mpsc::Receiver<()>,
) -> Result<(), LoadError> {
    let over = || until_over.try_recv() == Err(mpsc::TryRecvError::Disconnected);
    let mut files = files.to_vec();
    let mut verified: Vec<Verified> = Vec::new();
    let mut pages = Pages::default();
    let mut rates = Rates::default();
    let mut patience = Patience::default();
    let mut last = None;
    loop {
        let touched = unchanged(&verified).err();
        if let Some(error) = &touched {
            tracing::warn!(%error, "weights are hashed again");
        }
        if touched.is_some() || verified.is_empty() {
            warm.phase.send_replace(Phase::Loading);
            verified = verify(&files, &warm.load)?;
            for (file, verified) in files.iter_mut().zip(&verified) {
                file.verified = Some(verified.stamp);
            }
            // Those that were replaced are other files by now.
            pages = Pages::open(&files)?;
            // Read again, and shown as such.
            warm.load.done.store(0, Ordering::Relaxed);
            warm.load.total.store(pages.bytes(), Ordering::Relaxed);
            last = None;
        }
        let Some(pass) = pages.read_in(&mut rates, &warm.load, &over)? else { return Ok(()) };
        if pass.absent_before > 0 {
            tracing::info!(
                absent = pass.absent_before,
                left = pass.absent,
                "read weights in that were not in memory"
            );
        }
        // What the first pass had to read says nothing about memory.
        let lost = last.map_or(pass.absent - pass.untold, |_: Pass| pass.absent_before);
        patience.looked(lost, pages.bytes());
        last = Some(pass);
        let pause = patience.pause(every).max(pass.asking.saturating_mul(ASKING_SHARE));
        let warmth = Warmth {
            bytes_resident: pages.bytes() - pass.absent,
            bytes_total: pages.bytes(),
            disk_bytes_per_second: rates.disk(),
            memory_bytes_per_second: rates.memory(),
        };
        let words = patience.words(lost, pages.bytes(), pause).or_else(|| untold(pass));
        warm.phase.send_replace(Phase::Warm(warmth, words.unwrap_or_default()));
        match until_over.recv_timeout(pause) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(()) | Err(RecvTimeoutError::Disconnected) => return Ok(()),
        }
    }
}

fn untold(pass: Pass) -> Option<String> {
    (pass.untold > 0).then(|| {
        format!(
            "this system does not tell whether {} MiB of the weights are in memory, since their files belong to another user: they \
             count as if they were not; give the files to the user that the agent runs as",
            pass.untold >> 20
        )
    })
}

//! The thread that computes: it loads the model, owns the scheduler, and takes commands between two steps.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::{Receiver, RecvError, SyncSender, TryRecvError, TrySendError, sync_channel};

use tandem_engine::decode::{DecodeModel, ForwardError, Row};
use tandem_engine::scheduler::{Event, Finish, Job, JobId, Progress, Scheduler, Token};
use tandem_worker_api::{
    Finished, Frame, Prefill, PrefixDigest, Started, TopLogprob, finished::Reason, generate_event,
};
use thiserror::Error;
use tokio::sync::{oneshot, watch};

use crate::attempts::{AttemptKey, Log};
use crate::request::refused;
use crate::text::Text;

/// Commands that may wait for the end of a step.
const MAX_COMMANDS: usize = 1024;

/// What the decode thread is told.
pub(crate) enum Command {
    /// Start an attempt; what it says goes into the log.
    Submit { key: AttemptKey, job: Box<Job>, opens_thinking: bool, log: Arc<Log> },
    /// End an attempt, if it runs.
    Cancel(AttemptKey),
    /// Take no new attempts. Answers when that holds.
    Drain(oneshot::Sender<()>),
    /// End all attempts with `Drained`. Answers with their number.
    MoveAll(oneshot::Sender<usize>),
}

/// How much there is to do, as of the last step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Work {
    /// Attempts being computed.
    pub(crate) active: usize,
    /// Attempts that wait for a place.
    pub(crate) waiting: usize,
    /// KV pages that nobody holds.
    pub(crate) pages_free: u32,
    /// KV pages.
    pub(crate) pages_total: u32,
}

/// Why the decode thread ended by itself.
#[derive(Debug, Error)]
pub enum DecodeFailure {
    /// It panicked.
    #[error("the decode thread panicked: {0}")]
    Panic(String),
    /// The model refused a step.
    #[error("the model refused a step of the scheduler")]
    Defect(#[from] ForwardError),
}

/// Tells the decode thread what to do.
#[derive(Clone, Debug)]
pub(crate) struct Decoder {
    commands: SyncSender<Command>,
}

/// The decode thread does not take commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(crate) enum NotTaken {
    #[error("{MAX_COMMANDS} commands wait for the end of a step; try another replica, or later")]
    Busy,
    #[error("the decode thread has ended")]
    Ended,
}

impl Decoder {
    /// A decoder, and the end that its thread reads from.
    pub(crate) fn new() -> (Self, Receiver<Command>) {
        let (commands, inbox) = sync_channel(MAX_COMMANDS);
        (Self { commands }, inbox)
    }

    pub(crate) fn send(&self, command: Command) -> Result<(), NotTaken> {
        self.commands.try_send(command).map_err(|error| match error {
            TrySendError::Full(_) => NotTaken::Busy,
            TrySendError::Disconnected(_) => NotTaken::Ended,
        })
    }
}

/// Computes one token of nothing, so that the first request does not pay for cold caches and pages.
pub(crate) fn warm_up<M: DecodeModel>(model: &mut M, ticks: &AtomicU64) -> Result<(), ForwardError> {
    let row = Row { sequence: 0, position: 0, token: 0, wants_logits: true };
    let mut logits = vec![0.0; model.vocab_size()];
    // A model without a single page is refused by its scheduler, with a reason.
    if model.reserve(0, 1).is_ok() {
        let computed = model.forward(&[row], ticks, &mut logits);
        model.release(0);
        computed?;
    }
    Ok(())
}

/// Runs `body`, which may panic.
pub(crate) fn guarded<T, E: From<DecodeFailure>>(body: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| {
        let message = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("no message");
        Err(DecodeFailure::Panic(message.to_owned()).into())
    })
}

/// The loop of the decode thread.
pub(crate) struct Decoding<M> {
    pub(crate) scheduler: Scheduler<M>,
    pub(crate) text: Arc<dyn Text>,
    pub(crate) numerics_id: String,
    pub(crate) ticks: Arc<AtomicU64>,
    pub(crate) work: watch::Sender<Work>,
    pub(crate) running: Running,
}

/// Who listens to which job.
#[derive(Default)]
pub(crate) struct Running {
    jobs: HashMap<AttemptKey, JobId>,
    logs: HashMap<JobId, (AttemptKey, Arc<Log>)>,
}

impl<M: DecodeModel> Decoding<M> {
    /// Computes until all senders of commands are gone.
    ///
    /// # Errors
    /// When the model refuses a step.
    pub(crate) fn run(&mut self, inbox: &Receiver<Command>) -> Result<(), DecodeFailure> {
        let mut idle = true;
        loop {
            if idle {
                match inbox.recv() {
                    Ok(command) => self.obey(command),
                    Err(RecvError) => return Ok(()),
                }
            }
            loop {
                match inbox.try_recv() {
                    Ok(command) => self.obey(command),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return Ok(()),
                }
            }
            let (running, text) = (&mut self.running, &*self.text);
            let progress =
                self.scheduler.step(&self.ticks, &mut |id, event| running.pass_on(text, id, event))?;
            idle = progress == Progress::Idle;
            self.report();
        }
    }

    /// Tells health reports how much there is to do.
    pub(crate) fn report(&self) {
        let pages = self.scheduler.model().pages();
        self.work.send_replace(Work {
            active: self.scheduler.active(),
            waiting: self.scheduler.waiting(),
            pages_free: pages.free,
            pages_total: pages.total,
        });
    }

    fn obey(&mut self, command: Command) {
        let Self { scheduler, running, text, .. } = self;
        match command {
            Command::Submit { key, job, opens_thinking, log } => {
                self.submit(key, *job, opens_thinking, log);
            }
            Command::Cancel(key) => {
                if let Some(&id) = running.jobs.get(&key) {
                    scheduler.cancel(id, &mut |id, event| running.pass_on(&**text, id, event));
                }
            }
            Command::Drain(done) => {
                scheduler.drain();
                answer(done, ());
            }
            Command::MoveAll(moved) => {
                let count =
                    scheduler.end_all(Finish::Drained, &mut |id, event| running.pass_on(&**text, id, event));
                self.report();
                answer(moved, count);
            }
        }
    }

    fn submit(&mut self, key: AttemptKey, job: Job, opens_thinking: bool, log: Arc<Log>) {
        let prompt_tokens = job.prompt.len() as u32;
        let prompt_digest = PrefixDigest::of_prompt(&job.prompt).to_bytes();
        match self.scheduler.submit(job) {
            Ok(id) => {
                log.push(generate_event::Event::Started(Started {
                    prompt_tokens,
                    prompt_digest,
                    numerics_id: self.numerics_id.clone(),
                    cached_tokens: 0,
                    opens_thinking,
                }));
                self.running.jobs.insert(key.clone(), id);
                self.running.logs.insert(id, (key, log));
            }
            Err(refusal) => log.push(generate_event::Event::Rejected(refused(&refusal))),
        }
    }
}

impl Running {
    fn pass_on(&mut self, text: &dyn Text, id: JobId, event: Event) {
        let Some((key, log)) = self.logs.get(&id) else { return };
        let over = matches!(event, Event::Finished { .. });
        log.push(match event {
            Event::Prefill { done, total } => generate_event::Event::Prefill(Prefill { done, total }),
            Event::Token(token) => generate_event::Event::Frame(frame(text, key, token)),
            Event::Finished { finish, tokens } => generate_event::Event::Finished(finished(finish, tokens)),
        });
        if over {
            tracing::debug!(?key, "over");
            self.jobs.remove(key);
            self.logs.remove(&id);
        }
    }

    /// Ends all attempts, those that wait in the inbox too, because this process can't go on.
    pub(crate) fn fail_all(&mut self, inbox: &Receiver<Command>, message: &str) {
        self.jobs.clear();
        let waiting = inbox.try_iter().filter_map(|command| match command {
            Command::Submit { log, .. } => Some(log),
            Command::Cancel(_) | Command::Drain(_) | Command::MoveAll(_) => None,
        });
        for log in self.logs.drain().map(|(_, (_, log))| log).chain(waiting) {
            // The listener's ledger knows how many tokens it has; this process is past telling.
            log.push(generate_event::Event::Finished(Finished {
                reason: Reason::Failed.into(),
                tokens: 0,
                message: message.to_owned(),
            }));
        }
    }
}

/// Answers whoever asked, unless it has gone.
fn answer<T>(asker: oneshot::Sender<T>, answer: T) {
    if asker.send(answer).is_err() {
        tracing::debug!("nobody waits for this answer any more");
    }
}

fn frame(text: &dyn Text, key: &AttemptKey, token: Token) -> Frame {
    let bytes_of = |id| text.bytes(id);
    Frame {
        attempt: Some(key.into()),
        index: token.index,
        id: token.choice.id,
        bytes: if token.ends_generation { Vec::new() } else { bytes_of(token.choice.id) },
        logprob: token.choice.logprob,
        top: token
            .choice
            .top
            .into_iter()
            .map(|(id, logprob)| TopLogprob { id, bytes: bytes_of(id), logprob })
            .collect(),
        digest: token.digest.to_bytes(),
        end_of_generation: token.ends_generation,
    }
}

fn finished(finish: Finish, tokens: u32) -> Finished {
    let (reason, message) = match finish {
        Finish::Stop => (Reason::Stop, ""),
        Finish::Length => (Reason::Length, ""),
        Finish::Context => (Reason::Context, ""),
        Finish::Cancelled => (Reason::Cancelled, ""),
        Finish::Drained => (Reason::Drained, "this worker is draining"),
        Finish::NotFinite => (Reason::Failed, "the logits are not finite"),
    };
    Finished { reason: reason.into(), tokens, message: message.to_owned() }
}

//! What the HTTP layer asks of whoever generates.

use std::collections::VecDeque;

use futures::stream::{self, BoxStream, Stream, StreamExt};
use tandem_gateway_core::ledger::{Ending, Ledger, Limits, Verdict};
use tandem_gateway_core::{Event, Refusal, Rejection};
use tandem_worker_api::{GenerateEvent, GenerateRequest, generate_event};

/// The committed events of one choice, in order: [`Event::Started`] first, [`Event::Finished`] or an error last.
/// Dropping it cancels the choice.
pub type EventStream = BoxStream<'static, Result<Event, Refusal>>;

/// Generates. Cheap to call: work begins when a stream is polled or in tasks of its own.
pub trait Backend: Send + Sync + 'static {
    /// Every name that a client may ask for. A model with two names is listed twice.
    fn models(&self) -> Vec<Model>;

    /// Whether requests can be answered now.
    ///
    /// # Errors
    /// What is missing, usually [`Refusal::Unavailable`].
    fn ready(&self) -> Result<(), Refusal>;

    /// Starts one choice. `request.id` names stream and choice, with attempt 0 and no `resume`; `request.model` is one
    /// of [`Backend::models`]; the seed is set. An error before [`Event::Started`] becomes an HTTP status.
    fn open(&self, request: GenerateRequest) -> EventStream;
}

/// A name that clients may ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model {
    /// The name.
    pub id: String,
    /// By which name the backend knows it: the same, unless a client's key has names of its own.
    pub answers_to: String,
    /// Seconds since 1970.
    pub created: u64,
    /// Whom to ask about it: a namespace, or the program that serves it.
    pub owned_by: String,
    /// Longest sequence, prompt and output together; 0 where it is not known.
    pub context_tokens: u32,
}

/// The events of the only attempt at a choice, for a backend that has nowhere to continue: the worker that serves
/// alone. `events` is what its `Generate` yields for this request; dropping the result drops it.
///
/// Frames are held against a ledger all the same, so that a worker whose index or digest is wrong fails here and not
/// first in a cluster.
pub fn single_attempt<S>(request: &GenerateRequest, events: S) -> EventStream
where
    S: Stream<Item = GenerateEvent> + Send + 'static,
{
    let id = request.id.clone().unwrap_or_default();
    let limits = Limits { max_tokens: request.max_tokens, ignore_eos: request.ignore_eos };
    let mut ledger = Ledger::new(id.stream, id.choice, limits);
    let attempt = ledger.open().id.attempt;
    let said = VecDeque::new();
    let state = Some((events.boxed(), ledger, said));
    stream::unfold(state, move |state| async move {
        let (mut events, mut ledger, mut said) = state?;
        while said.is_empty() {
            said.extend(judge(&mut ledger, attempt, events.next().await));
        }
        let next = said.pop_front()?;
        let last = matches!(next, Err(_) | Ok(Event::Finished(_)));
        Some((next, (!last).then_some((events, ledger, said))))
    })
    .boxed()
}

/// `None` is the end of the worker's events.
fn judge(ledger: &mut Ledger, attempt: u32, event: Option<GenerateEvent>) -> Vec<Result<Event, Refusal>> {
    use generate_event::Event as Said;
    let fail = |message: String| vec![Err(Refusal::Internal(message))];
    let Some(event) = event else { return fail("the worker ended in mid-stream".to_owned()) };
    match event.event {
        None | Some(Said::Prefill(_)) => Vec::new(),
        Some(Said::Started(started)) => match ledger.started(attempt, &started) {
            Ok(prompt) => vec![Ok(Event::Started(prompt))],
            Err(fault) => fail(format!("the worker {fault}")),
        },
        Some(Said::Rejected(rejected)) => {
            let message = rejected.message.clone();
            vec![Err(match Rejection::from(rejected) {
                Rejection::Final(refusal) => refusal,
                Rejection::Elsewhere | Rejection::Diverged => {
                    Refusal::Unavailable { message, retry_after: std::time::Duration::from_secs(1) }
                }
            })]
        }
        Some(Said::Frame(frame)) => match ledger.offer(attempt, frame) {
            Verdict::Commit(commit) => std::iter::once(Event::Token(commit.token))
                .chain(commit.finish.map(Event::Finished))
                .map(Ok)
                .collect(),
            Verdict::Stale => Vec::new(),
            Verdict::Cancel(fault) => fail(format!("the worker {fault}")),
        },
        Some(Said::Finished(finished)) => match ledger.finished(attempt, &finished) {
            Ending::Choice(reason) => vec![Ok(Event::Finished(reason))],
            Ending::Elsewhere(_) => fail(match finished.message.as_str() {
                "" => "the worker stopped in mid-stream".to_owned(),
                message => format!("the worker stopped in mid-stream: {message}"),
            }),
            Ending::Stale => Vec::new(),
        },
    }
}

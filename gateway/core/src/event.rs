//! What a stream tells whoever reads it: its prompt, its committed tokens, its seams and its end.

use std::time::Duration;

use tandem_worker_api::{Frame, Rejected, rejected};
use thiserror::Error;

/// One committed step of one choice of a stream.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A worker took the request. Comes first; comes again when another worker speaks the first token, and then
    /// replaces what was said before.
    Started(Prompt),
    /// The next token.
    Token(Token),
    /// From the next token on, another worker speaks.
    Seam(Seam),
    /// The last event.
    Finished(FinishReason),
}

/// What a worker made of the request's prompt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Prompt {
    /// Tokens in the prompt.
    pub tokens: u32,
    /// How many of them came from a prefix cache.
    pub cached_tokens: u32,
    /// The rendered prompt ends inside a thinking block: the output starts as thoughts.
    pub opens_thinking: bool,
}

/// One committed token.
#[derive(Clone, Debug, PartialEq)]
pub struct Token {
    /// Its id in the model's vocabulary.
    pub id: u32,
    /// What it adds to the text; may end inside a UTF-8 character; empty for control tokens.
    pub bytes: Vec<u8>,
    /// Natural logarithm of its probability, before temperature and truncation.
    pub logprob: f32,
    /// The likeliest tokens at its place, as many as were asked for.
    pub top: Vec<Alternative>,
    /// It ends the turn, and has no text.
    pub ends_turn: bool,
}

/// A token that could have stood in a committed one's place.
#[derive(Clone, Debug, PartialEq)]
pub struct Alternative {
    /// Its id.
    pub id: u32,
    /// Its text.
    pub bytes: Vec<u8>,
    /// Natural logarithm of its probability.
    pub logprob: f32,
}

impl From<Frame> for Token {
    fn from(frame: Frame) -> Self {
        Self {
            id: frame.id,
            bytes: frame.bytes,
            logprob: frame.logprob,
            top: frame
                .top
                .into_iter()
                .map(|top| Alternative { id: top.id, bytes: top.bytes, logprob: top.logprob })
                .collect(),
            ends_turn: frame.end_of_generation,
        }
    }
}

/// Where another worker began to speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seam {
    /// Index of the first token that the new worker spoke.
    pub index: u32,
    /// Both workers have the same `numerics_id`: the stream goes on bit for bit as it would have.
    pub exact: bool,
    /// Time between the tokens on both sides of the seam.
    pub recovery: Duration,
}

/// Why a choice ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// An end-of-generation token or a stop string.
    Stop,
    /// `max_tokens`, or a full context.
    Length,
    /// The model called tools.
    ToolCalls,
}

/// Why a choice can't be served, or can't go on. `Display` is a sentence for the client.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Refusal {
    /// The request itself; another replica would say the same.
    #[error("{message}")]
    Invalid {
        /// What to change.
        message: String,
        /// The request's field to blame.
        param: Option<String>,
    },
    /// Prompt and output don't fit the context.
    #[error("{0}")]
    ContextLengthExceeded(String),
    /// No model of this name.
    #[error("{0}")]
    ModelNotFound(String),
    /// Who asks has not shown a key that is let in.
    #[error("{0}")]
    Unauthenticated(String),
    /// A limit of the key that was shown is reached.
    #[error("this key's limit of {limit} {what} a minute is reached; try again in {} s", seconds(.retry_after))]
    Limited {
        /// `requests` or `tokens`.
        what: &'static str,
        /// How much a minute.
        limit: u64,
        /// When to try again.
        retry_after: Duration,
    },
    /// Every replica is full.
    #[error("every replica is busy; try again in {} s", seconds(.retry_after))]
    Overloaded {
        /// When to try again.
        retry_after: Duration,
    },
    /// No replica serves now.
    #[error("{message}")]
    Unavailable {
        /// Why, and what would help.
        message: String,
        /// When to try again.
        retry_after: Duration,
    },
    /// Two workers died at the same place of this stream: it does not walk through all of them.
    #[error("two workers ended while computing this request at the same place; it is not tried on a third")]
    Poisonous,
    /// The stream took longer than it may.
    #[error("the request took longer than the {} s that this gateway allows", seconds(.0))]
    DeadlineExceeded(Duration),
    /// Anything that is our fault.
    #[error("{0}")]
    Internal(String),
}

fn seconds(duration: &Duration) -> u64 {
    duration.as_secs().max(1)
}

/// What a worker's refusal means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// Every worker would say so: the client's request is at fault.
    Final(Refusal),
    /// Another replica may take it.
    Elsewhere,
    /// This worker can't continue the stream's tokens.
    Diverged,
}

impl From<Rejected> for Rejection {
    fn from(rejected: Rejected) -> Self {
        use rejected::Code;
        let code = rejected.code();
        let Rejected { message, param, .. } = rejected;
        match code {
            Code::InvalidRequest => {
                Self::Final(Refusal::Invalid { message, param: (!param.is_empty()).then_some(param) })
            }
            Code::ContextLengthExceeded => Self::Final(Refusal::ContextLengthExceeded(message)),
            // A replica that was told to serve another model since the route table was made.
            Code::ModelNotFound | Code::Overloaded | Code::Draining | Code::Loading | Code::Unspecified => {
                Self::Elsewhere
            }
            Code::Diverged => Self::Diverged,
        }
    }
}

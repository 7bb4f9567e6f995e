//! What goes into a scheduler, and what comes out of it.

use std::num::NonZeroU32;

use tandem_worker_api::PrefixDigest;
use thiserror::Error;

use crate::sampling::{Choice, Sampling};

/// Names a job of one scheduler. Later jobs have greater ids: the order is that of age.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(pub(super) u64);

/// One sequence to be continued.
#[derive(Debug, Clone)]
pub struct Job {
    /// At least one id.
    pub prompt: Vec<u32>,
    /// What another attempt has committed already.
    pub resume: Option<Resume>,
    /// How a token is chosen.
    pub sampling: Sampling,
    /// Keys the draws, with `choice` and the token's index.
    pub seed: u64,
    /// Which of the request's choices this is.
    pub choice: u32,
    /// Most output tokens, resumed ones included; `None`: until the context is full.
    pub max_tokens: Option<NonZeroU32>,
    /// Whether to go on past an id that ends the turn.
    pub ignore_end: bool,
    /// How many alternatives each token comes with.
    pub top_logprobs: usize,
}

/// Output ids that are committed, and what proves that they follow this prompt.
#[derive(Debug, Clone)]
pub struct Resume {
    /// From index 0 on.
    pub ids: Vec<u32>,
    /// Of prompt and ids.
    pub digest: PrefixDigest,
}

/// Why a job was not taken.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Refusal {
    /// Nothing to continue.
    #[error("the prompt is empty; it needs at least one token")]
    EmptyPrompt,
    /// An id outside of the vocabulary.
    #[error("token {id} is not in this model's vocabulary; ids end at {last}")]
    UnknownToken {
        /// The id.
        id: u32,
        /// The greatest one there is.
        last: u32,
    },
    /// Prompt and output together have no room.
    #[error(
        "the prompt has {prompt} tokens and max_tokens is {max_tokens}, together more than the context of \
         {context} tokens; shorten the prompt or lower max_tokens"
    )]
    ContextLength {
        /// Tokens in the prompt.
        prompt: usize,
        /// Output tokens asked for.
        max_tokens: u32,
        /// Longest sequence.
        context: u32,
    },
    /// The prompt alone fills the context.
    #[error(
        "the prompt has {prompt} tokens, which leaves no room for an answer in the context of {context} tokens; \
         shorten the prompt"
    )]
    PromptLength {
        /// Tokens in the prompt.
        prompt: usize,
        /// Longest sequence.
        context: u32,
    },
    /// The queue is full.
    #[error("{waiting} requests wait already; try another replica, or later")]
    Overloaded {
        /// Jobs in the queue.
        waiting: usize,
    },
    /// No new jobs are taken.
    #[error("this worker is draining; try another replica")]
    Draining,
    /// The resumed ids do not follow this prompt as this worker reads it.
    #[error("the committed tokens do not follow the prompt as this worker reads it")]
    Diverged,
}

/// What happens to a job, in order: any number of `Prefill` and `Token`, then one `Finished`.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Tokens were put into the KV cache that nothing was drawn from. After a preemption this happens again.
    Prefill {
        /// Tokens in the KV cache.
        done: u32,
        /// Tokens that have to be there before the next one is drawn.
        total: u32,
    },
    /// A token was chosen.
    Token(Token),
    /// The job is over, and its pages are free.
    Finished {
        /// Why.
        finish: Finish,
        /// Output tokens in all, resumed ones included.
        tokens: u32,
    },
}

/// A chosen token.
#[derive(Debug, Clone, PartialEq)]
pub struct Token {
    /// Its place in the output, from 0.
    pub index: u32,
    /// The token and its probabilities.
    pub choice: Choice,
    /// Of the prompt and the output before this token.
    pub digest: PrefixDigest,
    /// Whether it ends the turn.
    pub ends_generation: bool,
}

/// Why a job is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// The last token ends the turn.
    Stop,
    /// `max_tokens` are there.
    Length,
    /// The context is full.
    Context,
    /// It was cancelled.
    Cancelled,
    /// The worker stops; the job is to be continued elsewhere.
    Drained,
    /// Its logits are not finite. Others are not touched.
    NotFinite,
}

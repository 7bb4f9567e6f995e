//! One job on its way: its tokens, how many of them are in the KV cache, and when it is over.

use tandem_worker_api::PrefixDigest;

use super::job::{Finish, Job, Token};
use crate::sampling::{Choice, Draw, History, NotFinite, Sampling, choose};

/// A job's state, all of which follows from its request and its tokens; the KV cache can be made anew from it.
#[derive(Debug)]
pub(super) struct Sequence {
    /// Prompt and output.
    tokens: Vec<u32>,
    prompt_tokens: usize,
    /// Of `tokens`.
    digest: PrefixDigest,
    history: History,
    sampling: Sampling,
    seed: u64,
    choice: u32,
    /// `tokens` never grows past this.
    tokens_limit: usize,
    max_tokens: Option<usize>,
    ignore_end: bool,
    ended: bool,
    top_logprobs: usize,
}

impl Sequence {
    /// Of a job that was checked: what is resumed has `digest` together with the prompt.
    pub(super) fn new(
        job: Job,
        digest: PrefixDigest,
        context_tokens: u32,
        ends: impl Fn(u32) -> bool,
    ) -> Self {
        let resumed = job.resume.map(|resume| resume.ids).unwrap_or_default();
        let history = History::of(&job.prompt, &resumed);
        let prompt_tokens = job.prompt.len();
        let ended = !job.ignore_end && resumed.last().copied().is_some_and(ends);
        let mut tokens = job.prompt;
        tokens.extend(resumed);
        Self {
            tokens,
            prompt_tokens,
            digest,
            history,
            sampling: job.sampling,
            seed: job.seed,
            choice: job.choice,
            tokens_limit: context_tokens as usize,
            max_tokens: job.max_tokens.map(|max| max.get() as usize),
            ignore_end: job.ignore_end,
            ended,
            top_logprobs: job.top_logprobs,
        }
    }

    /// Prompt and output.
    pub(super) fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// How many tokens there are.
    pub(super) fn len(&self) -> u32 {
        self.tokens.len() as u32
    }

    /// How many of them are output.
    pub(super) fn output_tokens(&self) -> u32 {
        (self.tokens.len() - self.prompt_tokens) as u32
    }

    /// Why nothing follows any more, if so.
    pub(super) fn finish(&self) -> Option<Finish> {
        if self.ended {
            Some(Finish::Stop)
        } else if self.max_tokens.is_some_and(|max| self.output_tokens() as usize >= max) {
            Some(Finish::Length)
        } else if self.tokens.len() >= self.tokens_limit {
            Some(Finish::Context)
        } else {
            None
        }
    }

    /// Chooses the next token from the logits after the last one. The draw is keyed by its index, moved by
    /// `draw_shift`, which is 0 but in tests.
    pub(super) fn advance(
        &mut self,
        logits: &mut [f32],
        draw_shift: u32,
        ends: impl Fn(u32) -> bool,
    ) -> Result<Token, NotFinite> {
        let index = self.output_tokens();
        let draw =
            Draw { seed: self.seed, choice: self.choice, index: index.wrapping_add(draw_shift), draw: 0 };
        let choice: Choice = choose(logits, &self.history, &self.sampling, draw, self.top_logprobs)?;
        let digest = self.digest;
        self.tokens.push(choice.id);
        self.history.push(choice.id);
        self.digest = digest.then(choice.id);
        self.ended = !self.ignore_end && ends(choice.id);
        Ok(Token { index, choice, digest, ends_generation: self.ended })
    }
}

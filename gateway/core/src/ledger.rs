//! What a choice has said so far, and which attempt may say what comes next.
//!
//! Several attempts may run at once. Whichever first speaks the next index over the same prefix wins it; nothing that
//! an attempt says later, or over another prefix, changes what was committed.

use std::collections::BTreeMap;

use tandem_worker_api::{AttemptId, Finished, Frame, PrefixDigest, Resume, Started, finished};
use thiserror::Error;

use crate::{FinishReason, Prompt, Token};

/// What ends a choice, whoever speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Tokens of output; 0 is no limit but the context.
    pub max_tokens: u32,
    /// End-of-generation tokens don't end it.
    pub ignore_eos: bool,
}

/// The committed tokens of one choice and the attempts at it.
#[derive(Debug)]
pub struct Ledger {
    stream: String,
    choice: u32,
    limits: Limits,
    committed: Vec<Committed>,
    /// Digest of the prompt and everything committed; `None` until the first token fixes which prompt it was.
    head: Option<PrefixDigest>,
    attempts: BTreeMap<u32, Attempt>,
    next_attempt: u32,
    speaker: Option<Speaker>,
    finish: Option<FinishReason>,
}

#[derive(Clone, Copy, Debug)]
struct Committed {
    id: u32,
    /// Of everything before it.
    digest: PrefixDigest,
}

#[derive(Debug)]
enum Attempt {
    Opened,
    Running(Voice),
}

#[derive(Clone, Debug)]
struct Voice {
    prompt: Prompt,
    prompt_digest: PrefixDigest,
    numerics_id: String,
}

#[derive(Debug)]
struct Speaker {
    attempt: u32,
    numerics_id: String,
}

/// A new attempt to be sent to a worker.
#[derive(Clone, Debug, PartialEq)]
pub struct Opening {
    /// Names it.
    pub id: AttemptId,
    /// What the worker continues; absent while nothing is committed.
    pub resume: Option<Resume>,
}

/// What became of a frame.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// It is the stream's next token.
    Commit(Commit),
    /// It was said before, or comes from an attempt that is over.
    Stale,
    /// The attempt can't go on with this stream: it is over, and is to be cancelled.
    Cancel(Fault),
}

/// A token that was just committed.
#[derive(Clone, Debug, PartialEq)]
pub struct Commit {
    /// Its place in the output.
    pub index: u32,
    /// The token.
    pub token: Token,
    /// With index 0: the prompt that the stream now rests on.
    pub prompt: Option<Prompt>,
    /// Another attempt spoke before; whether both compute bit for bit alike.
    pub seam_exact: Option<bool>,
    /// The token ends the choice.
    pub finish: Option<FinishReason>,
}

/// Why an attempt can't go on.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Fault {
    /// A frame was left out.
    #[error("spoke index {found} where {expected} comes next")]
    Gap {
        /// The ledger's next index.
        expected: u32,
        /// The frame's.
        found: u32,
    },
    /// Its tokens are not the stream's.
    #[error("rests on other tokens than the stream from index {index} on")]
    Diverged {
        /// Where it was noticed.
        index: u32,
    },
    /// It broke the protocol.
    #[error("broke the protocol: {0}")]
    Protocol(&'static str),
}

/// What became of an attempt's last word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The choice is complete.
    Choice(FinishReason),
    /// The attempt is over and the choice is not: continue elsewhere.
    Elsewhere(finished::Reason),
    /// It was over already.
    Stale,
}

impl Ledger {
    /// An empty ledger for one choice of a stream.
    #[must_use]
    pub fn new(stream: impl Into<String>, choice: u32, limits: Limits) -> Self {
        Self {
            stream: stream.into(),
            choice,
            limits,
            committed: Vec::new(),
            head: None,
            attempts: BTreeMap::new(),
            next_attempt: 0,
            speaker: None,
            finish: None,
        }
    }

    /// Opens another attempt, that continues after what is committed now.
    pub fn open(&mut self) -> Opening {
        let attempt = self.next_attempt;
        self.next_attempt += 1;
        self.attempts.insert(attempt, Attempt::Opened);
        let resume = self.head.map(|head| Resume {
            ids: self.committed.iter().map(|token| token.id).collect(),
            digest: head.to_bytes(),
        });
        Opening { id: self.id(attempt), resume }
    }

    /// A worker took the attempt.
    ///
    /// # Errors
    /// When it would continue another prompt than the stream's; the attempt is then over.
    pub fn started(&mut self, attempt: u32, started: &Started) -> Result<Prompt, Fault> {
        match self.voice(attempt, started) {
            Ok(voice) => {
                let prompt = voice.prompt;
                self.attempts.insert(attempt, Attempt::Running(voice));
                Ok(prompt)
            }
            Err(fault) => {
                self.attempts.remove(&attempt);
                Err(fault)
            }
        }
    }

    fn voice(&self, attempt: u32, started: &Started) -> Result<Voice, Fault> {
        if !matches!(self.attempts.get(&attempt), Some(Attempt::Opened)) {
            return Err(Fault::Protocol("an attempt starts once"));
        }
        let prompt_digest = PrefixDigest::try_from(started.prompt_digest.as_slice())
            .map_err(|_| Fault::Protocol("a prompt digest has 16 bytes"))?;
        if self.committed.first().is_some_and(|first| first.digest != prompt_digest) {
            return Err(Fault::Diverged { index: 0 });
        }
        let prompt = Prompt {
            tokens: started.prompt_tokens,
            cached_tokens: started.cached_tokens,
            opens_thinking: started.opens_thinking,
        };
        Ok(Voice { prompt, prompt_digest, numerics_id: started.numerics_id.clone() })
    }

    /// Judges a frame that arrived from `attempt`.
    pub fn offer(&mut self, attempt: u32, frame: Frame) -> Verdict {
        if self.finish.is_some() || frame.attempt.as_ref() != Some(&self.id(attempt)) {
            return Verdict::Stale;
        }
        let voice = match self.attempts.get(&attempt) {
            None => return Verdict::Stale,
            Some(Attempt::Opened) => {
                return self.cancel(attempt, Fault::Protocol("a frame came before Started"));
            }
            Some(Attempt::Running(voice)) => voice,
        };
        let index = frame.index;
        let Ok(digest) = PrefixDigest::try_from(frame.digest.as_slice()) else {
            return self.cancel(attempt, Fault::Protocol("a frame's digest has 16 bytes"));
        };
        if let Some(said) = self.committed.get(index as usize) {
            return if said.digest == digest && said.id == frame.id {
                Verdict::Stale
            } else {
                self.cancel(attempt, Fault::Diverged { index })
            };
        }
        let expected = self.len();
        if index != expected {
            return self.cancel(attempt, Fault::Gap { expected, found: index });
        }
        if digest != self.head.unwrap_or(voice.prompt_digest) {
            return self.cancel(attempt, Fault::Diverged { index });
        }
        let voice = voice.clone();
        Verdict::Commit(self.commit(attempt, voice, digest, frame))
    }

    fn commit(&mut self, attempt: u32, voice: Voice, digest: PrefixDigest, frame: Frame) -> Commit {
        let index = self.len();
        self.committed.push(Committed { id: frame.id, digest });
        self.head = Some(digest.then(frame.id));
        let seam_exact = self
            .speaker
            .as_ref()
            .filter(|before| before.attempt != attempt)
            .map(|before| !voice.numerics_id.is_empty() && before.numerics_id == voice.numerics_id);
        self.speaker = Some(Speaker { attempt, numerics_id: voice.numerics_id });
        if frame.end_of_generation && !self.limits.ignore_eos {
            self.finish = Some(FinishReason::Stop);
        } else if self.limits.max_tokens != 0 && self.len() >= self.limits.max_tokens {
            self.finish = Some(FinishReason::Length);
        }
        Commit {
            index,
            token: frame.into(),
            prompt: (index == 0).then_some(voice.prompt),
            seam_exact,
            finish: self.finish,
        }
    }

    /// Judges an attempt's last word.
    pub fn finished(&mut self, attempt: u32, finished: &Finished) -> Ending {
        if self.attempts.remove(&attempt).is_none() || self.finish.is_some() {
            return Ending::Stale;
        }
        let reason = match finished.reason() {
            finished::Reason::Stop => FinishReason::Stop,
            finished::Reason::Length | finished::Reason::Context => FinishReason::Length,
            other => return Ending::Elsewhere(other),
        };
        // An attempt that saw fewer tokens than are committed, or more, does not know where the stream is.
        if finished.tokens != self.len() {
            return Ending::Elsewhere(finished::Reason::Failed);
        }
        self.finish = Some(reason);
        Ending::Choice(reason)
    }

    /// The attempt is over without a last word. Its late words change nothing.
    pub fn close(&mut self, attempt: u32) {
        self.attempts.remove(&attempt);
    }

    /// Names an attempt of this choice.
    #[must_use]
    pub fn id(&self, attempt: u32) -> AttemptId {
        AttemptId { stream: self.stream.clone(), choice: self.choice, attempt }
    }

    /// Tokens committed.
    #[must_use]
    pub fn len(&self) -> u32 {
        u32::try_from(self.committed.len()).expect("a context has fewer than 2^32 tokens")
    }

    /// Whether nothing is committed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.committed.is_empty()
    }

    /// Attempts that run.
    pub fn attempts(&self) -> impl Iterator<Item = u32> + '_ {
        self.attempts.keys().copied()
    }

    /// Attempts opened so far, over or not.
    #[must_use]
    pub fn opened(&self) -> u32 {
        self.next_attempt
    }

    /// The numerics of whoever spoke last: a worker of the same continues bit for bit.
    #[must_use]
    pub fn numerics_id(&self) -> Option<&str> {
        self.speaker.as_ref().map(|speaker| speaker.numerics_id.as_str())
    }

    /// How the choice ended.
    #[must_use]
    pub fn finish(&self) -> Option<FinishReason> {
        self.finish
    }

    fn cancel(&mut self, attempt: u32, fault: Fault) -> Verdict {
        self.attempts.remove(&attempt);
        Verdict::Cancel(fault)
    }
}

#[cfg(test)]
mod tests;

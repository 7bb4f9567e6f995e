//! Continuous batching over a [`DecodeModel`]: which rows go into the next step, who waits, and who yields.
//!
//! Synchronous and without a clock: its owner calls [`Scheduler::step`] for as long as it says that there is work, and
//! passes on the events.
//!
//! **Rows.** A step has one row of every sequence that decodes, then rows of prompts, oldest first, up to a bound that
//! keeps the step short. Both are the same thing: the tokens that are not yet in the KV cache.
//!
//! **Pages.** A job starts when there are pages for its tokens and one more for each running sequence, not for all that
//! it may once say: most answers are shorter than what clients allow. When a sequence finds no free page, the youngest
//! one yields: its pages are released, and it waits, before all newer jobs, to be computed anew. Because a
//! row's bits depend on its sequence alone, that shows nowhere but in time. The oldest always goes on, since the pool
//! has room for at least one longest sequence.

mod job;
#[cfg(any(test, feature = "scripted"))]
pub mod scripted;
mod sequence;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::AtomicU64;

use tandem_worker_api::PrefixDigest;
use thiserror::Error;

pub use job::{Event, Finish, Job, JobId, Refusal, Resume, Token};
use sequence::Sequence;

use crate::decode::{DecodeModel, ForwardError, Row};

/// Bounds of a scheduler.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Sequences computed at once.
    pub active: usize,
    /// Jobs that wait for a place; more are refused.
    pub waiting: usize,
    /// Rows of prompts in a step.
    pub prefill_rows: usize,
}

/// A model with which no scheduler can work.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Unusable {
    /// Not even one longest sequence fits.
    #[error(
        "the KV pool has {pages} pages, but one sequence of {context} tokens needs {needed}; raise the pool"
    )]
    PoolTooSmall {
        /// Pages there are.
        pages: u32,
        /// Longest sequence, in tokens.
        context: u32,
        /// Pages for it.
        needed: u32,
    },
    /// A bound of zero.
    #[error("{0} must be at least 1")]
    Zero(&'static str),
}

/// Whether there is more to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// A step was computed; call again.
    Stepped,
    /// No job is there.
    Idle,
}

/// A sequence that holds a slot and pages.
#[derive(Debug)]
struct Active {
    sequence: Sequence,
    slot: u32,
    /// How many of its tokens are in the KV cache.
    cached: u32,
    /// Up to here the tokens were there when it started: progress below this is prefill.
    prefill: u32,
}

impl Active {
    /// Tokens that are not in the KV cache yet; at least one.
    fn pending(&self) -> u32 {
        self.sequence.len() - self.cached
    }
}

/// Rows of one sequence in a step.
struct Part {
    id: JobId,
    rows: u32,
    /// Whether they reach the last token, so that the next one can be chosen.
    complete: bool,
}

/// Runs jobs on a model, many at a time.
pub struct Scheduler<M> {
    model: M,
    limits: Limits,
    end_ids: BTreeSet<u32>,
    next_id: u64,
    draining: bool,
    /// By age.
    active: BTreeMap<JobId, Active>,
    /// By age: one that yielded is older than those that never ran.
    waiting: BTreeMap<JobId, Sequence>,
    rows: Vec<Row>,
    logits: Vec<f32>,
    /// Added to each draw's index. Anything but 0 is a fault that tests must notice.
    draw_shift: u32,
}

impl<M: DecodeModel> Scheduler<M> {
    /// Over a model whose ids in `end_ids` end a turn.
    ///
    /// # Errors
    /// When the model has no room for one longest sequence, or a bound is zero.
    pub fn new(model: M, end_ids: BTreeSet<u32>, limits: Limits) -> Result<Self, Unusable> {
        let pages = model.pages();
        let context = model.context_tokens();
        let needed = pages.needed_for(context);
        if needed > pages.total {
            return Err(Unusable::PoolTooSmall { pages: pages.total, context, needed });
        }
        let active = limits.active.min(model.max_sequences() as usize).min(model.max_batch_rows());
        for (bound, name) in
            [(active, "the number of active sequences"), (limits.prefill_rows, "the number of prefill rows")]
        {
            if bound == 0 {
                return Err(Unusable::Zero(name));
            }
        }
        let (rows, logits) = (model.max_batch_rows(), active * model.vocab_size());
        Ok(Self {
            model,
            limits: Limits { active, ..limits },
            end_ids,
            next_id: 0,
            draining: false,
            active: BTreeMap::new(),
            waiting: BTreeMap::new(),
            rows: Vec::with_capacity(rows),
            logits: Vec::with_capacity(logits),
            draw_shift: 0,
        })
    }

    /// The model.
    pub fn model(&self) -> &M {
        &self.model
    }

    /// Jobs being computed.
    pub fn active(&self) -> usize {
        self.active.len()
    }

    /// Jobs that wait for a place.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Takes a job. Its events come with later steps.
    ///
    /// # Errors
    /// When the job is not possible here, or not now.
    pub fn submit(&mut self, job: Job) -> Result<JobId, Refusal> {
        let digest = self.check(&job)?;
        if self.draining {
            return Err(Refusal::Draining);
        }
        if self.waiting.len() >= self.limits.waiting {
            return Err(Refusal::Overloaded { waiting: self.waiting.len() });
        }
        let id = JobId(self.next_id);
        self.next_id += 1;
        let context = self.model.context_tokens();
        let sequence = Sequence::new(job, digest, context, |token| self.end_ids.contains(&token));
        self.waiting.insert(id, sequence);
        Ok(id)
    }

    /// The digest of all the job's tokens, if it can run here.
    fn check(&self, job: &Job) -> Result<PrefixDigest, Refusal> {
        if job.prompt.is_empty() {
            return Err(Refusal::EmptyPrompt);
        }
        let vocab = self.model.vocab_size();
        let resumed = job.resume.as_ref().map_or(&[][..], |resume| &resume.ids);
        if let Some(&id) = job.prompt.iter().chain(resumed).find(|&&id| id as usize >= vocab) {
            return Err(Refusal::UnknownToken { id, last: vocab.saturating_sub(1) as u32 });
        }
        let context = self.model.context_tokens();
        let prompt = job.prompt.len();
        if prompt >= context as usize {
            return Err(Refusal::PromptLength { prompt, context });
        }
        let max_tokens = job.max_tokens.map_or(1, |max| max.get());
        if prompt.saturating_add(max_tokens as usize) > context as usize
            || prompt.saturating_add(resumed.len()) > context as usize
        {
            return Err(Refusal::ContextLength { prompt, max_tokens, context });
        }
        let digest = PrefixDigest::of_prompt(&job.prompt).then_all(resumed);
        match &job.resume {
            Some(resume) if resume.digest != digest => Err(Refusal::Diverged),
            _ => Ok(digest),
        }
    }

    /// Ends a job at once. One that is over already is not touched.
    pub fn cancel(&mut self, id: JobId, events: &mut impl FnMut(JobId, Event)) {
        self.end(id, Finish::Cancelled, events);
    }

    /// Takes no jobs from now on.
    pub fn drain(&mut self) {
        self.draining = true;
    }

    /// Ends all jobs, for `finish`, and counts them.
    pub fn end_all(&mut self, finish: Finish, events: &mut impl FnMut(JobId, Event)) -> usize {
        let ids: Vec<JobId> = self.active.keys().chain(self.waiting.keys()).copied().collect();
        for &id in &ids {
            self.end(id, finish, events);
        }
        ids.len()
    }

    fn end(&mut self, id: JobId, finish: Finish, events: &mut impl FnMut(JobId, Event)) {
        let sequence = if let Some(active) = self.active.remove(&id) {
            self.model.release(active.slot);
            active.sequence
        } else if let Some(sequence) = self.waiting.remove(&id) {
            sequence
        } else {
            return;
        };
        events(id, Event::Finished { finish, tokens: sequence.output_tokens() });
    }

    /// Computes the next step, if there is a job.
    ///
    /// # Errors
    /// When the model refuses rows that it should take. That is a defect; no further step can be trusted.
    pub fn step(
        &mut self,
        ticks: &AtomicU64,
        events: &mut impl FnMut(JobId, Event),
    ) -> Result<Progress, ForwardError> {
        self.admit(events);
        let parts = self.plan();
        if parts.is_empty() {
            return Ok(Progress::Idle);
        }
        let wanted = parts.iter().filter(|part| part.complete).count();
        self.logits.resize(wanted * self.model.vocab_size(), 0.0);
        let broken = match self.model.forward(&self.rows, ticks, &mut self.logits) {
            Ok(()) => Vec::new(),
            Err(ForwardError::NotFinite { sequences }) => sequences,
            Err(defect) => return Err(defect),
        };
        self.settle(&parts, &broken, events);
        Ok(Progress::Stepped)
    }

    /// Starts waiting jobs, oldest first, for as long as there is a slot and pages.
    fn admit(&mut self, events: &mut impl FnMut(JobId, Event)) {
        while let Some((&id, sequence)) = self.waiting.first_key_value() {
            // A resumed job can be over before it starts.
            if let Some(finish) = sequence.finish() {
                self.end(id, finish, events);
                continue;
            }
            let tokens = sequence.len();
            let pages = self.model.pages();
            let growth = self.active.len() as u32;
            if self.active.len() >= self.limits.active || pages.needed_for(tokens) + growth > pages.free {
                return;
            }
            let slot = self.free_slot();
            if self.model.reserve(slot, tokens).is_err() {
                return;
            }
            let sequence = self.waiting.remove(&id).expect("it was found a moment ago");
            self.active.insert(id, Active { sequence, slot, cached: 0, prefill: tokens });
        }
    }

    fn free_slot(&self) -> u32 {
        (0..)
            .find(|slot| self.active.values().all(|active| active.slot != *slot))
            .expect("there are more numbers than active sequences")
    }

    /// Fills `rows`, and says whose they are.
    fn plan(&mut self) -> Vec<Part> {
        let (decoding, filling): (Vec<JobId>, Vec<JobId>) =
            self.active.keys().partition(|id| self.active[id].pending() == 1);
        self.rows.clear();
        let mut parts = Vec::new();
        for id in decoding {
            if self.make_room(id) {
                parts.push(self.take_rows(id, 1));
            }
        }
        let mut budget = self.limits.prefill_rows.min(self.model.max_batch_rows() - self.rows.len());
        for id in filling {
            // It may have had to yield to a sequence above.
            let Some(active) = self.active.get(&id) else { continue };
            let rows = active.pending().min(budget as u32);
            if rows == 0 {
                break;
            }
            budget -= rows as usize;
            parts.push(self.take_rows(id, rows));
        }
        parts
    }

    fn take_rows(&mut self, id: JobId, count: u32) -> Part {
        let active = &self.active[&id];
        let complete = count == active.pending();
        let tokens = active.sequence.tokens();
        self.rows.extend((0..count).map(|row| {
            let position = active.cached + row;
            Row {
                sequence: active.slot,
                position,
                token: tokens[position as usize],
                wants_logits: complete && row == count - 1,
            }
        }));
        Part { id, rows: count, complete }
    }

    /// Reserves pages for all tokens of a sequence. Younger ones yield; if there is none, it yields itself.
    fn make_room(&mut self, id: JobId) -> bool {
        loop {
            let Some(active) = self.active.get(&id) else { return false };
            if self.model.reserve(active.slot, active.sequence.len()).is_ok() {
                return true;
            }
            let youngest = *self.active.keys().next_back().expect("at least this one is active");
            let yielding = self.active.remove(&youngest).expect("it was found a moment ago");
            self.model.release(yielding.slot);
            self.waiting.insert(youngest, yielding.sequence);
        }
    }

    /// Chooses tokens from the logits of a step, in which the slots `broken` have none to choose from.
    fn settle(&mut self, parts: &[Part], broken: &[u32], events: &mut impl FnMut(JobId, Event)) {
        let vocab = self.model.vocab_size();
        let mut logits = std::mem::take(&mut self.logits);
        let mut logit_rows = logits.chunks_exact_mut(vocab);
        for part in parts {
            let row = part.complete.then(|| logit_rows.next().expect("each complete part has a row"));
            let active =
                self.active.get_mut(&part.id).expect("planned sequences stay active through the step");
            let filling = active.cached < active.prefill;
            active.cached += part.rows;
            if broken.contains(&active.slot) {
                self.end(part.id, Finish::NotFinite, events);
                continue;
            }
            if filling {
                let (done, total) = (active.cached, active.prefill);
                events(part.id, Event::Prefill { done, total });
            }
            let Some(row) = row else { continue };
            match active.sequence.advance(row, self.draw_shift, |token| self.end_ids.contains(&token)) {
                Ok(token) => {
                    events(part.id, Event::Token(token));
                    if let Some(finish) = active.sequence.finish() {
                        self.end(part.id, finish, events);
                    }
                }
                Err(_) => self.end(part.id, Finish::NotFinite, events),
            }
        }
        self.logits = logits;
    }
}

#[cfg(test)]
mod tests;

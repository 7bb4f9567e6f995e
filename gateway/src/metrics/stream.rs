//! What one choice adds to the figures.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tandem_gateway_core::turns::Turns;
use tandem_gateway_core::{Event, FinishReason, Refusal};

use super::{Metrics, Of, kind_of, result_of, seam};

/// A choice, counted for as long as it lives.
pub(crate) struct Told {
    metrics: Arc<Metrics>,
    of: Of,
    opened: Duration,
    /// A worker has begun with it.
    begun: bool,
    /// When the last token came.
    last: Option<Duration>,
    result: &'static str,
}

impl Told {
    pub(crate) fn new(metrics: Arc<Metrics>, deployment: &str, now: Duration) -> Self {
        let of = Of::deployment(deployment);
        metrics.waiting.get_or_create(&of).inc();
        // What is dropped without a last word has lost its client.
        Self { metrics, of, opened: now, begun: false, last: None, result: "client_gone" }
    }

    pub(crate) fn attempt(&self) {
        self.metrics.attempts.get_or_create(&self.of).inc();
    }

    pub(crate) fn event(&mut self, event: &Event, now: Duration) {
        let (metrics, of) = (&self.metrics, &self.of);
        match event {
            // It comes again when another worker speaks the first token.
            Event::Started(_) if self.begun => {}
            Event::Started(prompt) => {
                self.begun = true;
                metrics.waiting.get_or_create(of).dec();
                metrics.running.get_or_create(of).inc();
                let tokens = |kind| metrics.tokens.get_or_create_owned(&kind_of(of, kind));
                tokens("prompt").inc_by(prompt.tokens.into());
                tokens("cached").inc_by(prompt.cached_tokens.into());
            }
            Event::Token(_) => {
                metrics.tokens.get_or_create(&kind_of(of, "completion")).inc();
                let (family, since) = match self.last {
                    None => (&metrics.first_token, self.opened),
                    Some(last) => (&metrics.between, last),
                };
                family.get_or_create(of).observe(now.saturating_sub(since).as_secs_f64());
                self.last = Some(now);
            }
            Event::Seam(taken) => {
                let exact = if taken.exact { "true" } else { "false" };
                metrics.takeovers.get_or_create(&seam(of, exact)).inc();
                metrics.recovery.get_or_create(of).observe(taken.recovery.as_secs_f64());
                // The token after it is no token of the same worker.
                self.last = self.last.map(|_| now);
            }
            Event::Finished(reason) => {
                self.result = match reason {
                    FinishReason::Stop => "stop",
                    FinishReason::Length => "length",
                    FinishReason::ToolCalls => "tool_calls",
                };
            }
        }
    }

    pub(crate) fn failed(&mut self, refusal: &Refusal) {
        self.result = match refusal {
            Refusal::Invalid { .. } | Refusal::ContextLengthExceeded(_) => "invalid",
            Refusal::ModelNotFound(_) => "not_found",
            Refusal::Unauthenticated(_) | Refusal::Limited { .. } => "refused",
            Refusal::Overloaded { .. } => "overloaded",
            Refusal::Unavailable { .. } => "unavailable",
            Refusal::Poisonous => "poisonous",
            Refusal::DeadlineExceeded(_) => "deadline",
            Refusal::Internal(_) => "internal",
        };
    }

    /// A worker has a place free again.
    pub(crate) fn leave(&self, turns: &Mutex<Turns>, now: Duration) {
        if self.begun {
            turns.lock().unwrap_or_else(PoisonError::into_inner).ended(now);
        }
    }

    /// Others of the same deployment that wait.
    pub(crate) fn ahead(&self) -> usize {
        let waiting = self.metrics.waiting.get_or_create(&self.of).get();
        usize::try_from(waiting - i64::from(!self.begun)).unwrap_or(0)
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        let (metrics, of) = (&self.metrics, &self.of);
        let left = if self.begun { &metrics.running } else { &metrics.waiting };
        left.get_or_create(of).dec();
        metrics.ended.get_or_create(&result_of(of, self.result)).inc();
    }
}

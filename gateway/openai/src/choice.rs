//! One choice of a request: its events folded into steps that can be sent.

use std::sync::Arc;

use futures::stream::{self, Stream, StreamExt};
use tandem_gateway_core::fold::{Delta, Fold, Format, Usage};
use tandem_gateway_core::{Event, Refusal, Seam, Token};

use crate::{EventStream, Visitor};

/// What one token, or the end, adds to a choice.
#[derive(Debug, Default)]
pub(crate) struct Step {
    pub(crate) choice: u32,
    /// The token, unless it is a control token that ends the turn.
    pub(crate) token: Option<Token>,
    /// Characters of the output before the token.
    pub(crate) offset: usize,
    pub(crate) delta: Delta,
    pub(crate) seam: Option<Seam>,
    /// With the last step.
    pub(crate) usage: Option<Usage>,
}

/// A choice that a worker has taken.
pub(crate) struct Choice {
    index: u32,
    events: EventStream,
    fold: Fold,
    seam: Option<Seam>,
    offset: usize,
    visitor: Arc<dyn Visitor>,
}

impl Choice {
    /// Waits until a worker takes it, so that a refusal can still become an HTTP status.
    pub(crate) async fn start(
        index: u32,
        mut events: EventStream,
        format: Format,
        visitor: Arc<dyn Visitor>,
    ) -> Result<Self, Refusal> {
        let mut fold = Fold::new(format);
        match events.next().await {
            Some(Ok(Event::Started(prompt))) => {
                // The prompt counts once, however many choices it has and however many workers read it.
                if index == 0 {
                    visitor.used(prompt.tokens, 0);
                }
                fold.begin(&prompt);
            }
            Some(Err(refusal)) => return Err(refusal),
            Some(Ok(_)) => return Err(Refusal::Internal("the stream began without a prompt".to_owned())),
            None => return Err(cut()),
        }
        Ok(Self { index, events, fold, seam: None, offset: 0, visitor })
    }

    /// Its steps. The events are dropped, which cancels the choice, as soon as the last step is made.
    pub(crate) fn steps(self) -> impl Stream<Item = Result<Step, Refusal>> + Send {
        stream::unfold(Some(self), |choice| async move {
            let mut choice = choice?;
            let step = choice.next().await;
            let last = step.as_ref().map_or(true, |step| step.usage.is_some());
            Some((step, (!last).then_some(choice)))
        })
    }

    async fn next(&mut self) -> Result<Step, Refusal> {
        loop {
            match self.events.next().await.unwrap_or_else(|| Err(cut()))? {
                Event::Started(prompt) => self.fold.begin(&prompt),
                Event::Seam(seam) => self.seam = Some(seam),
                Event::Token(token) => {
                    self.visitor.used(0, 1);
                    let delta = self.fold.push(&token);
                    let offset = self.offset;
                    self.offset += String::from_utf8_lossy(&token.bytes).chars().count();
                    return Ok(self.step((!token.ends_turn).then_some(token), offset, delta));
                }
                Event::Finished(reason) => {
                    let delta = self.fold.finish(reason);
                    return Ok(self.step(None, self.offset, delta));
                }
            }
        }
    }

    fn step(&mut self, token: Option<Token>, offset: usize, delta: Delta) -> Step {
        let usage = delta.finish.is_some().then(|| self.fold.usage());
        Step { choice: self.index, token, offset, delta, seam: self.seam.take(), usage }
    }
}

fn cut() -> Refusal {
    Refusal::Internal("the stream ended before its last word".to_owned())
}

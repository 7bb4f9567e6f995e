//! Settle: many writes of one pass, some at once, and each held to its own outcome. Looks at the lease before each few of them.

use std::time::Duration;

use futures::future::{BoxFuture, join_all};
use tandem_store::{EventNote, Key, Object, Severity, StoreError};
use tandem_traces::Span;

use super::backoff::{Backoff, Part, is_the_objects_own};
use crate::caller::chain;
use crate::cluster::Cluster;
use crate::lead::Leadership;

/// Writes under way at once: enough to hide the way to a server, and few enough that the lease is looked at between them.
const AT_ONCE: usize = 8;

/// One write that is due.
pub(super) struct Write<'a> {
    pub(super) object: &'a Object,
    pub(super) run: BoxFuture<'a, Result<(), StoreError>>,
}

/// Everything that writing takes.
pub(super) struct Writer<'a> {
    pub(super) cluster: &'a Cluster,
    pub(super) leadership: &'a mut Leadership,
    pub(super) backoff: &'a mut Backoff,
    /// The pass, if somebody wants to know.
    pub(super) trace: &'a Span,
}

impl Writer<'_> {
    /// Whether this operator still leads.
    pub(super) fn leads(&self) -> bool {
        self.leadership.term().is_some()
    }

    /// Whether an object's own refusals hold this write back.
    pub(super) fn holds(&self, object: &Object, part: Part) -> bool {
        self.backoff.holds(object, part, self.cluster.clock.elapsed())
    }

    /// How long until something that was held back may be written.
    pub(super) fn due(&self) -> Duration {
        self.backoff.due(self.cluster.clock.elapsed())
    }

    /// Does every write, as long as this operator leads. An object that is refused waits for its next turn by itself; any other
    /// failure ends this, once all that is under way has its answer.
    pub(super) async fn settle(&mut self, part: Part, writes: Vec<Write<'_>>) -> Result<(), StoreError> {
        let mut writes = writes.into_iter().peekable();
        while writes.peek().is_some() {
            // Many writes outlast a lease; who has lost it writes no more.
            if self.leadership.look().await.is_none() {
                return Ok(());
            }
            let under_way = writes.by_ref().take(AT_ONCE);
            let under_way = under_way.map(|Write { object, run }| async move { (object, run.await) });
            let (mut failed, mut notes) = (None, Vec::new());
            for (object, outcome) in join_all(under_way).await {
                match outcome {
                    Ok(()) => self.backoff.succeeded(&object.key, part),
                    Err(error) if is_the_objects_own(&error) => {
                        notes.push(self.hold_back(object, part, &error));
                    }
                    // That somebody was faster says less than that the store is out of reach.
                    Err(error) if failed.as_ref().is_none_or(StoreError::is_conflict) => failed = Some(error),
                    Err(_) => {}
                }
            }
            note(self.cluster, notes).await;
            if let Some(error) = failed {
                return Err(error);
            }
        }
        Ok(())
    }

    fn hold_back(&mut self, object: &Object, part: Part, error: &StoreError) -> EventNote {
        let wait = self.backoff.failed(object, part, self.cluster.clock.elapsed());
        let error = chain(error);
        self.cluster.metrics.write_failed(object.key.kind);
        tracing::warn!(object = %object.key, ?part, ?wait, error, "the store refuses a write; others go on");
        refusal(&object.key, part, &error)
    }
}

/// Notes what happened. That it can't be noted is a line in the log and nothing more: what happened has happened.
pub(super) async fn note(cluster: &Cluster, notes: Vec<EventNote>) {
    if notes.is_empty() {
        return;
    }
    if let Err(error) = cluster.store.record_events(notes).await {
        tracing::warn!(error = chain(&error), "events can't be noted");
    }
}

/// The same words for the same refusal, so that repeated ones add up to one event.
fn refusal(about: &Key, part: Part, said: &str) -> EventNote {
    let part = match part {
        Part::Spec => "spec",
        Part::Status => "status",
    };
    EventNote {
        about: about.clone(),
        severity: Severity::Warning,
        reason: "WriteRefused".to_owned(),
        message: format!("the store refuses the {part} that the operator writes: {said}"),
    }
}

//! The newest changes in a bounded ring, and watches that read along it at their own pace.

use std::collections::VecDeque;
use std::sync::{Arc, RwLock};

use futures::Stream;
use futures::stream::{self, BoxStream, StreamExt as _};
use tokio::sync::watch;

use crate::error::StoreError;
use crate::object::{Object, Selector, Version};

/// What a watch says.
#[derive(Debug, Clone, PartialEq)]
pub enum WatchEvent {
    /// The object is there: it existed, or was made.
    Added(Object),
    /// The object has changed.
    Modified(Object),
    /// The object is gone; this is how it was last, with the version of its removal.
    Deleted(Object),
    /// Everything up to this version has been said.
    Bookmark(Version),
}

impl WatchEvent {
    /// The object in question; none for a bookmark.
    pub fn object(&self) -> Option<&Object> {
        match self {
            Self::Added(object) | Self::Modified(object) | Self::Deleted(object) => Some(object),
            Self::Bookmark(_) => None,
        }
    }
}

/// A watch: ends after an error, and when the store closes.
pub type Watch = BoxStream<'static, Result<WatchEvent, StoreError>>;

/// The newest changes, each with the revision that made it.
#[derive(Debug)]
pub(crate) struct History {
    /// Changes up to and including this revision are no longer kept.
    compacted: u64,
    changes: VecDeque<(u64, WatchEvent)>,
    capacity: usize,
}

impl History {
    /// An empty history after `revision`.
    pub(crate) fn after(revision: u64, capacity: usize) -> Self {
        Self { compacted: revision, changes: VecDeque::new(), capacity }
    }

    /// Appends a change; revisions grow.
    pub(crate) fn push(&mut self, revision: u64, event: WatchEvent) {
        self.changes.push_back((revision, event));
        if self.changes.len() > self.capacity
            && let Some((oldest, _)) = self.changes.pop_front()
        {
            self.compacted = oldest;
        }
    }

    /// Forgets everything so far.
    pub(crate) fn compact(&mut self, revision: u64) {
        self.changes.clear();
        self.compacted = revision;
    }

    /// Whether all changes after `revision` are still here.
    pub(crate) fn reaches(&self, revision: u64) -> bool {
        revision >= self.compacted
    }

    /// The first change after `revision` that is meant, or how far there is none.
    fn next(&self, revision: u64, selector: &Selector) -> Result<Option<(u64, WatchEvent)>, StoreError> {
        if !self.reaches(revision) {
            return Err(StoreError::Expired { since: Version(revision.to_string()) });
        }
        let start = self.changes.partition_point(|(at, _)| *at <= revision);
        let meant = |event: &WatchEvent| event.object().is_some_and(|object| selector.matches(&object.key));
        Ok(self.changes.range(start..).find(|(_, event)| meant(event)).cloned())
    }
}

/// Reads along the history from `since`; a reader that falls behind the ring is told so by an error.
pub(crate) fn follow(
    history: Arc<RwLock<History>>,
    newest: watch::Receiver<u64>,
    selector: Selector,
    since: u64,
) -> impl Stream<Item = Result<WatchEvent, StoreError>> + Send + 'static {
    struct Reader {
        history: Arc<RwLock<History>>,
        newest: watch::Receiver<u64>,
        selector: Selector,
        at: u64,
        failed: bool,
    }
    let reader = Reader { history, newest, selector, at: since, failed: false };
    stream::unfold(reader, |mut reader| async move {
        if reader.failed {
            return None;
        }
        loop {
            // Marked as seen before looking: a change in between wakes the wait below at once.
            let newest = *reader.newest.borrow_and_update();
            let next = {
                let history = reader.history.read().expect("no panic while the history is written");
                history.next(reader.at, &reader.selector)
            };
            match next {
                Ok(Some((revision, event))) => {
                    reader.at = revision;
                    return Some((Ok(event), reader));
                }
                // Nothing of interest up to here: the ring may move on without this reader having fallen behind.
                Ok(None) => reader.at = reader.at.max(newest),
                Err(error) => {
                    reader.failed = true;
                    return Some((Err(error), reader));
                }
            }
            if reader.newest.changed().await.is_err() {
                return None;
            }
        }
    })
}

/// Existing objects, a bookmark, then what follows.
pub(crate) fn listed_first(
    objects: Vec<Object>,
    version: Version,
    then: impl Stream<Item = Result<WatchEvent, StoreError>> + Send + 'static,
) -> Watch {
    let first = objects.into_iter().map(WatchEvent::Added).chain([WatchEvent::Bookmark(version)]).map(Ok);
    stream::iter(first).chain(then).boxed()
}

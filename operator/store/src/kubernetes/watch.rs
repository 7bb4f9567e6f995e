//! Watches that recover: a lost connection, a busy server and a silent one are met by watching on from the last version seen.
//! Only changes that the server no longer keeps end a watch, with [`StoreError::Expired`].

use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use futures::stream::{self, BoxStream, StreamExt as _};
use kube::core::params::WatchParams;
use kube::core::{Request, WatchEvent as Said};
use serde_json::Value;
use tokio::time::{sleep, timeout};

use super::api::{Api, Failure};
use super::paths;
use crate::error::StoreError;
use crate::object::{Kind, Object, Version};
use crate::watch::{Watch, WatchEvent};

/// How long the server lets one watch last.
const LASTS_SECONDS: u32 = 30;
/// A watch that neither speaks nor ends by then has stalled.
const STALLED_AFTER: Duration = Duration::from_secs(LASTS_SECONDS as u64 + 5);
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// A version as a number: API servers' versions grow.
pub(super) fn number(version: &Version) -> u64 {
    version.0.parse().unwrap_or(0)
}

struct Follower {
    api: Api,
    kind: Kind,
    namespace: Option<String>,
    name: Option<String>,
    at: Version,
    events: Option<BoxStream<'static, Result<Said<Value>, Failure>>>,
    pauses: ExponentialBackoff,
    over: bool,
}

/// The changes after a version, for as long as the server keeps them.
pub(super) fn follow(
    api: Api,
    kind: Kind,
    namespace: Option<String>,
    name: Option<String>,
    since: Version,
) -> Watch {
    let closed = api.closed();
    let follower =
        Follower { api, kind, namespace, name, at: since, events: None, pauses: pauses(), over: false };
    let changes = stream::unfold(follower, |mut follower| async move {
        if follower.over {
            return None;
        }
        let next = follower.next().await;
        follower.over = next.is_err();
        Some((next, follower))
    });
    changes.take_until(closed).boxed()
}

fn pauses() -> ExponentialBackoff {
    ExponentialBuilder::new()
        .with_min_delay(FIRST_PAUSE)
        .with_max_delay(LONGEST_PAUSE)
        .with_jitter()
        .without_max_times()
        .build()
}

impl Follower {
    /// The next change; an error only when changes were missed.
    async fn next(&mut self) -> Result<WatchEvent, StoreError> {
        loop {
            if self.events.is_none() {
                match self.begin().await {
                    Ok(events) => self.events = Some(events),
                    Err(failure) => {
                        self.recover(&failure)?;
                        self.pause(&failure).await;
                        continue;
                    }
                }
            }
            let Some(events) = &mut self.events else { continue };
            match timeout(STALLED_AFTER, events.next()).await {
                Ok(Some(Ok(Said::Error(status)))) => {
                    let failure = Failure::Refused(status);
                    self.recover(&failure)?;
                    self.pause(&failure).await;
                }
                Ok(Some(Ok(said))) => {
                    self.pauses = pauses();
                    if let Some(event) = self.take(said) {
                        return Ok(event);
                    }
                }
                Ok(Some(Err(failure))) => {
                    self.recover(&failure)?;
                    self.pause(&failure).await;
                }
                // Its time is over, as asked for.
                Ok(None) => self.events = None,
                Err(_) => {
                    tracing::warn!(kind = %self.kind, "a watch has stalled: it is begun anew");
                    self.events = None;
                }
            }
        }
    }

    async fn begin(&mut self) -> Result<BoxStream<'static, Result<Said<Value>, Failure>>, Failure> {
        let params = WatchParams {
            field_selector: self.name.as_ref().map(|name| format!("metadata.name={name}")),
            timeout: Some(LASTS_SECONDS),
            bookmarks: true,
            ..WatchParams::default()
        };
        let collection = paths::collection(self.kind, self.namespace.as_deref());
        let events = self.api.events(Request::new(collection).watch(&params, &self.at.0)).await?;
        Ok(events.boxed())
    }

    fn take(&mut self, said: Said<Value>) -> Option<WatchEvent> {
        let event: (fn(Object) -> WatchEvent, Value) = match said {
            Said::Added(json) => (WatchEvent::Added, json),
            Said::Modified(json) => (WatchEvent::Modified, json),
            Said::Deleted(json) => (WatchEvent::Deleted, json),
            Said::Bookmark(bookmark) => {
                self.at = Version(bookmark.metadata.resource_version);
                return None;
            }
            Said::Error(_) => return None,
        };
        let object = paths::object(event.1)?;
        self.at = object.version.clone();
        Some(event.0(object))
    }

    fn recover(&mut self, failure: &Failure) -> Result<(), StoreError> {
        self.events = None;
        match failure {
            Failure::Refused(status) if status.code == 410 => {
                Err(StoreError::Expired { since: self.at.clone() })
            }
            Failure::Other(StoreError::Closed) => Err(StoreError::Closed),
            Failure::Refused(status) => {
                tracing::warn!(kind = %self.kind, code = status.code, message = status.message, "a watch was refused");
                Ok(())
            }
            Failure::Other(error) => {
                tracing::debug!(kind = %self.kind, %error, "a watch was cut");
                Ok(())
            }
        }
    }

    async fn pause(&mut self, failure: &Failure) {
        let asked = match failure {
            Failure::Refused(status) => {
                status.details.as_ref().map_or(0, |details| details.retry_after_seconds)
            }
            Failure::Other(_) => 0,
        };
        let own = self.pauses.next().unwrap_or(LONGEST_PAUSE);
        sleep(own.max(Duration::from_secs(asked.into())).min(LONGEST_PAUSE * 2)).await;
    }
}

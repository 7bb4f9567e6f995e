//! Watches that recover: another member goes on from the last revision seen. Only a compaction ends one.

use std::collections::VecDeque;
use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use etcd_client::{EventType, KeyValue, WatchOptions, WatchStream};
use futures::stream::{self, StreamExt as _};
use tokio::time::{sleep, timeout};

use super::client::Client;
use super::keys;
use crate::error::StoreError;
use crate::object::{Selector, Version};
use crate::watch::{Watch, WatchEvent};

/// After so long a silence a member is asked how far it is; after as much again it has stalled.
const SILENCE: Duration = Duration::from_secs(10);

struct Follower {
    client: Client,
    prefix: String,
    selector: Selector,
    /// Everything up to this revision has been said.
    at: i64,
    watch: Option<WatchStream>,
    said: VecDeque<WatchEvent>,
    pauses: ExponentialBackoff,
    over: bool,
}

/// The changes after a revision, for as long as etcd keeps them.
pub(super) fn follow(client: Client, prefix: String, selector: Selector, since: i64) -> Watch {
    let closed = client.closed();
    let follower = Follower {
        client,
        prefix,
        selector,
        at: since,
        watch: None,
        said: VecDeque::new(),
        pauses: pauses(),
        over: false,
    };
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
        .with_min_delay(Duration::from_millis(50))
        .with_max_delay(Duration::from_secs(2))
        .with_jitter()
        .without_max_times()
        .build()
}

impl Follower {
    async fn next(&mut self) -> Result<WatchEvent, StoreError> {
        loop {
            if let Some(event) = self.said.pop_front() {
                return Ok(event);
            }
            if self.listen().await? {
                self.pauses = pauses();
            } else {
                self.watch = None;
                sleep(self.pauses.next().unwrap_or(SILENCE)).await;
            }
        }
    }

    /// Whether the member goes on speaking.
    async fn listen(&mut self) -> Result<bool, StoreError> {
        if self.watch.is_none() {
            let options = WatchOptions::new().with_prefix().with_prev_key().with_start_revision(self.at + 1);
            let begun = self.client.watch(keys::of_kind(&self.prefix, &self.selector), options).await;
            match begun {
                Ok(watch) => self.watch = Some(watch),
                Err(StoreError::Closed) => return Err(StoreError::Closed),
                Err(error) => {
                    tracing::debug!(%error, "a watch can't be begun");
                    return Ok(false);
                }
            }
        }
        let Some(watch) = &mut self.watch else { return Ok(false) };
        let answer = match timeout(SILENCE, watch.message()).await {
            Ok(answer) => answer,
            Err(_) => {
                // Heard by the next message, which says no more than how far it is.
                if watch.request_progress().await.is_err() {
                    return Ok(false);
                }
                match timeout(SILENCE, watch.message()).await {
                    Ok(answer) => answer,
                    Err(_) => return Ok(false),
                }
            }
        };
        let answer = match answer {
            Ok(Some(answer)) => answer,
            Ok(None) => return Ok(false),
            Err(error) => {
                tracing::debug!(%error, "a watch was cut");
                return Ok(false);
            }
        };
        if answer.compact_revision() > self.at {
            return Err(StoreError::Expired { since: Version(self.at.to_string()) });
        }
        if answer.canceled() {
            tracing::debug!(reason = answer.cancel_reason(), "a watch was ended");
            return Ok(false);
        }
        for event in answer.events() {
            if let Some(event) = self.event(event.event_type(), event.kv(), event.prev_kv())? {
                self.said.push_back(event);
            }
        }
        Ok(true)
    }

    fn event(
        &mut self,
        kind: EventType,
        kv: Option<&KeyValue>,
        before: Option<&KeyValue>,
    ) -> Result<Option<WatchEvent>, StoreError> {
        let Some(kv) = kv else { return Ok(None) };
        let revision = kv.mod_revision();
        self.at = self.at.max(revision);
        let key = keys::key_of(&self.prefix, kv.key()).filter(|key| self.selector.matches(key));
        let Some(key) = key else { return Ok(None) };
        Ok(match (kind, before) {
            (EventType::Put, _) if kv.create_revision() == revision => {
                Some(WatchEvent::Added(keys::parse(key, kv.value(), revision)?))
            }
            (EventType::Put, _) => Some(WatchEvent::Modified(keys::parse(key, kv.value(), revision)?)),
            (EventType::Delete, Some(before)) => {
                Some(WatchEvent::Deleted(keys::parse(key, before.value(), revision)?))
            }
            // As it was last is no longer kept.
            (EventType::Delete, None) => {
                return Err(StoreError::Expired { since: Version(self.at.to_string()) });
            }
        })
    }
}

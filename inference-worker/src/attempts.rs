//! Attempts outlive connections: each has a log of what it said, which any number of listeners read, each at its own
//! pace, and which stays for a while after the last one left.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tandem_worker_api::{AttemptId, GenerateEvent, generate_event};
use thiserror::Error;
use tokio::sync::watch;

/// Events that a log keeps. A listener that is further behind has lost its place.
const LOG_EVENTS: usize = 4096;
/// Attempts whose logs are kept, running or over.
const MAX_ATTEMPTS: usize = 4096;

/// Names an attempt within this process.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct AttemptKey {
    /// Whoever knows it can attach: it stays out of logs.
    stream: String,
    choice: u32,
    attempt: u32,
}

impl fmt::Debug for AttemptKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "attempt {} at choice {}", self.attempt, self.choice)
    }
}

impl From<&AttemptId> for AttemptKey {
    fn from(id: &AttemptId) -> Self {
        Self { stream: id.stream.clone(), choice: id.choice, attempt: id.attempt }
    }
}

impl From<&AttemptKey> for AttemptId {
    fn from(key: &AttemptKey) -> Self {
        Self { stream: key.stream.clone(), choice: key.choice, attempt: key.attempt }
    }
}

/// Why an attempt has no log here.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum NotOpened {
    #[error("this attempt is running already; attach to it, or start one with a higher number")]
    Exists,
    #[error("{MAX_ATTEMPTS} attempts are held already; try another replica, or later")]
    TooMany,
}

/// A listener asked for events that are no longer kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the listener is more than {LOG_EVENTS} events behind; start another attempt")]
pub struct FellBehind;

/// All attempts of this process.
#[derive(Debug, Default)]
pub(crate) struct Attempts {
    logs: Mutex<HashMap<AttemptKey, Arc<Log>>>,
}

impl Attempts {
    /// Opens the log of a new attempt.
    pub(crate) fn open(&self, key: &AttemptKey) -> Result<Arc<Log>, NotOpened> {
        let mut logs = lock(&self.logs);
        if logs.contains_key(key) {
            return Err(NotOpened::Exists);
        }
        if logs.len() >= MAX_ATTEMPTS {
            return Err(NotOpened::TooMany);
        }
        let log = Arc::new(Log::default());
        logs.insert(key.clone(), log.clone());
        Ok(log)
    }

    /// The log of an attempt, if it is known.
    pub(crate) fn find(&self, key: &AttemptKey) -> Option<Arc<Log>> {
        lock(&self.logs).get(key).cloned()
    }

    /// Forgets an attempt.
    pub(crate) fn forget(&self, key: &AttemptKey) {
        lock(&self.logs).remove(key);
    }
}

/// What one attempt said.
#[derive(Debug)]
pub(crate) struct Log {
    said: Mutex<Said>,
    /// Events said so far: what a listener that has read all of them waits on.
    count: watch::Sender<u64>,
    listeners: watch::Sender<usize>,
}

#[derive(Debug, Default)]
struct Said {
    kept: VecDeque<GenerateEvent>,
    /// Events that were said before the first one kept.
    dropped: u64,
    /// Nothing follows.
    over: bool,
}

impl Default for Log {
    fn default() -> Self {
        Self { said: Mutex::default(), count: watch::Sender::new(0), listeners: watch::Sender::new(0) }
    }
}

impl Log {
    /// Adds an event. After `Rejected` or `Finished` nothing is added any more.
    pub(crate) fn push(&self, event: generate_event::Event) {
        let mut said = lock(&self.said);
        if said.over {
            return;
        }
        said.over = matches!(event, generate_event::Event::Rejected(_) | generate_event::Event::Finished(_));
        if said.kept.len() == LOG_EVENTS {
            said.kept.pop_front();
            said.dropped += 1;
        }
        said.kept.push_back(GenerateEvent { event: Some(event) });
        let count = said.dropped + said.kept.len() as u64;
        drop(said);
        self.count.send_replace(count);
    }

    /// Listens from the first event on.
    pub(crate) fn listen(self: &Arc<Self>) -> Listener {
        self.listen_from(0)
    }

    /// Listens from the frame with `index` on, or to what comes after all frames if there is none yet.
    ///
    /// # Errors
    /// When that frame is no longer kept.
    pub(crate) fn attach(self: &Arc<Self>, index: u32) -> Result<Listener, FellBehind> {
        let said = lock(&self.said);
        let frames = said.kept.iter().enumerate().filter_map(|(place, event)| match &event.event {
            Some(generate_event::Event::Frame(frame)) => Some((place as u64, frame.index)),
            _ => None,
        });
        let mut next = None;
        for (place, at) in frames {
            if at >= index {
                // An earlier frame may have been dropped: then the one asked for may be among those.
                if at > index && next.is_none() && said.dropped > 0 {
                    return Err(FellBehind);
                }
                next = Some(said.dropped + place);
                break;
            }
            next = None;
        }
        let end = said.dropped + said.kept.len() as u64;
        // A finished attempt without such a frame still has its last event to say.
        let next = next.unwrap_or(if said.over { end.saturating_sub(1) } else { end });
        drop(said);
        Ok(self.listen_from(next))
    }

    fn listen_from(self: &Arc<Self>, next: u64) -> Listener {
        self.listeners.send_modify(|listeners| *listeners += 1);
        Listener { log: self.clone(), count: self.count.subscribe(), next }
    }

    /// Returns once nobody has listened for `grace`.
    pub(crate) async fn abandoned(&self, grace: Duration) {
        let mut listeners = self.listeners.subscribe();
        loop {
            // The sender lives in `self`, so waiting can't fail.
            let left = listeners.wait_for(|&listeners| listeners == 0).await.is_ok();
            let back = tokio::time::timeout(grace, listeners.wait_for(|&listeners| listeners > 0)).await;
            if !left || !matches!(back, Ok(Ok(_))) {
                return;
            }
        }
    }
}

/// Reads a log. Dropping it is leaving.
#[derive(Debug)]
pub(crate) struct Listener {
    log: Arc<Log>,
    count: watch::Receiver<u64>,
    next: u64,
}

impl Listener {
    /// The next event, once there is one; `None` after the last.
    pub(crate) async fn next(&mut self) -> Option<Result<GenerateEvent, FellBehind>> {
        loop {
            {
                let said = lock(&self.log.said);
                let Some(place) = self.next.checked_sub(said.dropped) else { return Some(Err(FellBehind)) };
                if let Some(event) = said.kept.get(place as usize) {
                    self.next += 1;
                    return Some(Ok(event.clone()));
                }
                if said.over {
                    return None;
                }
            }
            let next = self.next;
            self.count.wait_for(|&count| count > next).await.ok()?;
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.log.listeners.send_modify(|listeners| *listeners -= 1);
    }
}

/// No code panics while it holds one of these locks, and what they guard is valid after every statement.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use tandem_worker_api::{Finished, Frame, Started};

    use super::*;

    fn frame(index: u32) -> generate_event::Event {
        generate_event::Event::Frame(Frame { index, ..Default::default() })
    }

    fn log_with(frames: u32) -> Arc<Log> {
        let log = Arc::new(Log::default());
        log.push(generate_event::Event::Started(Started::default()));
        (0..frames).for_each(|index| log.push(frame(index)));
        log
    }

    async fn next_index(listener: &mut Listener) -> Option<u32> {
        match listener.next().await.unwrap().unwrap().event.unwrap() {
            generate_event::Event::Frame(frame) => Some(frame.index),
            _ => None,
        }
    }

    #[tokio::test]
    async fn listeners_read_from_where_they_attach() {
        let log = log_with(5);
        assert_eq!(next_index(&mut log.listen()).await, None, "the first event is Started");
        for index in 0..5 {
            assert_eq!(next_index(&mut log.attach(index).unwrap()).await, Some(index));
        }
        let mut ahead = log.attach(5).unwrap();
        log.push(frame(5));
        assert_eq!(next_index(&mut ahead).await, Some(5));
        log.push(generate_event::Event::Finished(Finished::default()));
        assert_eq!(next_index(&mut ahead).await, None);
        assert!(ahead.next().await.is_none());
        let mut late = log.attach(6).unwrap();
        assert!(matches!(
            late.next().await.unwrap().unwrap().event,
            Some(generate_event::Event::Finished(_))
        ));
        assert!(late.next().await.is_none());
    }

    #[tokio::test]
    async fn a_listener_too_far_behind_is_told() {
        let log = log_with(0);
        let mut slow = log.listen();
        (0..LOG_EVENTS as u32 + 10).for_each(|index| log.push(frame(index)));
        assert_eq!(slow.next().await, Some(Err(FellBehind)));
        assert!(log.attach(3).is_err());
        assert_eq!(next_index(&mut log.attach(10).unwrap()).await, Some(10));
    }

    #[tokio::test]
    async fn nothing_follows_the_end() {
        let log = log_with(1);
        log.push(generate_event::Event::Finished(Finished::default()));
        log.push(frame(1));
        let mut listener = log.attach(0).unwrap();
        assert_eq!(next_index(&mut listener).await, Some(0));
        assert_eq!(next_index(&mut listener).await, None);
        assert!(listener.next().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn an_attempt_is_abandoned_after_the_grace_period() {
        let log = log_with(1);
        let grace = Duration::from_secs(10);
        let first = log.listen();
        let mut abandoned = std::pin::pin!(log.abandoned(grace));
        let waits = |time| Duration::from_secs(time);
        assert!(tokio::time::timeout(waits(60), &mut abandoned).await.is_err(), "somebody listens");
        drop(first);
        assert!(tokio::time::timeout(waits(9), &mut abandoned).await.is_err());
        let second = log.attach(0).unwrap();
        assert!(tokio::time::timeout(waits(60), &mut abandoned).await.is_err(), "somebody is back");
        drop(second);
        tokio::time::timeout(waits(11), &mut abandoned).await.unwrap();
    }

    #[test]
    fn an_attempt_has_one_log() {
        let attempts = Attempts::default();
        let key = AttemptKey::from(&AttemptId { stream: "s".into(), choice: 0, attempt: 1 });
        attempts.open(&key).unwrap();
        assert_eq!(attempts.open(&key).err(), Some(NotOpened::Exists));
        assert!(attempts.find(&key).is_some());
        attempts.forget(&key);
        assert!(attempts.find(&key).is_none());
    }
}

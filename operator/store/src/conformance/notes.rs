//! Events: repetitions add up, and no object fills the store with them.

use super::*;
use crate::event::{MAX_PER_OBJECT, MAX_PER_REASON};
use crate::{EventNote, Severity};

fn note(reason: &str, message: &str) -> EventNote {
    let (reason, message) = (reason.to_owned(), message.to_owned());
    EventNote { about: key("kimi"), severity: Severity::Normal, reason, message }
}

/// The same again is a higher count and a later time; order is by the last time.
pub async fn repetitions_add_up(home: &dyn Home) {
    let store = home.store();
    applied(&*store, "kimi").await;
    store.record_events(vec![note("Placed", "on a"), note("Waiting", "for weights")]).await.unwrap();
    home.advance(Duration::from_secs(60));
    store.record_events(vec![note("Placed", "on a"), note("Placed", "on b")]).await.unwrap();
    let events = store.events(&key("kimi")).await.unwrap();
    let short: Vec<_> = events.iter().map(|e| (e.message.as_str(), e.count)).collect();
    assert_eq!(short, [("for weights", 1), ("on a", 2), ("on b", 1)]);
    assert!(events[1].last_timestamp > events[1].first_timestamp);
}

/// An object keeps its newest events, and one reason can't push out all others.
pub async fn the_ring_is_bounded(home: &dyn Home) {
    let store = home.store();
    applied(&*store, "kimi").await;
    store.record_events(vec![note("Placed", "on a")]).await.unwrap();
    store.record_events((0..500).map(|n| note("Noisy", &n.to_string())).collect()).await.unwrap();
    let events = store.events(&key("kimi")).await.unwrap();
    assert_eq!(events.len(), 1 + MAX_PER_REASON);
    assert_eq!(events.last().unwrap().message, "499");
    store.record_events((0..500).map(|n| note(&format!("R{n}"), "x")).collect()).await.unwrap();
    assert_eq!(store.events(&key("kimi")).await.unwrap().len(), MAX_PER_OBJECT);
}

/// Events of an object that is gone are gone, and none are kept for what never was.
pub async fn notes_go_with_their_object(home: &dyn Home) {
    let store = home.store();
    store.record_events(vec![note("Placed", "on a")]).await.unwrap();
    applied(&*store, "kimi").await;
    assert_eq!(store.events(&key("kimi")).await.unwrap(), []);
    store.record_events(vec![note("Placed", "on a")]).await.unwrap();
    store.delete(&key("kimi"), None).await.unwrap();
    applied(&*store, "kimi").await;
    assert_eq!(store.events(&key("kimi")).await.unwrap(), []);
}

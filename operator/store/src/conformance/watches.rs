//! Watches: nothing missed, nothing twice, in order, and an honest end when that can't be had.

use futures::StreamExt as _;

use super::*;
use crate::{Kind, Selector, Watch, WatchEvent};

/// Longest that a watch may take to say what has happened already.
const SOON: Duration = Duration::from_secs(10);

fn all() -> Selector {
    Selector::all(Kind::InferenceDeployment)
}

async fn next(watch: &mut Watch) -> WatchEvent {
    let item = tokio::time::timeout(SOON, watch.next()).await.expect("the watch speaks soon");
    item.expect("the watch goes on").expect("the watch is well")
}

async fn next_is_expired(watch: &mut Watch) {
    let item = tokio::time::timeout(SOON, watch.next()).await.expect("the watch speaks soon");
    assert!(matches!(item, Some(Err(StoreError::Expired { .. }))), "{item:?}");
}

/// A first watch says what there is, then that this was all.
pub async fn what_exists_then_a_bookmark(home: &dyn Home) {
    let store = home.store();
    let (one, two) = (applied(&*store, "a").await, applied(&*store, "b").await);
    store.create(host("mac-a"), "operator").await.unwrap();
    let mut watch = store.watch(all(), None).await.unwrap();
    assert_eq!(next(&mut watch).await, WatchEvent::Added(one));
    assert_eq!(next(&mut watch).await, WatchEvent::Added(two));
    assert!(matches!(next(&mut watch).await, WatchEvent::Bookmark(_)));
}

/// Every change, in its order.
pub async fn changes_come_in_order(home: &dyn Home) {
    let store = home.store();
    let mut watch = store.watch(all(), None).await.unwrap();
    assert!(matches!(next(&mut watch).await, WatchEvent::Bookmark(_)));
    let made = applied(&*store, "a").await;
    let scaled = store.scale(&key("a"), 2, "oncall").await.unwrap();
    applied(&*store, "a").await;
    let other = applied(&*store, "b").await;
    store.delete(&key("a"), None).await.unwrap();
    assert_eq!(next(&mut watch).await, WatchEvent::Added(made));
    assert_eq!(next(&mut watch).await, WatchEvent::Modified(scaled));
    assert_eq!(next(&mut watch).await, WatchEvent::Added(other));
    let gone = next(&mut watch).await;
    assert!(matches!(&gone, WatchEvent::Deleted(object) if object.key == key("a")), "{gone:?}");
}

/// From a bookmark or any object's version on, nothing is repeated and nothing missed.
pub async fn a_watch_resumes(home: &dyn Home) {
    let store = home.store();
    let first = applied(&*store, "a").await;
    let second = applied(&*store, "b").await;
    let third = applied(&*store, "c").await;
    let mut watch = store.watch(all(), Some(first.version)).await.unwrap();
    assert_eq!(next(&mut watch).await, WatchEvent::Added(second));
    assert_eq!(next(&mut watch).await, WatchEvent::Added(third));
    let listing = store.list(&all()).await.unwrap();
    let mut watch = store.watch(all(), Some(listing.version)).await.unwrap();
    let fourth = applied(&*store, "d").await;
    assert_eq!(next(&mut watch).await, WatchEvent::Added(fourth));
}

/// Changes that are no longer kept are an error that says to list again, at the start and for a watch that fell behind.
pub async fn a_watch_from_too_long_ago_expires(home: &dyn Home) {
    let store = home.store();
    let first = applied(&*store, "a").await;
    applied(&*store, "b").await;
    let mut behind = store.watch(all(), Some(first.version.clone())).await.unwrap();
    home.compact().await;
    match store.watch(all(), Some(first.version)).await {
        Err(StoreError::Expired { .. }) => {}
        Err(other) => panic!("{other}"),
        Ok(mut watch) => next_is_expired(&mut watch).await,
    }
    next_is_expired(&mut behind).await;
    let listing = store.list(&all()).await.unwrap();
    let mut watch = store.watch(all(), Some(listing.version)).await.unwrap();
    let third = applied(&*store, "c").await;
    assert_eq!(next(&mut watch).await, WatchEvent::Added(third));
}

/// A removal carries the object as it was, and a version of its own to resume from.
pub async fn a_removal_shows_the_last_state(home: &dyn Home) {
    let store = home.store();
    let made = applied(&*store, "a").await;
    let mut watch = store.watch(all(), Some(made.version.clone())).await.unwrap();
    store.delete(&key("a"), None).await.unwrap();
    let WatchEvent::Deleted(gone) = next(&mut watch).await else { panic!("not a removal") };
    assert_eq!((gone.uid(), gone.spec()), (made.uid(), made.spec()));
    assert_ne!(gone.version, made.version);
    let mut watch = store.watch(all(), Some(gone.version)).await.unwrap();
    let again = applied(&*store, "a").await;
    assert_eq!(next(&mut watch).await, WatchEvent::Added(again));
}

/// Namespace and name narrow a watch.
pub async fn only_what_is_meant(home: &dyn Home) {
    let store = home.store();
    let named = Selector { namespace: Some("llm".into()), name: Some("b".into()), ..all() };
    let elsewhere = Selector { namespace: Some("other".into()), ..all() };
    let mut named = store.watch(named, None).await.unwrap();
    let mut elsewhere = store.watch(elsewhere, None).await.unwrap();
    assert!(matches!(next(&mut named).await, WatchEvent::Bookmark(_)));
    assert!(matches!(next(&mut elsewhere).await, WatchEvent::Bookmark(_)));
    applied(&*store, "a").await;
    store.create(host("b"), "operator").await.unwrap();
    let meant = applied(&*store, "b").await;
    let mut manifest = deployment("c");
    manifest["metadata"]["namespace"] = "other".into();
    let other = apply(&*store, manifest, "ci").await.unwrap();
    assert_eq!(next(&mut named).await, WatchEvent::Added(meant));
    assert_eq!(next(&mut elsewhere).await, WatchEvent::Added(other));
}

/// Watches that start while writers write all see the same: what they list plus what follows is everything, once.
pub async fn many_watches_see_the_same(home: &dyn Home) {
    const WRITES: usize = 12;
    let store = home.store();
    let writer = {
        let store = home.store();
        tokio::spawn(async move {
            for n in 0..WRITES {
                applied(&*store, &format!("d-{n}")).await;
            }
        })
    };
    let mut seen = Vec::new();
    for _ in 0..4 {
        let mut watch = store.watch(all(), None).await.unwrap();
        let mut names = Vec::new();
        while names.len() < WRITES {
            if let WatchEvent::Added(object) = next(&mut watch).await {
                names.push(object.key.name);
            }
        }
        names.sort();
        seen.push(names);
        tokio::task::yield_now().await;
    }
    writer.await.unwrap();
    for names in &seen {
        let mut distinct = names.clone();
        distinct.dedup();
        assert_eq!(distinct.len(), WRITES);
        assert_eq!(*names, seen[0]);
    }
}

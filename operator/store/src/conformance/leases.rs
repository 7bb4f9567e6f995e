//! Leases: one holder at a time, and terms that only grow.

use super::*;
use crate::Lease;

const TTL: Duration = Duration::from_secs(10);
const NAME: &str = "leader";

async fn take(store: &dyn Store, holder: &str) -> Result<Lease, StoreError> {
    store.acquire(NAME, holder, TTL, 0).await
}

fn holder_of<T: std::fmt::Debug>(result: Result<T, StoreError>) -> String {
    match result {
        Err(StoreError::LeaseLost { holder, .. }) => holder,
        other => panic!("not refused: {other:?}"),
    }
}

/// While one holds it, another is told who.
pub async fn one_holder(home: &dyn Home) {
    let store = home.store();
    let held = take(&*store, "a").await.unwrap();
    assert_eq!((held.holder.as_str(), held.ttl), ("a", TTL));
    assert_eq!(holder_of(take(&*store, "b").await), "a");
    assert_eq!(store.acquire("other", "b", TTL, 0).await.unwrap().holder, "b");
    assert_eq!(take(&*store, "a").await.unwrap().term, held.term);
}

/// Not before its end, and then at once.
pub async fn an_expired_lease_is_free(home: &dyn Home) {
    let store = home.store();
    take(&*store, "a").await.unwrap();
    home.advance(TTL - Duration::from_millis(1));
    assert_eq!(holder_of(take(&*store, "b").await), "a");
    home.advance(Duration::from_millis(1));
    assert_eq!(take(&*store, "b").await.unwrap().holder, "b");
}

/// Renewed in time, it never ends.
pub async fn a_renewed_lease_holds(home: &dyn Home) {
    let store = home.store();
    let held = take(&*store, "a").await.unwrap();
    for _ in 0..5 {
        home.advance(TTL / 2);
        store.renew(&held).await.unwrap();
    }
    assert_eq!(holder_of(take(&*store, "b").await), "a");
}

/// Every change of holder raises the term, also back to an earlier one.
pub async fn terms_grow(home: &dyn Home) {
    let store = home.store();
    let mut last = 0;
    for holder in ["a", "b", "a", "a"] {
        let held = take(&*store, holder).await.unwrap();
        assert!(held.term > last, "{} after {last}", held.term);
        last = held.term;
        home.advance(TTL);
    }
}

/// A new leader starts above what others have seen, so that a store from a backup leads no host astray.
pub async fn the_floor_is_passed(home: &dyn Home) {
    let store = home.store();
    assert!(store.acquire(NAME, "a", TTL, 41).await.unwrap().term > 41);
    assert!(store.acquire(NAME, "a", TTL, 70).await.unwrap().term > 70);
}

/// Who lets go makes room at once; letting go twice, or of what another holds, does nothing.
pub async fn a_released_lease_is_free(home: &dyn Home) {
    let store = home.store();
    let held = take(&*store, "a").await.unwrap();
    store.release(&held).await.unwrap();
    take(&*store, "b").await.unwrap();
    store.release(&held).await.unwrap();
    assert_eq!(holder_of(take(&*store, "c").await), "b");
}

/// Who came too late is told, and is not let in again under the old term.
pub async fn a_lost_lease_stays_lost(home: &dyn Home) {
    let store = home.store();
    let held = take(&*store, "a").await.unwrap();
    home.advance(TTL);
    assert_eq!(holder_of(store.renew(&held).await), "a");
    take(&*store, "b").await.unwrap();
    assert_eq!(holder_of(store.renew(&held).await), "b");
}

/// How long a lease lasts is no matter of wall clocks: not of the holder's, nor of others'.
pub async fn a_wall_clock_an_hour_off_ends_no_lease(home: &dyn Home) {
    let store = home.store();
    let hour = SignedDuration::from_hours(1);
    let held = take(&*store, "a").await.unwrap();
    for by in [hour, -hour, -hour, hour] {
        home.turn(by);
        assert_eq!(holder_of(take(&*store, "b").await), "a", "turned by {by}");
        store.renew(&held).await.unwrap();
        assert_eq!(take(&*store, "a").await.unwrap().term, held.term, "turned by {by}");
    }
    // Nor does it make one last: written an hour ahead, it ends in time.
    home.turn(hour);
    store.renew(&held).await.unwrap();
    home.turn(-hour);
    home.advance(TTL);
    assert_eq!(take(&*store, "b").await.unwrap().holder, "b");
}

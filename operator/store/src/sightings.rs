//! Leases by observation: one is over when *this* process has seen it unchanged for its whole length. Nobody's wall clock is
//! believed, and a process that has just started waits that long before it takes another's.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Which version of each lease this process has seen, and when first.
#[derive(Default)]
pub(crate) struct Sightings(Mutex<BTreeMap<String, (String, Duration)>>);

impl Sightings {
    /// This version was there at `at`, by the clock that counts sleep.
    pub(crate) fn see(&self, name: &str, version: &str, at: Duration) {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.get(name).is_none_or(|(known, _)| known != version) {
            seen.insert(name.to_owned(), (version.to_owned(), at));
        }
    }

    /// Whether it has been seen unchanged for as long as it lasts.
    pub(crate) fn is_over(&self, name: &str, version: &str, lasts: Duration, now: Duration) -> bool {
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.get(name).is_some_and(|(known, since)| known == version && now.saturating_sub(*since) >= lasts)
    }
}

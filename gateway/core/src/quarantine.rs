//! Requests that killed two workers are not tried again for a while, however often a client sends them.

use std::collections::BTreeMap;
use std::time::Duration;

/// How long, unless a person restarts the gateway.
const TERM: Duration = Duration::from_secs(300);
/// More are not kept: the first to be let out makes room.
const MOST: usize = 1024;

/// Fingerprints of such requests.
#[derive(Debug, Default)]
pub struct Quarantine {
    until: BTreeMap<u64, Duration>,
}

impl Quarantine {
    /// Keeps a fingerprint.
    pub fn put(&mut self, fingerprint: u64, now: Duration) {
        self.until.retain(|_, until| *until > now);
        if self.until.len() >= MOST
            && let Some(first) = self.until.iter().min_by_key(|(_, until)| **until).map(|(first, _)| *first)
        {
            self.until.remove(&first);
        }
        self.until.insert(fingerprint, now + TERM);
    }

    /// Whether it is kept.
    #[must_use]
    pub fn holds(&self, fingerprint: u64, now: Duration) -> bool {
        self.until.get(&fingerprint).is_some_and(|until| *until > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_ends_and_is_bounded() {
        let mut quarantine = Quarantine::default();
        let at = |seconds| Duration::from_secs(seconds);
        quarantine.put(1, at(0));
        assert!(quarantine.holds(1, at(299)) && !quarantine.holds(2, at(299)));
        assert!(!quarantine.holds(1, at(300)));
        for fingerprint in 2..5000 {
            quarantine.put(fingerprint, at(fingerprint / 100));
        }
        assert!(quarantine.until.len() <= MOST);
        assert!(quarantine.holds(4999, at(50)) && !quarantine.holds(2, at(50)));
    }
}

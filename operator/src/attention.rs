//! How long a host has been silent, as far as this operator was listening, pure.
//!
//! A pause of the operator itself is no evidence against anybody: its clock of attention moves on by at most one step between
//! two looks, so that hosts get their chance to be heard after the pause.

use std::collections::BTreeMap;
use std::time::Duration;

/// What of a gap between two looks counts as having listened.
const LONGEST_STEP: Duration = Duration::from_secs(1);

/// Attention paid so far, and when each host was heard last.
#[derive(Debug)]
pub(crate) struct Attention {
    /// Time of the last look, by the machine's clock.
    looked: Duration,
    /// Time spent listening.
    spent: Duration,
    /// Time spent listening when a host was heard last; for a host never heard, when it became known.
    heard: BTreeMap<String, Heard>,
}

#[derive(Debug, Clone, Copy)]
struct Heard {
    at: Duration,
    ever: bool,
}

/// What is known of a host's silence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Silence {
    /// How long it has been silent, of the time that this operator listened.
    pub(crate) lasted: Duration,
    /// Whether this operator has heard it at all.
    pub(crate) ever_heard: bool,
}

impl Attention {
    /// Starts listening.
    pub(crate) fn new(now: Duration) -> Self {
        Self { looked: now, spent: Duration::ZERO, heard: BTreeMap::new() }
    }

    /// Time passes. `now` never goes back.
    pub(crate) fn look(&mut self, now: Duration) {
        self.spent += now.saturating_sub(self.looked).min(LONGEST_STEP);
        self.looked = now;
    }

    /// A host has said something.
    pub(crate) fn hear(&mut self, host: &str, now: Duration) {
        self.look(now);
        self.heard.insert(host.to_owned(), Heard { at: self.spent, ever: true });
    }

    /// Begins to listen for a host that exists; nothing, if it is listened for already.
    pub(crate) fn expect(&mut self, host: &str) {
        self.heard.entry(host.to_owned()).or_insert(Heard { at: self.spent, ever: false });
    }

    /// Forgets hosts that are none of these.
    pub(crate) fn keep(&mut self, exists: impl Fn(&str) -> bool) {
        self.heard.retain(|host, _| exists(host));
    }

    /// A host's silence; none for a host that nobody listens for.
    pub(crate) fn silence(&self, host: &str) -> Option<Silence> {
        let heard = self.heard.get(host)?;
        Some(Silence { lasted: self.spent.saturating_sub(heard.at), ever_heard: heard.ever })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn silence_grows_while_listening() {
        let mut attention = Attention::new(seconds(100));
        attention.hear("a", seconds(100));
        for now in 101..=106 {
            attention.look(seconds(now));
        }
        assert_eq!(attention.silence("a"), Some(Silence { lasted: seconds(6), ever_heard: true }));
        attention.hear("a", seconds(107));
        assert_eq!(attention.silence("a").unwrap().lasted, Duration::ZERO);
    }

    #[test]
    fn a_pause_of_ours_is_no_silence_of_theirs() {
        let mut attention = Attention::new(seconds(0));
        attention.hear("a", seconds(0));
        attention.look(seconds(3600));
        assert!(attention.silence("a").unwrap().lasted <= LONGEST_STEP);
    }

    #[test]
    fn a_host_known_from_the_store_is_listened_for_from_the_start() {
        let mut attention = Attention::new(seconds(0));
        attention.expect("a");
        attention.look(seconds(1));
        attention.expect("a");
        assert_eq!(attention.silence("a"), Some(Silence { lasted: seconds(1), ever_heard: false }));
        assert_eq!(attention.silence("b"), None);
        attention.keep(|host| host != "a");
        assert_eq!(attention.silence("a"), None);
    }
}

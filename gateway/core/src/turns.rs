//! When it will be a client's turn: told to those who are sent away because every worker is full.

use std::time::Duration;

/// Shortest and longest wait that a client is told. What is further away nobody can foretell.
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(120);
/// Weight of the newest gap in the mean: the last ten or so count.
const NEWEST: f64 = 0.2;

/// How often a place comes free at a model's workers, as one gateway sees it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Turns {
    /// When a choice ended last.
    last: Option<Duration>,
    /// Mean time between two ends, in seconds.
    gap: Option<f64>,
}

impl Turns {
    /// A choice ended at a worker, and left its place.
    pub fn ended(&mut self, now: Duration) {
        if let Some(last) = self.last {
            let newest = now.saturating_sub(last).as_secs_f64();
            self.gap = Some(self.gap.map_or(newest, |mean| mean + NEWEST * (newest - mean)));
        }
        self.last = Some(now);
    }

    /// How long until as many places have come free as are waited for, and one more. At least a second, at most two minutes.
    #[must_use]
    pub fn wait(&self, ahead: usize, now: Duration) -> Duration {
        // Nothing ended for longer than usual: the mean is too hopeful.
        let since = self.last.map_or(0.0, |last| now.saturating_sub(last).as_secs_f64());
        let gap = self.gap.map_or(since, |mean| mean.max(since));
        #[allow(clippy::cast_precision_loss, reason = "nobody waits behind 2^52 others")]
        let seconds = gap * (ahead as f64 + 1.0);
        Duration::from_secs_f64(seconds.min(LONGEST.as_secs_f64())).max(SHORTEST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn who_waits_behind_others_is_told_a_longer_wait() {
        let mut turns = Turns::default();
        assert_eq!(turns.wait(0, s(0)), SHORTEST, "nothing is known yet");
        for now in [10, 14, 18, 22] {
            turns.ended(s(now));
        }
        assert_eq!(turns.wait(0, s(22)), s(4));
        assert_eq!(turns.wait(3, s(22)), s(16));
        assert_eq!(turns.wait(usize::MAX, s(22)), LONGEST);
    }

    #[test]
    fn when_nothing_ends_the_wait_grows_and_a_quick_row_shortens_it() {
        let mut turns = Turns::default();
        turns.ended(s(0));
        turns.ended(s(4));
        assert_eq!(turns.wait(0, s(34)), s(30));
        for now in 35..95 {
            turns.ended(s(now));
        }
        assert!(turns.wait(0, s(95)) < s(2), "{:?}", turns.wait(0, s(95)));
    }
}

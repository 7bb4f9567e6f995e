//! How soon to look again: later and later while the system takes pages away as fast as they are read, so that a disk is not read
//! for ever to no end.

use std::time::Duration;

/// A look that finds more than one part in this many gone has found a loss.
const NOTABLE: u64 = 100;
/// Losses in a row that are named; one alone may have been anything.
const NAMED: u32 = 2;
/// The longest wait; what is short of memory now may not be later.
const LONGEST: Duration = Duration::from_secs(600);

/// Counts losses.
#[derive(Debug, Default)]
pub(super) struct Patience {
    /// In a row.
    losses: u32,
}

impl Patience {
    /// A look has found that so many of all bytes were taken out of memory since the one before.
    pub(super) fn looked(&mut self, lost: u64, total: u64) {
        self.losses = if lost > total / NOTABLE { self.losses.saturating_add(1) } else { 0 };
    }

    /// Until the next look, if one is to be had so often when all is well.
    pub(super) fn pause(&self, every: Duration) -> Duration {
        every.saturating_mul(1 << self.losses.min(16)).min(LONGEST.max(every))
    }

    /// What is wrong, if something is.
    pub(super) fn words(&self, lost: u64, total: u64, pause: Duration) -> Option<String> {
        (self.losses >= NAMED).then(|| {
            format!(
                "memory is short: {} % of the weights were taken out of it again after they were read in, {} times in a row; \
                 looks again in {} s. Stop something else on this host, or place this copy elsewhere",
                u128::from(lost) * 100 / u128::from(total).max(1),
                self.losses,
                pause.as_secs()
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_in_a_row_make_it_wait_longer_and_say_so_until_one_look_finds_all_there() {
        let mut patience = Patience::default();
        let every = Duration::from_secs(5);
        let mut look = |lost| {
            patience.looked(lost, 1000);
            let pause = patience.pause(every);
            (pause.as_secs(), patience.words(lost, 1000, pause).is_some())
        };
        let seen: Vec<_> = [0, 10, 11, 500, 500, 0, 500].into_iter().map(&mut look).collect();
        assert_eq!(
            seen,
            [(5, false), (5, false), (10, false), (20, true), (40, true), (5, false), (10, false)]
        );
        for _ in 0..100 {
            assert!(look(1000).0 <= 600);
        }
        let words = patience.words(250, 1000, LONGEST).unwrap();
        assert!(words.contains("25 % of the weights") && words.contains("in 600 s"), "{words}");
    }
}

//! How a transfer of weights fares: a rate over the last seconds, what is left at that rate, and when to say so again.

use std::collections::VecDeque;
use std::time::Duration;

use tandem_crds::TransferStatus;

/// The rate is that of these last seconds.
const WINDOW: Duration = Duration::from_secs(10);
/// Samples of the window that are kept; looking oftener than this allows makes the newest of them newer.
const SAMPLES: usize = 64;
const SPACING: Duration = Duration::from_millis(200);
/// While little changes, it is said this often. An operator writes what is said into its store.
const OFTEN: Duration = Duration::from_secs(10);
/// It is said again when this part of the whole has come.
const PARTS: u64 = 100;

/// How much of a transfer there is. All are bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amounts {
    /// Verified here, whichever way they came, also before a restart.
    pub done: u64,
    /// Of all files.
    pub total: u64,
    /// Come from the source itself, since this transfer was taken up.
    pub source: u64,
    /// Come from other hosts, since then.
    pub peer: u64,
}

/// Measures one transfer.
#[derive(Clone, Debug, Default)]
pub struct Transfer {
    /// When how many bytes had come. The oldest is the last one outside the window, if there is one.
    samples: VecDeque<(Duration, u64)>,
    said: Option<(Duration, TransferStatus)>,
}

impl Transfer {
    /// Takes a look, and returns what to report: the same as the last time unless enough has changed. `now` is time since any
    /// fixed moment.
    pub fn look(&mut self, now: Duration, amounts: Amounts) -> TransferStatus {
        let fresh = self.measure(now, amounts);
        match self.said {
            Some((at, said)) if !is_worth_saying(&said, &fresh, now.saturating_sub(at)) => said,
            _ => {
                self.said = Some((now, fresh));
                fresh
            }
        }
    }

    /// As [`Transfer::look`], each time to the byte: for a person who watches.
    pub fn measure(&mut self, now: Duration, amounts: Amounts) -> TransferStatus {
        self.sample(now, amounts.source.saturating_add(amounts.peer));
        self.status(amounts)
    }

    fn sample(&mut self, now: Duration, arrived: u64) {
        if self.samples.back().is_some_and(|(at, before)| *at > now || *before > arrived) {
            // It was taken up again, and counts from the start.
            self.samples.clear();
        }
        let start = now.saturating_sub(WINDOW);
        while self.samples.get(1).is_some_and(|(at, _)| *at <= start) {
            self.samples.pop_front();
        }
        let newest = self.samples.len().checked_sub(2).and_then(|index| self.samples.get(index));
        if newest.is_some_and(|(at, _)| now.saturating_sub(*at) < SPACING) || self.samples.len() == SAMPLES {
            self.samples.pop_back();
        }
        self.samples.push_back((now, arrived));
    }

    fn status(&self, amounts: Amounts) -> TransferStatus {
        let rate = self.rate();
        let left = amounts.total.saturating_sub(amounts.done);
        TransferStatus {
            done_bytes: amounts.done.min(amounts.total),
            total_bytes: amounts.total,
            bytes_per_second: rate,
            eta_seconds: (rate > 0).then(|| left.div_ceil(rate)),
            source_bytes: amounts.source,
            peer_bytes: amounts.peer,
        }
    }

    /// Bytes a second over the window.
    fn rate(&self) -> u64 {
        let (Some((start, before)), Some((end, after))) = (self.samples.front(), self.samples.back()) else {
            return 0;
        };
        let millis = end.saturating_sub(*start).as_millis();
        let bytes = u128::from(after.saturating_sub(*before));
        u64::try_from((bytes * 1000).checked_div(millis).unwrap_or(0)).unwrap_or(u64::MAX)
    }
}

fn is_worth_saying(said: &TransferStatus, fresh: &TransferStatus, since: Duration) -> bool {
    let step = (fresh.total_bytes / PARTS).max(1);
    since >= OFTEN
        || fresh.total_bytes != said.total_bytes
        || fresh.done_bytes < said.done_bytes
        || fresh.done_bytes - said.done_bytes >= step
        || (fresh.bytes_per_second > 0) != (said.bytes_per_second > 0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn seconds(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    fn from_source(done: u64, total: u64) -> Amounts {
        Amounts { done, total, source: done, peer: 0 }
    }

    #[test]
    fn the_rate_is_that_of_the_last_seconds_and_the_rest_takes_so_long() {
        let mut transfer = Transfer::default();
        let total = 100_000;
        assert_eq!(transfer.look(Duration::ZERO, from_source(0, total)).eta_seconds, None);
        for second in 1..=20 {
            transfer.look(Duration::from_secs(second), from_source(second * 1000, total));
        }
        let status = transfer.look(seconds(20.0), from_source(20_000, total));
        assert_eq!((status.bytes_per_second, status.eta_seconds), (1000, Some(80)));
        // It slows down: ten seconds later nothing is left of the old rate.
        for second in 21..=31 {
            let done = 20_000 + (second - 20) * 100;
            transfer.look(Duration::from_secs(second), from_source(done, total));
        }
        let status = transfer.look(seconds(41.0), from_source(21_100, total));
        assert_eq!((status.bytes_per_second, status.eta_seconds), (0, None));
    }

    #[test]
    fn what_was_here_before_is_done_and_is_no_rate() {
        let mut transfer = Transfer::default();
        transfer.look(Duration::ZERO, Amounts { total: 1000, ..Amounts::default() });
        let resumed = Amounts { done: 900, total: 1000, source: 0, peer: 0 };
        let status = transfer.look(seconds(1.0), resumed);
        assert_eq!((status.done_bytes, status.bytes_per_second, status.eta_seconds), (900, 0, None));
        let status = transfer.look(seconds(2.0), Amounts { done: 950, total: 1000, source: 20, peer: 30 });
        assert_eq!((status.source_bytes, status.peer_bytes, status.bytes_per_second), (20, 30, 25));
    }

    #[test]
    fn small_steps_are_not_said() {
        let mut transfer = Transfer::default();
        let total = 1_000_000;
        transfer.look(Duration::ZERO, from_source(0, total));
        let first = transfer.look(seconds(1.0), from_source(1000, total));
        assert_eq!(first.done_bytes, 1000, "the first rate is worth saying");
        assert_eq!(transfer.look(seconds(2.0), from_source(2000, total)), first);
        let jump = transfer.look(seconds(3.0), from_source(11_000, total));
        assert_eq!(jump.done_bytes, 11_000);
        assert_eq!(transfer.look(seconds(4.0), from_source(11_500, total)), jump);
        assert_eq!(transfer.look(seconds(13.0), from_source(11_900, total)).done_bytes, 11_900);
    }

    proptest! {
        /// Whatever is counted whenever, the samples stay few, and a rate is never above what came within the shortest time.
        #[test]
        fn samples_are_bounded_and_rates_are_sane(
            steps in prop::collection::vec((0u64..3000, 0u64..1_000_000, 0u64..1_000_000), 1..300),
        ) {
            let mut transfer = Transfer::default();
            let (mut now, mut amounts) = (0, Amounts { total: u64::MAX, ..Amounts::default() });
            let mut fastest = 0u128;
            for (wait, source, peer) in steps {
                now += wait;
                amounts.source += source;
                amounts.peer += peer;
                amounts.done = amounts.source + amounts.peer;
                fastest += u128::from(source + peer) * 1000;
                let status = transfer.look(Duration::from_millis(now), amounts);
                prop_assert!(transfer.samples.len() <= SAMPLES);
                prop_assert!(u128::from(status.bytes_per_second) <= fastest);
                prop_assert!(status.done_bytes <= status.total_bytes);
            }
        }
    }
}

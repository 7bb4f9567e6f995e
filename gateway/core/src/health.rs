//! Evidence about one replica, and what follows from it.
//!
//! Silence is counted in the observer's own observed time: every look adds at most a small step, so a pause of the
//! observer (a stopped process, a sleeping machine, an overloaded core) is not evidence against anybody.

use std::time::Duration;

use tandem_worker_api::{HealthReport, health_report};

/// How much evidence is how bad.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Between two reports, as asked of the worker.
    pub interval: Duration,
    /// Without a report for so long, a replica is suspected.
    pub suspect: Duration,
    /// Without a report for so long, it is convicted.
    pub convict: Duration,
    /// With work and without a tick for so long, it is suspected.
    pub stall: Duration,
    /// Most that one look counts.
    pub step: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            interval: Duration::from_millis(100),
            suspect: Duration::from_millis(300),
            convict: Duration::from_secs(1),
            stall: Duration::from_secs(1),
            step: Duration::from_millis(100),
        }
    }
}

/// What the evidence amounts to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// Serves.
    Well,
    /// Enough to try another replica beside it.
    Suspected(Evidence),
    /// Enough to give up on it until it reports again.
    Convicted(Evidence),
}

/// What was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Evidence {
    /// No report since the observer began; nothing is known.
    NeverSeen,
    /// Reports are missing.
    Silent,
    /// It has work, and computes nothing.
    NoProgress,
    /// The connection was reset, refused or never came about.
    Unreachable,
    /// It says that it does not serve: loading, or failed.
    NotReady,
}

/// What is known of one replica.
#[derive(Clone, Debug)]
pub struct Vitals {
    bounds: Bounds,
    looked: Duration,
    silent: Duration,
    stalled: Duration,
    last: Option<Heard>,
    unreachable: bool,
}

#[derive(Clone, Copy, Debug)]
struct Heard {
    state: health_report::State,
    ticks: u64,
    active: u32,
}

impl Vitals {
    /// Nothing known yet.
    #[must_use]
    pub fn new(bounds: Bounds, now: Duration) -> Self {
        Self {
            bounds,
            looked: now,
            silent: Duration::ZERO,
            stalled: Duration::ZERO,
            last: None,
            unreachable: false,
        }
    }

    /// A report arrived.
    pub fn report(&mut self, now: Duration, report: &HealthReport) {
        self.look(now);
        let heard = Heard { state: report.state(), ticks: report.ticks, active: report.active };
        let moved =
            self.last.is_none_or(|last| last.ticks != heard.ticks || last.active == 0 || heard.active == 0);
        if moved {
            self.stalled = Duration::ZERO;
        }
        self.silent = Duration::ZERO;
        self.unreachable = false;
        self.last = Some(heard);
    }

    /// The connection was refused, or broke. Errors of a request (4xx) are not this.
    pub fn unreachable(&mut self) {
        self.unreachable = true;
    }

    /// Counts the time since the last look. To be called at least once per [`Bounds::step`].
    pub fn look(&mut self, now: Duration) -> Standing {
        let passed = now.saturating_sub(self.looked).min(self.bounds.step);
        self.looked = self.looked.max(now);
        self.silent += passed;
        if self.last.is_some_and(|last| last.active > 0) {
            self.stalled += passed;
        }
        self.standing()
    }

    /// As of the last look.
    #[must_use]
    pub fn standing(&self) -> Standing {
        use health_report::State;
        if self.unreachable {
            return Standing::Convicted(Evidence::Unreachable);
        }
        let Some(last) = self.last else { return Standing::Convicted(Evidence::NeverSeen) };
        if self.silent >= self.bounds.convict {
            Standing::Convicted(Evidence::Silent)
        } else if matches!(last.state, State::Loading | State::Failed | State::Unspecified) {
            Standing::Convicted(Evidence::NotReady)
        } else if self.silent >= self.bounds.suspect {
            Standing::Suspected(Evidence::Silent)
        } else if self.stalled >= self.bounds.stall {
            Standing::Suspected(Evidence::NoProgress)
        } else {
            Standing::Well
        }
    }

    /// It said that it takes nothing new.
    #[must_use]
    pub fn draining(&self) -> bool {
        self.last.is_some_and(|last| last.state == health_report::State::Draining)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn report(ticks: u64, active: u32) -> HealthReport {
        let state = health_report::State::Ready.into();
        HealthReport { state, ticks, active, ..HealthReport::default() }
    }

    /// Looks every 50 ms from `from` to `to`.
    fn watch(vitals: &mut Vitals, from: u32, to: u32) -> Standing {
        (from..=to).step_by(50).map(|ms| vitals.look(MS * ms)).last().unwrap()
    }

    fn well() -> Vitals {
        let mut vitals = Vitals::new(Bounds::default(), Duration::ZERO);
        vitals.report(Duration::ZERO, &report(1, 1));
        assert_eq!(vitals.standing(), Standing::Well);
        vitals
    }

    #[test]
    fn three_missed_reports_are_suspect_and_a_second_convicts() {
        let mut vitals = well();
        assert_eq!(watch(&mut vitals, 0, 250), Standing::Well);
        assert_eq!(watch(&mut vitals, 300, 300), Standing::Suspected(Evidence::Silent));
        assert_eq!(watch(&mut vitals, 350, 950), Standing::Suspected(Evidence::Silent));
        assert_eq!(watch(&mut vitals, 1000, 1000), Standing::Convicted(Evidence::Silent));
        vitals.report(MS * 1010, &report(2, 1));
        assert_eq!(vitals.standing(), Standing::Well);
    }

    #[test]
    fn a_pause_of_the_observer_is_no_evidence() {
        let mut vitals = well();
        assert_eq!(vitals.look(Duration::from_secs(3600)), Standing::Well);
        assert_eq!(vitals.look(Duration::from_secs(7200)), Standing::Well);
    }

    #[test]
    fn a_clock_that_steps_back_is_no_evidence() {
        let mut vitals = well();
        vitals.look(Duration::from_secs(5));
        assert_eq!(vitals.look(Duration::from_secs(1)), Standing::Well);
    }

    #[test]
    fn work_without_ticks_is_suspect_and_idleness_is_not() {
        for (active, expected) in [(1, Standing::Suspected(Evidence::NoProgress)), (0, Standing::Well)] {
            let mut vitals = well();
            for ms in (0..=1200).step_by(50) {
                vitals.report(MS * ms, &report(1, active));
            }
            assert_eq!(vitals.standing(), expected);
        }
    }

    #[test]
    fn slow_progress_is_progress() {
        let mut vitals = well();
        for ms in (0..=9000u32).step_by(50) {
            vitals.report(MS * ms, &report(u64::from(ms / 900), 1));
            assert_eq!(vitals.standing(), Standing::Well, "{ms}");
        }
    }

    #[test]
    fn a_broken_connection_convicts_until_it_reports_again() {
        let mut vitals = well();
        vitals.unreachable();
        assert_eq!(vitals.look(MS), Standing::Convicted(Evidence::Unreachable));
        vitals.report(MS * 2, &report(1, 0));
        assert_eq!(vitals.standing(), Standing::Well);
    }

    #[test]
    fn one_that_says_it_is_not_ready_is_believed() {
        let mut vitals = well();
        let state = health_report::State::Loading.into();
        vitals.report(MS, &HealthReport { state, ..report(1, 0) });
        assert_eq!(vitals.standing(), Standing::Convicted(Evidence::NotReady));
        let state = health_report::State::Draining.into();
        vitals.report(MS, &HealthReport { state, ..report(1, 0) });
        assert_eq!(vitals.standing(), Standing::Well, "what it has it finishes");
        assert!(vitals.draining());
    }
}

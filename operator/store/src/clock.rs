//! Time, injected: the wall clock for stamps, a clock that counts sleep for leases.

use std::sync::Mutex;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use nix::time::{ClockId, clock_gettime};

/// Where a store gets its time from.
pub trait Clock: Send + Sync + 'static {
    /// Wall-clock time, for `creationTimestamp` and events. May jump.
    fn now(&self) -> Timestamp;
    /// Time since some fixed point, never backwards, counting the time a machine sleeps.
    fn elapsed(&self) -> Duration;
}

/// The machine's own clocks.
#[derive(Debug, Default, Clone, Copy)]
pub struct SystemClock;

/// Linux's CLOCK_MONOTONIC stops in sleep and CLOCK_BOOTTIME counts it; macOS' CLOCK_MONOTONIC counts it.
#[cfg(any(target_os = "linux", target_os = "android"))]
const COUNTS_SLEEP: ClockId = ClockId::CLOCK_BOOTTIME;
#[cfg(not(any(target_os = "linux", target_os = "android")))]
const COUNTS_SLEEP: ClockId = ClockId::CLOCK_MONOTONIC;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    fn elapsed(&self) -> Duration {
        Duration::from(clock_gettime(COUNTS_SLEEP).expect("every supported kernel has this clock"))
    }
}

/// A clock that stands still until a test turns it.
#[derive(Debug)]
pub struct ManualClock {
    start: Mutex<Timestamp>,
    elapsed: Mutex<Duration>,
}

impl ManualClock {
    /// A clock that shows `start`.
    pub fn new(start: Timestamp) -> Self {
        Self { start: Mutex::new(start), elapsed: Mutex::new(Duration::ZERO) }
    }

    /// Moves both clocks forward.
    pub fn advance(&self, by: Duration) {
        *self.elapsed.lock().expect("no panic while turning a clock") += by;
    }

    /// Turns the wall clock alone, as somebody does who sets it.
    pub fn turn(&self, by: SignedDuration) {
        *self.start.lock().expect("no panic while turning a clock") += by;
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        *self.start.lock().expect("no panic while turning a clock") + self.elapsed()
    }

    fn elapsed(&self) -> Duration {
        *self.elapsed.lock().expect("no panic while turning a clock")
    }
}

//! How long clients wait at a seam. Measurements: they print, and hold only to the bounds that must not be missed.
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]
#![allow(
    dead_code,
    unreachable_pub,
    reason = "the support is shared by test files that each use a part of it"
)]

mod support;

use std::time::{Duration, Instant};

use support::Site;
use support::client::{ask, body};
use support::worker::{Pause, Script};

const RUNS: usize = 200;

#[derive(Clone, Copy, PartialEq)]
enum Fault {
    Killed,
    Frozen,
}

/// From the fault to the next token at the client, for each run, sorted.
async fn gaps(fault: Fault) -> Vec<Duration> {
    let mut gaps = Vec::new();
    for _ in 0..RUNS {
        let mut site = Site::start([Script::pausing(Pause::Before(5)), Script::default()]).await;
        let mut reading = ask(&site.url, body(8)).await;
        reading.tokens(5).await;
        let start = Instant::now();
        match fault {
            Fault::Killed => site.workers[0].kill(),
            Fault::Frozen => site.workers[0].freeze(),
        }
        reading.tokens(6).await;
        gaps.push(start.elapsed());
        reading.end().await.assert_undisturbed(8);
        site.workers[0].kill();
        site.finish().await;
    }
    gaps.sort();
    let at = |share: f64| gaps[((RUNS - 1) as f64 * share).round() as usize].as_secs_f64() * 1e3;
    let name = if fault == Fault::Killed { "killed" } else { "frozen" };
    println!("{name}: p50 {:.1} ms, p99 {:.1} ms, longest {:.1} ms of {RUNS}", at(0.5), at(0.99), at(1.0));
    gaps
}

#[tokio::test]
#[ignore = "a measurement; run it with --ignored --nocapture on a quiet machine"]
async fn a_killed_worker_is_replaced_within_the_bound() {
    assert!(gaps(Fault::Killed).await[RUNS * 99 / 100] < Duration::from_millis(500));
}

#[tokio::test]
#[ignore = "a measurement; run it with --ignored --nocapture on a quiet machine"]
async fn a_frozen_worker_is_replaced_within_the_bound() {
    assert!(gaps(Fault::Frozen).await[RUNS * 99 / 100] < Duration::from_secs(2));
}

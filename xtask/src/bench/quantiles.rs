//! Quantiles of few measurements.

use std::time::Duration;

use serde::Serialize;

/// Milliseconds, each the smallest measurement that at least this share of all does not exceed (nearest rank).
#[derive(Debug, PartialEq, Serialize)]
pub(crate) struct Quantiles {
    pub(crate) p50_ms: f64,
    pub(crate) p90_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) max_ms: f64,
}

impl Quantiles {
    /// None of none.
    pub(crate) fn of(measurements: &[Duration]) -> Option<Self> {
        let mut sorted = measurements.to_vec();
        sorted.sort_unstable();
        let at = |percent: usize| {
            let rank = (sorted.len() * percent).div_ceil(100);
            sorted.get(rank.checked_sub(1)?).map(|duration| (duration.as_secs_f64() * 1e4).round() / 10.0)
        };
        Some(Self { p50_ms: at(50)?, p90_ms: at(90)?, p99_ms: at(99)?, max_ms: at(100)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_rank_is_taken() {
        let ten: Vec<Duration> = (1..=10).rev().map(Duration::from_millis).collect();
        assert_eq!(
            Quantiles::of(&ten),
            Some(Quantiles { p50_ms: 5.0, p90_ms: 9.0, p99_ms: 10.0, max_ms: 10.0 })
        );
        assert_eq!(Quantiles::of(&[]), None);
    }
}

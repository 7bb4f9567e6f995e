//! How soon a warm copy would serve. All of it is measured on this host, nothing assumed.

use std::time::Duration;

/// What a warm process says of its weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Warmth {
    /// In memory, in bytes.
    pub resident: u64,
    /// In all, in bytes.
    pub total: u64,
    /// Bytes a second that came from the disk; 0 where none had to.
    pub disk_rate: u64,
    /// Bytes a second that came from memory; 0 where none were read yet.
    pub memory_rate: u64,
}

/// Seconds from being told to serve until it serves, rounded up:
///
/// bytes that are not in memory ÷ the disk's rate, and what the last start of this workload on this host took; if it has not served
/// here yet, all bytes ÷ memory's rate instead, as a replica has to look at each of them once.
///
/// None while one of these is not measured.
#[must_use]
pub fn seconds_to_ready(warmth: &Warmth, last_start: Option<Duration>) -> Option<u32> {
    let time = |bytes: u64, rate: u64| match (bytes, rate) {
        (0, _) => Some(0.0),
        (_, 0) => None,
        (bytes, rate) => Some(bytes as f64 / rate as f64),
    };
    let read = time(warmth.total.saturating_sub(warmth.resident), warmth.disk_rate)?;
    let start = match last_start {
        Some(measured) => measured.as_secs_f64(),
        None => time(warmth.total, warmth.memory_rate)?,
    };
    Some((read + start).ceil().max(1.0) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn missing_bytes_come_from_disk_and_a_start_takes_what_the_last_one_took() {
        let warm = Warmth { resident: 100 * GIB, total: 100 * GIB, disk_rate: 0, memory_rate: 10 * GIB };
        assert_eq!(seconds_to_ready(&warm, None), Some(10));
        assert_eq!(seconds_to_ready(&warm, Some(Duration::from_millis(4200))), Some(5));
        let cold = Warmth { resident: 40 * GIB, disk_rate: 3 * GIB, ..warm };
        assert_eq!(seconds_to_ready(&cold, None), Some(30));
        assert_eq!(seconds_to_ready(&cold, Some(Duration::from_millis(4200))), Some(25));
        assert_eq!(seconds_to_ready(&warm, Some(Duration::ZERO)), Some(1), "never at once");
    }

    #[test]
    fn what_was_not_measured_is_not_said() {
        let unread = Warmth { resident: 1, total: 2, disk_rate: 0, memory_rate: 1 };
        assert_eq!(seconds_to_ready(&unread, Some(Duration::from_secs(1))), None);
        let fresh = Warmth { resident: 2, total: 2, disk_rate: 0, memory_rate: 0 };
        assert_eq!(seconds_to_ready(&fresh, None), None);
        assert_eq!(seconds_to_ready(&fresh, Some(Duration::from_secs(1))), Some(1));
    }
}

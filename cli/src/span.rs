//! Spans of time, as people write and read them.

use std::time::Duration;

use jiff::Timestamp;

/// The longest span that a command takes: a week.
const LONGEST: u64 = 7 * 86_400;

/// Reads `90`, `90s`, `5m`, `2h`.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let unit = match unit {
        "" | "s" => Some(1),
        "m" => Some(60),
        "h" => Some(3_600),
        _ => None,
    };
    let (Ok(number), Some(unit)) = (number.parse::<u64>(), unit) else {
        return Err("say a time as 30s, 5m or 2h".to_owned());
    };
    number
        .checked_mul(unit)
        .filter(|seconds| *seconds <= LONGEST)
        .map(Duration::from_secs)
        .ok_or_else(|| "at most a week".to_owned())
}

/// As [`parse`] reads it.
pub(crate) fn text(span: Duration) -> String {
    match span.as_secs() {
        seconds if seconds >= 3_600 && seconds % 3_600 == 0 => format!("{}h", seconds / 3_600),
        seconds if seconds >= 60 && seconds % 60 == 0 => format!("{}m", seconds / 60),
        seconds => format!("{seconds}s"),
    }
}

/// How long still, in the two units that tell most: `12s`, `4m12s`, `1h01m`, `2d03h`.
pub(crate) fn left(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{}h{:02}m", seconds / 3_600, seconds / 60 % 60),
        _ => format!("{}d{:02}h", seconds / 86_400, seconds / 3_600 % 24),
    }
}

/// How long ago, in one unit that still tells something, as kubectl does.
pub(crate) fn since(then: Timestamp, now: Timestamp) -> String {
    let seconds = now.as_second().saturating_sub(then.as_second()).max(0);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_read_and_bounded() {
        assert_eq!(parse("90"), Ok(Duration::from_secs(90)));
        assert_eq!(parse("5m"), Ok(Duration::from_secs(300)));
        for bad in ["", "s", "-1s", "1d", "99999999999999999999s", "200h"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_said_can_be_read() {
        for span in ["90s", "5m", "2h", "0s"] {
            assert_eq!(text(parse(span).unwrap()), span);
        }
    }

    #[test]
    fn what_is_left_is_short() {
        assert_eq!([59, 60, 3_661, 90_000].map(left), ["59s", "1m00s", "1h01m", "1d01h"]);
    }

    #[test]
    fn ages_are_short() {
        let at = |s: i64| Timestamp::from_second(s).unwrap();
        assert_eq!(
            [since(at(0), at(119)), since(at(0), at(120)), since(at(0), at(200_000))],
            ["119s", "2m", "2d"]
        );
        assert_eq!(since(at(5), at(0)), "0s", "clocks differ");
    }
}

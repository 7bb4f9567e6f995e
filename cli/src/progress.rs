//! Weights on their way, in words: how far, how fast, how long still.

use bytesize::ByteSize;
use serde_json::Value;

use crate::object::items;
use crate::span;
use crate::table::size;

/// Cells of a bar.
const CELLS: u64 = 8;

/// Transfers taken together, as they are reported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    done: u64,
    total: u64,
    rate: u64,
    /// Of the slowest.
    eta: Option<u64>,
    from_source: u64,
    from_peers: u64,
}

impl Progress {
    /// Of a deployment's copies.
    pub(crate) fn of_deployment(object: &Value) -> Option<Self> {
        Self::of_all(items(&object["status"], "placements"))
    }

    /// Of what shall run on a host.
    pub(crate) fn of_host(object: &Value) -> Option<Self> {
        Self::of_all(items(&object["status"], "workloads"))
    }

    /// Of one copy; none while nothing is on its way.
    pub(crate) fn of_copy(copy: &Value) -> Option<Self> {
        let transfer = &copy["transfer"];
        let number = |key: &str| transfer[key].as_u64();
        Some(Self {
            done: number("doneBytes")?,
            total: number("totalBytes")?,
            rate: number("bytesPerSecond").unwrap_or(0),
            eta: number("etaSeconds"),
            from_source: number("sourceBytes").unwrap_or(0),
            from_peers: number("peerBytes").unwrap_or(0),
        })
    }

    fn of_all(copies: &[Value]) -> Option<Self> {
        copies.iter().filter_map(Self::of_copy).reduce(|a, b| Self {
            done: a.done.saturating_add(b.done),
            total: a.total.saturating_add(b.total),
            rate: a.rate.saturating_add(b.rate),
            // As long as one of them stands still, nobody knows.
            eta: a.eta.zip(b.eta).map(|(a, b)| a.max(b)),
            from_source: a.from_source.saturating_add(b.from_source),
            from_peers: a.from_peers.saturating_add(b.from_peers),
        })
    }

    /// `43% ███░░░░░ 1.2 GB/s 4m12s`.
    pub(crate) fn short(&self) -> String {
        // What is not all there is not 100 %.
        let part = |whole: u64| match self.done < self.total {
            true => u128::from(self.done) * u128::from(whole) / u128::from(self.total),
            false => u128::from(whole),
        };
        let full = usize::try_from(part(CELLS)).unwrap_or(0);
        let bar: String = (0..CELLS as usize).map(|cell| if cell < full { '█' } else { '░' }).collect();
        let moves = pace(self.rate, self.eta);
        format!("{}% {bar} {moves}", part(100))
    }

    /// The same with sizes and where the bytes came from.
    pub(crate) fn long(&self) -> String {
        let came = self.from_source.saturating_add(self.from_peers);
        let peers = (u128::from(self.from_peers) * 100).checked_div(u128::from(came)).unwrap_or(0);
        let from = if self.from_peers > 0 { format!(", {peers}% from other hosts") } else { String::new() };
        format!("{} ({} of {}{from})", self.short(), size(self.done), size(self.total))
    }
}

/// How fast and how long still: `1.2 GB/s 4m12s`.
pub(crate) fn pace(bytes_per_second: u64, eta_seconds: Option<u64>) -> String {
    let rate = format!("{}/s", ByteSize::b(bytes_per_second).display().si());
    match eta_seconds {
        Some(seconds) => format!("{rate} {}", span::left(seconds)),
        None => rate,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn moving(done: u64, total: u64, rate: u64, eta: Option<u64>) -> Value {
        json!({"transfer": {"doneBytes": done, "totalBytes": total, "bytesPerSecond": rate, "etaSeconds": eta}})
    }

    fn short(copy: &Value) -> String {
        Progress::of_copy(copy).unwrap().short()
    }

    #[test]
    fn a_copy_on_its_way_is_one_short_line() {
        assert_eq!(short(&moving(43, 100, 1_234_000_000, Some(252))), "43% ███░░░░░ 1.2 GB/s 4m12s");
        assert_eq!(short(&moving(0, 100, 0, None)), "0% ░░░░░░░░ 0 B/s");
        assert_eq!(short(&moving(999, 1000, 7_000, Some(1))), "99% ███████░ 7.0 kB/s 1s");
        assert_eq!(short(&moving(u64::MAX, u64::MAX, 1, Some(0))), "100% ████████ 1 B/s 0s");
        assert_eq!(short(&moving(0, 0, 0, None)), "100% ████████ 0 B/s", "an empty file is there");
        assert_eq!(Progress::of_copy(&json!({"state": "Ready"})), None);
    }

    #[test]
    fn copies_add_up_and_the_slowest_says_when() {
        let all = |copies: &[Value]| {
            Progress::of_deployment(&json!({"status": {"placements": copies}})).map(|all| all.short())
        };
        let (a, b) = (moving(10, 100, 5_000_000, Some(18)), moving(90, 100, 5_000_000, Some(2)));
        let ready = json!({"state": "Ready"});
        assert_eq!(all(&[a.clone(), ready, b]).unwrap(), "50% ████░░░░ 10.0 MB/s 18s");
        assert_eq!(all(&[a, moving(0, 100, 0, None)]).unwrap(), "5% ░░░░░░░░ 5.0 MB/s");
        assert_eq!(all(&[]), None);
    }

    #[test]
    fn the_long_form_says_where_bytes_came_from() {
        let mut copy = moving(1 << 30, 2 << 30, 1_000_000, Some(3_700));
        copy["transfer"]["sourceBytes"] = (1 << 28).into();
        copy["transfer"]["peerBytes"] = (3 << 28).into();
        assert_eq!(
            Progress::of_copy(&copy).unwrap().long(),
            "50% ████░░░░ 1.0 MB/s 1h01m (1.0 GiB of 2.0 GiB, 75% from other hosts)"
        );
    }
}

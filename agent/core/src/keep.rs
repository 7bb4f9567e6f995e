//! Which of a host's weights stay, and which go when there is too little room.
//!
//! Weights are never deleted while they might be the last warm copy: without the newest word of an operator, nothing goes.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use tandem_crds::InferenceHostSpec;

/// How long what was pulled by hand stays without a workload that uses it.
const PULLED_STAYS: Duration = Duration::from_secs(3600);

/// Why a file stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pin {
    /// A workload of this host has it in its list.
    Used {
        /// Its id.
        workload: String,
    },
    /// The operator wants it here.
    Kept,
    /// Somebody has pulled it, and had no time yet to apply a deployment.
    Pulled,
    /// No operator has said in this session what this host keeps.
    Unheard,
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Used { workload } => write!(f, "workload {workload} uses it"),
            Self::Kept => f.write_str("it may be the last copy of a model that a deployment wants"),
            Self::Pulled => f.write_str("it was pulled less than an hour ago"),
            Self::Unheard => f.write_str("no operator has said yet what this host keeps"),
        }
    }
}

/// All that stays, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pins {
    /// By digest.
    named: BTreeMap<String, Pin>,
    heard: bool,
}

impl Pins {
    /// `spec` is what the host obeys, if an operator has confirmed it since it can be reached; `pulled` are digests of files
    /// that were pulled by hand, with the time since then.
    #[must_use]
    pub fn of<'a>(
        spec: Option<&InferenceHostSpec>,
        pulled: impl IntoIterator<Item = (&'a str, Duration)>,
    ) -> Self {
        let pulled = pulled.into_iter().filter(|(_, since)| *since < PULLED_STAYS);
        let mut named: BTreeMap<_, _> =
            pulled.map(|(digest, _)| (digest.to_ascii_lowercase(), Pin::Pulled)).collect();
        for digest in spec.iter().flat_map(|spec| &spec.keep_files) {
            named.insert(digest.to_ascii_lowercase(), Pin::Kept);
        }
        for workload in spec.iter().flat_map(|spec| &spec.workloads) {
            for file in &workload.files {
                let pin = Pin::Used { workload: workload.id.clone() };
                named.insert(file.sha256.to_ascii_lowercase(), pin);
            }
        }
        Self { named, heard: spec.is_some() }
    }

    /// Why a file stays; none if it may go.
    #[must_use]
    pub fn of_file(&self, digest: &str) -> Option<&Pin> {
        self.named.get(digest).or((!self.heard).then_some(&Pin::Unheard))
    }
}

/// A file that is kept, as far as collecting asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Lower-case hex.
    pub digest: String,
    /// What its end gives back of the budget.
    pub bytes: u64,
    /// Seconds since 1970.
    pub last_used: i64,
}

/// How much there is, may be, and will be. All are bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// What the files take.
    pub used: u64,
    /// What they may take, if that is bounded.
    pub budget: Option<u64>,
    /// What the disk has left, if the system says.
    pub free: Option<u64>,
    /// What shall be left of the disk.
    pub spare: u64,
    /// What is about to come.
    pub coming: u64,
}

impl Room {
    /// What has to go.
    #[must_use]
    pub fn excess(&self) -> u64 {
        let over =
            self.budget.map_or(0, |budget| self.used.saturating_add(self.coming).saturating_sub(budget));
        let short = self.free.map_or(0, |free| self.spare.saturating_add(self.coming).saturating_sub(free));
        over.max(short)
    }
}

/// Which files go so that `excess` bytes do: those unused for the longest first, no more than it takes, and none that is
/// pinned. They may be too few.
#[must_use]
pub fn collect(kept: &[Kept], pins: &Pins, excess: u64) -> Vec<Kept> {
    let mut free: Vec<&Kept> = kept.iter().filter(|file| pins.of_file(&file.digest).is_none()).collect();
    free.sort_by(|a, b| (a.last_used, &a.digest).cmp(&(b.last_used, &b.digest)));
    let mut gone = 0u64;
    let enough = |file: &&&Kept| {
        let wanted = gone < excess;
        gone = gone.saturating_add(file.bytes);
        wanted
    };
    free.iter().take_while(enough).map(|file| (*file).clone()).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tandem_crds::ResolvedFile;

    use super::*;
    use crate::ledger::tests::{spec, workload};

    fn kept(digest: &str, bytes: u64, last_used: i64) -> Kept {
        Kept { digest: digest.to_owned(), bytes, last_used }
    }

    fn digests(gone: &[Kept]) -> Vec<&str> {
        gone.iter().map(|file| file.digest.as_str()).collect()
    }

    #[test]
    fn without_an_operators_word_nothing_goes() {
        let files = [kept("a", 10, 1), kept("b", 10, 2)];
        assert_eq!(collect(&files, &Pins::of(None, []), u64::MAX), []);
        let pins = Pins::of(Some(&spec(1, 1, vec![])), []);
        assert_eq!(digests(&collect(&files, &pins, u64::MAX)), ["a", "b"]);
    }

    #[test]
    fn what_is_used_kept_or_just_pulled_stays_and_says_why() {
        let mut spec = spec(1, 1, vec![workload("w", 1, 10)]);
        let used = "ab".repeat(32);
        spec.workloads[0].files.push(ResolvedFile { name: "m".to_owned(), sha256: used.clone(), bytes: 1 });
        spec.keep_files = vec!["KEPT".to_owned()];
        let young = Duration::from_secs(3599);
        let pins = Pins::of(Some(&spec), [("pulled", young), ("old", Duration::from_secs(3600))]);
        let why = |digest: &str| pins.of_file(digest).map(ToString::to_string);
        assert_eq!(why(&used).as_deref(), Some("workload w uses it"));
        assert!(why("kept").is_some_and(|why| why.contains("last copy")));
        assert!(why("pulled").is_some_and(|why| why.contains("less than an hour")));
        assert_eq!((why("old"), why("other")), (None, None));
    }

    #[test]
    fn the_longest_unused_go_first_and_no_more_than_needed() {
        let pins = Pins::of(Some(&spec(1, 1, vec![])), []);
        let files = [kept("new", 10, 30), kept("old", 10, 10), kept("mid", 10, 20)];
        assert_eq!(collect(&files, &pins, 0), []);
        assert_eq!(digests(&collect(&files, &pins, 1)), ["old"]);
        assert_eq!(digests(&collect(&files, &pins, 10)), ["old"]);
        assert_eq!(digests(&collect(&files, &pins, 11)), ["old", "mid"]);
    }

    #[test]
    fn too_little_room_is_the_budgets_or_the_disks() {
        let room = Room { used: 90, budget: Some(100), free: Some(1000), spare: 10, coming: 0 };
        assert_eq!(room.excess(), 0);
        assert_eq!(Room { coming: 30, ..room }.excess(), 20);
        assert_eq!(Room { free: Some(4), ..room }.excess(), 6);
        assert_eq!(Room { coming: 30, free: Some(15), ..room }.excess(), 25);
        assert_eq!(Room { budget: None, free: None, coming: u64::MAX, ..room }.excess(), 0);
    }

    proptest! {
        /// Nothing pinned goes, and if enough may go, enough goes: less without the last of it.
        #[test]
        fn just_enough_goes_and_nothing_pinned(
            files in prop::collection::vec((1u64..1000, 0i64..50, any::<bool>()), 0..40),
            excess in 0u64..20_000,
        ) {
            let all: Vec<Kept> =
                files.iter().enumerate().map(|(n, (bytes, used, _))| kept(&n.to_string(), *bytes, *used)).collect();
            let pinned: Vec<String> =
                files.iter().enumerate().filter(|(_, file)| file.2).map(|(n, _)| n.to_string()).collect();
            let pins = Pins::of(Some(&spec(1, 1, vec![])), pinned.iter().map(|p| (p.as_str(), Duration::ZERO)));
            let gone = collect(&all, &pins, excess);
            prop_assert!(gone.iter().all(|file| !pinned.contains(&file.digest)));
            let sum: u64 = gone.iter().map(|file| file.bytes).sum();
            let free: u64 = all.iter().filter(|f| !pinned.contains(&f.digest)).map(|f| f.bytes).sum();
            prop_assert!(sum >= excess.min(free));
            if let Some(last) = gone.last() {
                prop_assert!(sum - last.bytes < excess);
            }
        }
    }
}

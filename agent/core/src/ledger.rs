//! The generation ledger: the newest term and the highest epochs that this host has seen, for ever.
//!
//! It is what fences: a leader of yesterday, a restored backup or a late message can't make the host go back. It is written
//! before anything is done that rests on it.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use tandem_crds::InferenceHostSpec;
use thiserror::Error;

/// Of the file's format.
const VERSION: u32 = 1;
/// Workload ids that are remembered. Past this, those of the oldest terms are forgotten.
const MOST: usize = 1024;

/// What this host has seen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ledger {
    version: u32,
    term: u64,
    generation: u64,
    epochs: BTreeMap<String, Seen>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Seen {
    epoch: u64,
    /// In which term, to know what is oldest.
    term: u64,
}

/// A ledger file that can't be used. It is left as it is: without it, this host can't tell old orders from new.
#[derive(Debug, Error)]
pub enum LedgerError {
    /// No JSON of this shape.
    #[error(
        "the generation ledger is damaged: restore it from a backup; or remove it, if this host has left its cluster"
    )]
    Damaged(#[source] serde_json::Error),
    /// Written by a newer release.
    #[error(
        "the generation ledger has format {0}, and this release reads {VERSION}: run the newer release again"
    )]
    Newer(u32),
}

/// A spec that is not obeyed.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Refused {
    /// Of a leader that another has followed.
    #[error("the spec is of term {given}, and this host has obeyed term {seen}: another operator leads")]
    Term {
        /// In the spec.
        given: u64,
        /// In the ledger.
        seen: u64,
    },
    /// Older than another spec of the same leader.
    #[error("the spec is generation {given} of term {term}, and this host has obeyed {seen}")]
    Generation {
        /// Of both.
        term: u64,
        /// In the spec.
        given: u64,
        /// In the ledger.
        seen: u64,
    },
}

impl Ledger {
    /// Of a host that has seen nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self { version: VERSION, ..Self::default() }
    }

    /// Reads a ledger file.
    ///
    /// # Errors
    /// When it is damaged or of a newer release.
    pub fn parse(bytes: &[u8]) -> Result<Self, LedgerError> {
        #[derive(Deserialize)]
        struct Format {
            version: u32,
        }
        let format: Format = serde_json::from_slice(bytes).map_err(LedgerError::Damaged)?;
        if format.version > VERSION {
            return Err(LedgerError::Newer(format.version));
        }
        serde_json::from_slice(bytes).map_err(LedgerError::Damaged)
    }

    /// As a file.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec_pretty(self).expect("a ledger has nothing that JSON can't hold")
    }

    /// The newest term obeyed.
    #[must_use]
    pub fn term(&self) -> u64 {
        self.term
    }

    /// The highest epoch seen of a workload.
    #[must_use]
    pub fn epoch(&self, workload: &str) -> Option<u64> {
        self.epochs.get(workload).map(|seen| seen.epoch)
    }

    /// Accepts a spec and remembers it, or refuses it and remembers nothing. The same spec is accepted again.
    ///
    /// # Errors
    /// When a newer one has been accepted before.
    pub fn accept(&mut self, spec: &InferenceHostSpec) -> Result<(), Refused> {
        if spec.term < self.term {
            return Err(Refused::Term { given: spec.term, seen: self.term });
        }
        if spec.term == self.term && spec.generation < self.generation {
            let (term, given, seen) = (spec.term, spec.generation, self.generation);
            return Err(Refused::Generation { term, given, seen });
        }
        (self.term, self.generation) = (spec.term, spec.generation);
        for workload in &spec.workloads {
            let seen = self.epochs.entry(workload.id.clone()).or_insert(Seen { epoch: 0, term: 0 });
            seen.term = spec.term;
            seen.epoch = seen.epoch.max(workload.epoch);
        }
        self.forget_oldest(spec);
        Ok(())
    }

    fn forget_oldest(&mut self, spec: &InferenceHostSpec) {
        let excess = self.epochs.len().saturating_sub(MOST);
        if excess == 0 {
            return;
        }
        let listed: BTreeSet<&str> = spec.workloads.iter().map(|workload| workload.id.as_str()).collect();
        let mut others: Vec<(u64, String)> = self
            .epochs
            .iter()
            .filter(|(id, _)| !listed.contains(id.as_str()))
            .map(|(id, seen)| (seen.term, id.clone()))
            .collect();
        others.sort();
        for (_, id) in others.into_iter().take(excess) {
            self.epochs.remove(&id);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;
    use tandem_crds::{DeploymentRef, WorkloadSpec};

    use super::*;

    pub(crate) fn workload(id: &str, epoch: u64, memory_bytes: u64) -> WorkloadSpec {
        WorkloadSpec {
            id: id.to_owned(),
            epoch,
            mode: tandem_crds::WorkloadMode::Serve,
            deployment: DeploymentRef { namespace: "llm".to_owned(), name: "tiny".to_owned() },
            model: "tiny".to_owned(),
            source: "file:///models".to_owned(),
            files: vec![],
            quant: "Q8_0".to_owned(),
            context_tokens: 512,
            pool_tokens: 512,
            kv_cache: tandem_crds::KvCache::F16,
            sampling: None,
            memory_bytes,
        }
    }

    pub(crate) fn spec(term: u64, generation: u64, workloads: Vec<WorkloadSpec>) -> InferenceHostSpec {
        InferenceHostSpec { term, generation, workloads, ..InferenceHostSpec::default() }
    }

    #[test]
    fn older_terms_and_generations_are_refused_and_change_nothing() {
        let mut ledger = Ledger::new();
        ledger.accept(&spec(5, 10, vec![workload("a", 3, 0)])).unwrap();
        let before = ledger.clone();
        let error = ledger.accept(&spec(4, 99, vec![workload("a", 9, 0)])).unwrap_err();
        assert_eq!(error, Refused::Term { given: 4, seen: 5 });
        let error = ledger.accept(&spec(5, 9, vec![])).unwrap_err();
        assert_eq!(error, Refused::Generation { term: 5, given: 9, seen: 10 });
        assert_eq!(ledger, before);
        ledger.accept(&spec(5, 10, vec![])).unwrap();
        // A new leader may count generations from a restored backup.
        ledger.accept(&spec(6, 1, vec![workload("a", 1, 0)])).unwrap();
        assert_eq!((ledger.term(), ledger.epoch("a"), ledger.epoch("b")), (6, Some(3), None));
    }

    #[test]
    fn files_of_other_formats_are_refused_with_what_to_do() {
        let newer = br#"{"version": 2, "anything": []}"#;
        assert!(matches!(Ledger::parse(newer), Err(LedgerError::Newer(2))));
        let whole = Ledger::new().to_json();
        for damaged in [&b""[..], b"null", b"{}", &whole[..whole.len() - 2], br#"{"version":1,"term":-1}"#] {
            let error = Ledger::parse(damaged).unwrap_err();
            assert!(error.to_string().contains("restore it"), "{error}");
        }
    }

    #[test]
    fn memory_is_bounded_and_keeps_what_is_listed() {
        let mut ledger = Ledger::new();
        ledger.accept(&spec(1, 1, vec![workload("kept", 7, 0)])).unwrap();
        for term in 2..40 {
            let mut many: Vec<_> = (0..63).map(|n| workload(&format!("w{term}-{n}"), 1, 0)).collect();
            many.push(workload("kept", 7, 0));
            ledger.accept(&spec(term, 1, many)).unwrap();
        }
        assert_eq!(ledger.epochs.len(), MOST);
        assert_eq!(ledger.epoch("kept"), Some(7));
        assert_eq!(ledger.epoch("w2-0"), None);
    }

    proptest! {
        #[test]
        fn terms_and_epochs_never_fall(
            specs in prop::collection::vec((0u64..6, 0u64..6, prop::collection::vec((0u8..3, 0u64..6), 0..4)), 0..40)
        ) {
            let mut ledger = Ledger::new();
            for (term, generation, workloads) in specs {
                let before = ledger.clone();
                let workloads = workloads.iter().map(|(id, epoch)| workload(&format!("w{id}"), *epoch, 0)).collect();
                let accepted = ledger.accept(&spec(term, generation, workloads)).is_ok();
                prop_assert_eq!(accepted, (term, generation) >= (before.term, before.generation)
                    && term >= before.term);
                prop_assert!(ledger.term >= before.term);
                for (id, seen) in &before.epochs {
                    prop_assert!(ledger.epochs[id].epoch >= seen.epoch);
                }
                prop_assert_eq!(Ledger::parse(&ledger.to_json()).unwrap(), ledger.clone());
            }
        }
    }
}

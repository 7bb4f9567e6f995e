//! How often what was asked for, and how much of it was sent.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::Door;

/// Requests, and bytes of files that were sent for them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Requests, whatever was answered.
    pub requests: u64,
    /// Bytes of bodies of files, as far as they were handed to the network.
    pub bytes: u64,
}

#[derive(Default)]
pub(crate) struct Counts(Mutex<BTreeMap<(Door, String), Arc<Counter>>>);

#[derive(Default)]
pub(crate) struct Counter {
    requests: AtomicU64,
    bytes: AtomicU64,
}

impl Counter {
    pub(crate) fn sent(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

impl Counts {
    pub(crate) fn request(&self, door: Door, path: &str) -> Arc<Counter> {
        let mut counts = self.0.lock().expect("no panic while counting");
        let counter = Arc::clone(counts.entry((door, path.to_owned())).or_default());
        counter.requests.fetch_add(1, Ordering::Relaxed);
        counter
    }

    pub(crate) fn of(&self, door: Door, path: &str) -> Count {
        let counts = self.0.lock().expect("no panic while counting");
        let fitting = counts.iter().filter(|((at, of), _)| *at == door && of.ends_with(path));
        fitting.fold(Count::default(), |sum, (_, counter)| Count {
            requests: sum.requests + counter.requests.load(Ordering::Relaxed),
            bytes: sum.bytes + counter.bytes.load(Ordering::Relaxed),
        })
    }

    pub(crate) fn reset(&self) {
        self.0.lock().expect("no panic while counting").clear();
    }
}

//! What the penalties look at: which ids a sequence has seen, and how often it said them.

use std::collections::BTreeMap;

/// Counts of the ids in a prompt and its output so far, resumed ids included.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History {
    /// How often each id of prompt or output is in the output.
    seen: BTreeMap<u32, u32>,
}

impl History {
    /// Of a prompt and the output ids that follow it.
    #[must_use]
    pub fn of(prompt: &[u32], output: &[u32]) -> Self {
        let mut history = Self { seen: prompt.iter().map(|&id| (id, 0)).collect() };
        for &id in output {
            history.push(id);
        }
        history
    }

    /// Adds an id to the output.
    pub fn push(&mut self, id: u32) {
        *self.seen.entry(id).or_default() += 1;
    }

    /// Each id of prompt or output once, with how often it is in the output.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, u32)> {
        self.seen.iter().map(|(&id, &count)| (id, count))
    }
}

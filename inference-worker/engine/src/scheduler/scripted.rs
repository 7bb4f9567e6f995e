//! A model of a few lines for tests: its next token depends on every row of KV that the sequence holds, so that a wrong
//! prefix, a missing or zeroed row, or a row written twice changes all that follows.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::decode::{DecodeModel, ForwardError, OutOfPages, Pages, Row, RowFault};

/// How many layers the scripted model says that it has: ticks per step.
const LAYERS: u64 = 4;

/// What a [`ScriptedModel`] is made of.
#[derive(Debug, Clone)]
pub struct Script {
    /// Ids.
    pub vocab: u32,
    /// Longest sequence.
    pub context: u32,
    /// KV pages.
    pub pages: u32,
    /// Positions in a page.
    pub tokens_per_page: u32,
    /// Slots.
    pub sequences: u32,
    /// Rows in a step.
    pub batch_rows: usize,
    /// Two models that differ in this say different things.
    pub divergence: u64,
    /// A token after which nothing of its sequence is finite.
    pub poison: Option<u32>,
    /// A token at which the model panics.
    pub crash: Option<u32>,
    /// A KV position whose row is stored as zero: a fault that tests must notice.
    pub zeroed_row: Option<u32>,
    /// How long a step takes.
    pub pace: Pace,
}

/// The time that a step takes: the longer of its two parts.
#[derive(Debug, Clone, Copy, Default)]
pub struct Pace {
    /// Of any step.
    pub per_step: Duration,
    /// Of each row.
    pub per_row: Duration,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            vocab: 320,
            context: 256,
            pages: 64,
            tokens_per_page: 8,
            sequences: 8,
            batch_rows: 64,
            divergence: 0,
            poison: None,
            crash: None,
            zeroed_row: None,
            pace: Pace::default(),
        }
    }
}

/// A model that computes nothing but a hash.
#[derive(Debug)]
pub struct ScriptedModel {
    script: Script,
    /// The KV rows of each slot.
    rows: Vec<Vec<u64>>,
    /// Pages that each slot holds.
    held: Vec<u32>,
}

impl ScriptedModel {
    /// As `script` says.
    #[must_use]
    pub fn new(script: Script) -> Self {
        let slots = script.sequences as usize;
        Self { script, rows: vec![Vec::new(); slots], held: vec![0; slots] }
    }

    fn free(&self) -> u32 {
        self.script.pages - self.held.iter().sum::<u32>()
    }

    fn check(&self, rows: &[Row], logits: &[f32]) -> Result<(), ForwardError> {
        if rows.len() > self.script.batch_rows {
            return Err(ForwardError::TooManyRows { rows: rows.len(), limit: self.script.batch_rows });
        }
        let expected = rows.iter().filter(|row| row.wants_logits).count() * self.script.vocab as usize;
        if logits.len() != expected {
            return Err(ForwardError::BufferLength { what: "logits", actual: logits.len(), expected });
        }
        let mut next: Vec<u32> = self.rows.iter().map(|rows| rows.len() as u32).collect();
        for (place, row) in rows.iter().enumerate() {
            let bad = |fault| ForwardError::BadRow {
                row: place,
                sequence: row.sequence,
                position: row.position,
                fault,
            };
            let slot = row.sequence as usize;
            let expected = next.get_mut(slot).ok_or_else(|| bad(RowFault::UnknownSequence))?;
            if row.position != *expected {
                return Err(bad(RowFault::NotNext { expected: *expected }));
            }
            *expected += 1;
            if row.token >= self.script.vocab {
                return Err(bad(RowFault::UnknownToken(row.token)));
            }
            if row.position >= self.held[slot] * self.script.tokens_per_page {
                return Err(bad(RowFault::NotReserved));
            }
        }
        Ok(())
    }

    /// Logits from 0 to 4 that depend on all rows of the slot.
    fn speak(&self, slot: usize, logits: &mut [f32]) {
        let state = self.rows[slot].iter().fold(self.script.divergence, |state, &row| mix(state ^ row));
        for (id, logit) in logits.iter_mut().enumerate() {
            *logit = (mix(state ^ mix(id as u64)) >> 40) as f32 / (1u32 << 22) as f32;
        }
    }
}

impl DecodeModel for ScriptedModel {
    fn vocab_size(&self) -> usize {
        self.script.vocab as usize
    }

    fn context_tokens(&self) -> u32 {
        self.script.context
    }

    fn max_sequences(&self) -> u32 {
        self.script.sequences
    }

    fn max_batch_rows(&self) -> usize {
        self.script.batch_rows
    }

    fn pages(&self) -> Pages {
        Pages { free: self.free(), total: self.script.pages, tokens_per_page: self.script.tokens_per_page }
    }

    fn reserve(&mut self, sequence: u32, tokens: u32) -> Result<(), OutOfPages> {
        if tokens > self.script.context {
            return Err(OutOfPages::ContextOverflow { sequence, asked: tokens, limit: self.script.context });
        }
        let held = self.held[sequence as usize];
        let needed = self.pages().needed_for(tokens).saturating_sub(held);
        let free = self.free();
        if needed > free {
            return Err(OutOfPages::PoolExhausted { sequence, needed, free });
        }
        self.held[sequence as usize] += needed;
        Ok(())
    }

    fn truncate(&mut self, sequence: u32, tokens: u32) {
        let slot = sequence as usize;
        self.rows[slot].truncate(tokens as usize);
        self.held[slot] = self.held[slot].min(self.pages().needed_for(tokens));
    }

    fn release(&mut self, sequence: u32) {
        self.truncate(sequence, 0);
    }

    fn forward(&mut self, rows: &[Row], ticks: &AtomicU64, logits: &mut [f32]) -> Result<(), ForwardError> {
        self.check(rows, logits)?;
        let pace = self.script.pace;
        let time = pace.per_step.max(pace.per_row * rows.len() as u32);
        for _ in 0..LAYERS {
            if !time.is_zero() {
                std::thread::sleep(time / LAYERS as u32);
            }
            ticks.fetch_add(1, Ordering::Relaxed);
        }
        let mut sequences = Vec::new();
        let mut logit_rows = logits.chunks_exact_mut(self.script.vocab as usize);
        for row in rows {
            assert_ne!(self.script.crash, Some(row.token), "the script says to crash here");
            let slot = row.sequence as usize;
            let kv = mix(u64::from(row.token) << 32 | u64::from(row.position));
            let zeroed = self.script.zeroed_row == Some(row.position);
            self.rows[slot].push(if zeroed { 0 } else { kv });
            if row.wants_logits {
                let logits = logit_rows.next().expect("the buffer's length was checked");
                self.speak(slot, logits);
            }
            if self.script.poison == Some(row.token) {
                sequences.push(row.sequence);
            }
        }
        if sequences.is_empty() {
            return Ok(());
        }
        sequences.sort_unstable();
        sequences.dedup();
        Err(ForwardError::NotFinite { sequences })
    }
}

/// The finaliser of SplitMix64.
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}

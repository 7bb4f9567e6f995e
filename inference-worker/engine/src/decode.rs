//! What a scheduler sees of a model: rows in, logits out, and pages that are counted.
//!
//! The scheduler is generic over [`DecodeModel`], so that its tests can use a model of a few lines.

use std::sync::atomic::AtomicU64;

use thiserror::Error;

/// One token of one sequence that goes through the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// The slot that holds the sequence's pages: below [`DecodeModel::max_sequences`].
    pub sequence: u32,
    /// Absolute position in the sequence, counted from 0. All positions before it are already in
    /// the KV cache, or earlier in the same call.
    pub position: u32,
    /// The token's id: below [`DecodeModel::vocab_size`].
    pub token: u32,
    /// Whether the logits after this token are wanted.
    pub wants_logits: bool,
}

/// The state of the KV pool that all sequences share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pages {
    /// Pages that no sequence holds.
    pub free: u32,
    /// All pages.
    pub total: u32,
    /// Positions in one page.
    pub tokens_per_page: u32,
}

impl Pages {
    /// The pages that a sequence of `tokens` tokens occupies.
    pub fn needed_for(&self, tokens: u32) -> u32 {
        tokens.div_ceil(self.tokens_per_page)
    }
}

/// A sequence can't grow. Nothing has changed: free pages elsewhere, or wait, and ask again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum OutOfPages {
    /// Every page is held by some sequence.
    #[error("the KV pool has {free} free pages and sequence {sequence} needs {needed} more")]
    PoolExhausted {
        /// The sequence that asked.
        sequence: u32,
        /// How many more pages it needs.
        needed: u32,
        /// How many are free.
        free: u32,
    },
    /// There is no such slot.
    #[error("there is no slot {sequence} for a sequence")]
    UnknownSequence {
        /// The slot that was named.
        sequence: u32,
    },
    /// The sequence would pass the longest context this engine was loaded for.
    #[error(
        "sequence {sequence} asks for {asked} tokens, but the engine was loaded for a context of {limit}"
    )]
    ContextOverflow {
        /// The sequence that asked.
        sequence: u32,
        /// The tokens that it asked for.
        asked: u32,
        /// The longest context.
        limit: u32,
    },
}

/// Why a step failed. Except for [`ForwardError::NotFinite`] nothing was computed and nothing written.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ForwardError {
    /// Some sequences' logits hold NaN or infinity. All other rows of the call are computed, and
    /// their logits are in place; the named sequences can't continue.
    #[error(
        "the logits of sequences {sequences:?} are not finite; end these streams, the others are unharmed"
    )]
    NotFinite {
        /// The slots of those sequences, ascending.
        sequences: Vec<u32>,
    },
    /// More rows than [`DecodeModel::max_batch_rows`].
    #[error("a step has {rows} rows, but the engine was loaded for at most {limit}")]
    TooManyRows {
        /// Rows in the call.
        rows: usize,
        /// The most a call may have.
        limit: usize,
    },
    /// A row breaks the call's rules.
    #[error("row {row} (sequence {sequence}, position {position}): {fault}")]
    BadRow {
        /// Index in the call.
        row: usize,
        /// The row's slot.
        sequence: u32,
        /// The row's position.
        position: u32,
        /// What is wrong with it.
        fault: RowFault,
    },
    /// An input or output buffer's length doesn't fit the rows.
    #[error("the {what} buffer holds {actual} values, but the rows need {expected}")]
    BufferLength {
        /// Which buffer.
        what: &'static str,
        /// Its length.
        actual: usize,
        /// The length that the rows call for.
        expected: usize,
    },
    /// This engine has a range of layers that can't serve the call.
    #[error("this engine holds layers {first}..{end} of {layers}: {reason}")]
    LayerRange {
        /// The first layer that it holds.
        first: u32,
        /// One past the last layer that it holds.
        end: u32,
        /// Layers in the whole model.
        layers: u32,
        /// What the call asked for.
        reason: &'static str,
    },
}

/// What is wrong with a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum RowFault {
    /// The slot is not one of the engine's.
    #[error("the slot is not below max_sequences")]
    UnknownSequence,
    /// The token is not in the vocabulary.
    #[error("the token {0} is not in the vocabulary")]
    UnknownToken(u32),
    /// The sequence holds no page for the position.
    #[error("no page is reserved for the position")]
    NotReserved,
    /// Rows between what is cached and this one are missing, or rows are out of order.
    #[error("the position must be {expected}, the next one of its sequence")]
    NotNext {
        /// The next position of the sequence.
        expected: u32,
    },
}

/// A model that computes rows of several sequences in one step.
pub trait DecodeModel {
    /// Logits per row.
    fn vocab_size(&self) -> usize;

    /// The longest sequence, in tokens.
    fn context_tokens(&self) -> u32;

    /// How many sequences may hold pages at once: slots are `0..max_sequences`.
    fn max_sequences(&self) -> u32;

    /// The most rows that one call of [`forward`](Self::forward) may have.
    fn max_batch_rows(&self) -> usize;

    /// The state of the KV pool.
    fn pages(&self) -> Pages;

    /// Lets `sequence` hold at least the pages for `tokens` tokens in all. Never gives pages back.
    fn reserve(&mut self, sequence: u32, tokens: u32) -> Result<(), OutOfPages>;

    /// Forgets what the sequence has at positions `tokens` and later, and frees the pages that held only those.
    fn truncate(&mut self, sequence: u32, tokens: u32);

    /// Forgets the sequence and frees its pages.
    fn release(&mut self, sequence: u32);

    /// Computes `rows`: of several sequences in any mix, those of one sequence at consecutive ascending
    /// positions, the first of which is where the sequence's cached rows end (rows before may be
    /// written again after [`truncate`](Self::truncate)).
    ///
    /// `ticks` grows by one with every layer done: the sign of progress. `logits` holds
    /// `vocab_size` values for each row with `wants_logits`, in the order of the rows.
    ///
    /// The bits of a row's logits depend on its sequence's tokens and position alone, not on which
    /// other rows are in the call, on how the sequence was cut into calls, or on threads.
    fn forward(&mut self, rows: &[Row], ticks: &AtomicU64, logits: &mut [f32]) -> Result<(), ForwardError>;
}

//! Which sequence holds which page of the KV pool: a ledger, apart from the memory itself.

use crate::decode::{ForwardError, OutOfPages, Pages, Row, RowFault};

/// Positions in one page. A power of two, and part of what fixes the order in which attention adds.
pub const TOKENS_PER_PAGE: u32 = 32;

/// What a slot holds.
#[derive(Debug, Clone, Default)]
struct Sequence {
    /// The pool's page for each run of [`TOKENS_PER_PAGE`] positions.
    pages: Vec<u32>,
    /// Positions whose rows are written.
    tokens: u32,
}

/// The ledger of all pages.
#[derive(Debug, Clone)]
pub struct PageTable {
    sequences: Vec<Sequence>,
    /// Free pages; the last is given out next.
    free: Vec<u32>,
    total: u32,
    context_tokens: u32,
    /// While rows are checked: the next position of each slot.
    next: Vec<u32>,
}

impl PageTable {
    /// A pool of `total` pages, all free. No allocation happens after this.
    pub fn new(total: u32, max_sequences: u32, context_tokens: u32) -> Self {
        let most = context_tokens.div_ceil(TOKENS_PER_PAGE).min(total) as usize;
        let sequence = || Sequence { pages: Vec::with_capacity(most), tokens: 0 };
        Self {
            sequences: (0..max_sequences).map(|_| sequence()).collect(),
            free: (0..total).rev().collect(),
            total,
            context_tokens,
            next: vec![0; max_sequences as usize],
        }
    }

    /// The bytes that `new` allocates for entries.
    pub fn bytes(total: u32, max_sequences: u32, context_tokens: u32) -> u64 {
        let (sequences, most) =
            (u64::from(max_sequences), context_tokens.div_ceil(TOKENS_PER_PAGE).min(total));
        (u64::from(total) + sequences * u64::from(most) + sequences) * size_of::<u32>() as u64
            + sequences * size_of::<Sequence>() as u64
    }

    /// Counts.
    pub fn pages(&self) -> Pages {
        Pages { free: self.free.len() as u32, total: self.total, tokens_per_page: TOKENS_PER_PAGE }
    }

    /// How many slots there are.
    pub fn max_sequences(&self) -> u32 {
        self.sequences.len() as u32
    }

    /// The pages of a slot in the order of positions; empty for a slot that isn't there.
    pub fn of(&self, sequence: u32) -> &[u32] {
        self.sequences.get(sequence as usize).map_or(&[], |s| &s.pages)
    }

    /// Positions of a slot whose rows are written.
    pub fn tokens(&self, sequence: u32) -> u32 {
        self.sequences.get(sequence as usize).map_or(0, |s| s.tokens)
    }

    /// Checks that each row is the next one of its sequence, in a page that the sequence holds.
    pub fn check(&mut self, rows: &[Row]) -> Result<(), ForwardError> {
        for row in rows {
            if let Some(next) = self.next.get_mut(row.sequence as usize) {
                *next = self.sequences[row.sequence as usize].tokens;
            }
        }
        for (index, row) in rows.iter().enumerate() {
            let bad = |fault| {
                Err(ForwardError::BadRow {
                    row: index,
                    sequence: row.sequence,
                    position: row.position,
                    fault,
                })
            };
            let Some(next) = self.next.get_mut(row.sequence as usize) else {
                return bad(RowFault::UnknownSequence);
            };
            if row.position != *next {
                return bad(RowFault::NotNext { expected: *next });
            }
            *next += 1;
            let pages = &self.sequences[row.sequence as usize].pages;
            if (row.position / TOKENS_PER_PAGE) as usize >= pages.len() {
                return bad(RowFault::NotReserved);
            }
        }
        Ok(())
    }

    /// Notes that these rows, which passed [`check`](Self::check), are written.
    pub fn written(&mut self, rows: &[Row]) {
        for row in rows {
            self.sequences[row.sequence as usize].tokens = row.position + 1;
        }
    }

    /// The slot of the KV pool for a position that a page is held for.
    pub fn slot(&self, sequence: u32, position: u32) -> u32 {
        let page = self.of(sequence)[(position / TOKENS_PER_PAGE) as usize];
        page * TOKENS_PER_PAGE + position % TOKENS_PER_PAGE
    }

    /// See [`DecodeModel::reserve`](crate::decode::DecodeModel::reserve).
    pub fn reserve(&mut self, sequence: u32, tokens: u32) -> Result<(), OutOfPages> {
        if tokens > self.context_tokens {
            return Err(OutOfPages::ContextOverflow { sequence, asked: tokens, limit: self.context_tokens });
        }
        let Some(s) = self.sequences.get_mut(sequence as usize) else {
            return Err(OutOfPages::UnknownSequence { sequence });
        };
        let needed = (tokens.div_ceil(TOKENS_PER_PAGE) as usize).saturating_sub(s.pages.len());
        if needed > self.free.len() {
            return Err(OutOfPages::PoolExhausted {
                sequence,
                needed: needed as u32,
                free: self.free.len() as u32,
            });
        }
        s.pages.extend(self.free.drain(self.free.len() - needed..).rev());
        Ok(())
    }

    /// See [`DecodeModel::truncate`](crate::decode::DecodeModel::truncate).
    pub fn truncate(&mut self, sequence: u32, tokens: u32) {
        if let Some(s) = self.sequences.get_mut(sequence as usize) {
            let kept = (tokens.div_ceil(TOKENS_PER_PAGE) as usize).min(s.pages.len());
            self.free.extend(s.pages.drain(kept..).rev());
            s.tokens = s.tokens.min(tokens);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: u32 = TOKENS_PER_PAGE;

    #[test]
    fn a_sequence_grows_page_by_page_and_gives_all_back() {
        let mut table = PageTable::new(3, 2, 10 * PAGE);
        table.reserve(0, 1).unwrap();
        table.reserve(0, PAGE).unwrap();
        assert_eq!(table.of(0).len(), 1);
        table.reserve(0, PAGE + 1).unwrap();
        assert_eq!(table.of(0).len(), 2);
        assert_eq!(
            table.reserve(1, 2 * PAGE),
            Err(OutOfPages::PoolExhausted { sequence: 1, needed: 2, free: 1 })
        );
        assert!(table.of(1).is_empty(), "a refusal changes nothing");
        table.truncate(0, 0);
        assert_eq!(table.pages().free, 3);
    }

    #[test]
    fn truncation_keeps_the_page_of_the_last_token_kept() {
        let mut table = PageTable::new(4, 1, 4 * PAGE);
        table.reserve(0, 4 * PAGE).unwrap();
        let rows: Vec<Row> = (0..4 * PAGE)
            .map(|position| Row { sequence: 0, position, token: 0, wants_logits: false })
            .collect();
        table.check(&rows).unwrap();
        table.written(&rows);
        let before = table.of(0).to_vec();
        table.truncate(0, PAGE + 1);
        assert_eq!(table.of(0), &before[..2]);
        assert_eq!(table.tokens(0), PAGE + 1);
        table.truncate(0, 3 * PAGE);
        assert_eq!((table.of(0).len(), table.tokens(0)), (2, PAGE + 1), "truncation never grows");
    }

    #[test]
    fn the_context_and_the_slots_are_limits() {
        let mut table = PageTable::new(4, 1, PAGE);
        assert_eq!(
            table.reserve(0, PAGE + 1),
            Err(OutOfPages::ContextOverflow { sequence: 0, asked: PAGE + 1, limit: PAGE })
        );
        assert_eq!(table.reserve(7, 1), Err(OutOfPages::UnknownSequence { sequence: 7 }));
        table.truncate(7, 0);
        assert_eq!(table.pages().free, 4);
    }
}

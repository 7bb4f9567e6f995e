//! Byte pair encoding of one piece: neighbours join by rank, lowest first, leftmost first among equals.
//!
//! Byte-level vocabularies start from bytes and rank by merges, or by token id. Sentencepiece's start from
//! characters and rank by score, and spell out in bytes what stays without a token.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use tandem_gguf::{Metadata, StringArray};

use crate::byte_alphabet;
use crate::error::TokenizerError;
use crate::vocabulary::Vocabulary;

const MERGES: &str = "tokenizer.ggml.merges";
const SCORES: &str = "tokenizer.ggml.scores";
const UNKNOWN: &str = "tokenizer.ggml.unknown_token_id";
const NONE: usize = usize::MAX;

/// Which neighbours join, and in what order.
#[derive(Debug, Clone)]
pub(crate) struct Bpe {
    ranks: Ranks,
    /// The token of each byte that is not part of a longer one.
    byte_tokens: Box<[u32; 256]>,
    whole_pieces_first: bool,
}

/// The id of a stretch that is no token.
const NO_TOKEN: u32 = u32::MAX;

#[derive(Debug, Clone)]
enum Ranks {
    Merges(Merges),
    /// Any two neighbours whose bytes are together a token join, and the token's id is the rank.
    TokenIds,
    /// The same, but the rank is found here by the token's id.
    Scores(Vec<u32>),
}

/// (left id, right id) → (rank, joined id).
type Merges = HashMap<(u32, u32), (u32, u32)>;

/// Memory that is reused from piece to piece.
#[derive(Default)]
pub(crate) struct Scratch {
    symbols: Vec<Symbol>,
    candidates: BinaryHeap<Reverse<Candidate>>,
}

/// A stretch of the piece that has become one token.
#[derive(Clone, Copy)]
struct Symbol {
    id: u32,
    start: usize,
    end: usize,
    /// The neighbours' indices, or `NONE`.
    previous: usize,
    next: usize,
}

/// Two neighbours that could join. Stale once either has joined elsewhere.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    rank: u32,
    left: usize,
    right: usize,
    left_id: u32,
    right_id: u32,
    joined: u32,
}

impl Bpe {
    pub(crate) fn byte_level(
        metadata: &Metadata,
        vocabulary: &Vocabulary,
        whole_pieces_first: bool,
    ) -> Result<Bpe, TokenizerError> {
        let mut byte_tokens = Box::new([0; 256]);
        for byte in 0..=u8::MAX {
            byte_tokens[usize::from(byte)] =
                vocabulary.id(&[byte]).ok_or(TokenizerError::MissingByte { byte })?;
        }
        let ranks = match metadata.find::<&StringArray>(MERGES)? {
            Some(merges) if !merges.is_empty() => Ranks::Merges(read_merges(merges, vocabulary)?),
            _ => Ranks::TokenIds,
        };
        let whole_pieces_first = whole_pieces_first || matches!(ranks, Ranks::TokenIds);
        Ok(Bpe { ranks, byte_tokens, whole_pieces_first })
    }

    /// Sentencepiece's way: the higher the score, the sooner.
    pub(crate) fn sentencepiece(metadata: &Metadata, vocabulary: &Vocabulary) -> Result<Bpe, TokenizerError> {
        let scores = metadata.get::<Vec<f32>>(SCORES)?;
        if scores.len() != vocabulary.len() {
            let (found, tokens) = (scores.len(), vocabulary.len());
            return Err(TokenizerError::WrongLength { key: SCORES, found, tokens });
        }
        let unknown = metadata.find::<u32>(UNKNOWN)?;
        let mut byte_tokens = Box::new([0; 256]);
        for byte in 0..=u8::MAX {
            byte_tokens[usize::from(byte)] =
                vocabulary.byte_id(byte).or(unknown).ok_or(TokenizerError::MissingByte { byte })?;
        }
        let ranks = Ranks::Scores(scores.into_iter().map(rank_of_score).collect());
        Ok(Bpe { ranks, byte_tokens, whole_pieces_first: false })
    }

    /// Appends the tokens of one piece. Takes time n log n in its length.
    pub(crate) fn encode(
        &self,
        vocabulary: &Vocabulary,
        piece: &str,
        scratch: &mut Scratch,
        out: &mut Vec<u32>,
    ) {
        if self.whole_pieces_first
            && let Some(id) = vocabulary.id(piece.as_bytes())
        {
            out.push(id);
            return;
        }
        let Scratch { symbols, candidates } = scratch;
        candidates.clear();
        self.start(vocabulary, piece, symbols);
        let piece = piece.as_bytes();
        for left in 0..symbols.len().saturating_sub(1) {
            candidates.extend(self.candidate(vocabulary, piece, symbols, left, left + 1).map(Reverse));
        }
        while let Some(Reverse(candidate)) = candidates.pop() {
            let Candidate { left, right, left_id, right_id, joined, .. } = candidate;
            // A symbol that was joined into its left neighbour has no bytes left.
            let fresh = symbols[left].id == left_id
                && symbols[left].next == right
                && symbols[left].start < symbols[left].end
                && symbols[right].id == right_id;
            if !fresh {
                continue;
            }
            let Symbol { end, next, .. } = symbols[right];
            symbols[right].end = symbols[right].start;
            symbols[left] = Symbol { id: joined, end, next, ..symbols[left] };
            if next != NONE {
                symbols[next].previous = left;
                candidates.extend(self.candidate(vocabulary, piece, symbols, left, next).map(Reverse));
            }
            let previous = symbols[left].previous;
            if previous != NONE {
                candidates.extend(self.candidate(vocabulary, piece, symbols, previous, left).map(Reverse));
            }
        }
        let mut at = if symbols.is_empty() { NONE } else { 0 };
        while at != NONE {
            let Symbol { id, start, end, next, .. } = symbols[at];
            if id == NO_TOKEN {
                out.extend(piece[start..end].iter().map(|&byte| self.byte_tokens[usize::from(byte)]));
            } else {
                out.push(id);
            }
            at = next;
        }
    }

    /// The stretches that joining starts from, each linked to its neighbours.
    fn start(&self, vocabulary: &Vocabulary, piece: &str, symbols: &mut Vec<Symbol>) {
        symbols.clear();
        let mut add = |id, start, end| {
            let at = symbols.len();
            let previous = at.checked_sub(1).unwrap_or(NONE);
            let next = if end < piece.len() { at + 1 } else { NONE };
            symbols.push(Symbol { id, start, end, previous, next });
        };
        match self.ranks {
            Ranks::Scores(_) => {
                for (at, character) in piece.char_indices() {
                    let end = at + character.len_utf8();
                    add(vocabulary.id(&piece.as_bytes()[at..end]).unwrap_or(NO_TOKEN), at, end);
                }
            }
            Ranks::Merges(_) | Ranks::TokenIds => {
                for (at, byte) in piece.bytes().enumerate() {
                    add(self.byte_tokens[usize::from(byte)], at, at + 1);
                }
            }
        }
    }

    fn candidate(
        &self,
        vocabulary: &Vocabulary,
        piece: &[u8],
        symbols: &[Symbol],
        left: usize,
        right: usize,
    ) -> Option<Candidate> {
        let (left_id, right_id) = (symbols[left].id, symbols[right].id);
        let (rank, joined) = match &self.ranks {
            Ranks::Merges(merges) => *merges.get(&(left_id, right_id))?,
            Ranks::TokenIds => {
                let id = vocabulary.id(&piece[symbols[left].start..symbols[right].end])?;
                (id, id)
            }
            Ranks::Scores(ranks) => {
                let id = vocabulary.id(&piece[symbols[left].start..symbols[right].end])?;
                (ranks[id as usize], id)
            }
        };
        Some(Candidate { rank, left, right, left_id, right_id, joined })
    }
}

fn read_merges(merges: &StringArray, vocabulary: &Vocabulary) -> Result<Merges, TokenizerError> {
    let mut ranks = Merges::with_capacity(merges.len());
    for (index, merge) in merges.iter().enumerate() {
        let ids = || {
            let (left, right) = merge.split_once(' ')?;
            let (left, right) = (byte_alphabet::bytes_of(left)?, byte_alphabet::bytes_of(right)?);
            let joined = vocabulary.id(&[left.as_slice(), right.as_slice()].concat())?;
            Some(((vocabulary.id(&left)?, vocabulary.id(&right)?), (index as u32, joined)))
        };
        let (pair, joined) =
            ids().ok_or_else(|| TokenizerError::BadMerge { index, merge: merge.to_owned() })?;
        ranks.entry(pair).or_insert(joined);
    }
    Ok(ranks)
}

/// Higher scores get lower ranks, equal ones the same.
fn rank_of_score(score: f32) -> u32 {
    // Adding zero makes one zero of two; then the bits of floats sort like integers, negative ones in
    // reverse.
    let bits = (score + 0.0).to_bits();
    let ascending = if bits >> 31 == 0 { bits | 1 << 31 } else { !bits };
    !ascending
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_fall_as_scores_rise() {
        let scores = [f32::MIN, -1e9, -2.0, -1.5, -0.0, 1e-9, 3.0, f32::MAX];
        assert!(scores.windows(2).all(|pair| rank_of_score(pair[0]) > rank_of_score(pair[1])));
        assert_eq!(rank_of_score(0.0), rank_of_score(-0.0));
    }
}

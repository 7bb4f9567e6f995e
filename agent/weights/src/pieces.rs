//! A file cut into pieces: which bytes each one is, and what it hashes to. Pure.
//!
//! The whole of a file is known by its sha256, as its source has it. Pieces have BLAKE3 digests, which we make ourselves:
//! they say which piece of a file differs, on this disk or on the way from another host.

use std::fmt;
use std::ops::Range;

use serde::{Deserialize, Serialize};

/// The largest piece, in bytes: long enough that a request costs nothing, short enough that a lost one does not either.
pub(crate) const MOST_PIECE_BYTES: u64 = 16 << 20;
/// The smallest, in bytes.
const LEAST_PIECE_BYTES: u64 = 256 << 10;
/// Files shorter than this many of the largest pieces get smaller ones, so that hosts can share them too.
const PIECES_OF_A_SMALL_FILE: u64 = 64;

/// BLAKE3 of a piece.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest([u8; 32]);

impl Digest {
    /// Of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    pub(crate) fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl From<[u8; 32]> for Digest {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl From<blake3::Hash> for Digest {
    fn from(hash: blake3::Hash) -> Self {
        Self(*hash.as_bytes())
    }
}

impl TryFrom<String> for Digest {
    type Error = blake3::HexError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        blake3::Hash::from_hex(text).map(Self::from)
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&blake3::Hash::from_bytes(self.0).to_hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

/// How a file is cut. All hosts cut a file of one length alike, so that they can exchange its pieces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    bytes: u64,
    piece_bytes: u64,
}

impl Cut {
    /// Cuts a file of `bytes` into pieces of a length that follows from it alone.
    #[must_use]
    pub fn of(bytes: u64) -> Self {
        let wanted = (bytes / PIECES_OF_A_SMALL_FILE).max(1).next_power_of_two();
        Self { bytes, piece_bytes: wanted.clamp(LEAST_PIECE_BYTES, MOST_PIECE_BYTES) }
    }

    /// Cuts a file of `bytes` into pieces of `piece_bytes`; `None` when that is 0 or makes more than 2^32 pieces.
    #[must_use]
    pub fn into(bytes: u64, piece_bytes: u64) -> Option<Self> {
        let count = bytes.checked_div(piece_bytes)?;
        (count < u64::from(u32::MAX)).then_some(Self { bytes, piece_bytes })
    }

    /// Length of the whole file, in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Length of every piece but the last, in bytes.
    #[must_use]
    pub fn piece_bytes(&self) -> u64 {
        self.piece_bytes
    }

    /// How many pieces there are; none of an empty file.
    #[must_use]
    pub fn count(&self) -> u32 {
        u32::try_from(self.bytes.div_ceil(self.piece_bytes)).expect("checked when it was cut")
    }

    /// Which bytes of the file a piece is. Empty past the end.
    #[must_use]
    pub fn range(&self, piece: u32) -> Range<u64> {
        let start = (u64::from(piece) * self.piece_bytes).min(self.bytes);
        start..(start + self.piece_bytes).min(self.bytes)
    }

    /// Length of a piece, in bytes.
    #[must_use]
    pub fn length(&self, piece: u32) -> u64 {
        let range = self.range(piece);
        range.end - range.start
    }

    /// The pieces that hold the bytes of `range`.
    #[must_use]
    pub fn pieces_of(&self, range: &Range<u64>) -> Range<u32> {
        let at = |byte: u64| u32::try_from(byte).unwrap_or(u32::MAX);
        let end = range.end.min(self.bytes);
        if range.start >= end {
            return 0..0;
        }
        at(range.start / self.piece_bytes)..at((end - 1) / self.piece_bytes + 1)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn pieces_are_the_file_without_gap_or_overlap(bytes in 0_u64..1 << 40) {
            let cut = Cut::of(bytes);
            let mut at = 0;
            // The first pieces and the last ones; those between are alike.
            let count = cut.count();
            for piece in (0..count.min(100)).chain(count.saturating_sub(3).max(count.min(100))..count) {
                let range = cut.range(piece);
                if piece < 100 {
                    prop_assert_eq!(range.start, at);
                }
                prop_assert!(range.end > range.start && range.end <= bytes);
                prop_assert_eq!(cut.pieces_of(&range), piece..piece + 1);
                at = range.end;
            }
            prop_assert_eq!(at, bytes);
            prop_assert_eq!(cut.pieces_of(&(0..bytes)), 0..count);
            prop_assert!(cut.range(count).is_empty());
        }
    }

    #[test]
    fn large_files_have_large_pieces_and_small_files_enough_of_them() {
        assert_eq!(Cut::of(50 << 30).piece_bytes(), MOST_PIECE_BYTES);
        assert_eq!(Cut::of(64 << 20).piece_bytes(), 1 << 20);
        assert_eq!((Cut::of(0).count(), Cut::of(1).count()), (0, 1));
        assert_eq!(Cut::into(1, 0), None);
        assert_eq!(Cut::into(u64::MAX, 16), None);
    }
}

//! The journal of a file on its way: which pieces are here. Bytes in, facts out; the file itself is its owner's.
//!
//! A header names the file and how it is cut; after it come records of one length, each with a check of its own, which
//! also covers the header. Records are only ever appended. What a kill, a power cut or the disk made of them, whatever can't
//! be proven is left out, and its piece is fetched again; and what is read here is believed only after the piece itself has
//! been read and hashed.

use std::collections::BTreeMap;

use tandem_sources::Sha256Hex;

use crate::pieces::{Cut, Digest};

const MAGIC: &[u8; 8] = b"tandemJ\0";
pub(crate) const VERSION: u32 = 1;
/// Magic, version, length of the file, length of a piece, sha256, check.
const HEADER: usize = 8 + 4 + 8 + 8 + 32 + 16;
/// Index, digest, check.
const RECORD: usize = 4 + 32 + 16;

/// What a journal says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Journal {
    pub(crate) sha256: Sha256Hex,
    pub(crate) cut: Cut,
    /// By index. The last word on each piece.
    pub(crate) pieces: BTreeMap<u32, Digest>,
}

/// Why a journal is of no use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BadJournal {
    /// Not one, or its header is damaged.
    Broken,
    /// Of a format that this release does not know.
    Newer(u32),
}

pub(crate) fn header(sha256: &Sha256Hex, cut: &Cut) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&cut.bytes().to_le_bytes());
    bytes.extend_from_slice(&cut.piece_bytes().to_le_bytes());
    bytes.extend_from_slice(sha256.bytes());
    let check = check(&[&bytes]);
    bytes.extend_from_slice(&check);
    bytes
}

pub(crate) fn record(header: &[u8], piece: u32, digest: &Digest) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(RECORD);
    bytes.extend_from_slice(&piece.to_le_bytes());
    bytes.extend_from_slice(digest.bytes());
    let check = check(&[header, &bytes]);
    bytes.extend_from_slice(&check);
    bytes
}

/// Reads what can be proven. Records that can't be are passed over, a torn last one too.
pub(crate) fn parse(bytes: &[u8]) -> Result<Journal, BadJournal> {
    let (head, records) = bytes.split_at_checked(HEADER).ok_or(BadJournal::Broken)?;
    let (said, sealed) = head.split_at(HEADER - 16);
    if &said[..8] != MAGIC {
        return Err(BadJournal::Broken);
    }
    let number = |at: usize| u64::from_le_bytes(said[at..at + 8].try_into().expect("eight bytes"));
    let version = u32::from_le_bytes(said[8..12].try_into().expect("four bytes"));
    if check(&[said]) != sealed {
        return Err(BadJournal::Broken);
    }
    if version != VERSION {
        return Err(BadJournal::Newer(version));
    }
    let cut = Cut::into(number(12), number(20)).ok_or(BadJournal::Broken)?;
    let sha256 = Sha256Hex::from(<[u8; 32]>::try_from(&said[28..60]).expect("32 bytes"));
    let mut pieces = BTreeMap::new();
    for bytes in records.chunks_exact(RECORD) {
        let (said, sealed) = bytes.split_at(RECORD - 16);
        let piece = u32::from_le_bytes(said[..4].try_into().expect("four bytes"));
        if check(&[head, said]) == sealed && piece < cut.count() {
            let digest = <[u8; 32]>::try_from(&said[4..]).expect("32 bytes");
            pieces.insert(piece, Digest::from(digest));
        }
    }
    Ok(Journal { sha256, cut, pieces })
}

fn check(parts: &[&[u8]]) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(part);
    }
    hasher.finalize().as_bytes()[..16].try_into().expect("half of 32 bytes")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn written(pieces: &[u32]) -> (Journal, Vec<u8>) {
        let (sha256, cut) = (Sha256Hex::from([7; 32]), Cut::into(1000, 10).unwrap());
        let mut bytes = header(&sha256, &cut);
        let head = bytes.clone();
        let mut known = BTreeMap::new();
        for piece in pieces {
            let digest = Digest::of(&piece.to_le_bytes());
            bytes.extend(record(&head, *piece, &digest));
            known.insert(*piece, digest);
        }
        (Journal { sha256, cut, pieces: known }, bytes)
    }

    /// What is read is a part of what was written, whatever became of the bytes.
    fn is_part_of(read: Result<Journal, BadJournal>, whole: &Journal) -> bool {
        read.is_ok_and(|read| {
            read.sha256 == whole.sha256
                && read.cut == whole.cut
                && read.pieces.iter().all(|(piece, digest)| whole.pieces.get(piece) == Some(digest))
        })
    }

    proptest! {
        #[test]
        fn any_prefix_says_nothing_that_was_not_written(
            pieces in prop::collection::vec(0_u32..100, 0..30), cut in 0_usize..2000,
        ) {
            let (whole, bytes) = written(&pieces);
            let kept = &bytes[..cut.min(bytes.len())];
            let read = parse(kept);
            if kept.len() < HEADER {
                prop_assert_eq!(read, Err(BadJournal::Broken));
            } else {
                let records = (kept.len() - HEADER) / RECORD;
                let distinct: std::collections::BTreeSet<_> = pieces[..records].iter().collect();
                prop_assert_eq!(read.as_ref().unwrap().pieces.len(), distinct.len());
                prop_assert!(is_part_of(read, &whole));
            }
        }

        #[test]
        fn damage_hides_pieces_and_invents_none(
            pieces in prop::collection::vec(0_u32..100, 1..30),
            flips in prop::collection::vec((any::<prop::sample::Index>(), 1_u8..), 1..8),
        ) {
            let (whole, mut bytes) = written(&pieces);
            for (at, flip) in flips {
                let at = at.index(bytes.len());
                bytes[at] ^= flip;
            }
            let read = parse(&bytes);
            prop_assert!(read.is_err() || is_part_of(read, &whole));
        }

        #[test]
        fn noise_is_no_journal(bytes in prop::collection::vec(any::<u8>(), 0..500)) {
            prop_assert_eq!(parse(&bytes), Err(BadJournal::Broken));
        }
    }

    #[test]
    fn records_of_another_file_count_for_nothing() {
        let (_, mine) = written(&[1, 2]);
        let (sha256, cut) = (Sha256Hex::from([8; 32]), Cut::into(1000, 10).unwrap());
        let mut other = header(&sha256, &cut);
        other.extend_from_slice(&mine[HEADER..]);
        assert!(parse(&other).unwrap().pieces.is_empty());
    }

    #[test]
    fn a_later_format_is_told_from_damage() {
        let (_, mut bytes) = written(&[]);
        bytes[8] = 9;
        let sealed = check(&[&bytes[..HEADER - 16]]);
        bytes[HEADER - 16..].copy_from_slice(&sealed);
        assert_eq!(parse(&bytes), Err(BadJournal::Newer(9)));
    }
}

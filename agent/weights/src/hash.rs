//! Reading files to hash them: whole ones at once, and one on its way as its front advances.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::mpsc::sync_channel;

use sha2::{Digest as _, Sha256};
use tandem_sources::Sha256Hex;

use crate::error::{StoreError, at, at_byte};
use crate::pieces::{Cut, Digest};

/// How much is read at once, in bytes.
pub(crate) const BLOCK: usize = 1 << 20;
/// Blocks between the thread that reads and the one that hashes the whole.
const BLOCKS: usize = 4;

/// What a whole file hashes to.
pub(crate) struct Hashed {
    pub(crate) sha256: Sha256Hex,
    /// Of each piece.
    pub(crate) digests: Vec<Digest>,
}

/// Hashes a file's first `cut.bytes()` bytes, its pieces on this thread and the whole on another. `seen` is told how many
/// bytes were read, and may end it by saying false, which is an interruption.
///
/// # Errors
/// When it can't be read, or is shorter.
pub(crate) fn hash_file(
    file: &File,
    path: &Path,
    cut: &Cut,
    mut seen: impl FnMut(u64) -> bool,
) -> Result<Hashed, StoreError> {
    std::thread::scope(|scope| {
        let (send, blocks) = sync_channel::<Vec<u8>>(BLOCKS);
        let (give_back, spare) = sync_channel::<Vec<u8>>(BLOCKS + 2);
        let whole = scope.spawn(move || {
            let mut whole = Sha256::new();
            for block in blocks {
                whole.update(&block);
                // Nobody takes it back at the end.
                if give_back.try_send(block).is_err() {
                    continue;
                }
            }
            whole
        });
        let mut digests = Vec::with_capacity(cut.count() as usize);
        for piece in 0..cut.count() {
            let mut hasher = blake3::Hasher::new();
            let range = cut.range(piece);
            let mut at = range.start;
            while at < range.end {
                let length = BLOCK.min(usize::try_from(range.end - at).unwrap_or(BLOCK));
                let mut block = spare.try_recv().unwrap_or_default();
                block.resize(length, 0);
                file.read_exact_at(&mut block, at).map_err(at_byte(path, at))?;
                hasher.update(&block);
                at += length as u64;
                let sent = send.send(block).is_ok();
                if !sent || !seen(at) {
                    return Err(at_path(path));
                }
            }
            digests.push(hasher.finalize().into());
        }
        drop(send);
        let whole = whole.join().expect("hashing does not panic");
        Ok(Hashed { sha256: <[u8; 32]>::from(whole.finalize()).into(), digests })
    })
}

fn at_path(path: &Path) -> StoreError {
    at(path)(io::Error::from(io::ErrorKind::Interrupted))
}

/// The sha256 of a file that grows piece by piece: fed in order, from what was just written and so still in memory.
#[derive(Clone)]
pub(crate) struct Follower {
    whole: Sha256,
    at: u64,
    block: Vec<u8>,
}

impl Follower {
    pub(crate) fn new() -> Self {
        Self { whole: Sha256::new(), at: 0, block: Vec::new() }
    }

    /// How far it has come, in bytes.
    pub(crate) fn at(&self) -> u64 {
        self.at
    }

    /// Takes bytes that were read already. They must be the next ones.
    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        self.whole.update(bytes);
        self.at += bytes.len() as u64;
    }

    /// Reads and hashes on up to `end`.
    pub(crate) fn advance(&mut self, file: &File, path: &Path, end: u64) -> Result<(), StoreError> {
        while self.at < end {
            let length = BLOCK.min(usize::try_from(end - self.at).unwrap_or(BLOCK));
            self.block.resize(length, 0);
            file.read_exact_at(&mut self.block, self.at).map_err(at_byte(path, self.at))?;
            self.whole.update(&self.block);
            self.at += length as u64;
        }
        Ok(())
    }

    pub(crate) fn finish(self) -> Sha256Hex {
        <[u8; 32]>::from(self.whole.finalize()).into()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn the_whole_and_its_pieces_are_hashed_in_one_reading() {
        let bytes: Vec<u8> = (0..1_500_000_u32).flat_map(u32::to_le_bytes).collect();
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&bytes).unwrap();
        let cut = Cut::into(bytes.len() as u64, 2_500_000).unwrap();
        let mut seen = 0;
        let note = |at| {
            seen = at;
            true
        };
        let hashed = hash_file(file.as_file(), file.path(), &cut, note).unwrap();
        assert_eq!(hashed.sha256, <[u8; 32]>::from(Sha256::digest(&bytes)).into());
        assert!(hashed.digests.iter().copied().eq(bytes.chunks(2_500_000).map(Digest::of)));
        assert_eq!(seen, bytes.len() as u64);
        let mut follower = Follower::new();
        follower.feed(&bytes[..10]);
        follower.advance(file.as_file(), file.path(), 4_000_001).unwrap();
        follower.advance(file.as_file(), file.path(), bytes.len() as u64).unwrap();
        assert_eq!(follower.finish(), hashed.sha256);
        let longer = Cut::into(bytes.len() as u64 + 1, 2_500_000).unwrap();
        let error = hash_file(file.as_file(), file.path(), &longer, |_| true);
        assert!(matches!(error, Err(StoreError::Disk { offset: 5_000_000.., .. })));
        let stopped = hash_file(file.as_file(), file.path(), &cut, |at| at < 3_000_000);
        assert!(matches!(stopped, Err(StoreError::Io { .. })));
    }
}

//! What files hold: bytes in memory, or a file on disk that is never loaded.

use std::fmt;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use sha2::{Digest, Sha256};

/// How much of a file is read at once, in bytes.
const BLOCK: u64 = 256 << 10;

/// The bytes of a published file, and their digest.
#[derive(Clone)]
pub struct Content {
    from: From,
    length: u64,
    sha256: String,
}

#[derive(Clone)]
enum From {
    Memory(Bytes),
    File(Arc<std::fs::File>, PathBuf),
}

impl Content {
    /// Bytes in memory.
    #[must_use]
    pub fn of(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        let sha256 = hex::encode(Sha256::digest(&bytes));
        Self { length: bytes.len() as u64, from: From::Memory(bytes), sha256 }
    }

    /// A file on disk, read from start to end once for its digest.
    ///
    /// # Errors
    /// When it can't be read.
    pub fn file(path: &Path) -> io::Result<Self> {
        let mut digest = Sha256::new();
        let mut content = Self::declared(path, "")?;
        let mut at = 0;
        while at < content.length {
            let block = content.read(at..content.length)?;
            digest.update(&block);
            at += block.len() as u64;
        }
        content.sha256 = hex::encode(digest.finalize());
        Ok(content)
    }

    /// A file on disk of which somebody says the digest, right or wrong: for files too large to be read.
    ///
    /// # Errors
    /// When it is not there.
    pub fn declared(path: &Path, sha256: &str) -> io::Result<Self> {
        let file = std::fs::File::open(path)?;
        let length = file.metadata()?.len();
        Ok(Self { from: From::File(Arc::new(file), path.to_owned()), length, sha256: sha256.to_owned() })
    }

    /// Its length in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.length
    }

    /// Whether it has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Its digest, 64 hexadecimal digits.
    #[must_use]
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// The first bytes of a range, at least one unless it is empty.
    pub(crate) fn read(&self, range: Range<u64>) -> io::Result<Bytes> {
        let end = range.end.min(range.start.saturating_add(BLOCK)).min(self.length);
        let length = usize::try_from(end.saturating_sub(range.start)).unwrap_or(0);
        let start = usize::try_from(range.start).unwrap_or(usize::MAX);
        match &self.from {
            From::Memory(bytes) if length > 0 => Ok(bytes.slice(start..start + length)),
            From::Memory(_) => Ok(Bytes::new()),
            From::File(file, _) => {
                let mut block = vec![0; length];
                file.read_exact_at(&mut block, range.start)?;
                Ok(block.into())
            }
        }
    }

    /// As [`Self::read`], without keeping others waiting for the disk.
    pub(crate) async fn block(&self, range: Range<u64>) -> io::Result<Bytes> {
        if matches!(self.from, From::Memory(_)) {
            return self.read(range);
        }
        let content = self.clone();
        let read = tokio::task::spawn_blocking(move || content.read(range)).await;
        read.unwrap_or_else(|ended| Err(io::Error::other(ended)))
    }
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let from = match &self.from {
            From::Memory(_) => Path::new("memory"),
            From::File(_, path) => path,
        };
        write!(f, "Content({}, {} bytes, {})", from.display(), self.length, self.sha256)
    }
}

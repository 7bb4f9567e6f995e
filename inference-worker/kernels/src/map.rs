//! Weight files as read-only memory: the pages belong to the page cache and are shared by every worker of the host.

mod residency;

use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::{Advice, Mmap};

pub use residency::page_bytes;

/// Why a file could not be mapped. Each names the path.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// The file could not be opened for reading.
    #[error("cannot open {path} for reading")]
    Open {
        /// The file asked for.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Its kind or length could not be read.
    #[error("cannot read the size of {path}")]
    Metadata {
        /// The file asked for.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A directory, a socket, a device: something whose length means nothing.
    #[error("{path} is not a regular file; weights are mapped from regular files only")]
    NotAFile {
        /// The path asked for.
        path: PathBuf,
    },
    /// Nothing to map.
    #[error("{path} is empty; fetch it again")]
    Empty {
        /// The path asked for.
        path: PathBuf,
    },
    /// The system refused the mapping.
    #[error("cannot map {path} ({bytes} bytes) into memory")]
    Map {
        /// The file asked for.
        path: PathBuf,
        /// Its length.
        bytes: u64,
        /// What the system said.
        source: std::io::Error,
    },
}

/// How the pages will be read, a hint to the system's read-ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Once from start to end, as while hashing.
    Sequential,
    /// Here and there, as expert weights are.
    Random,
    /// Soon and wholly: start reading now.
    WillNeed,
}

/// A regular file mapped read-only for as long as this value lives.
#[derive(Debug)]
pub struct MappedFile {
    path: PathBuf,
    map: Mmap,
}

impl MappedFile {
    /// Maps the whole file.
    ///
    /// Weight files must not be truncated while mapped: the system would end the process with SIGBUS. The agent
    /// replaces files by rename and never writes into one that is complete.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, MapError> {
        let path = path.as_ref().to_path_buf();
        let file = File::open(&path).map_err(|source| MapError::Open { path: path.clone(), source })?;
        let metadata = file.metadata().map_err(|source| MapError::Metadata { path: path.clone(), source })?;
        if !metadata.is_file() {
            return Err(MapError::NotAFile { path });
        }
        let bytes = metadata.len();
        if bytes == 0 {
            return Err(MapError::Empty { path });
        }
        // SAFETY: the mapping is private and read-only, and complete weight files are replaced by rename, never written
        // or truncated in place, so the bytes behind the slice do not change while it is borrowed.
        let map = unsafe { Mmap::map(&file) }.map_err(|source| MapError::Map {
            path: path.clone(),
            bytes,
            source,
        })?;
        Ok(Self { path, map })
    }

    /// The file's bytes, page aligned.
    pub fn as_slice(&self) -> &[u8] {
        &self.map
    }

    /// The file's length in bytes when it was mapped; never 0.
    #[expect(clippy::len_without_is_empty, reason = "an empty file is refused by `open`")]
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// The path it was opened by, unless it was dropped.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The same without the path in memory.
    #[must_use]
    pub fn without_path(self) -> Self {
        Self { path: PathBuf::new(), ..self }
    }

    /// Tells the system how the whole file will be read. A refused hint costs speed only, so the caller may log it and
    /// go on.
    pub fn advise(&self, access: Access) -> std::io::Result<()> {
        self.map.advise(advice(access))
    }

    /// The same for `length` bytes from `offset`; the range is cut to the file.
    pub fn advise_range(&self, access: Access, offset: usize, length: usize) -> std::io::Result<()> {
        let offset = offset.min(self.len());
        let length = length.min(self.len() - offset);
        if length == 0 {
            return Ok(());
        }
        self.map.advise_range(advice(access), offset, length)
    }
}

fn advice(access: Access) -> Advice {
    match access {
        Access::Sequential => Advice::Sequential,
        Access::Random => Advice::Random,
        Access::WillNeed => Advice::WillNeed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn maps_the_bytes_of_a_file() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"GGUF and more").unwrap();
        let mapped = MappedFile::open(file.path()).unwrap();
        assert_eq!(mapped.as_slice(), b"GGUF and more");
        assert_eq!(mapped.len(), 13);
        for access in [Access::Sequential, Access::Random, Access::WillNeed] {
            mapped.advise(access).unwrap();
            mapped.advise_range(access, 5, usize::MAX).unwrap();
            mapped.advise_range(access, 500, 1).unwrap();
        }
    }

    #[test]
    fn refusals_name_the_path() {
        let folder = tempfile::tempdir().unwrap();
        let absent = folder.path().join("absent.gguf");
        assert!(matches!(MappedFile::open(&absent), Err(MapError::Open { .. })));
        assert!(MappedFile::open(&absent).unwrap_err().to_string().contains("absent.gguf"));
        assert!(matches!(MappedFile::open(folder.path()), Err(MapError::NotAFile { .. })));
        let empty = folder.path().join("empty.gguf");
        File::create(&empty).unwrap();
        assert!(matches!(MappedFile::open(&empty), Err(MapError::Empty { .. })));
    }
}

//! A model's files, mapped, with their headers.

use std::path::{Path, PathBuf};

use tandem_gguf::{GgufError, Header, ShardError, ShardSet, shard_names};
use tandem_kernels::MappedFile;
use tandem_kernels::map::MapError;

/// Why a model's files can't be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The path names no file.
    #[error("{path} doesn't end in a file name")]
    NoName {
        /// The path.
        path: PathBuf,
    },
    /// The names of the other files don't follow from the first's.
    #[error("{path} can't be opened as a model")]
    Names {
        /// The first file.
        path: PathBuf,
        /// Why.
        source: ShardError,
    },
    /// A file can't be mapped.
    #[error("a file of the model can't be mapped")]
    Map {
        /// Why; it names the file.
        #[from]
        source: MapError,
    },
    /// A file's header can't be read.
    #[error("{path} can't be read")]
    Header {
        /// The file.
        path: PathBuf,
        /// Why.
        source: GgufError,
    },
    /// The files don't make up one model.
    #[error("the files from {path} on are not one whole model")]
    Shards {
        /// The first file.
        path: PathBuf,
        /// Why.
        source: ShardError,
    },
}

/// All files of one model.
#[derive(Debug)]
pub struct ModelFiles {
    headers: ShardSet,
    bytes: FileBytes,
    weights_digest: String,
}

/// The bytes of all files of one model: what stays of it once its weights are found.
#[derive(Debug)]
pub(crate) struct FileBytes {
    maps: Vec<MappedFile>,
}

impl FileBytes {
    /// Those of file `file`, counted from 0.
    pub(crate) fn of(&self, file: usize) -> &[u8] {
        self.maps[file].as_slice()
    }

    /// What remembering so many mappings takes.
    pub(crate) fn allocated(files: usize) -> u64 {
        (files * size_of::<MappedFile>()) as u64
    }
}

impl ModelFiles {
    /// Maps the model whose first (or only) file is `first`.
    ///
    /// `weights_digest` names the verified content: it becomes a part of the engine's `numerics_id`.
    pub fn open(first: &Path, weights_digest: impl Into<String>) -> Result<Self, OpenError> {
        let path = || first.to_path_buf();
        let name =
            first.file_name().and_then(|n| n.to_str()).ok_or_else(|| OpenError::NoName { path: path() })?;
        let names = shard_names(name).map_err(|source| OpenError::Names { path: path(), source })?;
        Self::open_all(
            &names.iter().map(|name| first.with_file_name(name)).collect::<Vec<_>>(),
            weights_digest,
        )
    }

    /// Maps the model in these files, given in their order; they may have any names.
    pub fn open_all(paths: &[PathBuf], weights_digest: impl Into<String>) -> Result<Self, OpenError> {
        let mut maps = Vec::with_capacity(paths.len());
        let mut headers = Vec::with_capacity(paths.len());
        for path in paths {
            let map = MappedFile::open(path)?;
            let header = Header::parse(map.as_slice(), map.len() as u64)
                .map_err(|source| OpenError::Header { path: path.clone(), source })?;
            maps.push(map.without_path());
            headers.push(header);
        }
        let first = paths.first().cloned().unwrap_or_default();
        let headers =
            ShardSet::assemble(headers).map_err(|source| OpenError::Shards { path: first, source })?;
        Ok(Self { headers, bytes: FileBytes { maps }, weights_digest: weights_digest.into() })
    }

    /// What the files say about themselves.
    pub fn headers(&self) -> &ShardSet {
        &self.headers
    }

    /// The name of the verified content.
    pub fn weights_digest(&self) -> &str {
        &self.weights_digest
    }

    pub(crate) fn bytes(&self) -> &FileBytes {
        &self.bytes
    }

    /// Drops the headers, which name every tensor and token of the model and are of no use once it is loaded.
    pub(crate) fn into_bytes(self) -> FileBytes {
        self.bytes
    }
}

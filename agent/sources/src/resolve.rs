//! From a source and a quant to the exact files, their hashes and their headers.

use std::collections::BTreeMap;
use std::time::Duration;

use backon::Retryable;
use futures::{StreamExt, TryStreamExt, stream};
use sha2::{Digest, Sha256};
use tandem_gguf::{GgufError, Header};
use tandem_worker_api::Sha256Hex;
use thiserror::Error;

use crate::listing::{as_listed, by_name, by_quant};
use crate::origin::{Listing, Origin};
use crate::{Access, BadSums, ListedFile, PickError, Secret, Source, TransferError, header, sums};

/// Headers that are read at once.
const AT_ONCE: usize = 4;

/// The exact files of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Resolved {
    /// `sha256:` and the hash over names and hashes of the files: equal revisions are equal weights.
    pub revision: String,
    /// The source with its revision pinned, where it has one.
    pub source: Source,
    /// In shard order.
    pub files: Vec<ResolvedFile>,
    /// What each file says about itself, in the same order. Read before anybody has hashed the file: good for sizes, and
    /// for nothing that loads it.
    pub headers: Vec<Header>,
}

/// One file, known by its hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedFile {
    /// Relative to the source, with `/`.
    pub name: String,
    /// Of the whole file.
    pub sha256: Sha256Hex,
    /// Its length.
    pub bytes: u64,
}

/// Why a source and a quant lead to no files.
#[derive(Debug, Error)]
pub enum ResolveError {
    /// The files are not what was asked for.
    #[error(transparent)]
    Pick(#[from] PickError),
    /// A file can't be read.
    #[error(transparent)]
    Transfer(#[from] TransferError),
    /// The list of hashes can't be read.
    #[error(transparent)]
    Sums(#[from] BadSums),
    /// No folder.
    #[error(
        "the folder of `{0}` does not exist: a file:// source lies at the same path on the operator's machine and on every host"
    )]
    NoFolder(String),
    /// No list of hashes.
    #[error(
        "`{0}` has no SHA256SUMS, without which nothing is loaded: run `sha256sum *.gguf > SHA256SUMS` there, or list the files with their sha256 in the manifest"
    )]
    NoSums(String),
    /// A list of hashes that is none.
    #[error("the SHA256SUMS of `{0}` is larger than 1 MiB: it should list the model's files only")]
    HugeSums(String),
    /// A file that starts with no header that can be used.
    #[error("`{name}` can't be used")]
    Header {
        /// Which file.
        name: String,
        /// What is wrong with it.
        source: GgufError,
    },
    /// A header that is larger than those of real models.
    #[error(
        "the header of `{name}` goes on after {limit} bytes, more than any real one has: the file is broken"
    )]
    HugeHeader {
        /// Which file.
        name: String,
        /// The bound, in bytes.
        limit: u64,
    },
    /// Its place doesn't say how long a file is.
    #[error("the server doesn't say how long `{0}` is: it must answer range requests with a Content-Range")]
    NoLength(String),
    /// Another length than its place says.
    #[error("`{name}` is {found} bytes long, and its place lists it with {listed}: one of them is wrong")]
    WrongLength {
        /// Which file.
        name: String,
        /// What the hub, or the registry, lists.
        listed: u64,
        /// What is sent.
        found: u64,
    },
    /// Two answers that are not of one file.
    #[error("`{0}` changes while it is read: try again once it is whole")]
    Changing(String),
}

impl ResolveError {
    /// How long to wait before the next try; see [`TransferError::wait`].
    pub(crate) fn wait(&self, planned: Option<Duration>) -> Option<Duration> {
        match self {
            Self::Transfer(error) => error.wait(planned),
            _ => planned,
        }
    }

    /// Whether the same question may have an answer later, without anybody changing anything.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Transfer(error) if error.is_transient())
    }
}

/// Finds the files that `quant` means, with the hash that the hub, the registry or `SHA256SUMS` says, and reads their
/// headers by range requests. Branches and tags are resolved once: the source that comes back is pinned. The files themselves are hashed by whoever fetches them, before anything loads them.
///
/// With `listed` files, they are the model, and neither `quant` nor what the place lists is looked at.
///
/// # Errors
/// See [`ResolveError`]; each says what to change.
pub async fn resolve(
    source: &Source,
    quant: &str,
    listed: &[ListedFile],
    credential: Option<&Secret>,
    access: &Access,
) -> Result<Resolved, ResolveError> {
    let origin = opened(source, credential, access).await?;
    let (picked, lengths) = if listed.is_empty() {
        let There { files, lengths, is_model } = there(&origin, source, access).await?;
        let picked = match &source.file {
            _ if is_model => as_listed(&files)?,
            Some(name) => by_name(&files, name)?,
            None => by_quant(&files, quant)?,
        };
        (picked, lengths)
    } else {
        (as_listed(listed)?, BTreeMap::new())
    };
    let reads = picked.iter().enumerate();
    let reads = reads.map(|(index, file)| {
        let limit = header::limit(index == 0, picked.len());
        header::read(&origin, &file.name, index == 0, limit, access)
    });
    let headers: Vec<Header> =
        stream::iter(reads.collect::<Vec<_>>()).buffered(AT_ONCE).try_collect().await?;
    let files = picked.into_iter().zip(&headers).map(|(file, header)| {
        let (name, found) = (file.name, header.file_len);
        match lengths.get(&name) {
            Some(listed) if *listed != found => {
                Err(ResolveError::WrongLength { name, listed: *listed, found })
            }
            _ => Ok(ResolvedFile { name, sha256: file.sha256, bytes: found }),
        }
    });
    let files = files.collect::<Result<Vec<_>, _>>()?;
    let source = origin.pinned().unwrap_or(source).clone();
    Ok(Resolved { revision: revision(&files), source, files, headers })
}

/// The source, ready to read from; tried as often as `access` says.
pub(crate) async fn opened(
    source: &Source,
    credential: Option<&Secret>,
    access: &Access,
) -> Result<Origin, TransferError> {
    let prepare = || Origin::open(source, credential, access);
    let retried =
        prepare.retry(access.backoff()).when(TransferError::is_transient).adjust(TransferError::wait);
    retried.await
}

/// What a place has.
pub(crate) struct There {
    /// Every file with a digest.
    pub(crate) files: Vec<ListedFile>,
    /// The lengths of those whose place knows them.
    pub(crate) lengths: BTreeMap<String, u64>,
    /// Whether they are one model, of whatever quant: their names don't say it.
    pub(crate) is_model: bool,
}

pub(crate) async fn there(origin: &Origin, source: &Source, access: &Access) -> Result<There, ResolveError> {
    let list = || origin.list();
    let retried = list.retry(access.backoff()).when(TransferError::is_transient).adjust(TransferError::wait);
    let listing = retried.await?;
    let is_model = matches!(listing, Listing::Model(_));
    match listing {
        Listing::None if origin.is_missing() => Err(ResolveError::NoFolder(source.to_string())),
        Listing::None => Err(ResolveError::NoSums(source.to_string())),
        Listing::HugeSums => Err(ResolveError::HugeSums(source.to_string())),
        Listing::Sums(bytes) => Ok(There { files: sums::parse(&bytes)?, lengths: BTreeMap::new(), is_model }),
        Listing::Files(entries) | Listing::Model(entries) => {
            let lengths = entries.iter().map(|entry| (entry.name.clone(), entry.bytes)).collect();
            let listed = entries
                .into_iter()
                .filter_map(|entry| Some(ListedFile { name: entry.name, sha256: entry.sha256? }));
            Ok(There { files: listed.collect(), lengths, is_model })
        }
    }
}

fn revision(files: &[ResolvedFile]) -> String {
    let mut digest = Sha256::new();
    for file in files {
        digest.update(format!("{}  {}\n", file.sha256, file.name));
    }
    format!("sha256:{}", hex::encode(digest.finalize()))
}

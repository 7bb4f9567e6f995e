//! From a source and a quant to the exact files, their hashes and their headers.

use backon::Retryable;
use sha2::{Digest, Sha256};
use tandem_worker_api::Sha256Hex;
use thiserror::Error;

use crate::listing::{Shards, as_listed, by_name, by_quant};
use crate::origin::Origin;
use crate::{Access, BadSums, ListedFile, PickError, Source, TransferError, sums};

/// How much of a shard is kept for its header, in bytes. The first shard of a model holds its vocabulary.
const FIRST_HEADER: usize = 64 << 20;
/// All further shards' headers together: they list tensors and nothing else.
const OTHER_HEADERS: usize = 192 << 20;

/// The exact files of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// `sha256:` and the hash over names and hashes of the files: equal revisions are equal weights.
    pub revision: String,
    /// The source with its revision pinned, where it has one.
    pub source: Source,
    /// In shard order.
    pub files: Vec<ResolvedFile>,
    /// The first bytes of each file, in the same order: at most 64 MiB of the first, and as much of each other as 192 MiB
    /// for all of them allows. The files they are of have the hashes that `files` says.
    pub headers: Vec<Vec<u8>>,
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
    /// Other bytes than somebody vouched for.
    #[error("`{name}` has sha256 {found}, and {expected} is listed: the file or the list is wrong")]
    WrongDigest {
        /// Which file.
        name: String,
        /// What is listed.
        expected: Sha256Hex,
        /// What the file has.
        found: Sha256Hex,
    },
}

impl ResolveError {
    /// Whether the same question may have an answer later, without anybody changing anything.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Transfer(error) if error.is_transient())
    }
}

/// Finds the files that `quant` means, and reads each from start to end to learn that it has the hash that
/// `SHA256SUMS`, or the manifest's own list, says.
///
/// With `listed` files, they are the model, and neither `quant` nor `SHA256SUMS` is looked at.
///
/// # Errors
/// See [`ResolveError`]; each says what to change.
pub async fn resolve(
    source: &Source,
    quant: &str,
    listed: &[ListedFile],
    access: &Access,
) -> Result<Resolved, ResolveError> {
    let prepare = || Origin::open(source, None, access);
    let origin = prepare.retry(access.backoff()).when(TransferError::is_transient).await?;
    let picked = pick(&origin, source, quant, listed, access).await?;
    let others = OTHER_HEADERS / picked.len().saturating_sub(1).max(1);
    let mut files = Vec::with_capacity(picked.len());
    let mut headers = Vec::with_capacity(picked.len());
    for (index, file) in picked.into_iter().enumerate() {
        let keep = if index == 0 { FIRST_HEADER } else { others.min(FIRST_HEADER) };
        let (resolved, header) = read(&origin, file, keep, access).await?;
        files.push(resolved);
        headers.push(header);
    }
    Ok(Resolved { revision: revision(&files), source: source.clone(), files, headers })
}

async fn pick(
    origin: &Origin,
    source: &Source,
    quant: &str,
    listed: &[ListedFile],
    access: &Access,
) -> Result<Shards, ResolveError> {
    if !listed.is_empty() {
        return Ok(as_listed(listed)?);
    }
    let read = || sums_of(origin, source);
    let retried = read.retry(access.backoff()).when(ResolveError::is_transient).await?;
    let there = sums::parse(&retried)?;
    Ok(match &source.file {
        Some(name) => by_name(&there, name)?,
        None => by_quant(&there, quant)?,
    })
}

async fn sums_of(origin: &Origin, source: &Source) -> Result<Vec<u8>, ResolveError> {
    let mut body = match origin.read(sums::NAME, None).await {
        Ok(body) => body,
        Err(TransferError::NotFound(_)) if origin.is_missing() => {
            return Err(ResolveError::NoFolder(source.to_string()));
        }
        Err(TransferError::NotFound(_)) => return Err(ResolveError::NoSums(source.to_string())),
        Err(error) => return Err(error.into()),
    };
    let mut bytes = Vec::new();
    while let Some(block) = body.next().await? {
        bytes.extend_from_slice(&block);
        if bytes.len() > sums::LONGEST {
            return Err(ResolveError::HugeSums(source.to_string()));
        }
    }
    Ok(bytes)
}

async fn read(
    origin: &Origin,
    file: ListedFile,
    keep: usize,
    access: &Access,
) -> Result<(ResolvedFile, Vec<u8>), ResolveError> {
    let attempt = || hash(origin, &file.name, keep);
    let hashed = attempt.retry(access.backoff()).when(TransferError::is_transient).await?;
    if hashed.sha256 != file.sha256 {
        return Err(ResolveError::WrongDigest {
            name: file.name,
            expected: file.sha256,
            found: hashed.sha256,
        });
    }
    tracing::debug!(file = file.name, bytes = hashed.bytes, "hashed");
    Ok((ResolvedFile { name: file.name, sha256: file.sha256, bytes: hashed.bytes }, hashed.header))
}

struct Hashed {
    sha256: Sha256Hex,
    bytes: u64,
    header: Vec<u8>,
}

async fn hash(origin: &Origin, name: &str, keep: usize) -> Result<Hashed, TransferError> {
    let mut body = origin.read(name, None).await?;
    let mut digest = Sha256::new();
    let (mut bytes, mut header) = (0, Vec::new());
    while let Some(block) = body.next().await? {
        digest.update(&block);
        bytes += block.len() as u64;
        let room = keep.saturating_sub(header.len()).min(block.len());
        header.extend_from_slice(&block[..room]);
    }
    Ok(Hashed { sha256: <[u8; 32]>::from(digest.finalize()).into(), bytes, header })
}

fn revision(files: &[ResolvedFile]) -> String {
    let mut digest = Sha256::new();
    for file in files {
        digest.update(format!("{}  {}\n", file.sha256, file.name));
    }
    format!("sha256:{}", hex::encode(digest.finalize()))
}

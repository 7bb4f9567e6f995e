//! Headers of GGUF files by range requests: what is parsed before its file has been hashed, by a parser that expects the
//! worst, and for sizes alone.

use std::ops::Range;

use backon::Retryable;
use tandem_gguf::{GgufError, Header, MAX_HEADER_BYTES};

use crate::{Access, Origin, ResolveError};

/// What is asked for first, in bytes. The first shard of a model holds its vocabulary, the others list tensors.
const FIRST_SHARD: u64 = 1 << 20;
const OTHER_SHARD: u64 = 256 << 10;

/// What all headers but the first may take together, in bytes: thousands of times what those of real models do.
const ALL_OTHERS: u64 = 192 << 20;

/// The most that is read of one header, in bytes, where a model has this many files.
pub(crate) fn limit(first: bool, files: usize) -> u64 {
    if first {
        return MAX_HEADER_BYTES;
    }
    let others = files.saturating_sub(1).max(1) as u64;
    (ALL_OTHERS / others).max(OTHER_SHARD)
}

/// Reads the header of a file, and learns how long the file is. Asks for twice as much as long as the header goes on.
pub(crate) async fn read(
    origin: &Origin,
    name: &str,
    first: bool,
    limit: u64,
    access: &Access,
) -> Result<Header, ResolveError> {
    let mut prefix = Vec::new();
    let mut length = None;
    let mut wanted = if first { FIRST_SHARD } else { OTHER_SHARD };
    loop {
        let (have, before) = (prefix.len() as u64, length);
        let more = || part(origin, name, have..wanted, before);
        let (block, whole) =
            more.retry(access.backoff()).when(ResolveError::is_transient).adjust(ResolveError::wait).await?;
        prefix.extend_from_slice(&block);
        length = Some(whole);
        // A vocabulary takes milliseconds to read, which is long for those who wait on this thread.
        let parsed = tokio::task::spawn_blocking(move || (Header::parse(&prefix, whole), prefix)).await;
        let (parsed, read) = parsed.expect("parsing has no panic, which is fuzzed, and nobody aborts it");
        prefix = read;
        match parsed {
            Ok(header) => return Ok(header),
            Err(GgufError::Incomplete { needed }) => {
                if needed > limit {
                    return Err(ResolveError::HugeHeader { name: name.to_owned(), limit });
                }
                wanted = needed.max(2 * prefix.len() as u64).min(limit).min(whole);
            }
            Err(source) => return Err(ResolveError::Header { name: name.to_owned(), source }),
        }
        if wanted <= prefix.len() as u64 {
            // Nothing that the parser asks for lies past these bounds.
            return Err(ResolveError::Changing(name.to_owned()));
        }
    }
}

/// One part of the file, and the length of the whole.
async fn part(
    origin: &Origin,
    name: &str,
    range: Range<u64>,
    before: Option<u64>,
) -> Result<(Vec<u8>, u64), ResolveError> {
    let mut body = origin.read(name, Some(range.clone())).await?;
    let whole = body.file_length.ok_or_else(|| ResolveError::NoLength(name.to_owned()))?;
    if before.is_some_and(|before| before != whole) {
        return Err(ResolveError::Changing(name.to_owned()));
    }
    // A body ends where it should, so this is no more than was asked for.
    let block = body.collect(range.end - range.start).await?.unwrap_or_default();
    Ok((block, whole))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_headers_together_are_bounded() {
        for files in [1, 2, 13, 1024] {
            let all = limit(true, files) + (files as u64 - 1) * limit(false, files);
            assert!(all <= 512 << 20, "{files} files: {all} bytes");
            assert!(limit(false, files) >= OTHER_SHARD);
        }
    }
}

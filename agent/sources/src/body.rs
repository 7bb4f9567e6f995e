//! The bytes of a file or of a range of it: just as many as were asked for.

use std::io::{self, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

use bytes::{BufMut, Bytes, BytesMut};
use reqwest::{Response, StatusCode, Url, header};
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use crate::TransferError;
use crate::error::{http, shown};
use crate::http::Answer;

/// How much of a local file is read at once, in bytes.
const BLOCK: usize = 1 << 20;

/// An open file, or a range of one. It ends where it should, or with an error.
pub struct Body {
    from: From,
    /// Bytes that are still to come; unknown for a whole file of a server that doesn't say.
    left: Option<u64>,
    /// Length of the whole file in bytes, as the file system or the server says.
    pub file_length: Option<u64>,
}

enum From {
    File { file: File, path: PathBuf },
    Site { response: Response, url: Url },
}

impl Body {
    /// Opens a file of this machine, or a range of it, which may reach past the file's end.
    ///
    /// # Errors
    /// When it is not there, or no regular file, or has not so many bytes that the range begins in it.
    pub async fn of_file(path: &Path, range: Option<Range<u64>>) -> Result<Self, TransferError> {
        let name = || path.display().to_string();
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => TransferError::NotFound(name()),
            _ => TransferError::File { path: path.to_owned(), source },
        };
        // Asked before opening: opening a pipe would wait for its writer.
        let metadata = tokio::fs::metadata(path).await.map_err(failed)?;
        if !metadata.is_file() {
            return Err(TransferError::NotAFile(name()));
        }
        let mut file = File::open(path).await.map_err(failed)?;
        file.set_max_buf_size(BLOCK);
        let length = metadata.len();
        let left = match range {
            Some(Range { start, .. }) if start > 0 && start >= length => {
                return Err(TransferError::PastEnd { name: name(), at: start });
            }
            Some(Range { start, end }) => {
                file.seek(SeekFrom::Start(start)).await.map_err(failed)?;
                end.min(length).saturating_sub(start)
            }
            None => length,
        };
        let from = From::File { file, path: path.to_owned() };
        Ok(Self { from, left: Some(left), file_length: Some(length) })
    }

    /// The body of a good answer to a request for `range`.
    pub(crate) fn of_answer(answer: Answer, range: Option<&Range<u64>>) -> Result<Self, TransferError> {
        let Answer { response, url, .. } = answer;
        let (left, file_length) = match range {
            None => (response.content_length(), response.content_length()),
            Some(_) if response.status() != StatusCode::PARTIAL_CONTENT => {
                return Err(TransferError::WholeInsteadOfRange(shown(&url)));
            }
            Some(asked) => {
                let said = response.headers().get(header::CONTENT_RANGE);
                let said = said.and_then(|said| said.to_str().ok()).unwrap_or_default();
                let (found, length) = content_range(said)
                    .filter(|(found, length)| {
                        found.start == asked.start
                            && found.end == length.map_or(asked.end, |all| asked.end.min(all))
                    })
                    .ok_or_else(|| TransferError::WrongRange {
                        url: shown(&url),
                        asked: asked.clone(),
                        said: said.chars().filter(|c| !c.is_control()).take(64).collect(),
                    })?;
                (Some(found.end - found.start), length)
            }
        };
        Ok(Self { from: From::Site { response, url }, left, file_length })
    }

    /// The next bytes, up to a mebibyte; `None` at the end.
    ///
    /// # Errors
    /// When the transfer breaks off, or ends too early or too late.
    pub async fn next(&mut self) -> Result<Option<Bytes>, TransferError> {
        let block = match &mut self.from {
            From::File { file, path } => {
                let left = self.left.unwrap_or(u64::MAX);
                let most = BLOCK.min(usize::try_from(left).unwrap_or(BLOCK));
                let mut block = BytesMut::with_capacity(most).limit(most);
                if most > 0 {
                    let read = file.read_buf(&mut block).await;
                    read.map_err(|source| TransferError::File { path: path.clone(), source })?;
                }
                Some(block.into_inner().freeze()).filter(|block| !block.is_empty())
            }
            From::Site { response, url } => response.chunk().await.map_err(|error| http(url, error))?,
        };
        match (&mut self.left, &block) {
            (None, _) | (Some(0), None) => {}
            (Some(missing), None) => {
                let missing = *missing;
                return Err(TransferError::TooShort { name: self.name(), missing });
            }
            (Some(left), Some(block)) => match left.checked_sub(block.len() as u64) {
                Some(rest) => *left = rest,
                None => return Err(TransferError::TooLong(self.name())),
            },
        }
        Ok(block)
    }

    /// All of it; `None` when that is more than `limit` bytes.
    pub(crate) async fn collect(&mut self, limit: u64) -> Result<Option<Vec<u8>>, TransferError> {
        let mut bytes = Vec::new();
        while let Some(block) = self.next().await? {
            if (bytes.len() + block.len()) as u64 > limit {
                return Ok(None);
            }
            bytes.extend_from_slice(&block);
        }
        Ok(Some(bytes))
    }

    fn name(&self) -> String {
        match &self.from {
            From::File { path, .. } => path.display().to_string(),
            From::Site { url, .. } => shown(url),
        }
    }
}

/// `bytes FIRST-LAST/LENGTH`, with `*` for a length that the server doesn't know.
fn content_range(text: &str) -> Option<(Range<u64>, Option<u64>)> {
    let (range, length) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let length = if length == "*" { None } else { Some(length.parse().ok()?) };
    let (first, end): (u64, u64) = (first.parse().ok()?, last.parse::<u64>().ok()?.checked_add(1)?);
    (first < end && length.is_none_or(|length| end <= length)).then_some((first..end, length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_content_range_is_read_strictly() {
        assert_eq!(content_range("bytes 0-9/10"), Some((0..10, Some(10))));
        assert_eq!(content_range("bytes 5-9/*"), Some((5..10, None)));
        for bad in [
            "",
            "bytes",
            "bytes */10",
            "bytes 9-5/10",
            "bytes 0-10/10",
            "0-9/10",
            "bytes 0-18446744073709551615/*",
            "bytes a-b/c",
            "bytes 0-9",
        ] {
            assert_eq!(content_range(bad), None, "{bad}");
        }
    }
}

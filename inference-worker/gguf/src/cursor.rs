//! Walks through a file's prefix, telling "ask for more bytes" from "this file lies".

use crate::error::GgufError;
use crate::header::MAX_HEADER_BYTES;

/// A read position in the first bytes of a file of known length.
pub(crate) struct Cursor<'a> {
    prefix: &'a [u8],
    file_len: u64,
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(prefix: &'a [u8], file_len: u64) -> Self {
        let inside = usize::try_from(file_len).map_or(prefix.len(), |len| len.min(prefix.len()));
        Self { prefix: &prefix[..inside], file_len, at: 0 }
    }

    /// Bytes read so far.
    pub(crate) fn at(&self) -> u64 {
        self.at as u64
    }

    /// Bytes of the file after the position, whether or not the prefix holds them.
    pub(crate) fn left_in_file(&self) -> u64 {
        self.file_len - self.at()
    }

    /// Bytes of the prefix after the position.
    pub(crate) fn left_in_prefix(&self) -> usize {
        self.prefix.len() - self.at
    }

    /// Fails unless the file could hold `wanted` more bytes; says [`GgufError::Incomplete`] when the prefix
    /// doesn't.
    pub(crate) fn take(&mut self, wanted: u64, what: &'static str) -> Result<&'a [u8], GgufError> {
        let at = self.at();
        let end = match at.checked_add(wanted) {
            Some(end) if end <= self.file_len => end,
            _ => return Err(GgufError::PastEnd { what, at, wanted, file_len: self.file_len }),
        };
        if end > MAX_HEADER_BYTES {
            return Err(GgufError::HeaderTooLarge { what, at, limit: MAX_HEADER_BYTES });
        }
        let bytes = usize::try_from(end)
            .ok()
            .and_then(|end| self.prefix.get(self.at..end))
            .ok_or(GgufError::Incomplete { needed: end })?;
        self.at += bytes.len();
        Ok(bytes)
    }

    pub(crate) fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], GgufError> {
        let bytes = self.take(N as u64, what)?;
        Ok(bytes.try_into().expect("take returns as many bytes as asked for"))
    }

    pub(crate) fn u32(&mut self, what: &'static str) -> Result<u32, GgufError> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self, what: &'static str) -> Result<u64, GgufError> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A length of 8 bytes, then as many bytes of UTF-8.
    pub(crate) fn string(&mut self, what: &'static str) -> Result<&'a str, GgufError> {
        let len = self.u64(what)?;
        self.text(len, what)
    }

    /// A string of 1 to `limit` bytes.
    pub(crate) fn name(&mut self, limit: u64, what: &'static str) -> Result<&'a str, GgufError> {
        let len = self.u64(what)?;
        // A name that leaves the file is too long as well, but that it leaves the file says more.
        if len <= self.left_in_file() && !(1..=limit).contains(&len) {
            return Err(GgufError::BadNameLength { what, at: self.at(), len, limit });
        }
        self.text(len, what)
    }

    fn text(&mut self, len: u64, what: &'static str) -> Result<&'a str, GgufError> {
        let at = self.at();
        std::str::from_utf8(self.take(len, what)?).map_err(|_| GgufError::NotUtf8 { what, at })
    }
}

//! Which pages of a mapped file are in memory, as the system tells. Asking reads nothing in and touches no page.

use std::io;
use std::ops::Range;

use super::MappedFile;

/// Bytes in a page of this system.
#[must_use]
pub fn page_bytes() -> usize {
    // SAFETY: sysconf has no preconditions; it reads a constant of the system.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(bytes).ok().filter(|bytes| bytes.is_power_of_two()).unwrap_or(4096)
}

impl MappedFile {
    /// Ranges of the file within `length` bytes from `offset` that are not in the page cache, ascending, of whole pages but for
    /// the file's end. One byte is allocated per page that is asked about: ask for a large file in parts.
    ///
    /// Linux tells the truth only to those who own a file or may write to it; to others every page is there. A part of the file
    /// that was cut off since it was mapped is absent.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn absent(&self, offset: usize, length: usize) -> io::Result<Vec<Range<usize>>> {
        let page = page_bytes();
        let end = offset.saturating_add(length).min(self.len());
        let start = offset.min(end) / page * page;
        let mut absent: Vec<Range<usize>> = Vec::new();
        let mut pages = vec![0_u8; (end - start).div_ceil(page)];
        if pages.is_empty() {
            return Ok(absent);
        }
        let address = self.map[start..].as_ptr();
        // SAFETY: the address is a page boundary inside the mapping, which lives as long as `self`, since mappings begin at one and
        // `start` is a multiple of the page; `end - start` bytes from there are mapped; and the vector has one byte for each
        // of their pages. The call reads no mapped byte and writes to the vector alone.
        let told =
            unsafe { libc::mincore(address.cast_mut().cast(), end - start, pages.as_mut_ptr().cast()) };
        if told != 0 {
            return Err(io::Error::last_os_error());
        }
        // The other bits are another's business: macOS tells there who has touched or written the page.
        for (number, _) in pages.iter().enumerate().filter(|(_, told)| **told & 1 == 0) {
            let from = start + number * page;
            let to = (from + page).min(self.len());
            match absent.last_mut() {
                Some(last) if last.end == from => last.end = to,
                _ => absent.push(from..to),
            }
        }
        Ok(absent)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_freshly_written_file_is_in_memory_wherever_one_asks() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let page = page_bytes();
        file.write_all(&vec![7; 5 * page + 100]).unwrap();
        let mapped = MappedFile::open(file.path()).unwrap();
        for (offset, length) in [(0, usize::MAX), (0, 1), (page + 1, page), (5 * page, 99), (9 * page, page)]
        {
            assert_eq!(mapped.absent(offset, length).unwrap(), [], "{offset} + {length}");
        }
    }

    /// On a disk: files of a file system in memory are always there.
    #[cfg(target_os = "linux")]
    #[test]
    fn what_was_dropped_is_absent_until_it_is_read() {
        use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
        use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};
        use std::io::Read;
        use std::slice::from_ref;

        let mut file = tempfile::NamedTempFile::new_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        if fstatfs(file.as_file()).unwrap().filesystem_type() == TMPFS_MAGIC {
            eprintln!("skipped: what_was_dropped_is_absent_until_it_is_read needs a folder on a disk");
            return;
        }
        let page = page_bytes();
        let bytes = 64 * page + 10;
        file.write_all(&vec![7; bytes]).unwrap();
        file.as_file().sync_all().unwrap();
        let mapped = MappedFile::open(file.path()).unwrap();
        posix_fadvise(file.as_file(), 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
        assert_eq!(mapped.absent(0, usize::MAX).unwrap(), from_ref(&(0..bytes)));
        assert_eq!(mapped.absent(3 * page + 5, page).unwrap(), from_ref(&(3 * page..5 * page)));

        posix_fadvise(file.as_file(), 0, 0, PosixFadviseAdvice::POSIX_FADV_RANDOM).unwrap();
        let mut first = vec![0; page];
        std::fs::File::open(file.path()).unwrap().read_exact(&mut first).unwrap();
        let absent = mapped.absent(0, usize::MAX).unwrap();
        assert!(absent.iter().all(|range| range.start >= page), "the first page was read: {absent:?}");
        std::fs::read(file.path()).unwrap();
        assert_eq!(mapped.absent(0, usize::MAX).unwrap(), []);
    }
}

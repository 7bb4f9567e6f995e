//! The marks by which a change of a file is noticed without reading it.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// A file's marks at one moment. A write, a truncation or a replacement changes at least one of them; so does a new name or mode,
/// which is why a difference is a reason to read the file again and no proof that it is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileStamp {
    /// Which file system; written down for people, since some number themselves anew at each boot, so that it proves nothing.
    pub device: u64,
    /// Which file of its file system.
    pub inode: u64,
    /// Its length.
    pub bytes: u64,
    /// When its bytes were last written, in nanoseconds since 1970.
    pub modified: i64,
    /// When its bytes or attributes last changed, likewise. No program can set it.
    pub changed: i64,
}

impl FileStamp {
    /// From what the system says of a file.
    #[must_use]
    pub fn of(metadata: &Metadata) -> Self {
        let nanoseconds =
            |seconds: i64, rest: i64| seconds.saturating_mul(1_000_000_000).saturating_add(rest);
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.size(),
            modified: nanoseconds(metadata.mtime(), metadata.mtime_nsec()),
            changed: nanoseconds(metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// Of the file at a path, now.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn read(path: &Path) -> io::Result<Self> {
        fs::metadata(path).map(|metadata| Self::of(&metadata))
    }

    /// What differs now, in words; `None` when it is the same file, untouched.
    #[must_use]
    pub fn difference(&self, now: &Self) -> Option<&'static str> {
        if self.bytes != now.bytes {
            Some("its length has changed")
        } else if self.inode != now.inode {
            Some("it was replaced by another file")
        } else if self.modified != now.modified {
            Some("it was written to")
        } else if self.changed != now.changed {
            Some("its attributes were changed")
        } else {
            None
        }
    }
}

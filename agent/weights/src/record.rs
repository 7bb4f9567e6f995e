//! What is known of a verified file: its pieces, and the marks by which a change is noticed without reading it.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tandem_sources::Sha256Hex;
use tandem_worker_api::FileStamp;

use crate::pieces::{Cut, Digest};

/// The format of records that this release writes.
const VERSION: u32 = 1;
/// More than the record of a file with a million pieces, in bytes.
const LONGEST: u64 = 128 << 20;

/// A verified file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Record {
    version: u32,
    pub(crate) sha256: Sha256Hex,
    pub(crate) bytes: u64,
    piece_bytes: u64,
    /// In order.
    pub(crate) digests: Vec<Digest>,
    /// Of when it was verified.
    pub(crate) stamp: FileStamp,
    /// As it was called where it came from.
    pub(crate) name: String,
    /// Where it came from, for people.
    pub(crate) origin: String,
    /// Where it lies, when it is not the store's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) reference: Option<PathBuf>,
}

/// Why a record is of no use.
#[derive(Debug)]
pub(crate) enum BadRecord {
    Io(io::Error),
    /// Damaged, or not one.
    Broken,
    /// Of a format that this release does not know.
    Newer(u32),
}

#[derive(Deserialize)]
struct OnlyVersion {
    version: u32,
}

impl Record {
    pub(crate) fn new(
        sha256: Sha256Hex,
        cut: Cut,
        digests: Vec<Digest>,
        stamp: FileStamp,
        (name, origin): (&str, &str),
        reference: Option<PathBuf>,
    ) -> Self {
        let (name, origin) = (name.to_owned(), origin.to_owned());
        let (bytes, piece_bytes) = (cut.bytes(), cut.piece_bytes());
        Self { version: VERSION, sha256, bytes, piece_bytes, digests, stamp, name, origin, reference }
    }

    pub(crate) fn cut(&self) -> Cut {
        Cut::into(self.bytes, self.piece_bytes).expect("checked when it was read")
    }

    /// Reads a record that was written by [`Record::write`].
    pub(crate) fn read(path: &Path) -> Result<Self, BadRecord> {
        if fs::metadata(path).map_err(BadRecord::Io)?.len() > LONGEST {
            return Err(BadRecord::Broken);
        }
        Self::parse(&fs::read(path).map_err(BadRecord::Io)?)
    }

    fn parse(bytes: &[u8]) -> Result<Self, BadRecord> {
        let end = bytes.iter().position(|byte| *byte == b'\n').ok_or(BadRecord::Broken)?;
        let (check, json) = (&bytes[..end], &bytes[end + 1..]);
        if check != Digest::of(json).to_string().as_bytes() {
            return Err(BadRecord::Broken);
        }
        let OnlyVersion { version } = serde_json::from_slice(json).map_err(|_| BadRecord::Broken)?;
        if version != VERSION {
            return Err(BadRecord::Newer(version));
        }
        let record: Self = serde_json::from_slice(json).map_err(|_| BadRecord::Broken)?;
        let cut = Cut::into(record.bytes, record.piece_bytes).ok_or(BadRecord::Broken)?;
        (record.digests.len() == cut.count() as usize).then_some(record).ok_or(BadRecord::Broken)
    }

    /// Writes beside, syncs, renames.
    pub(crate) fn write(&self, path: &Path) -> io::Result<()> {
        let beside = path.with_extension("new");
        let mut file = File::create(&beside)?;
        file.write_all(&self.to_bytes())?;
        file.sync_all()?;
        fs::rename(&beside, path)
    }

    /// The digest of the JSON on a line of its own, then the JSON: a flipped byte makes it no record.
    fn to_bytes(&self) -> Vec<u8> {
        let json = serde_json::to_vec(self).expect("a record is JSON");
        let mut bytes = Digest::of(&json).to_string().into_bytes();
        bytes.push(b'\n');
        bytes.extend(json);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        let file = tempfile::NamedTempFile::new().unwrap();
        let stamp = FileStamp::of(&file.as_file().metadata().unwrap());
        let digests = vec![Digest::of(b"a"), Digest::of(b"b")];
        let cut = Cut::into(15, 10).unwrap();
        Record::new(Sha256Hex::from([1; 32]), cut, digests, stamp, ("a.gguf", "file:///a"), None)
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record");
        record().write(&path).unwrap();
        assert_eq!(Record::read(&path).unwrap().digests, record().digests);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_flipped_byte_or_a_lost_end_makes_it_none() {
        let bytes = record().to_bytes();
        for at in 0..bytes.len() {
            let mut wrong = bytes.clone();
            wrong[at] ^= 0x10;
            assert!(matches!(Record::parse(&wrong), Err(BadRecord::Broken)), "byte {at}");
            assert!(matches!(Record::parse(&bytes[..at]), Err(BadRecord::Broken)), "{at} bytes");
        }
    }

    #[test]
    fn a_later_format_is_told_from_damage() {
        let later = Record { version: 7, ..record() };
        assert!(matches!(Record::parse(&later.to_bytes()), Err(BadRecord::Newer(7))));
    }

    #[test]
    fn every_kind_of_change_has_its_word() {
        let was = record().stamp;
        let changed = |now: FileStamp| was.difference(&now);
        assert_eq!(changed(FileStamp { device: 99, ..was }), None);
        assert_eq!(changed(FileStamp { bytes: 99, ..was }), Some("its length has changed"));
        assert_eq!(
            changed(FileStamp { inode: was.inode + 1, ..was }),
            Some("it was replaced by another file")
        );
        assert_eq!(changed(FileStamp { modified: 1, ..was }), Some("it was written to"));
        assert_eq!(changed(FileStamp { changed: 1, ..was }), Some("its attributes were changed"));
    }
}

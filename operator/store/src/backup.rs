//! A store's content as one file: lines of JSON between a head and a foot that says whether all of it is there.
//!
//! A home can take what another one gave, so that this is also the way from one file to three voters. Private records are in
//! it, the authority's key among them: it is as secret as the store.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use thiserror::Error;

/// Version of this layout. Raised when an older release could misread it.
const FORMAT: u32 = 1;

/// Everything that a store keeps but events, at one moment.
#[derive(Clone, PartialEq)]
pub struct Backup {
    /// When it was made.
    pub made: Timestamp,
    /// The home that it is of.
    pub home: String,
    /// Objects whole, with status and owners of fields.
    pub objects: Vec<Value>,
    /// Private documents.
    pub records: Vec<KeptRecord>,
    /// The newest term of each lease.
    pub terms: BTreeMap<String, u64>,
}

/// A private document in a backup.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptRecord {
    /// Its collection.
    pub collection: String,
    /// Its key within the collection.
    pub key: String,
    /// The document.
    #[serde(with = "hex::serde")]
    pub value: Vec<u8>,
}

impl std::fmt::Debug for Backup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Backup")
            .field("made", &self.made)
            .field("objects", &self.objects.len())
            .field("records", &self.records.len())
            .finish_non_exhaustive()
    }
}

/// Why a file is no backup that can be used.
#[derive(Debug, Error)]
pub enum BackupError {
    /// Another program's file.
    #[error("this is no backup of Tandem")]
    Foreign,
    /// A newer release's.
    #[error(
        "this backup has format {0}, and this release reads up to {FORMAT}: restore it with the release that made it"
    )]
    Newer(u32),
    /// Its end is missing.
    #[error("this backup ends too early: it was not copied or written whole")]
    Torn,
    /// Not what was written.
    #[error("this backup is damaged: its digest differs")]
    Damaged,
    /// A line that no release writes.
    #[error("line {line} of this backup can't be read")]
    Unreadable {
        /// Which line, from 1.
        line: usize,
        /// What is wrong.
        source: serde_json::Error,
    },
}

#[derive(Serialize, Deserialize)]
struct Head {
    tandem_backup: u32,
    made: Timestamp,
    home: String,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Object(Value),
    Record(KeptRecord),
    Term { lease: String, term: u64 },
    End { sha256: String },
}

impl Backup {
    /// As a file.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut add = |line: &[u8]| {
            bytes.extend_from_slice(line);
            bytes.push(b'\n');
        };
        let json = |line: &Line| serde_json::to_vec(line).expect("texts and numbers are JSON");
        let head = Head { tandem_backup: FORMAT, made: self.made, home: self.home.clone() };
        add(&serde_json::to_vec(&head).expect("texts and numbers are JSON"));
        for (lease, &term) in &self.terms {
            add(&json(&Line::Term { lease: lease.clone(), term }));
        }
        for object in &self.objects {
            add(&json(&Line::Object(object.clone())));
        }
        for record in &self.records {
            add(&json(&Line::Record(record.clone())));
        }
        let end = Line::End { sha256: hex::encode(Sha256::digest(&bytes)) };
        bytes.extend(json(&end));
        bytes.push(b'\n');
        bytes
    }

    /// Reads a file that [`Backup::encode`] has made.
    ///
    /// # Errors
    /// When it is another file, a newer release's, or not whole.
    pub fn decode(bytes: &[u8]) -> Result<Self, BackupError> {
        let mut lines = bytes.split_inclusive(|byte| *byte == b'\n').enumerate();
        let (_, head) = lines.next().ok_or(BackupError::Foreign)?;
        let head: Head = serde_json::from_slice(head).map_err(|_| BackupError::Foreign)?;
        if head.tandem_backup > FORMAT {
            return Err(BackupError::Newer(head.tandem_backup));
        }
        let mut backup = Self {
            made: head.made,
            home: head.home,
            objects: Vec::new(),
            records: Vec::new(),
            terms: BTreeMap::new(),
        };
        let mut read = 0;
        for (n, line) in lines {
            // What comes before this line, the head included.
            read = if n == 1 {
                bytes.iter().position(|byte| *byte == b'\n').map_or(0, |at| at + 1)
            } else {
                read
            };
            let parsed = serde_json::from_slice(line).map_err(|source| {
                if line.ends_with(b"\n") {
                    BackupError::Unreadable { line: n + 1, source }
                } else {
                    BackupError::Torn
                }
            })?;
            match parsed {
                Line::Object(object) => backup.objects.push(object),
                Line::Record(record) => backup.records.push(record),
                Line::Term { lease, term } => drop(backup.terms.insert(lease, term)),
                Line::End { sha256 } => {
                    let whole = hex::encode(Sha256::digest(&bytes[..read])) == sha256;
                    return if whole { Ok(backup) } else { Err(BackupError::Damaged) };
                }
            }
            read += line.len();
        }
        Err(BackupError::Torn)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn backup() -> Backup {
        let record =
            KeptRecord { collection: "authority".into(), key: "current".into(), value: vec![0, 10, 255] };
        Backup {
            made: Timestamp::UNIX_EPOCH,
            home: "embedded".into(),
            objects: vec![json!({"kind": "InferenceHost", "metadata": {"name": "a\nb"}})],
            records: vec![record],
            terms: BTreeMap::from([("leader".to_owned(), 7)]),
        }
    }

    #[test]
    fn what_is_written_is_read_and_every_loss_is_told() {
        let bytes = backup().encode();
        assert_eq!(Backup::decode(&bytes).unwrap(), backup());
        for cut in 0..bytes.len() - 1 {
            assert!(Backup::decode(&bytes[..cut]).is_err(), "{cut} of {} bytes", bytes.len());
        }
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert_ne!(Backup::decode(&changed).ok(), Some(backup()), "byte {at}");
        }
        assert!(matches!(Backup::decode(b"hello"), Err(BackupError::Foreign)));
        let newer = String::from_utf8(bytes).unwrap().replace("\"tandem_backup\":1", "\"tandem_backup\":2");
        assert!(matches!(Backup::decode(newer.as_bytes()), Err(BackupError::Newer(2))));
    }
}

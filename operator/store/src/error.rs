//! What a store can refuse, and why.

use std::path::PathBuf;

use thiserror::Error;

use crate::object::{Key, Version};

/// A field that somebody else owns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnedField {
    /// Path as in the manifest, `spec.replicas`.
    pub path: String,
    /// Who owns it.
    pub manager: String,
}

/// Why a store did not do what it was asked.
#[derive(Debug, Error)]
pub enum StoreError {
    /// No such object.
    #[error("there is no {0}")]
    NotFound(Key),
    /// Create, where there is one already.
    #[error("{0} exists already")]
    AlreadyExists(Key),
    /// The object is not what the writer read.
    #[error(
        "{key} has changed since it was read: its version is {current}; read it again and repeat the change"
    )]
    Conflict {
        /// Which object.
        key: Key,
        /// The version that it has now.
        current: Version,
    },
    /// An apply would change fields of other managers.
    #[error(
        "{key}: {}; leave the field out of the manifest, or apply with force to take it over",
        owned_by(.fields)
    )]
    FieldConflict {
        /// Which object.
        key: Key,
        /// The fields in question and their owners.
        fields: Vec<OwnedField>,
    },
    /// The object is not allowed to be like this; each sentence says what to change.
    #[error("{}", .problems.join("\n"))]
    Invalid {
        /// Sentences, each naming the field.
        problems: Vec<String>,
    },
    /// The object is larger than a store takes.
    #[error("{key} would have {bytes} bytes; an object may have at most {limit}: take something out")]
    TooLarge {
        /// Which object.
        key: Key,
        /// Its size as JSON.
        bytes: usize,
        /// What is allowed.
        limit: usize,
    },
    /// A watch asks for changes that the store no longer has.
    #[error("changes since version {since} are no longer kept: list again, and watch from there")]
    Expired {
        /// From where the watch was asked for.
        since: Version,
    },
    /// A lease is somebody else's.
    #[error("lease {name} is held by {holder} in term {term}")]
    LeaseLost {
        /// Which lease.
        name: String,
        /// Who has it, or had it last.
        holder: String,
        /// That holder's term.
        term: u64,
    },
    /// A record is not what the writer read.
    #[error("record {collection}/{key} has changed since it was read: read it again")]
    RecordConflict {
        /// The record's collection.
        collection: String,
        /// The record's key.
        key: String,
    },
    /// Another process has the file open.
    #[error("{} is in use by another tandem-operator: stop that one, or give this one a data directory of its own", .path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The file was written by a newer release.
    #[error(
        "{} has format {found}, this release reads up to {supported}: run the release that wrote it, or restore a backup \
         from before the upgrade",
        .path.display()
    )]
    NewerFormat {
        /// The file.
        path: PathBuf,
        /// The format that it has.
        found: u32,
        /// The newest format that this release reads.
        supported: u32,
    },
    /// The file holds something that no release wrote.
    #[error("{} is damaged ({what}): restore it from a backup", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The disk or the database refused.
    #[error("the store at {} could not be read or written", .path.display())]
    Storage {
        /// The file.
        path: PathBuf,
        /// What it said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// What the store holds is nothing that a release wrote.
    #[error("{what} can't be read: restore the store from a backup")]
    Unreadable {
        /// Which object, or which lease.
        what: String,
        /// What is wrong.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The server that keeps the objects did not answer.
    #[error("{server} does not answer")]
    Unreachable {
        /// The server.
        server: String,
        /// What went wrong.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The server that keeps the objects refuses, for a reason that is none of the object's.
    #[error("the store refuses: {message}")]
    Refused {
        /// Its status, as HTTP's.
        code: u16,
        /// What it says.
        message: String,
    },
    /// A backup can only be put where there is nothing.
    #[error(
        "the store is not empty, and nothing was restored: restore into a new data folder, or under another --etcd-prefix"
    )]
    NotEmpty,
    /// Not every home has backups of its own.
    #[error(
        "in Kubernetes Tandem keeps nothing that the cluster does not: back up its custom resources and the Secrets of the \
         operator's namespace with the cluster's own tools"
    )]
    KeptElsewhere,
    /// The store is shutting down.
    #[error("the store is closed")]
    Closed,
}

impl StoreError {
    /// Whether reading again and repeating can help.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Conflict { .. } | Self::RecordConflict { .. } | Self::AlreadyExists(_))
    }
}

fn owned_by(fields: &[OwnedField]) -> String {
    let parts: Vec<String> = fields.iter().map(|f| format!("{} is owned by {}", f.path, f.manager)).collect();
    parts.join(", ")
}

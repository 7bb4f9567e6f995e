//! What can go wrong with weights, as sentences that say what to do.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tandem_sources::{Sha256Hex, TransferError};
use thiserror::Error;

/// The store's folder or a file of it can't be used.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The system says no.
    #[error("`{path}` can't be read or written")]
    Io {
        /// Which file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The disk says no in the midst of a file.
    #[error(
        "`{path}` can't be read or written at byte {offset}: look for errors of this disk in the system's log; a file that is damaged there is fetched again once it is discarded"
    )]
    Disk {
        /// Which file.
        path: PathBuf,
        /// Where in it, in bytes.
        offset: u64,
        /// What the system said.
        source: io::Error,
    },
    /// The disk took bytes and lost them before they were on it. Nobody can say which, so none are gone on with.
    #[error(
        "`{path}` can't be brought to the disk: look for errors of this disk in the system's log; the next fetch begins anew"
    )]
    Unsettled {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A downgrade.
    #[error(
        "`{path}` has format {found}, and this release knows up to {known}: start the newer release again, or use another data folder"
    )]
    Newer {
        /// Which file.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// The newest format that is known here.
        known: u32,
    },
    /// Two processes want one store.
    #[error("the weights folder `{0}` is used by another process: end that one, or use another data folder")]
    InUse(PathBuf),
    /// What is to be imported is no model.
    #[error("`{0}` holds no GGUF file")]
    NoModels(PathBuf),
    /// The list of digests beside an imported file says otherwise.
    #[error(
        "`{path}` has sha256 {found}, and the SHA256SUMS beside it says {listed}: one of the two is wrong"
    )]
    Disagrees {
        /// Which file.
        path: PathBuf,
        /// What it hashes to.
        found: Sha256Hex,
        /// What is listed.
        listed: Sha256Hex,
    },
    /// A file changed while it was hashed.
    #[error("`{0}` changed while it was read: import it when nobody writes to it any more")]
    Unsteady(PathBuf),
}

/// A file that did not get into the store.
#[derive(Debug, Error)]
pub enum FetchError {
    /// It can't be read where it comes from. What has come is kept, and the next fetch goes on from there.
    #[error(transparent)]
    Source(#[from] TransferError),
    /// The source sends less than it announced, or too little for too long. What has come is kept.
    #[error(
        "the transfer of `{name}` breaks off or stands still again and again: look at the network to its source"
    )]
    Stalled {
        /// Which file.
        name: String,
    },
    /// Other bytes than were asked for. What has come is gone.
    #[error(
        "`{name}` has sha256 {found} instead of {expected}: it has changed since the deployment was resolved; resolve it again, or restore the file at its source"
    )]
    WrongDigest {
        /// Which file.
        name: String,
        /// What was asked for.
        expected: Sha256Hex,
        /// What came.
        found: Sha256Hex,
    },
    /// More or fewer bytes than were asked for.
    #[error(
        "`{name}` is not {expected} bytes long: it has changed since the deployment was resolved; resolve it again, or restore the file at its source"
    )]
    WrongLength {
        /// Which file.
        name: String,
        /// What was asked for.
        expected: u64,
    },
    /// No room.
    #[error(
        "the disk of `{folder}` is full: `{name}` needs {needed} bytes and {free} are free{}; free some, or move the data folder", spared(*spare)
    )]
    DiskFull {
        /// Which file.
        name: String,
        /// What is still missing of it, in bytes.
        needed: u64,
        /// What is free, less what is kept spare, in bytes.
        free: u64,
        /// What is kept spare, in bytes.
        spare: u64,
        /// Where it should go.
        folder: PathBuf,
    },
    /// No room in the budget.
    #[error(
        "`{name}` needs {needed} bytes, and {used} of the {budget} that weights may take are used; raise the budget, or remove a model"
    )]
    OverBudget {
        /// Which file.
        name: String,
        /// Its length, in bytes.
        needed: u64,
        /// What the store takes, in bytes.
        used: u64,
        /// What it may take, in bytes.
        budget: u64,
    },
    /// A name that leaves its source.
    #[error("`{0}` is not a relative path inside the source")]
    Outside(String),
    /// The store itself.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl FetchError {
    /// How long to wait before the next try; see [`TransferError::wait`].
    pub(crate) fn wait(&self, planned: Option<Duration>) -> Option<Duration> {
        match self {
            Self::Source(error) => error.wait(planned),
            _ => planned,
        }
    }

    /// Whether the next try may go better without anybody changing anything.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Source(error) => error.is_transient(),
            Self::Stalled { .. } => true,
            _ => false,
        }
    }
}

/// A stored file is not what its name says.
#[derive(Debug, Error)]
pub enum VerifyError {
    /// Bytes have changed on disk.
    #[error("{expected} on disk has sha256 {found}: the disk or somebody changed it")]
    Damaged {
        /// Its name.
        expected: Sha256Hex,
        /// What it hashes to.
        found: Sha256Hex,
    },
    /// It is not in the store.
    #[error("{0} is not here")]
    Missing(Sha256Hex),
    /// It can't be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A verified file is no longer the file that was verified.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Changed {
    /// Its marks differ.
    #[error(
        "`{path}` is not as it was when it was verified: {how}; it is not used before it is hashed again"
    )]
    Differs {
        /// Which file.
        path: PathBuf,
        /// What differs, in words.
        how: &'static str,
    },
    /// It is gone, or can't be looked at.
    #[error("`{0}` is not there any more")]
    Gone(PathBuf),
    /// It never was here.
    #[error("{0} is not here")]
    Unknown(Sha256Hex),
}

pub(crate) fn at(path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Io { path, source }
}

pub(crate) fn at_byte(path: &Path, offset: u64) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Disk { path, offset, source }
}

pub(crate) fn unsettled(path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Unsettled { path, source }
}

/// Whether a write failed for want of room.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// What is free beyond that, and why it is not taken.
fn spared(bytes: u64) -> String {
    if bytes == 0 {
        String::new()
    } else {
        format!(", besides {bytes} that are kept spare (--weights-spare)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_says_what_is_kept_spare_of_it() {
        let full = |spare| FetchError::DiskFull {
            name: "m.gguf".to_owned(),
            needed: 18,
            free: 0,
            spare,
            folder: "/weights".into(),
        };
        let (plain, spared) = (full(0).to_string(), full(10).to_string());
        assert!(plain.contains("and 0 are free; free some"), "{plain}");
        assert!(
            spared.contains("and 0 are free, besides 10 that are kept spare (--weights-spare); free some"),
            "{spared}"
        );
    }
}

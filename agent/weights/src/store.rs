//! A host's weights on disk, each file under its own hash. A file is either whole and verified, or not there.
//!
//! Layout: `sha256/HASH` are the files, `partial/` is what is on its way. Nothing here deletes a verified file: only who
//! knows every copy in the cluster can tell that one is not the last.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use backon::Retryable;
use sha2::{Digest, Sha256};
use tandem_sources::{Access, Body, Origin, ResolvedFile, Sha256Hex, Source, TransferError, is_inside};
use tempfile::TempPath;
use thiserror::Error;
use tokio::fs::File;
use tokio::io::AsyncWriteExt;

/// Verified weights on this host. One process at a time.
#[derive(Clone, Debug)]
pub struct Store {
    whole: PathBuf,
    partial: PathBuf,
}

/// The store's folders can't be used.
#[derive(Debug, Error)]
#[error("the weights folder `{path}` can't be used")]
pub struct StoreError {
    /// Which file or folder.
    pub path: PathBuf,
    /// What the system said.
    pub source: io::Error,
}

/// A file that did not get into the store. What was written of it is gone.
#[derive(Debug, Error)]
pub enum FetchError {
    /// It can't be read where it comes from.
    #[error(transparent)]
    Transfer(#[from] TransferError),
    /// Other bytes than were asked for.
    #[error(
        "`{name}` has sha256 {found} instead of {expected}: it has changed since the deployment was resolved"
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
    #[error("`{name}` is not {expected} bytes long: it has changed since the deployment was resolved")]
    WrongLength {
        /// Which file.
        name: String,
        /// What was asked for.
        expected: u64,
    },
    /// No room.
    #[error(
        "the disk of `{folder}` is full: `{name}` needs {bytes} bytes; free some, or move the data folder"
    )]
    DiskFull {
        /// Which file.
        name: String,
        /// Its length.
        bytes: u64,
        /// Where it should go.
        folder: PathBuf,
    },
    /// A name that leaves its source.
    #[error("`{0}` is not a relative path inside the source")]
    Outside(String),
    /// The store itself.
    #[error(transparent)]
    Store(#[from] StoreError),
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
    /// It can't be read, or is not there.
    #[error(transparent)]
    Transfer(#[from] TransferError),
}

impl Store {
    /// Opens or makes a store, and clears away what a kill left half.
    ///
    /// # Errors
    /// When its folders can't be made or read.
    pub fn open(folder: &Path) -> Result<Self, StoreError> {
        let store = Self { whole: folder.join("sha256"), partial: folder.join("partial") };
        for path in [&store.whole, &store.partial] {
            fs::create_dir_all(path).map_err(at(path))?;
        }
        for entry in fs::read_dir(&store.partial).map_err(at(&store.partial))? {
            let path = entry.map_err(at(&store.partial))?.path();
            fs::remove_file(&path).map_err(at(&path))?;
        }
        Ok(store)
    }

    /// Where a file is, once it is whole.
    #[must_use]
    pub fn path_of(&self, sha256: &Sha256Hex) -> PathBuf {
        self.whole.join(sha256.to_string())
    }

    /// Whether a file is here, whole, as it was when it was verified.
    #[must_use]
    pub fn has(&self, file: &ResolvedFile) -> bool {
        fs::metadata(self.path_of(&file.sha256))
            .is_ok_and(|there| there.is_file() && there.len() == file.bytes)
    }

    /// Brings a file here, unless it is here already, and says where it is. `progress` is told how many bytes of it are
    /// verified; the number falls back to 0 when a broken transfer starts again.
    ///
    /// # Errors
    /// See [`FetchError`]. Transient ones have been retried.
    pub async fn fetch(
        &self,
        source: &Source,
        file: &ResolvedFile,
        access: &Access,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<PathBuf, FetchError> {
        let path = self.path_of(&file.sha256);
        if self.has(file) {
            progress(file.bytes);
            return Ok(path);
        }
        if !is_inside(&file.name) {
            return Err(FetchError::Outside(file.name.clone()));
        }
        let attempt = || self.attempt(source, file, access, progress);
        let whole = attempt.retry(access.backoff()).when(FetchError::is_transient).await?;
        fs::set_permissions(&whole, Permissions::from_mode(0o400)).map_err(at(&whole))?;
        whole.persist(&path).map_err(|error| StoreError { path: path.clone(), source: error.error })?;
        // The rename itself must survive a power cut, or the file is fetched twice.
        fs::File::open(&self.whole).and_then(|folder| folder.sync_all()).map_err(at(&self.whole))?;
        Ok(path)
    }

    /// Hashes a stored file again.
    ///
    /// # Errors
    /// When it is damaged, missing or unreadable.
    pub async fn verify(&self, sha256: &Sha256Hex) -> Result<(), VerifyError> {
        let mut body = Body::of_file(&self.path_of(sha256), None).await?;
        let mut digest = Sha256::new();
        while let Some(block) = body.next().await? {
            digest.update(&block);
        }
        let found = Sha256Hex::from(<[u8; 32]>::from(digest.finalize()));
        if found == *sha256 { Ok(()) } else { Err(VerifyError::Damaged { expected: *sha256, found }) }
    }

    /// Removes a file that [`Store::verify`] found damaged, so that the next fetch brings a good one.
    ///
    /// # Errors
    /// When it can't be removed. A file that is not there is no error.
    pub fn discard(&self, sha256: &Sha256Hex) -> Result<(), StoreError> {
        let path = self.path_of(sha256);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(StoreError { path, source }),
            _ => Ok(()),
        }
    }

    async fn attempt(
        &self,
        source: &Source,
        file: &ResolvedFile,
        access: &Access,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<TempPath, FetchError> {
        progress(0);
        let origin = Origin::open(source, None, access).await?;
        if let Some(clone) = origin.local_path(&file.name).and_then(|path| self.clone_of(&path)) {
            let mut body = Body::of_file(&clone, None).await?;
            receive(&mut body, file, None, progress).await?;
            return Ok(clone);
        }
        let mut body = origin.read(&file.name, None).await?;
        let (created, path) = self.create().map_err(|error| self.failed(file, error))?.into_parts();
        let mut writer = Writer { to: File::from_std(created), store: self };
        receive(&mut body, file, Some(&mut writer), progress).await?;
        writer.to.sync_all().await.map_err(|error| self.failed(file, error))?;
        Ok(path)
    }

    fn create(&self) -> io::Result<tempfile::NamedTempFile> {
        tempfile::Builder::new().tempfile_in(&self.partial)
    }

    /// A copy that shares its blocks with the original until either is written to, where the file system can do that.
    fn clone_of(&self, original: &Path) -> Option<TempPath> {
        let clone = |path: &Path| reflink_copy::reflink(original, path).and_then(|()| fs::File::open(path));
        let made = tempfile::Builder::new().make_in(&self.partial, clone).ok()?;
        Some(made.into_temp_path())
    }

    fn failed(&self, file: &ResolvedFile, source: io::Error) -> FetchError {
        if source.kind() == io::ErrorKind::StorageFull || source.kind() == io::ErrorKind::QuotaExceeded {
            let (name, folder) = (file.name.clone(), self.partial.clone());
            return FetchError::DiskFull { name, bytes: file.bytes, folder };
        }
        StoreError { path: self.partial.clone(), source }.into()
    }
}

impl FetchError {
    /// Whether the next try may go better without anybody changing anything.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Transfer(error) if error.is_transient())
    }
}

struct Writer<'a> {
    to: File,
    store: &'a Store,
}

/// Reads all of a body, bounded by the expected length, writes it when there is a writer, and checks its hash.
async fn receive(
    body: &mut Body,
    file: &ResolvedFile,
    mut writer: Option<&mut Writer<'_>>,
    progress: &(dyn Fn(u64) + Send + Sync),
) -> Result<(), FetchError> {
    let wrong_length = || FetchError::WrongLength { name: file.name.clone(), expected: file.bytes };
    if body.file_length.is_some_and(|length| length != file.bytes) {
        return Err(wrong_length());
    }
    let mut digest = Sha256::new();
    let mut received = 0;
    while let Some(block) = body.next().await? {
        received += block.len() as u64;
        if received > file.bytes {
            return Err(wrong_length());
        }
        digest.update(&block);
        if let Some(Writer { to, store }) = writer.as_deref_mut() {
            to.write_all(&block).await.map_err(|error| store.failed(file, error))?;
        }
        progress(received);
    }
    if let Some(Writer { to, store }) = writer {
        to.flush().await.map_err(|error| store.failed(file, error))?;
    }
    if received < file.bytes {
        return Err(wrong_length());
    }
    let found = Sha256Hex::from(<[u8; 32]>::from(digest.finalize()));
    if found == file.sha256 {
        Ok(())
    } else {
        Err(FetchError::WrongDigest { name: file.name.clone(), expected: file.sha256, found })
    }
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError { path, source }
}

//! Files that a person has on this host already: found by length and name, hashed, and referred to where they lie.
//!
//! Looked through are folders as Hugging Face's hub, Ollama and LM Studio keep them, or any others with GGUF files. Names are
//! hints; only the hash decides. Nothing in there is written to, moved or deleted.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use tandem_sources::{ResolvedFile, Sha256Hex};

use crate::error::{StoreError, at, is_full};
use crate::pieces::Cut;
use crate::progress::Progress;
use crate::record::Record;
use crate::store::{Store, StoredFile};

/// Folders inside folders, at most.
const DEEPEST: usize = 8;
/// Files and folders that are looked at in one of them, at most.
const MOST: usize = 100_000;
/// The first bytes of every GGUF file.
const MAGIC: &[u8; 4] = b"GGUF";
/// A list of digests beside files that are imported, as its makers call it.
const SUMS: &str = "SHA256SUMS";
const LONGEST_SUMS: u64 = 1 << 20;

/// A file that is there.
struct Found {
    path: PathBuf,
    bytes: u64,
}

impl Store {
    /// Uses a file again that is in the store or was referred to, and whose marks have changed, if its bytes are right.
    pub(crate) async fn believe_again(
        &self,
        file: &ResolvedFile,
        progress: &Progress,
    ) -> Result<Option<PathBuf>, StoreError> {
        let record = self.record(&file.sha256);
        let path = record.as_ref().map_or_else(|| self.whole_path(&file.sha256), |record| self.place(record));
        let right_length =
            fs::metadata(&path).is_ok_and(|there| there.is_file() && there.len() == file.bytes);
        if right_length {
            let how = self.unchanged(&file.sha256).err().map(|how| how.to_string());
            tracing::warn!(path = %path.display(), how, "a stored file is hashed again before it is used");
            match self.verify(&file.sha256, progress).await {
                Ok(()) => return Ok(Some(path)),
                Err(crate::VerifyError::Store(error)) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "a stored file can't be read");
                }
                Err(error) => tracing::warn!(%error, "a stored file is not used any more"),
            }
        }
        // What can be mended of it is, piece by piece.
        let sha256 = file.sha256;
        self.apart(move |store| store.discard(&sha256)).await?;
        Ok(None)
    }

    /// Finds a wanted file in the folders that are adopted.
    pub(crate) async fn adopt(
        &self,
        file: &ResolvedFile,
        progress: &Progress,
    ) -> Result<Option<PathBuf>, StoreError> {
        if self.options().adopt.is_empty() || file.bytes == 0 {
            return Ok(None);
        }
        let (folders, wanted) = (self.options().adopt.clone(), file.clone());
        let looking = tokio::task::spawn_blocking(move || candidates(&folders, &wanted));
        for path in looking.await.expect("looking does not panic") {
            if self.refuted(&path, file) {
                continue;
            }
            match self.hash(&path, file.bytes, file.sha256, progress).await {
                Ok((hashed, stamp)) if hashed.sha256 == file.sha256 => {
                    tracing::info!(path = %path.display(), file = file.name, "a file that is here already is used where it lies");
                    let cut = Cut::of(file.bytes);
                    let names = (&*file.name, "found on this host");
                    let reference = Some(path.clone());
                    let record = Record::new(file.sha256, cut, hashed.digests, stamp, names, reference);
                    self.apart(|store| store.remember(record)).await?;
                    return Ok(Some(path));
                }
                Ok((hashed, stamp)) => self.note_refuted(path, stamp, hashed.sha256),
                Err(error) => {
                    tracing::debug!(
                        error = &error as &dyn std::error::Error,
                        "a file that might be the wanted one can't be read"
                    );
                }
            }
        }
        Ok(None)
    }

    /// Takes in a file, or every GGUF file of a folder: hashes each, and refers to it where it lies, or with `copy` makes a copy
    /// of the store's own, which shares its blocks with the original where the file system can do that. A `SHA256SUMS`
    /// beside them is not needed; if there is one, it must agree.
    ///
    /// # Errors
    /// When there is no such file, it can't be read or copied, or a list beside it says otherwise.
    pub async fn import(
        &self,
        path: &Path,
        copy: bool,
        progress: &Progress,
    ) -> Result<Vec<StoredFile>, StoreError> {
        let path = path.to_owned();
        let looking = tokio::task::spawn_blocking(move || importable(&path));
        let found = looking.await.expect("looking does not panic")?;
        let mut imported = Vec::with_capacity(found.len());
        for Found { path, bytes } in found {
            imported.push(self.import_one(&path, bytes, copy, progress).await?);
        }
        Ok(imported)
    }

    async fn import_one(
        &self,
        path: &Path,
        bytes: u64,
        copy: bool,
        progress: &Progress,
    ) -> Result<StoredFile, StoreError> {
        // Of the name alone: what it hashes to is only known afterwards.
        let key = Sha256Hex::from(*crate::Digest::of(path.as_os_str().as_encoded_bytes()).bytes());
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let made = if copy { Some(self.copy_of(path).await?) } else { None };
        let read = made.as_ref().map_or(path, |made| made as &Path);
        let (hashed, stamp) = self.hash(read, bytes, key, progress).await?;
        if let Some(listed) = listed_beside(path, &name)?
            && listed != hashed.sha256
        {
            return Err(StoreError::Disagrees { path: path.to_owned(), found: hashed.sha256, listed });
        }
        let sha256 = hashed.sha256;
        let origin = format!("imported from {}", path.display());
        let (cut, digests) = (Cut::of(bytes), hashed.digests);
        match made {
            _ if self.path_of(&sha256).is_some() => {
                tracing::info!(path = %path.display(), %sha256, "it is here already");
            }
            None => {
                let reference = Some(path.to_owned());
                let record = Record::new(sha256, cut, digests, stamp, (&name, &origin), reference);
                self.apart(|store| store.remember(record)).await?;
            }
            Some(made) => {
                let name = name.clone();
                let placing = self.apart(move |store| {
                    store.keep(&sha256, &made, |stamp| {
                        Record::new(sha256, cut, digests, stamp, (&name, &origin), None)
                    })?;
                    // It has another name now.
                    std::mem::forget(made);
                    store.clear_partial(&sha256)
                });
                placing.await?;
            }
        }
        let stored = self.record(&sha256).map(|record| self.stored(&record));
        Ok(stored.expect("it was written down just now"))
    }

    async fn copy_of(&self, original: &Path) -> Result<tempfile::TempPath, StoreError> {
        let (original, folder) = (original.to_owned(), self.partial_folder().to_owned());
        let copying = tokio::task::spawn_blocking(move || {
            let made = tempfile::Builder::new().tempfile_in(&folder).map_err(at(&folder))?;
            let path = made.into_temp_path();
            fs::remove_file(&path).map_err(at(&path))?;
            if reflink_copy::reflink(&original, &path).is_err() {
                let mut from = File::open(&original).map_err(at(&original))?;
                let mut to = File::create(&path).map_err(at(&path))?;
                std::io::copy(&mut from, &mut to).map_err(|error| {
                    let path = if is_full(&error) { &folder } else { &original };
                    at(path)(error)
                })?;
            }
            Ok(path)
        });
        copying.await.expect("copying does not panic")
    }
}

/// Files that may be the wanted one, those whose names say so first.
fn candidates(folders: &[PathBuf], wanted: &ResolvedFile) -> Vec<PathBuf> {
    let sha256 = wanted.sha256.to_string();
    let name = wanted.name.rsplit('/').next().unwrap_or_default();
    let mut found: BTreeMap<(u8, PathBuf), ()> = BTreeMap::new();
    for folder in folders {
        for file in walk(folder).into_iter().filter(|file| file.bytes == wanted.bytes) {
            let called = file.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let rank = match &*called {
                // Hugging Face's blobs and Ollama's.
                called if called == sha256 || called.strip_prefix("sha256-") == Some(&sha256) => 0,
                called if called == name => 1,
                // Another digest: it is another file, or one that is damaged.
                called if called.trim_start_matches("sha256-").parse::<Sha256Hex>().is_ok() => continue,
                _ => 2,
            };
            // A link and what it leads to are one file.
            let Ok(path) = file.path.canonicalize() else { continue };
            found.insert((rank, path), ());
        }
    }
    let mut seen = BTreeSet::new();
    found.into_keys().map(|(_, path)| path).filter(|path| seen.insert(path.clone())).collect()
}

/// The regular files under a folder, through links to files but not to folders, so that it ends.
fn walk(folder: &Path) -> Vec<Found> {
    let mut found = Vec::new();
    let mut todo = vec![(folder.to_owned(), 0)];
    let mut left = MOST;
    while let Some((folder, depth)) = todo.pop() {
        // A folder that a person may not read, or does not have, is none to look through.
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries.flatten() {
            let Some(rest) = left.checked_sub(1) else {
                tracing::warn!(folder = %folder.display(), "there is too much to look through here");
                return found;
            };
            left = rest;
            let path = entry.path();
            match entry.file_type() {
                Ok(kind) if kind.is_dir() && depth < DEEPEST => todo.push((path, depth + 1)),
                Ok(kind) if kind.is_file() || kind.is_symlink() => {
                    if let Ok(there) = fs::metadata(&path)
                        && there.is_file()
                    {
                        found.push(Found { path, bytes: there.len() });
                    }
                }
                _ => {}
            }
        }
    }
    found
}

/// The files that an import of `path` means: itself, or all GGUF files under it.
fn importable(path: &Path) -> Result<Vec<Found>, StoreError> {
    let path = path.canonicalize().map_err(at(path))?;
    let there = fs::metadata(&path).map_err(at(&path))?;
    if there.is_file() {
        return Ok(vec![Found { path, bytes: there.len() }]);
    }
    let mut unique = BTreeMap::new();
    for Found { path, bytes } in walk(&path) {
        let mut first = [0; 4];
        let is_model = File::open(&path).and_then(|mut file| file.read_exact(&mut first)).is_ok();
        if is_model
            && first == *MAGIC
            && let Ok(canonical) = path.canonicalize()
        {
            // Called as in the folder that was named: a hub's blobs have names of their own.
            unique.entry(canonical).or_insert(Found { path, bytes });
        }
    }
    if unique.is_empty() { Err(StoreError::NoModels(path)) } else { Ok(unique.into_values().collect()) }
}

/// What a list of digests in the file's own folder says of it.
fn listed_beside(path: &Path, name: &str) -> Result<Option<Sha256Hex>, StoreError> {
    let sums = path.with_file_name(SUMS);
    let short = fs::metadata(&sums).is_ok_and(|there| there.len() <= LONGEST_SUMS);
    if !short {
        return Ok(None);
    }
    let text = fs::read_to_string(&sums).map_err(at(&sums))?;
    let mut lines = text.lines().filter_map(|line| line.split_once(' '));
    let line = lines.find(|(_, listed)| listed.trim_start_matches([' ', '*']) == name);
    Ok(line.and_then(|(sha256, _)| sha256.parse().ok()))
}

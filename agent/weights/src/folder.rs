//! The folder of a store: who has it open, of which format it is, and the files in it.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

use crate::error::{StoreError, at};
use crate::record::{BadRecord, Record};

/// The format of the folder that this release writes.
const FORMAT: u32 = 1;

/// Held while the store is open in this process.
pub(crate) fn lock(folder: &Path) -> Result<Flock<File>, StoreError> {
    let path = folder.join("LOCK");
    let file = File::create(&path).map_err(at(&path))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| match error {
        nix::errno::Errno::EWOULDBLOCK => StoreError::InUse(folder.to_owned()),
        error => at(&path)(error.into()),
    })
}

/// Writes down the format, or reads that it is one that is known.
pub(crate) fn check_format(folder: &Path) -> Result<(), StoreError> {
    let path = folder.join("FORMAT");
    match fs::read_to_string(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            fs::write(&path, format!("{FORMAT}\n")).map_err(at(&path))
        }
        Err(error) => Err(at(&path)(error)),
        // A number that a kill left out is this format's: no other release wrote it without one.
        Ok(text) => match text.trim().parse::<u32>().unwrap_or(FORMAT) {
            found @ ..=FORMAT => {
                tracing::debug!(found, "the weights folder's format");
                Ok(())
            }
            found => Err(StoreError::Newer { path, found, known: FORMAT }),
        },
    }
}

/// A record, unless it is damaged: then its file is hashed again when it is wanted.
pub(crate) fn read_record(path: &Path, name: &str) -> Result<Option<Record>, StoreError> {
    let why = match Record::read(path) {
        Ok(record) if record.sha256.to_string() == name => return Ok(Some(record)),
        Err(BadRecord::Newer(found)) => {
            return Err(StoreError::Newer { path: path.to_owned(), found, known: FORMAT });
        }
        Err(BadRecord::Io(error)) => return Err(at(path)(error)),
        Ok(_) => "it is another file's",
        Err(BadRecord::Broken) => "it is damaged",
    };
    tracing::warn!(path = %path.display(), why, "a record of a file is not used; the file is hashed again");
    fs::remove_file(path).map_err(at(path))?;
    Ok(None)
}

/// The regular files of a folder, with their names.
pub(crate) fn entries(folder: &Path) -> Result<Vec<(PathBuf, String)>, StoreError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(at(folder))? {
        let entry = entry.map_err(at(folder))?;
        found.push((entry.path(), entry.file_name().to_string_lossy().into_owned()));
    }
    Ok(found)
}

/// Brings the names of a folder's files to the disk.
pub(crate) fn sync_folder(folder: &Path) -> Result<(), StoreError> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(at(folder))
}

/// Removes a file; one that is not there is no error.
pub(crate) fn remove(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(path)(error)),
        _ => Ok(()),
    }
}

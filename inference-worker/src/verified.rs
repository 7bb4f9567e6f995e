//! Weight files that are what they should be: hashed here, or proven untouched since they were hashed on this host. And whether
//! they still are, for as long as they are mapped.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use sha2::{Digest, Sha256};
use tandem_worker_api::{FileStamp, Sha256Hex, WeightFile};

use crate::loading::LoadError;
use crate::worker::Load;

/// Bytes hashed between two words of progress.
const BLOCK: usize = 1 << 20;

/// A file, and its marks when its bytes were right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// Which.
    pub path: PathBuf,
    /// Its marks then.
    pub stamp: FileStamp,
}

/// Checks each file against its sha256, before anything parses it. A file whose marks are those that it had when it was hashed on
/// this host is not read again: a model of hundreds of gigabytes would take minutes.
///
/// # Errors
/// When a file can't be read or holds something else.
pub fn verify(files: &[WeightFile], load: &Load) -> Result<Vec<Verified>, LoadError> {
    let mut verified = Vec::with_capacity(files.len());
    let mut doubtful = Vec::new();
    for file in files {
        let stamp = FileStamp::read(&file.path).map_err(unreadable(&file.path))?;
        match file.verified.map(|then| then.difference(&stamp)) {
            Some(None) => {}
            Some(Some(why)) => {
                tracing::warn!(path = %file.path.display(), why, "a file has changed since it was verified: it is hashed");
                doubtful.push((file, stamp.bytes));
            }
            None => doubtful.push((file, stamp.bytes)),
        }
        verified.push(Verified { path: file.path.clone(), stamp });
    }
    load.total.store(doubtful.iter().map(|(_, bytes)| bytes).sum(), Ordering::Relaxed);
    for (file, _) in doubtful {
        let found = hash(&file.path, load)?;
        if found != file.sha256 {
            return Err(LoadError::Digest { path: file.path.clone(), found, expected: file.sha256 });
        }
    }
    unchanged(&verified)?;
    Ok(verified)
}

/// Whether all files are still as they were when they were verified.
///
/// # Errors
/// When one is not, or can't be looked at: what is mapped of it may be anything.
pub fn unchanged(verified: &[Verified]) -> Result<(), LoadError> {
    for Verified { path, stamp } in verified {
        let now = FileStamp::read(path).map_err(unreadable(path))?;
        if let Some(what) = stamp.difference(&now) {
            return Err(LoadError::Changed { path: path.clone(), what });
        }
    }
    Ok(())
}

/// Names the content of all files; a part of the engine's `numerics_id`.
#[must_use]
pub fn weights_digest(files: &[WeightFile]) -> String {
    let mut all = Sha256::new();
    for file in files {
        all.update(file.sha256.bytes());
    }
    Sha256Hex::from(<[u8; 32]>::from(all.finalize())).to_string()
}

fn hash(path: &Path, load: &Load) -> Result<Sha256Hex, LoadError> {
    let mut file = File::open(path).map_err(unreadable(path))?;
    let mut hash = Sha256::new();
    let mut block = vec![0; BLOCK];
    loop {
        let read = file.read(&mut block).map_err(unreadable(path))?;
        if read == 0 {
            return Ok(Sha256Hex::from(<[u8; 32]>::from(hash.finalize())));
        }
        hash.update(&block[..read]);
        load.done.fetch_add(read as u64, Ordering::Relaxed);
    }
}

pub(crate) fn unreadable(path: &Path) -> impl FnOnce(io::Error) -> LoadError {
    let path = path.to_owned();
    move |source| LoadError::Read { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(folder: &Path, content: &[u8]) -> Vec<WeightFile> {
        let path = folder.join("a.gguf");
        std::fs::write(&path, content).unwrap();
        let sha256 = Sha256Hex::from(<[u8; 32]>::from(Sha256::digest(content)));
        vec![WeightFile { path, sha256, verified: None }]
    }

    #[test]
    fn a_file_is_hashed_unless_its_marks_are_those_of_when_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let mut files = files(folder.path(), b"weights");
        let load = Load::default();
        let verified = verify(&files, &load).unwrap();
        assert_eq!(load.done.load(Ordering::Relaxed), 7);

        files[0].verified = Some(verified[0].stamp);
        let load = Load::default();
        assert_eq!(verify(&files, &load).unwrap(), verified);
        assert_eq!(load.done.load(Ordering::Relaxed), 0, "nothing was read");

        // Other bytes of the same length under the old marks' name: they are read, and found out.
        std::fs::write(&files[0].path, b"WEIGHTS").unwrap();
        assert!(matches!(unchanged(&verified), Err(LoadError::Changed { .. })));
        assert!(matches!(verify(&files, &Load::default()), Err(LoadError::Digest { .. })));
        std::fs::write(&files[0].path, b"weights").unwrap();
        let load = Load::default();
        verify(&files, &load).unwrap();
        assert_eq!(load.done.load(Ordering::Relaxed), 7, "the marks differ, so it was read");
    }

    #[test]
    fn whatever_happens_to_a_file_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let files = files(folder.path(), b"weights");
        let path = &files[0].path;
        let other = folder.path().join("other");
        type Harm = dyn Fn(&Path, &Path);
        let harms: [(&str, &Harm); 4] = [
            ("length", &|path, _| File::options().write(true).open(path).unwrap().set_len(3).unwrap()),
            ("replaced", &|path, other| {
                std::fs::write(other, b"weights").unwrap();
                std::fs::rename(other, path).unwrap();
            }),
            ("written", &|path, _| std::fs::write(path, b"WEIGHTS").unwrap()),
            ("can't be read", &|path, _| std::fs::remove_file(path).unwrap()),
        ];
        for (words, harm) in harms {
            std::fs::write(path, b"weights").unwrap();
            let verified = verify(&files, &Load::default()).unwrap();
            unchanged(&verified).unwrap();
            harm(path, &other);
            let error = unchanged(&verified).unwrap_err().to_string();
            assert!(error.contains(words) && error.contains("a.gguf"), "{words}: {error}");
        }
    }
}

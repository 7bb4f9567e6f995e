//! The data folder: where everything of this host lies, and how a file in it is replaced.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// Paths below the data folder. Holds the folder's lock: one agent at a time.
pub(crate) struct Home {
    root: PathBuf,
    _lock: File,
}

impl Home {
    pub(crate) fn open(root: &Path) -> Result<Self> {
        fs::create_dir_all(root).with_context(|| format!("{} can't be made", root.display()))?;
        fs::set_permissions(root, Permissions::from_mode(0o700))?;
        let lock = File::create(root.join("agent.lock"))
            .with_context(|| format!("{} can't be written", root.display()))?;
        if lock.try_lock().is_err() {
            bail!(
                "another agent runs with {}: end it first, or give --data-dir another folder",
                root.display()
            );
        }
        let home = Self { root: root.to_owned(), _lock: lock };
        fs::create_dir_all(home.runner())?;
        fs::set_permissions(home.runner(), Permissions::from_mode(0o700))?;
        Ok(home)
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn identity(&self) -> PathBuf {
        self.root.join("identity")
    }

    pub(crate) fn ledger(&self) -> PathBuf {
        self.root.join("ledger.json")
    }

    /// The spec that this host obeys.
    pub(crate) fn spec(&self) -> PathBuf {
        self.root.join("spec.json")
    }

    pub(crate) fn weights(&self) -> PathBuf {
        self.root.join("weights")
    }

    pub(crate) fn runner(&self) -> PathBuf {
        self.root.join("runner")
    }

    pub(crate) fn runner_socket(&self) -> PathBuf {
        self.runner().join("runner.sock")
    }

    pub(crate) fn gateway(&self) -> PathBuf {
        self.root.join("gateway")
    }

    pub(crate) fn workload(&self, id: &str) -> WorkloadHome {
        WorkloadHome(self.root.join("workloads").join(id))
    }

    /// Ids of the workloads that have a folder.
    pub(crate) fn workloads(&self) -> Vec<String> {
        let entries = fs::read_dir(self.root.join("workloads")).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    }
}

/// One workload's folder.
pub(crate) struct WorkloadHome(PathBuf);

impl WorkloadHome {
    pub(crate) fn root(&self) -> &Path {
        &self.0
    }

    pub(crate) fn spec(&self) -> PathBuf {
        self.0.join("spec.json")
    }

    pub(crate) fn endpoint(&self) -> PathBuf {
        self.0.join("endpoint.json")
    }

    pub(crate) fn identity(&self) -> PathBuf {
        self.0.join("identity")
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.0.join("log")
    }

    /// Milliseconds that its last start took until it served.
    pub(crate) fn last_start(&self) -> PathBuf {
        self.0.join("last-start.json")
    }
}

/// Reads a file; `None` when there is none.
pub(crate) fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes beside, syncs, renames, syncs the folder: after a crash there are the old bytes or the new, never half, and
/// once this has returned there are the new.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_one_agent() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(dir.path()).unwrap();
        assert!(Home::open(dir.path()).is_err_and(|error| error.to_string().contains("another agent")));
        drop(home);
        Home::open(dir.path()).unwrap();
    }

    #[test]
    fn replacing_leaves_nothing_beside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("inner/file");
        assert_eq!(read(&path).unwrap(), None);
        replace(&path, b"one").unwrap();
        replace(&path, b"two").unwrap();
        assert_eq!(read(&path).unwrap().unwrap(), b"two");
        assert_eq!(fs::read_dir(dir.path().join("inner")).unwrap().count(), 1);
    }
}

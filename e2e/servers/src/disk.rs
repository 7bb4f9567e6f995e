//! A disk whose writes can be made to stall: an ext4 in a file, frozen by the kernel as a stuck controller would leave it.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

/// Enough for a small etcd, whose log alone is 64 MB ahead; sparse.
const BYTES: u64 = 512 << 20;

/// A mounted disk; dropping it lets it go on and unmounts it. Linux only, and for root.
pub(crate) struct Disk {
    at: PathBuf,
}

impl Disk {
    /// Makes one and mounts it at `at`, which is made too; its bytes are in a file beside.
    pub(crate) fn mount(at: &Path) -> Result<Self> {
        fs::create_dir_all(at).context("the disk has no place")?;
        let image = at.with_extension("img");
        File::create(&image)
            .and_then(|file| file.set_len(BYTES))
            .with_context(|| format!("{} can't be made", image.display()))?;
        run("mkfs.ext4", ["-q".as_ref(), "-m0".as_ref(), image.as_os_str()])?;
        run("mount", ["-o".as_ref(), "loop".as_ref(), image.as_os_str(), at.as_os_str()])?;
        Ok(Self { at: at.to_owned() })
    }

    /// From now on writes and syncs hang, and so does whoever makes them, until [`Disk::go_on`].
    pub(crate) fn stall(&self) -> Result<()> {
        run("fsfreeze", ["--freeze".as_ref(), self.at.as_os_str()])
    }

    /// What hung is done.
    pub(crate) fn go_on(&self) -> Result<()> {
        run("fsfreeze", ["--unfreeze".as_ref(), self.at.as_os_str()])
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // It says so if it was not stalled, which is no failure here.
        drop(self.go_on());
        if let Err(error) = run("umount", ["--lazy".as_ref(), self.at.as_os_str()]) {
            eprintln!("{} stays mounted: {error:#}", self.at.display());
        }
    }
}

fn run<'a>(program: &str, arguments: impl IntoIterator<Item = &'a OsStr>) -> Result<()> {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{program} can't be started"))?;
    ensure!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

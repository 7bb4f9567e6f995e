//! Where the programs under test are.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// The folder that Cargo built the programs into.
#[derive(Clone, Debug)]
pub struct Programs {
    dir: PathBuf,
}

impl Programs {
    /// Names of everything a site starts.
    pub const ALL: [&str; 5] =
        ["tandem-operator", "tandem-agent", "inference-worker", "tandem-gateway", "tandem"];

    /// `$TANDEM_PROGRAMS`, else beside the running executable (or one folder up, for tests).
    ///
    /// # Errors
    /// When one is missing, with the command that builds them.
    pub fn find() -> Result<Self> {
        let dir = match env::var_os("TANDEM_PROGRAMS") {
            Some(dir) => dir.into(),
            None => beside_this_executable()?,
        };
        for name in Self::ALL {
            ensure!(
                dir.join(name).is_file(),
                "{name} is not in {}: run `cargo build --workspace --bins` first",
                dir.display()
            );
        }
        Ok(Self { dir })
    }

    /// Programs in this folder.
    #[must_use]
    pub fn in_dir(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// Path of one program.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

fn beside_this_executable() -> Result<PathBuf> {
    let own = env::current_exe().context("this program can't tell where it is")?;
    let dir = own.parent().context("this program is in no folder")?;
    Ok(if dir.ends_with("deps") { dir.parent().unwrap_or(dir).to_owned() } else { dir.to_owned() })
}

//! Writes the chart as plain YAML and as a kustomize base; a test in tandem-servers checks that they are fresh.

use std::fs;

use anyhow::{Context, Result};

use crate::cache;

pub(crate) fn write() -> Result<()> {
    for (name, text) in tandem_servers::manifests::generated_files()? {
        let path = cache::workspace().join(&name);
        let dir = path.parent().context("a file is in a folder")?;
        fs::create_dir_all(dir).with_context(|| format!("{} can't be made", dir.display()))?;
        fs::write(&path, text).with_context(|| format!("{name} can't be written"))?;
        println!("wrote {name}");
    }
    Ok(())
}

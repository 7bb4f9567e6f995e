//! Writes the generated CustomResourceDefinitions; a test in tandem-crds checks that they are fresh.

use std::fs;

use anyhow::{Context, Result};

use crate::cache;

pub(crate) fn write() -> Result<()> {
    for (name, text) in tandem_crds::generated_files() {
        let path = cache::workspace().join("crds").join(name);
        fs::write(&path, &text).with_context(|| format!("{} can't be written", path.display()))?;
        println!("wrote crds/{name}");
        // The chart's own, as charts can't reach outside of their folder.
        let copy =
            cache::workspace().join("charts/tandem/files/crds").join(path.file_name().unwrap_or_default());
        fs::write(&copy, text).with_context(|| format!("{} can't be written", copy.display()))?;
    }
    Ok(())
}

//! Headers of GGUF files that are here. Nothing but headers is read, so files may be sparse, or still arriving.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use tandem_crds::InferenceDeploymentSpec;
use tandem_gguf::{GgufError, Header, MAX_HEADER_BYTES, ShardSet};
use tandem_plan::capacity::ModelFacts;

/// What is read first.
const FIRST: u64 = 1 << 20;

/// The model in these files and folders.
pub(crate) fn facts(paths: &[PathBuf], spec: &InferenceDeploymentSpec) -> Result<ModelFacts> {
    let mut files = Vec::new();
    for path in paths {
        if path.is_dir() {
            let unreadable = || format!("{} can't be read", path.display());
            for entry in std::fs::read_dir(path).with_context(unreadable)? {
                let file = entry.with_context(unreadable)?.path();
                if file.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf")) {
                    files.push(file);
                }
            }
        } else {
            files.push(path.clone());
        }
    }
    files.sort();
    if files.is_empty() {
        bail!("there is no *.gguf in what --model-headers names");
    }
    let headers = files.iter().map(|file| header(file)).collect::<Result<Vec<_>>>()?;
    let headers = ShardSet::assemble(headers)
        .context("the files of --model-headers are not one model: name one's alone")?;
    Ok(ModelFacts::from_headers(&spec.model.source, &spec.quant, headers, Vec::new()))
}

fn header(path: &Path) -> Result<Header> {
    let unreadable = || format!("{} can't be read", path.display());
    let mut file = File::open(path).with_context(unreadable)?;
    let length = file.metadata().with_context(unreadable)?.len();
    let mut prefix = Vec::new();
    let mut wanted = FIRST;
    loop {
        let more = wanted.min(length).min(MAX_HEADER_BYTES).saturating_sub(prefix.len() as u64);
        let read = file.by_ref().take(more).read_to_end(&mut prefix).with_context(unreadable)?;
        match Header::parse(&prefix, length) {
            Err(GgufError::Incomplete { needed }) if read > 0 => wanted = needed.max(2 * wanted),
            parsed => {
                return parsed
                    .with_context(|| format!("{} is no GGUF file that can be used", path.display()));
            }
        }
    }
}

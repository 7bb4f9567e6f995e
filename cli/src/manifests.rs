//! Manifests on their way in: from files, folders and standard input, checked before anything is sent.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::Deserialize as _;
use serde_json::Value;
use tandem_control_api::ObjectRef;
use tandem_crds::manifest::{self, MAX_BYTES, Manifest};

use crate::object::Kind;

/// One document of a file.
pub(crate) struct Document {
    /// Where it stands, as people named it.
    pub(crate) file: String,
    /// What it says, or why it can't be used: a sentence with document, path and way out.
    pub(crate) read: Result<Manifest, String>,
}

impl Document {
    /// The object that it means; one that names no namespace is of the command's.
    pub(crate) fn reference(&self, manifest: &Manifest, namespace: &str) -> ObjectRef {
        let kind = Kind::from(manifest.kind);
        let namespace = match &manifest.namespace {
            _ if !kind.namespaced() => "",
            Some(namespace) => namespace,
            None => namespace,
        };
        ObjectRef {
            kind: kind.name().to_owned(),
            namespace: namespace.to_owned(),
            name: manifest.name.clone(),
        }
    }
}

/// Reads all that was named, before anything is sent.
///
/// # Errors
/// When a file can't be read. What it says may still be wrong: that is told document by document.
pub(crate) fn read(named: &[String]) -> Result<Vec<Document>> {
    let texts = texts(named)?;
    Ok(texts.iter().flat_map(|(place, text)| parse(place, text)).collect())
}

/// The text of each file that was named, with where it stands.
///
/// # Errors
/// When a file can't be read.
pub(crate) fn texts(named: &[String]) -> Result<Vec<(String, String)>> {
    let mut texts = Vec::new();
    for named in named {
        if named == "-" {
            texts.push(("standard input".to_owned(), text(std::io::stdin(), "standard input")?));
            continue;
        }
        let path = Path::new(named);
        let files = if path.is_dir() { folder(path)? } else { vec![path.to_owned()] };
        for file in files {
            let place = file.display().to_string();
            let opened = fs::File::open(&file).with_context(|| format!("{place} can't be read"))?;
            let text = text(opened, &place)?;
            texts.push((place, text));
        }
    }
    Ok(texts)
}

/// The documents of a text, before anything is checked: for commands that read what `apply` would not take.
///
/// # Errors
/// When it is no YAML, or says more than JSON can.
pub(crate) fn values(text: &str) -> Result<Vec<Value>> {
    if text.len() > MAX_BYTES {
        bail!("it is larger than {MAX_BYTES} bytes: split it");
    }
    let mut values = Vec::new();
    for document in serde_yaml::Deserializer::from_str(text) {
        let value = serde_yaml::Value::deserialize(document).context("it is no YAML")?;
        if !value.is_null() {
            values.push(serde_json::to_value(value).context("it says more than JSON can")?);
        }
    }
    Ok(values)
}

fn folder(path: &Path) -> Result<Vec<PathBuf>> {
    let unreadable = || format!("{} can't be read", path.display());
    let mut files = Vec::new();
    for entry in fs::read_dir(path).with_context(unreadable)? {
        let file = entry.with_context(unreadable)?.path();
        if file.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json") && file.is_file() {
            files.push(file);
        }
    }
    if files.is_empty() {
        bail!("{} holds no *.yaml, *.yml or *.json", path.display());
    }
    files.sort();
    Ok(files)
}

/// At most a byte more than a manifest may have, so that the refusal can say so.
fn text(source: impl Read, place: &str) -> Result<String> {
    let mut text = String::new();
    let read = source.take(MAX_BYTES as u64 + 1).read_to_string(&mut text);
    read.with_context(|| format!("{place} can't be read"))?;
    Ok(text)
}

fn parse(file: &str, text: &str) -> Vec<Document> {
    let document = |read| Document { file: file.to_owned(), read };
    match manifest::documents(text) {
        Err(error) => vec![document(Err(error.to_string()))],
        Ok(read) if read.is_empty() => vec![document(Err("there is no object in it".to_owned()))],
        Ok(read) => read.into_iter().map(|read| document(read.map_err(|error| error.to_string()))).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: &str =
        "{apiVersion: inference.tandem.dev/v1alpha1, kind: InferenceHost, metadata: {name: mac-a}}";

    #[test]
    fn a_document_that_is_refused_names_its_number_and_path() {
        let documents = parse("x.yaml", &format!("{HOST}\n---\n{}\n", HOST.replace("name:", "nmae:")));
        assert_eq!(documents[0].read.as_ref().unwrap().name, "mac-a");
        let sentence = documents[1].read.as_ref().unwrap_err();
        assert!(sentence.contains("document 2") && sentence.contains("metadata.nmae"), "{sentence}");
    }

    #[test]
    fn nothing_and_too_much_are_refused() {
        for (text, part) in [("", "no object"), ("---\n# nothing\n", "no object"), ("a: [1,\nb: 2", "line")] {
            let documents = parse("x.yaml", text);
            let sentence = documents[0].read.as_ref().unwrap_err();
            assert!(sentence.contains(part), "{text:?}: {sentence}");
        }
        let documents = parse("x.yaml", &"#".repeat(MAX_BYTES + 1));
        assert!(documents[0].read.as_ref().unwrap_err().contains("split it"));
    }

    #[test]
    fn only_deployments_have_a_namespace() {
        let documents = parse("x.yaml", HOST);
        let host = documents[0].read.as_ref().unwrap();
        assert_eq!(documents[0].reference(host, "llm").namespace, "");
    }
}

//! Models in a folder on disk.
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

use std::fs;
use std::path::Path;

use sha2::{Digest, Sha256};
use tandem_gguf::{GgmlType, StringArray, Writer};
use tandem_sources::{Access, ListedFile, ResolveError, Resolved, Source, TransferError, resolve};
use tempfile::TempDir;

/// A file of one tensor, whose bytes are all `fill`.
fn gguf(fill: u8) -> Vec<u8> {
    let mut writer = Writer::new();
    writer.set("general.architecture", "llama").tensor("t", &[4], GgmlType::F32, vec![fill; 16]);
    writer.finish().unwrap()
}

fn folder(files: &[(&str, &[u8])]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut sums = String::new();
    for (name, bytes) in files {
        fs::create_dir_all(dir.path().join(name).parent().unwrap()).unwrap();
        fs::write(dir.path().join(name), bytes).unwrap();
        sums.push_str(&format!("{}  {name}\n", hex::encode(Sha256::digest(bytes))));
    }
    fs::write(dir.path().join("SHA256SUMS"), sums).unwrap();
    dir
}

fn source(path: &Path) -> Source {
    format!("file://{}", path.display()).parse().unwrap()
}

async fn found(path: &Path, quant: &str) -> Result<Resolved, ResolveError> {
    resolve(&source(path), quant, &[], None, &Access::default()).await
}

#[tokio::test]
async fn revisions_are_of_content_and_not_of_place() {
    let (x, y) = (gguf(1), gguf(2));
    let (a, b) = (folder(&[("m-Q8_0.gguf", &x)]), folder(&[("m-Q8_0.gguf", &x), ("m-Q4_0.gguf", &y)]));
    let revision = async |path: &Path, quant: &str| found(path, quant).await.unwrap().revision;
    assert_eq!(revision(a.path(), "Q8_0").await, revision(b.path(), "Q8_0").await);
    assert_ne!(revision(b.path(), "Q8_0").await, revision(b.path(), "Q4_0").await);
    assert_eq!(revision(&a.path().join("m-Q8_0.gguf"), "").await, revision(a.path(), "Q8_0").await);
}

#[tokio::test]
async fn a_header_larger_than_the_first_request_is_read_in_steps() {
    let mut writer = Writer::new();
    let words: StringArray = (0..200_000).map(|word| format!("word number {word}")).collect();
    writer.set("tokenizer.ggml.tokens", words).tensor("t", &[4], GgmlType::F32, vec![0; 16]);
    let bytes = writer.finish().unwrap();
    assert!(bytes.len() > 3 << 20, "{} bytes", bytes.len());
    let dir = folder(&[("m-Q8_0.gguf", &bytes)]);
    let resolved = found(dir.path(), "Q8_0").await.unwrap();
    assert_eq!(resolved.headers[0], tandem_gguf::Header::parse(&bytes, bytes.len() as u64).unwrap());
    assert_eq!(resolved.files[0].bytes, bytes.len() as u64);
}

#[tokio::test]
async fn shards_that_are_all_header_are_refused() {
    // A thousand shards, one of which claims a string that fills its megabyte.
    let mut writer = Writer::new();
    writer.set("general.name", "x".repeat(1 << 20)).tensor("t", &[4], GgmlType::F32, vec![0; 16]);
    let (small, large) = (gguf(1), writer.finish().unwrap());
    let names: Vec<String> = (1..=1000).map(|n| format!("m-Q8_0-{n:05}-of-01000.gguf")).collect();
    let files: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), &small[..])).collect();
    let dir = folder(&files);
    assert_eq!(found(dir.path(), "Q8_0").await.unwrap().headers.len(), 1000);
    fs::write(dir.path().join(&names[500]), large).unwrap();
    let error = found(dir.path(), "Q8_0").await.unwrap_err();
    assert!(matches!(&error, ResolveError::HugeHeader { name, .. } if *name == names[500]), "{error:?}");
}

#[tokio::test]
async fn shards_keep_their_order() {
    let names = ["Q8_0/m-Q8_0-00001-of-00002.gguf", "Q8_0/m-Q8_0-00002-of-00002.gguf"];
    let dir = folder(&[(names[1], &gguf(2)), (names[0], &gguf(1))]);
    let model = found(dir.path(), "Q8_0").await.unwrap();
    assert!(model.files.iter().map(|file| file.name.as_str()).eq(names));
    assert_eq!(model.files[0].sha256, <[u8; 32]>::from(Sha256::digest(gguf(1))).into());
    assert_eq!(model.headers.len(), 2);
}

#[tokio::test]
async fn a_list_in_the_manifest_needs_no_sums_and_a_folder_without_them_says_how_to_make_them() {
    let dir = folder(&[("m-Q8_0.gguf", &gguf(1))]);
    let file = found(dir.path(), "Q8_0").await.unwrap().files.remove(0);
    fs::remove_file(dir.path().join("SHA256SUMS")).unwrap();
    let error = found(dir.path(), "Q8_0").await.unwrap_err();
    assert!(error.to_string().contains("sha256sum *.gguf > SHA256SUMS"), "{error}");
    let listed = [ListedFile { name: file.name.clone(), sha256: file.sha256 }];
    let model = resolve(&source(dir.path()), "whatever", &listed, None, &Access::default()).await.unwrap();
    assert_eq!(model.files, [file]);
}

#[tokio::test]
async fn a_folder_that_is_not_there_is_told_from_one_without_sums() {
    let dir = folder(&[]);
    let error = found(&dir.path().join("gone"), "Q8_0").await.unwrap_err();
    assert!(error.to_string().contains("does not exist"), "{error}");
}

#[tokio::test]
async fn what_is_listed_and_not_there_is_named() {
    let dir = folder(&[("m-Q8_0.gguf", &gguf(1))]);
    fs::remove_file(dir.path().join("m-Q8_0.gguf")).unwrap();
    let error = found(dir.path(), "Q8_0").await.unwrap_err();
    assert!(error.to_string().contains("m-Q8_0.gguf` does not exist"), "{error}");
    fs::create_dir(dir.path().join("m-Q8_0.gguf")).unwrap();
    let error = found(dir.path(), "Q8_0").await.unwrap_err();
    assert!(matches!(error, ResolveError::Transfer(TransferError::NotAFile(_))), "{error}");
}

#[tokio::test]
async fn what_is_no_gguf_file_is_named() {
    let half = gguf(1);
    for bytes in [&b""[..], b"no", b"<html>not here</html>", &half[..half.len() - 1], &half[..30]] {
        let dir = folder(&[("m-Q8_0.gguf", bytes)]);
        let error = found(dir.path(), "Q8_0").await.unwrap_err();
        assert!(matches!(&error, ResolveError::Header { name, .. } if name == "m-Q8_0.gguf"), "{error:?}");
    }
}

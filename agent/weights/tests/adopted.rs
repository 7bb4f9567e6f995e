//! Files that other programs keep on this host: used where they lie, not copied, and never touched.
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

mod cluster;

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use cluster::{Host, NAME, Site};
use tandem_hub::{Door, Fault};
use tandem_weights::{FetchOptions, Fetcher, FileState, Store, StoreOptions};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

/// Puts a file where a program would, and says by which path it is found and where its bytes are.
type Layout = fn(&Path, &str, &[u8]) -> PathBuf;

fn hugging_face(cache: &Path, sha256: &str, bytes: &[u8]) -> PathBuf {
    let model = cache.join("models--owner--tiny");
    let snapshot = model.join("snapshots").join("0123456789abcdef0123456789abcdef01234567");
    fs::create_dir_all(model.join("blobs")).unwrap();
    fs::create_dir_all(&snapshot).unwrap();
    let blob = model.join("blobs").join(sha256);
    fs::write(&blob, bytes).unwrap();
    symlink(Path::new("../../blobs").join(sha256), snapshot.join(NAME)).unwrap();
    blob
}

fn ollama(models: &Path, sha256: &str, bytes: &[u8]) -> PathBuf {
    fs::create_dir_all(models.join("blobs")).unwrap();
    let blob = models.join("blobs").join(format!("sha256-{sha256}"));
    fs::write(&blob, bytes).unwrap();
    blob
}

fn lm_studio(models: &Path, _sha256: &str, bytes: &[u8]) -> PathBuf {
    let folder = models.join("owner").join("tiny-GGUF");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join(NAME), bytes).unwrap();
    folder.join(NAME)
}

fn by_hand(folder: &Path, _sha256: &str, bytes: &[u8]) -> PathBuf {
    fs::write(folder.join("my favourite.gguf"), bytes).unwrap();
    folder.join("my favourite.gguf")
}

async fn host(site: &Site, home: &TempDir, adopt: &Path) -> Host {
    let options = StoreOptions { adopt: vec![adopt.to_owned()], ..StoreOptions::default() };
    let store = Store::open(home.path(), options).unwrap();
    let fetcher = Fetcher::new(store.clone(), FetchOptions::default());
    Host { store, fetcher, ..site.host("host-a").await }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_other_programs_have_is_used_where_it_lies() {
    let layouts: [(&str, Layout); 4] =
        [("hub cache", hugging_face), ("ollama", ollama), ("lm studio", lm_studio), ("by hand", by_hand)];
    for (name, layout) in layouts {
        let site = Site::start(2 * MIB, None).await;
        site.hub.always(Door::Web, NAME, Fault::Status(404));
        let (theirs, home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let original = layout(theirs.path(), &site.file.sha256.to_string(), &site.bytes);
        let before = fs::metadata(&original).unwrap();
        let host = host(&site, &home, theirs.path()).await;
        assert!(host.fetched().await.unwrap() == site.bytes, "{name}");
        let path = host.store.path_of(&site.file.sha256).unwrap();
        let now = fs::metadata(&path).unwrap();
        assert_eq!(
            (now.dev(), now.ino(), now.nlink()),
            (before.dev(), before.ino(), before.nlink()),
            "{name}"
        );
        assert_eq!(
            (now.mtime_nsec(), now.ctime_nsec()),
            (before.mtime_nsec(), before.ctime_nsec()),
            "{name}"
        );
        // Nothing of the store's own: no bytes, no blocks.
        assert_eq!(host.store.used_bytes().unwrap(), 0, "{name}");
        let blocks: u64 = blocks_of(home.path());
        println!("{name}: {} blocks there, {blocks} here", now.blocks());
        assert!(blocks < now.blocks() / 4, "{name}: {blocks}");
        let listed = host.store.list().unwrap();
        assert!(listed[0].referred && listed[0].state == FileState::Verified, "{name}: {listed:?}");

        // Its owner changes it: it is said why it is not used, and it is fetched.
        let mut changed = site.bytes.clone();
        changed[5] ^= 1;
        fs::write(&original, &changed).unwrap();
        assert!(!host.store.has(&site.file), "{name}");
        let FileState::Changed(why) = host.store.list().unwrap()[0].state.clone() else { panic!("{name}") };
        println!("{name}: {why}");
        site.hub.behave();
        assert!(host.fetched().await.unwrap() == site.bytes, "{name}");
        assert!(!host.store.list().unwrap()[0].referred, "{name}");
        assert!(fs::read(&original).unwrap() == changed, "{name}");

        // And what is removed is the store's own, never theirs.
        host.store.remove(&site.file.sha256).unwrap();
        assert!(fs::read(&original).unwrap() == changed && host.store.list().unwrap().is_empty(), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reference_is_forgotten_without_its_file_and_one_that_is_gone_is_fetched() {
    let site = Site::start(2 * MIB, None).await;
    let (theirs, home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let original = lm_studio(theirs.path(), "", &site.bytes);
    let host = host(&site, &home, theirs.path()).await;
    host.fetched().await.unwrap();
    assert_eq!(site.upstream(), 0);
    host.store.remove(&site.file.sha256).unwrap();
    assert!(original.exists() && !host.store.has(&site.file));
    host.fetched().await.unwrap();
    assert_eq!(site.upstream(), 0);
    fs::remove_file(&original).unwrap();
    assert!(!host.store.has(&site.file));
    assert!(host.fetched().await.unwrap() == site.bytes);
    assert_eq!(site.upstream(), site.file.bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_the_same_length_and_name_is_no_match() {
    let site = Site::start(2 * MIB, None).await;
    let (theirs, home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let other: Vec<u8> = site.bytes.iter().map(|byte| !byte).collect();
    lm_studio(theirs.path(), "", &other);
    // Under the right digest, which is wrong.
    ollama(theirs.path(), &site.file.sha256.to_string(), &other);
    let host = host(&site, &home, theirs.path()).await;
    assert!(host.fetched().await.unwrap() == site.bytes);
    assert_eq!(site.upstream(), site.file.bytes);
}

fn blocks_of(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries
        .map(|path| if path.is_dir() { blocks_of(&path) } else { fs::metadata(&path).unwrap().blocks() })
        .sum()
}

//! Weights from a folder on disk, and the store that holds them.
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

use std::fs;
use std::path::Path;
use std::sync::Mutex;

use sha2::{Digest, Sha256};
use tandem_sources::{Access, ResolvedFile, Sha256Hex, Source};
use tandem_weights::{FetchError, Store, VerifyError};
use tempfile::TempDir;

const NAME: &str = "m-Q8_0.gguf";

/// More than one block of reading.
fn bytes() -> Vec<u8> {
    (0..700_000_u32).flat_map(u32::to_le_bytes).collect()
}

fn folder() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(NAME), bytes()).unwrap();
    dir
}

fn source(path: &Path) -> Source {
    format!("file://{}", path.display()).parse().unwrap()
}

fn one() -> ResolvedFile {
    let sha256 = <[u8; 32]>::from(Sha256::digest(bytes())).into();
    ResolvedFile { name: NAME.to_owned(), sha256, bytes: bytes().len() as u64 }
}

#[tokio::test]
async fn a_fetched_file_is_whole_private_and_reported() {
    let (dir, home) = (folder(), tempfile::tempdir().unwrap());
    let file = one();
    let store = Store::open(home.path()).unwrap();
    assert!(!store.has(&file));
    let seen = Mutex::new(Vec::new());
    let note = |done| seen.lock().unwrap().push(done);
    let path = store.fetch(&source(dir.path()), &file, &Access::default(), &note).await.unwrap();
    assert_eq!(path, store.path_of(&file.sha256));
    assert_eq!(fs::read(&path).unwrap(), bytes());
    assert!(store.has(&file));
    store.verify(&file.sha256).await.unwrap();
    let heard = seen.lock().unwrap().clone();
    assert_eq!((heard.first(), heard.last()), (Some(&0), Some(&file.bytes)));
    // The original may go: the store has its own.
    fs::write(dir.path().join(NAME), b"changed").unwrap();
    store.verify(&file.sha256).await.unwrap();
    store.fetch(&source(dir.path()), &file, &Access::default(), &note).await.unwrap();
}

#[tokio::test]
async fn a_flipped_byte_is_noticed_and_cured() {
    let (dir, home) = (folder(), tempfile::tempdir().unwrap());
    let file = one();
    let store = Store::open(home.path()).unwrap();
    let path = store.fetch(&source(dir.path()), &file, &Access::default(), &|_| {}).await.unwrap();
    let mut wrong = bytes();
    wrong[2_000_000] ^= 0x10;
    fs::remove_file(&path).unwrap();
    fs::write(&path, wrong).unwrap();
    assert!(matches!(store.verify(&file.sha256).await, Err(VerifyError::Damaged { .. })));
    store.discard(&file.sha256).unwrap();
    store.discard(&file.sha256).unwrap();
    store.fetch(&source(dir.path()), &file, &Access::default(), &|_| {}).await.unwrap();
    store.verify(&file.sha256).await.unwrap();
    assert!(matches!(store.verify(&Sha256Hex::from([0; 32])).await, Err(VerifyError::Transfer(_))));
}

#[tokio::test]
async fn a_source_that_changed_is_refused_and_leaves_nothing() {
    let (dir, home) = (folder(), tempfile::tempdir().unwrap());
    let file = one();
    let store = Store::open(home.path()).unwrap();
    let mut wrong = bytes();
    wrong[0] ^= 1;
    for (now, expected) in [(wrong, "instead of"), (b"short".to_vec(), "bytes long")] {
        fs::write(dir.path().join(NAME), now).unwrap();
        let error = store.fetch(&source(dir.path()), &file, &Access::default(), &|_| {}).await.unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
    assert!(!store.has(&file));
    assert_eq!(fs::read_dir(home.path().join("partial")).unwrap().count(), 0);
    let outside = ResolvedFile { name: "../../etc/passwd".to_owned(), ..file };
    let error = store.fetch(&source(dir.path()), &outside, &Access::default(), &|_| {}).await;
    assert!(matches!(error, Err(FetchError::Outside(_))));
}

#[tokio::test]
async fn what_a_kill_left_half_is_cleared_away() {
    let (dir, home) = (folder(), tempfile::tempdir().unwrap());
    let file = one();
    drop(Store::open(home.path()).unwrap());
    fs::write(home.path().join("partial/.tmpHalf"), b"half").unwrap();
    // Half a file under the right name, as a file system without journal may leave it.
    fs::write(home.path().join("sha256").join(file.sha256.to_string()), b"half").unwrap();
    let store = Store::open(home.path()).unwrap();
    assert_eq!(fs::read_dir(home.path().join("partial")).unwrap().count(), 0);
    assert!(!store.has(&file));
    store.fetch(&source(dir.path()), &file, &Access::default(), &|_| {}).await.unwrap();
    store.verify(&file.sha256).await.unwrap();
}

/// Mounts a small tmpfs, which takes root; without, it says so and passes.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_full_disk_is_a_sentence_and_leaves_nothing_as_root() {
    use nix::mount::{MsFlags, mount, umount};
    let (dir, home) = (folder(), tempfile::tempdir().unwrap());
    let tmpfs: Option<&str> = Some("tmpfs");
    if let Err(error) = mount(tmpfs, home.path(), tmpfs, MsFlags::empty(), Some("size=1m")) {
        eprintln!("skipped: no tmpfs can be mounted here ({error})");
        return;
    }
    let file = one();
    let store = Store::open(home.path()).unwrap();
    let error = store.fetch(&source(dir.path()), &file, &Access::default(), &|_| {}).await.unwrap_err();
    let left = fs::read_dir(home.path().join("partial")).unwrap().count();
    umount(home.path()).unwrap();
    assert!(matches!(error, FetchError::DiskFull { .. }), "{error:?}");
    assert_eq!(left, 0);
}

//! Weights from a folder on disk, and the store that holds them.
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use tandem_sources::{Access, ResolvedFile, Sha256Hex, Source};
use tandem_weights::{
    Changed, FetchError, FetchOptions, Fetcher, FileState, Order, Progress, Store, StoreOptions, VerifyError,
};
use tempfile::TempDir;
use tokio::sync::watch;

const NAME: &str = "m-Q8_0.gguf";

/// More than one block of reading, and more than one piece.
fn bytes() -> Vec<u8> {
    (0..700_000_u32).flat_map(u32::to_le_bytes).collect()
}

fn folder() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(NAME), bytes()).unwrap();
    dir
}

fn one() -> ResolvedFile {
    let sha256 = <[u8; 32]>::from(Sha256::digest(bytes())).into();
    ResolvedFile { name: NAME.to_owned(), sha256, bytes: bytes().len() as u64 }
}

fn open(home: &Path) -> Store {
    Store::open(home, StoreOptions::default()).unwrap()
}

async fn fetch(
    store: &Store,
    folder: &Path,
    file: &ResolvedFile,
    progress: &Progress,
) -> Result<PathBuf, FetchError> {
    let source: Source = format!("file://{}", folder.display()).parse().unwrap();
    let order = Order {
        file: file.clone(),
        source,
        credential: None,
        access: Access::default(),
        peers: watch::channel(Vec::new()).1,
        own_host: "host-a".to_owned(),
    };
    Fetcher::new(store.clone(), FetchOptions::default()).fetch(&order, progress).await
}

fn partial(home: &Path) -> usize {
    fs::read_dir(home.join("partial")).unwrap().count()
}

/// Writes other bytes of the same length into a file that only its owner may read.
fn damage(path: &Path) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    let mut wrong = fs::read(path).unwrap();
    wrong[2_000_000] ^= 0x10;
    fs::write(path, wrong).unwrap();
}

#[tokio::test]
async fn a_fetched_file_is_whole_private_and_reported() {
    let (dir, home) = (folder(), tempfile::tempdir().unwrap());
    let file = one();
    let store = open(home.path());
    assert!(!store.has(&file));
    let progress = Progress::new();
    progress.expect(std::slice::from_ref(&file));
    assert_eq!((progress.done(), progress.total()), (0, file.bytes));
    let path = fetch(&store, dir.path(), &file, &progress).await.unwrap();
    assert_eq!(Some(&path), store.path_of(&file.sha256).as_ref());
    assert_eq!(fs::read(&path).unwrap(), bytes());
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o077, 0);
    assert!(store.has(&file));
    assert_eq!(progress.done(), file.bytes);
    store.verify(&file.sha256, &Progress::new()).await.unwrap();
    // The original may go: the store has its own.
    fs::write(dir.path().join(NAME), b"changed").unwrap();
    fetch(&store, dir.path(), &file, &progress).await.unwrap();
    let listed = store.list().unwrap();
    assert_eq!((listed.len(), &listed[0].state, &*listed[0].name), (1, &FileState::Verified, NAME));
    store.remove(&file.sha256).unwrap();
    store.remove(&file.sha256).unwrap();
    assert!(store.list().unwrap().is_empty() && !path.exists());
}

#[tokio::test]
async fn a_flipped_byte_is_noticed_at_once_and_mended_piece_by_piece() {
    let (dir, home) = (folder(), tempfile::tempdir().unwrap());
    let file = one();
    let store = open(home.path());
    let path = fetch(&store, dir.path(), &file, &Progress::new()).await.unwrap();
    damage(&path);
    assert!(matches!(store.unchanged(&file.sha256), Err(Changed::Differs { .. })));
    assert!(!store.has(&file) && store.path_of(&file.sha256).is_none());
    let damaged = store.verify(&file.sha256, &Progress::new()).await;
    assert!(matches!(damaged, Err(VerifyError::Damaged { .. })));
    store.discard(&file.sha256).unwrap();
    let progress = Progress::new();
    fetch(&store, dir.path(), &file, &progress).await.unwrap();
    store.verify(&file.sha256, &Progress::new()).await.unwrap();
    // Where the file system can't clone, only the wrong piece came again.
    assert!(progress.source_bytes() <= file.bytes / 4, "{}", progress.source_bytes());
    let missing = store.verify(&Sha256Hex::from([0; 32]), &Progress::new()).await;
    assert!(matches!(missing, Err(VerifyError::Missing(_))));
}

#[tokio::test]
async fn a_source_that_changed_is_refused() {
    let (dir, home) = (folder(), tempfile::tempdir().unwrap());
    let file = one();
    let store = open(home.path());
    let mut wrong = bytes();
    wrong[0] ^= 1;
    // Which piece of a short file is asked for first is left open.
    for (now, expected) in
        [(wrong, vec!["instead of"]), (b"short".to_vec(), vec!["bytes long", "shorter than it was"])]
    {
        fs::write(dir.path().join(NAME), now).unwrap();
        let error = fetch(&store, dir.path(), &file, &Progress::new()).await.unwrap_err().to_string();
        assert!(expected.iter().any(|expected| error.contains(expected)), "{error}");
    }
    assert!(!store.has(&file));
    let outside = ResolvedFile { name: "../../etc/passwd".to_owned(), ..file };
    let error = fetch(&store, dir.path(), &outside, &Progress::new()).await;
    assert!(matches!(error, Err(FetchError::Outside(_))));
}

#[tokio::test]
async fn half_a_file_under_the_right_name_is_not_believed() {
    let (dir, home) = (folder(), tempfile::tempdir().unwrap());
    let file = one();
    drop(open(home.path()));
    // As a file system without journal may leave it.
    fs::write(home.path().join("sha256").join(file.sha256.to_string()), b"half").unwrap();
    let store = open(home.path());
    assert!(!store.has(&file));
    fetch(&store, dir.path(), &file, &Progress::new()).await.unwrap();
    store.verify(&file.sha256, &Progress::new()).await.unwrap();
    assert_eq!(partial(home.path()), 0);
}

#[tokio::test]
async fn what_a_person_has_is_used_where_it_lies_and_never_deleted() {
    let (dir, home) = (folder(), tempfile::tempdir().unwrap());
    let file = one();
    let options = StoreOptions { adopt: vec![dir.path().to_owned()], ..StoreOptions::default() };
    let store = Store::open(home.path(), options).unwrap();
    let nowhere = tempfile::tempdir().unwrap();
    let path = fetch(&store, nowhere.path(), &file, &Progress::new()).await.unwrap();
    assert_eq!(path, dir.path().join(NAME));
    assert!(store.list().unwrap()[0].referred);
    store.remove(&file.sha256).unwrap();
    assert!(path.exists() && !store.has(&file));
}

/// Mounts a small tmpfs, which takes root; without, it says so and passes.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_full_disk_is_a_sentence_and_leaves_nothing_as_root() {
    use nix::mount::{MntFlags, MsFlags, mount, umount2};
    let (dir, home) = (folder(), tempfile::tempdir().unwrap());
    let tmpfs: Option<&str> = Some("tmpfs");
    if let Err(error) = mount(tmpfs, home.path(), tmpfs, MsFlags::empty(), Some("size=1m")) {
        eprintln!("skipped: no tmpfs can be mounted here ({error})");
        return;
    }
    let file = one();
    let store = open(home.path());
    let error = fetch(&store, dir.path(), &file, &Progress::new()).await.unwrap_err();
    let left = partial(home.path());
    drop(store);
    umount2(home.path(), MntFlags::MNT_DETACH).unwrap();
    assert!(matches!(error, FetchError::DiskFull { .. }), "{error:?}");
    assert_eq!(left, 0);
}

//! Disks that answer EIO in the midst of a file: what is said, what stays, and how it goes on.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

mod cluster;
mod failing_disk;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use cluster::{Host, PIECE, Port, Site};
use failing_disk::{FailingDisk, Faults};
use tandem_weights::{FetchError, FetchOptions, Fetcher, Store, StoreError, StoreOptions, VerifyError};

const MIB: u64 = 1 << 20;
/// From `errno.h`.
const EIO: i32 = 5;

/// A host whose store is on the disk.
async fn host_on(disk: &FailingDisk, site: &Site) -> Host {
    let host = site.host("host-a").await;
    let store = Store::open(&disk.path().join("weights"), StoreOptions::default()).unwrap();
    let options = FetchOptions { piece_bytes: Some(PIECE), ..FetchOptions::default() };
    let port = Port::open(&store, host.credentials.subscribe()).await;
    Host { fetcher: Fetcher::new(store.clone(), options), store, port, ..host }
}

fn nothing_whole(host: &Host, disk: &FailingDisk, site: &Site) {
    assert!(!host.store.has(&site.file));
    assert_eq!(fs::read_dir(disk.path().join("weights/sha256")).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_fails_ends_the_fetch_and_the_next_goes_on_as_root() {
    let Some(disk) = FailingDisk::mount() else { return };
    let site = Site::start(8 * MIB, None).await;
    let host = host_on(&disk, &site).await;
    disk.refuses(Faults { writes_after: Some(5 * MIB), ..Faults::default() });
    let error = host.begin().await.unwrap().unwrap_err();
    let FetchError::Store(StoreError::Disk { path, offset, source }) = &error else { panic!("{error:?}") };
    println!("{error}: {source}");
    assert_eq!(source.raw_os_error(), Some(EIO));
    assert!(path.to_string_lossy().contains(&site.file.sha256.to_string()) && *offset < site.file.bytes);
    assert!(error.to_string().contains("look for errors of this disk"));
    assert!(disk.refused() > 0);
    nothing_whole(&host, &disk, &site);
    let before = site.upstream();
    disk.refuses(Faults::default());
    assert!(host.fetched().await.unwrap() == site.bytes);
    println!("{} + {} bytes came: {:.3}", before, site.upstream() - before, site.ratio());
    assert!(site.upstream() - before < site.file.bytes && site.ratio() < 2.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_cannot_be_read_is_neither_wrong_nor_given_away_as_root() {
    let Some(disk) = FailingDisk::mount() else { return };
    let site = Site::start(4 * MIB, None).await;
    let host = host_on(&disk, &site).await;
    let path = host.begin().await.unwrap().unwrap();
    let bad = 2 * MIB + 5;
    disk.refuses(Faults { reads_of: Some(bad), ..Faults::default() });
    let error = host.store.verify(&site.file.sha256, &host.progress).await.unwrap_err();
    let VerifyError::Store(StoreError::Disk { offset, source, .. }) = &error else { panic!("{error:?}") };
    println!("{error}: {source}");
    assert!(source.raw_os_error() == Some(EIO) && (bad - MIB..=bad).contains(offset));
    assert!(path.exists());
    // Another host gets the rest from here, and the piece that can't be read from the source.
    site.hub.reset_counts();
    let other = site.host("host-b").await;
    other.knows(&[&host]);
    assert!(other.fetched().await.unwrap() == site.bytes);
    println!("the other host: {} bytes from here, {} from the source", host.port.sent(), site.upstream());
    assert!(site.upstream() >= PIECE);
    // Read again where it is untouched, it is what it was.
    disk.refuses(Faults::default());
    host.store.verify(&site.file.sha256, &host.progress).await.unwrap();
    assert!(host.fetched().await.unwrap() == site.bytes);
    // Where it has to be hashed before it is used, what can't be read comes again.
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    assert!(!host.store.has(&site.file));
    disk.refuses(Faults { reads_of: Some(bad), ..Faults::default() });
    site.hub.reset_counts();
    assert!(host.fetched().await.unwrap() == site.bytes);
    println!("{} bytes came again, {} reads were refused", site.upstream(), disk.refused());
    assert!(disk.refused() > 0 && (PIECE..site.file.bytes).contains(&site.upstream()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sync_that_fails_leaves_nothing_whole_as_root() {
    let Some(disk) = FailingDisk::mount() else { return };
    let site = Site::start(4 * MIB, None).await;
    let host = host_on(&disk, &site).await;
    disk.refuses(Faults { syncs: true, ..Faults::default() });
    let error = host.begin().await.unwrap().unwrap_err();
    let FetchError::Store(StoreError::Unsettled { source, .. }) = &error else { panic!("{error:?}") };
    println!("{error}: {source}");
    assert!(source.raw_os_error() == Some(EIO) && disk.refused() > 0);
    nothing_whole(&host, &disk, &site);
    // What is in memory still may not be on the disk, so nothing of it is gone on with.
    assert_eq!(host.store.used_bytes().unwrap(), 0);
    site.hub.reset_counts();
    disk.refuses(Faults::default());
    assert!(host.fetched().await.unwrap() == site.bytes);
    println!("{:.3} of the file came again", site.ratio());
    assert_eq!(site.upstream(), site.file.bytes);
}

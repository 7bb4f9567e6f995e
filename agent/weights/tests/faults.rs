//! A source that misbehaves: what each fault costs in bytes, and what is said when it does not end.
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

mod cluster;

use std::time::{Duration, Instant};

use cluster::{Host, NAME, PIECE, Site, access, introduce, named, until};
use futures::future::join_all;
use tandem_hub::{Content, Door, Fault};
use tandem_sources::TransferError;
use tandem_weights::{FetchError, FetchOptions, Order};

const MIB: u64 = 1 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn a_fault_of_one_answer_costs_its_piece() {
    for fault in [
        Fault::Status(500),
        Fault::TooMany { retry_after: 0 },
        Fault::Cut { after: 1000 },
        Fault::Short { after: 1000 },
        Fault::WrongRange,
        Fault::Whole,
        Fault::Endless,
    ] {
        let site = Site::start(4 * MIB, None).await;
        site.hub.misbehave(Door::Web, NAME, [Fault::None, fault.clone()]);
        let host = site.host("host-a").await;
        assert!(host.fetched().await.unwrap() == site.bytes, "{fault:?}");
        let came = host.progress.source_bytes();
        println!("{fault:?}: {came} bytes came of {}, {} were sent", site.file.bytes, site.upstream());
        assert!(came <= site.file.bytes + PIECE + PIECE, "{fault:?}: {came}");
        // What goes on for ever is not listened to any longer than the piece.
        let again = u64::from(fault != Fault::Endless);
        assert_eq!(site.hub.count(Door::Web, NAME).requests, site.file.bytes / PIECE + again, "{fault:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_asks_for_patience_gets_it() {
    let site = Site::start(MIB, None).await;
    site.hub.misbehave(Door::Web, NAME, [Fault::TooMany { retry_after: 1 }]);
    let (host, began) = (site.host("host-a").await, Instant::now());
    assert!(host.fetched().await.unwrap() == site.bytes);
    // Its own plan was 20 ms.
    assert!(began.elapsed() >= Duration::from_secs(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_stands_still_is_given_up_and_a_slow_one_is_not() {
    let site = Site::start(2 * MIB, None).await;
    site.hub.misbehave(Door::Web, NAME, [Fault::Stall { after: 1000 }]);
    let patience = FetchOptions { patience: Duration::from_millis(300), ..FetchOptions::default() };
    let host = site.host_in("host-a", tempfile::tempdir().unwrap(), patience.clone()).await;
    assert!(host.fetched().await.unwrap() == site.bytes);
    assert_eq!(site.hub.count(Door::Web, NAME).requests, site.file.bytes / PIECE + 1);
    // Several times the patience for each piece, but always something.
    site.hub.reset_counts();
    site.hub.always(Door::Web, NAME, Fault::Slow { bytes_per_second: 2 * PIECE });
    let host = site.host_in("host-b", tempfile::tempdir().unwrap(), patience).await;
    assert!(host.fetched().await.unwrap() == site.bytes);
    assert_eq!(site.hub.count(Door::Web, NAME).requests, site.file.bytes / PIECE);
}

/// A byte is wrong the first time that the source sends it, whichever piece is asked for first.
fn once(site: &Site, at: u64) -> Vec<Fault> {
    let pieces = site.file.bytes / PIECE;
    (0..pieces).map(|_| Fault::Flip { at }).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_bytes_that_came_once_are_found_by_asking_again() {
    let site = Site::start(4 * MIB, None).await;
    let connections = FetchOptions::default().connections as u64;
    // In the first piece that is asked for again; those after it need not come again.
    site.hub.misbehave(Door::Web, NAME, once(&site, 1000));
    let host = site.host("host-a").await;
    assert!(host.fetched().await.unwrap() == site.bytes);
    println!("wrong once: {:.3} of the file came", site.ratio());
    let again = site.upstream() - site.file.bytes;
    assert!((PIECE..=connections * PIECE).contains(&again), "{again}");
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_bytes_that_one_host_got_are_mended_at_all_that_took_them() {
    let site = Site::start(4 * MIB, Some(8 * MIB)).await;
    site.hub.misbehave(Door::Web, NAME, once(&site, 1000));
    let hosts = [site.host("host-a").await, site.host("host-b").await, site.host("host-c").await];
    introduce(&hosts);
    for whole in join_all(hosts.iter().map(Host::fetched)).await {
        assert!(whole.unwrap() == site.bytes);
    }
    println!("wrong at three hosts: {:.3} of the file came from its source", site.ratio());
    assert!(site.upstream() > site.file.bytes && site.upstream() <= 4 * site.file.bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_file_costs_the_piece_that_is_wrong() {
    use std::os::unix::fs::{FileExt, PermissionsExt};
    let site = Site::start(4 * MIB, None).await;
    let host = site.host("host-a").await;
    host.fetched().await.unwrap();
    let path = host.store.path_of(&site.file.sha256).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    let data = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    data.write_all_at(b"not what it was", 2 * MIB + 17).unwrap();
    site.hub.reset_counts();
    assert!(host.fetched().await.unwrap() == site.bytes);
    assert_eq!(site.upstream(), PIECE);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_for_good_is_said_with_both_digests_and_leaves_nothing() {
    let site = Site::start(2 * MIB, None).await;
    site.hub.always(Door::Web, NAME, Fault::Flip { at: 777_777 });
    let host = site.host("host-a").await;
    let error = host.fetched().await.unwrap_err();
    let mut wrong = site.bytes.clone();
    wrong[777_777] ^= 1;
    let FetchError::WrongDigest { expected, found, .. } = &error else { panic!("{error:?}") };
    assert_eq!(*expected, site.file.sha256);
    assert!(
        error.to_string().contains(&expected.to_string()) && error.to_string().contains(&found.to_string())
    );
    assert!(!error.is_transient() && !host.store.has(&site.file));
    assert_eq!(host.store.used_bytes().unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_replaced_while_it_comes_is_refused() {
    let site = Site::start(4 * MIB, Some(4 * MIB)).await;
    let host = site.host("host-a").await;
    let fetching = host.begin();
    until(|| host.progress.done() >= MIB).await;
    let other: Vec<u8> = site.bytes.iter().map(|byte| !byte).collect();
    site.hub.publish("owner/tiny", [(NAME, Content::of(other))]);
    let error = fetching.await.unwrap().unwrap_err();
    assert!(matches!(error, FetchError::WrongDigest { .. }), "{error:?}");
    site.hub.publish("owner/tiny", [(NAME, Content::of(site.bytes[..1_500_000].to_vec()))]);
    let error = host.fetched().await.unwrap_err();
    println!("{error}");
    let gone = |error: &FetchError| {
        matches!(
            error,
            FetchError::WrongLength { .. }
                | FetchError::Source(TransferError::PastEnd { .. } | TransferError::WrongRange { .. })
        )
    };
    assert!(gone(&error) && !host.store.has(&site.file), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn links_that_expire_while_a_file_comes_are_asked_for_anew() {
    let site = Site::start(4 * MIB, Some(4 * MIB)).await;
    let revision = site.hub.publish("owner/tiny", [(NAME, Content::of(site.bytes.clone()))]);
    let host = site.host("host-a").await;
    let order = Order {
        source: format!("hf://owner/tiny@{revision}").parse().unwrap(),
        access: access().mirrored(&format!("hf://={}", site.hub.url(Door::Hub))).unwrap(),
        ..host.order()
    };
    let (fetcher, progress) = (host.fetcher.clone(), host.progress.clone());
    let fetching = tokio::spawn(async move { fetcher.fetch(&order, &progress).await });
    for share in [1, 2, 3] {
        until(|| host.progress.done() >= share * MIB).await;
        site.hub.expire_links();
    }
    assert!(std::fs::read(fetching.await.unwrap().unwrap()).unwrap() == site.bytes);
    let sent = site.hub.count(Door::Cdn, "").bytes;
    println!("expired: {sent} bytes of {} were sent", site.file.bytes);
    assert!(sent <= site.file.bytes + FetchOptions::default().connections as u64 * PIECE);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_without_ranges_is_read_in_one_go() {
    let site = Site::start(2 * MIB, None).await;
    site.hub.always(Door::Web, NAME, Fault::Whole);
    let host = site.host("host-a").await;
    assert!(host.fetched().await.unwrap() == site.bytes);
    assert_eq!(host.progress.source_bytes(), site.file.bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_with_many_faults_ends_in_the_right_bytes() {
    for seed in 0..4 {
        let site = Site::start(4 * MIB, None).await;
        site.hub.chaos(Some(tandem_hub::Chaos { seed, percent: 20 }));
        let host = site.host("host-a").await;
        let order = Order { access: access().retrying(12, Duration::from_millis(1)), ..host.order() };
        // Wrong bytes may come again while wrong bytes are looked for: then it is said, and the next fetch goes on.
        let mut tries = 0;
        let path = loop {
            tries += 1;
            match host.fetcher.fetch(&order, &host.progress).await {
                Ok(path) => break path,
                Err(error) => assert!(tries < 20, "{error:?}"),
            }
        };
        assert!(std::fs::read(path).unwrap() == site.bytes);
        println!("chaos {seed}: {tries} fetches, {:.3} of the file was sent", site.ratio());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_workloads_that_want_equal_files_fetch_them_once() {
    let site = Site::start(4 * MIB, None).await;
    let host = site.host("host-a").await;
    let content = Content::of(site.bytes.clone());
    site.hub.publish("owner/tiny", [(NAME, content.clone()), ("other/name.gguf", content)]);
    let other = Order { file: named("other/name.gguf", &site.bytes), ..host.order() };
    let progress = tandem_weights::Progress::new();
    let (one, two) = tokio::join!(host.fetched(), host.fetcher.fetch(&other, &progress));
    assert!(one.unwrap() == site.bytes);
    assert_eq!(two.unwrap(), host.store.path_of(&site.file.sha256).unwrap());
    assert_eq!(site.hub.count(Door::Web, "gguf").bytes, site.file.bytes);
    assert_eq!((progress.done(), progress.total()), (site.file.bytes, site.file.bytes));
}

#[tokio::test(flavor = "multi_thread")]
async fn all_connections_together_keep_to_what_they_may_bring() {
    let site = Site::start(3 * MIB, None).await;
    let options = FetchOptions { bytes_per_second: Some(2 * MIB), ..FetchOptions::default() };
    let host = site.host_in("host-a", tempfile::tempdir().unwrap(), options).await;
    let began = Instant::now();
    assert!(host.fetched().await.unwrap() == site.bytes);
    let took = began.elapsed();
    println!("{} bytes at {} a second took {took:?}", site.file.bytes, 2 * MIB);
    // What was saved up at the start, and the last block of each connection, which is paid for after it came.
    assert!(took >= Duration::from_millis(1200), "{took:?}");
}

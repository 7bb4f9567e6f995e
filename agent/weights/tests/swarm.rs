//! Hosts that want one file together: upstream is asked for each byte once, and whatever becomes of a host costs no more than
//! what was under way to it.
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

mod cluster;

use std::net::TcpListener;
use std::time::Duration;

use cluster::{Host, NAME, PIECE, Port, Site, introduce, rot, until};
use futures::future::join_all;
use tandem_hub::{Door, Fault};
use tandem_pki::Identity;
use tandem_weights::{FetchOptions, Link, VerifyError};

const MIB: u64 = 1 << 20;

async fn hosts(site: &Site, count: usize) -> Vec<Host> {
    join_all((0..count).map(|n| async move { site.host(&format!("host-{n}")).await })).await
}

#[tokio::test(flavor = "multi_thread")]
async fn however_many_hosts_want_a_file_its_source_sends_it_once() {
    for count in [1, 2, 4, 8] {
        let site = Site::start(12 * MIB, Some(24 * MIB)).await;
        let hosts = hosts(&site, count).await;
        introduce(&hosts);
        for whole in join_all(hosts.iter().map(Host::fetched)).await {
            assert!(whole.unwrap() == site.bytes);
        }
        let ratio = site.ratio();
        println!("{count} hosts: {ratio:.3} of the file came from its source");
        let from_source: u64 = hosts.iter().map(|host| host.progress.source_bytes()).sum();
        assert_eq!(from_source, site.upstream());
        assert!(ratio <= 1.1, "{count} hosts: {ratio}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_host_takes_what_others_have_and_shares_the_rest() {
    let site = Site::start(16 * MIB, Some(8 * MIB)).await;
    let hosts = hosts(&site, 2).await;
    introduce(&hosts);
    let first = hosts[0].begin();
    until(|| hosts[0].progress.done() >= site.file.bytes / 4).await;
    let late = hosts[1].fetched().await.unwrap();
    assert!(late == site.bytes);
    first.await.unwrap().unwrap();
    let [early, late] = [&hosts[0], &hosts[1]].map(|host| host.progress.source_bytes());
    println!(
        "late: {:.3} came from the source, {early} bytes to the first, {late} to the late",
        site.ratio()
    );
    // It helps with what is left, and does not begin anew.
    assert!(late > 0 && late <= site.file.bytes * 3 / 4);
    assert!(site.ratio() <= 1.15, "{}", site.ratio());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_dies_costs_what_was_under_way_to_others() {
    let site = Site::start(16 * MIB, Some(16 * MIB)).await;
    let hosts = hosts(&site, 3).await;
    introduce(&hosts);
    let [one, two, dying] = [0, 1, 2].map(|n| hosts[n].begin());
    until(|| hosts[2].progress.source_bytes() >= 2 * MIB && hosts[2].port.sent() > 0).await;
    hosts[2].port.close();
    drop(dying);
    for fetching in [one, two] {
        assert!(std::fs::read(fetching.await.unwrap().unwrap()).unwrap() == site.bytes);
    }
    let connections = FetchOptions::default().peer_connections as u64;
    for host in &hosts[..2] {
        let came = host.progress.source_bytes() + host.progress.peer_bytes();
        println!("{}: {came} bytes came for {} that it lacked", host.name, site.file.bytes);
        assert!(came <= site.file.bytes + connections * PIECE, "{came}");
    }
    let lost = hosts[2].progress.source_bytes();
    println!("died: {:.3} came from the source, {lost} bytes of it to the dead one", site.ratio());
    assert!(site.upstream() <= site.file.bytes + lost + 2 * connections * PIECE);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_whose_disk_flipped_a_bit_is_set_aside_and_cures_itself() {
    let site = Site::start(8 * MIB, None).await;
    let rotten = site.host("host-a").await;
    rotten.fetched().await.unwrap();
    let kept = tempfile::tempdir().unwrap();
    copy_folder(rotten.home.path(), kept.path());
    drop(rotten);
    rot(kept.path(), &site.file, 3 * MIB + 5);
    let rotten = site.host_in("host-a", kept, FetchOptions::default()).await;
    // Nothing but reading it tells.
    assert!(rotten.store.has(&site.file));
    site.hub.reset_counts();
    let reader = site.host("host-b").await;
    reader.knows(&[&rotten]);
    assert!(reader.fetched().await.unwrap() == site.bytes);
    println!(
        "flipped: {} bytes from the source, {} from the peer",
        site.upstream(),
        reader.progress.peer_bytes()
    );
    assert!(site.upstream() >= PIECE && reader.progress.peer_bytes() >= PIECE);
    // Whoever read it out has noticed too, and fetches just the piece.
    assert!(!rotten.store.has(&site.file), "{:?}", rotten.store.list());
    let damaged = rotten.store.verify(&site.file.sha256, &rotten.progress).await;
    assert!(matches!(damaged, Err(VerifyError::Damaged { .. })), "{damaged:?}");
    rotten.knows(&[&reader]);
    site.hub.reset_counts();
    assert!(rotten.fetched().await.unwrap() == site.bytes);
    assert_eq!(site.upstream() + rotten.progress.peer_bytes(), PIECE);
    rotten.store.verify(&site.file.sha256, &rotten.progress).await.unwrap();
}

/// As `cp -r`.
fn copy_folder(from: &std::path::Path, to: &std::path::Path) {
    for folder in ["sha256", "pieces", "partial"] {
        std::fs::create_dir_all(to.join(folder)).unwrap();
        let Ok(entries) = std::fs::read_dir(from.join(folder)) else { continue };
        for entry in entries {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), to.join(folder).join(entry.file_name())).unwrap();
        }
    }
}

/// An address where nobody listens.
fn nowhere() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_that_cannot_reach_each_other_fetch_all_the_same() {
    let site = Site::start(8 * MIB, Some(16 * MIB)).await;
    let hosts = hosts(&site, 2).await;
    for (host, other) in [(0, 1), (1, 0)] {
        let link = Link { address: nowhere(), tier: 0 };
        hosts[host].peers.send_replace(vec![hosts[other].by(vec![link])]);
    }
    for whole in join_all(hosts.iter().map(Host::fetched)).await {
        assert!(whole.unwrap() == site.bytes);
    }
    println!("apart: {:.3} of the file came from its source", site.ratio());
    assert_eq!(site.upstream(), 2 * site.file.bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_third_host_carries_between_two_that_cannot_reach_each_other() {
    let site = Site::start(12 * MIB, Some(24 * MIB)).await;
    let hosts = hosts(&site, 3).await;
    introduce(&hosts);
    for (host, other) in [(0, 1), (1, 0)] {
        let link = Link { address: nowhere(), tier: 0 };
        hosts[host].peers.send_replace(vec![hosts[other].by(vec![link]), hosts[2].peer()]);
    }
    for whole in join_all(hosts.iter().map(Host::fetched)).await {
        assert!(whole.unwrap() == site.bytes);
    }
    println!("one apart: {:.3} of the file came from its source", site.ratio());
    // The two fetch some pieces both: that costs bytes and nothing else.
    assert!(site.upstream() < 2 * site.file.bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_go_by_the_better_link_and_by_the_other_when_it_breaks() {
    let site = Site::start(8 * MIB, None).await;
    let giver = site.host("host-a").await;
    giver.fetched().await.unwrap();
    site.hub.always(Door::Web, NAME, Fault::Status(404));
    let slow = Port::open(&giver.store, giver.credentials.subscribe()).await;
    let reader = site.host("host-b").await;
    reader.peers.send_replace(vec![giver.by(vec![slow.link(2), giver.port.link(1)])]);
    assert!(reader.fetched().await.unwrap() == site.bytes);
    assert_eq!((giver.port.sent(), slow.sent()), (site.file.bytes, 0));
    let other = site.host("host-c").await;
    let broken = Link { address: nowhere(), tier: 0 };
    other.peers.send_replace(vec![giver.by(vec![slow.link(2), broken])]);
    assert!(other.fetched().await.unwrap() == site.bytes);
    assert_eq!(slow.sent(), site.file.bytes);
    // Of two hosts that have it, the one on the better link gives.
    let third = site.host("host-d").await;
    third.peers.send_replace(vec![giver.by(vec![giver.port.link(3)]), reader.by(vec![reader.port.link(1)])]);
    assert!(third.fetched().await.unwrap() == site.bytes);
    println!("tiers: {} by tier 1, {} by tier 3", reader.port.sent(), giver.port.sent() - site.file.bytes);
    assert!(reader.port.sent() > site.file.bytes / 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_shows_no_certificate_or_is_no_host_gets_nothing() {
    let site = Site::start(MIB, None).await;
    let giver = site.host("host-a").await;
    giver.fetched().await.unwrap();
    let host = Identity::host("host-a").unwrap().server_name();
    let url = format!("https://{host}:{}/v1/weights/{}", giver.port.address.port(), site.file.sha256);
    let client = |identity: Option<&Identity>| {
        let builder = reqwest::Client::builder()
            .tls_certs_only(
                reqwest::Certificate::from_pem_bundle(site.authority.certificate_pem().as_bytes()).unwrap(),
            )
            .resolve(&host, giver.port.address);
        let own = identity.map(|identity| site.credentials(identity));
        let pem = own.map(|own| format!("{}{}", own.certificate_pem, own.key_pem));
        match pem {
            Some(pem) => builder.identity(reqwest::Identity::from_pem(pem.as_bytes()).unwrap()),
            None => builder,
        }
        .timeout(Duration::from_secs(20))
        .build()
        .unwrap()
    };
    let worker = Identity::worker("host-b", "w").unwrap();
    let others = [
        None,
        Some(Identity::gateway("edge").unwrap()),
        Some(Identity::admin("anna").unwrap()),
        Some(worker),
    ];
    for identity in &others {
        let answer = client(identity.as_ref()).get(&url).header("range", "bytes=0-9").send().await;
        assert!(answer.is_err(), "{identity:?}: {answer:?}");
    }
    assert_eq!(giver.port.sent(), 0);
    let friend = client(Some(&Identity::host("host-b").unwrap()));
    let answer = friend.get(&url).header("range", "bytes=0-9").send().await.unwrap();
    assert_eq!(answer.bytes().await.unwrap(), site.bytes[..10]);
    // What makes no sense is refused in words of HTTP, and what is not here is not here.
    for (range, status) in [
        ("bytes=9-1", 416),
        ("bytes=0-99999999", 416),
        ("pages=1-2", 416),
        ("bytes=0-18446744073709551615", 416),
    ] {
        let answer = friend.get(&url).header("range", range).send().await.unwrap();
        assert_eq!(answer.status().as_u16(), status, "{range}");
    }
    for (path, status) in
        [("0".repeat(64), 404), ("no-digest".to_owned(), 400), ("..%2f..%2fetc%2fpasswd".to_owned(), 400)]
    {
        let url = format!("https://{host}:{}/v1/weights/{path}", giver.port.address.port());
        let answer = friend.get(&url).header("range", "bytes=0-9").send().await.unwrap();
        assert_eq!(answer.status().as_u16(), status, "{path}");
    }
}

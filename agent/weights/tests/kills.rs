//! A process that fetches and is killed at any byte: whatever it was about to do, the next one goes on from there and ends in the
//! right bytes.
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

mod cluster;

use std::path::Path;
use std::process::{Child, Command, Stdio};

use cluster::{NAME, PIECE, Site, access, until};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tandem_hub::Door;
use tandem_sources::ResolvedFile;
use tandem_weights::{FetchOptions, Fetcher, Order, Progress, Store, StoreOptions};
use tokio::sync::watch;

const LENGTH: u64 = 24 << 20;
const CONNECTIONS: u64 = 2;
/// What may lie in sockets between a hub that counts it as sent and a process that is killed, for each connection, in bytes.
const IN_SOCKETS: u64 = 1 << 20;

/// What is killed: this test binary again, with the order in its environment.
fn fetcher(site: &Site, home: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "what_is_killed", "--ignored"])
        .env("WEIGHTS_HOME", home)
        .env("WEIGHTS_SOURCE", site.source().to_string())
        .env("WEIGHTS_SHA256", site.file.sha256.to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap()
}

#[ignore = "it is started by the other tests here, as a process of its own"]
#[tokio::test(flavor = "multi_thread")]
async fn what_is_killed() {
    tandem_pki::install_tls_provider();
    let said = |name: &str| std::env::var(name).expect("it is started by a test");
    let store = Store::open(Path::new(&said("WEIGHTS_HOME")), StoreOptions::default()).unwrap();
    let options = FetchOptions {
        connections: usize::try_from(CONNECTIONS).unwrap(),
        piece_bytes: Some(PIECE),
        ..FetchOptions::default()
    };
    let order = Order {
        file: ResolvedFile {
            name: NAME.to_owned(),
            sha256: said("WEIGHTS_SHA256").parse().unwrap(),
            bytes: LENGTH,
        },
        source: said("WEIGHTS_SOURCE").parse().unwrap(),
        credential: None,
        access: access(),
        peers: watch::channel(Vec::new()).1,
        own_host: "host-a".to_owned(),
    };
    Fetcher::new(store, options).fetch(&order, &Progress::new()).await.unwrap();
}

/// Ends also when a test fails.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // It may have ended by itself; a zombie is left in neither case.
        if self.0.kill().is_ok() {
            drop(self.0.wait());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_killed_at_any_byte_goes_on_from_there() {
    let seed = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let site = Site::start(LENGTH, Some(64 << 20)).await;
    let home = tempfile::tempdir().unwrap();
    let (mut kills, mut ended) = (0_u64, false);
    while kills < 25 && !ended {
        let before = site.upstream();
        // Some before the first byte, most in mid-file.
        let after = random.random_range(0..LENGTH / 16);
        let mut process = Killed(fetcher(&site, home.path()));
        until(|| {
            ended = process.0.try_wait().unwrap().is_some();
            ended || site.upstream() >= before + after
        })
        .await;
        kills += u64::from(!ended);
    }
    let mut last = Killed(fetcher(&site, home.path()));
    let status = tokio::task::spawn_blocking(move || last.0.wait().unwrap()).await.unwrap();
    assert!(status.success());
    assert_whole(&site, home.path()).await;
    println!("{kills} kills: {:.3} of the file came", site.ratio());
    assert!(kills >= 10, "{kills}");
    let most = LENGTH + kills * CONNECTIONS * (PIECE + IN_SOCKETS);
    assert!(site.upstream() <= most, "{} of at most {most}", site.upstream());
}

/// Around its end a file is hashed, synced, moved, and written down: kills there find each of these.
#[tokio::test(flavor = "multi_thread")]
async fn a_process_killed_while_the_file_is_put_in_its_place_has_it_or_goes_on() {
    let site = Site::start(LENGTH, None).await;
    for _ in 0..8 {
        let home = tempfile::tempdir().unwrap();
        site.hub.reset_counts();
        let process = Killed(fetcher(&site, home.path()));
        until(|| site.hub.count(Door::Web, NAME).bytes >= LENGTH).await;
        drop(process);
        let mut next = Killed(fetcher(&site, home.path()));
        let status = tokio::task::spawn_blocking(move || next.0.wait().unwrap()).await.unwrap();
        assert!(status.success());
        assert_whole(&site, home.path()).await;
        assert!(site.upstream() <= LENGTH + CONNECTIONS * (PIECE + IN_SOCKETS), "{}", site.upstream());
    }
}

async fn assert_whole(site: &Site, home: &Path) {
    let store = Store::open(home, StoreOptions::default()).unwrap();
    let path = store.path_of(&site.file.sha256).unwrap();
    assert!(std::fs::read(path).unwrap() == site.bytes);
    store.verify(&site.file.sha256, &Progress::new()).await.unwrap();
    assert_eq!(std::fs::read_dir(home.join("partial")).unwrap().count(), 0);
}

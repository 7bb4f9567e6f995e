//! Weights from a server that misbehaves, and from other hosts.
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};
use tandem_hub::{Content, Door, Fault, Hub, Options};
use tandem_pki::{CertificateAuthority, Credentials, HOST_LIFETIME, Identity, install_tls_provider};
use tandem_sources::{Access, ResolvedFile, TransferError};
use tandem_weights::{
    FetchError, FetchOptions, Fetcher, Link, Order, Peer, Progress, Store, StoreOptions, serve,
};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::watch;

const NAME: &str = "tiny-Q8_0.gguf";

fn bytes() -> Vec<u8> {
    (0..1_000_000_u32).flat_map(u32::to_le_bytes).collect()
}

fn file() -> ResolvedFile {
    let bytes = bytes();
    let sha256 = <[u8; 32]>::from(Sha256::digest(&bytes)).into();
    ResolvedFile { name: NAME.to_owned(), sha256, bytes: bytes.len() as u64 }
}

struct Site {
    hub: Hub,
    home: TempDir,
    peers: watch::Sender<Vec<Peer>>,
}

impl Site {
    async fn start() -> Self {
        install_tls_provider();
        let hub = Hub::start(Options::default()).await.unwrap();
        hub.publish("owner/tiny", [(NAME, Content::of(bytes()))]);
        Self { hub, home: tempfile::tempdir().unwrap(), peers: watch::Sender::new(Vec::new()) }
    }

    fn order(&self) -> Order {
        Order {
            file: file(),
            source: format!("{}owner/tiny/", self.hub.url(Door::Web)).parse().unwrap(),
            credential: None,
            access: Access::default()
                .waiting(Duration::from_secs(2), Duration::from_millis(500))
                .retrying(3, Duration::from_millis(20)),
            peers: self.peers.subscribe(),
            own_host: "host-b".to_owned(),
        }
    }

    fn store(&self) -> Store {
        Store::open(self.home.path(), StoreOptions::default()).unwrap()
    }

    async fn fetched(&self) -> (Result<Vec<u8>, FetchError>, Progress) {
        let (progress, patience) = (Progress::new(), Duration::from_millis(500));
        let fetcher = Fetcher::new(self.store(), FetchOptions { patience, ..FetchOptions::default() });
        let result = fetcher.fetch(&self.order(), &progress).await;
        (result.map(|path| std::fs::read(path).unwrap()), progress)
    }
}

#[tokio::test]
async fn a_good_server_is_asked_for_each_byte_once() {
    let site = Site::start().await;
    let (whole, progress) = site.fetched().await;
    assert_eq!(whole.unwrap(), bytes());
    assert_eq!((progress.done(), progress.source_bytes()), (file().bytes, file().bytes));
    assert_eq!(site.hub.count(Door::Web, NAME).bytes, file().bytes);
}

#[tokio::test]
async fn faults_cost_their_pieces_and_never_get_further_than_the_hash() {
    for fault in [
        Fault::Cut { after: 1000 },
        Fault::Short { after: 1000 },
        Fault::Status(500),
        Fault::TooMany { retry_after: 0 },
        Fault::Stall { after: 1000 },
        Fault::WrongRange,
        Fault::Flip { at: 100_000 },
        Fault::Endless,
    ] {
        let site = Site::start().await;
        site.hub.misbehave(Door::Web, NAME, [Fault::None, fault.clone()]);
        let (whole, _) = site.fetched().await;
        match whole {
            Ok(whole) => assert!(whole == bytes(), "{fault:?}"),
            Err(error) => assert!(
                matches!(error, FetchError::WrongLength { .. } | FetchError::Source(_)),
                "{fault:?}: {error:?}"
            ),
        }
    }
}

#[tokio::test]
async fn a_source_that_gives_no_ranges_is_read_in_one_go() {
    let site = Site::start().await;
    site.hub.always(Door::Web, NAME, Fault::Whole);
    let (whole, _) = site.fetched().await;
    assert!(whole.unwrap() == bytes());
}

#[tokio::test]
async fn a_server_that_asks_for_patience_gets_it() {
    let site = Site::start().await;
    site.hub.misbehave(Door::Web, NAME, [Fault::TooMany { retry_after: 1 }]);
    let began = std::time::Instant::now();
    let (whole, _) = site.fetched().await;
    assert!(whole.unwrap() == bytes());
    // By itself it would have asked again after 20 ms.
    assert!(began.elapsed() >= Duration::from_secs(1), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_source_with_other_bytes_is_refused_and_one_without_the_file_named() {
    let site = Site::start().await;
    site.hub.always(Door::Web, NAME, Fault::Flip { at: 777_777 });
    assert!(matches!(site.fetched().await.0, Err(FetchError::WrongDigest { .. })));
    site.hub.behave();
    site.hub.always(Door::Web, NAME, Fault::Status(404));
    let refused = site.fetched().await.0;
    assert!(matches!(refused, Err(FetchError::Source(TransferError::NotFound(_)))), "{refused:?}");
}

#[tokio::test]
async fn a_fetch_that_is_given_up_again_and_again_ends_in_the_right_bytes() {
    let site = Site::start().await;
    site.hub.always(Door::Web, NAME, Fault::Slow { bytes_per_second: 4_000_000 });
    let limit = Duration::from_secs(60);
    let mut given_up = 0;
    let finished = tokio::time::timeout(limit, async {
        loop {
            let (store, progress) = (site.store(), Progress::new());
            let fetcher = Fetcher::new(store, FetchOptions { connections: 2, ..FetchOptions::default() });
            let order = site.order();
            let fetch = fetcher.fetch(&order, &progress);
            // Given up once something new has come, so that each try brings a part.
            let something = async {
                let before = progress.source_bytes();
                while progress.source_bytes() < before + 700_000 {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            tokio::select! {
                path = fetch => return std::fs::read(path.unwrap()).unwrap(),
                () = something => given_up += 1,
            }
        }
    });
    assert!(finished.await.unwrap() == bytes());
    assert!(given_up > 1, "{given_up}");
    // Pieces in flight are all that comes twice.
    let sent = site.hub.count(Door::Web, NAME).bytes;
    assert!(sent < 3 * file().bytes, "{sent}");
}

/// A host that has the file and serves it.
async fn giver(authority: &CertificateAuthority, site: &Site) -> (TempDir, SocketAddr, Arc<AtomicU64>) {
    let home = tempfile::tempdir().unwrap();
    let store = Store::open(home.path(), StoreOptions::default()).unwrap();
    let fetcher = Fetcher::new(store.clone(), FetchOptions::default());
    fetcher.fetch(&site.order(), &Progress::new()).await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let sent = Arc::new(AtomicU64::new(0));
    let counts = sent.clone();
    let sender = Arc::new(move |bytes| {
        counts.fetch_add(bytes, Ordering::Relaxed);
    });
    let own = watch::Sender::new(credentials(authority, &Identity::host("host-a").unwrap()));
    tokio::spawn(async move {
        serve(listener, store, own.subscribe(), sender, std::future::pending()).await;
    });
    (home, address, sent)
}

fn credentials(authority: &CertificateAuthority, identity: &Identity) -> Credentials {
    authority.credentials(identity, &[], SystemTime::now(), HOST_LIFETIME).unwrap()
}

#[tokio::test]
async fn other_hosts_give_to_hosts_of_the_cluster_and_to_nobody_else() {
    let site = Site::start().await;
    let authority = CertificateAuthority::create(SystemTime::now()).unwrap();
    let stranger = CertificateAuthority::create(SystemTime::now()).unwrap();
    let (_home, address, sent) = giver(&authority, &site).await;
    // From here on nobody else has it.
    site.hub.always(Door::Web, NAME, Fault::Status(404));
    let host = Identity::host("host-a").unwrap();
    site.peers.send_replace(vec![Peer {
        host: "host-a".to_owned(),
        server_name: host.server_name(),
        links: vec![Link { address: address.to_string(), tier: 0 }],
    }]);
    let own = Identity::host("host-b").unwrap();
    for (credentials, let_in) in [
        (credentials(&stranger, &own), false),
        (credentials(&authority, &Identity::gateway("edge").unwrap()), false),
        (credentials(&authority, &own), true),
    ] {
        let home = tempfile::tempdir().unwrap();
        let store = Store::open(home.path(), StoreOptions::default()).unwrap();
        let credentials = watch::Sender::new(credentials);
        let options = FetchOptions { credentials: Some(credentials.subscribe()), ..FetchOptions::default() };
        let progress = Progress::new();
        let result = Fetcher::new(store, options).fetch(&site.order(), &progress).await;
        assert_eq!(result.is_ok(), let_in, "{result:?}");
        if let_in {
            assert_eq!((progress.source_bytes(), progress.peer_bytes()), (0, file().bytes));
            assert!(sent.load(Ordering::Relaxed) >= file().bytes);
        } else {
            assert_eq!(sent.load(Ordering::Relaxed), 0);
        }
    }
}

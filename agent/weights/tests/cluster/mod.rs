//! A hub, and hosts of one cluster around it in this process: each with a store, a fetcher and a port of its own, over real
//! sockets and mutual TLS.
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]
#![allow(dead_code, reason = "each test binary uses its part")]

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};
use tandem_hub::{Content, Door, Hub, Options};
use tandem_pki::{CertificateAuthority, Credentials, HOST_LIFETIME, Identity, install_tls_provider};
use tandem_sources::{Access, ResolvedFile, Source};
use tandem_weights::{
    FetchError, FetchOptions, Fetcher, Link, Order, Peer, Progress, Store, StoreOptions, serve,
};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

pub(crate) const NAME: &str = "tiny-Q8_0.gguf";
/// Length of a piece in most of these tests, in bytes.
pub(crate) const PIECE: u64 = 256 << 10;
/// Nothing here takes so long, unless it hangs.
const LONGEST: Duration = Duration::from_secs(120);

/// Bytes that repeat nowhere.
pub(crate) fn bytes(length: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(length).unwrap()];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    bytes
}

pub(crate) fn named(name: &str, bytes: &[u8]) -> ResolvedFile {
    let sha256 = <[u8; 32]>::from(Sha256::digest(bytes)).into();
    ResolvedFile { name: name.to_owned(), sha256, bytes: bytes.len() as u64 }
}

/// Waits for what nobody announces: counters of other tasks and processes.
pub(crate) async fn until(mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(LONGEST, waiting).await.expect("it never came about");
}

pub(crate) fn access() -> Access {
    Access::default()
        .waiting(Duration::from_secs(5), Duration::from_secs(5))
        .retrying(4, Duration::from_millis(20))
}

/// One file behind all doors of a hub, and the authority of a cluster.
pub(crate) struct Site {
    pub(crate) hub: Hub,
    pub(crate) authority: CertificateAuthority,
    pub(crate) bytes: Vec<u8>,
    pub(crate) file: ResolvedFile,
}

impl Site {
    pub(crate) async fn start(length: u64, bytes_per_second: Option<u64>) -> Self {
        install_tls_provider();
        let hub = Hub::start(Options { bytes_per_second, ..Options::default() }).await.unwrap();
        let bytes = bytes(length);
        hub.publish("owner/tiny", [(NAME, Content::of(bytes.clone()))]);
        let authority = CertificateAuthority::create(SystemTime::now()).unwrap();
        Self { hub, authority, file: named(NAME, &bytes), bytes }
    }

    pub(crate) fn source(&self) -> Source {
        format!("{}owner/tiny/", self.hub.url(Door::Web)).parse().unwrap()
    }

    /// What left the web door for the file.
    pub(crate) fn upstream(&self) -> u64 {
        self.hub.count(Door::Web, NAME).bytes
    }

    /// What left the web door, as a share of the file.
    pub(crate) fn ratio(&self) -> f64 {
        #[allow(clippy::cast_precision_loss, reason = "for people")]
        let ratio = self.upstream() as f64 / self.file.bytes as f64;
        ratio
    }

    pub(crate) fn credentials(&self, identity: &Identity) -> Credentials {
        self.authority.credentials(identity, &[], SystemTime::now(), HOST_LIFETIME).unwrap()
    }

    pub(crate) async fn host(&self, name: &str) -> Host {
        self.host_in(name, tempfile::tempdir().unwrap(), FetchOptions::default()).await
    }

    /// A host whose store is in a folder that may have one already.
    pub(crate) async fn host_in(&self, name: &str, home: TempDir, options: FetchOptions) -> Host {
        let store = Store::open(home.path(), StoreOptions::default()).unwrap();
        let identity = Identity::host(name).unwrap();
        let credentials = watch::Sender::new(self.credentials(&identity));
        let options = FetchOptions {
            piece_bytes: Some(PIECE),
            peer_patience: Duration::from_secs(3),
            credentials: Some(credentials.subscribe()),
            ..options
        };
        let fetcher = Fetcher::new(store.clone(), options);
        let order = Order {
            file: self.file.clone(),
            source: self.source(),
            credential: None,
            access: access(),
            peers: watch::channel(Vec::new()).1,
            own_host: name.to_owned(),
        };
        let port = Port::open(&store, credentials.subscribe()).await;
        let peers = watch::Sender::new(Vec::new());
        let progress = Progress::new();
        Host { name: name.to_owned(), home, store, fetcher, order, port, credentials, peers, progress }
    }
}

/// A door through which a store is read by other hosts.
pub(crate) struct Port {
    pub(crate) address: SocketAddr,
    sent: Arc<AtomicU64>,
    serving: AbortOnDropHandle<()>,
}

impl Port {
    pub(crate) async fn open(store: &Store, credentials: watch::Receiver<Credentials>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let sent = Arc::new(AtomicU64::new(0));
        let (store, counts) = (store.clone(), sent.clone());
        let count = Arc::new(move |bytes| {
            counts.fetch_add(bytes, Ordering::Relaxed);
        });
        let serving = tokio::spawn(async move {
            serve(listener, store, credentials, count, std::future::pending()).await;
        });
        Self { address, sent, serving: AbortOnDropHandle::new(serving) }
    }

    pub(crate) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    pub(crate) fn link(&self, tier: u32) -> Link {
        Link { address: self.address.to_string(), tier }
    }

    /// Its connections break, and nobody listens any more.
    pub(crate) fn close(&self) {
        self.serving.abort();
    }
}

pub(crate) struct Host {
    pub(crate) name: String,
    pub(crate) home: TempDir,
    pub(crate) store: Store,
    pub(crate) fetcher: Fetcher,
    pub(crate) order: Order,
    pub(crate) port: Port,
    pub(crate) credentials: watch::Sender<Credentials>,
    pub(crate) peers: watch::Sender<Vec<Peer>>,
    pub(crate) progress: Progress,
}

impl Host {
    pub(crate) fn peer(&self) -> Peer {
        self.by(vec![self.port.link(0)])
    }

    /// This host, reached by other links.
    pub(crate) fn by(&self, links: Vec<Link>) -> Peer {
        let server_name = Identity::host(&self.name).unwrap().server_name();
        Peer { host: self.name.clone(), server_name, links }
    }

    pub(crate) fn knows(&self, others: &[&Self]) {
        self.peers.send_replace(others.iter().map(|host| host.peer()).collect());
    }

    pub(crate) fn order(&self) -> Order {
        Order { peers: self.peers.subscribe(), ..self.order.clone() }
    }

    /// Begins to fetch, in a task that ends with the handle.
    pub(crate) fn begin(&self) -> AbortOnDropHandle<Result<PathBuf, FetchError>> {
        let (fetcher, order, progress) = (self.fetcher.clone(), self.order(), self.progress.clone());
        AbortOnDropHandle::new(tokio::spawn(async move { fetcher.fetch(&order, &progress).await }))
    }

    /// Fetches, and reads what came.
    pub(crate) async fn fetched(&self) -> Result<Vec<u8>, FetchError> {
        let fetching = tokio::time::timeout(LONGEST, self.begin()).await.expect("it never ended");
        fetching.unwrap().map(|path| std::fs::read(path).unwrap())
    }
}

/// All hosts know all others.
pub(crate) fn introduce(hosts: &[Host]) {
    for host in hosts {
        let others: Vec<_> = hosts.iter().filter(|other| other.name != host.name).collect();
        host.knows(&others);
    }
}

/// Flips bits of one byte where nothing but hashing notices: as a disk does it, whose file keeps all its marks.
pub(crate) fn rot(home: &Path, file: &ResolvedFile, at: u64) {
    use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
    let path = home.join("sha256").join(file.sha256.to_string());
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    let data = std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let mut byte = [0];
    data.read_exact_at(&mut byte, at).unwrap();
    data.write_all_at(&[byte[0] ^ 0x20], at).unwrap();
    // The time of a change can't be set back, so the record is told of it.
    let record = home.join("pieces").join(file.sha256.to_string());
    let text = std::fs::read_to_string(&record).unwrap();
    let now = data.metadata().unwrap();
    let mut json: serde_json::Value = serde_json::from_str(text.split_once('\n').unwrap().1).unwrap();
    json["stamp"]["inode"] = now.ino().into();
    json["stamp"]["modified"] = (now.mtime() * 1_000_000_000 + now.mtime_nsec()).into();
    json["stamp"]["changed"] = (now.ctime() * 1_000_000_000 + now.ctime_nsec()).into();
    let json = serde_json::to_vec(&json).unwrap();
    let mut sealed = blake3::hash(&json).to_hex().as_bytes().to_vec();
    sealed.push(b'\n');
    sealed.extend(json);
    std::fs::write(&record, sealed).unwrap();
}

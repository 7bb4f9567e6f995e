//! How fast weights come to this machine, beside what its disk and its processor could do at best.
//!
//! `cargo run --release -p tandem-weights --example rate -- [MEBIBYTES] [FOLDER]` makes a file of that length, writes and hashes
//! it plainly, then fetches it from a hub on loopback and from another host over mutual TLS, and prints a line for each.
#![allow(clippy::unwrap_used, reason = "a panic is how a measurement reports")]

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use sha2::{Digest, Sha256};
use tandem_hub::{Content, Door, Hub, Options};
use tandem_pki::{CertificateAuthority, HOST_LIFETIME, Identity, install_tls_provider};
use tandem_sources::{Access, ResolvedFile};
use tandem_weights::{FetchOptions, Fetcher, Link, Order, Peer, Progress, Store, StoreOptions, serve};
use tokio::net::TcpListener;
use tokio::sync::watch;

const NAME: &str = "rate-Q8_0.gguf";
const BLOCK: usize = 1 << 20;

/// Seconds of processor time that this process has taken.
fn processor() -> f64 {
    let used = getrusage(UsageWho::RUSAGE_SELF).unwrap();
    #[allow(clippy::cast_precision_loss, reason = "for people")]
    let micros = (used.user_time().num_microseconds() + used.system_time().num_microseconds()) as f64;
    micros / 1e6
}

struct Watch(Instant, f64);

impl Watch {
    fn start() -> Self {
        Self(Instant::now(), processor())
    }

    /// Prints what `bytes` took.
    fn say(&self, what: &str, bytes: u64) -> f64 {
        #[allow(clippy::cast_precision_loss, reason = "for people")]
        let rate = bytes as f64 / 1e6 / self.0.elapsed().as_secs_f64();
        println!("{what:<44} {rate:8.0} MB/s {:8.2} s of processor", processor() - self.1);
        rate
    }
}

fn written(path: &Path, bytes: u64) -> f64 {
    let mut block = vec![0; BLOCK];
    let mut noise = blake3::Hasher::new().finalize_xof();
    noise.fill(&mut block);
    let (watch, mut file) = (Watch::start(), File::create(path).unwrap());
    for n in 0..bytes / BLOCK as u64 {
        block[..8].copy_from_slice(&n.to_le_bytes());
        file.write_all(&block).unwrap();
    }
    file.sync_data().unwrap();
    watch.say("plain writes and a sync", bytes)
}

fn hashed(path: &Path, bytes: u64) -> ResolvedFile {
    let (mut whole, mut pieces, mut block) = (Sha256::new(), blake3::Hasher::new(), vec![0; BLOCK]);
    let watch = Watch::start();
    let mut file = File::open(path).unwrap();
    while file.read_exact(&mut block).is_ok() {
        whole.update(&block);
    }
    watch.say("reading and SHA-256 on one thread", bytes);
    let (watch, mut file) = (Watch::start(), File::open(path).unwrap());
    while file.read_exact(&mut block).is_ok() {
        pieces.update(&block);
    }
    watch.say("reading and BLAKE3 on one thread", bytes);
    ResolvedFile { name: NAME.to_owned(), sha256: <[u8; 32]>::from(whole.finalize()).into(), bytes }
}

#[tokio::main]
async fn main() {
    install_tls_provider();
    let mut words = std::env::args().skip(1);
    let bytes = words.next().map_or(1024, |word| word.parse::<u64>().expect("mebibytes")) << 20;
    let folder = words.next().map_or_else(std::env::temp_dir, PathBuf::from);
    let home = tempfile::tempdir_in(folder).unwrap();
    let original = home.path().join("original");
    let disk = written(&original, bytes);
    let file = hashed(&original, bytes);
    let hub = Hub::start(Options::default()).await.unwrap();
    let content = Content::declared(&original, &file.sha256.to_string()).unwrap();
    hub.publish("owner/rate", [(NAME, content)]);
    let order = Order {
        file: file.clone(),
        source: format!("{}owner/rate/", hub.url(Door::Web)).parse().unwrap(),
        credential: None,
        access: Access::default(),
        peers: watch::channel(Vec::new()).1,
        own_host: "host-a".to_owned(),
    };
    let store = Store::open(&home.path().join("one"), StoreOptions::default()).unwrap();
    let watch = Watch::start();
    let fetcher = Fetcher::new(store.clone(), FetchOptions::default());
    fetcher.fetch(&order, &Progress::new()).await.unwrap();
    let rate = watch.say("from a hub on loopback (with the hub's part)", bytes);
    println!("{:>52.0} % of the disk", rate / disk * 100.0);

    let authority = CertificateAuthority::create(SystemTime::now()).unwrap();
    let own = |name: &str| {
        let identity = Identity::host(name).unwrap();
        let own = authority.credentials(&identity, &[], SystemTime::now(), HOST_LIFETIME).unwrap();
        (identity.server_name(), watch::Sender::new(own))
    };
    let ((server_name, giving), (_, taking)) = (own("host-a"), own("host-b"));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let port = serve(listener, store, giving.subscribe(), Arc::new(|_| {}), std::future::pending());
    let links = vec![Link { address, tier: 0 }];
    let peers = watch::Sender::new(vec![Peer { host: "host-a".to_owned(), server_name, links }]);
    let order = Order { peers: peers.subscribe(), own_host: "host-b".to_owned(), ..order };
    let store = Store::open(&home.path().join("two"), StoreOptions::default()).unwrap();
    let options = FetchOptions { credentials: Some(taking.subscribe()), ..FetchOptions::default() };
    let (watch, progress, fetcher) = (Watch::start(), Progress::new(), Fetcher::new(store.clone(), options));
    tokio::select! {
        path = fetcher.fetch(&order, &progress) => drop(path.unwrap()),
        () = port => unreachable!("it serves for ever"),
    }
    assert_eq!(progress.peer_bytes(), bytes);
    let rate = watch.say("from another host over TLS (with its part)", bytes);
    println!("{:>52.0} % of the disk", rate / disk * 100.0);
    let watch = Watch::start();
    store.verify(&file.sha256, &progress).await.unwrap();
    watch.say("verifying a stored file", bytes);
}

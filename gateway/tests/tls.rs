//! A gateway under TLS whose certificate somebody renews while streams run.
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]
#![allow(
    dead_code,
    unreachable_pub,
    reason = "the support is shared by test files that each use a part of it"
)]

mod support;

use std::fs;
use std::path::Path;
use std::time::Duration;

use rcgen::{CertifiedKey, KeyPair, generate_simple_self_signed};
use support::client::{ask_by, body};
use support::worker::{Pause, Script};
use support::{Site, soon};
use tandem_gateway::{CertificateFiles, Policy};
use tandem_openai::Entrance;
use tandem_pki::install_tls_provider;
use tokio::sync::watch;

/// A certificate of its own authority, as a client that trusts nothing else sees it.
struct Pair {
    own: CertifiedKey<KeyPair>,
}

impl Pair {
    fn new() -> Self {
        Self { own: generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap() }
    }

    fn write(&self, dir: &Path) {
        fs::write(dir.join("tls.crt"), self.own.cert.pem()).unwrap();
        fs::write(dir.join("tls.key"), self.own.signing_key.serialize_pem()).unwrap();
    }

    fn client(&self) -> reqwest::Client {
        let own = reqwest::Certificate::from_pem(self.own.cert.pem().as_bytes()).unwrap();
        reqwest::Client::builder().tls_certs_only([own]).build().unwrap()
    }
}

fn files(dir: &Path) -> CertificateFiles {
    CertificateFiles { certificate: dir.join("tls.crt"), key: dir.join("tls.key") }
}

/// Whether a new connection can be made by who trusts this certificate alone.
async fn shown(url: &str, pair: &Pair) -> bool {
    soon(pair.client().get(format!("{url}/health")).send()).await.is_ok()
}

#[tokio::test]
async fn a_renewed_certificate_is_shown_to_new_connections_while_streams_go_on() {
    install_tls_provider();
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (Pair::new(), Pair::new());
    first.write(dir.path());
    let (newest, settings) = watch::channel(files(dir.path()).load().unwrap());
    let upkeep = tokio::spawn(files(dir.path()).keep_fresh(newest));
    let door = |listener| Entrance::with_tls(listener, settings);
    // It halts in mid-stream until it is let go on.
    let script = Script::pausing(Pause::Before(20));
    let site = Site::behind([script], Policy::default(), door).await;
    let url = site.url.replace("http:", "https:");
    assert!(reqwest::get(format!("{}/health", site.url)).await.is_err(), "served without TLS");

    let mut stream = soon(ask_by(&first.client(), &url, body(40))).await;
    stream.tokens(10).await;

    second.write(dir.path());
    let renewed = async {
        while !shown(&url, &second).await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    soon(renewed).await;
    assert!(!shown(&url, &first).await, "the certificate before is shown still");

    site.workers[0].release();
    let answer = stream.end().await;
    answer.assert_undisturbed(40);
    assert!(answer.seams.is_empty());
    upkeep.abort();
    site.finish().await;
}

#[tokio::test]
async fn silence_in_a_handshake_takes_no_seat_for_ever() {
    install_tls_provider();
    let dir = tempfile::tempdir().unwrap();
    let pair = Pair::new();
    pair.write(dir.path());
    let (_newest, settings) = watch::channel(files(dir.path()).load().unwrap());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let limits = tandem_openai::Limits {
        connections: 1,
        headers_within: Duration::from_millis(300),
        ..tandem_openai::Limits::default()
    };
    let router = axum::Router::new().route("/health", axum::routing::get(async || "ok"));
    let end = std::future::pending::<()>();
    let entrance = Entrance::with_tls(listener, settings);
    let server = tokio::spawn(tandem_openai::serve(entrance, router, limits, end));
    let silent = tokio::net::TcpStream::connect(address).await.unwrap();
    assert!(shown(&format!("https://{address}"), &pair).await, "the only seat was never given back");
    drop(silent);
    server.abort();
}

#[test]
fn what_can_not_be_used_is_named() {
    install_tls_provider();
    let dir = tempfile::tempdir().unwrap();
    let said = || format!("{:#}", anyhow::Error::from(files(dir.path()).load().unwrap_err()));
    assert!(said().contains("tls.crt can't be read"), "{}", said());
    let pair = Pair::new();
    fs::write(dir.path().join("tls.crt"), "-----BEGIN NOTHING-----").unwrap();
    fs::write(dir.path().join("tls.key"), "").unwrap();
    assert!(said().contains("tls.crt holds no certificate in PEM"), "{}", said());
    pair.write(dir.path());
    fs::write(dir.path().join("tls.key"), Pair::new().own.cert.pem()).unwrap();
    assert!(said().contains("tls.key holds no private key in PEM"), "{}", said());
    fs::write(dir.path().join("tls.key"), Pair::new().own.signing_key.serialize_pem()).unwrap();
    assert!(said().contains("can't be used together"), "{}", said());
    fs::write(dir.path().join("tls.key"), vec![b'a'; 2 << 20]).unwrap();
    assert!(said().contains("longer than"), "{}", said());
}

//! A web server with TLS of its own authority, whose files behave as badly as each test asks.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::serve::Listener;
use futures::{StreamExt, stream};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tandem_sources::Access;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// What a path answers.
#[derive(Clone)]
pub(crate) enum Answer {
    Bytes(Vec<u8>),
    /// Announces all bytes and breaks off after this many.
    Cut(Vec<u8>, usize),
    /// Announces all bytes, sends some, and then nothing more.
    Stall(Vec<u8>),
    Status(StatusCode),
    /// Without Content-Length, and without end.
    Endless,
}

type Script = Arc<Mutex<HashMap<String, (AtomicUsize, Vec<Answer>)>>>;

pub(crate) struct Server {
    pub(crate) url: String,
    pub(crate) ca_pem: String,
    script: Script,
}

impl Server {
    pub(crate) async fn start() -> Self {
        drop(tokio_rustls::rustls::crypto::ring::default_provider().install_default());
        let (ca_pem, acceptor) = tls();
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://127.0.0.1:{}/", tcp.local_addr().unwrap().port());
        let script = Script::default();
        let app = Router::new().fallback(answer).with_state(script.clone());
        tokio::spawn(axum::serve(Tls { tcp, acceptor }, app).into_future());
        Self { url, ca_pem, script }
    }

    /// Answers in order, one for each request; the last one for all further ones.
    pub(crate) fn on(&self, path: &str, answers: impl Into<Vec<Answer>>) {
        self.script.lock().unwrap().insert(path.to_owned(), (AtomicUsize::new(0), answers.into()));
    }

    pub(crate) fn asked(&self, path: &str) -> usize {
        self.script.lock().unwrap().get(path).map_or(0, |(asked, _)| asked.load(Ordering::SeqCst))
    }

    /// Trusts this server and waits shortly.
    pub(crate) fn access(&self) -> Access {
        Access::default()
            .trusting(self.ca_pem.as_bytes())
            .unwrap()
            .waiting(Duration::from_secs(5), Duration::from_millis(300))
            .retrying(3, Duration::from_millis(5))
    }
}

async fn answer(State(script): State<Script>, uri: Uri) -> Response {
    let answer = {
        let script = script.lock().unwrap();
        let Some((asked, answers)) = script.get(uri.path()) else {
            return StatusCode::NOT_FOUND.into_response();
        };
        answers[asked.fetch_add(1, Ordering::SeqCst).min(answers.len() - 1)].clone()
    };
    let announced = |length: usize, body| ([(header::CONTENT_LENGTH, length)], body).into_response();
    match answer {
        Answer::Bytes(bytes) => bytes.into_response(),
        Answer::Cut(bytes, after) => {
            let broken = stream::iter([
                Ok(Bytes::copy_from_slice(&bytes[..after])),
                Err(io::Error::from(io::ErrorKind::BrokenPipe)),
            ]);
            announced(bytes.len(), Body::from_stream(broken))
        }
        Answer::Stall(bytes) => {
            let some = Bytes::copy_from_slice(&bytes[..bytes.len() / 2]);
            let stalled = stream::iter([Ok::<_, io::Error>(some)]).chain(stream::pending());
            announced(bytes.len(), Body::from_stream(stalled))
        }
        Answer::Status(status) => status.into_response(),
        Answer::Endless => {
            Body::from_stream(stream::repeat_with(|| Ok::<_, io::Error>(Bytes::from_static(&[7; 65536]))))
                .into_response()
        }
    }
}

fn tls() -> (String, TlsAcceptor) {
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_pem = ca.self_signed(&ca_key).unwrap().pem();
    let issuer = Issuer::new(ca, ca_key);
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
    let config = tokio_rustls::rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], key.serialize_der().try_into().unwrap())
        .unwrap();
    (ca_pem, TlsAcceptor::from(Arc::new(config)))
}

struct Tls {
    tcp: TcpListener,
    acceptor: TlsAcceptor,
}

impl Listener for Tls {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let (tcp, address) = self.tcp.accept().await.unwrap();
            // A client that does not trust us hangs up here; the next one may.
            if let Ok(stream) = self.acceptor.accept(tcp).await {
                return (stream, address);
            }
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.tcp.local_addr()
    }
}

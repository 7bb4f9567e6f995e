//! Connections: accepting them, TLS where the hub speaks it, and one router for all doors.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;

use axum::body::Body;
use axum::http::{Method, Request, Response, StatusCode};
use axum::response::IntoResponse;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use percent_encoding::percent_decode_str;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;

use crate::{Door, Shared, huggingface, registry, s3, web};

/// What certificates come from.
pub(crate) struct Authority {
    pub(crate) pem: String,
    acceptor: TlsAcceptor,
}

impl Authority {
    pub(crate) fn new(names: &[String]) -> io::Result<Self> {
        let (pem, config) = certified(names).map_err(io::Error::other)?;
        Ok(Self { pem, acceptor: TlsAcceptor::from(Arc::new(config)) })
    }

    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        self.acceptor.clone()
    }
}

type Failed = Box<dyn std::error::Error + Send + Sync>;

fn certified(names: &[String]) -> Result<(String, ServerConfig), Failed> {
    let ca_key = KeyPair::generate()?;
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let pem = ca.self_signed(&ca_key)?.pem();
    let issuer = Issuer::new(ca, ca_key);
    let key = KeyPair::generate()?;
    let names: Vec<String> =
        names.iter().cloned().chain(["127.0.0.1".to_owned(), "localhost".to_owned()]).collect();
    let leaf = CertificateParams::new(names)?.signed_by(&key, &issuer)?;
    let key = key.serialize_der().try_into()?;
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], key)?;
    Ok((pem, config))
}

/// Serves one door until its task is dropped, and every connection with it.
pub(crate) async fn serve(listener: TcpListener, tls: Option<TlsAcceptor>, door: Door, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                // A client that is gone before it is accepted is its own trouble.
                let Ok((tcp, _)) = accepted else { continue };
                let (tls, shared) = (tls.clone(), Arc::clone(&shared));
                connections.spawn(async move {
                    match tls {
                        // A client that doesn't trust us hangs up here.
                        Some(tls) => if let Ok(stream) = tls.accept(tcp).await {
                            connection(stream, door, shared).await;
                        },
                        None => connection(tcp, door, shared).await,
                    }
                });
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    door: Door,
    shared: Arc<Shared>,
) {
    let service = service_fn(move |request: Request<Incoming>| {
        let shared = Arc::clone(&shared);
        async move { Ok::<_, Infallible>(answer(shared, door, request).await) }
    });
    let served = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    // Clients come and go; what they got is what tests look at.
    drop(served.await);
}

async fn answer(shared: Arc<Shared>, door: Door, request: Request<Incoming>) -> Response<Body> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return StatusCode::METHOD_NOT_ALLOWED.into_response();
    }
    let (parts, _) = request.into_parts();
    let path = percent_decode_str(parts.uri.path()).decode_utf8_lossy().into_owned();
    let counter = shared.counts.request(door, &path);
    let asked = Asked { door, path, counter, parts };
    match door {
        Door::Hub => huggingface::answer(&shared, asked).await,
        Door::Cdn => web::stored(&shared, asked).await,
        Door::S3 => s3::answer(&shared, asked).await,
        Door::Registry => registry::answer(&shared, asked).await,
        Door::Web => web::answer(&shared, asked).await,
    }
}

/// One request.
pub(crate) struct Asked {
    pub(crate) door: Door,
    /// Decoded, with its leading `/`.
    pub(crate) path: String,
    pub(crate) counter: Arc<crate::count::Counter>,
    pub(crate) parts: axum::http::request::Parts,
}

impl Asked {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.parts.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// The query's pairs, decoded, in order.
    pub(crate) fn query(&self) -> Vec<(String, String)> {
        let decoded =
            |text: &str| percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned();
        let query = self.parts.uri.query().unwrap_or_default();
        let pairs = query.split('&').filter(|pair| !pair.is_empty());
        pairs
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
            .map(|(k, v)| (decoded(k), decoded(v)))
            .collect()
    }

    pub(crate) fn parameter(&self, name: &str) -> Option<String> {
        self.query().into_iter().find(|(key, _)| key == name).map(|(_, value)| value)
    }
}

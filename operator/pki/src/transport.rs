//! Connections that follow their process's credentials: each new one is made with the newest, and one to somebody whose
//! certificate is revoked ends.

use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime};

use hyper_util::rt::TokioIo;
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::{sleep, timeout};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use crate::{ClientCertificates, Credentials, serial_of_certificate};

/// A handshake that takes longer than this is somebody holding a socket open.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Handshakes at once; more callers wait in the kernel's queue.
const HANDSHAKES: usize = 256;
/// Accept failed; most likely there are no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How often a folder of credentials is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// HTTP/2, as gRPC wants it.
const H2: &[u8] = b"h2";

/// Credentials of which no TLS settings can be made.
#[derive(Debug, Error)]
pub enum TlsError {
    /// Not PEM, or not of certificates and a key.
    #[error("certificates or key can't be read")]
    Unreadable(#[from] rustls_pki_types::pem::Error),
    /// A key of another certificate, or a certificate that TLS can't use.
    #[error("certificates or key can't be used")]
    Unusable(#[from] rustls::Error),
    /// No authority to check callers against.
    #[error("the authorities can't be used")]
    Authorities(#[from] rustls::server::VerifierBuilderError),
}

/// How a server shows itself and checks its callers. The chain that it shows includes the authorities, so that who joins can pin one.
///
/// # Errors
/// When the credentials can't be used.
pub fn server_config(
    own: &Credentials,
    clients: ClientCertificates,
    alpn: &[u8],
) -> Result<ServerConfig, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(own)?), provider.clone());
    let verifier = match clients {
        ClientCertificates::Required => verifier.build()?,
        ClientCertificates::Optional => verifier.allow_unauthenticated().build()?,
    };
    let mut chain = certificates(&own.certificate_pem)?;
    chain.extend(certificates(&own.ca_pem)?);
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key(own)?)?;
    config.alpn_protocols = vec![alpn.to_vec()];
    Ok(config)
}

fn client_config(own: &Credentials) -> Result<ClientConfig, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots(own)?)
        .with_client_auth_cert(certificates(&own.certificate_pem)?, key(own)?)?;
    config.alpn_protocols = vec![H2.to_vec()];
    Ok(config)
}

fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, rustls_pki_types::pem::Error> {
    CertificateDer::pem_slice_iter(pem.as_bytes()).collect()
}

fn key(own: &Credentials) -> Result<PrivateKeyDer<'static>, rustls_pki_types::pem::Error> {
    PrivateKeyDer::from_pem_slice(own.key_pem.as_bytes())
}

fn roots(own: &Credentials) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for authority in certificates(&own.ca_pem)? {
        roots.add(authority)?;
    }
    Ok(roots)
}

/// Callers who have got through the handshake, for a tonic server. With [`ClientCertificates::Required`] nobody whose
/// certificate is revoked does, and who is connected then is cut off; with `Optional` every call has to look for itself, so
/// that it can say why.
///
/// # Errors
/// When the credentials can't be used. Later ones that can't be used are logged, and those before go on.
pub fn incoming(
    listener: TcpListener,
    credentials: watch::Receiver<Credentials>,
    clients: ClientCertificates,
) -> Result<ReceiverStream<io::Result<Connection>>, TlsError> {
    let acceptor = acceptor(&credentials.borrow().clone(), clients)?;
    let (through, arrived) = mpsc::channel(HANDSHAKES);
    tokio::spawn(accept(listener, credentials, clients, acceptor, through));
    Ok(ReceiverStream::new(arrived))
}

fn acceptor(own: &Credentials, clients: ClientCertificates) -> Result<TlsAcceptor, TlsError> {
    Ok(TlsAcceptor::from(Arc::new(server_config(own, clients, H2)?)))
}

/// Until the server ends.
async fn accept(
    listener: TcpListener,
    mut credentials: watch::Receiver<Credentials>,
    clients: ClientCertificates,
    mut acceptor: TlsAcceptor,
    through: mpsc::Sender<io::Result<Connection>>,
) {
    let seats = Arc::new(Semaphore::new(HANDSHAKES));
    credentials.mark_unchanged();
    loop {
        let seat = seats.clone().acquire_owned().await.expect("it is never closed");
        let socket = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((socket, _)) => socket,
                Err(error) => {
                    tracing::warn!(%error, "a caller could not be accepted");
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
            () = through.closed() => return,
        };
        if credentials.has_changed().unwrap_or(false) {
            match self::acceptor(&credentials.borrow_and_update().clone(), clients) {
                Ok(newer) => acceptor = newer,
                Err(error) => tracing::error!(error = %error, "newer credentials can't be used"),
            }
        }
        let (acceptor, credentials, through) = (acceptor.clone(), credentials.clone(), through.clone());
        tokio::spawn(async move {
            let _seat = seat;
            match timeout(HANDSHAKE, Connection::accept(socket, &acceptor, credentials, clients)).await {
                // Nobody listens any more: the caller sees its connection end.
                Ok(Ok(connection)) => drop(through.send(Ok(connection)).await),
                Ok(Err(error)) => tracing::debug!(%error, "a caller is not let in"),
                Err(_) => tracing::debug!("a handshake was given up"),
            }
        });
    }
}

/// A caller's connection.
pub struct Connection(Guarded<tokio_rustls::server::TlsStream<TcpStream>>);

impl Connection {
    async fn accept(
        socket: TcpStream,
        acceptor: &TlsAcceptor,
        credentials: watch::Receiver<Credentials>,
        clients: ClientCertificates,
    ) -> io::Result<Self> {
        socket.set_nodelay(true)?;
        let stream = acceptor.accept(socket).await?;
        let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first).cloned();
        let shown = shown.filter(|_| clients == ClientCertificates::Required);
        Ok(Self(Guarded::new(stream, shown.as_ref(), credentials)?))
    }
}

impl Connected for Connection {
    type ConnectInfo = <tokio_rustls::server::TlsStream<TcpStream> as Connected>::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.0.stream.connect_info()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// Dials whoever has this server name, with the newest credentials; the connection ends when the server's certificate is
/// revoked. `endpoint` is plain `http://HOST:PORT`: TLS is made here.
///
/// # Errors
/// When nobody is there, or somebody else.
pub async fn dial(
    endpoint: &Endpoint,
    server_name: &str,
    credentials: watch::Receiver<Credentials>,
) -> Result<Channel, tonic::transport::Error> {
    let server_name = server_name.to_owned();
    let connector = service_fn(move |uri: tonic::transport::Uri| {
        let (server_name, credentials) = (server_name.clone(), credentials.clone());
        async move {
            let connected = timeout(HANDSHAKE, connect(&uri, server_name, credentials)).await;
            connected.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?.map(TokioIo::new)
        }
    });
    endpoint.connect_with_connector(connector).await
}

async fn connect(
    uri: &tonic::transport::Uri,
    server_name: String,
    credentials: watch::Receiver<Credentials>,
) -> io::Result<Guarded<tokio_rustls::client::TlsStream<TcpStream>>> {
    let invalid =
        |error: &dyn std::error::Error| io::Error::new(io::ErrorKind::InvalidInput, error.to_string());
    let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    let config = client_config(&credentials.borrow().clone()).map_err(|error| invalid(&error))?;
    let name = ServerName::try_from(server_name).map_err(|error| invalid(&error))?;
    let socket = TcpStream::connect((host, uri.port_u16().unwrap_or(443))).await?;
    socket.set_nodelay(true)?;
    let stream = TlsConnector::from(Arc::new(config)).connect(name, socket).await?;
    let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first).cloned();
    Guarded::new(stream, shown.as_ref(), credentials)
}

/// A stream that breaks when its peer's certificate is revoked.
struct Guarded<S> {
    stream: S,
    revoked: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl<S> Guarded<S> {
    fn new(
        stream: S,
        peer: Option<&CertificateDer<'_>>,
        credentials: watch::Receiver<Credentials>,
    ) -> io::Result<Self> {
        let Some(peer) = peer else {
            return Ok(Self { stream, revoked: Box::pin(std::future::pending()) });
        };
        let serial = serial_of_certificate(peer).map_err(io::Error::other)?;
        if credentials.borrow().revoked.contains(&serial) {
            return Err(cut());
        }
        Ok(Self { stream, revoked: Box::pin(revoked(serial, credentials)) })
    }
}

/// Ready when the certificate of this serial number is.
async fn revoked(serial: String, mut credentials: watch::Receiver<Credentials>) {
    if credentials.wait_for(|own| own.revoked.contains(&serial)).await.is_err() {
        // Nobody is left who could say so.
        std::future::pending().await
    }
}

fn cut() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, "the peer's certificate is revoked")
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.revoked.as_mut().poll(cx).is_ready() {
            self.revoked = Box::pin(std::future::ready(()));
            return Poll::Ready(Err(cut()));
        }
        let read = ready!(Pin::new(&mut self.stream).poll_read(cx, buf));
        Poll::Ready(read)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// The credentials in `dir`, now and whenever somebody else replaces them there. Half of a replacement is waited out.
pub fn kept_fresh(dir: PathBuf, first: Credentials) -> watch::Receiver<Credentials> {
    let (newest, credentials) = watch::channel(first);
    tokio::spawn(async move {
        let mut seen = marks(&dir);
        loop {
            tokio::select! {
                () = sleep(LOOK) => {}
                () = newest.closed() => return,
            }
            let now = marks(&dir);
            if now == seen {
                continue;
            }
            match Credentials::load(&dir) {
                Ok(loaded) if server_config(&loaded, ClientCertificates::Required, H2).is_ok() => {
                    seen = now;
                    newest.send_if_modified(|known| {
                        let changed = *known != loaded;
                        *known = loaded;
                        changed
                    });
                }
                Ok(_) => tracing::debug!(dir = %dir.display(), "certificate and key do not fit yet"),
                Err(error) => tracing::warn!(%error, "newer credentials can't be read"),
            }
        }
    });
    credentials
}

/// When each file was written.
fn marks(dir: &std::path::Path) -> Vec<(PathBuf, Option<SystemTime>)> {
    let mut files: Vec<_> = std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .map(|file| (file.path(), file.metadata().and_then(|file| file.modified()).ok()))
        .collect();
    files.sort();
    files
}

//! A router on a socket, with a bound on everything that a client can make us wait for.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_io_timeout::TimeoutStream;
use tokio_rustls::TlsAcceptor;

/// Where clients come in: a socket, as it is or under TLS.
pub struct Entrance {
    socket: TcpListener,
    tls: Option<watch::Receiver<Arc<ServerConfig>>>,
}

impl Entrance {
    /// Under TLS. Each connection is made with the newest settings; those that are open keep theirs.
    #[must_use]
    pub fn with_tls(socket: TcpListener, settings: watch::Receiver<Arc<ServerConfig>>) -> Self {
        Self { socket, tls: Some(settings) }
    }
}

impl From<TcpListener> for Entrance {
    fn from(socket: TcpListener) -> Self {
        Self { socket, tls: None }
    }
}

/// What clients may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at once; more wait to be accepted.
    pub connections: usize,
    /// The headers of a request, the next one on a kept connection too, must arrive within this; so must a handshake.
    pub headers_within: Duration,
    /// A client that reads nothing for so long while we write is cut off.
    pub read_within: Duration,
    /// How long streams may go on after the end was asked for.
    pub grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 1024,
            headers_within: Duration::from_secs(15),
            read_within: Duration::from_secs(60),
            grace: Duration::from_secs(30),
        }
    }
}

/// Accept failed; most likely there are no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until `end` resolves, then lets what runs finish for at most [`Limits::grace`]. What is left is dropped,
/// which cancels it.
pub async fn serve(
    entrance: impl Into<Entrance>,
    router: Router,
    limits: Limits,
    end: impl Future<Output = ()>,
) {
    let Entrance { socket: listener, tls } = entrance.into();
    let graceful = GracefulShutdown::new();
    let seats = Arc::new(Semaphore::new(limits.connections));
    let mut connections = JoinSet::new();
    tokio::pin!(end);
    loop {
        while connections.try_join_next().is_some() {}
        let accepted = tokio::select! {
            () = &mut end => break,
            accepted = accept(&listener, &seats) => accepted,
        };
        let (socket, seat) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let settings = tls.as_ref().map(|newest| newest.borrow().clone());
        // Taken here, so that none is overlooked that begins while the end is asked for.
        let (router, watcher) = (router.clone(), graceful.watcher());
        connections.spawn(async move {
            let socket = bounded(socket, limits);
            match settings {
                None => converse(socket, router, limits, watcher).await,
                Some(settings) => {
                    match timeout(limits.headers_within, TlsAcceptor::from(settings).accept(socket)).await {
                        Ok(Ok(socket)) => converse(socket, router, limits, watcher).await,
                        Ok(Err(error)) => tracing::debug!(%error, "a client's handshake failed"),
                        Err(_) => tracing::debug!("a client's handshake took too long"),
                    }
                }
            }
            drop(seat);
        });
    }
    drop(listener);
    if timeout(limits.grace, graceful.shutdown()).await.is_err() {
        tracing::warn!(left = connections.len(), "streams were cut: they went on past the grace period");
    }
    connections.shutdown().await;
}

/// Answers the requests of one connection.
async fn converse<S>(socket: S, router: Router, limits: Limits, watcher: Watcher)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.headers_within)
        .serve_connection(TokioIo::new(socket), TowerToHyperService::new(router));
    if let Err(error) = watcher.watch(connection).await {
        tracing::debug!(%error, "a client's connection broke");
    }
}

async fn accept(
    listener: &TcpListener,
    seats: &Arc<Semaphore>,
) -> io::Result<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let seat = seats.clone().acquire_owned().await.map_err(io::Error::other)?;
    let (socket, _) = listener.accept().await?;
    // A token is a small packet: it shall not wait for more.
    socket.set_nodelay(true)?;
    Ok((socket, seat))
}

fn bounded(socket: TcpStream, limits: Limits) -> std::pin::Pin<Box<TimeoutStream<TcpStream>>> {
    let mut socket = TimeoutStream::new(socket);
    socket.set_write_timeout(Some(limits.read_within));
    Box::pin(socket)
}

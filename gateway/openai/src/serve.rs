//! A router on a socket, with a bound on everything that a client can make us wait for.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_io_timeout::TimeoutStream;

/// What clients may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at once; more wait to be accepted.
    pub connections: usize,
    /// The headers of a request, the next one on a kept connection too, must arrive within this.
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
pub async fn serve(listener: TcpListener, router: Router, limits: Limits, end: impl Future<Output = ()>) {
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
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.headers_within)
            .serve_connection(
                TokioIo::new(bounded(socket, limits)),
                TowerToHyperService::new(router.clone()),
            );
        let connection = graceful.watch(connection);
        connections.spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a client's connection broke");
            }
            drop(seat);
        });
    }
    drop(listener);
    if tokio::time::timeout(limits.grace, graceful.shutdown()).await.is_err() {
        tracing::warn!(left = connections.len(), "streams were cut: they went on past the grace period");
    }
    connections.shutdown().await;
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

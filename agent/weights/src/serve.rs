//! The port from which other hosts of the cluster read pieces: mutual TLS, and nobody but hosts. What is served is verified, or
//! on its way with every piece of it hashed; a file whose marks have changed is not served.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, Response, StatusCode, header};
use axum::response::Json;
use axum::routing::get;
use axum::{Extension, Router};
use futures::{TryStreamExt, stream};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde::Deserialize;
use tandem_pki::{ClientCertificates, Credentials, Identity, TlsError, serial_of_certificate, server_config};
use tandem_sources::{Body as File, Sha256Hex, TransferError};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_io_timeout::TimeoutStream;
use tokio_rustls::TlsAcceptor;

use crate::partial::{Have, Partial};
use crate::peers::{IDLE, NEWS_WITHIN, News};
use crate::pieces::Cut;
use crate::record::Record;
use crate::store::Store;

/// Connections at once; more wait until one ends.
const CALLERS: usize = 256;
/// A handshake that takes longer is somebody holding a socket open.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// A caller that takes no byte for so long is cut off.
const READS_WITHIN: Duration = Duration::from_secs(30);
/// Accept failed; most likely there are no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// The run in which a whole file's pieces are counted: it never changes.
const WHOLE: u64 = u64::MAX;

/// Is told how many bytes were sent.
pub type Sent = Arc<dyn Fn(u64) + Send + Sync>;

/// Serves pieces to other hosts until `shutdown` resolves. Credentials are those of this host; renewed ones count from the
/// next connection on, and who is revoked is cut off at once.
pub async fn serve(
    listener: TcpListener,
    store: Store,
    credentials: watch::Receiver<Credentials>,
    sent: Sent,
    shutdown: impl Future<Output = ()>,
) {
    let router = Router::new()
        .route("/v1/weights/{sha256}", get(piece))
        .route("/v1/weights/{sha256}/pieces", get(pieces))
        .with_state(Shared { store, sent });
    let (seats, mut connections) = (Arc::new(Semaphore::new(CALLERS)), JoinSet::new());
    let mut known: Option<(Credentials, TlsAcceptor)> = None;
    tokio::pin!(shutdown);
    loop {
        while connections.try_join_next().is_some() {}
        let accepted = tokio::select! {
            () = &mut shutdown => return,
            accepted = accept(&listener, &seats) => accepted,
        };
        let (socket, seat) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "another host could not be accepted");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let own = credentials.borrow().clone();
        if known.as_ref().is_none_or(|(known, _)| *known != own) {
            match acceptor(&own) {
                Ok(acceptor) => known = Some((own, acceptor)),
                Err(error) => {
                    tracing::error!(%error, "this host's credentials can't be shown to other hosts")
                }
            }
        }
        if let Some((_, acceptor)) = &known {
            let (acceptor, router, credentials) = (acceptor.clone(), router.clone(), credentials.clone());
            connections.spawn(converse(socket, acceptor, router, credentials, seat));
        }
    }
}

async fn accept(
    listener: &TcpListener,
    seats: &Arc<Semaphore>,
) -> std::io::Result<(TcpStream, OwnedSemaphorePermit)> {
    let seat = seats.clone().acquire_owned().await.expect("it is never closed");
    let (socket, _) = listener.accept().await?;
    socket.set_nodelay(true)?;
    Ok((socket, seat))
}

/// One connection, if it is a host's.
async fn converse(
    socket: TcpStream,
    acceptor: TlsAcceptor,
    router: Router,
    mut credentials: watch::Receiver<Credentials>,
    _seat: OwnedSemaphorePermit,
) {
    let mut socket = TimeoutStream::new(socket);
    socket.set_write_timeout(Some(READS_WITHIN));
    let socket = match timeout(HANDSHAKE, acceptor.accept(Box::pin(socket))).await {
        Ok(Ok(socket)) => socket,
        Ok(Err(error)) => {
            return tracing::debug!(%error, "somebody without a certificate of this cluster calls");
        }
        Err(_) => return tracing::debug!("a handshake was given up"),
    };
    let shown = socket.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let caller = match shown.map(|certificate| Identity::of_certificate(certificate)) {
        Some(Ok(Identity::Host(name))) => Caller(name.as_str().into()),
        Some(Ok(other)) => return tracing::warn!(%other, "only hosts read weights here"),
        _ => return tracing::warn!("only hosts read weights here"),
    };
    let Some(Ok(serial)) = shown.map(|certificate| serial_of_certificate(certificate)) else {
        return tracing::warn!("only hosts read weights here");
    };
    let router = router.layer(Extension(caller));
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE)
        .serve_connection(TokioIo::new(socket), TowerToHyperService::new(router));
    tokio::select! {
        ended = connection => if let Err(error) = ended {
            tracing::debug!(%error, "another host's connection broke");
        },
        Ok(_) = credentials.wait_for(|own| own.revoked.contains(&serial)) => {
            tracing::warn!("a host whose certificate is revoked is cut off");
        }
    }
}

fn acceptor(credentials: &Credentials) -> Result<TlsAcceptor, TlsError> {
    let config = server_config(credentials, ClientCertificates::Required, b"http/1.1")?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// The host that asks, as its certificate says.
#[derive(Clone)]
struct Caller(Arc<str>);

#[derive(Clone)]
struct Shared {
    store: Store,
    sent: Sent,
}

/// What the caller knows of a file's pieces here, and how long it waits for more, in milliseconds.
#[derive(Deserialize)]
struct Known {
    run: u64,
    told: u32,
    changes: u64,
    wait: u64,
}

async fn pieces(
    State(Shared { store, .. }): State<Shared>,
    Extension(Caller(caller)): Extension<Caller>,
    Path(sha256): Path<String>,
    Query(known): Query<Known>,
) -> Result<Json<News>, StatusCode> {
    let sha256: Sha256Hex = sha256.parse().map_err(|_| StatusCode::BAD_REQUEST)?;
    if known.run == 0 {
        store.called_by(&caller);
    }
    let wait = Duration::from_millis(known.wait).min(NEWS_WITHIN);
    let mut begins = store.news();
    let found = timeout(wait, async {
        loop {
            if let Some(there) = There::of(&store, &sha256) {
                return there;
            }
            if begins.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    });
    match found.await.map_err(|_| StatusCode::NOT_FOUND)? {
        There::Whole { record, .. } => {
            let news = whole(record.cut(), &record.digests, &known);
            if news.pieces.is_empty() && known.changes == news.changes {
                sleep(wait).await;
            }
            Ok(Json(news))
        }
        There::Coming(partial) => {
            let mut have = partial.watch();
            // Late or not: what there is is said, as a sign of life.
            drop(timeout(wait, have.wait_for(|have| changes(have) != known.changes)).await);
            Ok(Json(coming(&partial, &known)))
        }
    }
}

/// A file that others may read from here.
enum There {
    Whole { path: PathBuf, record: Arc<Record> },
    Coming(Arc<Partial>),
}

impl There {
    fn of(store: &Store, sha256: &Sha256Hex) -> Option<Self> {
        if let (Some(record), Some(path)) = (store.record(sha256), store.path_of(sha256)) {
            return Some(Self::Whole { path, record });
        }
        store.partial(sha256).map(Self::Coming)
    }
}

fn whole(cut: Cut, digests: &[crate::Digest], known: &Known) -> News {
    let told = if known.run == WHOLE { known.told } else { 0 };
    News {
        bytes: cut.bytes(),
        piece_bytes: cut.piece_bytes(),
        run: WHOLE,
        told: cut.count(),
        pieces: (0..).zip(digests.iter().copied()).skip(told as usize).collect(),
        claims: Vec::new(),
        takes: false,
        received: 0,
        changes: WHOLE,
    }
}

fn coming(partial: &Partial, known: &Known) -> News {
    let have = partial.have();
    let told = if known.run == have.run { known.told } else { 0 };
    let piece = |piece: &u32| Some((*piece, have.digests[*piece as usize]?));
    News {
        bytes: partial.cut.bytes(),
        piece_bytes: partial.cut.piece_bytes(),
        run: have.run,
        told: u32::try_from(have.log.len()).expect("a file has fewer than 2^32 pieces"),
        pieces: have.log.iter().skip(told as usize).filter_map(piece).collect(),
        claims: have.claims.iter().copied().collect(),
        takes: have.takes,
        received: partial.received(),
        changes: changes(&have),
    }
}

/// A number that is another one after every change of what is said of a file on its way.
fn changes(have: &Have) -> u64 {
    let mut hasher = DefaultHasher::new();
    (have.run, have.log.len(), &have.claims, have.takes).hash(&mut hasher);
    hasher.finish()
}

async fn piece(
    State(Shared { store, sent }): State<Shared>,
    Path(sha256): Path<String>,
    headers: HeaderMap,
) -> Result<Response<Body>, StatusCode> {
    let sha256: Sha256Hex = sha256.parse().map_err(|_| StatusCode::BAD_REQUEST)?;
    let range = range(&headers).ok_or(StatusCode::RANGE_NOT_SATISFIABLE)?;
    let mut opened = open(&store, &sha256, &range).await?;
    if let Err(TransferError::NotFound(_)) = opened.file {
        // It came to its place in between.
        opened = open(&store, &sha256, &range).await?;
    }
    let Opened { file, cut, expected } = opened;
    store.touch(&sha256);
    let file = file.inspect_err(complain).map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?;
    let left = range.end - range.start;
    let blocks =
        stream::try_unfold((file, blake3::Hasher::new(), left), move |(mut file, mut hasher, left)| {
            let store = store.clone();
            async move {
                let Some(block) = file.next().await? else { return Ok(None) };
                let left = left - block.len() as u64;
                if let Some(expected) = expected {
                    hasher.update(&block);
                    if left == 0 && crate::Digest::from(hasher.finalize()) != expected {
                        store.suspect(&sha256);
                        return Err(TransferError::File {
                            path: sha256.to_string().into(),
                            source: rotten(),
                        });
                    }
                }
                Ok::<_, TransferError>(Some((block, (file, hasher, left))))
            }
        });
    let counted = blocks.inspect_ok(move |block| sent(block.len() as u64)).inspect_err(complain);
    let response = Response::builder()
        .status(StatusCode::PARTIAL_CONTENT)
        .header(header::CONTENT_LENGTH, range.end - range.start)
        .header(header::CONTENT_RANGE, format!("bytes {}-{}/{}", range.start, range.end - 1, cut.bytes()))
        .body(Body::from_stream(counted))
        .expect("numbers are fine in headers");
    Ok(response)
}

fn complain(error: &TransferError) {
    tracing::error!(error = error as &dyn std::error::Error, "a piece can't be given to another host");
}

fn rotten() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "it reads otherwise than it was verified: the disk has changed it",
    )
}

/// A file of which a range is read, and what the range must hash to when it is a piece of a verified file.
struct Opened {
    file: Result<File, TransferError>,
    cut: Cut,
    expected: Option<crate::Digest>,
}

async fn open(store: &Store, sha256: &Sha256Hex, range: &Range<u64>) -> Result<Opened, StatusCode> {
    let within =
        |cut: &Cut| (range.end <= cut.bytes()).then_some(()).ok_or(StatusCode::RANGE_NOT_SATISFIABLE);
    let (path, cut, expected) = match There::of(store, sha256).ok_or(StatusCode::NOT_FOUND)? {
        There::Whole { path, record } => {
            let cut = record.cut();
            within(&cut)?;
            let piece = cut.pieces_of(range).start;
            let expected = (cut.range(piece) == *range).then(|| record.digests[piece as usize]);
            (path, cut, expected)
        }
        There::Coming(partial) => {
            within(&partial.cut)?;
            let have = partial.have();
            if !partial.cut.pieces_of(range).all(|piece| have.has(piece)) {
                return Err(StatusCode::NOT_FOUND);
            }
            (partial.path.clone(), partial.cut, None)
        }
    };
    Ok(Opened { file: File::of_file(&path, Some(range.clone())).await, cut, expected })
}

/// `bytes=FIRST-LAST`, as other hosts ask.
fn range(headers: &HeaderMap) -> Option<Range<u64>> {
    let text = headers.get(header::RANGE)?.to_str().ok()?;
    let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
    (first <= last && last < u64::MAX).then(|| first..last + 1)
}

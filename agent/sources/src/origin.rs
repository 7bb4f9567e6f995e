//! A source made ready to read from, and its files as streams of bytes. Names are resolved once: every later connection
//! goes to the addresses that were checked.

use std::io::{self, SeekFrom};
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::path::{Path, PathBuf};

use bytes::{BufMut, Bytes, BytesMut};
use reqwest::redirect::Policy;
use reqwest::{Client, Response, StatusCode, Url, header};
use thiserror::Error;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio::net::lookup_host;
use tokio::time::timeout;

use crate::source::{self, is_forbidden};
use crate::{Access, Secret, Source};

/// How much of a local file is read at once, in bytes.
const BLOCK: usize = 1 << 20;
const MOST_REDIRECTS: usize = 5;

/// A file could not be read to its end.
#[derive(Debug, Error)]
pub enum TransferError {
    /// It is not there.
    #[error("`{0}` does not exist")]
    NotFound(String),
    /// A folder, pipe or device.
    #[error("`{0}` is not a regular file")]
    NotAFile(String),
    /// The disk said no.
    #[error("`{path}` can't be read")]
    File {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The name of the host has no address.
    #[error("the host of `{url}` has no address")]
    NoAddress {
        /// Where it was to be fetched from.
        url: Url,
        /// What the resolver said, when it failed.
        source: Option<io::Error>,
    },
    /// The name of the host leads to an address that no model comes from.
    #[error("`{host}` leads to {address}, a link-local, metadata or multicast address: not fetched")]
    ForbiddenAddress {
        /// The name.
        host: String,
        /// What it resolves to.
        address: IpAddr,
    },
    /// No TLS settings could be made.
    #[error("no connection could be set up")]
    Client(#[source] reqwest::Error),
    /// Nobody answers, TLS fails, or the body breaks off.
    #[error("`{url}` could not be fetched")]
    Http {
        /// What was fetched.
        url: Url,
        /// What went wrong.
        source: reqwest::Error,
    },
    /// The server sends us elsewhere.
    #[error(
        "`{url}` redirects to another host, scheme or port, which is not followed: name that place in the source"
    )]
    Redirect {
        /// What was fetched.
        url: Url,
    },
    /// Another answer than 200.
    #[error("`{url}` answers {status}")]
    Status {
        /// What was fetched.
        url: Url,
        /// What the server said.
        status: StatusCode,
    },
}

impl TransferError {
    /// Whether the next try may go better.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Http { .. } => true,
            Self::NoAddress { source, .. } => source.is_some(),
            Self::Status { status, .. } => {
                status.is_server_error() || matches!(status.as_u16(), 408 | 425 | 429)
            }
            _ => false,
        }
    }
}

/// A source made ready to read from. Cheap to share; every read is a request of its own.
pub struct Origin(Place);

enum Place {
    Folder(PathBuf),
    Site { client: Client, base: Url },
}

/// An open file, or a range of one.
pub struct Body {
    from: From,
    /// Length of the whole file in bytes, as the file system or the server says.
    pub file_length: Option<u64>,
}

enum From {
    File { file: File, path: PathBuf, left: u64 },
    Site { response: Response, url: Url },
}

impl Origin {
    /// Prepares to read: resolves and checks the host once, and gets what every read needs.
    ///
    /// # Errors
    /// When nothing could be read from there.
    pub async fn open(
        source: &Source,
        _credential: Option<&Secret>,
        access: &Access,
    ) -> Result<Self, TransferError> {
        match &source.place {
            source::Place::Folder(path) => Ok(Self(Place::Folder(path.clone()))),
            source::Place::Site(base) => {
                Ok(Self(Place::Site { client: client(base, access).await?, base: base.clone() }))
            }
        }
    }

    /// Reads a file, or the bytes of it that `range` names, which must not be empty. `name` is relative and stays inside
    /// the origin; the caller has checked that. One try.
    ///
    /// # Errors
    /// When the file is not there, or does not answer for just these bytes.
    pub async fn read(&self, name: &str, range: Option<Range<u64>>) -> Result<Body, TransferError> {
        match &self.0 {
            Place::Folder(folder) => Body::of_file(&folder.join(name), range).await,
            Place::Site { client, base } => {
                let mut url = base.clone();
                if let Ok(mut segments) = url.path_segments_mut() {
                    segments.pop_if_empty().extend(name.split('/'));
                }
                get(client, url, range).await
            }
        }
    }

    /// Whether this is a local folder that is not there.
    pub(crate) fn is_missing(&self) -> bool {
        matches!(&self.0, Place::Folder(folder) if !folder.is_dir())
    }

    /// Where a file is on this machine's own disk, for sources that are there.
    #[must_use]
    pub fn local_path(&self, name: &str) -> Option<PathBuf> {
        match &self.0 {
            Place::Folder(folder) => Some(folder.join(name)),
            Place::Site { .. } => None,
        }
    }
}

impl Body {
    /// Opens a file of this machine, or a range of it.
    ///
    /// # Errors
    /// When it is not there, or no regular file.
    pub async fn of_file(path: &Path, range: Option<Range<u64>>) -> Result<Self, TransferError> {
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => TransferError::NotFound(path.display().to_string()),
            _ => TransferError::File { path: path.to_owned(), source },
        };
        // Asked before opening: opening a pipe would wait for its writer.
        let metadata = tokio::fs::metadata(path).await.map_err(failed)?;
        if !metadata.is_file() {
            return Err(TransferError::NotAFile(path.display().to_string()));
        }
        let mut file = File::open(path).await.map_err(failed)?;
        file.set_max_buf_size(BLOCK);
        let Range { start, end } = range.unwrap_or(0..u64::MAX);
        file.seek(SeekFrom::Start(start)).await.map_err(failed)?;
        let from = From::File { file, path: path.to_owned(), left: end.saturating_sub(start) };
        Ok(Self { from, file_length: Some(metadata.len()) })
    }

    /// The next bytes, up to a mebibyte; `None` at the end.
    ///
    /// # Errors
    /// When the transfer breaks off.
    pub async fn next(&mut self) -> Result<Option<Bytes>, TransferError> {
        match &mut self.from {
            From::File { file, path, left } => {
                let most = BLOCK.min(usize::try_from(*left).unwrap_or(BLOCK));
                let mut block = BytesMut::with_capacity(most).limit(most);
                let read = file.read_buf(&mut block).await;
                let read = read.map_err(|source| TransferError::File { path: path.clone(), source })?;
                *left -= read as u64;
                Ok((read > 0).then(|| block.into_inner().freeze()))
            }
            From::Site { response, url } => response.chunk().await.map_err(|e| http(url.clone(), e)),
        }
    }
}

async fn client(base: &Url, access: &Access) -> Result<Client, TransferError> {
    let addresses = addresses(base, access).await?;
    let mut builder = Client::builder()
        .user_agent(concat!("tandem/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(access.connect)
        .read_timeout(access.idle)
        .no_proxy()
        .referer(false)
        .redirect(Policy::custom(|attempt| {
            let stays =
                attempt.previous().first().is_some_and(|first| first.origin() == attempt.url().origin());
            if stays && attempt.previous().len() <= MOST_REDIRECTS {
                attempt.follow()
            } else {
                attempt.stop()
            }
        }))
        .resolve_to_addrs(base.host_str().unwrap_or_default(), &addresses);
    builder = if base.scheme() == "http" {
        builder.tls_certs_only([])
    } else {
        builder.https_only(true).tls_certs_merge(access.extra_roots.iter().cloned())
    };
    builder.build().map_err(TransferError::Client)
}

async fn addresses(base: &Url, access: &Access) -> Result<Vec<SocketAddr>, TransferError> {
    let host = base.host_str().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    let port = base.port_or_known_default().unwrap_or(443);
    let unknown = |source| TransferError::NoAddress { url: base.clone(), source };
    let found = timeout(access.connect, lookup_host((host, port))).await;
    let found = found.unwrap_or_else(|late| Err(late.into())).map_err(|error| unknown(Some(error)))?;
    let addresses: Vec<SocketAddr> = found.collect();
    if let Some(bad) = addresses.iter().find(|address| is_forbidden(address.ip())) {
        return Err(TransferError::ForbiddenAddress { host: host.to_owned(), address: bad.ip() });
    }
    if addresses.is_empty() { Err(unknown(None)) } else { Ok(addresses) }
}

async fn get(client: &Client, url: Url, range: Option<Range<u64>>) -> Result<Body, TransferError> {
    let mut request = client.get(url.clone());
    if let Some(Range { start, end }) = &range {
        request = request.header(header::RANGE, format!("bytes={start}-{}", end - 1));
    }
    let response = request.send().await.map_err(|e| http(url.clone(), e))?;
    let file_length = match response.status() {
        StatusCode::OK if range.is_none() => response.content_length(),
        StatusCode::PARTIAL_CONTENT if range.is_some() => {
            let range = response.headers().get(header::CONTENT_RANGE).and_then(|range| range.to_str().ok());
            range.and_then(|range| range.rsplit_once('/')).and_then(|(_, length)| length.parse().ok())
        }
        StatusCode::NOT_FOUND | StatusCode::GONE => return Err(TransferError::NotFound(url.to_string())),
        status if status.is_redirection() => return Err(TransferError::Redirect { url }),
        status => return Err(TransferError::Status { url, status }),
    };
    Ok(Body { file_length, from: From::Site { response, url } })
}

fn http(url: Url, source: reqwest::Error) -> TransferError {
    TransferError::Http { url, source: source.without_url() }
}

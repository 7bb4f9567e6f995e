//! Why bytes did not come.

use std::io;
use std::net::IpAddr;
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use reqwest::{StatusCode, Url};
use thiserror::Error;

/// Longest that a server's `Retry-After` is believed.
const MOST_PATIENCE: Duration = Duration::from_secs(120);

/// A file could not be read to its end. URLs in here have no query: it may be a signature.
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
    /// The allow-list has no prefix of the source.
    #[error("`{source_text}` is not allowed here: sources must start with {allowed}")]
    NotAllowed {
        /// Which source.
        source_text: String,
        /// The prefixes that are allowed.
        allowed: String,
    },
    /// The name of the host has no address.
    #[error("the host of `{url}` has no address")]
    NoAddress {
        /// Where it was to be fetched from.
        url: String,
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
        url: String,
        /// What went wrong.
        source: reqwest::Error,
    },
    /// The server sends us where we don't go.
    #[error("`{url}` redirects {why}, which is not followed: name the place itself in the source")]
    Redirect {
        /// What was fetched.
        url: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The place wants to know who asks.
    #[error(
        "`{url}` answers {status} without a credential: it is private, gated, or not there; name a secret in model.credentials"
    )]
    NeedsCredential {
        /// What was fetched.
        url: String,
        /// What the server said.
        status: StatusCode,
    },
    /// The place doesn't take what it was given.
    #[error(
        "`{url}` answers {status}{said} to the credential of model.credentials: it has expired, is wrong, or may not read this; renew it"
    )]
    Denied {
        /// What was fetched.
        url: String,
        /// What the server said.
        status: StatusCode,
        /// The server's own word for it, in brackets; perhaps empty.
        said: String,
    },
    /// Its owner wants something to be agreed to first.
    #[error(
        "`{0}` is gated: accept its terms on the hub, with the account whose token model.credentials holds"
    )]
    Gated(String),
    /// No such branch, tag or commit.
    #[error("`{repo}` has no revision `{revision}`: name one of its branches, tags or commits after the `@`")]
    UnknownRevision {
        /// Which repository.
        repo: String,
        /// What was asked for.
        revision: String,
    },
    /// A pinned revision leads to another one.
    #[error(
        "`{url}` is of revision {found} instead of {expected}: the place or its mirror doesn't keep revisions"
    )]
    ChangedRevision {
        /// What was fetched.
        url: String,
        /// What was asked for.
        expected: String,
        /// What the server says it is.
        found: String,
    },
    /// Credential of a form that this kind of place doesn't have.
    #[error("the credential of model.credentials has another form than {0}: set the secret again")]
    BadCredential(&'static str),
    /// The bucket is elsewhere.
    #[error("the bucket `{bucket}` is not in region `{asked}`{found}: set the region that the bucket is in")]
    WrongRegion {
        /// Which bucket.
        bucket: String,
        /// What was asked for.
        asked: String,
        /// What the server says, with a comma before it; perhaps empty.
        found: String,
    },
    /// An answer in another language than the place should speak.
    #[error("`{url}` answers with what is no {what}")]
    Malformed {
        /// What was fetched.
        url: String,
        /// What it should be.
        what: &'static str,
    },
    /// An answer that is longer than any real one.
    #[error("`{url}` answers with more than {limit} bytes, where less was to be expected")]
    TooLarge {
        /// What was fetched.
        url: String,
        /// The bound, in bytes.
        limit: u64,
    },
    /// All of a file, where a part was asked for.
    #[error("`{0}` is sent whole, though a range of it was asked for: the server must answer range requests")]
    WholeInsteadOfRange(String),
    /// Another part of a file.
    #[error("`{url}` answers with `{said}` as its range, and bytes {}-{} were asked for", asked.start, asked.end - 1)]
    WrongRange {
        /// What was fetched.
        url: String,
        /// What was asked for.
        asked: Range<u64>,
        /// Its Content-Range.
        said: String,
    },
    /// A part that lies behind the file's end.
    #[error("`{name}` has no byte {at}: it is shorter than it was")]
    PastEnd {
        /// Which file.
        name: String,
        /// What was asked for.
        at: u64,
    },
    /// Fewer bytes than announced.
    #[error("`{name}` ends {missing} bytes before it should")]
    TooShort {
        /// Which file.
        name: String,
        /// How many are missing.
        missing: u64,
    },
    /// More bytes than announced.
    #[error("`{0}` goes on after it should have ended")]
    TooLong(String),
    /// Another answer than those that have a meaning here.
    #[error("`{url}` answers {status}{said}")]
    Status {
        /// What was fetched.
        url: String,
        /// What the server said.
        status: StatusCode,
        /// The server's own word for it, in brackets; perhaps empty.
        said: String,
        /// How long it asks us to wait.
        retry_after: Option<Duration>,
    },
}

impl TransferError {
    /// Whether the next try may go better.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Http { .. }
            | Self::WholeInsteadOfRange(_)
            | Self::WrongRange { .. }
            | Self::TooShort { .. }
            | Self::TooLong(_) => true,
            Self::NoAddress { source, .. } => source.is_some(),
            Self::Status { status, .. } => {
                status.is_server_error() || matches!(status.as_u16(), 408 | 425 | 429)
            }
            _ => false,
        }
    }

    /// How long the server asks us to wait before the next try, at most two minutes.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => retry_after.map(|wait| wait.min(MOST_PATIENCE)),
            _ => None,
        }
    }

    /// How long to wait before the next try, where `planned` is what the backoff says: never less than the server asks
    /// for. It is what `backon`'s `adjust` takes.
    #[must_use]
    pub fn wait(&self, planned: Option<Duration>) -> Option<Duration> {
        planned.map(|planned| planned.max(self.retry_after().unwrap_or_default()))
    }

    /// Whether another place that has the same files may do better.
    pub(crate) fn is_of_the_place(&self) -> bool {
        !matches!(self, Self::File { .. } | Self::NotAFile(_) | Self::NotAllowed { .. })
    }
}

/// A URL that may be shown: what follows `?` may be a signature.
pub(crate) fn shown(url: &Url) -> String {
    let mut shown = url.clone();
    shown.set_query(None);
    shown.set_fragment(None);
    shown.into()
}

/// What the transport said, without the URL, which may hold a signature.
pub(crate) fn http(url: &Url, source: reqwest::Error) -> TransferError {
    TransferError::Http { url: shown(url), source: source.without_url() }
}

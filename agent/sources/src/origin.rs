//! A source made ready to read from, and its files as streams of bytes. Mirrors are tried in order.

mod bucket;
mod hub;
mod located;
mod registry;
mod site;

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::FutureExt;
use futures::future::BoxFuture;
use reqwest::Url;
use reqwest::header::HeaderValue;
use tandem_worker_api::Sha256Hex;

use crate::http::Http;
use crate::source;
use crate::sums::{self, NAME as SUMS};
use crate::{Access, Body, Secret, Source, TransferError};

/// A source made ready to read from. Cheap to clone and to share; every read is a request of its own, over connections that
/// all of them share.
#[derive(Clone)]
pub struct Origin(Arc<Inner>);

enum Inner {
    Folder(PathBuf),
    Remote {
        /// In the order in which they are tried; never empty.
        places: Vec<Place>,
        /// Which one answered last.
        good: AtomicUsize,
        source: Source,
    },
}

enum Place {
    Site(site::Site),
    Hub(hub::Hub),
    Bucket(bucket::Bucket),
    Registry(registry::Registry),
}

/// What a place says that it has.
pub(crate) enum Listing {
    /// No `SHA256SUMS`, where there should be one.
    None,
    /// The bytes of a `SHA256SUMS`.
    Sums(Vec<u8>),
    /// One that is longer than any real one.
    HugeSums,
    /// Files of which the place knows more than the name.
    Files(Vec<Entry>),
    /// The shards of one model, whose names say nothing.
    Model(Vec<Entry>),
}

/// A file, as a hub or a registry lists it.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// Relative to the source.
    pub(crate) name: String,
    /// Of large files only, on hubs.
    pub(crate) sha256: Option<Sha256Hex>,
    pub(crate) bytes: u64,
}

impl Origin {
    /// Prepares to read: checks the source against the allow-list, resolves and checks the hosts once, and finds out which
    /// revision a branch or tag is now.
    ///
    /// # Errors
    /// When nothing could be read from there. With mirrors, it is what the first of them says.
    pub async fn open(
        source: &Source,
        credential: Option<&Secret>,
        access: &Access,
    ) -> Result<Self, TransferError> {
        access.allows(source)?;
        if let source::Place::Folder(path) = &source.place {
            return Ok(Self(Arc::new(Inner::Folder(path.clone()))));
        }
        let mirrors: Vec<Option<(&str, &Url)>> = match access.mirrors_of(source) {
            mirrors if mirrors.is_empty() => vec![None],
            mirrors => mirrors.into_iter().map(Some).collect(),
        };
        let (mut places, mut source, mut failed) = (Vec::new(), source.clone(), None);
        for mirror in mirrors {
            match Place::open(&source, mirror, credential, access).await {
                Ok(place) => {
                    // A branch may be elsewhere on the next mirror: from here on it is this revision.
                    if let Some(revision) = place.revision() {
                        source = source.pinned(revision);
                    }
                    places.push(place);
                }
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        match failed {
            Some(error) if places.is_empty() => Err(error),
            _ => Ok(Self(Arc::new(Inner::Remote { places, good: AtomicUsize::new(0), source }))),
        }
    }

    /// Reads a file, or the bytes of it that `range` names, which must not be empty and may reach past the file's end. `name`
    /// is relative and stays inside the origin; the caller has checked that. One try; with mirrors, one of each.
    ///
    /// # Errors
    /// When the file is not there, or does not answer for just these bytes.
    pub async fn read(&self, name: &str, range: Option<Range<u64>>) -> Result<Body, TransferError> {
        match &*self.0 {
            Inner::Folder(folder) => Body::of_file(&folder.join(name), range).await,
            Inner::Remote { places, good, .. } => {
                first_good(places, good, |place| place.read(name, range.clone()).boxed()).await
            }
        }
    }

    /// What there is to choose from.
    pub(crate) async fn list(&self) -> Result<Listing, TransferError> {
        let listing = match &*self.0 {
            Inner::Folder(_) => sums(self.read(SUMS, None).await).await,
            Inner::Remote { places, good, .. } => {
                first_good(places, good, |place| place.list().boxed()).await
            }
        };
        match listing {
            Err(TransferError::NotFound(_)) if self.has_sums() => Ok(Listing::None),
            listing => listing,
        }
    }

    /// Whether what there is should be listed in a `SHA256SUMS`.
    fn has_sums(&self) -> bool {
        match &*self.0 {
            Inner::Folder(_) => true,
            Inner::Remote { places, .. } => matches!(places[0], Place::Site(_) | Place::Bucket(_)),
        }
    }

    /// The source with its revision pinned, where it has one.
    pub(crate) fn pinned(&self) -> Option<&Source> {
        match &*self.0 {
            Inner::Folder(_) => None,
            Inner::Remote { source, .. } => Some(source),
        }
    }

    /// Whether this is a local folder that is not there.
    pub(crate) fn is_missing(&self) -> bool {
        matches!(&*self.0, Inner::Folder(folder) if !folder.is_dir())
    }

    /// Where a file is on this machine's own disk, for sources that are there.
    #[must_use]
    pub fn local_path(&self, name: &str) -> Option<PathBuf> {
        match &*self.0 {
            Inner::Folder(folder) => Some(folder.join(name)),
            Inner::Remote { .. } => None,
        }
    }
}

impl Place {
    async fn open(
        source: &Source,
        mirror: Option<(&str, &Url)>,
        credential: Option<&Secret>,
        access: &Access,
    ) -> Result<Self, TransferError> {
        let endpoint = mirror.map(|(_, url)| url.clone());
        let connect = async |url: &Url| {
            let http = Http::new(url.scheme() == "http", access)?;
            http.check(url).await?;
            Ok::<_, TransferError>(http)
        };
        Ok(match &source.place {
            source::Place::Folder(_) => unreachable!("folders are opened without a place"),
            source::Place::Site(base) => {
                let base = match mirror {
                    Some((from, to)) => moved(base, from, to),
                    None => base.clone(),
                };
                Self::Site(site::Site::new(connect(&base).await?, base, credential)?)
            }
            source::Place::Hub { repo, revision, below } => {
                let endpoint = endpoint.unwrap_or_else(Access::hub);
                let http = connect(&endpoint).await?;
                let revision = revision.as_deref().unwrap_or("main");
                Self::Hub(hub::Hub::open(http, endpoint, repo, revision, below, credential).await?)
            }
            source::Place::Bucket { name, prefix } => {
                let bucket = bucket::Address::new(name, endpoint.as_ref(), &access.s3)?;
                let http = connect(bucket.url()).await?;
                Self::Bucket(bucket::Bucket::new(http, bucket, prefix, credential)?)
            }
            source::Place::Registry { host, repo, reference } => {
                let endpoint = endpoint.map_or_else(|| registry::endpoint(host), Ok)?;
                let http = connect(&endpoint).await?;
                let repo = registry::repository(host, repo);
                Self::Registry(registry::Registry::open(http, endpoint, repo, reference, credential).await?)
            }
        })
    }

    async fn read(&self, name: &str, range: Option<Range<u64>>) -> Result<Body, TransferError> {
        match self {
            Self::Site(site) => site.read(name, range).await,
            Self::Hub(hub) => hub.read(name, range).await,
            Self::Bucket(bucket) => bucket.read(name, range).await,
            Self::Registry(registry) => registry.read(name, range).await,
        }
    }

    async fn list(&self) -> Result<Listing, TransferError> {
        match self {
            Self::Hub(hub) => hub.list().await.map(Listing::Files),
            Self::Registry(registry) => Ok(registry.list()),
            Self::Site(_) | Self::Bucket(_) => sums(self.read(SUMS, None).await).await,
        }
    }

    fn revision(&self) -> Option<&str> {
        match self {
            Self::Hub(hub) => Some(hub.commit()),
            Self::Registry(registry) => Some(registry.digest()),
            Self::Site(_) | Self::Bucket(_) => None,
        }
    }
}

/// Asks the places in turn, beginning with the one that answered last; the first one's refusal counts when all refuse.
async fn first_good<'a, T>(
    places: &'a [Place],
    good: &AtomicUsize,
    ask: impl Fn(&'a Place) -> BoxFuture<'a, Result<T, TransferError>>,
) -> Result<T, TransferError> {
    let first = good.load(Ordering::Relaxed);
    let mut failed = None;
    for index in (first..places.len()).chain(0..first) {
        match ask(&places[index]).await {
            Ok(answer) => {
                good.store(index, Ordering::Relaxed);
                return Ok(answer);
            }
            Err(error) if error.is_of_the_place() => failed = failed.or(Some(error)),
            Err(error) => return Err(error),
        }
    }
    Err(failed.expect("an origin has at least one place, and each that doesn't answer says why"))
}

/// A `SHA256SUMS`, within its bound.
async fn sums(body: Result<Body, TransferError>) -> Result<Listing, TransferError> {
    let text = body?.collect(sums::LONGEST).await?;
    Ok(text.map_or(Listing::HugeSums, Listing::Sums))
}

/// What `base` is on a mirror of `from`.
fn moved(base: &Url, from: &str, to: &Url) -> Url {
    let rest = base.as_str().strip_prefix(from).unwrap_or_default();
    // A mirror of all of https:// keeps the hosts as folders. Put together as text: a host with a port reads like a scheme.
    Url::parse(&format!("{to}{}", rest.trim_start_matches('/'))).unwrap_or_else(|_| to.clone())
}

/// A URL below a base whose path ends with `/`.
fn below<'a>(base: &Url, parts: impl IntoIterator<Item = &'a str>) -> Url {
    let mut url = base.clone();
    if let Ok(mut segments) = url.path_segments_mut() {
        segments.pop_if_empty().extend(parts.into_iter().filter(|part| !part.is_empty()));
    }
    url
}

/// `Bearer` for a token, `Basic` for a name with a password.
fn authorization(credential: &Secret) -> Result<HeaderValue, TransferError> {
    let text = credential.reveal();
    let value = match text.split_once(':') {
        Some((user, password)) => http_auth::basic::encode_credentials(user, password),
        None => format!("Bearer {text}"),
    };
    let mut value =
        HeaderValue::try_from(value).map_err(|_| TransferError::BadCredential("a token or USER:PASSWORD"))?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_tokens_or_names_with_passwords() {
        let header = |text: &str| authorization(&Secret::new(text));
        assert_eq!(header("hf_abc").unwrap(), "Bearer hf_abc");
        assert_eq!(header("Aladdin:open sesame").unwrap(), "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==");
        assert!(header("a\nb").is_err());
        assert!(!format!("{:?}", header("hf_abc")).contains("abc"));
    }

    #[test]
    fn a_mirror_keeps_what_follows_its_prefix() {
        let moved = |base: &str, from: &str, to: &str| {
            super::moved(&base.parse().unwrap(), from, &to.parse().unwrap()).to_string()
        };
        assert_eq!(
            moved("https://a.example/x/y/", "https://a.example/x/", "https://b.example/z/"),
            "https://b.example/z/y/"
        );
        assert_eq!(
            moved("https://a.example/x/", "https://", "https://b.example/"),
            "https://b.example/a.example/x/"
        );
        assert_eq!(
            moved("https://a.example:8443/x/", "https://", "https://b.example/z/"),
            "https://b.example/z/a.example:8443/x/"
        );
    }
}

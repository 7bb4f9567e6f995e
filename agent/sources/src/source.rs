//! Where a model's files are, as a manifest says it. Parsing touches neither disk nor network.

mod text;

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use percent_encoding::percent_decode_str;
use reqwest::Url;
use thiserror::Error;

pub(crate) use self::text::is_digest;
use crate::address::{Reach, reach};

const LONGEST: usize = 2048;

/// A folder of GGUF files: on disk, on a web server, in a repository of a hub or a registry, or in a bucket; perhaps with
/// one file of it named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    text: String,
    pub(crate) place: Place,
    /// The file that the source names itself: its last component, when that ends with `.gguf`.
    pub(crate) file: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Folder(PathBuf),
    /// Its path ends with `/`.
    Site(Url),
    /// A repository of the Hugging Face hub, or of what speaks like it.
    Hub {
        /// `owner/name`.
        repo: String,
        /// A branch, tag or commit; none is `main`.
        revision: Option<String>,
        /// The folder inside, without `/` at its ends; empty for the repository itself.
        below: String,
    },
    Bucket {
        name: String,
        /// Without `/` at its ends; perhaps empty.
        prefix: String,
    },
    Registry {
        /// With its port, if it says one.
        host: String,
        repo: String,
        reference: Reference,
    },
}

/// Which manifest of an OCI repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reference {
    Tag(String),
    /// `sha256:` and 64 digits.
    Digest(String),
}

impl Reference {
    pub(crate) fn as_str(&self) -> &str {
        match self {
            Self::Tag(text) | Self::Digest(text) => text,
        }
    }
}

/// A source that can't be used.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum BadSource {
    /// No URL at all.
    #[error(
        "`{0}` is not a source: write hf://owner/repository, https://host/folder/, s3://bucket/prefix, oci://registry/repository:tag or file:///absolute/folder"
    )]
    NotAUrl(String),
    /// A scheme that nothing here reads.
    #[error("`{0}` sources are not supported: use hf://, https://, s3://, oci:// or file:///")]
    Scheme(String),
    /// Plain HTTP to a machine elsewhere.
    #[error("http:// is for loopback addresses such as 127.0.0.1 only: use https:// for `{0}`")]
    PlainHttp(String),
    /// A path that is not absolute, or on another host.
    #[error("`{0}` names no absolute path of this machine: write file:///absolute/folder")]
    NotAbsolute(String),
    /// Parts that a source has no use for, and that are known tricks.
    #[error("a source must not contain {0}: remove it")]
    Unwanted(&'static str),
    /// An address that is never a model's.
    #[error("`{0}` is a link-local, metadata or multicast address: models are not fetched from there")]
    Address(IpAddr),
    /// Not the shape of a hub's repository.
    #[error(
        "`{0}` names no repository of a hub: write hf://owner/repository or hf://owner/repository@revision, such as hf://unsloth/Kimi-K2.5-GGUF@main"
    )]
    Hub(String),
    /// Not the shape of a bucket.
    #[error(
        "`{0}` names no bucket: write s3://bucket/prefix, with 3 to 63 of a-z, 0-9, '.' and '-' for the bucket"
    )]
    Bucket(String),
    /// Not the shape of a registry's repository.
    #[error(
        "`{0}` names no repository of a registry: write oci://registry/repository:tag or oci://registry/repository@sha256:digest"
    )]
    Registry(String),
}

impl Source {
    /// Whether hosts read it from their own disk.
    #[must_use]
    pub fn is_local(&self) -> bool {
        matches!(self.place, Place::Folder(_))
    }

    /// The same place at exactly this revision: a hub's commit, or a registry's digest. Places without revisions stay as
    /// they are.
    #[must_use]
    pub fn pinned(&self, revision: &str) -> Self {
        let mut pinned = self.clone();
        match &mut pinned.place {
            Place::Hub { revision: pin, .. } => *pin = Some(revision.to_owned()),
            Place::Registry { reference, .. } => *reference = Reference::Digest(revision.to_owned()),
            Place::Folder(_) | Place::Site(_) | Place::Bucket { .. } => return pinned,
        }
        pinned.text = text::written(&pinned);
        pinned
    }

    /// The form that allow-lists and mirrors are compared with: lower-case host, no `..`, one spelling.
    pub(crate) fn canonical(&self) -> String {
        let with_file = |mut folder: Url| {
            if let (Some(file), Ok(mut segments)) = (&self.file, folder.path_segments_mut()) {
                segments.pop_if_empty().push(file);
            }
            folder.into()
        };
        match &self.place {
            Place::Folder(path) => {
                Url::from_directory_path(path).map_or_else(|()| self.text.clone(), with_file)
            }
            Place::Site(base) => with_file(base.clone()),
            _ => text::written(self),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Source {
    type Err = BadSource;

    fn from_str(text: &str) -> Result<Self, BadSource> {
        let shown = || text.chars().take(200).collect::<String>();
        if text.len() > LONGEST {
            return Err(BadSource::NotAUrl(shown()));
        }
        if text.contains('\\') {
            return Err(BadSource::Unwanted("a backslash"));
        }
        if text.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err(BadSource::Unwanted("spaces or control characters (write %20 for a space)"));
        }
        if text.contains(['?', '#']) {
            return Err(BadSource::Unwanted("`?` or `#`"));
        }
        let (place, file) = match text.split_once("://") {
            Some(("hf", rest)) => text::hub(rest).ok_or_else(|| BadSource::Hub(shown()))?,
            Some(("s3", rest)) => text::bucket(rest).ok_or_else(|| BadSource::Bucket(shown()))?,
            Some(("oci", rest)) => text::registry(rest).ok_or_else(|| BadSource::Registry(shown()))?,
            _ => url(text, shown)?,
        };
        Ok(Self { text: text.to_owned(), place, file })
    }
}

fn url(text: &str, shown: impl Fn() -> String) -> Result<(Place, Option<String>), BadSource> {
    let url = Url::parse(text).map_err(|_| BadSource::NotAUrl(shown()))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(BadSource::Unwanted("a user name or password"));
    }
    // Servers and file systems decode these after prefixes were compared.
    let path = url.path().to_ascii_lowercase();
    if ["%2f", "%5c", "%00"].iter().any(|hidden| path.contains(hidden)) {
        return Err(BadSource::Unwanted("an encoded slash, backslash or NUL"));
    }
    match url.scheme() {
        "file" => folder(&url).ok_or_else(|| BadSource::NotAbsolute(shown())),
        "https" | "http" => site(&url),
        "hf" => Err(BadSource::Hub(shown())),
        "s3" => Err(BadSource::Bucket(shown())),
        "oci" => Err(BadSource::Registry(shown())),
        other => Err(BadSource::Scheme(other.to_owned())),
    }
}

fn folder(url: &Url) -> Option<(Place, Option<String>)> {
    let path = url.to_file_path().ok()?;
    let name = path.file_name().and_then(|name| name.to_str()).filter(|name| is_gguf(name));
    match (name, path.parent()) {
        (Some(name), Some(parent)) => Some((Place::Folder(parent.to_owned()), Some(name.to_owned()))),
        _ => Some((Place::Folder(path), None)),
    }
}

fn site(url: &Url) -> Result<(Place, Option<String>), BadSource> {
    check_host(url)?;
    let last = url.path_segments().and_then(|mut segments| segments.next_back()).unwrap_or_default();
    // A file's URL can't be told from a folder's but by its name; a folder gets the slash that joining needs.
    let file = is_gguf(last).then(|| percent_decode_str(last).decode_utf8_lossy().into_owned());
    let mut base = url.clone();
    if let Ok(mut segments) = base.path_segments_mut() {
        segments.pop_if_empty();
        if file.is_some() {
            segments.pop();
        }
        segments.push("");
    }
    Ok((Place::Site(base), file))
}

/// Refuses plain HTTP to other machines, and addresses that no model comes from.
pub(crate) fn check_host(url: &Url) -> Result<(), BadSource> {
    let host = url.host_str().unwrap_or_default();
    let literal = literal(host);
    if url.scheme() == "http" && literal.and_then(reach) != Some(Reach::Loopback) {
        return Err(BadSource::PlainHttp(host.to_owned()));
    }
    match literal.filter(|address| reach(*address).is_none()) {
        Some(address) => Err(BadSource::Address(address)),
        None => Ok(()),
    }
}

/// The address that a URL's host is, if it is one.
pub(crate) fn literal(host: &str) -> Option<IpAddr> {
    host.trim_start_matches('[').trim_end_matches(']').parse().ok()
}

pub(crate) fn is_gguf(name: &str) -> bool {
    Path::new(name).extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
}

#[cfg(test)]
mod tests;

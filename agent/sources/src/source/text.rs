//! How `hf://`, `s3://` and `oci://` are written. Their owners, buckets and repositories are no hosts of URLs, so they are
//! read here and not by a URL parser.

use std::borrow::Cow;

use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};

use super::{Place, Reference, Source, check_host, is_gguf};
use crate::is_inside;

/// What stands for something else in a source, or is not to be read by a URL parser.
const ESCAPED: &AsciiSet =
    &CONTROLS.add(b' ').add(b'%').add(b'?').add(b'#').add(b'\\').add(b'@').add(b'"').add(b'<').add(b'>');
/// A revision is one component, except for a few well-known references.
const REVISION: &AsciiSet = &ESCAPED.add(b'/');

type Parsed = Option<(Place, Option<String>)>;

/// `owner/repository[@revision][/path]`. A revision with a slash is written with `%2F`, but for `refs/pr/N` and
/// `refs/convert/NAME`, which hubs themselves make.
pub(super) fn hub(rest: &str) -> Parsed {
    let (owner, rest) = rest.split_once('/')?;
    let end = rest.find(['@', '/']).unwrap_or(rest.len());
    let (name, rest) = rest.split_at(end);
    if !is_word(owner) || !is_word(name) {
        return None;
    }
    let (revision, path) = match rest.strip_prefix('@') {
        Some(rest) => {
            let (revision, path) = rest.split_at(revision_end(rest));
            let revision = decoded(revision)?;
            if !is_inside(&revision) || revision.starts_with('-') {
                return None;
            }
            (Some(revision), path)
        }
        None => (None, rest),
    };
    let (below, file) = below(path)?;
    Some((Place::Hub { repo: format!("{owner}/{name}"), revision, below }, file))
}

fn revision_end(rest: &str) -> usize {
    let slashes: Vec<usize> = rest.match_indices('/').map(|(at, _)| at).take(3).collect();
    let special = ["refs/pr/", "refs/convert/"].iter().any(|start| rest.starts_with(start));
    let nth = if special { 2 } else { 0 };
    slashes.get(nth).copied().unwrap_or(rest.len())
}

/// `bucket[/prefix]`.
pub(super) fn bucket(rest: &str) -> Parsed {
    let (name, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let fine = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, b'.' | b'-');
    let ends = name.bytes().next().zip(name.bytes().next_back());
    let ends = ends.is_some_and(|(a, b)| a.is_ascii_alphanumeric() && b.is_ascii_alphanumeric());
    if !(3..=63).contains(&name.len()) || !name.bytes().all(fine) || !ends || name.contains("..") {
        return None;
    }
    let (prefix, file) = below(path)?;
    Some((Place::Bucket { name: name.to_owned(), prefix }, file))
}

/// `registry/repository[:tag|@sha256:digest]`.
pub(super) fn registry(rest: &str) -> Parsed {
    let (host, rest) = rest.split_once('/')?;
    let url = reqwest::Url::parse(&format!("https://{host}/")).ok()?;
    if host.contains('@') || url.path() != "/" || check_host(&url).is_err() || url.port() == Some(0) {
        return None;
    }
    let (repo, reference) = match rest.split_once('@') {
        Some((repo, digest)) => (repo, Reference::Digest(digest.to_owned())),
        None => match rest.split_once(':') {
            Some((repo, tag)) => (repo, Reference::Tag(tag.to_owned())),
            None => (rest, Reference::Tag("latest".to_owned())),
        },
    };
    let repo_fine =
        |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, b'.' | b'_' | b'-' | b'/');
    let fine = is_inside(repo) && repo.len() <= 255 && repo.bytes().all(repo_fine);
    let reference_fine = match &reference {
        Reference::Tag(tag) => {
            let fine = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'_' | b'-');
            !tag.is_empty() && tag.len() <= 128 && tag.bytes().all(fine) && !tag.starts_with(['.', '-'])
        }
        Reference::Digest(digest) => is_digest(digest),
    };
    let host = url.host_str()?.to_owned();
    let host = url.port().map_or(host.clone(), |port| format!("{host}:{port}"));
    (fine && reference_fine).then(|| (Place::Registry { host, repo: repo.to_owned(), reference }, None))
}

/// `sha256:` and 64 lower-case hexadecimal digits.
pub(crate) fn is_digest(text: &str) -> bool {
    let hex = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
    text.strip_prefix("sha256:").is_some_and(|digits| digits.len() == 64 && digits.bytes().all(hex))
}

/// The source as it is written: parsing it gives the same place.
pub(super) fn written(source: &Source) -> String {
    let path = |folder: &str| {
        let parts = folder.split('/').chain(source.file.as_deref()).filter(|part| !part.is_empty());
        parts.map(|part| format!("/{}", utf8_percent_encode(part, ESCAPED))).collect::<String>()
    };
    match &source.place {
        Place::Folder(_) | Place::Site(_) => source.text.clone(),
        Place::Hub { repo, revision, below } => {
            let at = revision.as_ref().map(|revision| format!("@{}", encoded(revision))).unwrap_or_default();
            format!("hf://{repo}{at}{}", path(below))
        }
        Place::Bucket { name, prefix } => format!("s3://{name}{}", path(prefix)),
        Place::Registry { host, repo, reference } => {
            let mark = if matches!(reference, Reference::Tag(_)) { ':' } else { '@' };
            format!("oci://{host}/{repo}{mark}{}", reference.as_str())
        }
    }
}

fn encoded(revision: &str) -> Cow<'_, str> {
    let whole = revision.split('/').count() == 3 && revision_end(revision) == revision.len();
    utf8_percent_encode(revision, if whole { ESCAPED } else { REVISION }).into()
}

/// Folder and file of what follows a repository or bucket: empty, or `/` and relative components.
fn below(path: &str) -> Option<(String, Option<String>)> {
    let path = path.strip_prefix('/').unwrap_or(path);
    let path = path.strip_suffix('/').unwrap_or(path);
    if path.is_empty() {
        return Some((String::new(), None));
    }
    let path = decoded(path)?;
    if !is_inside(&path) {
        return None;
    }
    let (folder, last) = path.rsplit_once('/').unwrap_or(("", &path));
    if is_gguf(last) { Some((folder.to_owned(), Some(last.to_owned()))) } else { Some((path, None)) }
}

/// One component of a repository's name on a hub.
fn is_word(text: &str) -> bool {
    let fine = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'_' | b'-');
    text.len() <= 96
        && text.bytes().next().is_some_and(|c| c.is_ascii_alphanumeric())
        && text.bytes().all(fine)
        && !text.contains("..")
}

fn decoded(text: &str) -> Option<String> {
    percent_decode_str(text).decode_utf8().ok().map(Cow::into_owned)
}

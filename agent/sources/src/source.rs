//! Where a model's files are, as a manifest says it. Parsing touches neither disk nor network.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use percent_encoding::percent_decode_str;
use reqwest::Url;
use thiserror::Error;

const LONGEST: usize = 2048;

/// A folder of GGUF files, on disk or on a web server; perhaps with one file of it named.
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
}

/// A source that can't be used.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum BadSource {
    /// No URL at all.
    #[error("`{0}` is not a source: write file:///absolute/folder or https://host/folder/")]
    NotAUrl(String),
    /// A scheme that nothing here reads.
    #[error("`{0}` sources are not supported: use file:///absolute/folder or https://host/folder/")]
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
}

impl Source {
    /// Whether hosts read it from their own disk.
    #[must_use]
    pub fn is_local(&self) -> bool {
        matches!(self.place, Place::Folder(_))
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
        let url = Url::parse(text).map_err(|_| BadSource::NotAUrl(shown()))?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(BadSource::Unwanted("a user name or password"));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(BadSource::Unwanted("`?` or `#`"));
        }
        let (place, file) = match url.scheme() {
            "file" => folder(&url).ok_or_else(|| BadSource::NotAbsolute(shown()))?,
            "https" | "http" => site(&url)?,
            other => return Err(BadSource::Scheme(other.to_owned())),
        };
        Ok(Self { text: text.to_owned(), place, file })
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
    let host = url.host_str().unwrap_or_default();
    let literal = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().ok();
    if url.scheme() == "http" && !literal.is_some_and(|address| address.is_loopback()) {
        return Err(BadSource::PlainHttp(host.to_owned()));
    }
    if let Some(address) = literal.filter(|address| is_forbidden(*address)) {
        return Err(BadSource::Address(address));
    }
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

pub(crate) fn is_gguf(name: &str) -> bool {
    Path::new(name).extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
}

/// Addresses that answer with a machine's own secrets, or that are no single machine.
pub(crate) fn is_forbidden(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            v4.is_link_local()
                || v4.is_unspecified()
                || v4.is_multicast()
                || v4.is_broadcast()
                // Alibaba Cloud's metadata service is the one outside the link-local range.
                || v4.octets() == [100, 100, 100, 200]
        }
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => is_forbidden(IpAddr::V4(v4)),
            None => {
                v6.is_unicast_link_local()
                    || v6.is_unspecified()
                    || v6.is_multicast()
                    // The metadata service of AWS over IPv6.
                    || v6.segments() == [0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254]
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Source, BadSource> {
        text.parse()
    }

    #[test]
    fn folders_and_files_are_told_apart_by_name() {
        let source = parse("file:///models/tiny").unwrap();
        assert_eq!((source.place, source.file), (Place::Folder("/models/tiny".into()), None));
        let source = parse("file:///models/tiny%20one/a.GGUF").unwrap();
        assert_eq!(source.place, Place::Folder("/models/tiny one".into()));
        assert_eq!(source.file.as_deref(), Some("a.GGUF"));
        for folder in ["https://w.example/k2/", "https://w.example/k2"] {
            let Place::Site(url) = parse(folder).unwrap().place else { panic!("{folder}") };
            assert_eq!(url.as_str(), "https://w.example/k2/");
        }
        let source = parse("https://w.example/k2/a%20b.gguf").unwrap();
        assert_eq!(source.file.as_deref(), Some("a b.gguf"));
        let Place::Site(url) = source.place else { panic!() };
        assert_eq!(url.as_str(), "https://w.example/k2/");
    }

    #[test]
    fn every_refusal_says_what_to_write_instead() {
        for (text, expected) in [
            ("/models/tiny", "file:///"),
            ("models", "file:///"),
            ("file://other/models", "file:///absolute"),
            ("hf://unsloth/Kimi-K2.5-GGUF", "`hf` sources are not supported"),
            ("s3://bucket/x", "`s3` sources"),
            ("ftp://h/x", "`ftp` sources"),
            ("http://w.example/k2/", "use https://"),
            ("http://localhost/k2/", "use https://"),
            ("https://user@w.example/", "user name"),
            ("https://u:p@w.example/", "user name"),
            ("https://w.example/?token=1", "`?`"),
            ("https://w.example/#x", "`#`"),
            ("https:\\\\w.example\\x", "backslash"),
            ("https://w.example/a b", "%20"),
            ("https://169.254.169.254/latest/", "link-local"),
            ("https://[fe80::1]/x", "link-local"),
            ("https://[::ffff:169.254.169.254]/x", "link-local"),
            ("https://2852039166/x", "link-local"),
            ("https://0.0.0.0/x", "link-local"),
            ("", "is not a source"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
        assert!(parse(&format!("https://w.example/{}", "x".repeat(4000))).is_err());
    }

    #[test]
    fn plain_http_is_for_loopback() {
        for text in ["http://127.0.0.1:8000/x/", "http://[::1]:8000/x/"] {
            assert!(parse(text).is_ok(), "{text}");
        }
    }
}

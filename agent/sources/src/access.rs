//! How remote files are reached: which ones, through what, trusting whom, and how long to wait.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use backon::ExponentialBuilder;
use reqwest::{Certificate, Url};
use thiserror::Error;

use crate::source::{Place, check_host};
use crate::{BadSource, Source, TransferError};

/// The hub that `hf://` means where no mirror stands for it.
const HUB: &str = "https://huggingface.co/";
const KINDS: [&str; 6] = ["hf://", "https://", "http://", "s3://", "oci://", "file://"];

/// Whom to trust, how long to wait, and what may be read at all. The default trusts what the system trusts, and allows
/// every source.
#[derive(Clone, Debug)]
pub struct Access {
    pub(crate) extra_roots: Vec<Certificate>,
    pub(crate) connect: Duration,
    pub(crate) idle: Duration,
    first_retry: Duration,
    retries: usize,
    allowed: Vec<String>,
    mirrors: Vec<(String, Url)>,
    pub(crate) s3: S3,
    pub(crate) names: BTreeMap<String, Vec<IpAddr>>,
}

/// Where `s3://` leads.
#[derive(Clone, Debug)]
pub(crate) struct S3 {
    /// None is Amazon's.
    pub(crate) endpoint: Option<Url>,
    pub(crate) region: String,
}

impl Default for Access {
    fn default() -> Self {
        Self {
            extra_roots: Vec::new(),
            connect: Duration::from_secs(10),
            idle: Duration::from_secs(30),
            first_retry: Duration::from_millis(500),
            retries: 4,
            allowed: Vec::new(),
            mirrors: Vec::new(),
            s3: S3 { endpoint: None, region: "us-east-1".to_owned() },
            names: BTreeMap::new(),
        }
    }
}

impl Access {
    /// Also trusts these authorities, as PEM.
    ///
    /// # Errors
    /// When the text holds no certificate that can be read.
    pub fn trusting(mut self, pem: &[u8]) -> Result<Self, NotACertificate> {
        let roots = Certificate::from_pem_bundle(pem).map_err(|_| NotACertificate)?;
        if roots.is_empty() {
            return Err(NotACertificate);
        }
        self.extra_roots.extend(roots);
        Ok(self)
    }

    /// Waits at most this long for a connection, and for the next bytes of a body.
    #[must_use]
    pub fn waiting(mut self, connect: Duration, idle: Duration) -> Self {
        (self.connect, self.idle) = (connect, idle);
        self
    }

    /// Tries again this often, the first time after `first`, each further time after twice as long.
    #[must_use]
    pub fn retrying(mut self, retries: usize, first: Duration) -> Self {
        (self.retries, self.first_retry) = (retries, first);
        self
    }

    /// Also allows sources that start with this, up to the end of a component: `hf://unsloth` allows all of that owner's
    /// repositories, and none of `unsloth-mirror`'s. Once anything is allowed, nothing else is.
    ///
    /// # Errors
    /// When no source can start like that, or it names a revision: what hosts fetch is pinned to another one.
    pub fn allowing(mut self, prefix: &str) -> Result<Self, BadAccess> {
        self.allowed.push(prefix_of_sources(prefix)?);
        Ok(self)
    }

    /// Reads sources that start with `FROM` from another place, as `FROM=TO` says: `hf://=https://hub.example.com/`. `TO`
    /// speaks what `FROM` speaks: a hub's interface for `hf://`, S3's for `s3://`, a registry's for `oci://`. Several for the same source are tried
    /// in the order in which they were added, and the place itself only if it is one of them.
    ///
    /// # Errors
    /// When either side can't be used; the text says what to write.
    pub fn mirrored(mut self, rule: &str) -> Result<Self, BadAccess> {
        let (from, to) = rule.split_once('=').ok_or_else(|| BadAccess::Mirror(rule.to_owned()))?;
        let from = prefix_of_sources(from)?;
        if from.starts_with("file://") {
            return Err(BadAccess::Mirror(rule.to_owned()));
        }
        self.mirrors.push((from, endpoint(to)?));
        Ok(self)
    }

    /// Reads `s3://` from a store other than Amazon's, or in a region other than `us-east-1`.
    ///
    /// # Errors
    /// When the endpoint is no `https://` URL of a host.
    pub fn s3(mut self, store: Option<&str>, region: &str) -> Result<Self, BadAccess> {
        let fine = |c: u8| c.is_ascii_alphanumeric() || c == b'-';
        if region.is_empty() || region.len() > 64 || !region.bytes().all(fine) {
            return Err(BadAccess::Region(region.to_owned()));
        }
        self.s3 = S3 { endpoint: store.map(endpoint).transpose()?, region: region.to_owned() };
        Ok(self)
    }

    /// Takes these addresses for the name of a host, whatever the site's name service says.
    #[must_use]
    pub fn naming(mut self, host: &str, addresses: Vec<IpAddr>) -> Self {
        self.names.insert(host.to_ascii_lowercase(), addresses);
        self
    }

    /// The waits between tries. Servers that ask for more patience get it by [`TransferError::wait`].
    #[must_use]
    pub fn backoff(&self) -> ExponentialBuilder {
        ExponentialBuilder::default()
            .with_min_delay(self.first_retry)
            .with_max_delay(Duration::from_secs(30))
            .with_max_times(self.retries)
            .with_jitter()
    }

    /// Whether the allow-list has a prefix of this source.
    ///
    /// # Errors
    /// When it has not; the error says what it has.
    pub fn allows(&self, source: &Source) -> Result<(), TransferError> {
        let text = source.canonical();
        if self.allowed.is_empty() || self.allowed.iter().any(|prefix| starts_with(&text, prefix)) {
            return Ok(());
        }
        let allowed = self.allowed.iter().map(|prefix| format!("`{prefix}`")).collect::<Vec<_>>();
        Err(TransferError::NotAllowed { source_text: source.to_string(), allowed: allowed.join(" or ") })
    }

    /// Where else a source is read from, in order, each with the part of the source that it replaces; empty without a mirror.
    pub(crate) fn mirrors_of(&self, source: &Source) -> Vec<(&str, &Url)> {
        let text = source.canonical();
        let mirrors = self.mirrors.iter().filter(|(from, _)| starts_with(&text, from));
        mirrors.map(|(from, to)| (from.as_str(), to)).collect()
    }

    /// The hub that `hf://` means by itself.
    pub(crate) fn hub() -> Url {
        Url::parse(HUB).expect("a constant that is a URL")
    }
}

/// Whether a source starts with a prefix, and the prefix ends where a component of the source does.
fn starts_with(source: &str, prefix: &str) -> bool {
    source
        .strip_prefix(prefix)
        .is_some_and(|rest| rest.is_empty() || prefix.ends_with('/') || rest.starts_with(['/', '@', ':']))
}

fn prefix_of_sources(text: &str) -> Result<String, BadAccess> {
    let bad = || BadAccess::Prefix(text.to_owned());
    let kind = KINDS.iter().find(|kind| text.starts_with(**kind)).ok_or_else(bad)?;
    if text == *kind {
        return Ok(text.to_owned());
    }
    // Owners, registries and buckets are no sources by themselves; those that are, are compared in one spelling.
    let Ok(source) = text.parse::<Source>() else {
        let rest = &text[kind.len()..];
        let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | ':' | '/');
        let plain = rest.chars().all(fine) && !rest.contains("..") && !rest.contains("//");
        return if plain && matches!(*kind, "hf://" | "oci://" | "s3://") {
            Ok(text.to_owned())
        } else {
            Err(bad())
        };
    };
    let pinned = match &source.place {
        Place::Hub { revision, .. } => revision.is_some(),
        Place::Registry { .. } => text.rsplit('/').next().is_some_and(|last| last.contains([':', '@'])),
        _ => false,
    };
    if pinned {
        return Err(BadAccess::Revision(text.to_owned()));
    }
    Ok(match source.place {
        Place::Registry { .. } => text.to_owned(),
        _ if text.ends_with('/') || matches!(*kind, "https://" | "http://" | "file://") => {
            let canonical = source.canonical();
            if source.file.is_some() || canonical.ends_with('/') { canonical } else { canonical + "/" }
        }
        _ => source.canonical(),
    })
}

/// A server's base: `https://`, or `http://` on loopback, with a path that ends with `/`.
fn endpoint(text: &str) -> Result<Url, BadAccess> {
    let bad = || BadAccess::Endpoint(text.to_owned());
    let mut url = Url::parse(text).map_err(|_| bad())?;
    let plain = url.username().is_empty()
        && url.password().is_none()
        && url.query().is_none()
        && url.fragment().is_none()
        && !text.contains('\\');
    if !matches!(url.scheme(), "https" | "http") || !plain {
        return Err(bad());
    }
    check_host(&url)?;
    if !url.path().ends_with('/') {
        url.set_path(&format!("{}/", url.path()));
    }
    Ok(url)
}

/// Text that holds no certificate.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("the extra authority is not a PEM certificate")]
pub struct NotACertificate;

/// A rule about sources that can't be used.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum BadAccess {
    /// No source starts like that.
    #[error(
        "no source starts with `{0}`: write hf://owner/, https://host/folder/, s3://bucket/, oci://registry/ or file:///folder/"
    )]
    Prefix(String),
    /// A branch or tag, which no resolved source has any more.
    #[error(
        "`{0}` names a revision, and what is fetched is pinned to a commit or digest: leave the revision away"
    )]
    Revision(String),
    /// Not `FROM=TO`.
    #[error("`{0}` is no mirror: write FROM=TO, such as hf://=https://hub.example.com/")]
    Mirror(String),
    /// Not the base of a server.
    #[error("`{0}` is no server's address: write https://host/, without user, `?` or `#`")]
    Endpoint(String),
    /// A host that no model comes from.
    #[error(transparent)]
    Host(#[from] BadSource),
    /// Not a region's name.
    #[error("`{0}` is no region: write it as the store's provider does, such as us-east-1")]
    Region(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(prefix: &str, source: &str) -> bool {
        let access = Access::default().allowing(prefix).unwrap();
        access.allows(&source.parse().unwrap()).is_ok()
    }

    #[test]
    fn an_allow_list_ends_at_components() {
        for (prefix, source, expected) in [
            ("hf://", "hf://o/r", true),
            ("hf://unsloth", "hf://unsloth/r@main", true),
            ("hf://unsloth/", "hf://unsloth/r/x.gguf", true),
            ("hf://unsloth", "hf://unsloth-mirror/r", false),
            ("hf://o/r", "hf://o/r@x", true),
            ("hf://o/r", "hf://o/r2", false),
            ("https://w.example/ok", "https://w.example/ok/x.gguf", true),
            ("https://w.example/ok", "https://W.EXAMPLE:443/ok/", true),
            ("https://w.example/ok", "https://w.example/okay/", false),
            ("https://w.example/ok", "https://w.example/ok/../secret/", false),
            ("https://w.example/ok", "https://w.example/ok/%2e%2e/secret/", false),
            ("https://w.example/", "https://w.example.evil.example/", false),
            ("https://w.example", "https://w.example/x/", true),
            ("s3://models/", "s3://models/kimi", true),
            ("s3://models", "s3://models-2/kimi", false),
            ("oci://r.example/ai", "oci://r.example/ai/kimi:q2", true),
            ("oci://r.example/ai/kimi", "oci://r.example/ai/kimi:q2", true),
            ("oci://r.example", "oci://r.example/ai/kimi:q2", true),
            ("oci://r.example", "oci://r.example.evil.example/kimi", false),
            ("oci://r.example:5000/ai", "oci://r.example:5000/ai/kimi", true),
            ("oci://r.example:5000", "oci://r.example:5000/ai/kimi", true),
            ("file:///models", "file:///models/tiny", true),
            ("file:///models", "file:///models/../etc", false),
            ("hf://", "file:///models", false),
        ] {
            assert_eq!(allows(prefix, source), expected, "{prefix} {source}");
        }
        let access = Access::default().allowing("hf://a/").unwrap().allowing("s3://b").unwrap();
        let error = access.allows(&"file:///x".parse().unwrap()).unwrap_err().to_string();
        assert!(error.contains("`hf://a/` or `s3://b`"), "{error}");
    }

    #[test]
    fn rules_that_can_not_be_say_what_to_write() {
        for prefix in ["", "unsloth/", "hf://a/../b", "https://u@h/", "hf://x?y", "hf://a//b"] {
            let error = Access::default().allowing(prefix).unwrap_err().to_string();
            assert!(error.contains("hf://owner/"), "{error}");
        }
        for prefix in ["hf://o/r@main", "oci://r.example/x:tag", "oci://r.example:5000/x:tag"] {
            let error = Access::default().allowing(prefix).unwrap_err();
            assert!(matches!(error, BadAccess::Revision(_)), "{error}");
        }
        for (rule, expected) in [
            ("hf://", "FROM=TO"),
            ("file:///x=https://h/", "FROM=TO"),
            ("hf://=http://h/", "use https://"),
            ("hf://=https://u:p@h/", "without user"),
            ("hf://=ftp://h/", "no server's address"),
            ("hf://=https://169.254.169.254/", "link-local"),
            ("x=https://h/", "no source starts"),
        ] {
            let error = Access::default().mirrored(rule).unwrap_err().to_string();
            assert!(error.contains(expected), "{rule}: {error}");
        }
        assert!(Access::default().s3(Some("http://h/"), "x").is_err());
        assert!(Access::default().s3(None, "a b").is_err());
    }

    #[test]
    fn mirrors_keep_their_order_and_their_sources() {
        let access = Access::default();
        let access = access.mirrored("hf://=https://a.example").unwrap();
        let access = access.mirrored("hf://unsloth/=https://b.example/x").unwrap();
        let of = |source: &str| {
            let source = source.parse().unwrap();
            access.mirrors_of(&source).iter().map(|(_, to)| to.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(of("hf://unsloth/r"), ["https://a.example/", "https://b.example/x/"]);
        assert_eq!(of("hf://other/r"), ["https://a.example/"]);
        assert!(of("s3://bucket").is_empty());
    }
}

//! A hub for tests and benches: models over the protocols of the Hugging Face hub, S3, OCI registries and plain web servers,
//! on loopback, in one process, as well or as badly behaved as a test asks.
//!
//! A [`Hub`] has five doors, each a server with its own port: [`Door::Hub`] redirects downloads to [`Door::Cdn`] by signed
//! links that expire, as the real one does; [`Door::S3`] verifies signatures; [`Door::Registry`] wants tokens;
//! [`Door::Web`] is folders with a `SHA256SUMS`. What is published once is behind all of them. Nothing is loaded: ranges are
//! read from memory or from files, which may be sparse.
//!
//! ```
//! # tokio::runtime::Runtime::new().unwrap().block_on(async {
//! use tandem_hub::{Content, Door, Fault, Hub, Options};
//!
//! let hub = Hub::start(Options::default()).await?;
//! hub.publish("owner/tiny", [("tiny-Q8_0.gguf", Content::of(b"not really a model".to_vec()))]);
//! // The second request for it is cut after four bytes, the others are served well.
//! hub.misbehave(Door::Cdn, "tiny-Q8_0.gguf", [Fault::None, Fault::Cut { after: 4 }]);
//! println!("{}", hub.url(Door::Hub)); // for HF_ENDPOINT, or a mirror of hf://
//! assert_eq!(hub.count(Door::Cdn, "tiny-Q8_0.gguf").requests, 0);
//! # Ok::<(), std::io::Error>(()) }).unwrap();
//! ```

mod content;
mod count;
mod door;
mod fault;
mod file;
mod huggingface;
mod listen;
mod registry;
mod repository;
mod s3;
mod signature;
mod web;

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::task::JoinSet;

pub use content::Content;
pub use count::Count;
pub use door::Door;
pub use fault::{Chaos, Fault};

use crate::count::Counts;
use crate::door::Urls;
use crate::fault::Script;
use crate::file::Throttle;
use crate::listen::Authority;
use crate::repository::Repository;

/// What a hub is like from its start.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Speaks TLS, by certificates of an authority of its own: see [`Hub::ca_pem`]. Else plain HTTP.
    pub tls: bool,
    /// Most that all doors together send, in bytes a second.
    pub bytes_per_second: Option<u64>,
    /// A certificate's further names, for tests that reach the hub by a name.
    pub names: Vec<String>,
}

/// Who may read. Without an entry, everybody.
#[derive(Clone, Debug, Default)]
pub struct Keys {
    /// The hub's token.
    pub token: Option<String>,
    /// The hub's files want terms to be accepted, which nobody has.
    pub gated: bool,
    /// Access key, secret key, and perhaps a session token, of the S3 door.
    pub s3: Option<(String, String, Option<String>)>,
    /// The region that the S3 door is in; without, it is in whichever is asked for.
    pub region: Option<String>,
    /// Name and password, for the registry's server of tokens.
    pub registry: Option<(String, String)>,
}

/// A running hub. It ends when this is dropped, and every connection with it.
pub struct Hub {
    shared: Arc<Shared>,
    ca_pem: String,
    /// Dropped with the hub.
    _doors: JoinSet<()>,
}

/// What all doors know.
pub(crate) struct Shared {
    pub(crate) urls: Urls,
    pub(crate) repositories: Mutex<BTreeMap<String, Repository>>,
    /// Manifests that tests have written themselves.
    pub(crate) manifests: Mutex<BTreeMap<String, String>>,
    pub(crate) keys: Mutex<Keys>,
    /// What links are signed with; another number makes all earlier ones expire.
    pub(crate) links: Mutex<u64>,
    /// What the registry's tokens are made of; another number makes all earlier ones expire.
    pub(crate) tokens: Mutex<u64>,
    pub(crate) script: Script,
    pub(crate) counts: Counts,
    pub(crate) throttle: Throttle,
}

impl Hub {
    /// Starts all doors, on ports that are free.
    ///
    /// # Errors
    /// When this machine has no free port on loopback, or no certificate can be made.
    pub async fn start(options: Options) -> io::Result<Self> {
        let authority = if options.tls { Some(Authority::new(&options.names)?) } else { None };
        let (listeners, urls) = door::bind(options.tls).await?;
        let shared = Arc::new(Shared {
            urls,
            repositories: Mutex::default(),
            manifests: Mutex::default(),
            keys: Mutex::default(),
            links: Mutex::default(),
            tokens: Mutex::default(),
            script: Script::default(),
            counts: Counts::default(),
            throttle: Throttle::new(options.bytes_per_second),
        });
        let mut doors = JoinSet::new();
        for (door, listener) in listeners {
            let (shared, tls) = (Arc::clone(&shared), authority.as_ref().map(Authority::acceptor));
            doors.spawn(listen::serve(listener, tls, door, shared));
        }
        let ca_pem = authority.map(|authority| authority.pem).unwrap_or_default();
        Ok(Self { shared, ca_pem, _doors: doors })
    }

    /// The base URL of a door, with `/` at its end.
    #[must_use]
    pub fn url(&self, door: Door) -> String {
        self.shared.urls.of(door).to_owned()
    }

    /// Host and port of a door.
    #[must_use]
    pub fn address(&self, door: Door) -> String {
        let url = self.shared.urls.of(door);
        url.trim_end_matches('/').rsplit('/').next().unwrap_or_default().to_owned()
    }

    /// The authority of this hub's certificates; empty without TLS.
    #[must_use]
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// Puts files behind all doors, and says the commit that they are. `name` is `owner/repository` at the hub and the
    /// registry, and a folder at the web door; at the S3 door its first component is the bucket and the rest a prefix. What
    /// was there stays at the hub as an older commit.
    pub fn publish<N: Into<String>>(
        &self,
        name: &str,
        files: impl IntoIterator<Item = (N, Content)>,
    ) -> String {
        let files = files.into_iter().map(|(name, content)| (name.into(), content)).collect();
        lock(&self.shared.repositories).entry(name.to_owned()).or_default().publish(files)
    }

    /// The digest of what the registry gives for a tag of a repository, `sha256:…`.
    #[must_use]
    pub fn manifest_digest(&self, name: &str) -> Option<String> {
        let repositories = lock(&self.shared.repositories);
        repositories
            .get(name)
            .and_then(|repository| repository.newest())
            .map(|files| registry::manifest(files).1)
    }

    /// Lets the registry give this text for a repository's tag, whatever is published there; its layers' digests are those of
    /// published files.
    pub fn set_manifest(&self, name: &str, text: &str) {
        lock(&self.shared.manifests).insert(name.to_owned(), text.to_owned());
    }

    /// Changes who may read; also what a token that was good is no longer.
    pub fn set_keys(&self, keys: Keys) {
        *lock(&self.shared.keys) = keys;
    }

    /// Lets all links to the store behind the hub and the registry expire.
    pub fn expire_links(&self) {
        *lock(&self.shared.links) += 1;
    }

    /// Lets all tokens of the registry expire.
    pub fn expire_tokens(&self) {
        *lock(&self.shared.tokens) += 1;
    }

    /// Lets the next requests at a door whose path ends with `path` go like this, in order; those after them go well.
    pub fn misbehave(&self, door: Door, path: &str, faults: impl IntoIterator<Item = Fault>) {
        self.shared.script.then(door, path, faults.into_iter().collect());
    }

    /// Lets all requests at a door whose path ends with `path` go like this.
    pub fn always(&self, door: Door, path: &str, fault: Fault) {
        self.shared.script.always(door, path, fault);
    }

    /// Lets requests that nothing else was said about go wrong by chance; `None` ends it.
    pub fn chaos(&self, chaos: Option<Chaos>) {
        self.shared.script.chaos(chaos);
    }

    /// Forgets everything that was said about misbehaviour.
    pub fn behave(&self) {
        self.shared.script.clear();
    }

    /// What was asked for and sent at a door for paths that end with `path`; all of them when it is empty.
    #[must_use]
    pub fn count(&self, door: Door, path: &str) -> Count {
        self.shared.counts.of(door, path)
    }

    /// Bytes of files that all doors have sent.
    #[must_use]
    pub fn bytes_sent(&self) -> u64 {
        Door::ALL.iter().map(|door| self.count(*door, "").bytes).sum()
    }

    /// Starts counting again.
    pub fn reset_counts(&self) {
        self.shared.counts.reset();
    }
}

/// Nothing that holds one of these locks panics or waits.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no panic while the hub is changed")
}

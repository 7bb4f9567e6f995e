//! A hub with small models in it, and access to it.
#![allow(dead_code, reason = "each test file uses its part")]

use std::time::Duration;

use tandem_gguf::{GgmlType, Writer};
use tandem_hub::{Content, Door, Hub, Options};
use tandem_sources::{Access, Origin, ResolveError, Resolved, Secret, Source, TransferError, resolve};

/// What `hf://`, `oci://` and folders call the model; at the S3 door `owner` is the bucket.
pub(crate) const REPO: &str = "owner/tiny";
pub(crate) const Q8: &str = "tiny-Q8_0.gguf";
pub(crate) const Q4: [&str; 2] =
    ["UD-Q4_K_XL/tiny-UD-Q4_K_XL-00001-of-00002.gguf", "UD-Q4_K_XL/tiny-UD-Q4_K_XL-00002-of-00002.gguf"];

/// A file with one tensor of this many floats, whose bytes are all `fill`.
pub(crate) fn gguf(fill: u8, floats: u64) -> Vec<u8> {
    let bytes = vec![fill; usize::try_from(4 * floats).unwrap()];
    let mut writer = Writer::new();
    writer.set("general.architecture", "llama").tensor("t", &[floats], GgmlType::F32, bytes);
    writer.finish().unwrap()
}

pub(crate) struct Site {
    pub(crate) hub: Hub,
    pub(crate) commit: String,
}

impl Site {
    /// One model of one file, one of two shards, and what else lies in such folders.
    pub(crate) async fn start(tls: bool) -> Self {
        drop(rustls::crypto::ring::default_provider().install_default());
        let names = vec!["models.example".to_owned(), "store.example".to_owned()];
        let hub = Hub::start(Options { tls, names, ..Options::default() }).await.unwrap();
        let commit = hub.publish(REPO, files());
        Self { hub, commit }
    }

    /// Trusts the hub, reads every kind of source from it, and waits shortly.
    pub(crate) fn access(&self) -> Access {
        let url = |door| self.hub.url(door);
        let access = Access::default()
            .mirrored(&format!("hf://={}", url(Door::Hub)))
            .and_then(|access| access.mirrored(&format!("oci://registry.example/={}", url(Door::Registry))))
            .and_then(|access| access.s3(Some(&url(Door::S3)), "eu-north-1"))
            .unwrap()
            .waiting(Duration::from_secs(5), Duration::from_millis(400))
            .retrying(3, Duration::from_millis(1));
        match self.hub.ca_pem() {
            "" => access,
            pem => access.trusting(pem.as_bytes()).unwrap(),
        }
    }

    /// The same model in every kind of place that has one.
    pub(crate) fn sources(&self) -> Vec<(Door, String)> {
        vec![
            (Door::Cdn, format!("hf://{REPO}")),
            (Door::S3, format!("s3://{REPO}")),
            (Door::Cdn, format!("oci://registry.example/{REPO}:latest")),
            (Door::Web, format!("{}{REPO}/", self.hub.url(Door::Web))),
        ]
    }

    pub(crate) async fn resolve(&self, source: &str, quant: &str) -> Result<Resolved, ResolveError> {
        resolve(&parse(source), quant, &[], None, &self.access()).await
    }

    pub(crate) async fn open(&self, source: &str) -> Origin {
        Origin::open(&parse(source), None, &self.access()).await.unwrap()
    }
}

pub(crate) fn files() -> Vec<(&'static str, Content)> {
    vec![
        (Q8, Content::of(gguf(8, 100_000))),
        (Q4[0], Content::of(gguf(4, 1000))),
        (Q4[1], Content::of(gguf(5, 1000))),
        ("README.md", Content::of(&b"hello"[..])),
        ("mmproj-F16.gguf", Content::of(gguf(1, 8))),
        ("imatrix_unsloth.gguf", Content::of(gguf(2, 8))),
    ]
}

pub(crate) fn parse(source: &str) -> Source {
    source.parse().unwrap()
}

pub(crate) fn secret(text: &str) -> Option<Secret> {
    Some(Secret::new(text))
}

/// All bytes of a range, or the first error.
pub(crate) async fn read(
    origin: &Origin,
    name: &str,
    range: Option<std::ops::Range<u64>>,
) -> Result<Vec<u8>, TransferError> {
    let mut body = origin.read(name, range).await?;
    let mut bytes = Vec::new();
    while let Some(block) = body.next().await? {
        bytes.extend_from_slice(&block);
    }
    Ok(bytes)
}

/// An error and what is behind it, as logs show it.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(&format!(": {error}"));
        source = error.source();
    }
    text
}

//! A repository of an OCI registry: a manifest whose layers are GGUF files, each known by its digest.

mod manifest;
mod token;

use std::ops::Range;

use reqwest::{StatusCode, Url};
use sha2::{Digest, Sha256};

use self::manifest::Layer;
use self::token::Tokens;
use super::located::Located;
use super::{Entry, Listing, below};
use crate::error::shown;
use crate::http::{Answer, Ask, Http};
use crate::source::{Reference, is_digest, literal};
use crate::{Body, Secret, TransferError};

/// Longest manifest, in bytes: what registries take.
const LONGEST_MANIFEST: u64 = 4 << 20;

pub(super) struct Registry {
    http: Http,
    base: Url,
    digest: String,
    layers: Vec<Layer>,
    /// Whether the manifest names no file: it is one model then.
    is_unnamed: bool,
    tokens: Tokens,
    located: Located,
}

/// Where a registry answers. Those on this machine do so without TLS, as other clients of registries have it.
pub(super) fn endpoint(host: &str) -> Result<Url, TransferError> {
    let host = if host == "docker.io" { "registry-1.docker.io" } else { host };
    let parse = |scheme: &str| Url::parse(&format!("{scheme}://{host}/"));
    let url = parse("https").map_err(|_| TransferError::NotFound(host.to_owned()))?;
    let own = url.host_str().and_then(literal).is_some_and(|address| address.is_loopback());
    if own { parse("http").map_err(|_| TransferError::NotFound(host.to_owned())) } else { Ok(url) }
}

/// A repository as the registry calls it: Docker's own have a folder that nobody writes.
pub(super) fn repository(host: &str, repo: &str) -> String {
    if host == "docker.io" && !repo.contains('/') { format!("library/{repo}") } else { repo.to_owned() }
}

impl Registry {
    /// Reads the manifest, and holds it against its digest.
    pub(super) async fn open(
        http: Http,
        endpoint: Url,
        repo: String,
        reference: &Reference,
        credential: Option<&Secret>,
    ) -> Result<Self, TransferError> {
        let base = below(&endpoint, ["v2"].into_iter().chain(repo.split('/')));
        let tokens = Tokens::new(endpoint, repo, credential)?;
        let (located, layers) = (Located::default(), Vec::new());
        let mut registry =
            Self { http, base, digest: String::new(), layers, is_unnamed: false, tokens, located };
        let url = below(&registry.base, ["manifests", reference.as_str()]);
        let ask = Ask { accept: Some(manifest::TYPES), ..Ask::new(url.clone()) };
        let answer = registry.ask(&ask).await?;
        let said = answer.header("docker-content-digest").filter(|said| is_digest(said)).map(str::to_owned);
        let text = registry.http.text(answer, LONGEST_MANIFEST).await?;
        registry.digest = format!("sha256:{}", hex::encode(Sha256::digest(&text)));
        let expected = match reference {
            Reference::Digest(digest) => Some(digest.clone()),
            Reference::Tag(_) => said,
        };
        if let Some(expected) = expected.filter(|expected| *expected != registry.digest) {
            let found = registry.digest;
            return Err(TransferError::ChangedRevision { url: shown(&url), expected, found });
        }
        (registry.layers, registry.is_unnamed) =
            manifest::layers(&text).map_err(|what| TransferError::Malformed { url: shown(&url), what })?;
        Ok(registry)
    }

    pub(super) fn digest(&self) -> &str {
        &self.digest
    }

    pub(super) fn list(&self) -> Listing {
        let entry = |layer: &Layer| Entry {
            name: layer.name.clone(),
            sha256: Some(layer.sha256),
            bytes: layer.bytes,
        };
        let entries = self.layers.iter().map(entry).collect();
        if self.is_unnamed { Listing::Model(entries) } else { Listing::Files(entries) }
    }

    pub(super) async fn read(&self, name: &str, range: Option<Range<u64>>) -> Result<Body, TransferError> {
        let layer = self.layers.iter().find(|layer| layer.name == name);
        let layer = layer.ok_or_else(|| TransferError::NotFound(format!("{name} in {}", self.base)))?;
        let digest = format!("sha256:{}", layer.sha256);
        let ask = Ask { range, ..Ask::new(below(&self.base, ["blobs", digest.as_str()])) };
        if let Some(body) = self.located.read(&self.http, name, &ask).await {
            return body;
        }
        let answer = self.ask(&ask).await?;
        self.located.note(name, &ask.url, &answer);
        Body::of_answer(answer, ask.range.as_ref())
    }

    /// Asks with the token at hand; a registry that wants another one says where to get it.
    async fn ask(&self, ask: &Ask) -> Result<Answer, TransferError> {
        let before = self.tokens.current();
        let ask = Ask { authorization: before.clone(), ..ask.clone() };
        let answer = self.http.get(&ask).await?;
        // A store behind the registry has no tokens to give.
        let wants = answer.response.status() == StatusCode::UNAUTHORIZED && answer.redirect.is_none();
        if !wants {
            return answer.accepted(&ask).await;
        }
        match self.tokens.renew(&self.http, &answer, before.as_ref()).await? {
            Some(token) => {
                let ask = Ask { authorization: Some(token), ..ask };
                let answer = self.http.get(&ask).await?;
                if answer.response.status().is_success() {
                    return Ok(answer);
                }
                Err(self.tokens.blame(answer.refusal(&ask).await))
            }
            None => Err(self.tokens.blame(answer.refusal(&ask).await)),
        }
    }
}

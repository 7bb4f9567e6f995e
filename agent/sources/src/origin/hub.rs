//! A repository of the Hugging Face hub, or of what speaks like it. Its interface: `/api/models/REPO/revision/REVISION` for
//! the commit, `/api/models/REPO/tree/COMMIT` for the files, and `/REPO/resolve/COMMIT/FILE`, which redirects to a store.

use std::ops::Range;

use reqwest::header::{self, HeaderMap, HeaderValue};
use reqwest::{StatusCode, Url};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::located::Located;
use super::{Entry, authorization, below};
use crate::error::shown;
use crate::http::{Answer, Ask, Http};
use crate::{Body, Secret, TransferError, is_inside};

/// Longest answer about a repository, or page of its files, in bytes.
const LONGEST_PAGE: u64 = 8 << 20;
/// Pages hold a thousand files.
const MOST_PAGES: usize = 64;

pub(super) struct Hub {
    http: Http,
    endpoint: Url,
    repo: String,
    commit: String,
    below: String,
    authorization: Option<HeaderValue>,
    located: Located,
}

#[derive(Deserialize)]
struct Revision {
    sha: String,
}

#[derive(Deserialize)]
struct Leaf {
    r#type: String,
    path: String,
    #[serde(default)]
    size: u64,
    lfs: Option<Large>,
}

/// A file that the repository holds by its digest only.
#[derive(Deserialize)]
struct Large {
    oid: String,
    size: u64,
}

impl Hub {
    /// Finds the commit that a branch or tag is now.
    pub(super) async fn open(
        http: Http,
        endpoint: Url,
        repo: &str,
        revision: &str,
        below: &str,
        credential: Option<&Secret>,
    ) -> Result<Self, TransferError> {
        let token = |secret: &Secret| match secret.reveal().contains(':') {
            true => Err(TransferError::BadCredential("a hub's token")),
            false => authorization(secret),
        };
        let authorization = credential.map(token).transpose()?;
        let mut hub = Self {
            http,
            endpoint,
            repo: repo.to_owned(),
            commit: revision.to_owned(),
            below: below.to_owned(),
            authorization,
            located: Located::default(),
        };
        if !is_commit(revision) {
            hub.commit = hub.resolve(revision).await?;
        }
        Ok(hub)
    }

    pub(super) fn commit(&self) -> &str {
        &self.commit
    }

    async fn resolve(&self, revision: &str) -> Result<String, TransferError> {
        let mut url = self.api("revision");
        if let Ok(mut segments) = url.path_segments_mut() {
            // One component: its slashes are escaped.
            segments.push(revision);
        }
        let answer = self.ask(&url).await?;
        let found: Revision = self.json(answer).await?;
        if is_commit(&found.sha) {
            Ok(found.sha)
        } else {
            Err(TransferError::Malformed { url: shown(&url), what: "commit of a repository" })
        }
    }

    /// All files below the source, with the digests of those that have one.
    pub(super) async fn list(&self) -> Result<Vec<Entry>, TransferError> {
        let mut url = below(&self.api("tree"), [self.commit.as_str()]);
        url = below(&url, self.below.split('/'));
        url.set_query(Some("recursive=true"));
        let mut entries = Vec::new();
        for _ in 0..MOST_PAGES {
            let answer = self.ask(&url).await?;
            let next = next_page(&answer.url, answer.response.headers());
            let leaves: Vec<Leaf> = self.json(answer).await?;
            entries.extend(leaves.into_iter().filter_map(|leaf| self.entry(leaf)));
            match next {
                // A page differs by its cursor. The rest of the link may be the hub's own address, which a mirror passes on.
                Some(next) => url.set_query(next.query()),
                None => return Ok(entries),
            }
        }
        Err(TransferError::TooLarge { url: shown(&url), limit: MOST_PAGES as u64 * LONGEST_PAGE })
    }

    fn entry(&self, leaf: Leaf) -> Option<Entry> {
        let name = match self.below.as_str() {
            "" => leaf.path.as_str(),
            folder => leaf.path.strip_prefix(folder)?.strip_prefix('/')?,
        };
        if leaf.r#type != "file" || !is_inside(name) {
            return None;
        }
        let sha256 = leaf.lfs.as_ref().and_then(|lfs| lfs.oid.trim_start_matches("sha256:").parse().ok());
        let bytes = leaf.lfs.map_or(leaf.size, |lfs| lfs.size);
        Some(Entry { name: name.to_owned(), sha256, bytes })
    }

    pub(super) async fn read(&self, name: &str, range: Option<Range<u64>>) -> Result<Body, TransferError> {
        let repo = self.repo.split('/');
        let url = below(&self.endpoint, repo.chain(["resolve", self.commit.as_str()]));
        let url = below(&below(&url, self.below.split('/')), name.split('/'));
        let ask = Ask { range, authorization: self.authorization.clone(), ..Ask::new(url) };
        if let Some(body) = self.located.read(&self.http, name, &ask).await {
            return body;
        }
        let answer = self.checked(&ask, self.http.get(&ask).await?).await?;
        self.located.note(name, &ask.url, &answer);
        Body::of_answer(answer, ask.range.as_ref())
    }

    /// Whether the hub answers for the pinned commit.
    async fn checked(&self, ask: &Ask, answer: Answer) -> Result<Answer, TransferError> {
        if !answer.response.status().is_success() {
            return Err(self.refusal(ask, answer).await);
        }
        let headers = answer.redirect.as_ref().unwrap_or(answer.response.headers());
        let found = headers.get("x-repo-commit").and_then(|commit| commit.to_str().ok());
        match found.filter(|found| *found != self.commit) {
            Some(found) => Err(TransferError::ChangedRevision {
                url: shown(&ask.url),
                expected: self.commit.clone(),
                found: found.chars().filter(char::is_ascii_alphanumeric).take(64).collect(),
            }),
            None => Ok(answer),
        }
    }

    async fn ask(&self, url: &Url) -> Result<Answer, TransferError> {
        let ask = Ask { authorization: self.authorization.clone(), ..Ask::new(url.clone()) };
        let answer = self.http.get(&ask).await?;
        if answer.response.status().is_success() { Ok(answer) } else { Err(self.refusal(&ask, answer).await) }
    }

    async fn json<T: DeserializeOwned>(&self, answer: Answer) -> Result<T, TransferError> {
        let url = shown(&answer.url);
        let text = self.http.text(answer, LONGEST_PAGE).await?;
        serde_json::from_slice(&text)
            .map_err(|_| TransferError::Malformed { url, what: "answer of a hub: is the endpoint one?" })
    }

    async fn refusal(&self, ask: &Ask, answer: Answer) -> TransferError {
        let status = answer.response.status();
        match answer.header("x-error-code") {
            Some("GatedRepo") => return TransferError::Gated(self.repo.clone()),
            Some("RevisionNotFound") => {
                let (repo, revision) = (self.repo.clone(), self.commit.clone());
                return TransferError::UnknownRevision { repo, revision };
            }
            Some("RepoNotFound") if status == StatusCode::NOT_FOUND => {
                return TransferError::NotFound(format!("hf://{}", self.repo));
            }
            _ => {}
        }
        answer.refusal(ask).await
    }

    fn api(&self, what: &str) -> Url {
        below(&self.endpoint, ["api", "models"].into_iter().chain(self.repo.split('/')).chain([what]))
    }
}

/// Whether a revision is a commit already, which nobody can move.
fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|c| c.is_ascii_digit() || (b'a'..=b'f').contains(&c))
}

/// The target of `rel="next"`, of RFC 8288.
fn next_page(from: &Url, headers: &HeaderMap) -> Option<Url> {
    let links = headers.get(header::LINK)?.to_str().ok()?;
    links.split(',').find_map(|link| {
        let (target, parameters) = link.trim().strip_prefix('<')?.split_once('>')?;
        let next = parameters.split(';').any(|p| matches!(p.trim(), "rel=\"next\"" | "rel=next"));
        if next { from.join(target).ok() } else { None }
    })
}

//! Folders with a `SHA256SUMS`, and the store that links lead to.

use std::sync::Arc;

use axum::body::Body;
use axum::http::{HeaderMap, Response, StatusCode};
use axum::response::IntoResponse;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use crate::listen::Asked;
use crate::repository::sums;
use crate::signature::hmac;
use crate::{Content, Door, Shared, file, lock};

pub(crate) async fn answer(shared: &Arc<Shared>, asked: Asked) -> Response<Body> {
    match found(shared, asked.path.trim_start_matches('/')) {
        Some(content) => file::send(shared, &asked, &content, HeaderMap::new()),
        // A script may have an answer for what is not there.
        None => file::refused(&shared.script.next(asked.door, &asked.path, None))
            .unwrap_or_else(|| StatusCode::NOT_FOUND.into_response()),
    }
}

/// A file by the path that folders give it; `SHA256SUMS` lies in each.
pub(crate) fn found(shared: &Shared, path: &str) -> Option<Content> {
    let repositories = lock(&shared.repositories);
    repositories.iter().find_map(|(name, repository)| {
        let file = path.strip_prefix(name.as_str())?.strip_prefix('/')?;
        let files = repository.newest()?;
        match files.get(file) {
            Some(content) => Some(content.clone()),
            None if file == "SHA256SUMS" => Some(Content::of(sums(files))),
            None => None,
        }
    })
}

/// A link to a file in the store, good until links expire.
pub(crate) fn link(shared: &Shared, name: &str, content: &Content) -> String {
    let path = format!("{}/{}", content.sha256(), utf8_percent_encode(name, NON_ALPHANUMERIC));
    format!("{}{path}?Signature={}", shared.urls.of(Door::Cdn), signed(shared, content.sha256()))
}

fn signed(shared: &Shared, sha256: &str) -> String {
    hex::encode(hmac(&lock(&shared.links).to_be_bytes(), sha256.as_bytes()))
}

/// The store: `/DIGEST/NAME?Signature=…`. Whoever shows a credential here has sent it to the wrong host.
pub(crate) async fn stored(shared: &Arc<Shared>, asked: Asked) -> Response<Body> {
    if asked.header("authorization").is_some() {
        return (StatusCode::BAD_REQUEST, "a credential came to the wrong host").into_response();
    }
    let sha256 = asked.path.trim_start_matches('/').split('/').next().unwrap_or_default();
    if asked.parameter("Signature").as_deref() != Some(signed(shared, sha256).as_str()) {
        return StatusCode::FORBIDDEN.into_response();
    }
    let content = {
        let repositories = lock(&shared.repositories);
        let mut all =
            repositories.values().flat_map(|repository| repository.all()).flat_map(|files| files.values());
        all.find(|content| content.sha256() == sha256).cloned()
    };
    match content {
        Some(content) => file::send(shared, &asked, &content, HeaderMap::new()),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

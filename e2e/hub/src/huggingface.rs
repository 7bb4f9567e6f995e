//! The Hugging Face hub's interface, as far as reading models goes.

use std::sync::Arc;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use axum::response::IntoResponse;
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::listen::Asked;
use crate::repository::Files;
use crate::{Content, Fault, Shared, file, lock, web};

/// Entries of a page of a list. The real hub has a thousand; here, tests see more than one page.
const PAGE: usize = 4;
/// Smaller files are no large files, and have no sha256 in the list.
const LARGE: u64 = 16;

/// What a path of the interface means.
enum Wanted<'a> {
    Revision { repo: String, revision: String },
    Tree { repo: String, revision: &'a str, below: String },
    File { repo: String, revision: &'a str, name: String },
}

pub(crate) async fn answer(shared: &Arc<Shared>, asked: Asked) -> Response<Body> {
    let path = asked.path.clone();
    let Some(wanted) = wanted(path.trim_matches('/')) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let (token, gated) = {
        let keys = lock(&shared.keys);
        (keys.token.clone(), keys.gated)
    };
    if let Some(token) = token {
        match asked.header("authorization") {
            Some(given) if given == format!("Bearer {token}") => {}
            // As the real one: who says nothing learns nothing, not even whether it is there.
            _ => return refusal(StatusCode::UNAUTHORIZED, "RepoNotFound"),
        }
    }
    if gated && matches!(wanted, Wanted::File { .. }) {
        return refusal(StatusCode::FORBIDDEN, "GatedRepo");
    }
    match wanted {
        Wanted::Revision { repo, revision } => match at(shared, &repo, &revision) {
            Ok((commit, _)) => json_text(shared, &asked, json!({"id": repo, "sha": commit}).to_string()),
            Err(code) => refusal(StatusCode::NOT_FOUND, code),
        },
        Wanted::Tree { repo, revision, below } => match at(shared, &repo, revision) {
            Ok((_, files)) => tree(shared, &asked, &files, &below),
            Err(code) => refusal(StatusCode::NOT_FOUND, code),
        },
        Wanted::File { repo, revision, name } => match at(shared, &repo, revision) {
            Ok((commit, files)) => match files.get(&name) {
                Some(content) => resolve(shared, &asked, &commit, &name, content),
                None => refusal(StatusCode::NOT_FOUND, "EntryNotFound"),
            },
            Err(code) => refusal(StatusCode::NOT_FOUND, code),
        },
    }
}

fn wanted(path: &str) -> Option<Wanted<'_>> {
    let parts: Vec<&str> = path.split('/').collect();
    let repo = |owner: &str, name: &str| format!("{owner}/{name}");
    match parts.as_slice() {
        ["api", "models", owner, name, "revision", revision @ ..] => {
            Some(Wanted::Revision { repo: repo(owner, name), revision: revision.join("/") })
        }
        ["api", "models", owner, name, "tree", revision, below @ ..] => {
            Some(Wanted::Tree { repo: repo(owner, name), revision, below: below.join("/") })
        }
        [owner, name, "resolve", revision, file @ ..] => {
            Some(Wanted::File { repo: repo(owner, name), revision, name: file.join("/") })
        }
        _ => None,
    }
}

fn at(shared: &Shared, repo: &str, revision: &str) -> Result<(String, Files), &'static str> {
    let repositories = lock(&shared.repositories);
    let repository = repositories.get(repo).ok_or("RepoNotFound")?;
    let (commit, files) = repository.at(revision).ok_or("RevisionNotFound")?;
    Ok((commit.to_owned(), files.clone()))
}

fn refusal(status: StatusCode, code: &'static str) -> Response<Body> {
    (status, [("x-error-code", code)]).into_response()
}

fn json_text(shared: &Shared, asked: &Asked, text: String) -> Response<Body> {
    file::text(shared, asked, "application/json", text)
}

/// One page of the files below a folder.
fn tree(shared: &Shared, asked: &Asked, files: &Files, below: &str) -> Response<Body> {
    let folder = if below.is_empty() { String::new() } else { format!("{below}/") };
    let all: Vec<(&String, &Content)> = files.iter().filter(|(name, _)| name.starts_with(&folder)).collect();
    if all.is_empty() && !below.is_empty() {
        return refusal(StatusCode::NOT_FOUND, "EntryNotFound");
    }
    let start: usize = asked.parameter("cursor").and_then(|cursor| cursor.parse().ok()).unwrap_or(0);
    let page = all.iter().skip(start).take(PAGE);
    let entries: Vec<serde_json::Value> = page.map(|(name, content)| entry(name, content)).collect();
    let mut response = json_text(shared, asked, json!(entries).to_string());
    if start + PAGE < all.len() {
        let url = shared.urls.of(asked.door).trim_end_matches('/');
        let next =
            format!("<{url}{}?recursive=true&cursor={}>; rel=\"next\"", asked.parts.uri.path(), start + PAGE);
        if let Ok(next) = HeaderValue::try_from(next) {
            response.headers_mut().insert(header::LINK, next);
        }
    }
    response
}

fn entry(name: &str, content: &Content) -> serde_json::Value {
    let git = &hex::encode(Sha256::digest(content.sha256()))[..40];
    if content.len() < LARGE {
        return json!({"type": "file", "oid": git, "size": content.len(), "path": name});
    }
    let large = json!({"oid": content.sha256(), "size": content.len(), "pointerSize": 135});
    json!({"type": "file", "oid": git, "size": content.len(), "lfs": large, "path": name})
}

/// Sends on to the store, and says what will come from there.
fn resolve(
    shared: &Arc<Shared>,
    asked: &Asked,
    commit: &str,
    name: &str,
    content: &Content,
) -> Response<Body> {
    let fault = shared.script.next(asked.door, &asked.path, None);
    if let Some(response) = file::refused(&fault) {
        return response;
    }
    let commit = if fault == Fault::OtherCommit { "0".repeat(40) } else { commit.to_owned() };
    let mut headers = HeaderMap::new();
    let linked = [
        ("x-repo-commit", commit),
        ("x-linked-size", content.len().to_string()),
        ("x-linked-etag", format!("\"{}\"", content.sha256())),
        ("location", web::link(shared, name, content)),
    ];
    for (header, value) in linked {
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert(header, value);
        }
    }
    (StatusCode::FOUND, headers).into_response()
}

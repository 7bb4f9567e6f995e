//! An OCI registry, `/v2/…`, with its server of tokens, `/token`.

use std::sync::Arc;

use axum::body::Body;
use axum::http::{HeaderMap, Response, StatusCode, header};
use axum::response::IntoResponse;
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::listen::Asked;
use crate::repository::Files;
use crate::signature::hmac;
use crate::{Content, Shared, file, lock, web};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

pub(crate) async fn answer(shared: &Arc<Shared>, asked: Asked) -> Response<Body> {
    if asked.path == "/token" {
        return token(shared, &asked);
    }
    let path = asked.path.clone();
    let Some(rest) = path.strip_prefix("/v2/") else { return StatusCode::NOT_FOUND.into_response() };
    let parts: Vec<&str> = rest.rsplitn(3, '/').collect();
    let &[reference, kind, repo] = parts.as_slice() else { return StatusCode::NOT_FOUND.into_response() };
    if asked.header("authorization") != Some(format!("Bearer {}", issued(shared, repo)).as_str()) {
        let challenge = format!(
            "Bearer realm=\"{}token\",service=\"tandem-hub\",scope=\"repository:{repo}:pull\"",
            shared.urls.of(asked.door)
        );
        return (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, challenge)]).into_response();
    }
    // Tags are what is newest; digests are for ever.
    let commits: Vec<Files> = {
        let repositories = lock(&shared.repositories);
        let Some(repository) = repositories.get(repo) else { return StatusCode::NOT_FOUND.into_response() };
        let all = repository.newest().into_iter().chain(repository.all());
        let own = lock(&shared.manifests).contains_key(repo);
        all.filter(|files| {
            own || kind == "blobs" || !reference.contains(':') || manifest(files).1 == reference
        })
        .cloned()
        .collect()
    };
    let Some(files) = commits.first() else { return StatusCode::NOT_FOUND.into_response() };
    match kind {
        "manifests" => {
            let own = lock(&shared.manifests).get(repo).cloned();
            let own = own.map(|text| (text.clone(), format!("sha256:{}", hex::encode(Sha256::digest(text)))));
            let (text, digest) = own.unwrap_or_else(|| manifest(files));
            let mut response = file::text(shared, &asked, MANIFEST, text);
            if let Ok(digest) = digest.parse() {
                response.headers_mut().insert("docker-content-digest", digest);
            }
            response
        }
        "blobs" => match commits.iter().find_map(|files| named(files, reference)) {
            Some((name, content)) => {
                let fault = shared.script.next(asked.door, &asked.path, None);
                let link = || [(header::LOCATION, web::link(shared, name, content))];
                file::refused(&fault).unwrap_or_else(|| {
                    (StatusCode::TEMPORARY_REDIRECT, HeaderMap::new(), link()).into_response()
                })
            }
            None => StatusCode::NOT_FOUND.into_response(),
        },
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}

fn named<'a>(files: &'a Files, digest: &str) -> Option<(&'a str, &'a Content)> {
    let sha256 = digest.strip_prefix("sha256:")?;
    let found = files.iter().find(|(_, content)| content.sha256() == sha256);
    found.map(|(name, content)| (name.as_str(), content))
}

/// The manifest of some files, and its digest.
pub(crate) fn manifest(files: &Files) -> (String, String) {
    let layer = |(name, content): (&String, &Content)| {
        json!({
            "mediaType": "application/octet-stream",
            "digest": format!("sha256:{}", content.sha256()),
            "size": content.len(),
            "annotations": {"org.opencontainers.image.title": name},
        })
    };
    let layers: Vec<serde_json::Value> = files.iter().map(layer).collect();
    let empty = json!({
        "mediaType": "application/vnd.oci.empty.v1+json",
        "digest": "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
        "size": 2,
    });
    let text =
        json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": empty, "layers": layers}).to_string();
    let digest = format!("sha256:{}", hex::encode(Sha256::digest(&text)));
    (text, digest)
}

fn issued(shared: &Shared, repo: &str) -> String {
    hex::encode(hmac(&lock(&shared.tokens).to_be_bytes(), repo.as_bytes()))
}

/// Gives a token for the scope that is asked for, to those who may have it.
fn token(shared: &Shared, asked: &Asked) -> Response<Body> {
    let keys = lock(&shared.keys).registry.clone();
    if let Some((user, password)) = keys {
        let expected = basic(&user, &password);
        if asked.header("authorization") != Some(expected.as_str()) {
            return StatusCode::UNAUTHORIZED.into_response();
        }
    }
    let scope = asked.parameter("scope").unwrap_or_default();
    let repo = scope.strip_prefix("repository:").and_then(|rest| rest.strip_suffix(":pull"));
    match repo.filter(|_| asked.parameter("service").as_deref() == Some("tandem-hub")) {
        Some(repo) => {
            let text = json!({"token": issued(shared, repo), "expires_in": 300}).to_string();
            file::text(shared, asked, "application/json", text)
        }
        None => StatusCode::BAD_REQUEST.into_response(),
    }
}

/// `Basic` of RFC 7617, by hand: base64 in groups of three bytes.
fn basic(user: &str, password: &str) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let text = format!("{user}:{password}");
    let groups = text.as_bytes().chunks(3).flat_map(|group| {
        let bits =
            group.iter().enumerate().fold(0_u32, |bits, (i, byte)| bits | u32::from(*byte) << (16 - 8 * i));
        (0..4).map(move |i| {
            let letter = LETTERS[(bits >> (18 - 6 * i) & 63) as usize] as char;
            if i <= group.len() { letter } else { '=' }
        })
    });
    format!("Basic {}", groups.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn basic_is_padded() {
        assert_eq!(basic("Aladdin", "open sesame"), "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==");
        assert_eq!(basic("a", "bc"), "Basic YTpiYw==");
        assert_eq!(basic("a", "b"), "Basic YTpi");
    }
}

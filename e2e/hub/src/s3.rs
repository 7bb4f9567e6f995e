//! S3, path style: `/BUCKET/KEY`.

use std::sync::Arc;

use axum::body::Body;
use axum::http::{HeaderMap, Response, StatusCode, header};
use axum::response::IntoResponse;
use jiff::Timestamp;

use crate::listen::Asked;
use crate::{Shared, file, lock, signature, web};

pub(crate) async fn answer(shared: &Arc<Shared>, asked: Asked) -> Response<Body> {
    let keys = lock(&shared.keys).clone();
    if let (Some(region), Some(asked)) = (&keys.region, signature::region(&asked))
        && *region != asked
    {
        let mut response = refusal(StatusCode::MOVED_PERMANENTLY, "PermanentRedirect");
        if let Ok(region) = region.parse() {
            response.headers_mut().insert("x-amz-bucket-region", region);
        }
        return response;
    }
    if let Err(code) = signature::verify(&asked, &keys, Timestamp::now()) {
        return refusal(StatusCode::FORBIDDEN, code);
    }
    match web::found(shared, asked.path.trim_start_matches('/')) {
        Some(content) => file::send(shared, &asked, &content, HeaderMap::new()),
        None => refusal(StatusCode::NOT_FOUND, "NoSuchKey"),
    }
}

fn refusal(status: StatusCode, code: &str) -> Response<Body> {
    let text = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>no</Message></Error>");
    (status, [(header::CONTENT_TYPE, "application/xml")], text).into_response()
}

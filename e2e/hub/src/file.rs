//! Sending a file or a range of it, in the way that was scripted.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use axum::response::IntoResponse;
use bytes::Bytes;
use futures::stream;
use tokio::time::{Instant, sleep_until};

use crate::count::Counter;
use crate::listen::Asked;
use crate::{Content, Fault, Shared, lock};

/// A bound on bytes a second, shared by all who send.
pub(crate) struct Throttle {
    bytes_per_second: Option<u64>,
    /// When the next byte may be sent.
    free: Mutex<Instant>,
}

impl Throttle {
    pub(crate) fn new(bytes_per_second: Option<u64>) -> Self {
        Self { bytes_per_second, free: Mutex::new(Instant::now()) }
    }

    async fn pass(&self, bytes: usize) {
        let Some(rate) = self.bytes_per_second.filter(|rate| *rate > 0) else { return };
        let turn = {
            let mut free = lock(&self.free);
            let turn = (*free).max(Instant::now());
            *free = turn + Duration::from_secs_f64(bytes as f64 / rate as f64);
            *free
        };
        sleep_until(turn).await;
    }
}

/// A whole small answer that is no file, such as a list, unless the script has other plans.
pub(crate) fn text(shared: &Shared, asked: &Asked, kind: &'static str, text: String) -> Response<Body> {
    match refused(&shared.script.next(asked.door, &asked.path, None)) {
        Some(response) => response,
        None => ([(header::CONTENT_TYPE, kind)], text).into_response(),
    }
}

/// The answer that a fault is by itself.
pub(crate) fn refused(fault: &Fault) -> Option<Response<Body>> {
    match fault {
        Fault::Status(status) => Some(StatusCode::from_u16(*status).unwrap_or_default().into_response()),
        Fault::TooMany { retry_after } => {
            let header = [(header::RETRY_AFTER, retry_after.to_string())];
            Some((StatusCode::TOO_MANY_REQUESTS, header).into_response())
        }
        Fault::Redirect(to) => Some((StatusCode::FOUND, [(header::LOCATION, to.clone())]).into_response()),
        _ => None,
    }
}

/// The range that a request asks for, or the whole; `None` when it lies behind the end.
fn range(asked: &Asked, length: u64) -> Option<(Range<u64>, bool)> {
    let parse = |text: &str| {
        let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
        let last = if last.is_empty() { u64::MAX - 1 } else { last.parse().ok()? };
        Some(first.parse().ok()?..(last + 1).min(length))
    };
    match asked.header("range").and_then(parse) {
        Some(Range { start, end }) if start < end => Some((start..end, true)),
        Some(_) => None,
        None => Some((0..length, false)),
    }
}

/// Sends what was asked for, with these headers besides.
pub(crate) fn send(
    shared: &Arc<Shared>,
    asked: &Asked,
    content: &Content,
    mut headers: HeaderMap,
) -> Response<Body> {
    let length = content.len();
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    let Some((mut range, mut partial)) = range(asked, length) else {
        let said = [(header::CONTENT_RANGE, format!("bytes */{length}"))];
        return (StatusCode::RANGE_NOT_SATISFIABLE, headers, said).into_response();
    };
    let fault = shared.script.next(asked.door, &asked.path, Some(range.clone()));
    if let Some(response) = refused(&fault) {
        return response;
    }
    if fault == Fault::Whole {
        (range, partial) = (0..length, false);
    }
    let said = if fault == Fault::WrongRange { range.start + 1 } else { range.start };
    let mut response = Response::builder();
    if partial {
        let said = format!("bytes {said}-{}/{length}", range.end - 1);
        response = response.status(StatusCode::PARTIAL_CONTENT).header(header::CONTENT_RANGE, said);
    }
    if !matches!(fault, Fault::Short { .. } | Fault::Endless) {
        response = response.header(header::CONTENT_LENGTH, range.end - range.start);
    }
    let counter = Arc::clone(&asked.counter);
    let sender = Sender {
        shared: Arc::clone(shared),
        content: content.clone(),
        counter,
        fault,
        at: range.start,
        range,
    };
    let mut response = response
        .body(Body::from_stream(stream::unfold(sender, Sender::next)))
        .expect("a status and headers that exist");
    response.headers_mut().extend(headers);
    response
}

struct Sender {
    shared: Arc<Shared>,
    content: Content,
    counter: Arc<Counter>,
    fault: Fault,
    range: Range<u64>,
    at: u64,
}

impl Sender {
    async fn next(mut self) -> Option<(io::Result<Bytes>, Self)> {
        let sent = self.at - self.range.start;
        let mut end = self.range.end;
        match self.fault {
            Fault::Cut { after } if sent >= after => {
                return Some((Err(io::ErrorKind::BrokenPipe.into()), self));
            }
            Fault::Short { after } if sent >= after => return None,
            Fault::Stall { after } if sent >= after => std::future::pending().await,
            Fault::Cut { after } | Fault::Short { after } | Fault::Stall { after } => {
                end = end.min(self.range.start + after);
            }
            // Small steps, so that what comes is slow and not late.
            Fault::Slow { bytes_per_second } => end = end.min(self.at + (bytes_per_second / 20).max(1)),
            _ => {}
        }
        let block = match self.content.block(self.at..end).await {
            Ok(block) if block.is_empty() && self.fault == Fault::Endless => Bytes::from_static(&[7; 65536]),
            Ok(block) if block.is_empty() => return None,
            Ok(block) => block,
            Err(error) => return Some((Err(error), self)),
        };
        let block = match self.fault {
            Fault::Flip { at } if (self.at..self.at + block.len() as u64).contains(&at) => {
                let mut flipped = block.to_vec();
                flipped[usize::try_from(at - self.at).unwrap_or_default()] ^= 1;
                flipped.into()
            }
            Fault::Slow { bytes_per_second } => {
                let pause = block.len() as f64 / bytes_per_second.max(1) as f64;
                tokio::time::sleep(Duration::from_secs_f64(pause)).await;
                block
            }
            _ => block,
        };
        self.shared.throttle.pass(block.len()).await;
        self.counter.sent(block.len());
        if !(self.fault == Fault::Endless && self.at >= self.range.end) {
            self.at += block.len() as u64;
        }
        Some((Ok(block), self))
    }
}

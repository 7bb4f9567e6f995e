//! Requests to the API server: so many at once, each with an end, and repeated when that can help.

use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBuilder};
use futures::{Stream, StreamExt as _};
use kube::core::{Status, WatchEvent};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, sleep, timeout};

use crate::error::StoreError;

/// Requests under way at once; watches don't count.
const AT_ONCE: usize = 16;
/// How long one try may take.
const TRY_WITHIN: Duration = Duration::from_secs(10);
/// After this no further try begins.
const TRIES_WITHIN: Duration = Duration::from_secs(20);
const TRIES: usize = 6;
/// Longest that a busy server's own wish is followed.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

pub(super) type Built = Result<http::Request<Vec<u8>>, kube::core::request::Error>;

/// Why a request came to nothing.
pub(super) enum Failure {
    /// The server answered, and refused.
    Refused(Box<Status>),
    /// No answer, or none that can be read.
    Other(StoreError),
}

impl Failure {
    pub(super) fn code(&self) -> u16 {
        match self {
            Self::Refused(status) => status.code,
            Self::Other(_) => 0,
        }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Other(error)
    }
}

impl From<Failure> for StoreError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Refused(status) => Self::Refused { code: status.code, message: status.message },
            Failure::Other(error) => error,
        }
    }
}

/// A client of one API server.
#[derive(Clone)]
pub(super) struct Api {
    client: kube::Client,
    server: Arc<str>,
    at_once: Arc<Semaphore>,
    closed: watch::Sender<bool>,
}

impl Api {
    pub(super) fn new(client: kube::Client, server: &str) -> Self {
        let at_once = Arc::new(Semaphore::new(AT_ONCE));
        Self {
            client,
            server: server.trim_end_matches('/').into(),
            at_once,
            closed: watch::Sender::new(false),
        }
    }

    /// Every later request fails, and watches end.
    pub(super) fn close(&self) {
        self.closed.send_replace(true);
    }

    /// Ready when the store is closed.
    pub(super) fn closed(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut closed = self.closed.subscribe();
        async move {
            // An error says that nobody can close it any more, which is the same to a watch.
            drop(closed.wait_for(|closed| *closed).await);
        }
    }

    /// Asks, and asks again as long as that can help: every request here states what it has read, or may be repeated.
    pub(super) async fn ask<T: DeserializeOwned>(&self, request: Built) -> Result<T, Failure> {
        let request = request.map_err(|error| self.unreachable(error))?;
        let begun = Instant::now();
        let backoff = ExponentialBuilder::new().with_min_delay(Duration::from_millis(100)).with_jitter();
        let mut delays = backoff.with_max_times(TRIES - 1).build();
        loop {
            let failure = match self.once(clone(&request)).await {
                Ok(answer) => return Ok(answer),
                Err(failure) => failure,
            };
            let Some(pause) = pause(&failure, &mut delays) else { return Err(failure) };
            if begun.elapsed() + pause >= TRIES_WITHIN {
                return Err(failure);
            }
            tracing::debug!(uri = %request.uri(), code = failure.code(), ?pause, "the API server is asked again");
            sleep(pause).await;
        }
    }

    async fn once<T: DeserializeOwned>(&self, request: http::Request<Vec<u8>>) -> Result<T, Failure> {
        if *self.closed.borrow() {
            return Err(StoreError::Closed.into());
        }
        let _permit = self.at_once.acquire().await.map_err(|_| StoreError::Closed)?;
        match timeout(TRY_WITHIN, self.client.request::<T>(request)).await {
            Ok(answer) => answer.map_err(|error| self.failure(error)),
            Err(late) => Err(self.unreachable(late)),
        }
    }

    /// Begins a watch. The stream ends when the server ends it.
    pub(super) async fn events(
        &self,
        request: Built,
    ) -> Result<impl Stream<Item = Result<WatchEvent<Value>, Failure>> + Send + use<>, Failure> {
        let request = request.map_err(|error| self.unreachable(error))?;
        let begun = timeout(TRY_WITHIN, self.client.request_events::<Value>(request)).await;
        let events = begun.map_err(|late| self.unreachable(late))?.map_err(|error| self.failure(error))?;
        let this = self.clone();
        Ok(events.map(move |event| event.map_err(|error| this.failure(error))))
    }

    fn failure(&self, error: kube::Error) -> Failure {
        match error {
            kube::Error::Api(status) => Failure::Refused(status),
            other => self.unreachable(other),
        }
    }

    fn unreachable(&self, error: impl std::error::Error + Send + Sync + 'static) -> Failure {
        StoreError::Unreachable { server: self.server.to_string(), source: Box::new(error) }.into()
    }
}

/// How long to wait before the next try; none: another try would say the same.
fn pause(failure: &Failure, delays: &mut impl Iterator<Item = Duration>) -> Option<Duration> {
    let asked = match failure {
        Failure::Refused(status) if matches!(status.code, 429 | 503) => {
            let seconds = status.details.as_ref().map_or(0, |details| details.retry_after_seconds);
            Duration::from_secs(seconds.into())
        }
        Failure::Refused(status)
            if status.code == 500 && super::refusals::is_a_bad_manifest(&status.message) =>
        {
            return None;
        }
        Failure::Refused(status) if status.code >= 500 => Duration::ZERO,
        Failure::Other(StoreError::Unreachable { .. }) => Duration::ZERO,
        _ => return None,
    };
    Some(delays.next()?.max(asked).min(LONGEST_PAUSE))
}

fn clone(request: &http::Request<Vec<u8>>) -> http::Request<Vec<u8>> {
    let mut copy = http::Request::new(request.body().clone());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    copy
}

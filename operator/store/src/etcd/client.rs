//! Requests to etcd: each with an end, and repeated on another member when that can help.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBuilder};
use etcd_client::{
    Certificate, ConnectOptions, Error, GetOptions, GetResponse, Identity, TlsOptions, Txn, TxnResponse,
    WatchOptions, WatchStream,
};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::EtcdOptions;
use super::refused::{advice, tls_advice};
use crate::error::StoreError;

const CONNECT_WITHIN: Duration = Duration::from_secs(2);
/// How long one try may take.
const TRY_WITHIN: Duration = Duration::from_secs(2);
/// After this no further try begins: without a quorum a write fails, it does not hang.
const TRIES_WITHIN: Duration = Duration::from_secs(8);
const TRIES: usize = 12;
/// A member that answers no ping for this long is given up.
const PING: Duration = Duration::from_secs(1);

/// A client of all members.
#[derive(Clone)]
pub(super) struct Client {
    client: etcd_client::Client,
    server: Arc<str>,
    /// What everything lies below, for the sentence about a right that is missing.
    prefix: Arc<str>,
    trust: Option<Trust>,
    closed: watch::Sender<bool>,
}

/// Of members that are asked over TLS: whether this side and theirs have come to terms.
#[derive(Clone)]
struct Trust {
    shows_certificate: bool,
    /// Whether any member has ever answered a request. From then on a connection that breaks has broken, and is not refused.
    answered: Arc<AtomicBool>,
}

impl Client {
    pub(super) async fn connect(options: &EtcdOptions) -> Result<Self, StoreError> {
        let server: Arc<str> = format!("etcd at {}", options.endpoints.join(", ")).into();
        let mut connect = ConnectOptions::new()
            .with_connect_timeout(CONNECT_WITHIN)
            .with_keep_alive(PING, PING)
            .with_keep_alive_while_idle(true)
            // A member that is cut off from the others says so, rather than what it last knew.
            .with_require_leader(true);
        if let Some((name, password)) = &options.user {
            connect = connect.with_user(name, password).with_auto_token_refresh(true);
        }
        if let Some(tls) = &options.tls {
            let mut config = TlsOptions::new().ca_certificate(Certificate::from_pem(&tls.ca));
            if let Some((certificate, key)) = &tls.own {
                config = config.identity(Identity::from_pem(certificate, key));
            }
            connect = connect.with_tls(config);
        }
        let trust = options
            .tls
            .as_ref()
            .map(|tls| Trust { shows_certificate: tls.own.is_some(), answered: Arc::default() });
        let prefix: Arc<str> = format!("/{}", options.prefix.trim_matches('/')).into();
        let client =
            etcd_client::Client::connect(&options.endpoints, Some(connect)).await.map_err(|error| {
                refused(&server, &prefix, &error).unwrap_or_else(|| no_answer(&server, trust.as_ref(), error))
            })?;
        Ok(Self { client, server, prefix, trust, closed: watch::Sender::new(false) })
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

    pub(super) async fn get(
        &self,
        key: String,
        options: Option<GetOptions>,
    ) -> Result<GetResponse, StoreError> {
        let request = |mut client: etcd_client::Client| {
            let (key, options) = (key.clone(), options.clone());
            async move { client.get(key, options).await }.boxed()
        };
        self.ask(TRIES_WITHIN, request).await
    }

    /// Repeated, too, when it is open whether it was done: every transaction here compares what it has read, and who is told
    /// that it came too late reads again.
    pub(super) async fn txn(&self, txn: Txn) -> Result<TxnResponse, StoreError> {
        let request = |mut client: etcd_client::Client| {
            let txn = txn.clone();
            async move { client.txn(txn).await }.boxed()
        };
        self.ask(TRIES_WITHIN, request).await
    }

    pub(super) async fn watch(&self, key: String, options: WatchOptions) -> Result<WatchStream, StoreError> {
        // What follows tries again by itself, for ever.
        let request = |mut client: etcd_client::Client| {
            let (key, options) = (key.clone(), options.clone());
            async move { client.watch(key, Some(options)).await }.boxed()
        };
        self.ask(Duration::ZERO, request).await
    }

    async fn ask<T>(
        &self,
        within: Duration,
        request: impl Fn(etcd_client::Client) -> BoxFuture<'static, Result<T, Error>>,
    ) -> Result<T, StoreError> {
        let begun = Instant::now();
        let backoff = ExponentialBuilder::new().with_min_delay(Duration::from_millis(25)).with_jitter();
        let mut delays = backoff.with_max_delay(Duration::from_secs(1)).with_max_times(TRIES).build();
        let mut last = None;
        loop {
            if *self.closed.borrow() {
                return Err(StoreError::Closed);
            }
            let error = match timeout(TRY_WITHIN, request(self.client.clone())).await {
                Ok(Ok(answer)) => {
                    self.answered();
                    return Ok(answer);
                }
                Ok(Err(error)) => match refused(&self.server, &self.prefix, &error) {
                    Some(refused) => {
                        self.answered();
                        return Err(refused);
                    }
                    None => no_answer(&self.server, self.trust.as_ref(), error),
                },
                // What went wrong before says more than that nothing came.
                Err(late) => {
                    last.take().unwrap_or_else(|| no_answer(&self.server, self.trust.as_ref(), late))
                }
            };
            let Some(pause) = delays.next().filter(|pause| begun.elapsed() + *pause < within) else {
                return Err(error);
            };
            last = Some(error);
            sleep(pause).await;
        }
    }

    fn answered(&self) {
        if let Some(trust) = &self.trust {
            trust.answered.store(true, Ordering::Relaxed);
        }
    }
}

/// gRPC's codes of what another try would only hear again: InvalidArgument, NotFound, PermissionDenied, FailedPrecondition,
/// OutOfRange, Unimplemented, Unauthenticated.
/// With HTTP's word for it.
fn refusal(error: &Error) -> Option<(u16, String)> {
    let (code, message) = match error {
        Error::GRpcStatus(status) => (status.code() as i32, status.message()),
        Error::InvalidArgs(message) => return Some((400, message.clone())),
        _ => return None,
    };
    let code = match code {
        3 | 5 | 9 | 11 | 12 => 400,
        7 => 403,
        16 => 401,
        _ => return None,
    };
    Some((code, message.to_owned()))
}

/// What another try would only hear again, as the store's error.
fn refused(server: &str, prefix: &str, error: &Error) -> Option<StoreError> {
    let (code, message) = refusal(error)?;
    let message = match advice(&message, prefix) {
        Some(advice) => format!("{server} says `{message}`: {advice}"),
        None => message,
    };
    Some(StoreError::Refused { code, message })
}

/// No answer, for want of a member, of a way, or of trust.
fn no_answer(
    server: &str,
    trust: Option<&Trust>,
    error: impl std::error::Error + Send + Sync + 'static,
) -> StoreError {
    let advice = trust.filter(|trust| !trust.answered.load(Ordering::Relaxed)).and_then(|trust| {
        let error: &(dyn std::error::Error + 'static) = &error;
        // The client's own errors name no source.
        let cause: &(dyn std::error::Error + 'static) = match error.downcast_ref::<Error>() {
            Some(Error::GRpcStatus(status)) => status,
            Some(Error::TransportError(error)) => error,
            _ => error,
        };
        tls_advice(cause, trust.shows_certificate)
    });
    match advice {
        Some(advice) => unreachable(&format!("{server} ({advice})"), error),
        None => unreachable(server, error),
    }
}

fn unreachable(server: &str, error: impl std::error::Error + Send + Sync + 'static) -> StoreError {
    StoreError::Unreachable { server: server.to_owned(), source: Box::new(error) }
}

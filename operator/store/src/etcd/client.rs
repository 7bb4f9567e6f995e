//! Requests to etcd: each with an end, and repeated on another member when that can help.

use std::sync::Arc;
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
    closed: watch::Sender<bool>,
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
        let client = etcd_client::Client::connect(&options.endpoints, Some(connect))
            .await
            .map_err(|error| unreachable(&server, error))?;
        Ok(Self { client, server, closed: watch::Sender::new(false) })
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
        loop {
            if *self.closed.borrow() {
                return Err(StoreError::Closed);
            }
            let error = match timeout(TRY_WITHIN, request(self.client.clone())).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => match refusal(&error) {
                    Some(message) => return Err(StoreError::Refused { code: 400, message }),
                    None => unreachable(&self.server, error),
                },
                Err(late) => unreachable(&self.server, late),
            };
            let Some(pause) = delays.next().filter(|pause| begun.elapsed() + *pause < within) else {
                return Err(error);
            };
            sleep(pause).await;
        }
    }
}

/// gRPC's codes of what another try would only hear again: InvalidArgument, NotFound, PermissionDenied, FailedPrecondition,
/// OutOfRange, Unimplemented, Unauthenticated.
fn refusal(error: &Error) -> Option<String> {
    match error {
        Error::GRpcStatus(status) if matches!(status.code() as i32, 3 | 5 | 7 | 9 | 11 | 12 | 16) => {
            Some(status.message().to_owned())
        }
        Error::InvalidArgs(message) => Some(message.clone()),
        _ => None,
    }
}

fn unreachable(server: &str, error: impl std::error::Error + Send + Sync + 'static) -> StoreError {
    StoreError::Unreachable { server: server.to_owned(), source: Box::new(error) }
}

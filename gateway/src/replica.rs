//! One worker: its connection, and how it is.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use backon::BackoffBuilder;
use tandem_gateway_core::conduct;
use tandem_gateway_core::health::{Bounds, Standing, Vitals};
use tandem_pki::{Credentials, dial};
use tandem_worker_api::{AttemptId, CancelRequest, HealthReport, HealthRequest, worker_client::WorkerClient};
use tokio::sync::watch;
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};

use crate::clock::Clock;
use crate::table::ReplicaRoute;

pub(crate) type Client = WorkerClient<Channel>;

const CONNECT_WITHIN: Duration = Duration::from_secs(1);
const CANCEL_WITHIN: Duration = Duration::from_secs(1);
/// Connections are tried again after this, and then less and less often.
const FIRST_RETRY: Duration = Duration::from_millis(50);
const LAST_RETRY: Duration = Duration::from_secs(1);
/// Frames that a slow client leaves unread wait here, per stream; all others share a much larger window, so that no
/// slow client holds up another.
const STREAM_WINDOW: u32 = 64 << 10;
const CONNECTION_WINDOW: u32 = 16 << 20;
/// As large as workers take them: a long prompt, or a long prefix to resume.
const MAX_MESSAGE: usize = 16 << 20;

/// A worker that this gateway may ask.
pub(crate) struct Replica {
    route: ReplicaRoute,
    credentials: watch::Receiver<Credentials>,
    bounds: Bounds,
    clock: Clock,
    changed: watch::Sender<u64>,
    state: Mutex<State>,
    running: AtomicU32,
}

struct State {
    vitals: Vitals,
    standing: Standing,
    draining: bool,
    numerics_id: Arc<str>,
    reported: u32,
    client: Option<Client>,
}

/// Counts an attempt for as long as it runs.
pub(crate) struct Running(Arc<Replica>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Replica {
    pub(crate) fn new(
        route: ReplicaRoute,
        credentials: watch::Receiver<Credentials>,
        bounds: Bounds,
        clock: Clock,
        changed: watch::Sender<u64>,
    ) -> Self {
        let vitals = Vitals::new(bounds, clock.now());
        let state = State {
            standing: vitals.standing(),
            vitals,
            draining: route.draining,
            numerics_id: route.numerics_id.clone(),
            reported: 0,
            client: None,
        };
        Self {
            route,
            credentials,
            bounds,
            clock,
            changed,
            state: Mutex::new(state),
            running: AtomicU32::new(0),
        }
    }

    pub(crate) fn name(&self) -> &Arc<str> {
        &self.route.name
    }

    /// As a choice sees it.
    pub(crate) fn view(&self) -> conduct::Replica {
        let state = self.state();
        conduct::Replica {
            name: self.route.name.clone(),
            numerics_id: state.numerics_id.clone(),
            standing: state.standing,
            draining: state.draining || state.vitals.draining(),
            active: state.reported.max(self.running.load(Ordering::Relaxed)),
        }
    }

    /// Whether an attempt of this gateway runs on it.
    pub(crate) fn in_use(&self) -> bool {
        self.running.load(Ordering::Relaxed) > 0
    }

    /// A connection, if it has one.
    pub(crate) fn client(&self) -> Option<Client> {
        self.state().client.clone()
    }

    pub(crate) fn run(self: &Arc<Self>) -> Running {
        self.running.fetch_add(1, Ordering::Relaxed);
        Running(self.clone())
    }

    /// The operator changed its mind about it.
    pub(crate) fn reroute(&self, route: &ReplicaRoute) {
        self.update(|state| state.draining = route.draining);
    }

    /// Weighs the time that passed. To be called often.
    pub(crate) fn look(&self) {
        let now = self.clock.now();
        self.update(|state| {
            state.vitals.look(now);
        });
    }

    /// Ends an attempt at the worker. Tried once: a worker that does not hear it ends the attempt by itself when its
    /// grace period for lost connections is over.
    pub(crate) async fn cancel(&self, id: AttemptId) {
        let Some(mut client) = self.client() else { return };
        match timeout(CANCEL_WITHIN, client.cancel(CancelRequest { id: Some(id) })).await {
            Ok(Ok(_)) => {}
            Ok(Err(status)) => {
                tracing::debug!(replica = %self.route.name, code = ?status.code(), "a cancel was not taken")
            }
            Err(_) => tracing::debug!(replica = %self.route.name, "a cancel was not answered"),
        }
    }

    /// Keeps a connection and listens to health reports, until dropped.
    pub(crate) async fn watch(self: Arc<Self>) {
        let backoff = backon::ExponentialBuilder::new()
            .with_min_delay(FIRST_RETRY)
            .with_max_delay(LAST_RETRY)
            .with_jitter()
            .without_max_times();
        let mut delays = backoff.build();
        loop {
            if self.connect_and_listen().await {
                delays = backoff.build();
            }
            self.update(|state| {
                state.client = None;
                state.reported = 0;
                state.vitals.unreachable();
            });
            tokio::time::sleep(delays.next().unwrap_or(LAST_RETRY)).await;
        }
    }

    /// Whether there was at least one report.
    async fn connect_and_listen(&self) -> bool {
        let client = match timeout(CONNECT_WITHIN, self.connect()).await {
            Ok(Ok(client)) => client,
            Ok(Err(error)) => {
                tracing::debug!(replica = %self.route.name, %error, "a worker can't be reached");
                return false;
            }
            // A frozen worker's kernel accepts, and its handshake never ends.
            Err(_) => return false,
        };
        let interval_ms = u32::try_from(self.bounds.interval.as_millis()).unwrap_or(u32::MAX);
        let mut asked = client.clone();
        let Ok(Ok(reports)) = timeout(CONNECT_WITHIN, asked.health(HealthRequest { interval_ms })).await
        else {
            return false;
        };
        let mut reports = reports.into_inner();
        let mut client = Some(client);
        let mut heard = false;
        // Twice the time that convicts: by then every attempt has moved, and a fresh connection is worth a try.
        while let Ok(Ok(Some(report))) = timeout(self.bounds.convict * 2, reports.message()).await {
            heard = true;
            self.report(&report, client.take());
        }
        heard
    }

    async fn connect(&self) -> Result<Client, tonic::transport::Error> {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.route.address))?
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .connect_timeout(CONNECT_WITHIN);
        let channel = dial(&endpoint, &self.route.server_name, self.credentials.clone()).await?;
        Ok(WorkerClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE))
    }

    fn report(&self, report: &HealthReport, connected: Option<Client>) {
        let now = self.clock.now();
        self.update(|state| {
            state.vitals.report(now, report);
            state.reported = report.active.saturating_add(report.waiting);
            if !report.numerics_id.is_empty() && *state.numerics_id != *report.numerics_id {
                state.numerics_id = report.numerics_id.as_str().into();
            }
            if connected.is_some() {
                state.client = connected;
            }
        });
    }

    fn update(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state();
        let before = (state.standing, state.draining || state.vitals.draining());
        change(&mut state);
        state.standing = state.vitals.standing();
        let after = (state.standing, state.draining || state.vitals.draining());
        drop(state);
        if before != after {
            tracing::info!(replica = %self.route.name, from = ?before.0, to = ?after.0, draining = after.1, "standing");
            self.changed.send_modify(|changes| *changes = changes.wrapping_add(1));
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing under the lock can leave it half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

//! The conversation with an operator: reports up, the newest spec down, log lines on request. It is taken up again for
//! ever; what runs does not depend on it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use tandem_control_api::agent_message::Message as Up;
use tandem_control_api::agents_client::AgentsClient;
use tandem_control_api::models_reply::Said;
use tandem_control_api::operator_message::Message as Down;
use tandem_control_api::{
    AgentHello, AgentMessage, HostReport, LogsRequest, ModelsReply, ModelsRequest, Protocol, Trust,
};
use tandem_crds::InferenceHostSpec;
use tandem_pki::{Proof, is_stranger};
use tandem_weights::Peer;
use thiserror::Error;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::AbortOnDropHandle;
use tonic::{Code, Status};

use crate::error::chain;
use crate::event::Event;
use crate::home::Home;
use crate::logs;
use crate::metrics::Metrics;
use crate::models::Models;
use crate::operator::{Operators, Word, join_anew};
use crate::supply::Supply;
use crate::upkeep::spread;

/// How long the operator may take to answer Hello.
const STEP: Duration = Duration::from_secs(10);
/// Messages that may wait on the way up.
const OUTBOX: usize = 64;
/// Log requests that are answered at once.
const MOST_LOGS: usize = 16;
/// Requests about models that are answered at once.
const MOST_MODELS: usize = 4;
/// A session that lasted this long was a good one: the next attempt comes soon.
const GOOD: Duration = Duration::from_secs(30);
/// Bounds on what an operator may ask for as the interval of reports.
const INTERVALS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(60));

/// What a session needs of the rest of the agent.
pub(crate) struct Session {
    pub(crate) operators: Arc<Operators>,
    pub(crate) home: Arc<Home>,
    /// What an operator hands over; it stays when the session ends.
    pub(crate) supply: watch::Sender<Supply>,
    /// Its peers, for fetches under way.
    pub(crate) peers: watch::Sender<Vec<Peer>>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) models: Arc<Models>,
    /// The newest term obeyed.
    pub(crate) term: Arc<AtomicU64>,
    /// The report as JSON, whenever it changes.
    pub(crate) report: watch::Receiver<String>,
    pub(crate) events: mpsc::Sender<Event>,
}

impl Session {
    /// Converses for ever.
    pub(crate) async fn run(mut self) {
        let patience = ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(100))
            .with_max_delay(Duration::from_secs(1))
            .with_jitter()
            .without_max_times();
        let mut waits = patience.build();
        loop {
            let start = Instant::now();
            match self.converse().await {
                Ok(()) => tracing::info!("the operator closed the session"),
                Err(error) => {
                    tracing::warn!(error = chain(&*error), "no session with the operator");
                    if error.is::<Revoked>() {
                        self.join_again().await;
                    }
                }
            }
            self.operators.converses_over(None);
            self.metrics.in_session(false);
            if self.events.send(Event::SessionEnded).await.is_err() {
                return;
            }
            if start.elapsed() > GOOD {
                waits = patience.build();
            }
            sleep(waits.next().unwrap_or(INTERVALS.1)).await;
        }
    }

    /// A pod proves by its own token who it is, as often as it has to. Anybody else waits for a person.
    async fn join_again(&self) {
        let settings = &self.models.settings;
        if !matches!(settings.proof, Some(Proof::Pod(_))) {
            return;
        }
        match join_anew(settings, &self.home.identity()).await {
            Ok(fresh) => {
                self.operators.rejoined(fresh);
                drop(self.events.send(Event::Rejoined).await);
            }
            Err(error) => tracing::warn!(error = chain(&*error), "this pod can't join again yet"),
        }
    }

    async fn converse(&mut self) -> anyhow::Result<()> {
        let channel = self.operators.connect().await.map_err(unreachable)?;
        let (up, messages) = mpsc::channel(OUTBOX);
        let hello =
            AgentHello { protocol: Some(Protocol::own(&[])), highest_term: self.term.load(Ordering::SeqCst) };
        up.send(Up::Hello(hello).into()).await?;
        let mut client = AgentsClient::new(channel.clone());
        let opened = timeout(STEP, client.session(ReceiverStream::new(messages))).await?.map_err(refused)?;
        let mut down = opened.into_inner();
        let mut logs: BTreeMap<(String, String), AbortOnDropHandle<()>> = BTreeMap::new();
        // What is asked about models ends with the session, too.
        let mut models: BTreeMap<String, AbortOnDropHandle<()>> = BTreeMap::new();
        // Until Welcome says otherwise.
        let mut heartbeat = interval(Duration::from_secs(1));
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = heartbeat.tick() => self.say(&up).await?,
                changed = self.report.changed() => {
                    changed?;
                    self.say(&up).await?;
                }
                next = down.message() => match next.map_err(said)? {
                    None => return Ok(()),
                    Some(next) => match next.message {
                        Some(Down::Welcome(welcome)) => {
                            Protocol::agree(welcome.protocol.as_ref()).map_err(anyhow::Error::msg)?;
                            tracing::info!("in session with the operator");
                            self.operators.converses_over(Some(channel.clone()));
                            self.metrics.in_session(true);
                            let wanted = Duration::from_millis(u64::from(welcome.report_interval_ms));
                            heartbeat = interval(wanted.clamp(INTERVALS.0, INTERVALS.1));
                            heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
                        }
                        Some(Down::Spec(spec)) => self.obey(&spec.spec_json, spec.traceparent).await?,
                        Some(Down::Logs(request)) => self.show_logs(request, &up, &mut logs),
                        Some(Down::EndLogs(ended)) => logs.retain(|(request, _), _| *request != ended),
                        Some(Down::Supply(supply)) => self.provide(supply),
                        Some(Down::Trust(trust)) => self.trust(trust).await,
                        Some(Down::Models(request)) => self.ask_models(request, &up, &mut models).await?,
                        Some(Down::EndModels(ended)) => {
                            if let Some(task) = models.remove(&ended) {
                                // Waited for, so that nothing of it follows the answer to a later request.
                                task.abort();
                                task.await.unwrap_or_default();
                            }
                        }
                        None => {
                            tracing::warn!("the operator asks for something that this release does not know");
                        }
                    }
                }
            }
        }
    }

    async fn say(&mut self, up: &mpsc::Sender<AgentMessage>) -> anyhow::Result<()> {
        let status_json = self.report.borrow_and_update().clone();
        if status_json.is_empty() {
            return Ok(());
        }
        timeout(STEP, up.send(Up::Report(HostReport { status_json }).into())).await??;
        Ok(())
    }

    async fn obey(&self, json: &str, traceparent: String) -> anyhow::Result<()> {
        match serde_json::from_str::<InferenceHostSpec>(json) {
            Ok(spec) => self.events.send(Event::Spec { spec: Box::new(spec), traceparent }).await?,
            Err(error) => tracing::error!(%error, "the operator's spec can't be read and is not obeyed"),
        }
        Ok(())
    }

    /// Whom to trust, for this agent and for what runs here: workers look at their folders themselves.
    async fn trust(&self, trust: Trust) {
        let issuer = trust.issuer.parse().ok();
        if let Some(own) = self.operators.trust(trust) {
            let authorities = own.authorities().len();
            tracing::info!(revoked = own.revoked.len(), authorities, "the operator says whom to trust");
            let home = self.home.clone();
            match tokio::task::spawn_blocking(move || spread(&home, &own)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::error!(error = chain(&error), "workers can't be told whom to trust")
                }
                Err(error) => tracing::error!(%error, "workers can't be told whom to trust"),
            }
        }
        // What it means for certificates is looked at aside: this session goes on.
        self.operators.heard(Word { issuer });
    }

    fn provide(&self, said: tandem_control_api::Supply) {
        let supply = Supply::from(said);
        self.peers.send_if_modified(|before| {
            let peers = supply.peers();
            let changed = *before != peers;
            *before = peers;
            changed
        });
        let changed = self.supply.send_if_modified(|before| {
            let changed = !before.heard || *before != supply;
            *before = supply.clone();
            changed
        });
        if changed {
            tracing::debug!(?supply, "the operator hands over what fetching needs");
        }
    }

    async fn ask_models(
        &self,
        request: ModelsRequest,
        up: &mpsc::Sender<AgentMessage>,
        models: &mut BTreeMap<String, AbortOnDropHandle<()>>,
    ) -> anyhow::Result<()> {
        models.retain(|_, task| !task.is_finished());
        if models.len() >= MOST_MODELS {
            let why = format!(
                "this host answers {MOST_MODELS} such requests already: ask again when one has ended"
            );
            let said = Some(Said::Error(why));
            let reply = ModelsReply { request: request.request, host: String::new(), said, end: true };
            return Ok(timeout(STEP, up.send(Up::Models(reply).into())).await??);
        }
        let (id, answers, up) = (request.request.clone(), self.models.clone(), up.clone());
        let task = tokio::spawn(async move { answers.answer(request, &up).await });
        models.insert(id, AbortOnDropHandle::new(task));
        Ok(())
    }

    fn show_logs(
        &self,
        request: LogsRequest,
        up: &mpsc::Sender<AgentMessage>,
        logs: &mut BTreeMap<(String, String), AbortOnDropHandle<()>>,
    ) {
        logs.retain(|_, task| !task.is_finished());
        if logs.len() >= MOST_LOGS {
            tracing::warn!("too many log requests at once: one is not answered");
            return;
        }
        // One request may ask for several workloads of this host.
        let id = (request.request.clone(), request.workload.clone());
        let (home, up) = (self.home.clone(), up.clone());
        let task = tokio::spawn(async move { logs::show(&home, &request, &up).await });
        logs.insert(id, AbortOnDropHandle::new(task));
    }
}

/// What an operator says to who shows a certificate that it does not trust any more.
#[derive(Debug, Error)]
#[error("{0}")]
struct Revoked(String);

/// This host and the operator have no authority in common any more: so it is after the cluster's was replaced while the host was
/// away. The same helps as against a revocation.
const STRANGER: &str = "this host and the operator do not trust the same authority: the cluster's authority was replaced while this \
                        host was away, or the operator is of another cluster. Join again: make a token with `tandem join-token --role \
                        host --name NAME`, and start the agent with it";

/// Nobody answers, or nobody who is known.
fn unreachable(error: tonic::transport::Error) -> anyhow::Error {
    if is_stranger(&error) { Revoked(STRANGER.to_owned()).into() } else { error.into() }
}

/// As [`said`]; with TLS 1.3 a server refuses a certificate only after the handshake has ended for the caller.
fn refused(status: Status) -> anyhow::Error {
    if is_stranger(&status) { Revoked(STRANGER.to_owned()).into() } else { said(status) }
}

/// What an operator says when it ends a session is all that a person needs of a status.
fn said(status: Status) -> anyhow::Error {
    match status.code() {
        Code::Unauthenticated => Revoked(status.message().to_owned()).into(),
        _ => anyhow::anyhow!("{}", status.message()),
    }
}

//! Hosts' agents: one session per host, reports up, the newest spec down; certificates for what a host runs.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use serde_json::{Value, json};
use tandem_control_api::agent_message::Message as Up;
use tandem_control_api::agents_client::AgentsClient;
use tandem_control_api::operator_message::Message as Down;
use tandem_control_api::{
    AgentMessage, Certificate, CertifyRequest, HostSpec, OperatorMessage, Protocol, Role, Supply, Trust,
    TrustConfirmation, TrustConfirmed, Welcome, agents_server,
};
use tandem_pki::{BadFingerprint, Credentials, Fingerprint, HOST_LIFETIME, Identity, Name, peer_certificate};
use tandem_store::{API_VERSION, Key, Kind, Object, Selector, StoreError, Watch, WatchEvent};
use tokio::sync::watch;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::enrollment::{certificate, said};
use super::report::Reporter;
use crate::caller::{self, chain, refusal};
use crate::cluster::Cluster;
use crate::membership::{self, Binding, Made, Said};
use crate::relay::Relay;
use crate::sessions::Session;

/// How long an agent may take to say Hello, and to take a message that waits for it.
const STEP: Duration = Duration::from_secs(10);
/// Authorities that somebody may say it trusts: there are two while one replaces the other.
const MOST_AUTHORITIES: usize = 8;

pub(super) struct Agents(pub(super) Arc<Cluster>);

type Downstream = Pin<Box<dyn Stream<Item = Result<OperatorMessage, Status>> + Send>>;

#[tonic::async_trait]
impl agents_server::Agents for Agents {
    type SessionStream = Downstream;

    async fn session(
        &self,
        request: Request<Streaming<AgentMessage>>,
    ) -> Result<Response<Downstream>, Status> {
        if let Some(relay) = Relay::find(&self.0, &request).await? {
            let mut leader = AgentsClient::new(relay.channel());
            let answer = leader.session(relay.carry_stream(request)).await?;
            return Ok(Response::new(Box::pin(relay.answers(answer))));
        }
        let host = caller::host(&self.0, &request)?;
        let serial = caller::serial(&request)?;
        let cluster = &self.0;
        let mut upstream = request.into_inner();
        let first = tokio::time::timeout(STEP, upstream.message())
            .await
            .map_err(|_| Status::deadline_exceeded("the first message, Hello, did not come"))??;
        let Some(Up::Hello(hello)) = first.and_then(|message| message.message) else {
            return Err(Status::invalid_argument("the first message has to be Hello"));
        };
        Protocol::agree(hello.protocol.as_ref()).map_err(Status::failed_precondition)?;
        ensure_host(cluster, &host).await?;
        let own = Selector { name: Some(host.to_string()), ..Selector::all(Kind::InferenceHost) };
        let watch = cluster.store.watch(own.clone(), None).await.map_err(refusal)?;

        let (session, downstream) = cluster.sessions.open(host.as_str(), hello.highest_term);
        let interval = u32::try_from(cluster.timing.report_interval.as_millis()).unwrap_or(u32::MAX);
        let welcome = Welcome { protocol: Some(Protocol::own(&[])), report_interval_ms: interval };
        let welcome = OperatorMessage { message: Some(Down::Welcome(welcome)) };
        session.outbox.try_send(Ok(welcome)).expect("an empty outbox has room");
        tracing::info!(%host, session = session.number, highest_term = hello.highest_term, "host connected");
        cluster.wake.notify_one();

        let conversation = Conversation {
            cluster: Arc::clone(cluster),
            host,
            serial,
            trust: cluster.own.trust.subscribe(),
            trusted: None,
            session,
            upstream,
            watch,
            own,
            obeyed: hello.highest_term,
            sent: None,
            supplies: cluster.supplies.subscribe(),
            supplied: None,
            held: None,
        };
        tokio::spawn(conversation.run());
        Ok(Response::new(Box::pin(ReceiverStream::new(downstream))))
    }

    async fn certify(&self, request: Request<CertifyRequest>) -> Result<Response<Certificate>, Status> {
        let caller = caller::identity(&self.0, &request)?;
        let serial = caller::serial(&request)?;
        let cluster = &self.0;
        let request = request.into_inner();
        let identity = may_become(&caller, request.role(), &request.name)?;
        // A gateway of that name that joined by itself is not this host's.
        let host_runs_it = matches!((&caller, &identity), (Identity::Host(_), Identity::Gateway(_)));
        if host_runs_it && membership::is_member(&*cluster.store, &identity).await.map_err(refusal)? {
            return Err(Status::permission_denied(format!("{identity} has joined with a token of its own")));
        }
        let issued = cluster
            .authorities()
            .sign(&request.csr_pem, &identity, &request.addresses, cluster.system_time(), HOST_LIFETIME)
            .map_err(|error| Status::invalid_argument(chain(&error)))?;
        let store = &*cluster.store;
        let member = membership::member_of(store, &caller, &serial).await.map_err(refusal)?;
        let made = Made { identity: &identity, issued: &issued };
        membership::remember(store, &member, &made, &Binding::Holder(&serial), cluster.now())
            .await
            .map_err(|error| said(error, &caller))?;
        tracing::info!(by = %caller, %identity, serial = issued.serial, "certified");
        Ok(certificate(issued))
    }

    /// Any operator writes it down; the one that leads reads it.
    async fn confirm_trust(
        &self,
        request: Request<TrustConfirmation>,
    ) -> Result<Response<TrustConfirmed>, Status> {
        let cluster = &self.0;
        let caller = caller::identity(cluster, &request)?;
        if !matches!(caller, Identity::Host(_) | Identity::Gateway(_)) {
            return Err(Status::permission_denied(format!(
                "hosts and gateways say whom they trust, and the certificate is of {caller}"
            )));
        }
        let shown = peer_certificate(&request, &cluster.authorities().bundle())?;
        let issuer = shown.issuer.ok_or_else(|| {
            Status::unauthenticated(
                "the authority of this certificate is not trusted any more: join again with a new token",
            )
        })?;
        let TrustConfirmation { authorities, runs_gateway } = request.into_inner();
        if authorities.len() > MOST_AUTHORITIES {
            return Err(Status::invalid_argument(format!(
                "at most {MOST_AUTHORITIES} authorities can be trusted"
            )));
        }
        let trusts: Result<BTreeSet<Fingerprint>, BadFingerprint> =
            authorities.iter().map(|text| text.parse()).collect();
        let trusts = trusts.map_err(|error| Status::invalid_argument(error.to_string()))?;
        let store = &*cluster.store;
        let member = membership::member_of(store, &caller, &shown.serial).await.map_err(refusal)?;
        let word = Said {
            who: &caller,
            trusts,
            issuer,
            serial: &shown.serial,
            not_after: shown.not_after,
            runs_gateway,
        };
        membership::confirm(store, &member, &word, cluster.now())
            .await
            .map_err(|error| said(error, &caller))?;
        Ok(Response::new(TrustConfirmed {}))
    }
}

/// Whom a caller may get a certificate for: a host for itself, its workers and its gateway, a gateway for itself.
fn may_become(caller: &Identity, role: Role, name: &str) -> Result<Identity, Status> {
    let bad_name = |error: tandem_pki::BadName| Status::invalid_argument(error.to_string());
    match (caller, role) {
        (Identity::Host(host), Role::Host) if host.as_str() == name => Ok(caller.clone()),
        (Identity::Host(host), Role::Worker) => Identity::worker(host.as_str(), name).map_err(bad_name),
        // A host's own gateway has the host's name, so that no host can speak for another's.
        (Identity::Host(host), Role::Gateway) if host.as_str() == name => Ok(Identity::Gateway(host.clone())),
        (Identity::Host(host), Role::Gateway) => Err(Status::permission_denied(format!(
            "the gateway that host {host} runs is called {host}, not {name}"
        ))),
        (Identity::Gateway(gateway), Role::Gateway) if gateway.as_str() == name => Ok(caller.clone()),
        _ => Err(Status::permission_denied(format!(
            "{caller} gets no certificate for {name}: hosts get them for themselves, their workers and their gateway, gateways \
             for themselves"
        ))),
    }
}

/// A host exists from its first session on.
async fn ensure_host(cluster: &Cluster, host: &Name) -> Result<(), Status> {
    let store = &cluster.store;
    if store.get(&Key::host(host.as_str())).await.map_err(refusal)?.is_some() {
        return Ok(());
    }
    let object = json!({
        "apiVersion": API_VERSION, "kind": "InferenceHost", "metadata": {"name": host.as_str()}, "spec": {}
    });
    match store.create(object, crate::MANAGER).await {
        Ok(_) | Err(StoreError::AlreadyExists(_)) => Ok(()),
        Err(error) => Err(refusal(error)),
    }
}

/// One session, from Hello on.
struct Conversation {
    cluster: Arc<Cluster>,
    host: Name,
    /// Of its certificate.
    serial: String,
    /// Whom to trust.
    trust: watch::Receiver<Credentials>,
    /// What this one was told of it last.
    trusted: Option<Trust>,
    session: Session,
    upstream: Streaming<AgentMessage>,
    watch: Watch,
    own: Selector,
    /// Newest term that the host said Hello with.
    obeyed: u64,
    /// The spec that the host was told last.
    sent: Option<Value>,
    /// What all hosts are told of where weights come from.
    supplies: watch::Receiver<Arc<BTreeMap<String, Supply>>>,
    /// What this one was told last.
    supplied: Option<Supply>,
    /// A spec that came before the first supply: its weights could not be fetched without.
    held: Option<Object>,
}

impl Conversation {
    async fn run(mut self) {
        let why = self.converse().await;
        self.cluster.sessions.close(self.host.as_str(), self.session.number);
        self.cluster.logs.host_gone(self.host.as_str());
        self.cluster.asked.host_gone(self.host.as_str());
        tracing::info!(host = %self.host, session = self.session.number, why = %why, "host's session ended");
        if let Ending::Tell(status) = why {
            // Whoever does not take it within the step's time is gone anyway.
            drop(tokio::time::timeout(STEP, self.session.outbox.send(Err(status))).await);
        }
    }

    async fn converse(&mut self) -> Ending {
        let mut reporter = Reporter::new(Arc::clone(&self.cluster), self.host.clone());
        let shutdown = self.cluster.shutdown.clone();
        let other_leads = self.cluster.no_longer_leads();
        tokio::pin!(other_leads);
        let revoked = self.cluster.once_revoked(self.serial.clone());
        tokio::pin!(revoked);
        self.supplies.mark_changed();
        self.trust.mark_changed();
        loop {
            tokio::select! {
                () = self.session.replaced.cancelled() => {
                    return Ending::Tell(Status::aborted("this host has opened a newer session: two agents may run under one name"));
                }
                () = &mut revoked => return Ending::Tell(caller::revoked()),
                () = &mut other_leads => {
                    return Ending::Tell(Status::unavailable("another operator leads now"));
                }
                () = shutdown.cancelled() => {
                    return Ending::Tell(Status::unavailable("this operator is ending"));
                }
                message = self.upstream.message() => match message {
                    Ok(Some(AgentMessage { message: Some(message) })) => {
                        self.cluster.sessions.hear(self.host.as_str(), self.cluster.clock.elapsed(), self.cluster.now());
                        match message {
                            Up::Report(report) => reporter.take(&report.status_json).await,
                            Up::Log(chunk) => {
                                let request = chunk.request.clone();
                                if !self.cluster.logs.pass(self.host.as_str(), chunk) {
                                    self.cluster.sessions.tell(self.host.as_str(), Down::EndLogs(request));
                                }
                            }
                            Up::Models(reply) => {
                                let request = reply.request.clone();
                                if !self.cluster.asked.pass(self.host.as_str(), reply) {
                                    self.cluster.sessions.tell(self.host.as_str(), Down::EndModels(request));
                                }
                            }
                            Up::Hello(_) => return Ending::Tell(Status::invalid_argument("Hello came twice")),
                        }
                    }
                    // A message of a kind that this release doesn't know.
                    Ok(Some(AgentMessage { message: None })) => {}
                    Ok(None) => return Ending::Gone("the agent closed it".to_owned()),
                    Err(status) => return Ending::Gone(status.message().to_owned()),
                },
                // Both senders live as long as the cluster, which this holds.
                Ok(()) = self.trust.changed() => {
                    if let Err(ending) = self.tell_trust().await {
                        return ending;
                    }
                }
                Ok(()) = self.supplies.changed() => {
                    if let Err(ending) = self.supply().await {
                        return ending;
                    }
                }
                event = self.watch.next() => {
                    if let Err(ending) = self.object_changed(event).await {
                        return ending;
                    }
                }
            }
        }
    }

    /// Passes the newest spec on, if it is another.
    async fn object_changed(&mut self, event: Option<Result<WatchEvent, StoreError>>) -> Result<(), Ending> {
        let object = match event {
            Some(Ok(WatchEvent::Added(object) | WatchEvent::Modified(object))) => object,
            Some(Ok(WatchEvent::Bookmark(_))) => return Ok(()),
            Some(Ok(WatchEvent::Deleted(_))) => {
                return Err(Ending::Tell(Status::aborted(
                    "this host was deleted: connect again to be a new one",
                )));
            }
            Some(Err(StoreError::Expired { .. })) => {
                self.watch = self
                    .cluster
                    .store
                    .watch(self.own.clone(), None)
                    .await
                    .map_err(|error| Ending::Tell(refusal(error)))?;
                return Ok(());
            }
            Some(Err(error)) => return Err(Ending::Tell(refusal(error))),
            None => return Err(Ending::Tell(Status::unavailable("this operator's store was closed"))),
        };
        self.supply().await?;
        self.spec(object).await
    }

    /// Passes on whom to trust, if it is news.
    async fn tell_trust(&mut self) -> Result<(), Ending> {
        self.trust.mark_unchanged();
        let trust = self.cluster.whom_to_trust();
        if self.trusted.as_ref() != Some(&trust) {
            self.tell(Down::Trust(trust.clone())).await?;
            self.trusted = Some(trust);
        }
        Ok(())
    }

    /// Passes the newest supply on, if it is another, and a spec that has waited for it.
    async fn supply(&mut self) -> Result<(), Ending> {
        let newest = self.supplies.borrow_and_update().get(self.host.as_str()).cloned();
        let Some(newest) = newest.filter(|newest| self.supplied.as_ref() != Some(newest)) else {
            return Ok(());
        };
        self.tell(Down::Supply(newest.clone())).await?;
        self.supplied = Some(newest);
        match self.held.take() {
            Some(object) => self.spec(object).await,
            None => Ok(()),
        }
    }

    async fn spec(&mut self, object: Object) -> Result<(), Ending> {
        // Term 0: no leader has spoken to this host yet, and an empty spec is not a word of one. A term older than the host
        // has obeyed is of a store from a backup: the leader rises above it first.
        let term = object.spec()["term"].as_u64().unwrap_or(0);
        if term == 0 || term < self.obeyed || self.sent.as_ref() == Some(object.spec()) {
            return Ok(());
        }
        if self.supplied.is_none() {
            self.held = Some(object);
            return Ok(());
        }
        let generation = object.spec()["generation"].as_u64().unwrap_or(0);
        let traceparent = self.cluster.traced.traceparent(self.host.as_str(), term, generation);
        let spec = HostSpec { spec_json: object.spec().to_string(), traceparent };
        self.tell(Down::Spec(spec)).await?;
        self.cluster.sessions.told(self.host.as_str(), term);
        self.sent = Some(object.spec().clone());
        Ok(())
    }

    async fn tell(&mut self, message: Down) -> Result<(), Ending> {
        let message = OperatorMessage { message: Some(message) };
        match tokio::time::timeout(STEP, self.session.outbox.send(Ok(message))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Ending::Gone("the agent stopped listening".to_owned())),
            Err(_) => Err(Ending::Gone("the agent takes no messages".to_owned())),
        }
    }
}

enum Ending {
    /// The agent is told why.
    Tell(Status),
    /// There is nobody to tell.
    Gone(String),
}

impl std::fmt::Display for Ending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tell(status) => f.write_str(status.message()),
            Self::Gone(why) => f.write_str(why),
        }
    }
}

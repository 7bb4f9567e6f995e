//! Hosts, gateways and this operator itself, for the CLI.

use std::pin::Pin;
use std::sync::Arc;

use futures::{Stream, StreamExt as _};
use serde_json::{Value, json};
use tandem_control_api::fleet_client::FleetClient;
use tandem_control_api::operator_message::Message as Down;
use tandem_control_api::{
    AdminList, AuthorityRequest, AuthorityStatus, BackupChunk, BackupRequest, Certificate, CertifyRequest,
    CordonRequest, DrainHostRequest, GatewaySummary, HostSummary, JoinToken, JoinTokenRequest,
    ListAdminsRequest, LogChunk, LogsRequest, ModelsRequest, Object, OperatorSummary, RevokeRequest,
    RevokeResponse, Role, RotateAuthorityRequest, StatusRequest, StatusResponse, fleet_server,
};
use tandem_pki::Identity;
use tandem_store::{Key, Kind, Selector};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::objects::shown;
use super::{authority, models};
use crate::caller::{self, refusal};
use crate::cluster::Cluster;
use crate::membership::{self, JoinRefused};
use crate::relay::Relay;

/// Owner of what a person asked of a host.
const MANAGER: &str = "tandem-hosts";
/// Writers of one host that may come in between.
const TRIES: usize = 8;
/// Lines that a log request gets unless it says.
const DEFAULT_LINES: u32 = 100;
/// Bytes of a backup in one message.
const CHUNK: usize = 256 << 10;

pub(super) struct Fleet(pub(super) Arc<Cluster>);

type Chunks = Pin<Box<dyn Stream<Item = Result<LogChunk, Status>> + Send>>;

impl Fleet {
    /// Changes a host's spec, again when somebody else was faster.
    async fn change(&self, host: &str, change: impl Fn(&mut Value)) -> Result<Response<Object>, Status> {
        let key = Key::host(host);
        for _ in 0..TRIES {
            let read = self.0.store.get(&key).await.map_err(refusal)?;
            let mut object = read.ok_or_else(|| Status::not_found(format!("there is no {key}")))?;
            change(&mut object.json["spec"]);
            match self.0.store.replace(&object, MANAGER).await {
                Ok(object) => return Ok(Response::new(Object { json: shown(&object) })),
                Err(error) if error.is_conflict() => {}
                Err(error) => return Err(refusal(error)),
            }
        }
        Err(Status::aborted(format!("{key} changes too fast: try again")))
    }
}

#[tonic::async_trait]
impl fleet_server::Fleet for Fleet {
    type LogsStream = Chunks;
    type BackupStream = Pin<Box<dyn Stream<Item = Result<BackupChunk, Status>> + Send>>;
    type ModelsStream = models::Replies;

    async fn create_join_token(
        &self,
        request: Request<JoinTokenRequest>,
    ) -> Result<Response<JoinToken>, Status> {
        let admin = caller::admin(&self.0, &request)?;
        let request = request.into_inner();
        let role = request.role();
        let named = match role {
            Role::Host => Identity::host,
            Role::Gateway => Identity::gateway,
            _ => return Err(Status::invalid_argument("a join token is for a host or a gateway")),
        };
        if !request.name.is_empty() {
            named(&request.name).map_err(|error| Status::invalid_argument(error.to_string()))?;
        }
        let authority = self.0.authorities().survivor().fingerprint();
        let made = membership::issue_token(
            &*self.0.store,
            authority,
            role,
            &request.name,
            request.ttl_seconds,
            self.0.now(),
        );
        let (token, expires) = made.await.map_err(|error| match error {
            JoinRefused::Store(error) => refusal(error),
            JoinRefused::TooManyTokens => Status::resource_exhausted(error.to_string()),
            other => Status::invalid_argument(other.to_string()),
        })?;
        tracing::info!(%admin, token = token.id(), ?role, name = request.name, %expires, "made a join token");
        Ok(Response::new(JoinToken { token: token.to_string(), expires_at: expires.as_second() }))
    }

    async fn revoke(&self, request: Request<RevokeRequest>) -> Result<Response<RevokeResponse>, Status> {
        let admin = caller::admin(&self.0, &request)?;
        let request = request.into_inner();
        let identity = match request.role() {
            Role::Host => Identity::host(&request.name),
            Role::Gateway => Identity::gateway(&request.name),
            Role::Admin => Identity::admin(&request.name),
            _ => return Err(Status::invalid_argument("hosts, gateways and admins can be revoked")),
        }
        .map_err(|error| Status::invalid_argument(error.to_string()))?;
        if let Identity::Admin(target) = &identity {
            authority::may_revoke_admin(&self.0, &admin, target, request.force).await?;
        }
        let serials = membership::lock_out(&*self.0.store, &identity).await.map_err(refusal)?;
        let serials = serials.ok_or_else(|| {
            Status::not_found(match &identity {
                Identity::Admin(name) => format!("there is no admin {name}: see `tandem admins list`"),
                _ => format!("no {identity} has joined: a host's own gateway is revoked with its host"),
            })
        })?;
        self.0.refresh_revoked().await.map_err(refusal)?;
        self.0.wake.notify_one();
        tracing::warn!(%admin, %identity, certificates = serials.len(), "revoked");
        Ok(Response::new(RevokeResponse { serials }))
    }

    async fn authority(
        &self,
        request: Request<AuthorityRequest>,
    ) -> Result<Response<AuthorityStatus>, Status> {
        if let Some(relay) = Relay::find(&self.0, &request).await? {
            return FleetClient::new(relay.channel()).authority(relay.carry(request)).await;
        }
        caller::admin(&self.0, &request)?;
        Ok(Response::new(authority::status(&self.0).await?))
    }

    async fn rotate_authority(
        &self,
        request: Request<RotateAuthorityRequest>,
    ) -> Result<Response<AuthorityStatus>, Status> {
        // Whoever leads takes it on from there.
        if let Some(relay) = Relay::find(&self.0, &request).await? {
            return FleetClient::new(relay.channel()).rotate_authority(relay.carry(request)).await;
        }
        let admin = caller::admin(&self.0, &request)?;
        Ok(Response::new(authority::rotate(&self.0, &admin, request.into_inner()).await?))
    }

    async fn list_admins(&self, request: Request<ListAdminsRequest>) -> Result<Response<AdminList>, Status> {
        let caller = caller::admin(&self.0, &request)?;
        Ok(Response::new(authority::admins(&self.0, &caller).await?))
    }

    async fn certify_admin(&self, request: Request<CertifyRequest>) -> Result<Response<Certificate>, Status> {
        let caller = caller::admin(&self.0, &request)?;
        let serial = caller::serial(&request)?;
        authority::certify_admin(&self.0, &caller, &serial, request.into_inner()).await
    }

    async fn backup(&self, request: Request<BackupRequest>) -> Result<Response<Self::BackupStream>, Status> {
        let admin = caller::admin(&self.0, &request)?;
        let backup = self.0.store.export().await.map_err(refusal)?;
        tracing::warn!(%admin, ?backup, "gives a backup, the authority's key included");
        let bytes = bytes::Bytes::from(backup.encode());
        let chunks = (0..bytes.len()).step_by(CHUNK).map(move |from| {
            let data = bytes.slice(from..bytes.len().min(from + CHUNK)).to_vec();
            Ok(BackupChunk { data })
        });
        Ok(Response::new(Box::pin(futures::stream::iter(chunks))))
    }

    async fn cordon(&self, request: Request<CordonRequest>) -> Result<Response<Object>, Status> {
        let admin = caller::admin(&self.0, &request)?;
        let CordonRequest { host, unschedulable } = request.into_inner();
        let answer = self
            .change(&host, |spec| {
                spec["unschedulable"] = json!(unschedulable);
                if let Some(spec) = spec.as_object_mut().filter(|_| !unschedulable) {
                    spec.shift_remove("drain");
                }
            })
            .await?;
        tracing::info!(%admin, host, unschedulable, "cordoned");
        Ok(answer)
    }

    async fn drain(&self, request: Request<DrainHostRequest>) -> Result<Response<Object>, Status> {
        let admin = caller::admin(&self.0, &request)?;
        let DrainHostRequest { host } = request.into_inner();
        let answer = self
            .change(&host, |spec| {
                spec["unschedulable"] = json!(true);
                spec["drain"] = json!("Requested");
            })
            .await?;
        tracing::info!(%admin, host, "drain asked for");
        Ok(answer)
    }

    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        if let Some(relay) = Relay::find(&self.0, &request).await? {
            let mut status = FleetClient::new(relay.channel()).status(relay.carry(request)).await?;
            status.get_mut().operators.push(self.summary());
            return Ok(status);
        }
        caller::admin(&self.0, &request)?;
        let cluster = &self.0;
        let listing = cluster.store.list(&Selector::all(Kind::InferenceHost)).await.map_err(refusal)?;
        let hosts = listing.objects.iter().map(|object| {
            let (connected, seen) = cluster.sessions.seen(&object.key.name);
            let silent = cluster.sessions.silence(&object.key.name);
            let heard = silent.is_some_and(|silence| silence.lasted < cluster.timing.silent_after);
            HostSummary {
                name: object.key.name.clone(),
                connected: connected && heard,
                last_seen: seen.map_or(0, |seen| seen.as_second()),
            }
        });
        let gateways =
            cluster.gateways().into_iter().map(|(name, url)| GatewaySummary { name, url, connected: true });
        let term = *cluster.leading.borrow();
        Ok(Response::new(StatusResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            leading: term.is_some(),
            term: term.unwrap_or(0),
            store: cluster.store.home().to_owned(),
            hosts: hosts.collect(),
            gateways: gateways.collect(),
            operators: vec![self.summary()],
        }))
    }

    async fn models(&self, request: Request<ModelsRequest>) -> Result<Response<Self::ModelsStream>, Status> {
        if let Some(relay) = Relay::find(&self.0, &request).await? {
            let answer = FleetClient::new(relay.channel()).models(relay.carry(request)).await?;
            return Ok(Response::new(Box::pin(relay.answers(answer))));
        }
        let admin = caller::admin(&self.0, &request)?;
        let request = request.into_inner();
        tracing::info!(%admin, hosts = ?request.hosts, ask = ?request.ask, "weights are asked about");
        Ok(Response::new(models::ask(&self.0, request).await?))
    }

    async fn logs(&self, request: Request<LogsRequest>) -> Result<Response<Chunks>, Status> {
        if let Some(relay) = Relay::find(&self.0, &request).await? {
            let answer = FleetClient::new(relay.channel()).logs(relay.carry(request)).await?;
            return Ok(Response::new(Box::pin(relay.answers(answer))));
        }
        caller::admin(&self.0, &request)?;
        let serial = caller::serial(&request)?;
        let request = request.into_inner();
        let sources = self.sources(&request).await?;
        let lines = if request.tail_lines == 0 { DEFAULT_LINES } else { request.tail_lines };
        let (id, chunks) = self
            .0
            .logs
            .open(sources.clone())
            .ok_or_else(|| Status::resource_exhausted("too many log readers: close some"))?;
        let mut unreachable = Vec::new();
        for (host, workload) in sources {
            let ask = LogsRequest {
                request: id.clone(),
                host: host.clone(),
                workload: workload.clone(),
                tail_lines: lines,
                follow: request.follow,
                deployment: None,
            };
            if !self.0.sessions.tell(&host, Down::Logs(ask)) {
                let text = format!("[host {host} is not connected: its log can't be read now]\n");
                unreachable.push(LogChunk { request: id.clone(), host, workload, text, end: true });
            }
        }
        for chunk in unreachable {
            self.0.logs.pass(&chunk.host.clone(), chunk);
        }
        let stream = ReceiverStream::new(chunks).map(Ok);
        let stream = stream.take_until(self.0.once_revoked(serial));
        Ok(Response::new(Box::pin(stream.take_until(self.0.shutdown.clone().cancelled_owned()))))
    }
}

impl Fleet {
    /// This operator, for `tandem status`.
    fn summary(&self) -> OperatorSummary {
        OperatorSummary {
            name: self.0.own.name.clone(),
            url: self.0.own.url.clone(),
            leading: self.0.leading.borrow().is_some(),
        }
    }

    /// (host, workload) of everything that a log request means.
    async fn sources(&self, request: &LogsRequest) -> Result<Vec<(String, String)>, Status> {
        let listing = self.0.store.list(&Selector::all(Kind::InferenceHost)).await.map_err(refusal)?;
        let mut sources = Vec::new();
        for object in &listing.objects {
            let hosts: Result<tandem_crds::InferenceHostSpec, _> =
                serde_json::from_value(object.spec().clone());
            for workload in hosts.map(|spec| spec.workloads).unwrap_or_default() {
                let meant = match &request.deployment {
                    Some(reference) => {
                        let key = Key::deployment(&reference.namespace, &reference.name);
                        workload.deployment.namespace == key.namespace && workload.deployment.name == key.name
                    }
                    // A host alone means all that runs there; a workload alone, wherever it runs.
                    None if request.workload.is_empty() => request.host == object.key.name,
                    None => {
                        workload.id == request.workload
                            && (request.host.is_empty() || request.host == object.key.name)
                    }
                };
                if meant {
                    sources.push((object.key.name.clone(), workload.id));
                }
            }
        }
        if sources.is_empty()
            && request.deployment.is_none()
            && !request.host.is_empty()
            && !request.workload.is_empty()
        {
            // A workload that is no longer in the spec may still have a log.
            sources.push((request.host.clone(), request.workload.clone()));
        }
        if sources.is_empty() {
            return Err(Status::not_found("nothing runs that this could mean: see `tandem get infd`"));
        }
        Ok(sources)
    }
}

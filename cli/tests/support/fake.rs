//! Objects and Fleet over a map. It keeps to control.proto, and knows no rules of the API.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use futures::{Stream, StreamExt, stream};
use serde_json::{Value, json};
use tandem_control_api::fleet_server::Fleet;
use tandem_control_api::keys_server::Keys;
use tandem_control_api::object_event::Type;
use tandem_control_api::objects_server::Objects;
use tandem_control_api::secrets_server::Secrets;
use tandem_control_api::{
    AdminList, AdminSummary, ApiKey, ApplyRequest, ApplyResponse, AuthorityRequest, AuthorityStatus,
    BackupChunk, BackupRequest, Certificate, CertifyRequest, CordonRequest, CreateKeyRequest, CreatedKey,
    DeleteKeyRequest, DeleteKeyResponse, DeleteRequest, DeleteResponse, DeleteSecretRequest,
    DeleteSecretResponse, DrainHostRequest, EventList, EventsRequest, GatewaySummary, HostSummary, JoinToken,
    JoinTokenRequest, KeyList, KeySummary, ListAdminsRequest, ListKeysRequest, ListRequest,
    ListSecretsRequest, LogChunk, LogsRequest, ModelsReply, ModelsRequest, Object, ObjectEvent, ObjectList,
    ObjectRef, RevokeRequest, RevokeResponse, Role, RotateAuthorityRequest, ScaleRequest, SecretList,
    SecretSummary, SetSecretRequest, StatusRequest, StatusResponse, apply_response,
};
use tandem_pki::{CertificateAuthority, HOST_LIFETIME, Identity, peer_identity};
use tokio::sync::{broadcast, watch};
use tokio_stream::wrappers::BroadcastStream;
use tonic::{Request, Response, Status};

/// Kind, namespace, name.
type Key = (String, String, String);
type Answer<T> = Result<Response<T>, Status>;
type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// A quant that this operator takes for none, for refusals that only a server can make.
pub(crate) const REFUSED: &str = "Q0_NONE";

pub(crate) struct Fake {
    state: Mutex<State>,
    changes: broadcast::Sender<ObjectEvent>,
    /// How many watches were opened.
    watches: watch::Sender<usize>,
    /// Counts the times that all watches were ended.
    ended: watch::Sender<usize>,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<Key, Value>,
    /// What `logs` answers.
    logs: Vec<LogChunk>,
    /// What `models` answers.
    models: Vec<ModelsReply>,
    /// Namespace and name → values.
    secrets: BTreeMap<(String, String), BTreeMap<String, String>>,
    keys: Vec<ApiKey>,
    gateways: Vec<GatewaySummary>,
    /// What `authority` answers next; the last one stays.
    authority: Vec<AuthorityStatus>,
    admins: Vec<AdminSummary>,
    /// Requests as they came, for the tests to look at.
    asked: Vec<String>,
}

impl Default for Fake {
    fn default() -> Self {
        Self {
            state: Mutex::default(),
            changes: broadcast::channel(64).0,
            watches: watch::channel(0).0,
            ended: watch::channel(0).0,
        }
    }
}

impl Fake {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Makes or changes an object.
    pub(crate) fn put(&self, object: &Value) {
        let mut state = self.lock();
        let before = state.objects.insert(key(object), object.clone());
        self.tell(if before.is_some() { Type::Modified } else { Type::Added }, object);
    }

    /// Takes an object away.
    pub(crate) fn remove(&self, object: &Value) {
        let mut state = self.lock();
        state.objects.remove(&key(object));
        self.tell(Type::Deleted, object);
    }

    pub(crate) fn log(&self, chunks: Vec<LogChunk>) {
        self.lock().logs = chunks;
    }

    pub(crate) fn models(&self, replies: Vec<ModelsReply>) {
        self.lock().models = replies;
    }

    pub(crate) fn secret(&self, namespace: &str, name: &str) -> Option<BTreeMap<String, String>> {
        self.lock().secrets.get(&(namespace.to_owned(), name.to_owned())).cloned()
    }

    pub(crate) fn gateway(&self, name: &str, url: &str) {
        let summary = GatewaySummary { name: name.into(), url: url.into(), connected: true };
        self.lock().gateways.push(summary);
    }

    /// Answers of `authority`, one after the other; the last one stays.
    pub(crate) fn authorities(&self, answers: Vec<AuthorityStatus>) {
        self.lock().authority = answers;
    }

    fn authority_now(&self) -> AuthorityStatus {
        let mut state = self.lock();
        if state.authority.len() > 1 { state.authority.remove(0) } else { state.authority[0].clone() }
    }

    pub(crate) fn object(&self, kind: &str, namespace: &str, name: &str) -> Option<Value> {
        self.lock().objects.get(&(kind.into(), namespace.into(), name.into())).cloned()
    }

    pub(crate) fn asked(&self) -> Vec<String> {
        self.lock().asked.clone()
    }

    /// Waits until so many watches were opened.
    pub(crate) async fn watched(&self, times: usize) {
        let mut watches = self.watches.subscribe();
        let opened = watches.wait_for(|opened| *opened >= times);
        tokio::time::timeout(Duration::from_secs(60), opened).await.expect("a watch is opened").unwrap();
    }

    /// Ends all watches, as an operator does that is shut down. What happens in `meanwhile` they don't hear of.
    pub(crate) fn end_watches(&self, meanwhile: impl FnOnce(&Self)) {
        self.ended.send_modify(|ended| *ended += 1);
        meanwhile(self);
    }

    fn tell(&self, kind: Type, object: &Value) {
        // Nobody has to watch.
        drop(self.changes.send(event(kind, Some(object))));
    }

    fn find(&self, reference: Option<&ObjectRef>) -> Result<(Key, Value), Status> {
        let reference = reference.ok_or_else(|| Status::invalid_argument("no object is named"))?;
        let key = (reference.kind.clone(), reference.namespace.clone(), reference.name.clone());
        let object = self.lock().objects.get(&key).cloned();
        let missing = || Status::not_found(format!("there is no {} {}", reference.kind, reference.name));
        object.map(|object| (key, object)).ok_or_else(missing)
    }

    fn host(&self, name: &str) -> Result<Value, Status> {
        let reference =
            ObjectRef { kind: "InferenceHost".into(), namespace: String::new(), name: name.into() };
        self.find(Some(&reference)).map(|(_, object)| object)
    }
}

fn key(object: &Value) -> Key {
    let text = |pointer| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    (text("/kind"), text("/metadata/namespace"), text("/metadata/name"))
}

fn event(kind: Type, object: Option<&Value>) -> ObjectEvent {
    let json = object.map(Value::to_string).unwrap_or_default();
    ObjectEvent { r#type: kind.into(), json, resource_version: String::new() }
}

fn is_meant(request: &ListRequest, (kind, namespace, name): &Key) -> bool {
    let is = |wanted: &String, have: &String| wanted.is_empty() || wanted == have;
    request.kind == *kind && is(&request.namespace, namespace) && is(&request.name, name)
}

fn admin<T>(request: Request<T>) -> Result<T, Status> {
    match peer_identity(&request)? {
        Identity::Admin(_) => Ok(request.into_inner()),
        other => Err(Status::permission_denied(format!(
            "this call is for an admin, and the certificate is of {other}"
        ))),
    }
}

fn object(object: &Value) -> Answer<Object> {
    Ok(Response::new(Object { json: object.to_string() }))
}

#[tonic::async_trait]
impl Objects for Fake {
    type WatchStream = Streamed<ObjectEvent>;

    async fn apply(&self, request: Request<ApplyRequest>) -> Answer<ApplyResponse> {
        let request = admin(request)?;
        let new: Value = serde_json::from_str(&request.manifest_json).unwrap();
        if new["spec"]["quant"] == REFUSED {
            return Err(Status::invalid_argument(format!("spec.quant: {REFUSED} is none: use Q4_K_M")));
        }
        let before = self.lock().objects.get(&key(&new)).cloned();
        let result = match &before {
            None => apply_response::Result::Created,
            Some(before) if before["spec"] == new["spec"] => apply_response::Result::Unchanged,
            Some(_) => apply_response::Result::Configured,
        };
        if !request.dry_run {
            self.put(&new);
        }
        let warnings =
            if new["spec"]["quant"] == "F32" { vec!["F32 is large".to_owned()] } else { Vec::new() };
        Ok(Response::new(ApplyResponse { json: new.to_string(), result: result.into(), warnings }))
    }

    async fn get(&self, request: Request<ObjectRef>) -> Answer<Object> {
        let reference = admin(request)?;
        object(&self.find(Some(&reference))?.1)
    }

    async fn list(&self, request: Request<ListRequest>) -> Answer<ObjectList> {
        let request = admin(request)?;
        let state = self.lock();
        let meant = state.objects.iter().filter(|(key, _)| is_meant(&request, key));
        let json = meant.map(|(_, object)| object.to_string()).collect();
        Ok(Response::new(ObjectList { json, resource_version: String::new() }))
    }

    async fn watch(&self, request: Request<ListRequest>) -> Answer<Self::WatchStream> {
        let request = admin(request)?;
        let state = self.lock();
        let meant = state.objects.iter().filter(|(key, _)| is_meant(&request, key));
        let mut first: Vec<ObjectEvent> = meant.map(|(_, object)| event(Type::Added, Some(object))).collect();
        first.push(event(Type::Bookmark, None));
        let changes = BroadcastStream::new(self.changes.subscribe()).filter_map(move |event| {
            let event = event.unwrap();
            let object: Value = serde_json::from_str(&event.json).unwrap();
            let meant = is_meant(&request, &key(&object));
            async move { meant.then_some(event) }
        });
        let mut ended = self.ended.subscribe();
        let end = async move { drop(ended.changed().await) };
        let events = stream::iter(first).chain(changes).map(Ok).take_until(Box::pin(end));
        self.watches.send_modify(|opened| *opened += 1);
        Ok(Response::new(Box::pin(events)))
    }

    async fn delete(&self, request: Request<DeleteRequest>) -> Answer<DeleteResponse> {
        let (_, object) = self.find(admin(request)?.r#ref.as_ref())?;
        self.remove(&object);
        Ok(Response::new(DeleteResponse {}))
    }

    async fn scale(&self, request: Request<ScaleRequest>) -> Answer<Object> {
        let request = admin(request)?;
        let (_, mut scaled) = self.find(request.r#ref.as_ref())?;
        scaled["spec"]["replicas"] = request.replicas.into();
        self.put(&scaled);
        object(&scaled)
    }

    async fn events(&self, request: Request<EventsRequest>) -> Answer<EventList> {
        let (key, _) = self.find(admin(request)?.r#ref.as_ref())?;
        let second = if key.0 == "InferenceHost" { 1 } else { 2 };
        let time = format!("2026-01-01T00:00:0{second}Z");
        let event = json!({"type": "Warning", "reason": "HostLost", "message": "mac-b is silent", "count": 2,
            "firstTimestamp": "2026-01-01T00:00:00Z", "lastTimestamp": time});
        Ok(Response::new(EventList { json: vec![event.to_string()] }))
    }
}

#[tonic::async_trait]
impl Fleet for Fake {
    type LogsStream = Streamed<LogChunk>;
    type BackupStream = Streamed<BackupChunk>;
    type ModelsStream = Streamed<ModelsReply>;

    async fn create_join_token(&self, request: Request<JoinTokenRequest>) -> Answer<JoinToken> {
        let request = admin(request)?;
        let role = request.role().as_str_name().to_owned();
        self.lock().asked.push(format!("{role} {:?} {}", request.name, request.ttl_seconds));
        Ok(Response::new(JoinToken { token: "the-token".into(), expires_at: 0 }))
    }

    async fn cordon(&self, request: Request<CordonRequest>) -> Answer<Object> {
        let request = admin(request)?;
        let mut host = self.host(&request.host)?;
        host["spec"]["unschedulable"] = request.unschedulable.into();
        self.put(&host);
        object(&host)
    }

    async fn backup(&self, request: Request<BackupRequest>) -> Answer<Self::BackupStream> {
        admin(request)?;
        let chunks = ["all ", "of it"].map(|data| Ok(BackupChunk { data: data.into() }));
        Ok(Response::new(Box::pin(stream::iter(chunks))))
    }

    async fn revoke(&self, request: Request<RevokeRequest>) -> Answer<RevokeResponse> {
        let request = admin(request)?;
        match request.role() {
            Role::Host => drop(self.host(&request.name)?),
            Role::Admin if !request.force => {
                return Err(Status::failed_precondition("the last: give --force"));
            }
            role => self.lock().asked.push(format!("revoke {} {}", role.as_str_name(), request.name)),
        }
        Ok(Response::new(RevokeResponse { serials: vec!["07".into(), "08".into()] }))
    }

    async fn authority(&self, request: Request<AuthorityRequest>) -> Answer<AuthorityStatus> {
        admin(request)?;
        Ok(Response::new(self.authority_now()))
    }

    async fn rotate_authority(&self, request: Request<RotateAuthorityRequest>) -> Answer<AuthorityStatus> {
        let without = admin(request)?.without;
        let without: Vec<String> =
            without.iter().map(|party| format!("{} {}", party.role().as_str_name(), party.name)).collect();
        self.lock().asked.push(format!("rotate {without:?}"));
        Ok(Response::new(self.authority_now()))
    }

    async fn list_admins(&self, request: Request<ListAdminsRequest>) -> Answer<AdminList> {
        admin(request)?;
        Ok(Response::new(AdminList { admins: self.lock().admins.clone() }))
    }

    async fn certify_admin(&self, request: Request<CertifyRequest>) -> Answer<Certificate> {
        let request = admin(request)?;
        let (now, who) = (SystemTime::now(), Identity::admin(&request.name).unwrap());
        let authority = CertificateAuthority::create(now).unwrap();
        let issued = authority.sign(&request.csr_pem, &who, &[], now, HOST_LIFETIME).unwrap();
        let summary = AdminSummary {
            name: request.name,
            since: 1_767_225_600,
            not_after: issued.not_after,
            certificates: 1,
            caller: false,
        };
        self.lock().admins.push(summary);
        Ok(Response::new(Certificate {
            certificate_pem: issued.certificate_pem,
            ca_pem: issued.ca_pem,
            not_after: issued.not_after,
        }))
    }

    async fn drain(&self, request: Request<DrainHostRequest>) -> Answer<Object> {
        let mut host = self.host(&admin(request)?.host)?;
        host["spec"]["unschedulable"] = true.into();
        host["spec"]["drain"] = "Requested".into();
        self.put(&host);
        object(&host)
    }

    async fn status(&self, request: Request<StatusRequest>) -> Answer<StatusResponse> {
        admin(request)?;
        let state = self.lock();
        let hosts = state.objects.keys().filter(|key| key.0 == "InferenceHost");
        let hosts = hosts.map(|(_, _, name)| HostSummary {
            name: name.clone(),
            connected: name != "mac-b",
            last_seen: 0,
        });
        Ok(Response::new(StatusResponse {
            version: "0.1.0".into(),
            leading: true,
            term: 2,
            store: "embedded".into(),
            hosts: hosts.collect(),
            gateways: state.gateways.clone(),
            operators: Vec::new(),
        }))
    }

    async fn models(&self, request: Request<ModelsRequest>) -> Answer<Self::ModelsStream> {
        let request = admin(request)?;
        let mut state = self.lock();
        for host in &request.hosts {
            if !state.objects.keys().any(|key| key.0 == "InferenceHost" && key.2 == *host) {
                return Err(Status::not_found(format!("there is no inferencehost/{host}")));
            }
        }
        state.asked.push(format!("{:?} {:?}", request.hosts, request.ask.unwrap()));
        Ok(Response::new(Box::pin(stream::iter(state.models.clone()).map(Ok))))
    }

    async fn logs(&self, request: Request<LogsRequest>) -> Answer<Self::LogsStream> {
        let request = admin(request)?;
        let mut state = self.lock();
        let deployment = request.deployment.as_ref().map(|reference| reference.name.as_str());
        state.asked.push(format!(
            "{deployment:?} {:?} {:?} {} {}",
            request.host, request.workload, request.tail_lines, request.follow
        ));
        if deployment.is_some_and(|name| !state.objects.keys().any(|key| key.2 == name)) {
            return Err(Status::not_found("nothing runs that this could mean: see `tandem get infd`"));
        }
        Ok(Response::new(Box::pin(stream::iter(state.logs.clone()).map(Ok))))
    }
}

#[tonic::async_trait]
impl Secrets for Fake {
    async fn set(&self, request: Request<SetSecretRequest>) -> Answer<SecretSummary> {
        let SetSecretRequest { namespace, name, values } = admin(request)?;
        let mut state = self.lock();
        let kept = state.secrets.entry((namespace.clone(), name.clone())).or_default();
        kept.extend(values);
        Ok(Response::new(summary(&namespace, &name, kept)))
    }

    async fn list(&self, request: Request<ListSecretsRequest>) -> Answer<SecretList> {
        let namespace = admin(request)?.namespace;
        let state = self.lock();
        let meant = state.secrets.iter().filter(|((of, _), _)| namespace.is_empty() || *of == namespace);
        let secrets = meant.map(|((namespace, name), values)| summary(namespace, name, values)).collect();
        Ok(Response::new(SecretList { secrets }))
    }

    async fn delete(&self, request: Request<DeleteSecretRequest>) -> Answer<DeleteSecretResponse> {
        let DeleteSecretRequest { namespace, name } = admin(request)?;
        let gone = self.lock().secrets.remove(&(namespace, name.clone()));
        gone.ok_or_else(|| {
            Status::not_found(format!("there is no secret {name}: see `tandem secret list`"))
        })?;
        Ok(Response::new(DeleteSecretResponse {}))
    }
}

/// The text of every key that this operator makes.
const KEY: &str = "tdm-0123456789";

#[tonic::async_trait]
impl Keys for Fake {
    async fn create(&self, request: Request<CreateKeyRequest>) -> Answer<CreatedKey> {
        let key = admin(request)?.key.unwrap_or_default();
        self.lock().keys.push(key.clone());
        Ok(Response::new(CreatedKey { key: Some(key), text: KEY.to_owned() }))
    }

    async fn list(&self, request: Request<ListKeysRequest>) -> Answer<KeyList> {
        let namespace = admin(request)?.namespace;
        let state = self.lock();
        let meant = state.keys.iter().filter(|key| namespace.is_empty() || key.namespace == namespace);
        let keys = meant.map(|key| KeySummary { key: Some(key.clone()), ..KeySummary::default() }).collect();
        Ok(Response::new(KeyList { keys }))
    }

    async fn delete(&self, request: Request<DeleteKeyRequest>) -> Answer<DeleteKeyResponse> {
        let DeleteKeyRequest { namespace, name } = admin(request)?;
        let mut state = self.lock();
        let before = state.keys.len();
        state.keys.retain(|key| (&key.namespace, &key.name) != (&namespace, &name));
        if state.keys.len() == before {
            return Err(Status::not_found(format!("there is no key {namespace}/{name}")));
        }
        Ok(Response::new(DeleteKeyResponse {}))
    }
}

fn summary(namespace: &str, name: &str, values: &BTreeMap<String, String>) -> SecretSummary {
    let keys = values.keys().cloned().collect();
    SecretSummary { namespace: namespace.into(), name: name.into(), keys, changed_at: 1_767_225_600 }
}

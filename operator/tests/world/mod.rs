//! A listening operator, and hosts, gateways and people that speak to it over real TLS.

#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(clippy::unwrap_used, reason = "helpers of tests, outside of any test function")]

pub(crate) mod kubernetes;
pub(crate) mod operators;

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tandem_control_api::agents_client::AgentsClient;
use tandem_control_api::fleet_client::FleetClient;
use tandem_control_api::gateways_client::GatewaysClient;
use tandem_control_api::objects_client::ObjectsClient;
use tandem_control_api::operator_message::Message as Down;
use tandem_control_api::secrets_client::SecretsClient;
use tandem_control_api::{
    AgentHello, AgentMessage, ApplyRequest, HostReport, JoinTokenRequest, ListRequest, ObjectRef,
    OperatorMessage, Protocol, Role, RouteTable, RoutesRequest, Supply, agent_message,
};
use tandem_operator::{Operator, Settings, SourceSettings, StoreSettings, Timing};
use tandem_pki::{Credentials, EnrollError, Enrollment, Identity};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};

/// Longest wait for anything that has to happen.
pub(crate) const SOON: Duration = Duration::from_secs(30);

/// Impatient, so that silence is soon noticed.
pub(crate) fn impatient() -> Timing {
    Timing {
        report_interval: Duration::from_millis(50),
        silent_after: Duration::from_millis(400),
        boot_grace: Duration::from_millis(1500),
        lease: Duration::from_secs(2),
        settle: Duration::from_millis(400),
    }
}

pub(crate) struct World {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) url: String,
    pub(crate) admin: Credentials,
    operator: Option<Operator>,
    timing: Timing,
    /// Where models come from, from the next start on.
    pub(crate) sources: SourceSettings,
    address: SocketAddr,
}

pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(SOON, future).await {
        Ok(value) => value,
        Err(_) => panic!("waited in vain: {what}"),
    }
}

impl World {
    pub(crate) async fn start() -> Self {
        Self::start_with(impatient()).await
    }

    pub(crate) async fn start_with(timing: Timing) -> Self {
        Self::start_reading(timing, SourceSettings::default()).await
    }

    /// One that reads models from where it is told.
    pub(crate) async fn start_reading(timing: Timing, sources: SourceSettings) -> Self {
        tandem_pki::install_tls_provider();
        let dir = tempfile::tempdir().unwrap();
        let settings = Settings { sources: sources.clone(), ..settings(dir.path(), 0, timing) };
        let operator = tandem_operator::start(settings).await.unwrap();
        let admin = Credentials::load(&dir.path().join("operator/admin")).unwrap();
        let url = operator.url().to_owned();
        Self { dir, url, admin, address: operator.address(), operator: Some(operator), timing, sources }
    }

    /// An operator that runs as a process of its own.
    pub(crate) fn of_process(dir: tempfile::TempDir, url: &str, admin: Credentials) -> Self {
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let (timing, sources) = (Timing::default(), SourceSettings::default());
        Self { dir, url: url.to_owned(), admin, address, operator: None, timing, sources }
    }

    pub(crate) async fn stop(&mut self) {
        let operator = self.operator.take().unwrap();
        operator.shutdown_handle().cancel();
        within("the operator ends", operator.ended()).await.unwrap();
    }

    pub(crate) async fn start_again(&mut self) {
        let settings = settings(self.dir.path(), self.address.port(), self.timing);
        let settings = Settings { sources: self.sources.clone(), ..settings };
        self.operator = Some(tandem_operator::start(settings).await.unwrap());
    }

    pub(crate) fn channel(&self, credentials: &Credentials) -> Channel {
        channel(&self.url, credentials)
    }

    pub(crate) fn objects(&self) -> ObjectsClient<Channel> {
        ObjectsClient::new(self.channel(&self.admin))
    }

    pub(crate) fn fleet(&self) -> FleetClient<Channel> {
        FleetClient::new(self.channel(&self.admin))
    }

    pub(crate) fn secrets(&self) -> SecretsClient<Channel> {
        SecretsClient::new(self.channel(&self.admin))
    }

    pub(crate) async fn token(&self, role: Role, name: &str) -> String {
        let request = JoinTokenRequest { role: role.into(), name: name.into(), ttl_seconds: 0 };
        self.fleet().create_join_token(request).await.unwrap().into_inner().token
    }

    pub(crate) async fn join_with(
        &self,
        token: &str,
        role: Role,
        name: &str,
    ) -> Result<Credentials, EnrollError> {
        let enrollment = Enrollment {
            operator: self.url.clone(),
            proof: tandem_pki::Proof::Token(token.parse().unwrap()),
            role,
            name: name.into(),
            addresses: vec!["127.0.0.1".into()],
        };
        within("an answer to a join", tandem_pki::join(&enrollment)).await
    }

    pub(crate) async fn join(&self, role: Role, name: &str) -> Credentials {
        let token = self.token(role, name).await;
        self.join_with(&token, role, name).await.unwrap()
    }

    pub(crate) async fn host(&self, name: &str) -> Host {
        let credentials = self.join(Role::Host, name).await;
        self.connect(name, credentials, 0).await
    }

    pub(crate) async fn connect(&self, name: &str, credentials: Credentials, term: u64) -> Host {
        Host::connect(&self.url, name, credentials, term).await.unwrap()
    }

    pub(crate) async fn gateway(&self, name: &str) -> Gateway {
        let credentials = self.join(Role::Gateway, name).await;
        let request =
            RoutesRequest { protocol: Some(Protocol::own(&[])), url: format!("http://{name}:8080") };
        let tables =
            GatewaysClient::new(self.channel(&credentials)).routes(request).await.unwrap().into_inner();
        Gateway { credentials, tables }
    }

    pub(crate) async fn apply(&self, manifest: Value) -> Result<Value, Status> {
        let request = ApplyRequest { manifest_json: manifest.to_string(), ..ApplyRequest::default() };
        let answer = self.objects().apply(request).await?.into_inner();
        Ok(serde_json::from_str(&answer.json).unwrap())
    }

    pub(crate) async fn get(&self, kind: &str, namespace: &str, name: &str) -> Option<Value> {
        let request = ObjectRef { kind: kind.into(), namespace: namespace.into(), name: name.into() };
        match self.objects().get(request).await {
            Ok(answer) => Some(serde_json::from_str(&answer.into_inner().json).unwrap()),
            Err(status) if status.code() == Code::NotFound => None,
            Err(status) => panic!("{status}"),
        }
    }

    /// Waits until an object is as wanted, and gives it back.
    pub(crate) async fn until(
        &self,
        kind: &str,
        name: &str,
        what: &str,
        wanted: impl Fn(&Value) -> bool,
    ) -> Value {
        let request = ListRequest { kind: kind.into(), namespace: String::new(), name: name.into() };
        let mut watch = self.objects().watch(request).await.unwrap().into_inner();
        let mut last = Value::Null;
        let found = tokio::time::timeout(SOON, async {
            loop {
                let event = watch.message().await.unwrap().expect("the watch goes on");
                if !event.json.is_empty() {
                    last = serde_json::from_str(&event.json).unwrap();
                    if wanted(&last) {
                        return;
                    }
                }
            }
        })
        .await;
        assert!(found.is_ok(), "waited in vain: {what}; last seen: {last:#}");
        last
    }
}

pub(crate) fn settings(dir: &Path, port: u16, timing: Timing) -> Settings {
    Settings {
        data_dir: Some(dir.join("operator")),
        store: StoreSettings::Embedded,
        name: None,
        peer_url: None,
        service_accounts: tandem_operator::ServiceAccounts::default(),
        listen: SocketAddr::from(([127, 0, 0, 1], port)),
        metrics_listen: None,
        advertise: Vec::new(),
        timing,
        traces: Default::default(),
        sources: SourceSettings::default(),
    }
}

pub(crate) fn channel(url: &str, credentials: &Credentials) -> Channel {
    let endpoint = Endpoint::from_shared(url.to_owned()).unwrap();
    endpoint
        .tls_config(credentials.client_tls(&Identity::Operator))
        .unwrap()
        .connect_timeout(SOON)
        // As agents do: a frozen operator is given up.
        .http2_keep_alive_interval(Duration::from_secs(1))
        .keep_alive_timeout(Duration::from_secs(1))
        .keep_alive_while_idle(true)
        .connect_lazy()
}

/// An agent without a machine.
pub(crate) struct Host {
    pub(crate) name: String,
    pub(crate) credentials: Credentials,
    pub(crate) up: mpsc::Sender<AgentMessage>,
    pub(crate) down: Streaming<OperatorMessage>,
}

impl Host {
    pub(crate) async fn connect(
        url: &str,
        name: &str,
        credentials: Credentials,
        term: u64,
    ) -> Result<Self, Status> {
        let (up, stream) = mpsc::channel(16);
        let hello = AgentHello { protocol: Some(Protocol::own(&[])), highest_term: term };
        up.send(AgentMessage { message: Some(agent_message::Message::Hello(hello)) }).await.unwrap();
        let mut client = AgentsClient::new(channel(url, &credentials));
        let answer = within("an answer to Hello", client.session(ReceiverStream::new(stream))).await?;
        let mut host = Self { name: name.into(), credentials, up, down: answer.into_inner() };
        match host.next().await? {
            Some(Down::Welcome(_)) => Ok(host),
            // As when the leader that was relayed to is gone.
            None => Err(Status::unavailable("the session ended before its first word")),
            Some(_) => panic!("the first word is not Welcome"),
        }
    }

    pub(crate) async fn next(&mut self) -> Result<Option<Down>, Status> {
        let message = within("a word from the operator", self.down.message()).await?;
        Ok(message.and_then(|message| message.message))
    }

    pub(crate) async fn report(&self, status: &Value) {
        let report = HostReport { status_json: status.to_string() };
        let message = AgentMessage { message: Some(agent_message::Message::Report(report)) };
        self.up.send(message).await.expect("the session is open");
    }

    /// The next spec that is as wanted.
    pub(crate) async fn spec(&mut self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        within(what, async {
            loop {
                if let Some(Down::Spec(spec)) = self.next().await.unwrap() {
                    let spec: Value = serde_json::from_str(&spec.spec_json).unwrap();
                    if wanted(&spec) {
                        return spec;
                    }
                }
            }
        })
        .await
    }
}

pub(crate) struct Gateway {
    pub(crate) credentials: Credentials,
    pub(crate) tables: Streaming<RouteTable>,
}

impl Gateway {
    pub(crate) async fn table(&mut self, what: &str, wanted: impl Fn(&RouteTable) -> bool) -> RouteTable {
        within(what, async {
            loop {
                let table = self.tables.message().await.unwrap().expect("the routes go on");
                if wanted(&table) {
                    return table;
                }
            }
        })
        .await
    }
}

/// A report of a host with a processor and this much memory for workloads.
pub(crate) fn report(memory: u64) -> Value {
    json!({
        "agentVersion": "0.1.0",
        "address": "127.0.0.1",
        "devices": [{"id": "cpu", "kind": "CPU", "name": "test", "memoryBytes": memory, "availableBytes": memory}],
        "workloads": [],
    })
}

/// A report of a host that does what its spec says, at once.
pub(crate) fn obedient(spec: &Value, memory: u64) -> Value {
    let mut status = report(memory);
    let workloads = spec["workloads"].as_array().into_iter().flatten();
    status["workloads"] = workloads
        .map(|workload| {
            let id = workload["id"].as_str().unwrap();
            json!({
                "id": id,
                "epoch": workload["epoch"],
                "state": "Ready",
                "endpoint": "127.0.0.1:9",
                "serverName": format!("{id}.worker"),
                "numericsId": "test",
                "restarts": 0,
            })
        })
        .collect();
    let files =
        spec["workloads"].as_array().into_iter().flatten().flat_map(|w| w["files"].as_array().unwrap());
    let mut files: Vec<&str> = files.map(|file| file["sha256"].as_str().unwrap()).collect();
    files.extend(spec["keepFiles"].as_array().into_iter().flatten().map(|file| file.as_str().unwrap()));
    files.sort_unstable();
    files.dedup();
    status["weights"] = json!({"port": 9, "usedBytes": 0, "files": files});
    status["observedGeneration"] = spec["generation"].clone();
    status["observedTerm"] = spec["term"].clone();
    status
}

/// A host that does at once what it is told, until it is killed.
pub(crate) struct Machine {
    pub(crate) name: String,
    pub(crate) credentials: Credentials,
    specs: watch::Receiver<Value>,
    supplies: watch::Receiver<Option<Supply>>,
    mute: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Machine {
    /// Stays connected and says nothing, or speaks again.
    pub(crate) fn mute(&self, mute: bool) {
        self.mute.send_replace(mute);
    }

    /// Ends its agent: it reports no more, and its connection closes.
    pub(crate) fn kill(&self) {
        self.task.abort();
    }

    /// The newest spec that it was told, once it is as wanted.
    pub(crate) async fn spec(&mut self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        within(what, self.specs.wait_for(|spec| wanted(spec))).await.expect("the machine runs").clone()
    }

    /// The newest supply that it was told, once it is as wanted.
    pub(crate) async fn supply(&mut self, what: &str, wanted: impl Fn(&Supply) -> bool) -> Supply {
        let told = self.supplies.wait_for(|supply| supply.as_ref().is_some_and(&wanted));
        within(what, told).await.expect("the machine runs").clone().unwrap()
    }

    /// The newest spec that it was told.
    pub(crate) fn told(&self) -> Value {
        self.specs.borrow().clone()
    }

    /// Ids and start numbers of what it runs.
    pub(crate) fn runs(&self) -> Vec<(String, u64)> {
        workloads(&self.told())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub(crate) fn workloads(spec: &Value) -> Vec<(String, u64)> {
    let workloads = spec["workloads"].as_array().into_iter().flatten();
    workloads.map(|w| (w["id"].as_str().unwrap().to_owned(), w["epoch"].as_u64().unwrap())).collect()
}

impl World {
    /// A new host with this much memory for workloads.
    pub(crate) async fn machine(&self, name: &str, memory: u64) -> Machine {
        let credentials = self.join(Role::Host, name).await;
        self.machine_with(name, credentials, memory, Value::Null).await
    }

    /// A host that has joined before, and what it still runs.
    pub(crate) async fn machine_with(
        &self,
        name: &str,
        credentials: Credentials,
        memory: u64,
        ran: Value,
    ) -> Machine {
        let (told, specs) = watch::channel(ran);
        let (mute, muted) = watch::channel(false);
        let (supplied, supplies) = watch::channel(None);
        let (url, own, identity) = (self.url.clone(), name.to_owned(), credentials.clone());
        let mut unmuted = muted.clone();
        let task = tokio::spawn(async move {
            loop {
                let term = told.borrow()["term"].as_u64().unwrap_or(0);
                // An operator that is being restarted is dialled again.
                let Ok(mut host) = Host::connect(&url, &own, identity.clone(), term).await else {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                };
                supplied.send_replace(None);
                let mut beat = tokio::time::interval(Duration::from_millis(50));
                loop {
                    tokio::select! {
                        _ = beat.tick(), if !*muted.borrow() => {
                            let report = HostReport { status_json: obedient(&told.borrow(), memory).to_string() };
                            let message = AgentMessage { message: Some(agent_message::Message::Report(report)) };
                            if host.up.send(message).await.is_err() {
                                break;
                            }
                        }
                        _ = unmuted.changed() => {}
                        message = host.down.message() => match message.map(|message| message.and_then(|m| m.message)) {
                            Ok(Some(Down::Supply(supply))) => {
                                supplied.send_replace(Some(supply));
                            }
                            Ok(Some(Down::Spec(spec))) => {
                                assert!(supplied.borrow().is_some(), "{own}: a spec comes before the supply");
                                let spec: Value = serde_json::from_str(&spec.spec_json).unwrap();
                                // As an agent's ledger has it: never an older term, never a lower start number.
                                assert!(spec["term"].as_u64() >= told.borrow()["term"].as_u64(), "{own}: the term goes back");
                                for (id, epoch) in workloads(&told.borrow()) {
                                    let now = workloads(&spec).into_iter().find(|(other, _)| *other == id);
                                    assert!(now.is_none_or(|(_, now)| now >= epoch), "{own}: an epoch of {id} goes back");
                                }
                                told.send_replace(spec);
                                beat.reset_immediately();
                            }
                            Ok(Some(_)) => {}
                            Ok(None) | Err(_) => break,
                        },
                    }
                }
            }
        });
        Machine { name: name.into(), credentials, specs, supplies, mute, task }
    }

    /// A folder with a small model that the engine can size, as a source. Its only quant is `F32`.
    pub(crate) fn source(&self) -> String {
        let folder = self.dir.path().join("model");
        std::fs::create_dir_all(&folder).unwrap();
        let file = model(7);
        let digest: String = Sha256::digest(&file).iter().map(|byte| format!("{byte:02x}")).collect();
        std::fs::write(folder.join("tiny-F32.gguf"), file).unwrap();
        std::fs::write(folder.join("SHA256SUMS"), format!("{digest}  tiny-F32.gguf\n")).unwrap();
        format!("file://{}", folder.display())
    }

    /// A deployment of that model.
    pub(crate) fn deployment(&self, name: &str, host_failures: u32) -> Value {
        json!({
            "apiVersion": "inference.tandem.dev/v1alpha1",
            "kind": "InferenceDeployment",
            "metadata": {"name": name, "namespace": "llm"},
            "spec": {
                "model": {"name": name, "source": self.source()},
                "quant": "F32",
                "context": {"tokens": 32},
                "redundancy": {"hostFailures": host_failures, "replaceAfterSeconds": 1},
            },
        })
    }
}

/// A small model that the engine can size; another for another seed.
pub(crate) fn model(seed: u64) -> Vec<u8> {
    tandem_reference::file::random_file(&tandem_reference::dense::Dense::llama().minute(), seed)
}

/// The status of a deployment's condition.
pub(crate) fn condition<'a>(object: &'a Value, name: &str) -> &'a Value {
    let conditions = object["status"]["conditions"].as_array().map_or(&[][..], Vec::as_slice);
    conditions.iter().find(|condition| condition["type"] == name).unwrap_or(&Value::Null)
}

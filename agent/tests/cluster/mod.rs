//! An operator in this process, real agents as processes, and a worker program that is this very test executable.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use futures::Stream;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sha2::{Digest, Sha256};
use tandem_control_api::agent_message::Message as Up;
use tandem_control_api::agents_server::{Agents, AgentsServer};
use tandem_control_api::enrollment_server::{Enrollment, EnrollmentServer};
use tandem_control_api::models_reply::Said;
use tandem_control_api::models_request::Ask;
use tandem_control_api::operator_message::Message as Down;
use tandem_control_api::{
    AgentMessage, Certificate, CertifyRequest, HostSpec, JoinRequest, LogChunk, ModelsReply, ModelsRequest,
    OperatorMessage, Protocol, Role, Supply, Trust, TrustConfirmation, TrustConfirmed, Welcome,
};
use tandem_crds::{
    DeploymentRef, InferenceHostSpec, InferenceHostStatus, ResolvedFile, WorkloadSpec, WorkloadStatus,
};
use tandem_pki::{
    CertificateAuthority, ClientCertificates, Credentials, HOST_LIFETIME, Identity, JoinToken,
    OPERATOR_LIFETIME, install_tls_provider, peer_certificate, peer_identity,
};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

/// Far more than anything here takes.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

type Outbox = mpsc::Sender<Result<OperatorMessage, Status>>;

/// What the operator sees and says.
pub(crate) struct Desk {
    authority: Arc<CertificateAuthority>,
    /// The one host that this operator knows.
    host: String,
    outbox: Mutex<Option<Outbox>>,
    spec: Mutex<InferenceHostSpec>,
    report: watch::Sender<Option<InferenceHostStatus>>,
    hellos: watch::Sender<Vec<u64>>,
    logs: mpsc::Sender<LogChunk>,
    supply: Mutex<Supply>,
    models: mpsc::Sender<ModelsReply>,
    joined: Mutex<u32>,
    certified: Mutex<Vec<(Role, String)>>,
    /// The caller's end of the session's connection, and of that of each request for a certificate.
    session: Mutex<Option<SocketAddr>>,
    asked: Mutex<Vec<SocketAddr>>,
    /// Certificates are refused over the session's connection.
    wants_another_connection: AtomicBool,
    /// The authority that signs instead of the first one, and what is said of it.
    another: Mutex<Option<(Arc<CertificateAuthority>, Trust)>>,
    /// What hosts have said that they trust, with the authority of the certificate that they showed.
    confirmed: watch::Sender<Vec<(Vec<String>, String)>>,
}

impl Desk {
    fn signing(&self) -> Arc<CertificateAuthority> {
        let another = self.another.lock().unwrap();
        another.as_ref().map_or_else(|| self.authority.clone(), |(authority, _)| authority.clone())
    }
}

fn certificate(issued: tandem_pki::Issued) -> Response<Certificate> {
    Response::new(Certificate {
        certificate_pem: issued.certificate_pem,
        ca_pem: issued.ca_pem,
        not_after: issued.not_after,
    })
}

struct Shared(Arc<Desk>);

#[tonic::async_trait]
impl Enrollment for Shared {
    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<Certificate>, Status> {
        let request = request.into_inner();
        *self.0.joined.lock().unwrap() += 1;
        let host = Identity::host(&request.name).unwrap();
        let issued = self.0.authority.sign(
            &request.csr_pem,
            &host,
            &request.addresses,
            SystemTime::now(),
            HOST_LIFETIME,
        );
        Ok(certificate(issued.unwrap()))
    }
}

#[tonic::async_trait]
impl Agents for Shared {
    type SessionStream = Pin<Box<dyn Stream<Item = Result<OperatorMessage, Status>> + Send>>;

    async fn session(
        &self,
        request: Request<Streaming<AgentMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        assert_eq!(peer_identity(&request).unwrap(), Identity::host(&self.0.host).unwrap());
        *self.0.session.lock().unwrap() = request.remote_addr();
        let mut upstream = request.into_inner();
        let Some(Up::Hello(hello)) = upstream.message().await?.and_then(|message| message.message) else {
            return Err(Status::invalid_argument("no Hello"));
        };
        let desk = self.0.clone();
        desk.hellos.send_modify(|hellos| hellos.push(hello.highest_term));
        let (outbox, downstream) = mpsc::channel(32);
        let welcome = Welcome { protocol: Some(Protocol::own(&[])), report_interval_ms: 200 };
        outbox.send(Ok(OperatorMessage { message: Some(Down::Welcome(welcome)) })).await.unwrap();
        let trust = desk.another.lock().unwrap().as_ref().map(|(_, trust)| trust.clone());
        if let Some(trust) = trust {
            outbox.send(Ok(OperatorMessage { message: Some(Down::Trust(trust)) })).await.unwrap();
        }
        let supply = desk.supply.lock().unwrap().clone();
        outbox.send(Ok(OperatorMessage { message: Some(Down::Supply(supply)) })).await.unwrap();
        let spec = desk.spec.lock().unwrap().clone();
        if spec.term > 0 {
            outbox.send(Ok(spec_message(&spec))).await.unwrap();
        }
        *desk.outbox.lock().unwrap() = Some(outbox);
        tokio::spawn(async move {
            while let Ok(Some(AgentMessage { message: Some(message) })) = upstream.message().await {
                match message {
                    Up::Report(report) => {
                        let status = serde_json::from_str(&report.status_json).unwrap();
                        desk.report.send_replace(Some(status));
                    }
                    Up::Log(chunk) => desk.logs.send(chunk).await.unwrap(),
                    Up::Models(reply) => desk.models.send(reply).await.unwrap(),
                    Up::Hello(_) => panic!("Hello came twice"),
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(downstream))))
    }

    async fn certify(&self, request: Request<CertifyRequest>) -> Result<Response<Certificate>, Status> {
        let Identity::Host(host) = peer_identity(&request).unwrap() else { panic!("not a host") };
        let from = request.remote_addr().unwrap();
        self.0.asked.lock().unwrap().push(from);
        if self.0.wants_another_connection.load(Ordering::SeqCst)
            && *self.0.session.lock().unwrap() == Some(from)
        {
            return Err(Status::unavailable("not over this connection"));
        }
        let request = request.into_inner();
        self.0.certified.lock().unwrap().push((request.role(), request.name.clone()));
        let identity = match request.role() {
            Role::Worker => Identity::worker(host.as_str(), &request.name).unwrap(),
            Role::Gateway => Identity::gateway(&request.name).unwrap(),
            Role::Host => Identity::host(&request.name).unwrap(),
            _ => return Err(Status::permission_denied("no")),
        };
        let issued = self.0.signing().sign(
            &request.csr_pem,
            &identity,
            &request.addresses,
            SystemTime::now(),
            HOST_LIFETIME,
        );
        Ok(certificate(issued.unwrap()))
    }

    async fn confirm_trust(
        &self,
        request: Request<TrustConfirmation>,
    ) -> Result<Response<TrustConfirmed>, Status> {
        let trusted = self.0.another.lock().unwrap().as_ref().map(|(_, trust)| trust.ca_pem.clone());
        let shown = peer_certificate(&request, &trusted.unwrap()).unwrap();
        let said = (request.into_inner().authorities, shown.issuer.unwrap().to_string());
        self.0.confirmed.send_modify(|all| all.push(said));
        Ok(Response::new(TrustConfirmed {}))
    }
}

fn spec_message(spec: &InferenceHostSpec) -> OperatorMessage {
    let spec_json = serde_json::to_string(spec).unwrap();
    OperatorMessage { message: Some(Down::Spec(HostSpec { spec_json, ..HostSpec::default() })) }
}

/// An operator, a model, and the folder of one host.
pub(crate) struct Cluster {
    pub(crate) desk: Arc<Desk>,
    pub(crate) reports: watch::Receiver<Option<InferenceHostStatus>>,
    pub(crate) logs: mpsc::Receiver<LogChunk>,
    pub(crate) models: mpsc::Receiver<ModelsReply>,
    address: SocketAddr,
    operator_credentials: Credentials,
    server: Option<JoinHandle<()>>,
    agent: Option<Child>,
    token: String,
    pub(crate) dir: TempDir,
}

impl Cluster {
    pub(crate) async fn start() -> Self {
        install_tls_provider();
        let authority = CertificateAuthority::create(SystemTime::now()).unwrap();
        Self::of(Arc::new(authority), "host-a").await
    }

    /// The next start of the agent brings a token that nobody has spent.
    pub(crate) fn new_token(&mut self) {
        self.token = JoinToken::generate(self.desk.authority.fingerprint()).to_string();
    }

    /// Another host of the same cluster, with an operator of its own and the same model.
    pub(crate) async fn beside(&self, host: &str) -> Self {
        Self::of(self.desk.authority.clone(), host).await
    }

    async fn of(authority: Arc<CertificateAuthority>, host: &str) -> Self {
        let operator_credentials =
            authority.credentials(&Identity::Operator, &[], SystemTime::now(), OPERATOR_LIFETIME).unwrap();
        let (report, reports) = watch::channel(None);
        let (logs, log_chunks) = mpsc::channel(256);
        let (models, replies) = mpsc::channel(1024);
        let desk = Arc::new(Desk {
            authority,
            host: host.to_owned(),
            outbox: Mutex::new(None),
            spec: Mutex::default(),
            report,
            hellos: watch::channel(Vec::new()).0,
            logs,
            supply: Mutex::default(),
            models,
            joined: Mutex::new(0),
            certified: Mutex::default(),
            session: Mutex::default(),
            asked: Mutex::default(),
            wants_another_connection: AtomicBool::new(false),
            another: Mutex::default(),
            confirmed: watch::channel(Vec::new()).0,
        });
        let dir = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let token = JoinToken::generate(desk.authority.fingerprint()).to_string();
        let mut cluster = Self {
            token,
            desk,
            reports,
            logs: log_chunks,
            models: replies,
            address,
            operator_credentials,
            server: None,
            agent: None,
            dir,
        };
        cluster.serve(listener);
        fs::create_dir(cluster.dir.path().join("models")).unwrap();
        fs::write(cluster.dir.path().join("models/m-Q8_0.gguf"), MODEL).unwrap();
        cluster.worker_script("");
        cluster
    }

    fn serve(&mut self, listener: TcpListener) {
        let server = Server::builder()
            .tls_config(self.operator_credentials.server_tls(ClientCertificates::Optional))
            .unwrap()
            .add_service(EnrollmentServer::new(Shared(self.desk.clone())))
            .add_service(AgentsServer::new(Shared(self.desk.clone())))
            .serve_with_incoming(TcpListenerStream::new(listener));
        self.server = Some(tokio::spawn(async move { server.await.unwrap() }));
    }

    /// The operator is gone; its address stays free for its return.
    pub(crate) async fn kill_operator(&mut self) {
        let server = self.server.take().unwrap();
        server.abort();
        drop(server.await);
        *self.desk.outbox.lock().unwrap() = None;
    }

    /// Requests for certificates so far: whether each came over the session's connection.
    pub(crate) fn asked_in_session(&self) -> Vec<bool> {
        let session = self.desk.session.lock().unwrap().unwrap();
        self.desk.asked.lock().unwrap().iter().map(|from| *from == session).collect()
    }

    pub(crate) fn refuse_certificates_in_session(&self) {
        self.desk.wants_another_connection.store(true, Ordering::SeqCst);
    }

    pub(crate) async fn restart_operator(&mut self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        self.serve(listener);
    }

    /// Another authority signs from now on, beside the first one; says which.
    pub(crate) async fn another_authority_signs(&mut self) -> String {
        let new = Arc::new(CertificateAuthority::create(SystemTime::now()).unwrap());
        let issuer = new.fingerprint().to_string();
        let ca_pem = format!("{}{}", self.desk.authority.certificate_pem(), new.certificate_pem());
        let trust = Trust { ca_pem: ca_pem.clone(), revoked: Vec::new(), issuer: issuer.clone() };
        self.kill_operator().await;
        self.operator_credentials.ca_pem = ca_pem;
        *self.desk.another.lock().unwrap() = Some((new, trust));
        self.restart_operator().await;
        issuer
    }

    /// Waits until a host shows a certificate of this authority; what it says then that it trusts.
    pub(crate) async fn confirmed_by(&self, issuer: &str) -> Vec<String> {
        let mut confirmed = self.desk.confirmed.subscribe();
        let shown = confirmed.wait_for(|all| all.iter().any(|(_, shown)| shown == issuer));
        let all = timeout(LIMIT, shown).await.unwrap().unwrap().clone();
        all.into_iter().find(|(_, shown)| shown == issuer).unwrap().0
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.dir.path().join(&self.desk.host)
    }

    /// The program that the agent starts as worker: `before` in shell, then this test executable.
    pub(crate) fn worker_script(&self, before: &str) {
        let own = std::env::current_exe().unwrap();
        let script = format!(
            "#!/bin/sh\n{before}\nSTUB_COMMAND=\"$1\" STUB_SPEC=\"$3\" exec {} --exact worker_program --ignored --nocapture\n",
            own.display()
        );
        executable(&self.worker(), &script);
    }

    fn worker(&self) -> PathBuf {
        self.dir.path().join("worker")
    }

    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tandem-agent"));
        command.args(["run", "--name", &self.desk.host, "--address", "127.0.0.1", "--label", "zone=b"]);
        command.args(["--operator", &format!("https://{}", self.address)]);
        command.arg("--data-dir").arg(self.data()).arg("--worker-program").arg(self.worker());
        // The disk of whoever runs tests may be fuller than a host's should be.
        command.env("TANDEM_JOIN_TOKEN", &self.token).env("TANDEM_WEIGHTS_SPARE", "0");
        command.stdin(Stdio::null());
        command
    }

    pub(crate) fn start_agent(&mut self) {
        self.start_agent_with(&[]);
    }

    pub(crate) fn start_agent_with(&mut self, more: &[&str]) {
        let log =
            fs::File::options().create(true).append(true).open(self.dir.path().join("agent.log")).unwrap();
        let mut command = self.command();
        command.args(more).stderr(log);
        self.agent = Some(command.spawn().unwrap());
    }

    /// SIGKILL.
    pub(crate) async fn kill_agent(&mut self) {
        self.agent.take().unwrap().kill().await.unwrap();
    }

    pub(crate) async fn terminate_agent(&mut self) {
        let mut agent = self.agent.take().unwrap();
        kill(Pid::from_raw(agent.id().unwrap().cast_signed()), Signal::SIGTERM).unwrap();
        assert!(timeout(LIMIT, agent.wait()).await.unwrap().unwrap().success());
    }

    /// Tells the host what to run; whoever connects later is told the same.
    pub(crate) async fn order(&self, term: u64, generation: u64, workloads: Vec<WorkloadSpec>) {
        self.obey(InferenceHostSpec { term, generation, workloads, ..InferenceHostSpec::default() }).await;
    }

    /// As [`Cluster::order`], with all of a spec.
    pub(crate) async fn obey(&self, spec: InferenceHostSpec) {
        *self.desk.spec.lock().unwrap() = spec.clone();
        self.say(spec_message(&spec)).await;
    }

    /// Hands over what fetching needs; whoever connects later gets the same.
    pub(crate) async fn supply(&self, supply: Supply) {
        *self.desk.supply.lock().unwrap() = supply.clone();
        self.say(OperatorMessage { message: Some(Down::Supply(supply)) }).await;
    }

    /// Asks about models, and waits for the last line of the answer.
    pub(crate) async fn ask(&mut self, ask: Ask) -> Vec<Said> {
        let request = ModelsRequest { request: "m".to_owned(), hosts: vec![], ask: Some(ask) };
        self.say(OperatorMessage { message: Some(Down::Models(request)) }).await;
        let mut all = Vec::new();
        loop {
            let reply = timeout(LIMIT, self.models.recv()).await.unwrap().unwrap();
            if reply.request != "m" {
                continue;
            }
            all.extend(reply.said);
            if reply.end {
                return all;
            }
        }
    }

    pub(crate) async fn say(&self, message: OperatorMessage) {
        let outbox = self.desk.outbox.lock().unwrap().clone();
        if let Some(outbox) = outbox {
            outbox.send(Ok(message)).await.unwrap();
        }
    }

    /// A workload of id `id` with a file of its own, which is written to the source.
    pub(crate) fn workload_of(&self, id: &str, name: &str, content: &[u8]) -> WorkloadSpec {
        fs::write(self.dir.path().join("models").join(name), content).unwrap();
        let sha256 = hex::encode(Sha256::digest(content));
        let file = ResolvedFile { name: name.to_owned(), sha256, bytes: content.len() as u64 };
        WorkloadSpec { id: id.to_owned(), files: vec![file], ..self.workload(1) }
    }

    pub(crate) fn workload(&self, epoch: u64) -> WorkloadSpec {
        WorkloadSpec {
            id: "w".to_owned(),
            epoch,
            mode: tandem_crds::WorkloadMode::Serve,
            deployment: DeploymentRef { namespace: "llm".to_owned(), name: "tiny".to_owned() },
            model: "tiny".to_owned(),
            source: format!("file://{}", self.dir.path().join("models").display()),
            files: vec![ResolvedFile {
                name: "m-Q8_0.gguf".to_owned(),
                sha256: hex::encode(Sha256::digest(MODEL)),
                bytes: MODEL.len() as u64,
            }],
            quant: "Q8_0".to_owned(),
            context_tokens: 512,
            pool_tokens: 512,
            kv_cache: tandem_crds::KvCache::F16,
            sampling: None,
            memory_bytes: 1 << 20,
        }
    }

    /// Waits for a report that is so.
    pub(crate) async fn until(
        &self,
        what: &str,
        so: impl Fn(&InferenceHostStatus) -> bool,
    ) -> InferenceHostStatus {
        let mut reports = self.reports.clone();
        let seen = timeout(LIMIT, reports.wait_for(|report| report.as_ref().is_some_and(&so))).await;
        match seen.map(|report| report.unwrap().clone().unwrap()) {
            Ok(report) => report,
            Err(_) => panic!("not {what}: {:#?}\n{}", *self.reports.borrow(), self.agent_log()),
        }
    }

    /// Waits for a report in which the workload `w` is so.
    pub(crate) async fn until_workload(
        &self,
        what: &str,
        so: impl Fn(&WorkloadStatus) -> bool,
    ) -> WorkloadStatus {
        let report = self.until(what, |report| the_workload(report).is_some_and(&so)).await;
        the_workload(&report).unwrap().clone()
    }

    /// Forgets what was reported, so that only what comes from now on counts.
    pub(crate) fn forget_reports(&self) {
        self.desk.report.send_replace(None);
    }

    pub(crate) async fn hellos(&self, count: usize) -> Vec<u64> {
        let mut hellos = self.desk.hellos.subscribe();
        timeout(LIMIT, hellos.wait_for(|hellos| hellos.len() >= count)).await.unwrap().unwrap().clone()
    }

    pub(crate) fn joins(&self) -> u32 {
        *self.desk.joined.lock().unwrap()
    }

    pub(crate) fn certified(&self) -> Vec<(Role, String)> {
        self.desk.certified.lock().unwrap().clone()
    }

    pub(crate) fn agent_log(&self) -> String {
        fs::read_to_string(self.dir.path().join("agent.log")).unwrap_or_default()
    }

    pub(crate) fn worker_pid(&self) -> Pid {
        let endpoint = fs::read(self.data().join("workloads/w/endpoint.json")).unwrap();
        let endpoint: tandem_worker_api::WorkerEndpoint = serde_json::from_slice(&endpoint).unwrap();
        Pid::from_raw(endpoint.pid.cast_signed())
    }

    pub(crate) fn runner_pid(&self) -> Pid {
        let text = fs::read_to_string(self.data().join("runner/runner.pid")).unwrap();
        Pid::from_raw(text.trim().parse().unwrap())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(agent) = &mut self.agent {
            drop(agent.start_kill());
        }
        // The runner would outlive the test; its workers end with it.
        let pid = fs::read_to_string(self.data().join("runner/runner.pid")).unwrap_or_default();
        if let Ok(pid) = pid.trim().parse() {
            kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap_or_default();
        }
    }
}

/// What the model's file holds: the worker of these tests does not read it.
pub(crate) const MODEL: &[u8] = b"not really a model";

pub(crate) fn the_workload(report: &InferenceHostStatus) -> Option<&WorkloadStatus> {
    report.workloads.iter().find(|workload| workload.id == "w")
}

pub(crate) fn executable(path: &Path, script: &str) {
    fs::write(path, script).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

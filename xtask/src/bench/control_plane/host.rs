//! A host without a machine: it joins and reports as an agent does, over the same mutual TLS, and says of every workload that it
//! is ready as soon as it is told of it.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use tandem_control_api::agents_client::AgentsClient;
use tandem_control_api::enrollment_client::EnrollmentClient;
use tandem_control_api::operator_message::Message as Down;
use tandem_control_api::{
    AgentHello, AgentMessage, HostReport, JoinRequest, OperatorMessage, Protocol, Role, agent_message,
};
use tandem_pki::{Credentials, Identity, KeyAndRequest};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{interval_at, sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint};

/// What a host has for workloads: room for many of the small model's copies.
const MEMORY: u64 = 4 << 30;
/// Bound on each step of joining and of connecting.
const STEP: Duration = Duration::from_secs(60);
/// Between a session's end and the next one.
const AGAIN: Duration = Duration::from_secs(1);
/// Hosts that join from one address of loopback: as many may at once.
const HOSTS_OF_AN_ADDRESS: usize = 25;
/// Parts of the report interval over which hosts are spread.
const PHASES: usize = 100;
/// Messages that may wait to go up.
const OUTBOX: usize = 16;

/// A spec that has come to a host.
pub(super) struct Told {
    pub(super) host: usize,
    pub(super) at: Instant,
    pub(super) term: u64,
    /// Names of the deployments whose workloads it holds.
    pub(super) deployments: Vec<String>,
}

/// What all hosts have in common.
#[derive(Clone)]
pub(super) struct Site {
    pub(super) url: Arc<str>,
    pub(super) told: mpsc::Sender<Told>,
    /// Counts sessions that were welcomed.
    pub(super) welcomed: watch::Sender<usize>,
    /// Counts sessions that ended without having been asked to.
    pub(super) lost: watch::Sender<usize>,
}

pub(super) struct Host {
    index: usize,
    credentials: Credentials,
    /// What it was told last: what a host keeps on its disk.
    spec: watch::Sender<Value>,
    session: Option<JoinHandle<()>>,
}

/// Its name, as the operator knows it.
pub(super) fn name(index: usize) -> String {
    format!("host-{index:04}")
}

impl Host {
    /// Joins by a token from an address of its own, as one address may not join a thousand.
    pub(super) async fn join(site: &Site, ca_pem: &str, index: usize, token: String) -> Result<Self> {
        let own = KeyAndRequest::generate()?;
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(ca_pem))
            .domain_name(Identity::Operator.server_name());
        let channel = Endpoint::from_shared(site.url.to_string())?
            .tls_config(tls)?
            .local_address(Some(address(index)))
            .connect_timeout(STEP)
            .timeout(STEP)
            .connect()
            .await
            .context("the operator can't be reached")?;
        let request = JoinRequest {
            token,
            role: Role::Host.into(),
            name: name(index),
            csr_pem: own.csr_pem,
            addresses: vec!["127.0.0.1".to_owned()],
            service_account_token: String::new(),
        };
        let answer = EnrollmentClient::new(channel).join(request).await.context("a host may not join")?;
        let answer = answer.into_inner();
        let credentials = Credentials::new(answer.certificate_pem, own.key_pem, answer.ca_pem);
        Ok(Self { index, credentials, spec: watch::Sender::new(Value::Null), session: None })
    }

    /// Opens its session, and opens another one whenever it ends.
    pub(super) fn start(&mut self, site: &Site) {
        let (site, index) = (site.clone(), self.index);
        let (credentials, spec) = (self.credentials.clone(), self.spec.clone());
        self.session = Some(tokio::spawn(async move {
            loop {
                drop(converse(&site, index, &credentials, &spec).await);
                site.lost.send_modify(|lost| *lost += 1);
                sleep(AGAIN).await;
            }
        }));
    }

    /// Ends its session: the operator hears nothing more.
    pub(super) async fn kill(&mut self) {
        if let Some(session) = self.session.take() {
            session.abort();
            // Cancelled, as asked for.
            drop(session.await);
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some(session) = &self.session {
            session.abort();
        }
    }
}

/// One of the addresses of loopback, each for a few hosts.
fn address(index: usize) -> IpAddr {
    let nth = index / HOSTS_OF_AN_ADDRESS;
    let byte = |n: usize| u8::try_from(n % 250).unwrap_or(0) + 1;
    IpAddr::from([127, 1, byte(nth / 250), byte(nth)])
}

/// One session, from Hello on; its end is its error.
async fn converse(
    site: &Site,
    index: usize,
    credentials: &Credentials,
    spec: &watch::Sender<Value>,
) -> Result<()> {
    let term = term_of(&spec.borrow());
    let (up, mut down) = open(site, credentials, term).await?;
    let Some(Down::Welcome(welcome)) = next(&mut down).await? else { bail!("the first word is not Welcome") };
    site.welcomed.send_modify(|welcomed| *welcomed += 1);
    let every = Duration::from_millis(u64::from(welcome.report_interval_ms).max(1));
    // Spread over the interval: a thousand hosts were not started by one hand.
    let phase = every.mul_f64((index % PHASES) as f64 / PHASES as f64);
    let mut beat = interval_at(tokio::time::Instant::now() + phase, every);
    loop {
        tokio::select! {
            _ = beat.tick() => {
                let report = HostReport { status_json: report(&spec.borrow()).to_string() };
                up.send(AgentMessage { message: Some(agent_message::Message::Report(report)) }).await?;
            }
            message = next(&mut down) => {
                if let Some(Down::Spec(newest)) = message? {
                    let newest: Value = serde_json::from_str(&newest.spec_json)?;
                    let told = told(index, &newest);
                    spec.send_replace(newest);
                    beat.reset_immediately();
                    site.told.send(told).await?;
                }
            }
        }
    }
}

type Up = mpsc::Sender<AgentMessage>;

async fn open(site: &Site, credentials: &Credentials, term: u64) -> Result<(Up, Streaming<OperatorMessage>)> {
    let (up, stream) = mpsc::channel(OUTBOX);
    let hello = AgentHello { protocol: Some(Protocol::own(&[])), highest_term: term };
    up.send(AgentMessage { message: Some(agent_message::Message::Hello(hello)) }).await?;
    let channel = Endpoint::from_shared(site.url.to_string())?
        .tls_config(credentials.client_tls(&Identity::Operator))?
        .connect_timeout(STEP)
        .connect_lazy();
    let answer = timeout(STEP, AgentsClient::new(channel).session(ReceiverStream::new(stream))).await??;
    Ok((up, answer.into_inner()))
}

/// The next word; none is one of a kind that this program doesn't know.
async fn next(down: &mut Streaming<OperatorMessage>) -> Result<Option<Down>> {
    let message = down.message().await?.context("the session ended")?;
    Ok(message.message)
}

fn term_of(spec: &Value) -> u64 {
    spec["term"].as_u64().unwrap_or(0)
}

fn workloads(spec: &Value) -> impl Iterator<Item = &Value> {
    spec["workloads"].as_array().into_iter().flatten()
}

fn told(host: usize, spec: &Value) -> Told {
    let names = workloads(spec).filter_map(|workload| workload["deployment"]["name"].as_str());
    Told { host, at: Instant::now(), term: term_of(spec), deployments: names.map(str::to_owned).collect() }
}

/// A report of a host that does what its spec says, at once.
fn report(spec: &Value) -> Value {
    let running = workloads(spec).map(|workload| {
        let id = workload["id"].as_str().unwrap_or_default();
        json!({
            "id": id,
            "epoch": workload["epoch"],
            "state": "Ready",
            "endpoint": "127.0.0.1:9",
            "serverName": format!("{id}.worker"),
            "numericsId": "bench",
            "restarts": 0,
        })
    });
    let of_workloads = workloads(spec).filter_map(|workload| workload["files"].as_array()).flatten();
    let of_workloads = of_workloads.filter_map(|file| file["sha256"].as_str());
    let kept = spec["keepFiles"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let mut files: Vec<&str> = of_workloads.chain(kept).collect();
    files.sort_unstable();
    files.dedup();
    json!({
        "agentVersion": env!("CARGO_PKG_VERSION"),
        "address": "127.0.0.1",
        "devices": [{"id": "cpu", "kind": "CPU", "name": "bench", "memoryBytes": MEMORY, "availableBytes": MEMORY}],
        "workloads": running.collect::<Vec<_>>(),
        "weights": {"port": 9, "usedBytes": 0, "files": files},
        "observedGeneration": spec["generation"],
        "observedTerm": spec["term"],
    })
}

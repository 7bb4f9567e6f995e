//! The operator under measurement: the real program over a store of its own, and what the system and its own figures say of it.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use serde::Serialize;
use serde_json::Value;
use tandem_control_api::fleet_client::FleetClient;
use tandem_control_api::objects_client::ObjectsClient;
use tandem_control_api::{ListRequest, StatusRequest};
use tandem_e2e::{Process, Programs};
use tandem_pki::{Credentials, Identity};
use tandem_servers::{ControlPlane, Etcd, User, free_port};
use tempfile::TempDir;
use tokio::time::{sleep, timeout};
use tonic::transport::{Channel, Endpoint};

/// The unit of processor time in `/proc`, which Linux shows to every program as this, whatever its own is.
const TICKS_PER_SECOND: f64 = 100.0;
/// Bound on a start.
const STARTS: Duration = Duration::from_secs(120);
/// Who the operator is to the API server.
const USER: User<'static> = User { name: "bench-operator", groups: &["system:masters"] };

/// Where the truth lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(super) enum Home {
    /// A file
    Embedded,
    /// Three members on this machine, which sync nothing to its disk
    Etcd,
    /// A real API server and its etcd on this machine
    Kubernetes,
}

/// What one moment shows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    pub(super) cpu_seconds: f64,
    pub(super) rss_bytes: u64,
    /// Everything but the lease.
    pub(super) writes: u64,
    pub(super) passes: f64,
    pub(super) pass_seconds: f64,
    pub(super) plan_seconds: f64,
}

/// The servers that the truth lives in.
enum Store {
    File,
    Etcd(Etcd),
    Kubernetes(Box<ControlPlane>),
}

impl Store {
    async fn start(home: Home) -> Result<Self> {
        Ok(match home {
            Home::Embedded => Self::File,
            Home::Etcd => Self::Etcd(Etcd::start(3)?),
            Home::Kubernetes => {
                let plane = ControlPlane::start().await?;
                for namespace in ["bench", "tandem-system"] {
                    plane.kubectl(&["create", "namespace", namespace])?;
                }
                Self::Kubernetes(Box::new(plane))
            }
        })
    }

    /// How an operator is told of it.
    fn tell(&self, operator: &mut Command) -> Result<()> {
        match self {
            Self::File => {}
            Self::Etcd(etcd) => {
                operator.args(["--store", "etcd", "--etcd-endpoint", &etcd.endpoints().join(",")]);
            }
            Self::Kubernetes(plane) => {
                operator.args(["--store", "kubernetes", "--kubeconfig"]).arg(plane.kubeconfig(USER)?);
            }
        }
        Ok(())
    }
}

// Fields are dropped in order: the operator ends before its store.
pub(super) struct Operator {
    process: Process,
    pub(super) url: String,
    pub(super) admin: Credentials,
    port: u16,
    metrics: u16,
    store: Store,
    programs: Programs,
    dir: TempDir,
}

impl Operator {
    pub(super) async fn start(programs: Programs, home: Home) -> Result<Self> {
        let dir =
            tempfile::Builder::new().prefix("tandem-bench-").tempdir().context("no temporary folder")?;
        let store = Store::start(home).await?;
        let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let (port, metrics) = (free_port(loopback)?, free_port(loopback)?);
        let process = spawn(&programs, &dir, &store, [port, metrics])?;
        let url = format!("https://127.0.0.1:{port}");
        let admin = answers(&url, dir.path().join("operator/admin"), &process).await?;
        Ok(Self { process, url, admin, port, metrics, store, programs, dir })
    }

    /// SIGKILL, and the same again on the same port and store.
    pub(super) async fn restart(&mut self) -> Result<()> {
        self.process.kill()?;
        self.process = spawn(&self.programs, &self.dir, &self.store, [self.port, self.metrics])?;
        answers(&self.url, self.dir.path().join("operator/admin"), &self.process).await?;
        Ok(())
    }

    pub(super) fn objects(&self) -> Result<ObjectsClient<Channel>> {
        let objects = ObjectsClient::new(channel(&self.url, &self.admin)?);
        Ok(objects.max_decoding_message_size(usize::MAX))
    }

    pub(super) fn fleet(&self) -> Result<FleetClient<Channel>> {
        Ok(FleetClient::new(channel(&self.url, &self.admin)?))
    }

    /// The term that it leads in.
    pub(super) async fn term(&self) -> Result<u64> {
        Ok(self.fleet()?.status(StatusRequest {}).await?.into_inner().term)
    }

    /// The end of its log.
    pub(super) fn last_words(&self) -> String {
        self.process.last_words(20)
    }

    pub(super) async fn moment(&self) -> Result<Moment> {
        let proc = |name: &str| {
            fs::read_to_string(format!("/proc/{}/{name}", self.process.id())).context("the operator is gone")
        };
        let stat = proc("stat")?;
        // After the program's name, which may hold anything: state is the third field, utime and stime the 14th and 15th.
        let fields: Vec<&str> =
            stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
        let ticks = |nth: usize| fields.get(nth - 3).and_then(|field| field.parse::<f64>().ok());
        let ticks = ticks(14).zip(ticks(15)).context("the operator's processor time can't be read")?;
        let status = proc("status")?;
        let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next());
        let rss: u64 = rss.and_then(|kib| kib.parse().ok()).context("the operator's memory can't be read")?;
        let figures = self.figures()?;
        let figure = |name: &str| {
            let line = figures.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.and_then(|value| value.parse().ok()).with_context(|| format!("there is no figure {name}"))
        };
        Ok(Moment {
            cpu_seconds: (ticks.0 + ticks.1) / TICKS_PER_SECOND,
            rss_bytes: rss * 1024,
            writes: self.writes().await?,
            passes: figure("tandem_operator_reconcile_time_seconds_count")?,
            pass_seconds: figure("tandem_operator_reconcile_time_seconds_sum")?,
            plan_seconds: figure("tandem_operator_plan_time_seconds_sum")?,
        })
    }

    /// Writes so far but those to the lease.
    async fn writes(&self) -> Result<u64> {
        match &self.store {
            // The file's own count of changes of objects.
            Store::File => {
                let nothing = ListRequest {
                    kind: "InferenceDeployment".to_owned(),
                    namespace: "nobody".to_owned(),
                    name: String::new(),
                };
                let version = self.objects()?.list(nothing).await?.into_inner().resource_version;
                version.parse().with_context(|| format!("{version} is no count of changes"))
            }
            // A revision is a write, and a key's version is how many of them were its own.
            Store::Etcd(etcd) => {
                let leases = etcd.ctl(&["get", "--prefix", "/tandem/leases/", "--write-out=json"])?;
                let leases: Value = serde_json::from_str(&leases).context("etcdctl prints no JSON")?;
                let of_leases = leases["kvs"].as_array().into_iter().flatten();
                let of_leases: u64 = of_leases.filter_map(|lease| lease["version"].as_u64()).sum();
                let all = leases["header"]["revision"].as_u64().context("etcd names no revision")?;
                Ok(all - of_leases)
            }
            // As the API server recorded them.
            Store::Kubernetes(plane) => {
                let ours = |event: &tandem_servers::AuditEvent| {
                    let lease = event.object_ref.as_ref().is_some_and(|object| object.resource == "leases");
                    event.user.username == USER.name && event.is_write() && !lease
                };
                Ok(plane.audit()?.iter().filter(|event| ours(event)).count() as u64)
            }
        }
    }

    fn figures(&self) -> Result<String> {
        let mut stream =
            TcpStream::connect((Ipv4Addr::LOCALHOST, self.metrics)).context("no figures are served")?;
        stream.write_all(b"GET /metrics HTTP/1.0\r\nhost: localhost\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text).context("the figures can't be read")?;
        Ok(text)
    }
}

fn spawn(programs: &Programs, dir: &TempDir, store: &Store, [port, metrics]: [u16; 2]) -> Result<Process> {
    let mut command = Command::new(programs.path("tandem-operator"));
    command.arg("run").arg("--data-dir").arg(dir.path().join("operator"));
    command.args(["--listen", &format!("127.0.0.1:{port}")]);
    command.args(["--metrics-listen", &format!("127.0.0.1:{metrics}")]);
    store.tell(&mut command)?;
    Process::start("operator", command, &dir.path().join("operator.log"))
}

async fn answers(url: &str, admin: PathBuf, process: &Process) -> Result<Credentials> {
    let asked = timeout(STARTS, async {
        loop {
            if let Ok(credentials) = Credentials::load(&admin) {
                let status = FleetClient::new(channel(url, &credentials)?).status(StatusRequest {}).await;
                if status.is_ok_and(|status| status.into_inner().leading) {
                    return anyhow::Ok(credentials);
                }
            }
            sleep(Duration::from_millis(50)).await;
        }
    });
    asked.await.with_context(|| format!("the operator does not answer:\n{}", process.last_words(20)))?
}

fn channel(url: &str, credentials: &Credentials) -> Result<Channel> {
    let endpoint = Endpoint::from_shared(url.to_owned())?;
    Ok(endpoint.tls_config(credentials.client_tls(&Identity::Operator))?.connect_lazy())
}

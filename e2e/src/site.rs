//! Operators, hosts and gateways as processes, joined by tokens, as a person would do it.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use sha2::{Digest, Sha256};
use tandem_servers::free_port;
use tempfile::TempDir;

use crate::{Cli, Client, Completion, Process, Programs, attempts};

/// Where everything of a site listens.
const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// How large a site is.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Hosts, named host-a, host-b, …
    pub hosts: usize,
    /// Gateways, named gateway-1, …
    pub gateways: usize,
}

/// One host: an agent with its own identity, data and address, and what it started.
pub struct Host {
    /// Its name.
    pub name: String,
    /// Its agent's data folder.
    pub data: PathBuf,
    agent: Option<Process>,
    gateway_port: Option<u16>,
    /// Further arguments of its agent, whenever that is started.
    arguments: Vec<String>,
}

impl Host {
    /// Process ids of everything that runs on it: agent, runner, workers, gateway.
    #[must_use]
    pub fn processes(&self) -> Vec<Pid> {
        let agent = self.agent.iter().map(Process::id);
        agent.chain(self.runner()).chain(self.workers()).chain(self.gateway()).collect()
    }

    /// Its gateway, when it runs one: a child of its runner.
    #[must_use]
    pub fn gateway(&self) -> Option<Pid> {
        let (_, runner) = (self.gateway_port?, self.runner()?);
        let children =
            Command::new("pgrep").args(["-P", &runner.to_string(), "-f", "tandem-gateway"]).output().ok()?;
        String::from_utf8(children.stdout).ok()?.trim().parse().ok().map(Pid::from_raw)
    }

    /// A client of its gateway.
    ///
    /// # Errors
    /// When it has none.
    pub fn client(&self) -> Result<Client> {
        Client::new(&format!("http://127.0.0.1:{}", self.gateway_port.context("the host has no gateway")?))
    }

    /// Its runner, when there is one.
    #[must_use]
    pub fn runner(&self) -> Option<Pid> {
        let text = fs::read_to_string(self.data.join("runner/runner.pid")).ok()?;
        text.trim().parse().ok().map(Pid::from_raw).filter(|pid| kill(*pid, None).is_ok())
    }

    /// Its workers.
    #[must_use]
    pub fn workers(&self) -> Vec<Pid> {
        self.endpoints().into_iter().map(|(pid, _)| pid).collect()
    }

    /// Where its workers listen: `host:port`, as each has written it.
    #[must_use]
    pub fn addresses(&self) -> Vec<String> {
        self.endpoints().into_iter().map(|(_, address)| address).collect()
    }

    /// What workers that run have written about themselves.
    fn endpoints(&self) -> Vec<(Pid, String)> {
        let workloads = fs::read_dir(self.data.join("workloads")).into_iter().flatten().flatten();
        workloads
            .filter_map(|entry| fs::read(entry.path().join("endpoint.json")).ok())
            .filter_map(|bytes| serde_json::from_slice::<Value>(&bytes).ok())
            .filter_map(|endpoint| {
                let pid = Pid::from_raw(endpoint["pid"].as_i64()?.try_into().ok()?);
                Some((pid, endpoint["address"].as_str()?.to_owned()))
            })
            .filter(|(pid, _)| kill(*pid, None).is_ok())
            .collect()
    }

    /// Ends agent, runner and workers with SIGKILL at once, as a power cut would.
    ///
    /// # Errors
    /// When the agent can't be reaped.
    pub fn kill(&mut self) -> Result<()> {
        for pid in self.processes() {
            // One that died in between is dead, which is the aim.
            kill(pid, Signal::SIGKILL).unwrap_or_default();
        }
        match self.agent.take() {
            Some(mut agent) => agent.kill(),
            None => Ok(()),
        }
    }

    /// Ends the agent alone with SIGKILL.
    ///
    /// # Errors
    /// When it is not running.
    pub fn kill_agent(&mut self) -> Result<()> {
        self.agent.take().context("the agent is not running")?.kill()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        drop(self.kill());
    }
}

/// A whole Tandem. Fields are dropped in order: hosts and gateways before the folder they live in.
pub struct Site {
    /// The hosts.
    pub hosts: Vec<Host>,
    /// The gateways, in order of their names.
    pub gateways: Vec<Process>,
    operator: Option<Process>,
    operator_port: u16,
    operator_arguments: Vec<String>,
    gateway_ports: Vec<u16>,
    programs: Programs,
    dir: TempDir,
}

impl Site {
    /// Starts an operator, then joins hosts and gateways by token, and waits until every host is ready.
    ///
    /// # Errors
    /// When a program doesn't start, with the end of its log.
    pub fn start(programs: Programs, layout: Layout) -> Result<Self> {
        Self::start_with(programs, layout, &[])
    }

    /// As [`Site::start`], with further arguments for the operator, whenever it is started.
    ///
    /// # Errors
    /// As [`Site::start`].
    pub fn start_with(programs: Programs, layout: Layout, operator: &[&str]) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("tandem-").tempdir().context("no temporary folder")?;
        let mut site = Self {
            hosts: Vec::new(),
            gateways: Vec::new(),
            operator: None,
            operator_port: free_port(LOOPBACK)?,
            operator_arguments: operator.iter().map(|argument| (*argument).to_owned()).collect(),
            gateway_ports: Vec::new(),
            programs,
            dir,
        };
        site.start_operator()?;
        for index in 0..layout.hosts {
            site.join_host(&format!("host-{}", char::from(b'a' + u8::try_from(index)?)), None, &[])?;
        }
        for index in 1..=layout.gateways {
            site.add_gateway(&format!("gateway-{index}"), &[])?;
        }
        for host in &site.hosts {
            site.tandem(&[
                "wait",
                &format!("infh/{}", host.name),
                "--for",
                "condition=Ready",
                "--timeout",
                "60s",
            ])?;
        }
        Ok(site)
    }

    /// Starts the operator on its port and data folder; again after [`Site::kill_operator`].
    ///
    /// # Errors
    /// When it doesn't answer within 30 s.
    pub fn start_operator(&mut self) -> Result<()> {
        let data = self.dir.path().join("operator");
        let mut command = Command::new(self.programs.path("tandem-operator"));
        command.arg("run").arg("--data-dir").arg(&data);
        command.args(["--listen", &format!("127.0.0.1:{}", self.operator_port)]);
        command.args(&self.operator_arguments);
        let mut operator = Process::start("operator", command, &self.dir.path().join("operator.log"))?;
        let answered = until(Duration::from_secs(30), || {
            ensure!(operator.is_running(), "the operator ended:\n{}", operator.last_words(20));
            Ok(data.join("admin/tandem.yaml").is_file() && self.tandem(&["status"]).is_ok())
        });
        answered.with_context(|| format!("the operator doesn't answer:\n{}", operator.last_words(20)))?;
        self.operator = Some(operator);
        Ok(())
    }

    /// SIGKILL for the operator.
    ///
    /// # Errors
    /// When it is not running.
    pub fn kill_operator(&mut self) -> Result<()> {
        self.operator.take().context("the operator is not running")?.kill()
    }

    /// Joins a host whose agent runs a gateway, too.
    ///
    /// # Errors
    /// When the agent can't be started.
    pub fn add_host_with_gateway(&mut self, name: &str) -> Result<()> {
        let port = free_port(LOOPBACK)?;
        self.join_host(name, Some(port), &[])
    }

    /// Joins a host whose agent gets further arguments, also when it is started again.
    ///
    /// # Errors
    /// When the agent can't be started.
    pub fn join_host_with(&mut self, name: &str, arguments: &[&str]) -> Result<()> {
        self.join_host(name, None, arguments)
    }

    fn join_host(&mut self, name: &str, gateway_port: Option<u16>, arguments: &[&str]) -> Result<()> {
        let token = self.join_token("host")?;
        let data = self.dir.path().join(name);
        let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let mut host = Host { name: name.to_owned(), data, agent: None, gateway_port, arguments };
        host.agent = Some(self.agent(&host, Some(&token))?);
        self.hosts.push(host);
        Ok(())
    }

    /// Starts the agent of a host again.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn start_agent(&mut self, index: usize) -> Result<()> {
        let agent = self.agent(&self.hosts[index], None)?;
        self.hosts[index].agent = Some(agent);
        Ok(())
    }

    /// The same, with a token: the host is to join anew.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn start_agent_with(&mut self, index: usize, token: &str) -> Result<()> {
        let agent = self.agent(&self.hosts[index], Some(token))?;
        self.hosts[index].agent = Some(agent);
        Ok(())
    }

    fn agent(&self, host: &Host, token: Option<&str>) -> Result<Process> {
        let mut command = Command::new(self.programs.path("tandem-agent"));
        command.arg("run").args(["--operator", &self.operator_url(), "--name", &host.name]);
        command.arg("--data-dir").arg(&host.data).args(["--address", "127.0.0.1"]);
        command.arg("--worker-program").arg(self.programs.path("inference-worker"));
        if let Some(port) = host.gateway_port {
            command.args(["--gateway-listen", &format!("127.0.0.1:{port}")]);
            command.arg("--gateway-program").arg(self.programs.path("tandem-gateway"));
        }
        // The disk of whoever tries this may be fuller than a host's should be; arguments win.
        command.args(&host.arguments).env("TANDEM_WEIGHTS_SPARE", "0");
        if let Some(token) = token {
            command.env("TANDEM_JOIN_TOKEN", token);
        }
        Process::start(&host.name, command, &self.dir.path().join(format!("{}.log", host.name)))
    }

    /// Joins a gateway, with further arguments for it.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn add_gateway(&mut self, name: &str, arguments: &[&str]) -> Result<()> {
        let token = self.join_token("gateway")?;
        let port = free_port(LOOPBACK)?;
        let mut command = Command::new(self.programs.path("tandem-gateway"));
        command.args(["--operator", &self.operator_url(), "--name", name]);
        command.arg("--data-dir").arg(self.dir.path().join(name));
        command.args(["--listen", &format!("127.0.0.1:{port}")]).env("TANDEM_JOIN_TOKEN", token);
        command.args(arguments);
        let gateway = Process::start(name, command, &self.dir.path().join(format!("{name}.log")))?;
        self.gateways.push(gateway);
        self.gateway_ports.push(port);
        Ok(())
    }

    fn join_token(&self, role: &str) -> Result<String> {
        Ok(self.tandem(&["join-token", "--role", role])?.trim().to_owned())
    }

    /// The CLI as the first admin.
    #[must_use]
    pub fn cli(&self) -> Cli {
        Cli::new(self.programs.path("tandem"), self.config())
    }

    /// Runs the CLI once, see [`Cli::run`].
    ///
    /// # Errors
    /// When it ends with another code than 0.
    pub fn tandem(&self, arguments: &[&str]) -> Result<String> {
        self.cli().run(arguments)
    }

    /// The CLI's configuration file that the operator wrote.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.dir.path().join("operator/admin/tandem.yaml")
    }

    /// Applies a manifest.
    ///
    /// # Errors
    /// When the operator refuses it.
    pub fn apply(&self, manifest: &str) -> Result<String> {
        let path = self.dir.path().join("manifest.yaml");
        fs::write(&path, manifest)?;
        self.tandem(&["apply", "-f", path.to_str().context("the temporary folder is no UTF-8")?])
    }

    /// Waits until a condition is True, see [`Cli::wait_for`].
    ///
    /// # Errors
    /// After the timeout, with the state it was in.
    pub fn wait_for(&self, object: &str, condition: &str, timeout: Duration) -> Result<()> {
        self.cli().wait_for(object, condition, timeout)
    }

    /// Follows an object, see [`Cli::watch`].
    ///
    /// # Errors
    /// After the timeout, or when the watch ends.
    pub fn watch(&self, object: &str, timeout: Duration, done: impl FnMut(&Value) -> bool) -> Result<Value> {
        self.cli().watch(object, timeout, done)
    }

    /// A client of one gateway.
    ///
    /// # Errors
    /// When there is no such gateway.
    pub fn client(&self, gateway: usize) -> Result<Client> {
        let port = self.gateway_ports.get(gateway).context("no such gateway")?;
        Client::new(&format!("http://127.0.0.1:{port}"))
    }

    /// Where agents and gateways find the operator.
    #[must_use]
    pub fn operator_url(&self) -> String {
        format!("https://127.0.0.1:{}", self.operator_port)
    }

    /// The host that serves a stream, as the log of its gateway says.
    ///
    /// # Errors
    /// As [`attempts::serving_host`].
    pub fn serving_host(&self, gateway: usize, seen: &Completion) -> Result<usize> {
        let gateway = self.gateways.get(gateway).context("no such gateway")?;
        let serving = attempts::serving_host(|| gateway.log(), seen)?;
        self.hosts
            .iter()
            .position(|host| host.name == serving)
            .context("the serving host is not of this site")
    }

    /// Everything lies here.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The last lines of every log, for the report of a failure.
    #[must_use]
    pub fn last_words(&self, lines: usize) -> String {
        let mut text = String::new();
        let hosts = self.hosts.iter().filter_map(|host| host.agent.as_ref());
        for process in self.operator.iter().chain(hosts).chain(&self.gateways) {
            text.push_str(&format!("--- {}\n{}\n", process.name(), process.last_words(lines)));
        }
        text
    }

    /// A folder that serves as `file://` source: the model, and the SHA256SUMS that vouch for it.
    ///
    /// # Errors
    /// When the model can't be read.
    pub fn model_folder(&self, model: &Path, file_name: &str) -> Result<PathBuf> {
        let dir = self.dir.path().join("models");
        fs::create_dir_all(&dir)?;
        let bytes = fs::read(model).with_context(|| format!("{} can't be read", model.display()))?;
        fs::write(dir.join(file_name), &bytes)?;
        let digest = hex::encode(Sha256::digest(&bytes));
        fs::write(dir.join("SHA256SUMS"), format!("{digest}  {file_name}\n"))?;
        Ok(dir)
    }

    /// Leaves processes and folder as they are, for a person to look at.
    pub fn keep(self) -> PathBuf {
        let Self { hosts, gateways, operator, dir, .. } = self;
        hosts.into_iter().for_each(std::mem::forget);
        gateways.into_iter().for_each(std::mem::forget);
        operator.into_iter().for_each(std::mem::forget);
        dir.keep()
    }
}

/// Asks until it is so. For what gives no event: a process that doesn't listen yet.
///
/// # Errors
/// When it is not so within the limit, or can't be asked.
pub fn until(limit: Duration, mut so: impl FnMut() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    while start.elapsed() < limit {
        if so()? {
            return Ok(());
        }
        std::thread::park_timeout(Duration::from_millis(50));
    }
    bail!("not so after {limit:?}")
}

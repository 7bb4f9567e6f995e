//! Operators, hosts and gateways as processes, joined by tokens, as a person would do it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::{Client, Completion, Process, Programs};

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
    data: PathBuf,
    agent: Option<Process>,
}

impl Host {
    /// Process ids of everything that runs on it: agent, runner, workers.
    #[must_use]
    pub fn processes(&self) -> Vec<Pid> {
        let agent = self.agent.iter().map(Process::id);
        agent.chain(self.runner()).chain(self.workers()).collect()
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
        let workloads = fs::read_dir(self.data.join("workloads")).into_iter().flatten().flatten();
        workloads
            .filter_map(|entry| fs::read(entry.path().join("endpoint.json")).ok())
            .filter_map(|bytes| serde_json::from_slice::<Value>(&bytes).ok())
            .filter_map(|endpoint| endpoint["pid"].as_i64()?.try_into().ok().map(Pid::from_raw))
            .filter(|pid| kill(*pid, None).is_ok())
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
        let dir = tempfile::Builder::new().prefix("tandem-").tempdir().context("no temporary folder")?;
        let mut site = Self {
            hosts: Vec::new(),
            gateways: Vec::new(),
            operator: None,
            operator_port: free_port()?,
            gateway_ports: Vec::new(),
            programs,
            dir,
        };
        site.start_operator()?;
        for index in 0..layout.hosts {
            site.add_host(&format!("host-{}", char::from(b'a' + u8::try_from(index)?)))?;
        }
        for index in 1..=layout.gateways {
            site.add_gateway(&format!("gateway-{index}"))?;
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

    fn add_host(&mut self, name: &str) -> Result<()> {
        let token = self.join_token("host")?;
        let data = self.dir.path().join(name);
        let mut host = Host { name: name.to_owned(), data, agent: None };
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

    fn agent(&self, host: &Host, token: Option<&str>) -> Result<Process> {
        let mut command = Command::new(self.programs.path("tandem-agent"));
        command.arg("run").args(["--operator", &self.operator_url(), "--name", &host.name]);
        command.arg("--data-dir").arg(&host.data).args(["--address", "127.0.0.1"]);
        command.arg("--worker-program").arg(self.programs.path("inference-worker"));
        if let Some(token) = token {
            command.env("TANDEM_JOIN_TOKEN", token);
        }
        Process::start(&host.name, command, &self.dir.path().join(format!("{}.log", host.name)))
    }

    fn add_gateway(&mut self, name: &str) -> Result<()> {
        let token = self.join_token("gateway")?;
        let port = free_port()?;
        let mut command = Command::new(self.programs.path("tandem-gateway"));
        command.args(["--operator", &self.operator_url(), "--name", name]);
        command.arg("--data-dir").arg(self.dir.path().join(name));
        command.args(["--listen", &format!("127.0.0.1:{port}")]).env("TANDEM_JOIN_TOKEN", token);
        let gateway = Process::start(name, command, &self.dir.path().join(format!("{name}.log")))?;
        self.gateways.push(gateway);
        self.gateway_ports.push(port);
        Ok(())
    }

    fn join_token(&self, role: &str) -> Result<String> {
        Ok(self.tandem(&["join-token", "--role", role])?.trim().to_owned())
    }

    /// Runs the CLI as the first admin; its standard output, or an error with what it said.
    ///
    /// # Errors
    /// When it ends with another code than 0.
    pub fn tandem(&self, arguments: &[&str]) -> Result<String> {
        let output = self.tandem_command().args(arguments).stdin(Stdio::null()).output()?;
        if !output.status.success() {
            bail!("tandem {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        String::from_utf8(output.stdout).context("the CLI printed no UTF-8")
    }

    /// The CLI, set up to talk to this site.
    #[must_use]
    pub fn tandem_command(&self) -> Command {
        let mut command = Command::new(self.programs.path("tandem"));
        command.env("TANDEM_CONFIG", self.config());
        command
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

    /// Waits until a condition of a deployment is True.
    ///
    /// # Errors
    /// After the timeout, with the state it was in.
    pub fn wait_for(&self, object: &str, condition: &str, timeout: Duration) -> Result<()> {
        let condition = format!("condition={condition}");
        let timeout = format!("{}s", timeout.as_secs());
        self.tandem(&["wait", object, "--for", &condition, "--timeout", &timeout]).map(drop)
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
    /// When the log doesn't name the stream.
    pub fn serving_host(&self, gateway: usize, seen: &Completion) -> Result<usize> {
        let stream =
            seen.about["stream"].as_str().and_then(|id| id.get(..8)).context("a stream without an id")?;
        let log = self.gateways.get(gateway).context("no such gateway")?.log()?;
        let line = log.lines().rfind(|line| line.contains(stream) && line.contains("replica="));
        let replica = line.and_then(|line| line.split_once("replica=")).map(|(_, rest)| rest);
        let name = replica.and_then(|rest| rest.split_once('/')).context("the gateway logged no attempt")?.0;
        self.hosts.iter().position(|host| host.name == name).context("the serving host is not of this site")
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

    /// Follows a deployment by the CLI's watch; returns when `done` says so, called with every version as JSON.
    ///
    /// # Errors
    /// After the timeout, or when the watch ends.
    pub fn watch(
        &self,
        object: &str,
        timeout: Duration,
        mut done: impl FnMut(&Value) -> bool,
    ) -> Result<Value> {
        let start = Instant::now();
        let mut child = self
            .tandem_command()
            .args(["get", object, "--watch", "-o", "jsonl", "--timeout", &format!("{}s", timeout.as_secs())])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let lines = BufReader::new(child.stdout.take().context("the watch has no output")?).lines();
        let mut found = None;
        for line in lines {
            let value: Value = serde_json::from_str(&line?).context("the watch printed no JSON")?;
            if done(&value) {
                found = Some(value);
                break;
            }
        }
        child.kill()?;
        child.wait()?;
        found.with_context(|| format!("{object} was not as expected after {:?}", start.elapsed()))
    }
}

/// A port that is free now. Another process may take it before ours does; the caller then sees a bind error.
fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port")?;
    Ok(listener.local_addr()?.port())
}

/// Asks until it is so. For what gives no event: a process that doesn't listen yet.
fn until(limit: Duration, mut so: impl FnMut() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    while start.elapsed() < limit {
        if so()? {
            return Ok(());
        }
        std::thread::park_timeout(Duration::from_millis(50));
    }
    bail!("not so after {limit:?}")
}

//! etcd servers: one member, or several that form a cluster.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tempfile::TempDir;

use crate::port::free_port;
use crate::process::Server;
use crate::tools::{Tool, Tools};

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// A member alone is ready in a second; three on a busy machine take their time to elect a leader.
const READY: Duration = Duration::from_secs(60);

/// An etcd cluster on loopback, without TLS. What it wrote is not synced to disk: the machine doesn't die in a test.
pub struct Etcd {
    members: Vec<Member>,
    etcdctl: std::path::PathBuf,
    dir: TempDir,
}

struct Member {
    server: Server,
    client_port: u16,
}

impl Etcd {
    /// Starts that many members, and waits until they have a leader.
    ///
    /// # Errors
    /// When the tools can't be had or a member doesn't start.
    pub fn start(members: usize) -> Result<Self> {
        let tools = Tools::find()?;
        let program = tools.program(Tool::Etcd, "etcd")?;
        let etcdctl = tools.program(Tool::Etcd, "etcdctl")?;
        let dir = tempfile::Builder::new().prefix("tandem-etcd-").tempdir().context("no temporary folder")?;
        let ports: Vec<(u16, u16)> =
            (0..members).map(|_| Ok((free_port(LOOPBACK)?, free_port(LOOPBACK)?))).collect::<Result<_>>()?;
        let peers: Vec<String> =
            ports.iter().enumerate().map(|(n, (_, peer))| format!("m{n}=http://127.0.0.1:{peer}")).collect();
        let mut started = Vec::new();
        for (n, (client, peer)) in ports.iter().enumerate() {
            let server = Server::start(
                &format!("etcd-{n}"),
                command(&program, dir.path(), n, *client, *peer, &peers.join(",")),
                dir.path(),
            )?;
            started.push(Member { server, client_port: *client });
        }
        let mut etcd = Self { members: started, etcdctl, dir };
        for n in 0..members {
            etcd.wait(n)?;
        }
        Ok(etcd)
    }

    /// Where clients reach the members.
    #[must_use]
    pub fn endpoints(&self) -> Vec<String> {
        self.members.iter().map(|member| format!("http://127.0.0.1:{}", member.client_port)).collect()
    }

    /// The process of a member, to stop or to signal.
    pub fn member(&mut self, n: usize) -> &mut Server {
        &mut self.members[n].server
    }

    /// Waits until a member answers as part of a cluster that has a leader.
    ///
    /// # Errors
    /// When it doesn't.
    pub fn wait(&mut self, n: usize) -> Result<()> {
        let endpoint = format!("http://127.0.0.1:{}", self.members[n].client_port);
        let etcdctl = self.etcdctl.clone();
        self.members[n].server.wait(READY, || {
            Command::new(&etcdctl)
                .args(["--endpoints", &endpoint, "--dial-timeout", "1s", "--command-timeout", "2s"])
                .args(["endpoint", "health"])
                .output()
                .is_ok_and(|output| output.status.success())
        })
    }

    /// `etcdctl` on all endpoints: what it prints.
    ///
    /// # Errors
    /// When it fails.
    pub fn ctl(&self, arguments: &[&str]) -> Result<String> {
        let output = Command::new(&self.etcdctl)
            .args(["--endpoints", &self.endpoints().join(",")])
            .args(arguments)
            .output()
            .context("etcdctl can't be started")?;
        anyhow::ensure!(output.status.success(), "etcdctl: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Makes it forget all revisions so far.
    ///
    /// # Errors
    /// When it can't be asked.
    pub fn compact(&self) -> Result<()> {
        // The newest one is always kept: it becomes this one.
        self.ctl(&["put", "compacted", ""])?;
        let status = self.ctl(&["get", "/", "--limit=1", "--write-out=json"])?;
        let status: serde_json::Value = serde_json::from_str(&status).context("etcdctl prints no JSON")?;
        let revision = status["header"]["revision"].as_i64().context("etcd names no revision")?;
        self.ctl(&["compaction", &revision.to_string()]).map(drop)
    }

    /// Where its members keep their data and logs.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }
}

fn command(program: &Path, dir: &Path, n: usize, client: u16, peer: u16, peers: &str) -> Command {
    let (client, peer) = (format!("http://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
    let mut command = Command::new(program);
    command
        .args(["--name", &format!("m{n}"), "--data-dir"])
        .arg(dir.join(format!("m{n}")))
        .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
        .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
        .args(["--initial-cluster", peers, "--unsafe-no-fsync", "--log-level", "warn"]);
    command
}

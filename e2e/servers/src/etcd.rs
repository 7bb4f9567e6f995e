//! etcd servers: one member, or several that form a cluster.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tempfile::TempDir;

use crate::disk::Disk;
use crate::pki::{Authority, Pair};
use crate::port::free_port;
use crate::process::Server;
use crate::tools::{Tool, Tools};

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// A member alone is ready in a second; three on a busy machine take their time to elect a leader.
const READY: Duration = Duration::from_secs(60);

/// Of root, where it asks for names.
const ROOT_PASSWORD: &str = "root's own";

/// An etcd cluster on loopback. What it wrote is not synced to disk, unless that is a disk of its own: the machine doesn't die in a
/// test.
pub struct Etcd {
    members: Vec<Member>,
    /// Of each member, where they have disks of their own.
    disks: Vec<Disk>,
    etcdctl: PathBuf,
    /// Signs for clients, where they have to show certificates.
    authority: Option<Box<Authority>>,
    asks_for_names: bool,
    dir: TempDir,
}

struct Member {
    server: Server,
    client_port: u16,
}

impl Etcd {
    /// Starts that many members, without TLS, and waits until they have a leader.
    ///
    /// # Errors
    /// When the tools can't be had or a member doesn't start.
    pub fn start(members: usize) -> Result<Self> {
        Self::start_with(members, None, false)
    }

    /// The same, each member with a disk of its own, which can be made to stall, and synced to it. For root on Linux.
    ///
    /// # Errors
    /// When the tools can't be had, a disk can't be mounted or a member doesn't start.
    pub fn start_on_disks(members: usize) -> Result<Self> {
        Self::start_with(members, None, true)
    }

    /// The same, on https alone, for clients alone that show a certificate of this cluster's authority.
    ///
    /// # Errors
    /// When the tools can't be had or a member doesn't start.
    pub fn start_with_tls(members: usize) -> Result<Self> {
        Self::start_with(members, Some(Box::new(Authority::create("etcd")?)), false)
    }

    fn start_with(members: usize, authority: Option<Box<Authority>>, own_disks: bool) -> Result<Self> {
        let tools = Tools::find()?;
        let program = tools.program(Tool::Etcd, "etcd")?;
        let etcdctl = tools.program(Tool::Etcd, "etcdctl")?;
        let dir = tempfile::Builder::new().prefix("tandem-etcd-").tempdir().context("no temporary folder")?;
        let ports: Vec<(u16, u16)> =
            (0..members).map(|_| Ok((free_port(LOOPBACK)?, free_port(LOOPBACK)?))).collect::<Result<_>>()?;
        if let Some(authority) = &authority {
            let server = authority.server("etcd", &[LOOPBACK], &["localhost"])?;
            fs::write(dir.path().join("ca.crt"), authority.certificate())
                .context("the CA can't be written")?;
            write(dir.path(), "server", &server)?;
            write(dir.path(), "root", &authority.user("root", &[])?)?;
        }
        let peers: Vec<String> =
            ports.iter().enumerate().map(|(n, (_, peer))| format!("m{n}=http://127.0.0.1:{peer}")).collect();
        let disks = (0..if own_disks { members } else { 0 })
            .map(|n| Disk::mount(&dir.path().join(format!("disk{n}"))))
            .collect::<Result<_>>()?;
        let mut started = Vec::new();
        for (n, (client, peer)) in ports.iter().enumerate() {
            let data = dir.path().join(if own_disks { format!("disk{n}/data") } else { format!("m{n}") });
            let mut command = command(&program, &data, n, *peer, &peers.join(","));
            if !own_disks {
                command.arg("--unsafe-no-fsync");
            }
            listen(&mut command, dir.path(), *client, authority.is_some());
            let server = Server::start(&format!("etcd-{n}"), command, dir.path())?;
            started.push(Member { server, client_port: *client });
        }
        let mut etcd = Self { members: started, disks, etcdctl, authority, asks_for_names: false, dir };
        for n in 0..members {
            etcd.wait(n)?;
        }
        Ok(etcd)
    }

    /// Where clients reach the members.
    #[must_use]
    pub fn endpoints(&self) -> Vec<String> {
        (0..self.members.len()).map(|n| self.endpoint(n)).collect()
    }

    fn endpoint(&self, n: usize) -> String {
        url(self.members[n].client_port, self.authority.is_some())
    }

    /// The authority of its certificates, as PEM; none: it speaks without TLS.
    #[must_use]
    pub fn ca(&self) -> Option<&str> {
        self.authority.as_deref().map(Authority::certificate)
    }

    /// A certificate and its key for a client of this name, as PEM.
    ///
    /// # Errors
    /// When it speaks without TLS, or nothing can be signed.
    pub fn client_certificate(&self, name: &str) -> Result<(String, String)> {
        let authority = self.authority.as_ref().context("this etcd has no certificates")?;
        let Pair { certificate, key } = authority.user(name, &[])?;
        Ok((certificate, key))
    }

    /// From now on nobody is let in without a name that it knows. This user may read and write what is below the prefix, and nothing
    /// else.
    ///
    /// # Errors
    /// When it can't be asked.
    pub fn ask_for_names(&mut self, user: &str, password: &str, prefix: &str) -> Result<()> {
        let (user_and_password, root) = (format!("{user}:{password}"), format!("root:{ROOT_PASSWORD}"));
        self.ctl(&["user", "add", &root])?;
        self.ctl(&["user", "grant-role", "root", "root"])?;
        self.ctl(&["role", "add", user])?;
        self.ctl(&["role", "grant-permission", "--prefix", user, "readwrite", prefix])?;
        self.ctl(&["user", "add", &user_and_password])?;
        self.ctl(&["user", "grant-role", user, user])?;
        self.ctl(&["auth", "enable"])?;
        self.asks_for_names = true;
        Ok(())
    }

    /// The process of a member, to stop or to signal.
    pub fn member(&mut self, n: usize) -> &mut Server {
        &mut self.members[n].server
    }

    /// From now on the writes of this member hang, as on a disk that is stuck, until [`Etcd::disk_goes_on`].
    ///
    /// # Errors
    /// When it has no disk of its own, or that can't be frozen.
    pub fn disk_stalls(&self, n: usize) -> Result<()> {
        self.disks.get(n).context("the members have no disks of their own")?.stall()
    }

    /// The writes of this member are done, those that hung first.
    ///
    /// # Errors
    /// When its disk did not stall.
    pub fn disk_goes_on(&self, n: usize) -> Result<()> {
        self.disks.get(n).context("the members have no disks of their own")?.go_on()
    }

    /// Waits until a member answers as part of a cluster that has a leader.
    ///
    /// # Errors
    /// When it doesn't.
    pub fn wait(&mut self, n: usize) -> Result<()> {
        let mut health = self.etcdctl(&self.endpoint(n));
        health.args(["--dial-timeout", "1s", "--command-timeout", "2s", "endpoint", "health"]);
        self.members[n].server.wait(READY, || health.output().is_ok_and(|output| output.status.success()))
    }

    /// `etcdctl` on all endpoints: what it prints.
    ///
    /// # Errors
    /// When it fails.
    pub fn ctl(&self, arguments: &[&str]) -> Result<String> {
        let mut command = self.etcdctl(&self.endpoints().join(","));
        let output = command.args(arguments).output().context("etcdctl can't be started")?;
        anyhow::ensure!(output.status.success(), "etcdctl: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// `etcdctl` as root.
    fn etcdctl(&self, endpoints: &str) -> Command {
        let mut command = Command::new(&self.etcdctl);
        command.args(["--endpoints", endpoints]);
        if self.authority.is_some() {
            let file = |name| self.dir.path().join(name);
            command.arg("--cacert").arg(file("ca.crt"));
            command.arg("--cert").arg(file("root.crt")).arg("--key").arg(file("root.key"));
        }
        if self.asks_for_names {
            command.args(["--user", "root", "--password", ROOT_PASSWORD]);
        }
        command
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

impl Drop for Etcd {
    fn drop(&mut self) {
        // Who hangs in a write can't be killed. Those that did not stall say so, which is no failure here.
        for disk in &self.disks {
            drop(disk.go_on());
        }
    }
}

fn url(port: u16, tls: bool) -> String {
    format!("http{}://127.0.0.1:{port}", if tls { "s" } else { "" })
}

fn write(dir: &Path, name: &str, pair: &Pair) -> Result<()> {
    for (ending, text) in [("crt", &pair.certificate), ("key", &pair.key)] {
        fs::write(dir.join(format!("{name}.{ending}")), text).context("a certificate can't be written")?;
    }
    Ok(())
}

fn command(program: &Path, data: &Path, n: usize, peer: u16, peers: &str) -> Command {
    let peer = url(peer, false);
    let mut command = Command::new(program);
    command
        .args(["--name", &format!("m{n}"), "--data-dir"])
        .arg(data)
        .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
        .args(["--initial-cluster", peers, "--log-level", "warn"])
        // Hashing passwords as slowly as is right for people's would be most of a test.
        .args(["--bcrypt-cost", "4"]);
    command
}

fn listen(command: &mut Command, dir: &Path, client: u16, tls: bool) {
    let client = url(client, tls);
    command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
    if tls {
        command.arg("--client-cert-auth").arg("--trusted-ca-file").arg(dir.join("ca.crt"));
        command.arg("--cert-file").arg(dir.join("server.crt"));
        command.arg("--key-file").arg(dir.join("server.key"));
    }
}

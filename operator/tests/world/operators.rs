//! Several operators of one cluster, as processes, and where the truth of theirs lies.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;
use tandem_control_api::StatusRequest;
use tandem_control_api::fleet_client::FleetClient;
use tandem_pki::Credentials;
use tandem_servers::{ControlPlane, Etcd, FaultProxy, User};

use super::{channel, within};

pub(crate) const NAMES: [&str; 2] = ["operator-a", "operator-b"];

pub(crate) struct Process {
    pub(crate) port: u16,
    pub(crate) admin: PathBuf,
    child: Child,
    log: PathBuf,
    arguments: Vec<String>,
}

impl Process {
    pub(crate) fn start(name: &str, dir: &Path, store: &[String]) -> Self {
        let port = tandem_servers::free_port([127, 0, 0, 1].into()).unwrap();
        let data = dir.join(name);
        let listen = format!("127.0.0.1:{port}");
        let own = ["run", "--name", name, "--listen", &listen, "--data-dir", &data.display().to_string()];
        let arguments: Vec<String> =
            own.into_iter().map(str::to_owned).chain(store.iter().cloned()).collect();
        std::fs::create_dir_all(dir).unwrap();
        let log = dir.join(format!("{name}.log"));
        Self { port, admin: data.join("admin"), child: spawn(&arguments, &log), log, arguments }
    }

    pub(crate) fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// Ends it with SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// The same operator again, after it was killed.
    pub(crate) fn start_again(&mut self) {
        self.child = spawn(&self.arguments, &self.log);
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = nix::unistd::Pid::from_raw(self.child.id().try_into().unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn spawn(arguments: &[String], log: &Path) -> Child {
    let log = std::fs::File::options().create(true).append(true).open(log).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_tandem-operator"));
    command.args(arguments).stdin(Stdio::null()).stderr(log).spawn().unwrap()
}

/// Waits until an operator lets in whoever has the credentials in this folder.
pub(crate) async fn answers(url: &str, admin: &Path) -> Credentials {
    within("the operator answers", async {
        loop {
            if let Ok(credentials) = Credentials::load(admin) {
                let mut fleet = FleetClient::new(channel(url, &credentials));
                if fleet.status(StatusRequest {}).await.is_ok() {
                    return credentials;
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await
}

/// Where the truth lives.
pub(crate) enum Home {
    /// Each operator comes through a proxy, and as a user of its own.
    Kubernetes(Box<ControlPlane>, Vec<FaultProxy>),
    Etcd(Etcd),
}

impl Home {
    pub(crate) async fn kubernetes(dir: &Path) -> (Self, Vec<Vec<String>>) {
        let plane = ControlPlane::start().await.unwrap();
        for namespace in ["llm", "tandem-system"] {
            plane.kubectl(&["create", "namespace", namespace]).unwrap();
        }
        let (mut proxies, mut flags) = (Vec::new(), Vec::new());
        for name in NAMES {
            let client = plane.client(User { name, groups: &["system:masters"] }).await.unwrap();
            let proxy = FaultProxy::start(client).await.unwrap();
            let kubeconfig = dir.join(format!("{name}.kubeconfig"));
            std::fs::write(&kubeconfig, proxy.kubeconfig()).unwrap();
            let kubeconfig = kubeconfig.display().to_string();
            flags.push(["--store", "kubernetes", "--kubeconfig", &kubeconfig].map(str::to_owned).to_vec());
            proxies.push(proxy);
        }
        (Self::Kubernetes(Box::new(plane), proxies), flags)
    }

    pub(crate) fn etcd() -> (Self, Vec<Vec<String>>) {
        let etcd = Etcd::start(3).unwrap();
        let endpoints = etcd.endpoints().join(",");
        let flags = ["--store", "etcd", "--etcd-endpoint", &endpoints].map(str::to_owned).to_vec();
        (Self::Etcd(etcd), vec![flags.clone(), flags])
    }

    /// The leader's name.
    pub(crate) fn holder(&self) -> String {
        let path = "jsonpath={.spec.holderIdentity}";
        match self {
            Self::Kubernetes(plane, _) => {
                plane.kubectl(&["get", "lease", "tandem-leader", "-n", "tandem-system", "-o", path]).unwrap()
            }
            Self::Etcd(etcd) => {
                let row = etcd.ctl(&["get", "--print-value-only", "/tandem/leases/leader"]).unwrap();
                serde_json::from_str::<Value>(&row).unwrap()["holder"].as_str().unwrap().to_owned()
            }
        }
    }
}

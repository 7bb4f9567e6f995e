//! An operator as the CLI sees one: Objects and Fleet over real mTLS, with a map of objects behind them.

#![allow(dead_code, reason = "each test file uses a part of it")]

mod fake;

use std::ffi::OsStr;
use std::fs;
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use tandem_control_api::fleet_server::FleetServer;
use tandem_control_api::keys_server::KeysServer;
use tandem_control_api::objects_server::ObjectsServer;
use tandem_control_api::secrets_server::SecretsServer;
use tandem_pki::{CertificateAuthority, ClientCertificates, Credentials, Identity};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

pub(crate) use fake::Fake;

/// Longest wait for anything that has to happen.
const SOON: Duration = Duration::from_secs(60);
const LIFETIME: Duration = Duration::from_secs(3_600);

/// An operator that listens, and the folder of its first admin.
pub(crate) struct Site {
    pub(crate) fake: Arc<Fake>,
    pub(crate) url: String,
    authority: CertificateAuthority,
    dir: tempfile::TempDir,
    server: tokio::task::JoinHandle<()>,
}

impl Drop for Site {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Site {
    pub(crate) async fn start() -> Self {
        tandem_pki::install_tls_provider();
        let authority = CertificateAuthority::create(SystemTime::now()).unwrap();
        let credentials = credentials(&authority, &Identity::Operator);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let fake = Arc::new(Fake::default());
        let server = Server::builder()
            .tls_config(credentials.server_tls(ClientCertificates::Optional))
            .unwrap()
            .add_service(ObjectsServer::from_arc(Arc::clone(&fake)))
            .add_service(FleetServer::from_arc(Arc::clone(&fake)))
            .add_service(KeysServer::from_arc(Arc::clone(&fake)))
            .add_service(SecretsServer::from_arc(Arc::clone(&fake)))
            .serve_with_incoming(TcpIncoming::from(listener));
        let server = tokio::spawn(async move { server.await.unwrap() });
        let site = Self { fake, url, authority, dir: tempfile::tempdir().unwrap(), server };
        site.configure("admin", &credentials_of_admin(&site.authority), &site.url);
        site
    }

    /// Writes a folder like the one that an operator writes for its first admin.
    pub(crate) fn configure(&self, name: &str, credentials: &Credentials, operator: &str) -> PathBuf {
        let dir = self.dir.path().join(name);
        credentials.save(&dir).unwrap();
        let path = dir.join("tandem.yaml");
        fs::write(&path, format!("operator: {operator}\ncredentials: .\n")).unwrap();
        path
    }

    /// Credentials of another role, of this operator's authority.
    pub(crate) fn credentials(&self, identity: &Identity) -> Credentials {
        credentials(&self.authority, identity)
    }

    /// A file in the site's folder.
    pub(crate) fn file(&self, name: &str, text: &str) -> String {
        let path = self.dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// The CLI with the first admin's configuration.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        command(self.dir.path().join("admin/tandem.yaml"), arguments)
    }

    /// Runs the CLI to its end.
    pub(crate) async fn tandem(&self, arguments: &[&str]) -> Said {
        run(self.command(arguments)).await
    }

    /// Runs the CLI to its end, with this on standard input.
    pub(crate) async fn tell(&self, arguments: &[&str], input: &str) -> Said {
        let mut child = self.command(arguments).stdin(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(input.as_bytes()).await.unwrap();
        drop(stdin);
        end(child).await
    }
}

/// The CLI with a configuration and nothing else of this environment.
pub(crate) fn command(config: impl AsRef<OsStr>, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tandem"));
    command.args(arguments).env("TANDEM_CONFIG", config);
    for variable in ["TANDEM_NAMESPACE", "TANDEM_GATEWAY", "NO_COLOR"] {
        command.env_remove(variable);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

pub(crate) async fn run(mut command: Command) -> Said {
    end(command.spawn().unwrap()).await
}

/// Waits for the end of a command that was started.
pub(crate) async fn end(child: Child) -> Said {
    let output = tokio::time::timeout(SOON, child.wait_with_output()).await;
    Said::from(output.expect("the command ends").unwrap())
}

/// The first lines that a command prints which would go on; it is ended then.
pub(crate) async fn first_lines(mut child: Child, count: usize) -> Vec<String> {
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut first = Vec::new();
    while first.len() < count {
        let line = tokio::time::timeout(SOON, lines.next_line()).await.expect("a line comes").unwrap();
        first.push(line.expect("the command goes on"));
    }
    child.kill().await.unwrap();
    first
}

fn credentials(authority: &CertificateAuthority, identity: &Identity) -> Credentials {
    authority.credentials(identity, &["127.0.0.1".to_owned()], SystemTime::now(), LIFETIME).unwrap()
}

/// An admin's credentials, of any authority.
pub(crate) fn credentials_of_admin(authority: &CertificateAuthority) -> Credentials {
    credentials(authority, &Identity::admin("admin").unwrap())
}

/// What a command said.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().expect("no signal ends it"),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Said {
    /// Standard output of a command that did what it should and had nothing to remark.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!((self.code, self.err.as_str()), (0, ""), "{self:?}");
        self.out
    }

    /// The error of a command that failed with this code, with each part in it.
    #[track_caller]
    pub(crate) fn refused(self, code: i32, parts: &[&str]) {
        assert_eq!(self.code, code, "{self:?}");
        for part in parts {
            assert!(self.err.contains(part), "{part:?} is not in {self:?}");
        }
    }
}

/// A manifest of a deployment.
pub(crate) fn manifest(name: &str, quant: &str) -> String {
    format!(
        "apiVersion: inference.tandem.dev/v1alpha1\nkind: InferenceDeployment\nmetadata: {{name: {name}}}\nspec:\n  \
         model: {{name: {name}, source: file:///models}}\n  quant: {quant}\n  context: {{tokens: 4096}}\n"
    )
}

/// A deployment as an operator would show it.
pub(crate) fn deployment(namespace: &str, name: &str, conditions: &[(&str, &str)]) -> Value {
    json!({
        "apiVersion": "inference.tandem.dev/v1alpha1",
        "kind": "InferenceDeployment",
        "metadata": {"name": name, "namespace": namespace, "generation": 1},
        "spec": {"model": {"name": name, "source": "file:///models"}, "quant": "Q4_K_M", "replicas": 1,
            "context": {"tokens": 4096, "poolTokens": 8192}, "redundancy": {"hostFailures": 1}},
        "status": {"observedGeneration": 1, "copies": 2, "readyCopies": 1, "ready": "1/2", "cover": "None",
            "endpoint": "http://edge:8080",
            "conditions": conditions.iter().map(|(kind, status)| condition(kind, status)).collect::<Vec<_>>(),
            "placements": [{"workload": format!("{namespace}-{name}-0"), "host": "mac-a", "epoch": 1, "state": "Ready"}]},
    })
}

fn condition(kind: &str, status: &str) -> Value {
    json!({"type": kind, "status": status, "observedGeneration": 1, "reason": "HostLost",
        "message": "mac-b is silent", "lastTransitionTime": "2026-01-01T00:00:00Z"})
}

/// A host as an operator would show it, with a workload for each name.
pub(crate) fn host(name: &str, workloads: &[&str]) -> Value {
    let spec =
        |id: &&str| json!({"id": id, "epoch": 1, "deployment": {"namespace": "default", "name": "tiny"}});
    let status = |id: &&str| json!({"id": id, "epoch": 1, "state": "Ready", "restarts": 0});
    json!({
        "apiVersion": "inference.tandem.dev/v1alpha1",
        "kind": "InferenceHost",
        "metadata": {"name": name},
        "spec": {"term": 2, "generation": 1, "unschedulable": false,
            "workloads": workloads.iter().map(spec).collect::<Vec<_>>()},
        "status": {"address": "10.0.0.7", "agentVersion": "0.1.0", "memory": {"totalBytes": 1_u64 << 34, "availableBytes": 1_u64 << 33},
            "devices": [{"id": "cpu", "kind": "CPU", "name": "M3", "memoryBytes": 1_u64 << 34, "availableBytes": 1_u64 << 33}],
            "conditions": [{"type": "Ready", "status": "True", "reason": "Reporting", "message": "",
                "lastTransitionTime": "2026-01-01T00:00:00Z"}],
            "workloads": workloads.iter().map(status).collect::<Vec<_>>()},
    })
}

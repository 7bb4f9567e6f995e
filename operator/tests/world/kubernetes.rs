//! An operator as a process on a real API server, with the nodes and pods that join by it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tandem_control_api::{Role, StatusRequest};
use tandem_pki::{Credentials, EnrollError, Enrollment, PodFiles, Proof};
use tandem_servers::{ControlPlane, User};

use super::{World, within};

/// The operator's namespace.
pub(crate) const SYSTEM: &str = "tandem-system";
/// The agents' namespace.
pub(crate) const AGENTS: &str = "tandem-agents";
/// As the operator is known to the API server.
pub(crate) const OPERATOR: User<'static> = User { name: "the-operator", groups: &["system:masters"] };
/// Whom pods' tokens are for.
pub(crate) const AUDIENCE: &str = "tandem-operator";

pub(crate) struct Site {
    pub(crate) plane: ControlPlane,
    pub(crate) world: World,
    /// Where its figures are.
    pub(crate) metrics: u16,
    kubeconfig: PathBuf,
    operator: Option<Child>,
}

impl Drop for Site {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Site {
    pub(crate) async fn start() -> Self {
        let plane = ControlPlane::start().await.unwrap();
        let kubeconfig = plane.kubeconfig(OPERATOR).unwrap();
        Self::start_on(plane, kubeconfig).await
    }

    /// An operator that reaches the API server as this file says, once it leads. There are the namespaces `tandem-system`,
    /// `tandem-agents` and `llm`.
    pub(crate) async fn start_on(plane: ControlPlane, kubeconfig: PathBuf) -> Self {
        tandem_pki::install_tls_provider();
        let dir = tempfile::tempdir().unwrap();
        for namespace in [SYSTEM, AGENTS, "llm"] {
            plane.kubectl(&["create", "namespace", namespace]).unwrap();
        }
        let port = || tandem_servers::free_port([127, 0, 0, 1].into()).unwrap();
        let url = format!("https://127.0.0.1:{}", port());
        let nobody = Credentials::new(String::new(), String::new(), String::new());
        let world = World::of_process(dir, &url, nobody);
        let mut site = Self { plane, world, metrics: port(), kubeconfig, operator: None };
        site.start_operator();
        site.leads().await;
        site
    }

    /// Starts the operator; it need not answer yet.
    pub(crate) fn start_operator(&mut self) {
        assert!(self.operator.is_none(), "it runs");
        let listen = self.world.url.trim_start_matches("https://");
        let mut command = Command::new(env!("CARGO_BIN_EXE_tandem-operator"));
        command.args(["run", "--store", "kubernetes", "--namespace", SYSTEM, "--agents-namespace", AGENTS]);
        command.args(["--listen", listen, "--metrics-listen", &format!("127.0.0.1:{}", self.metrics)]);
        command.arg("--kubeconfig").arg(&self.kubeconfig);
        // Each phase has room for what a test does in it, and not for other operators: there are none.
        command.args(["--authority-settle-seconds", "6"]);
        let log = self.world.dir.path().join("operator.log");
        let log = std::fs::File::options().create(true).append(true).open(log).unwrap();
        self.operator = Some(command.stdin(Stdio::null()).stderr(log).spawn().unwrap());
    }

    /// As SIGKILL does.
    pub(crate) fn kill(&mut self) {
        if let Some(mut operator) = self.operator.take() {
            drop(operator.kill());
            drop(operator.wait());
        }
    }

    /// Waits until the operator leads and lets its published admin in, who is the world's from then on.
    pub(crate) async fn leads(&mut self) {
        within("the operator leads", async {
            loop {
                if let Some((admin, _)) = self.published() {
                    self.world.admin = admin;
                    let status = self.world.fleet().status(StatusRequest {}).await;
                    if status.is_ok_and(|status| status.into_inner().leading) {
                        return;
                    }
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
        .await;
    }

    /// The admin's credentials and where to take them.
    pub(crate) fn published(&self) -> Option<(Credentials, String)> {
        let json = self.plane.kubectl(&["get", "secret", "tandem-admin", "-n", SYSTEM, "-o", "json"]).ok()?;
        let secret: Value = serde_json::from_str(&json).unwrap();
        let text = |key: &str| {
            let bytes: k8s_openapi::ByteString = serde_json::from_value(secret["data"][key].clone()).unwrap();
            String::from_utf8(bytes.0).unwrap()
        };
        let credentials = Credentials::new(text("tls.crt"), text("tls.key"), text("ca.crt"));
        Some((credentials, text("operator")))
    }

    /// Does with one object what `kubectl` calls it: `create`, `apply` or `delete`.
    pub(crate) fn kubectl(&self, verb: &str, object: &Value) {
        let path = self.world.dir.path().join("object.json");
        std::fs::write(&path, object.to_string()).unwrap();
        self.plane.kubectl(&[verb, "-f", &path.display().to_string()]).unwrap();
    }

    pub(crate) fn node(&self, name: &str) {
        self.kubectl("create", &json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}));
    }

    pub(crate) fn pod(&self, namespace: &str, account: &str, name: &str, node: &str) {
        if self.plane.kubectl(&["get", "sa", account, "-n", namespace]).is_err() {
            self.plane.kubectl(&["create", "sa", account, "-n", namespace]).unwrap();
        }
        let pod = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {
                "serviceAccountName": account,
                "automountServiceAccountToken": false,
                "nodeName": node,
                "containers": [{"name": "agent", "image": "local.test/agent:1"}],
            },
        });
        self.kubectl("create", &pod);
    }

    /// A file with a token of this service account, bound to a pod.
    pub(crate) fn token(&self, namespace: &str, account: &str, pod: Option<&str>, audience: &str) -> PathBuf {
        let audience = format!("--audience={audience}");
        let mut ask = vec!["create", "token", account, "-n", namespace, &audience];
        if let Some(pod) = pod {
            ask.extend(["--bound-object-kind=Pod", "--bound-object-name", pod]);
        }
        let token = self.plane.kubectl(&ask).unwrap();
        let path = self.world.dir.path().join("token");
        std::fs::write(&path, token).unwrap();
        path
    }

    /// A file as a pod has it, with the authorities.
    pub(crate) fn ca(&self, namespace: &str) -> PathBuf {
        let path = "jsonpath={.data.ca\\.crt}";
        let ca =
            self.plane.kubectl(&["get", "configmap", "tandem-trust", "-n", namespace, "-o", path]).unwrap();
        let file = self.world.dir.path().join("ca.crt");
        std::fs::write(&file, ca).unwrap();
        file
    }

    pub(crate) async fn join(
        &self,
        role: Role,
        name: &str,
        token: &Path,
    ) -> Result<Credentials, EnrollError> {
        let files = PodFiles { token: token.to_owned(), ca: self.ca(AGENTS) };
        let enrollment = Enrollment {
            operator: self.world.url.clone(),
            proof: Proof::Pod(files),
            role,
            name: name.to_owned(),
            addresses: vec!["127.0.0.1".to_owned()],
        };
        within("an answer", tandem_pki::join(&enrollment)).await
    }

    /// An agent's pod on this node, and what it is let in with.
    pub(crate) async fn agent(&self, pod: &str, node: &str) -> Credentials {
        self.pod(AGENTS, "tandem-agent", pod, node);
        let token = self.token(AGENTS, "tandem-agent", Some(pod), AUDIENCE);
        self.join(Role::Host, node, &token).await.unwrap()
    }
}

//! Pods of a real API server join by their projected tokens, and nobody else does.

#![allow(clippy::unwrap_used, reason = "helpers of tests, outside of any test function")]

mod world;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tandem_control_api::fleet_client::FleetClient;
use tandem_control_api::{AuthorityRequest, Role, RotateAuthorityRequest};
use tandem_pki::{Credentials, EnrollError, Enrollment, Identity, PodFiles, Proof};
use tandem_servers::{ControlPlane, User};
use world::within;

const SYSTEM: &str = "tandem-system";
const AGENTS: &str = "tandem-agents";

struct Site {
    plane: ControlPlane,
    dir: tempfile::TempDir,
    url: String,
    operator: Child,
}

impl Drop for Site {
    fn drop(&mut self) {
        drop(self.operator.kill());
        drop(self.operator.wait());
    }
}

impl Site {
    async fn start() -> Self {
        tandem_pki::install_tls_provider();
        let dir = tempfile::tempdir().unwrap();
        let plane = ControlPlane::start().await.unwrap();
        for namespace in [SYSTEM, AGENTS] {
            plane.kubectl(&["create", "namespace", namespace]).unwrap();
        }
        let port = tandem_servers::free_port([127, 0, 0, 1].into()).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_tandem-operator"));
        command.args(["run", "--store", "kubernetes", "--namespace", SYSTEM, "--agents-namespace", AGENTS]);
        command.args(["--listen", &format!("127.0.0.1:{port}"), "--kubeconfig"]);
        command.arg(plane.kubeconfig(User::ADMIN).unwrap());
        let log = std::fs::File::create(dir.path().join("operator.log")).unwrap();
        let operator = command.stdin(Stdio::null()).stderr(log).spawn().unwrap();
        let site = Self { plane, dir, url: format!("https://127.0.0.1:{port}"), operator };
        within("what is published", async {
            while site.published().is_none() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
        .await;
        site
    }

    /// The admin's credentials and where to take them.
    fn published(&self) -> Option<(Credentials, String)> {
        let json = self.plane.kubectl(&["get", "secret", "tandem-admin", "-n", SYSTEM, "-o", "json"]).ok()?;
        let secret: Value = serde_json::from_str(&json).unwrap();
        let text = |key: &str| {
            let bytes: k8s_openapi::ByteString = serde_json::from_value(secret["data"][key].clone()).unwrap();
            String::from_utf8(bytes.0).unwrap()
        };
        let credentials = Credentials::new(text("tls.crt"), text("tls.key"), text("ca.crt"));
        Some((credentials, text("operator")))
    }

    fn create(&self, object: &Value) {
        let path = self.dir.path().join("object.json");
        std::fs::write(&path, object.to_string()).unwrap();
        self.plane.kubectl(&["create", "-f", &path.display().to_string()]).unwrap();
    }

    fn node(&self, name: &str) {
        self.create(&json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}));
    }

    fn pod(&self, namespace: &str, account: &str, name: &str, node: &str) {
        if self.plane.kubectl(&["get", "sa", account, "-n", namespace]).is_err() {
            self.plane.kubectl(&["create", "sa", account, "-n", namespace]).unwrap();
        }
        self.create(&json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {
                "serviceAccountName": account,
                "automountServiceAccountToken": false,
                "nodeName": node,
                "containers": [{"name": "agent", "image": "local.test/agent:1"}],
            },
        }));
    }

    fn token(&self, namespace: &str, account: &str, pod: Option<&str>, audience: &str) -> PathBuf {
        let audience = format!("--audience={audience}");
        let mut ask = vec!["create", "token", account, "-n", namespace, &audience];
        if let Some(pod) = pod {
            ask.extend(["--bound-object-kind=Pod", "--bound-object-name", pod]);
        }
        let token = self.plane.kubectl(&ask).unwrap();
        let path = self.dir.path().join("token");
        std::fs::write(&path, token).unwrap();
        path
    }

    /// Where a pod finds the authorities.
    fn ca(&self, namespace: &str) -> PathBuf {
        let path = "jsonpath={.data.ca\\.crt}";
        let ca =
            self.plane.kubectl(&["get", "configmap", "tandem-trust", "-n", namespace, "-o", path]).unwrap();
        let file = self.dir.path().join("ca.crt");
        std::fs::write(&file, ca).unwrap();
        file
    }

    async fn join(&self, role: Role, name: &str, token: &Path) -> Result<Credentials, EnrollError> {
        let files = PodFiles { token: token.to_owned(), ca: self.ca(AGENTS) };
        let enrollment = Enrollment {
            operator: self.url.clone(),
            proof: Proof::Pod(files),
            role,
            name: name.to_owned(),
            addresses: vec!["127.0.0.1".to_owned()],
        };
        within("an answer", tandem_pki::join(&enrollment)).await
    }
}

fn refusal(result: Result<Credentials, EnrollError>) -> String {
    match result {
        Err(EnrollError::Refused(sentence)) => sentence,
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test]
async fn a_pod_joins_as_its_node_and_as_nothing_else() {
    let site = Site::start().await;
    site.node("n1");
    site.node("n2.example");
    site.pod(AGENTS, "tandem-agent", "agent-1", "n1");
    site.pod(AGENTS, "tandem-agent", "agent-2", "n2.example");
    site.pod(AGENTS, "other", "other-1", "n1");
    site.pod(SYSTEM, "tandem-gateway", "gateway-1", "n1");
    let audience = "tandem-operator";

    let token = site.token(AGENTS, "tandem-agent", Some("agent-1"), audience);
    let first = site.join(Role::Host, "n1", &token).await.unwrap();
    assert_eq!(first.identity().unwrap(), Identity::host("n1").unwrap());
    assert!(refusal(site.join(Role::Host, "n2-example", &token).await).contains("node n1"));
    assert!(refusal(site.join(Role::Gateway, "n1", &token).await).contains("tandem-gateway"));
    let dotted = site.token(AGENTS, "tandem-agent", Some("agent-2"), audience);
    site.join(Role::Host, "n2-example", &dotted).await.unwrap();

    let unbound = site.token(AGENTS, "tandem-agent", None, audience);
    assert!(refusal(site.join(Role::Host, "n1", &unbound).await).contains("bound to no pod"));
    let elsewhere = site.token(AGENTS, "tandem-agent", Some("agent-1"), "vault");
    assert!(refusal(site.join(Role::Host, "n1", &elsewhere).await).contains("audience"));
    let foreign = site.token(AGENTS, "other", Some("other-1"), audience);
    assert!(refusal(site.join(Role::Host, "n1", &foreign).await).contains("tandem-agents/other"));
    let gateway = site.token(SYSTEM, "tandem-gateway", Some("gateway-1"), audience);
    site.join(Role::Gateway, "gateway-1", &gateway).await.unwrap();
    assert!(refusal(site.join(Role::Gateway, "gateway-2", &gateway).await).contains("gateway-1"));

    // The same node comes again, as when its folder was lost: both certificates are good. A node that was deleted and made
    // again is another: the old certificate is no longer taken.
    let again = site.token(AGENTS, "tandem-agent", Some("agent-1"), audience);
    let second = site.join(Role::Host, "n1", &again).await.unwrap();
    for credentials in [&first, &second] {
        drop(world::Host::connect(&site.url, "n1", credentials.clone(), 0).await.unwrap());
    }
    site.plane.kubectl(&["delete", "pod", "agent-1", "-n", AGENTS, "--force", "--grace-period=0"]).unwrap();
    site.plane.kubectl(&["delete", "node", "n1"]).unwrap();
    // The API server believes a token that it has seen for some ten seconds more.
    within("the token's end", async {
        while site.join(Role::Host, "n1", &again).await.is_ok() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    })
    .await;
    assert!(refusal(site.join(Role::Host, "n1", &again).await).contains("does not know this token"));
    site.node("n1");
    site.pod(AGENTS, "tandem-agent", "agent-3", "n1");
    let reborn = site.token(AGENTS, "tandem-agent", Some("agent-3"), audience);
    let third = site.join(Role::Host, "n1", &reborn).await.unwrap();
    let refused = world::Host::connect(&site.url, "n1", second, 0).await.err().unwrap();
    assert!(refused.message().contains("revoked"), "{refused}");
    drop(world::Host::connect(&site.url, "n1", third, 0).await.unwrap());
}

#[tokio::test]
async fn pods_and_people_find_the_authorities_of_each_phase() {
    let site = Site::start().await;
    site.node("n1");
    site.pod(AGENTS, "tandem-agent", "agent-1", "n1");
    let (old, _) = site.published().unwrap();
    let mounted = site.ca(AGENTS);
    let mounted_before = std::fs::read_to_string(&mounted).unwrap();
    let fleet = |own: &Credentials| FleetClient::new(world::channel(&site.url, own));
    fleet(&old).rotate_authority(RotateAuthorityRequest::default()).await.unwrap();
    let authorities = || {
        let text = std::fs::read_to_string(site.ca(AGENTS)).unwrap();
        (text.matches("BEGIN CERTIFICATE").count(), text)
    };
    assert_eq!(authorities().0, 2, "pods that start now are told of both");
    let phase = async |wanted: &str| {
        within(wanted, async {
            loop {
                let (own, _) = site.published().unwrap();
                if let Ok(status) = fleet(&own).authority(AuthorityRequest {}).await
                    && status.get_ref().phase == wanted
                {
                    return own;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        })
        .await
    };
    let admin = phase("Reissuing").await;
    // A pod whose mount is old joins, since the new authority is vouched for by the old one. It is revoked again: nobody is there who
    // would confirm what it trusts.
    let token = site.token(AGENTS, "tandem-agent", Some("agent-1"), "tandem-operator");
    let files = PodFiles { token, ca: mounted };
    std::fs::write(&files.ca, &mounted_before).unwrap();
    let enrollment = Enrollment {
        operator: site.url.clone(),
        proof: Proof::Pod(files),
        role: Role::Host,
        name: "n1".to_owned(),
        addresses: Vec::new(),
    };
    let joined = within("an answer", tandem_pki::join(&enrollment)).await.unwrap();
    assert_eq!(joined.authorities().len(), 2);
    let revoke =
        tandem_control_api::RevokeRequest { role: Role::Host.into(), name: "n1".into(), force: false };
    fleet(&admin).revoke(revoke).await.unwrap();

    let admin = phase("Stable").await;
    let (count, newest) = authorities();
    assert!(count == 1 && newest != mounted_before && admin.ca_pem == newest);
    assert!(admin.issuer(&newest).unwrap().is_some() && old.issuer(&newest).unwrap().is_none());
    // The pod comes again by itself.
    let token = site.token(AGENTS, "tandem-agent", Some("agent-1"), "tandem-operator");
    site.join(Role::Host, "n1", &token).await.unwrap();
}

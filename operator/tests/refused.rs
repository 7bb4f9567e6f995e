//! An object that a real API server refuses to have written holds up nobody else, and is tried again, less and less often.

#![allow(clippy::unwrap_used, reason = "helpers of tests, outside of any test function")]

mod world;

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tandem_control_api::StatusRequest;
use tandem_control_api::fleet_client::FleetClient;
use tandem_pki::Credentials;
use tandem_servers::{AuditEvent, ControlPlane, User};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use world::{World, condition, within};

const MEMORY: u64 = 4 << 30;
const OPERATOR: User<'static> = User { name: "the-operator", groups: &["system:masters"] };
/// Refusals of the same write that are waited for: between them lie 1, 2 and 4 s.
const REFUSALS: usize = 4;

struct Site {
    plane: ControlPlane,
    world: World,
    operator: Child,
    metrics: u16,
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
        for namespace in ["llm", "tandem-system"] {
            plane.kubectl(&["create", "namespace", namespace]).unwrap();
        }
        let port = tandem_servers::free_port([127, 0, 0, 1].into()).unwrap();
        let metrics = tandem_servers::free_port([127, 0, 0, 1].into()).unwrap();
        let data = dir.path().join("operator");
        let mut command = Command::new(env!("CARGO_BIN_EXE_tandem-operator"));
        command.args(["run", "--store", "kubernetes", "--listen", &format!("127.0.0.1:{port}")]);
        command.args(["--metrics-listen", &format!("127.0.0.1:{metrics}")]);
        command.arg("--kubeconfig").arg(plane.kubeconfig(OPERATOR).unwrap()).arg("--data-dir").arg(&data);
        let log = std::fs::File::create(dir.path().join("operator.log")).unwrap();
        let operator = command.stdin(Stdio::null()).stderr(log).spawn().unwrap();
        let url = format!("https://127.0.0.1:{port}");
        let admin = answers(&url, data.join("admin")).await;
        let world = World::of_process(dir, &url, admin);
        Self { plane, world, operator, metrics }
    }

    /// Creates or deletes what is in the list.
    fn kubectl(&self, verb: &str, items: &Value) {
        let path = self.world.dir.path().join("objects.json");
        let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
        std::fs::write(&path, list.to_string()).unwrap();
        self.plane.kubectl(&[verb, "-f", &path.display().to_string()]).unwrap();
    }

    /// When the operator's writes of this host's spec came that were refused, in seconds, in order.
    fn refusals(&self, host: &str) -> Vec<f64> {
        let ours = |event: &&AuditEvent| {
            let about = event.object_ref.as_ref();
            let spec = about.is_some_and(|object| {
                object.resource == "inferencehosts" && object.name == host && object.subresource.is_empty()
            });
            let code = event.response_status.as_ref().map_or(0, |status| status.code);
            spec && event.user.username == OPERATOR.name && event.verb == "update" && code == 422
        };
        let audit = self.plane.audit().unwrap();
        let times = audit.iter().filter(ours).map(|event| {
            let at: jiff::Timestamp = event.request_received_timestamp.parse().unwrap();
            at.as_duration().as_secs_f64()
        });
        let mut times: Vec<f64> = times.collect();
        times.sort_by(f64::total_cmp);
        times
    }

    /// One figure of the operator's, by its name and labels.
    async fn figure(&self, name: &str) -> f64 {
        let mut stream = TcpStream::connect(("127.0.0.1", self.metrics)).await.unwrap();
        stream.write_all(b"GET /metrics HTTP/1.0\r\nhost: localhost\r\n\r\n").await.unwrap();
        let mut text = String::new();
        within("the figures", stream.read_to_string(&mut text)).await.unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{text}"));
        line.trim().parse().unwrap()
    }
}

async fn answers(url: &str, admin: PathBuf) -> Credentials {
    within("the operator answers", async {
        loop {
            if let Ok(credentials) = Credentials::load(&admin) {
                let mut fleet = FleetClient::new(world::channel(url, &credentials));
                if fleet.status(StatusRequest {}).await.is_ok_and(|status| status.into_inner().leading) {
                    return credentials;
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await
}

/// Nobody changes the spec of host `a`.
fn policy() -> Value {
    let name = json!({"name": "leave-a-alone"});
    let group = "admissionregistration.k8s.io/v1";
    json!([
        {
            "apiVersion": group,
            "kind": "ValidatingAdmissionPolicy",
            "metadata": name,
            "spec": {
                "matchConstraints": {"resourceRules": [{
                    "apiGroups": ["inference.tandem.dev"],
                    "apiVersions": ["*"],
                    "operations": ["UPDATE"],
                    "resources": ["inferencehosts"],
                }]},
                "validations": [{
                    "expression": "object.metadata.name != 'a' || object.spec == oldObject.spec",
                    "message": "host a is left alone",
                }],
            },
        },
        {
            "apiVersion": group,
            "kind": "ValidatingAdmissionPolicyBinding",
            "metadata": name,
            "spec": {"policyName": "leave-a-alone", "validationActions": ["Deny"]},
        },
    ])
}

#[tokio::test]
async fn a_host_that_may_not_be_written_holds_up_nobody_and_is_tried_less_and_less_often() {
    let site = Site::start().await;
    let mut machines = Vec::new();
    for name in ["a", "b"] {
        let mut machine = site.world.machine(name, MEMORY).await;
        machine.spec("the leader's first word", |spec| spec["term"].as_u64() > Some(0)).await;
        machines.push(machine);
    }
    let [a, b] = &mut machines[..] else { panic!("two of them") };
    site.kubectl("create", &policy());
    within("the policy", async {
        let patch = r#"{"spec": {"unschedulable": true}}"#;
        let attempt = ["patch", "infh", "a", "--type=merge", "--dry-run=server", "-p", patch];
        while site.plane.kubectl(&attempt).is_ok() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await;

    // One copy for each of them; `a` is the first by name.
    site.world.apply(site.world.deployment("tiny", 1)).await.unwrap();
    b.spec("its copy", |spec| spec["workloads"].as_array().is_some_and(|all| all.len() == 1)).await;
    let serves = |object: &Value| {
        condition(object, "Ready")["status"] == "True" && condition(object, "Redundant")["status"] == "False"
    };
    site.world.until("InferenceDeployment", "tiny", "one copy that serves", serves).await;
    assert!(a.runs().is_empty());

    within("refusals", async {
        while site.refusals("a").len() < REFUSALS {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
    let times = site.refusals("a");
    let waits: Vec<f64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    for (nth, wait) in waits.iter().take(REFUSALS - 1).enumerate() {
        assert!(*wait >= f64::from(1 << nth), "the waits are {waits:?}");
    }
    let failed = site.figure(r#"tandem_operator_failed_writes_total{kind="InferenceHost"}"#).await;
    assert!(failed >= 4.0, "{failed}");
    let path = "jsonpath={.items[?(@.reason=='WriteRefused')].message}";
    let said = site.plane.kubectl(&["get", "events", "-n", "default", "-o", path]).unwrap();
    assert!(said.contains("host a is left alone"), "{said}");

    // Nothing of the object has changed since; its time comes all the same.
    site.kubectl("delete", &policy());
    a.spec("its copy", |spec| spec["workloads"].as_array().is_some_and(|all| all.len() == 1)).await;
    let redundant = |object: &Value| condition(object, "Redundant")["status"] == "True";
    site.world.until("InferenceDeployment", "tiny", "redundancy", redundant).await;
}

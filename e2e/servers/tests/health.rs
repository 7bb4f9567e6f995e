//! Tools that deploy read a deployment's conditions right: helm and Flux by kstatus, `kubectl wait`, and Argo CD by the health check in
//! examples/gitops. The statuses are the planner's own.
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]
#![allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "the fleet is small")]

#[path = "../../../operator/plan/tests/fleet/mod.rs"]
mod fleet;

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use fleet::{Fleet, spec};
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use tandem_crds::InferenceDeployment;
use tandem_plan::Model;
use tandem_servers::{ControlPlane, Tool, Tools, User};

/// What a tool shall make of it.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Reads {
    Current,
    InProgress,
    Failed,
}

struct State {
    name: &'static str,
    object: InferenceDeployment,
    reads: Reads,
    argo: &'static str,
    ready: bool,
}

fn states() -> Vec<State> {
    let mut states = Vec::new();
    let mut add = |name, fleet: &Fleet, reads, argo, ready| {
        let object = fleet.deployment("kimi").clone();
        states.push(State { name, object, reads, argo, ready });
    };
    let mut fleet = Fleet::new();
    for host in ["a", "b", "c"] {
        fleet.join(host, 1);
    }
    fleet.apply("kimi", spec(1, 1), 1);
    add("new", &fleet, Reads::InProgress, "Progressing", false);
    fleet.plan();
    add("reconciling", &fleet, Reads::InProgress, "Progressing", false);
    fleet.settle();
    add("ready", &fleet, Reads::Current, "Healthy", true);
    fleet.kill(&fleet.host_that_serves("kimi"));
    fleet.pass(12);
    fleet.plan();
    add("survived a host's loss", &fleet, Reads::Current, "Healthy", true);
    fleet.pass(60);
    fleet.plan();
    add("replacing the lost copy", &fleet, Reads::Current, "Healthy", true);

    let mut fleet = Fleet::new();
    fleet.join("a", 1);
    fleet.apply_model("kimi", spec(1, 0), Model::Failed("the source has no such file".to_owned()));
    fleet.plan();
    add("stalled, no model", &fleet, Reads::Failed, "Degraded", false);
    let mut fleet = Fleet::new();
    fleet.join("a", 1);
    fleet.apply("kimi", spec(1, 0), 2);
    fleet.plan();
    add("stalled, no room", &fleet, Reads::Failed, "Degraded", false);
    states
}

/// A value as Lua writes it.
fn lua(value: &Value) -> String {
    match value {
        Value::Null => "nil".to_owned(),
        Value::Array(items) => format!("{{{}}}", items.iter().map(lua).collect::<Vec<_>>().join(",")),
        Value::Object(fields) => {
            let fields = fields.iter().map(|(key, value)| format!("[{}]={}", json!(key), lua(value)));
            format!("{{{}}}", fields.collect::<Vec<_>>().join(","))
        }
        plain => plain.to_string(),
    }
}

/// What Argo CD would show: health and message.
fn argo(object: &InferenceDeployment, dir: &Path) -> (String, String) {
    let check = include_str!("../../../examples/gitops/argocd/health.lua");
    let object = lua(&serde_json::to_value(object).unwrap());
    let script = dir.join("health.lua");
    let text = format!(
        "obj = {object}\nlocal function check()\n{check}\nend\nlocal health = check()\nprint(health.status)\nprint(health.message)\n"
    );
    fs::write(&script, text).unwrap();
    let glua = Tools::find().unwrap().program(Tool::Lua, "glua").unwrap();
    let output = Command::new(glua).arg(&script).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let (status, message) = said.trim().split_once('\n').unwrap();
    (status.to_owned(), message.to_owned())
}

#[test]
fn argo_cd_reads_every_state() {
    let dir = tempfile::tempdir().unwrap();
    for State { name, object, argo: expected, .. } in states() {
        let (status, message) = argo(&object, dir.path());
        assert_eq!(status, expected, "{name}: {message}");
        assert!(!message.is_empty() && message != "nil", "{name} says nothing");
    }
    // A generation that the operator has not seen is in progress, whatever is said of the one before.
    let mut newer = states().remove(2).object;
    newer.metadata.generation = Some(2);
    assert_eq!(argo(&newer, dir.path()).0, "Progressing");
    let mut fleet = Fleet::new();
    fleet.join("a", 1);
    fleet.apply("kimi", spec(0, 0), 1);
    fleet.settle();
    assert_eq!(argo(fleet.deployment("kimi"), dir.path()).0, "Suspended");
}

/// What kstatus makes of it: status and message.
fn kstatus(object: &Value) -> (String, String) {
    let program = Tools::find().unwrap().program(Tool::Kstatus, "kstatus").unwrap();
    let mut child = Command::new(program).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(object.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "kstatus can't read {object}");
    let said = String::from_utf8(output.stdout).unwrap();
    let (status, message) = said.trim_end().split_once('\n').unwrap();
    (status.to_owned(), message.to_owned())
}

#[test]
fn kstatus_reads_every_state() {
    let definitions = tandem_crds::generated_files().into_iter();
    let mut definitions = definitions.map(|(_, yaml)| serde_yaml::from_str::<Value>(&yaml).unwrap());
    let definition = definitions.find(|crd| crd["spec"]["names"]["kind"] == "InferenceDeployment").unwrap();
    let unseen =
        &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]["default"];
    // As the server would have it: it counts generations, and says of what no operator has seen yet that none has.
    let stored = |object: &InferenceDeployment, generation: i64| {
        let mut object = serde_json::to_value(object).unwrap();
        object["apiVersion"] = json!(tandem_crds::API_VERSION);
        object["kind"] = json!("InferenceDeployment");
        object["metadata"]["generation"] = json!(generation);
        if object["status"].is_null() {
            object["status"] = unseen.clone();
        }
        object
    };
    let mut failed = 0;
    for State { name, object, reads, .. } in states() {
        let generation = object.status.as_ref().and_then(|status| status.observed_generation).unwrap_or(1);
        let (status, message) = kstatus(&stored(&object, generation));
        assert_eq!(status, format!("{reads:?}"), "{name}: {message}");
        assert!(!message.is_empty(), "{name} says nothing");
        failed += u32::from(reads == Reads::Failed);

        // Whatever is said of the generation before, one that the operator has not seen is in progress.
        let (status, message) = kstatus(&stored(&object, generation + 1));
        assert_eq!(status, "InProgress", "{name}, changed: {message}");

        let mut deleted = stored(&object, generation);
        deleted["metadata"]["deletionTimestamp"] = json!("2026-03-01T12:00:00Z");
        assert_eq!(kstatus(&deleted).0, "Terminating", "{name}, deleted");
    }
    assert_eq!(failed, 2);
}

/// A chart with the one object.
fn chart(dir: &Path, object: &InferenceDeployment) {
    fs::create_dir_all(dir.join("templates")).unwrap();
    fs::write(dir.join("Chart.yaml"), "apiVersion: v2\nname: one\nversion: 0.1.0\n").unwrap();
    let manifest = json!({
        "apiVersion": tandem_crds::API_VERSION, "kind": "InferenceDeployment",
        "metadata": {"name": "kimi", "namespace": "llm"}, "spec": object.spec
    });
    fs::write(dir.join("templates/kimi.yaml"), manifest.to_string()).unwrap();
}

#[tokio::test]
async fn helm_and_kubectl_wait_read_every_state() {
    let plane = ControlPlane::start().await.unwrap();
    plane.kubectl(&["create", "namespace", "llm"]).unwrap();
    let client = plane.client(User::ADMIN).await.unwrap();
    let api: Api<InferenceDeployment> = Api::namespaced(client, "llm");
    let helm = Tools::find().unwrap().program(Tool::Helm, "helm").unwrap();
    let kubeconfig = plane.kubeconfig(User::ADMIN).unwrap();
    let upgrade = |release: &str, chart: &Path, wait: &[&str]| {
        let mut command = Command::new(&helm);
        command.env("HOME", plane.dir()).arg("--kubeconfig").arg(&kubeconfig);
        let output =
            command.args(["upgrade", "--install", release, "-n", "llm"]).arg(chart).args(wait).output();
        let output = output.unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for (number, State { name, object, reads, ready, .. }) in states().into_iter().enumerate() {
        let release = format!("one-{number}");
        let dir = tempfile::tempdir().unwrap();
        chart(dir.path(), &object);
        let (installed, said) = upgrade(&release, dir.path(), &[]);
        assert!(installed, "{name}: {said}");
        let stored = api.get("kimi").await.unwrap();
        if let Some(mut status) = object.status {
            // The server counts generations by itself.
            status.observed_generation = stored.metadata.generation;
            for condition in &mut status.conditions {
                condition.observed_generation = stored.metadata.generation;
            }
            let patch = Patch::Merge(json!({"status": status}));
            api.patch_status("kimi", &PatchParams::default(), &patch).await.unwrap();
        }
        let (waited, said) = upgrade(&release, dir.path(), &["--wait", "--timeout=4s"]);
        println!("{name}: {waited} {said}");
        assert_eq!(waited, reads == Reads::Current, "{name}: helm says {said}");
        if reads == Reads::Failed {
            assert!(said.contains("Failed") || said.contains("failed"), "{name}: helm says {said}");
        }
        let wait = ["wait", "-n", "llm", "--for=condition=Ready", "--timeout=1s", "infd/kimi"];
        assert_eq!(plane.kubectl(&wait).is_ok(), ready, "{name}: kubectl wait");
        plane.kubectl(&["delete", "-n", "llm", "infd/kimi"]).unwrap();
    }
}

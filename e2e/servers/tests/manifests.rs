//! Plain YAML and the kustomize base: what the chart renders, taken by a real API server.
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tandem_servers::{ControlPlane, User, manifests};

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn objects(yaml: &str) -> Vec<Value> {
    let documents = yaml.split("---\n").map(|document| serde_yaml::from_str::<Value>(document).unwrap());
    documents.filter(|object| !object.is_null()).collect()
}

/// Kind, namespace and name of every object.
fn identities(yaml: &str) -> BTreeSet<String> {
    let identity = |object: &Value| {
        let parts = [&object["kind"], &object["metadata"]["namespace"], &object["metadata"]["name"]];
        parts.map(|part| part.as_str().unwrap_or_default()).join("/")
    };
    objects(yaml).iter().map(identity).collect()
}

#[test]
fn what_is_committed_is_what_the_chart_renders() {
    let files = manifests::generated_files().unwrap();
    for (name, text) in &files {
        let committed = fs::read_to_string(workspace().join(name)).unwrap_or_default();
        assert!(committed == *text, "{name} is another: run `cargo xtask manifests`");
    }
    for folder in ["charts/plain", "charts/kustomize"] {
        for entry in fs::read_dir(workspace().join(folder)).unwrap() {
            let name = format!("{folder}/{}", entry.unwrap().file_name().display());
            assert!(files.iter().any(|(other, _)| *other == name), "{name} is rendered no more: delete it");
        }
    }
}

#[tokio::test]
async fn the_api_server_takes_the_file_the_base_and_an_overlay() {
    let plane = ControlPlane::start().await.unwrap();
    let at = |name: &str| workspace().join(name).display().to_string();
    let plain = fs::read_to_string(workspace().join("charts/plain/tandem.yaml")).unwrap();
    let base = plane.kubectl(&["kustomize", &at("charts/kustomize")]).unwrap();
    let overlay = plane.kubectl(&["kustomize", &at("examples/kustomize")]).unwrap();
    assert_eq!(identities(&plain), identities(&base));
    assert_eq!(identities(&base), identities(&overlay));

    // A dry run makes no namespace for what lies in it.
    for namespace in ["tandem-system", "tandem-agents"] {
        plane.kubectl(&["create", "namespace", namespace]).unwrap();
    }
    for (name, yaml) in [("plain", &plain), ("base", &base), ("overlay", &overlay)] {
        let file = plane.dir().join(format!("{name}.yaml"));
        fs::write(&file, yaml).unwrap();
        let mut apply = plane.kubectl_command(User::ADMIN).unwrap();
        let how = ["--server-side", "--dry-run=server", "--validate=strict", "--force-conflicts", "-f"];
        let taken = apply.arg("apply").args(how).arg(&file).output().unwrap();
        let said = String::from_utf8_lossy(&taken.stderr).into_owned();
        assert!(taken.status.success(), "{name}: {said}");
        assert!(!said.to_lowercase().contains("warning"), "{name}: {said}");
    }

    // What the overlay is an example of.
    let find = |kind: &str, name: &str| {
        let mut all = objects(&overlay).into_iter();
        all.find(|object| object["kind"] == kind && object["metadata"]["name"] == name).unwrap()
    };
    let container = |object: &Value, name: &str| {
        let all = object["spec"]["template"]["spec"]["containers"].as_array().unwrap();
        all.iter().find(|container| container["name"] == name).unwrap().clone()
    };
    let gateway = find("Deployment", "tandem-gateway");
    assert_eq!(gateway["spec"]["replicas"], 3);
    assert_eq!(container(&gateway, "gateway")["image"], "registry.example.com/tandem-gateway:0.1.0");
    let agents = find("DaemonSet", "tandem-agent-default");
    assert_eq!(container(&agents, "runner")["image"], "registry.example.com/tandem-agent:0.1.0");
    assert_eq!(container(&agents, "runner")["resources"]["limits"]["nvidia.com/gpu"], 8);
    assert_eq!(agents["spec"]["template"]["spec"]["nodeSelector"]["nvidia.com/gpu.present"], "true");
    let arguments = container(&find("Deployment", "tandem-operator"), "operator")["args"].clone();
    assert!(arguments.as_array().unwrap().contains(&"--advertise=tandem.example.com".into()), "{arguments}");
}

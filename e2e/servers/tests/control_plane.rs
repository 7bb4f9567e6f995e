//! A control plane comes up in seconds, with users, our resources and an audit log, and leaves nothing behind.
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

use std::path::PathBuf;

use k8s_openapi::api::core::v1::Namespace;
use kube::Api;
use tandem_servers::{ControlPlane, Etcd, Options, User};

#[tokio::test]
async fn an_api_server_knows_our_resources_and_our_users_and_ends_with_its_test() {
    let plane = ControlPlane::start().await.unwrap();
    let kinds = plane.kubectl(&["api-resources", "--categories=tandem", "-o", "name"]).unwrap();
    assert!(kinds.contains("inferencedeployments"), "{kinds}");
    let spaces: Api<Namespace> = Api::all(plane.client(User::ADMIN).await.unwrap());
    assert!(spaces.list(&Default::default()).await.unwrap().items.len() >= 4);
    let stranger = User { name: "stranger", groups: &[] };
    let refused = plane.kubectl_as(stranger, &["get", "infd"]).unwrap_err().to_string();
    assert!(refused.contains("stranger") && refused.contains("forbidden"), "{refused}");
    let seen = plane.audit().unwrap();
    let by_stranger = |event: &&tandem_servers::AuditEvent| event.user.username == "stranger";
    assert!(seen.iter().filter(by_stranger).all(|event| !event.is_write()));
    let dir: PathBuf = plane.dir().to_owned();
    drop(plane);
    assert!(!dir.exists());
}

#[tokio::test]
async fn three_members_of_etcd_survive_the_loss_of_one() {
    let mut etcd = Etcd::start(3).unwrap();
    etcd.ctl(&["put", "key", "value"]).unwrap();
    etcd.member(0).kill();
    assert!(etcd.ctl(&["get", "key"]).unwrap().contains("value"));
    etcd.member(0).restart().unwrap();
    etcd.wait(0).unwrap();
}

#[tokio::test]
async fn a_scaled_count_survives_that_the_manifest_is_applied_again() {
    let plane = ControlPlane::start().await.unwrap();
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/tiny.yaml");
    let replicas = || plane.kubectl(&["get", "infd/tiny-kimi", "-o", "jsonpath={.spec.replicas}"]).unwrap();
    let generation =
        || plane.kubectl(&["get", "infd/tiny-kimi", "-o", "jsonpath={.metadata.generation}"]).unwrap();
    plane.kubectl(&["apply", "--server-side", "-f", manifest]).unwrap();
    assert_eq!(replicas(), "1");
    plane.kubectl(&["scale", "infd/tiny-kimi", "--replicas=3"]).unwrap();
    let scaled = generation();
    plane.kubectl(&["apply", "--server-side", "-f", manifest]).unwrap();
    assert_eq!((replicas().as_str(), generation()), ("3", scaled));
    // The manifest that on-call and GitOps share in the first place.
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/kimi.yaml");
    plane.kubectl(&["create", "namespace", "llm"]).unwrap();
    let kimi = |field: &str| {
        plane.kubectl(&["get", "-n", "llm", "infd/kimi", "-o", &format!("jsonpath={{{field}}}")]).unwrap()
    };
    plane.kubectl(&["apply", "--server-side", "--field-manager=gitops", "-f", manifest]).unwrap();
    plane.kubectl(&["scale", "-n", "llm", "infd/kimi", "--replicas=2"]).unwrap();
    let scaled = kimi(".metadata.resourceVersion");
    plane.kubectl(&["apply", "--server-side", "--field-manager=gitops", "-f", manifest]).unwrap();
    assert_eq!((kimi(".spec.replicas"), kimi(".metadata.resourceVersion")), ("2".to_owned(), scaled));
    let refused = plane.kubectl(&["scale", "infd/tiny-kimi", "--replicas=65"]).unwrap_err().to_string();
    assert!(refused.contains("use 0 (runs nothing) to 64"), "{refused}");
    let renamed = r#"{"spec": {"model": {"name": "other"}}}"#;
    let refused = plane.kubectl(&["patch", "infd/tiny-kimi", "--type=merge", "-p", renamed]);
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("model.name is immutable"), "{refused}");
}

#[tokio::test]
async fn controllers_and_scheduler_run_and_a_namespace_with_a_deployment_goes_without_us() {
    let options = Options { controller_manager: true, scheduler: true, ..Options::default() };
    let plane = ControlPlane::start_with(options).await.unwrap();
    let text = include_str!("../../../examples/tiny.yaml").replace("namespace: default", "namespace: llm");
    let manifest = plane.dir().join("tiny.yaml");
    std::fs::write(&manifest, text).unwrap();
    plane.kubectl(&["create", "namespace", "llm"]).unwrap();
    // Made by the controller manager, once it runs.
    let made = ["wait", "--for=create", "--timeout=60s", "-n", "llm", "serviceaccount/default"];
    plane.kubectl(&made).unwrap();
    plane.kubectl(&["apply", "--server-side", "-f", manifest.to_str().unwrap()]).unwrap();
    let pod = ["run", "lonely", "-n", "llm", "--image=none.invalid/none", "--restart=Never"];
    plane.kubectl(&pod).unwrap();
    // There is no node: it is the scheduler that says so.
    let unscheduled =
        ["wait", "--for=condition=PodScheduled=false", "--timeout=60s", "-n", "llm", "pod/lonely"];
    plane.kubectl(&unscheduled).unwrap();
    // No operator runs, and nothing of ours holds the namespace back.
    plane.kubectl(&["delete", "namespace", "llm", "--timeout=60s"]).unwrap();
    let gone = plane.kubectl(&["get", "infd", "--all-namespaces", "-o", "name"]).unwrap();
    assert_eq!(gone, "");
}

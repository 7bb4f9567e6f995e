//! Who may do what, by the chart's roles and policies on a real API server.
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use tandem_servers::{ControlPlane, Options, Tool, Tools, User};

const OPERATOR: &str = "--as=system:serviceaccount:tandem-system:tandem-operator";

fn rendered(dir: &Path, values: &[&str]) -> String {
    let helm = Tools::find().unwrap().program(Tool::Helm, "helm").unwrap();
    let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../charts/tandem");
    let mut command = Command::new(helm);
    command.args(["template", "tandem"]).arg(chart).args([
        "--namespace",
        "tandem-system",
        "--set",
        "crds.enabled=false",
    ]);
    for value in values {
        command.args(["--set", value]);
    }
    for part in ["admission", "roles", "operator-rbac"] {
        command.args(["--show-only", &format!("templates/{part}.yaml")]);
    }
    let output = command.env("HOME", dir).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let file = dir.join("rendered.yaml");
    std::fs::write(&file, output.stdout).unwrap();
    file.display().to_string()
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < end, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[tokio::test]
async fn an_operator_of_some_namespaces_tells_of_hosts_and_reads_nothing_elsewhere() {
    let plane = ControlPlane::start().await.unwrap();
    for namespace in ["tandem-system", "tandem-agents", "llm"] {
        plane.kubectl(&["create", "namespace", namespace]).unwrap();
    }
    plane.kubectl(&["apply", "-f", &rendered(plane.dir(), &["watchNamespaces={llm}"])]).unwrap();
    let may = |verb: &str, resource: &str, namespace: &str| {
        let mut ask = plane.kubectl_command(User::ADMIN).unwrap();
        ask.args(["auth", "can-i", verb, resource, "-n", namespace, OPERATOR]);
        ask.output().unwrap().status.success()
    };
    // Events of what has no namespace are in `default`.
    for verb in ["list", "create", "update", "delete"] {
        for namespace in ["default", "llm"] {
            assert!(may(verb, "events", namespace), "{verb} events in {namespace}");
        }
    }
    assert!(may("get", "secrets", "llm"));
    for resource in ["secrets", "inferencedeployments.inference.tandem.dev"] {
        assert!(!may("get", resource, "default"), "{resource}");
    }
    assert!(!may("create", "events", "kube-system"));
}

#[tokio::test]
async fn people_see_edit_and_scale_by_role_and_nobody_writes_what_is_the_operators() {
    let options = Options { controller_manager: true, ..Options::default() };
    let plane = ControlPlane::start_with(options).await.unwrap();
    for namespace in ["tandem-system", "tandem-agents", "llm"] {
        plane.kubectl(&["create", "namespace", namespace]).unwrap();
    }
    plane.kubectl(&["apply", "-f", &rendered(plane.dir(), &[])]).unwrap();
    let (viewer, editor) = (User { name: "viewer", groups: &[] }, User { name: "editor", groups: &[] });
    for (user, role) in [(viewer, "view"), (editor, "edit")] {
        let name = format!("--user={}", user.name);
        let role = format!("--clusterrole={role}");
        plane.kubectl(&["create", "rolebinding", user.name, "-n", "llm", &role, &name]).unwrap();
    }
    plane
        .kubectl(&[
            "create",
            "clusterrolebinding",
            "hosts",
            "--clusterrole=tandem-hosts-edit",
            "--user=editor",
        ])
        .unwrap();
    let kimi = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/kimi.yaml").display().to_string();
    let may = |user: User<'_>, arguments: &[&str]| plane.kubectl_as(user, arguments);

    // The cluster's own roles take Tandem's in by a controller.
    until("the role `edit` knows deployments", || may(editor, &["apply", "-f", &kimi]).is_ok());
    until("the role `view` knows deployments", || may(viewer, &["get", "infd", "-n", "llm"]).is_ok());
    may(editor, &["scale", "infd/kimi", "-n", "llm", "--replicas=2"]).unwrap();
    for refused in [
        ["scale", "infd/kimi", "-n", "llm", "--replicas=3"],
        ["delete", "infd/kimi", "-n", "llm", "--wait=false"],
    ] {
        assert!(may(viewer, &refused).unwrap_err().to_string().contains("forbidden"), "{refused:?}");
    }
    assert!(may(viewer, &["get", "infh"]).unwrap_err().to_string().contains("forbidden"));
    assert!(
        may(editor, &["get", "secrets", "-n", "tandem-system"])
            .unwrap_err()
            .to_string()
            .contains("forbidden")
    );

    // Not even who may do everything says what runs on a host, or what was seen.
    let admin = |arguments: &[&str]| plane.kubectl(arguments);
    let host = plane.dir().join("host.json");
    std::fs::write(
        &host,
        r#"{"apiVersion": "inference.tandem.dev/v1alpha1", "kind": "InferenceHost", "metadata": {"name": "mac-a"}, "spec": {"term": 1}}"#,
    )
    .unwrap();
    let host = host.display().to_string();
    let status = r#"{"status": {"observedGeneration": 99}}"#;
    let forged = ["patch", "infd", "kimi", "-n", "llm", "--subresource=status", "--type=merge", "-p", status];
    until("the policies are in force", || {
        admin(&forged).is_err_and(|error| error.to_string().contains("the operator has seen"))
    });
    assert!(admin(&["create", "-f", &host]).unwrap_err().to_string().contains("nobody makes them"));
    admin(&["create", "-f", &host, OPERATOR]).unwrap();
    let patch = |what: &str, who: User<'_>| may(who, &["patch", "infh", "mac-a", "--type=merge", "-p", what]);
    patch(r#"{"spec": {"unschedulable": true}}"#, editor).unwrap();
    let refused = patch(r#"{"spec": {"term": 7}}"#, editor).unwrap_err().to_string();
    assert!(refused.contains("the operator's to say"), "{refused}");
    admin(&["patch", "infh", "mac-a", "--type=merge", "-p", r#"{"spec": {"term": 7}}"#, OPERATOR]).unwrap();
    may(editor, &["delete", "infh", "mac-a"]).unwrap();
}

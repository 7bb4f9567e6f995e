//! The GitOps example: rendered, applied twice without a difference, and at peace with whoever scales.
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

use std::path::Path;
use std::process::Command;

use tandem_servers::{ControlPlane, User};

fn example(folder: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/gitops").join(folder).display().to_string()
}

fn output(command: &mut Command) -> (bool, String) {
    let output = command.output().unwrap();
    let (out, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output.status.success(), format!("{out}{said}"))
}

#[tokio::test]
async fn models_are_applied_twice_without_a_difference_and_a_scaled_count_stays() {
    let plane = ControlPlane::start().await.unwrap();
    let models = example("models");
    let apply = || plane.kubectl(&["apply", "--server-side", "--field-manager=flux", "-k", &models]).unwrap();
    apply();
    let diff = || {
        let mut diff = plane.kubectl_command(User::ADMIN).unwrap();
        output(diff.args(["diff", "--server-side", "--field-manager=flux", "-k", &models]))
    };
    let (same, text) = diff();
    assert!(same, "{text}");
    // Without an operator, the next write is the one that keeps the defaults of the status.
    apply();
    let version = || {
        let path = "jsonpath={.metadata.resourceVersion} {.metadata.generation}";
        plane.kubectl(&["get", "infd", "kimi", "-n", "llm", "-o", path]).unwrap()
    };
    let first = version();
    apply();
    assert_eq!(version(), first);
    let mut diff = plane.kubectl_command(User::ADMIN).unwrap();
    let (same, text) = output(diff.args(["diff", "--server-side", "--field-manager=flux", "-k", &models]));
    assert!(same, "{text}");

    plane.kubectl(&["scale", "infd/kimi", "-n", "llm", "--replicas=3"]).unwrap();
    let scaled = version();
    apply();
    assert_eq!(version(), scaled);
    let path = "jsonpath={.spec.replicas}";
    assert_eq!(plane.kubectl(&["get", "infd", "kimi", "-n", "llm", "-o", path]).unwrap(), "3");
    let (same, text) = output(plane.kubectl_command(User::ADMIN).unwrap().args([
        "diff",
        "--server-side",
        "--field-manager=flux",
        "-k",
        &models,
    ]));
    assert!(same, "{text}");
}

#[tokio::test]
async fn what_is_for_flux_and_argo_is_rendered() {
    let plane = ControlPlane::start().await.unwrap();
    let rendered = plane.kubectl(&["kustomize", &example("argocd")]).unwrap();
    for part in [
        "kind: Application",
        "resource.customizations.health.inference.tandem.dev_InferenceDeployment",
        "Progressing",
        // What CreateNamespace makes keeps the standard that the release's pods keep.
        "pod-security.kubernetes.io/enforce: restricted",
    ] {
        assert!(rendered.contains(part), "{part} is not in\n{rendered}");
    }
    let flux = std::fs::read_to_string(example("flux/tandem.yaml")).unwrap();
    let mut kinds = Vec::new();
    for document in flux.split("\n---") {
        let object: serde_json::Value = serde_yaml::from_str(document).unwrap();
        kinds.push(object["kind"].as_str().unwrap().to_owned());
        if object["kind"] == "Kustomization" {
            assert_eq!(object["spec"]["path"], "./examples/gitops/models");
        }
    }
    assert_eq!(kinds, ["Namespace", "GitRepository", "HelmRelease", "Kustomization"]);
}

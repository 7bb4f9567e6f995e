//! The chart by real helm: linted, rendered over a matrix of values, and taken by a real API server.
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tandem_servers::tools::Minor;
use tandem_servers::{ControlPlane, Stage, Tool, Tools};

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn chart() -> PathBuf {
    workspace().join("charts/tandem")
}

fn helm(arguments: &[&str]) -> Output {
    let helm = Tools::find().unwrap().program(Tool::Helm, "helm").unwrap();
    let home = tempfile::tempdir().unwrap();
    Command::new(helm).args(arguments).env("HOME", home.path()).output().unwrap()
}

fn render(values: &[&str]) -> Output {
    let chart = chart().display().to_string();
    let mut arguments = vec!["template", "tandem", &chart, "--namespace", "tandem-system"];
    for value in values {
        arguments.extend(["--set", value]);
    }
    helm(&arguments)
}

/// Each with what a user of that kind would set.
const MATRIX: [&[&str]; 7] = [
    &[],
    &["crds.enabled=false", "networkPolicies.enabled=false", "operator.replicas=1"],
    &["watchNamespaces={llm}", "operator.readSecrets=false"],
    &[
        "operator.expose.enabled=true",
        "operator.advertise={tandem.example.com}",
        "operator.expose.annotations.a=b",
    ],
    &[
        "gateway.autoscaling.enabled=true",
        "gateway.service.type=LoadBalancer",
        "gateway.extraArgs={--wait-seconds=60}",
    ],
    &[
        "image.registry=registry.example.com/mirror",
        "image.pullSecrets={pull}",
        "proxy.https=http://proxy.example.com:3128",
        "extraCA.configMap=ca",
        "models.mirrors={hf://=https://hub.example.com/}",
        "models.preseeded=/srv/models",
        "models.preseededClaim=models",
    ],
    &[
        "agents.pools[0].name=b200",
        "agents.pools[0].nodeSelector.gpu=b200",
        "agents.pools[0].resources.limits.nvidia\\.com/gpu=8",
        "agents.pools[0].runtimeClassName=nvidia",
        "agents.pools[1].name=a100",
        "agents.pools[1].resourceClaimTemplates={gpus}",
        "agents.pools[1].tolerations[0].operator=Exists",
    ],
];

#[test]
fn it_is_well_formed_for_helm() {
    let linted = helm(&["lint", "--strict", &chart().display().to_string()]);
    assert!(linted.status.success(), "{}", String::from_utf8_lossy(&linted.stdout));
}

#[test]
fn its_definitions_are_those_of_the_types() {
    for (name, text) in tandem_crds::generated_files() {
        let name = Path::new(name).file_name().unwrap();
        let packed = fs::read_to_string(chart().join("files/crds").join(name)).unwrap();
        assert_eq!(packed, text, "run `cargo xtask crds`");
    }
}

#[test]
fn it_asks_for_the_oldest_supported_kubernetes() {
    let oldest = Minor::supported().unwrap()[0];
    let text = fs::read_to_string(chart().join("Chart.yaml")).unwrap();
    assert!(text.contains(&format!("kubeVersion: \">={oldest}.0-0\"")), "{text}");
}

#[test]
fn misspelt_and_impossible_values_are_refused_by_name() {
    for (value, names) in [
        ("operator.replica=3", "replica"),
        ("agents.pools=none", "pools"),
        ("agents.pools[0].name=No_Label", "name"),
        ("gateway.service.type=Internet", "type"),
        ("models.preseeded=relative", "preseeded"),
        ("operator.expose.nodePort=80", "nodePort"),
    ] {
        let refused = render(&[value]);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && said.contains(names), "{value}: {said}");
    }
}

#[tokio::test]
async fn the_api_server_takes_what_it_renders_without_a_warning() {
    let plane = ControlPlane::start().await.unwrap();
    for namespace in ["tandem-system", "tandem-agents", "llm"] {
        plane.kubectl(&["create", "namespace", namespace]).unwrap();
    }
    // A dry run of a pod wants its account to be there.
    plane.kubectl(&["create", "serviceaccount", "tandem-gateway", "-n", "tandem-system"]).unwrap();
    // The operators' and gateways' pods keep the strictest of Kubernetes' own standards.
    let label = "pod-security.kubernetes.io/warn=restricted";
    plane.kubectl(&["label", "namespace", "tandem-system", label]).unwrap();
    for values in MATRIX {
        let rendered = render(values);
        assert!(rendered.status.success(), "{values:?}: {}", String::from_utf8_lossy(&rendered.stderr));
        let file = plane.dir().join("rendered.yaml");
        fs::write(&file, &rendered.stdout).unwrap();
        let mut apply = plane.kubectl_command(tandem_servers::User::ADMIN).unwrap();
        apply
            .args([
                "apply",
                "--server-side",
                "--dry-run=server",
                "--validate=strict",
                "--force-conflicts",
                "-f",
            ])
            .arg(&file);
        let taken = apply.output().unwrap();
        let said = String::from_utf8_lossy(&taken.stderr).into_owned();
        assert!(taken.status.success(), "{values:?}: {said}");
        assert!(!said.to_lowercase().contains("warning"), "{values:?}: {said}");
    }
}

#[test]
fn every_container_has_limits_probes_and_no_right_that_it_needs_not() {
    // What kube-linter's default checks ask of a workload, as far as it applies: resources, probes, no privilege, a read-only
    // root, no latest tag, no default service account, more than one replica where there may be.
    let rendered = render(&[]);
    let text = String::from_utf8(rendered.stdout).unwrap();
    let mut workloads = 0;
    for document in text.split("\n---").filter(|document| document.contains("containers:")) {
        let object: serde_json::Value = serde_yaml::from_str(document).unwrap();
        let kind = object["kind"].as_str().unwrap();
        let pod = if kind == "Pod" { &object["spec"] } else { &object["spec"]["template"]["spec"] };
        workloads += 1;
        assert_ne!(pod["serviceAccountName"], "default");
        if kind == "Deployment" {
            assert!(object["spec"]["replicas"].as_u64() >= Some(2), "{}", object["metadata"]["name"]);
            assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
            assert!(pod["topologySpreadConstraints"].is_array());
        }
        for container in pod["containers"].as_array().unwrap() {
            let name = &container["name"];
            let security = &container["securityContext"];
            assert_eq!(security["allowPrivilegeEscalation"], false, "{name}");
            assert_eq!(security["readOnlyRootFilesystem"], true, "{name}");
            assert_eq!(security["capabilities"]["drop"][0], "ALL", "{name}");
            assert!(security.get("privileged").is_none(), "{name}");
            assert!(!container["image"].as_str().unwrap().ends_with(":latest"), "{name}");
            // The runner's workers are as large as models are: what they may take is the agent's to say.
            if name != "runner" {
                assert!(container["resources"]["requests"]["cpu"].is_string(), "{name}");
                assert!(container["resources"]["limits"]["memory"].is_string(), "{name}");
            }
            if kind == "Deployment" {
                assert!(
                    container["livenessProbe"].is_object() && container["readinessProbe"].is_object(),
                    "{name}"
                );
            }
        }
    }
    assert_eq!(workloads, 4, "operators, agents, gateways and the test");
}

#[test]
fn every_image_of_the_chart_has_a_containerfile() {
    for (folder, programs) in [("operator", 1), ("agent", 2), ("gateway", 1), ("cli", 1)] {
        let text = fs::read_to_string(workspace().join(folder).join("Containerfile")).unwrap();
        let stage = Stage::parse(&text).unwrap();
        let ours = stage.programs.values().filter(|name| !name.contains('/')).count();
        assert_eq!(ours, programs, "{folder}");
        assert!(stage.programs.keys().any(|path| path.ends_with("ca-certificates.crt")), "{folder}");
    }
}

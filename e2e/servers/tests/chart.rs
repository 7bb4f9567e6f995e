//! The chart by real helm: linted, rendered over a matrix of values, and taken by a real API server.
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
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
const MATRIX: [&[&str]; 9] = [
    &[],
    &["gateway.tls.secretName=gateway-tls", "gateway.service.port=443", "test.keySecret=key"],
    &["gateway.unauthenticated=true"],
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

/// Every pod of a rendered chart, with the object that makes it.
fn pods(rendered: &str) -> Vec<(Value, Value)> {
    let objects = rendered.split("\n---").filter(|document| document.contains("containers:"));
    let objects = objects.map(|document| serde_yaml::from_str::<Value>(document).unwrap());
    objects
        .map(|object| {
            let pod =
                if object["kind"] == "Pod" { &object["spec"] } else { &object["spec"]["template"]["spec"] };
            (object.clone(), pod.clone())
        })
        .collect()
}

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
fn operators_and_agents_send_traces_where_the_value_says() {
    let told = |values: &[&str]| {
        let rendered = String::from_utf8(render(values).stdout).unwrap();
        let endpoints = rendered.lines().filter(|line| line.contains("--otlp-endpoint"));
        endpoints.map(|line| line.trim().to_owned()).collect::<Vec<_>>()
    };
    let argument = "- \"--otlp-endpoint=http://collector:4317\"";
    assert_eq!(told(&["tracing.endpoint=http://collector:4317"]), [argument, argument]);
    assert_eq!(told(&[]), [""; 0], "off, unless a collector is named");
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
        ("models.preseeded=/", "preseeded"),
        ("models.preseeded=/srv/..", "preseeded"),
        ("agents.dataPath=/", "dataPath"),
        ("operator.nodeSelector.fast=true", "/operator/nodeSelector/fast"),
        ("agents.pools[0].name=a,agents.pools[0].nodeSelector.rack=7", "nodeSelector/rack"),
        ("agents.pools[0].name=a,agents.pools[0].labels.rack=7", "labels/rack"),
        ("gateway.podAnnotations.revision=7", "podAnnotations/revision"),
        ("gateway.service.annotations.internal=true", "annotations/internal"),
        ("monitoring.podMonitor.labels.release=7", "labels/release"),
        ("monitoring.serviceMonitor.enabled=yes", "serviceMonitor/enabled"),
        ("gateway.service.port=0", "service/port"),
        ("gateway.tls.secretName=No_Name", "secretName"),
        ("gateway.service.port=65536", "service/port"),
        ("tracing.endpoint=collector:4317", "tracing/endpoint"),
        ("agents.metricsPort=65536", "metricsPort"),
        ("gateway.autoscaling.minReplicas=0", "minReplicas"),
        ("gateway.autoscaling.maxReplicas=0", "maxReplicas"),
        ("agents.pools[0].name=a,agents.pools[1].name=b,agents.pools[2].name=a", "two pools with the name a"),
    ] {
        let refused = render(&[value]);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && said.contains(names), "{value}: {said}");
    }
}

/// The Prometheus Operator itself is not run: what its monitors select by is held against the pods.
#[test]
fn monitors_of_either_kind_find_every_program_with_figures() {
    let values = ["agents.pools[0].name=a", "monitoring.podMonitor.enabled=true"];
    let rendered = render(&[&values[..], &["monitoring.serviceMonitor.enabled=true"]].concat());
    assert!(rendered.status.success(), "{}", String::from_utf8_lossy(&rendered.stderr));
    let text = String::from_utf8(rendered.stdout).unwrap();
    let objects: Vec<Value> =
        text.split("\n---").map(|document| serde_yaml::from_str(document).unwrap()).collect();
    let the = |kind: &str| objects.iter().find(|object| object["kind"] == kind).unwrap();
    let selects = |selector: &Value, labels: &Value| {
        selector.as_object().unwrap().iter().all(|(key, value)| labels[key] == *value)
    };
    let with_figures: Vec<(Value, Value)> = pods(&text)
        .into_iter()
        .filter(|(object, _)| object["kind"] != "Pod")
        .map(|(object, _)| (object["metadata"]["namespace"].clone(), object["spec"]["template"].clone()))
        .collect();
    assert_eq!(with_figures.len(), 3, "operators, agents and gateways");
    let (pod_monitor, service_monitor) = (the("PodMonitor"), the("ServiceMonitor"));
    let services: Vec<&Value> = objects
        .iter()
        .filter(|object| object["kind"] == "Service")
        .filter(|service| {
            selects(&service_monitor["spec"]["selector"]["matchLabels"], &service["metadata"]["labels"])
        })
        .collect();
    assert_eq!(services.len(), 2, "one for each namespace, and none that clients use");
    for (namespace, template) in with_figures {
        let labels = &template["metadata"]["labels"];
        let ports = template["spec"]["containers"].as_array().unwrap().iter();
        let mut ports = ports.flat_map(|container| container["ports"].as_array().into_iter().flatten());
        assert!(ports.any(|port| port["name"] == "metrics"), "{labels}");
        assert!(selects(&pod_monitor["spec"]["selector"]["matchLabels"], labels), "{labels}");
        for monitor in [pod_monitor, service_monitor] {
            let watched = monitor["spec"]["namespaceSelector"]["matchNames"].as_array().unwrap();
            assert!(watched.contains(&namespace), "{namespace}");
        }
        let service = services.iter().find(|service| service["metadata"]["namespace"] == namespace).unwrap();
        assert!(selects(&service["spec"]["selector"], labels), "{labels}");
    }
}

#[test]
fn an_agent_has_limits_in_every_pool() {
    let text = String::from_utf8(render(&["agents.pools[0].name=a"]).stdout).unwrap();
    let agents = pods(&text).into_iter().find(|(object, _)| object["kind"] == "DaemonSet").unwrap().1;
    let containers = agents["containers"].as_array().unwrap();
    let agent = containers.iter().find(|container| container["name"] == "agent").unwrap();
    keeps_the_checks("DaemonSet", agent);
}

#[test]
fn what_is_set_reaches_programs_as_it_is_set() {
    // Each would end, or become something else than text, if it were put into YAML as it is.
    let values = tempfile::NamedTempFile::new().unwrap();
    let text = r#"{
        "models": {"allowSources": ["hf://a: b"], "mirrors": ["hf://=https://hub.example.com/ #c"], "preseeded": "/srv/a #b"},
        "operator": {"advertise": ["*"]},
        "watchNamespaces": ["123"],
        "agents": {"weightsBudget": "1 #2", "pools": [{"name": "a", "memoryLimit": "1 #2", "labels": {"rack": "a: b #c"}}]}
    }"#;
    fs::write(&values, text).unwrap();
    let chart = chart().display().to_string();
    let rendered = helm(&["template", "tandem", &chart, "-f", &values.path().display().to_string()]);
    assert!(rendered.status.success(), "{}", String::from_utf8_lossy(&rendered.stderr));
    let text = String::from_utf8(rendered.stdout).unwrap();
    let arguments: Vec<String> = pods(&text)
        .iter()
        .flat_map(|(_, pod)| pod["containers"].as_array().unwrap().clone())
        .flat_map(|container| container["args"].as_array().unwrap().clone())
        .map(|argument| argument.as_str().unwrap().to_owned())
        .collect();
    for argument in [
        "--allow-source=hf://a: b",
        "--mirror=hf://=https://hub.example.com/ #c",
        "--advertise=*",
        "--watch-namespace=123",
        "--weights-budget=1 #2",
        "--memory-limit=1 #2",
        "--label=rack=a: b #c",
    ] {
        assert!(arguments.iter().any(|other| other == argument), "{argument} is not in {arguments:#?}");
    }
    let seen = pods(&text).iter().any(|(_, pod)| {
        pod["volumes"]
            .as_array()
            .into_iter()
            .flatten()
            .any(|volume| volume["hostPath"]["path"] == "/srv/a #b")
    });
    assert!(seen, "{text}");
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

/// kube-linter's default checks, as of 0.7, by name. The linter is not run; what applies is held by this test:
/// dangling-service, deprecated-service-account-field, docker-sock, drop-net-raw-capability (all are dropped), duplicate-env-var,
/// env-var-secret, host-ipc, host-pid, latest-tag, liveness-port, readiness-port and startup-port, no-read-only-root-fs,
/// non-existent-service-account, pdb-max-unavailable, pdb-min-available, pdb-unhealthy-pod-eviction-policy,
/// privilege-escalation-container, privileged-container, sensitive-host-mounts, ssh-port, unsafe-sysctls.
/// The API server refuses what mismatching-selector, no-extensions-v1beta and invalid-target-ports look for.
///
/// Exceptions:
/// - no-anti-affinity: pods are spread by topology, which also balances three replicas over two nodes.
/// - host-network and run-as-non-root: agents, as their namespace says. Workers are dialled at the node's address, and the folder of the
///   host is root's.
/// - unset-cpu-requirements and unset-memory-requirements: the runner, whose workers are as large as models are.
#[test]
fn every_container_keeps_kube_linters_default_checks_but_for_named_exceptions() {
    let text = String::from_utf8(render(&[]).stdout).unwrap();
    let objects: Vec<Value> =
        text.split("\n---").map(|document| serde_yaml::from_str(document).unwrap()).collect();
    let of_kind = |kind: &'static str| objects.iter().filter(move |object| object["kind"] == kind);
    let pods = pods(&text);
    assert_eq!(pods.len(), 4, "operators, agents, gateways and the test");
    for (object, pod) in &pods {
        let kind = object["kind"].as_str().unwrap();
        let agent = kind == "DaemonSet";
        let namespace = &object["metadata"]["namespace"];
        let account = |account: &Value| {
            account["metadata"]["name"] == pod["serviceAccountName"]
                && account["metadata"]["namespace"] == *namespace
        };
        assert!(of_kind("ServiceAccount").any(account), "{}", pod["serviceAccountName"]);
        for never in ["serviceAccount", "hostIPC", "hostPID"] {
            assert!(pod.get(never).is_none(), "{never} of {kind}");
        }
        assert!(pod["securityContext"].get("sysctls").is_none());
        assert_eq!(pod["hostNetwork"] == true, agent);
        assert_eq!(pod["securityContext"]["runAsNonRoot"] == true, !agent);
        let mounts = pod["volumes"].as_array().into_iter().flatten();
        for path in mounts.filter_map(|volume| volume["hostPath"]["path"].as_str()) {
            assert_eq!(path, "/var/lib/tandem");
        }
        if kind == "Deployment" {
            assert!(object["spec"]["replicas"].as_u64() >= Some(2), "{}", object["metadata"]["name"]);
            let spread = &pod["topologySpreadConstraints"][0];
            assert_eq!(spread["topologyKey"], "kubernetes.io/hostname");
            assert_eq!(spread["matchLabelKeys"][0], "pod-template-hash");
        }
        for container in pod["containers"].as_array().unwrap() {
            keeps_the_checks(kind, container);
        }
    }
    for service in of_kind("Service") {
        let selected = pods.iter().any(|(object, _)| {
            let labels = &object["spec"]["template"]["metadata"]["labels"];
            service["spec"]["selector"].as_object().unwrap().iter().all(|(key, value)| labels[key] == *value)
        });
        assert!(selected, "nothing is behind {}", service["metadata"]["name"]);
    }
    assert_eq!(of_kind("PodDisruptionBudget").count(), 2);
    for budget in of_kind("PodDisruptionBudget") {
        assert_eq!(budget["spec"]["maxUnavailable"], 1);
        assert_eq!(budget["spec"]["unhealthyPodEvictionPolicy"], "AlwaysAllow");
    }
}

fn keeps_the_checks(kind: &str, container: &Value) {
    let name = &container["name"];
    let security = &container["securityContext"];
    assert_eq!(security["allowPrivilegeEscalation"], false, "{name}");
    assert_eq!(security["readOnlyRootFilesystem"], true, "{name}");
    assert_eq!(security["capabilities"]["drop"][0], "ALL", "{name}");
    assert!(security.get("privileged").is_none(), "{name}");
    assert!(!container["image"].as_str().unwrap().ends_with(":latest"), "{name}");
    if name != "runner" {
        assert!(container["resources"]["requests"]["cpu"].is_string(), "{name}");
        assert!(container["resources"]["requests"]["memory"].is_string(), "{name}");
        assert!(container["resources"]["limits"]["memory"].is_string(), "{name}");
    }
    let variables: Vec<&str> = container["env"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|variable| variable["name"].as_str().unwrap())
        .collect();
    for (at, variable) in variables.iter().enumerate() {
        assert!(!variables[..at].contains(variable), "{name} has {variable} twice");
        assert!(!variable.contains("SECRET"), "{name}: {variable}");
    }
    let ports: Vec<&Value> = container["ports"].as_array().into_iter().flatten().collect();
    assert!(ports.iter().all(|port| port["containerPort"] != 22), "{name}");
    if kind == "Deployment" {
        for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
            let asked = &container[probe]["httpGet"]["port"];
            assert!(ports.iter().any(|port| port["name"] == *asked), "{probe} of {name}: {asked}");
        }
    }
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

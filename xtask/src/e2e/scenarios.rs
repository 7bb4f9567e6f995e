//! What is shown, in the order in which it is shown.

mod devices;
mod failures;
mod moves;
mod policies;
mod rights;
mod tls;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use tandem_e2e::story;
use tandem_servers::bare;

use super::cluster::{AGENTS, Cluster, OPERATOR_PORT, SOON, SYSTEM, TEST_KEY};
use crate::{cache, programs};

/// Something that is shown on a cluster.
pub(super) struct Scenario {
    pub(super) name: &'static str,
    /// Others that it builds on.
    pub(super) needs: &'static [&'static str],
    pub(super) run: fn(&mut Cluster) -> Result<()>,
}

const fn scenario(name: &'static str, run: fn(&mut Cluster) -> Result<()>) -> Scenario {
    Scenario { name, needs: &["install"], run }
}

pub(super) const ALL: [Scenario; 15] = [
    Scenario { name: "install", needs: &[], run: install },
    scenario("scale", scale),
    scenario("drain", moves::drain),
    scenario("kubectl-drain", moves::kubectl_drain),
    scenario("agent-killed", failures::agent_killed),
    scenario("agent-out-of-memory", failures::agent_out_of_memory),
    scenario("cordon", moves::cordon),
    scenario("cut-link", failures::cut_link),
    scenario("upgrade", moves::upgrade),
    scenario("node-death", failures::node_death),
    // Only a roll-out deletes agents' pods.
    Scenario { name: "rights", needs: &["install", "upgrade"], run: rights::rights },
    scenario("gateway-tls", tls::gateway_tls),
    scenario("policies", policies::policies),
    scenario("devices", devices::devices),
    scenario("uninstall", uninstall),
];
pub(super) const NAMES: [&str; ALL.len()] = {
    let mut names = [""; ALL.len()];
    let mut n = 0;
    while n < ALL.len() {
        names[n] = ALL[n].name;
        n += 1;
    }
    names
};

/// `helm install`, a third machine that joins by token, `kubectl apply -f examples/tiny.yaml`, and a completion through the
/// gateways' Service.
fn install(cluster: &mut Cluster) -> Result<()> {
    cluster.kubectl(&["create", "namespace", SYSTEM])?;
    let restricted = "pod-security.kubernetes.io/enforce=restricted";
    cluster.kubectl(&["label", "namespace", SYSTEM, restricted])?;
    // The operator mounts no folder of a node: what it reads of models that are there already comes by a claim.
    cluster.apply(&[
        json!({
            "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "models"},
            "spec": {
                "capacity": {"storage": "1Gi"}, "accessModes": ["ReadOnlyMany"], "storageClassName": "",
                "hostPath": {"path": "/var/lib/tandem/examples"},
                "claimRef": {"namespace": SYSTEM, "name": "models"},
            },
        }),
        json!({
            "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "models", "namespace": SYSTEM},
            "spec": {
                "accessModes": ["ReadOnlyMany"], "storageClassName": "", "volumeName": "models",
                "resources": {"requests": {"storage": "1Gi"}},
            },
        }),
    ])?;
    let chart = cache::workspace().join("charts/tandem").display().to_string();
    let port = format!("operator.expose.nodePort={OPERATOR_PORT}");
    cluster.helm(&[
        "install",
        "tandem",
        &chart,
        "--namespace",
        SYSTEM,
        "--set-string=image.tag=1",
        "--set=image.registry=local.test,models.preseeded=/var/lib/tandem/examples,models.preseededClaim=models",
        "--set=operator.expose.enabled=true,operator.expose.type=NodePort,gateway.service.type=NodePort",
        "--set=agents.pools[0].name=default,agents.pools[0].memoryLimit=2GB,gateway.graceSeconds=20",
        "--set",
        &port,
        "--set",
        &format!("test.keySecret={TEST_KEY}"),
        "--wait",
        "--timeout=120s",
    ])?;
    cluster.until("both nodes are hosts", SOON, || {
        let ready = cluster.field(&["infh"], "{.items[*].status.conditions[?(@.type=='Ready')].status}")?;
        Ok(ready == "True True")
    })?;

    cluster.make_key()?;
    let token = cluster.tandem(&["join-token", "--role", "host"])?;
    let file = cluster.dir().join("join-token");
    std::fs::write(&file, token.lines().last().context("no token")?)?;
    let agent = programs::dir()?.join("tandem-agent");
    // Either node may die: nothing gets through it then.
    let operators: Vec<String> =
        cluster.nodes.iter().map(|node| format!("https://{}:{OPERATOR_PORT}", node.address())).collect();
    let command = format!(
        "{} run --operator {} --join-token-file {} --name mac --data-dir /var/lib/tandem/agent --address \
         172.30.0.13 --memory-limit 2GB",
        agent.display(),
        operators.join(","),
        file.display(),
    );
    cluster.mac = Some(bare(&cluster.setting, "mac", 3, &command)?);
    cluster.until("the third machine is a host", SOON, || {
        let path = "{.status.conditions[?(@.type=='Ready')].status}";
        Ok(cluster.field(&["infh", "mac"], path)? == "True")
    })?;

    let manifest = cache::workspace().join("examples/tiny.yaml").display().to_string();
    cluster.kubectl(&["apply", "-f", &manifest])?;
    cluster.kubectl(&["wait", "--for=condition=Ready", "infd/tiny-kimi", "--timeout=90s"])?;
    cluster.kubectl(&["wait", "--for=condition=Redundant", "infd/tiny-kimi", "--timeout=90s"])?;

    let path = "{.spec.ports[0].nodePort}";
    let port = cluster.field(&["svc", "tandem-gateway", "-n", SYSTEM], path)?;
    let client = cluster.client(&format!("http://{}:{port}", cluster.nodes[1].address()))?;
    let runtime = cluster.runtime.clone();
    cluster.until("the model is served", SOON, || runtime.block_on(client.lists("tiny-kimi")))?;
    let said = runtime.block_on(client.chat(&story(40, 7), |_| Ok(())))?;
    ensure!(said.tokens.len() == 40, "{said:?}");
    cluster.helm(&["test", "tandem", "--namespace", SYSTEM, "--timeout=60s"]).map(drop)
}

/// `kubectl scale`, there and back; what Git says is applied again in between, and leaves the count alone.
fn scale(cluster: &mut Cluster) -> Result<()> {
    let copies = |wanted: &str| {
        let ready = cluster.field(&["infd", "tiny-kimi"], "{.status.readyCopies}");
        Ok(ready? == wanted)
    };
    cluster.kubectl(&["scale", "infd/tiny-kimi", "--replicas=2"])?;
    cluster.until("three copies, so that two remain", SOON, || copies("3"))?;
    let manifest = cache::workspace().join("examples/tiny.yaml").display().to_string();
    cluster.kubectl(&["apply", "-f", &manifest])?;
    ensure!(cluster.field(&["infd", "tiny-kimi"], "{.spec.replicas}")? == "2", "the count is another");
    cluster.kubectl(&["scale", "infd/tiny-kimi", "--replicas=1"])?;
    cluster.until("two copies, so that one remains", SOON, || copies("2"))?;
    cluster.kubectl(&["wait", "--for=condition=Redundant", "infd/tiny-kimi", "--timeout=60s"]).map(drop)
}

/// Nothing of the release is left but what was asked to stay: the definitions, and with them what people deployed.
fn uninstall(cluster: &mut Cluster) -> Result<()> {
    cluster.helm(&["uninstall", "tandem", "--namespace", SYSTEM, "--wait", "--timeout=120s"])?;
    // Gateways let their streams end.
    let kinds = "all,sa,cm,secret,role,rolebinding,clusterrole,clusterrolebinding,networkpolicy,pdb,hpa,lease,\
                 validatingadmissionpolicy,validatingadmissionpolicybinding";
    cluster.until("nothing of the release is left", SOON, || {
        let left = ["get", kinds, "-A", "-l", "app.kubernetes.io/instance=tandem", "-o", "name"];
        let left = cluster.kubectl(&left)?;
        ensure!(left.trim().is_empty(), "the release left:\n{left}");
        Ok(true)
    })?;
    for definition in ["inferencedeployments", "inferencehosts"] {
        cluster.kubectl(&["get", "crd", &format!("{definition}.inference.tandem.dev")])?;
    }
    cluster.kubectl(&["get", "infd", "tiny-kimi"])?;
    // Without an operator: nothing has a finalizer.
    cluster.kubectl(&["delete", "infd,infh", "--all", "-A", "--timeout=60s"])?;
    cluster.kubectl(&["delete", "namespace", SYSTEM, "--timeout=60s"])?;
    cluster.kubectl(&["delete", "namespace", AGENTS, "--timeout=60s", "--ignore-not-found"])?;
    // What the operators wrote was in these namespaces alone.
    let names = "{range .items[*]}{.kind}/{.metadata.namespace}/{.metadata.name} {.type}{'\\n'}{end}";
    let all = cluster.field(&["secret,lease,cm", "-A"], names)?;
    let ours: Vec<&str> = all.lines().filter(|line| line.contains("tandem")).collect();
    ensure!(ours.is_empty(), "the operators left {ours:#?}");
    cluster.kubectl(&["delete", "crd", "-l", "!none", "--timeout=60s"]).map(drop)
}

//! What is shown, in the order in which it is shown.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tandem_e2e::{Client, Completion, story};
use tandem_servers::bare;

use super::cluster::{AGENTS, Cluster, OPERATOR_PORT, SYSTEM};
use crate::{cache, programs};

type Scenario = fn(&mut Cluster) -> Result<()>;

/// The one that all others stand on.
pub(super) const FIRST: &str = "install";
pub(super) const ALL: [(&str, Scenario); 3] =
    [(FIRST, install), ("host-death", host_death), ("uninstall", uninstall)];
pub(super) const NAMES: [&str; 3] = [ALL[0].0, ALL[1].0, ALL[2].0];

const SOON: Duration = Duration::from_secs(90);
/// Tokens of the long text.
const TOKENS: usize = 900;

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
        "--set=image.registry=local.test,image.tag=1,models.preseeded=/var/lib/tandem/examples,models.preseededClaim=models",
        "--set=operator.expose.enabled=true,operator.expose.type=NodePort,gateway.service.type=NodePort",
        "--set=agents.pools[0].name=default,agents.pools[0].memoryLimit=2GB,gateway.graceSeconds=20",
        "--set",
        &port,
        "--wait",
        "--timeout=120s",
    ])?;
    cluster.until("both nodes are hosts", SOON, || {
        let ready = cluster.field(&["infh"], "{.items[*].status.conditions[?(@.type=='Ready')].status}")?;
        Ok(ready == "True True")
    })?;

    let token = cluster.tandem(&["join-token", "--role", "host"])?;
    let file = cluster.dir().join("join-token");
    std::fs::write(&file, token.lines().last().context("no token")?)?;
    let agent = programs::dir()?.join("tandem-agent");
    let command = format!(
        "{} run --operator https://{}:{OPERATOR_PORT} --join-token-file {} --name mac --data-dir /var/lib/tandem/agent --address \
         172.30.0.13 --memory-limit 2GB",
        agent.display(),
        cluster.nodes[0].address(),
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
    let client = Client::new(&format!("http://{}:{port}", cluster.nodes[1].address()))?;
    let runtime = cluster.runtime.clone();
    cluster.until("the model is served", SOON, || runtime.block_on(client.lists("tiny-kimi")))?;
    let said = runtime.block_on(client.chat(&story(40, 7), |_| Ok(())))?;
    ensure!(said.tokens.len() == 40, "{said:?}");
    cluster.helm(&["test", "tandem", "--namespace", SYSTEM, "--timeout=60s"]).map(drop)
}

/// A gateway's pod on another machine than this host, and its address.
fn gateway_away_from(cluster: &Cluster, host: &str) -> Result<(String, String)> {
    let pods = cluster.kubectl(&[
        "get",
        "pods",
        "-n",
        SYSTEM,
        "-l",
        "app.kubernetes.io/component=gateway",
        "-o",
        "json",
    ])?;
    let pods: Value = serde_json::from_str(&pods)?;
    let pods = pods["items"].as_array().context("no pods")?;
    let pod =
        pods.iter().find(|pod| pod["spec"]["nodeName"] != host).context("every gateway is on that node")?;
    let text = |pointer: &str| pod.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    Ok((text("/metadata/name"), format!("http://{}:8080", text("/status/podIP"))))
}

/// On which host a gateway's pod has this stream.
fn serving_host(cluster: &Cluster, pod: &str, seen: &Completion) -> Result<String> {
    let stream =
        seen.about["stream"].as_str().and_then(|id| id.get(..8)).context("a stream without an id")?;
    let log = cluster.kubectl(&["logs", "-n", SYSTEM, pod])?;
    let line = log.lines().rfind(|line| line.contains(stream) && line.contains("\"replica\""));
    let line: Value = serde_json::from_str(line.context("the gateway logged no attempt")?)?;
    let replica = line["fields"]["replica"].as_str().context("the attempt has no replica")?;
    Ok(replica.split('/').next().unwrap_or_default().to_owned())
}

/// The whole process tree of the machine that serves a stream is killed in mid-stream.
fn host_death(cluster: &mut Cluster) -> Result<()> {
    let runtime = cluster.runtime.clone();
    // Which machine serves is the gateway's choice: one that serves on a node that has no gateway of ours to talk to.
    let (pod, url) = gateway_away_from(cluster, "mac")?;
    let client = Client::new(&url)?;
    let calm = runtime.block_on(client.chat(&story(TOKENS, 11), |_| Ok(())))?;
    ensure!(calm.tokens.len() == TOKENS, "the calm run has {} tokens", calm.tokens.len());
    let host = serving_host(cluster, &pod, &calm)?;
    let (pod, url) = gateway_away_from(cluster, &host)?;
    let client = Client::new(&url)?;

    let mut killed = None;
    let seen = runtime.block_on(client.chat(&story(TOKENS, 11), |so_far| {
        if killed.is_none() && so_far.tokens.len() >= 40 {
            let host = serving_host(cluster, &pod, so_far)?;
            kill(cluster, &host)?;
            killed = Some(host);
        }
        Ok(())
    }))?;
    let host = killed.context("the text ended before anything happened")?;
    ensure!(seen.tokens == calm.tokens && seen.text == calm.text, "the text is another");
    ensure!(seen.seams.len() == 1 && seen.seams[0].exact, "{:?}", seen.seams);
    eprintln!("      {host} died; the stream went on after {:.0} ms", seen.seams[0].recovery_ms);
    ensure!(cluster.condition("Ready")? == "True", "a survived loss of a host is no loss of Ready");
    cluster.until("Redundant is False", SOON, || {
        ensure!(cluster.condition("Ready")? == "True", "Ready is not True");
        Ok(cluster.condition("Redundant")? == "False")
    })?;
    let took = cluster.until("Redundant is True again", SOON, || {
        ensure!(cluster.condition("Ready")? == "True", "Ready is not True");
        Ok(cluster.condition("Redundant")? == "True")
    })?;
    eprintln!("      redundant again {:.1} s after that was seen", took.as_secs_f64());
    let told = cluster.kubectl(&["describe", "infd", "tiny-kimi"])?;
    for word in ["Redundant", "Starting", host.as_str()] {
        ensure!(told.contains(word), "kubectl describe does not tell of {word}:\n{told}");
    }
    boot(cluster, &host)
}

fn kill(cluster: &mut Cluster, host: &str) -> Result<()> {
    match cluster.nodes.iter_mut().find(|node| node.name() == host) {
        Some(node) => node.kill(),
        None => cluster.mac.as_mut().context("there is no such machine")?.kill(),
    }
}

fn boot(cluster: &mut Cluster, host: &str) -> Result<()> {
    match cluster.nodes.iter_mut().position(|node| node.name() == host) {
        Some(n) => {
            cluster.nodes[n].boot()?;
            cluster.nodes[n].wait_ready(&cluster.plane, SOON)?;
        }
        None => cluster.mac.as_mut().context("there is no such machine")?.boot()?,
    }
    cluster.until("the machine is a host again", SOON, || {
        let path = "{.status.conditions[?(@.type=='Ready')].status}";
        Ok(cluster.field(&["infh", host], path)? == "True")
    })?;
    Ok(())
}

/// Nothing of the release is left but what was asked to stay.
fn uninstall(cluster: &mut Cluster) -> Result<()> {
    cluster.kubectl(&["delete", "infd", "--all", "-A", "--timeout=60s"])?;
    cluster.helm(&["uninstall", "tandem", "--namespace", SYSTEM, "--wait", "--timeout=120s"])?;
    let left = cluster.kubectl(&[
        "get",
        "all,sa,cm,role,rolebinding,networkpolicy,pdb",
        "-A",
        "-l",
        "app.kubernetes.io/instance=tandem",
        "-o",
        "name",
    ])?;
    ensure!(left.trim().is_empty(), "the release left:\n{left}");
    cluster.kubectl(&["get", "crd", "inferencedeployments.inference.tandem.dev"])?;
    cluster.kubectl(&["delete", "namespace", SYSTEM, "--timeout=60s"])?;
    cluster.kubectl(&["delete", "namespace", AGENTS, "--timeout=60s", "--ignore-not-found"])?;
    cluster.kubectl(&["delete", "crd", "-l", "!none", "--timeout=60s"]).map(drop)
}

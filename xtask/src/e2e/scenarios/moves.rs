//! Hosts are emptied on purpose: by drains, by a cordon, by an upgrade.

use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tandem_e2e::story;
use tandem_servers::User;

use crate::cache;
use crate::e2e::cluster::{Cluster, SOON, SYSTEM, output};
use crate::e2e::streams::{TOKENS, calm, meanwhile, on_nodes};

/// The machine outside is drained while it serves: its copy is ready elsewhere before it ends there.
pub(super) fn drain(cluster: &mut Cluster) -> Result<()> {
    let calm = calm(cluster)?;
    let (host, _) =
        meanwhile(cluster, &calm, |cluster, host| cluster.tandem(&["hosts", "drain", host]).map(drop))?;
    cluster.until("nothing runs on the drained host", SOON, || {
        ensure!(cluster.condition("Ready")? == "True", "Ready is not True");
        Ok(cluster.field(&["infh", &host], "{.status.workloads[*].id}")?.is_empty())
    })?;
    eprintln!("      {host} was drained");
    cluster.tandem(&["hosts", "uncordon", &host])?;
    cluster.kubectl(&["wait", "--for=condition=Redundant", "infd/tiny-kimi", "--timeout=60s"]).map(drop)
}

/// A node that serves is drained as before its maintenance: pods are evicted as budgets allow, and copies move although agents' pods
/// stay.
pub(super) fn kubectl_drain(cluster: &mut Cluster) -> Result<()> {
    on_nodes(cluster)?;
    let calm = calm(cluster)?;
    let mut drain = None;
    let (host, _) = meanwhile(cluster, &calm, |cluster, host| {
        let mut command = cluster.plane.kubectl_command(User::ADMIN)?;
        command.args(["drain", host, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=120s"]);
        drain = Some(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?);
        Ok(())
    })?;
    let drained = drain.context("nothing was drained")?.wait_with_output()?;
    let said = String::from_utf8_lossy(&drained.stderr);
    ensure!(drained.status.success(), "kubectl drain: {said}");
    cluster.until("nothing runs on the drained node", SOON, || {
        ensure!(cluster.condition("Ready")? == "True", "Ready is not True");
        Ok(cluster.field(&["infh", &host], "{.status.workloads[*].id}")?.is_empty())
    })?;
    let field = format!("--field-selector=spec.nodeName={host}");
    let owners = cluster.field(&["pods", "-A", &field], "{.items[*].metadata.ownerReferences[*].kind}")?;
    ensure!(owners.split(' ').all(|kind| kind == "DaemonSet"), "pods of {owners} are left on {host}");
    eprintln!("      {host} was drained by kubectl");
    cluster.kubectl(&["uncordon", &host])?;
    cluster.kubectl(&["wait", "--for=condition=Redundant", "infd/tiny-kimi", "--timeout=60s"])?;
    spread(cluster)
}

/// One of each pair on each node again, as Kubernetes itself places them: what a drain moved stays where it is.
fn spread(cluster: &Cluster) -> Result<()> {
    for (namespace, label, name) in [
        (SYSTEM, "app.kubernetes.io/component=operator", "tandem-operator"),
        (SYSTEM, "app.kubernetes.io/component=gateway", "tandem-gateway"),
        ("kube-system", "k8s-app=kube-dns", "coredns"),
    ] {
        let pods: Value = serde_json::from_str(
            &cluster.kubectl(&["get", "pods", "-n", namespace, "-l", label, "-o", "json"])?,
        )?;
        let pods = pods["items"].as_array().context("no pods")?;
        let nodes: Vec<&str> = pods.iter().filter_map(|pod| pod["spec"]["nodeName"].as_str()).collect();
        if nodes.windows(2).all(|pair| pair[0] == pair[1]) {
            let pod = pods[0]["metadata"]["name"].as_str().context("a pod has a name")?;
            cluster.kubectl(&["delete", "pod", pod, "-n", namespace, "--timeout=60s"])?;
        }
        let deployment = format!("deployment/{name}");
        cluster.kubectl(&["rollout", "status", &deployment, "-n", namespace, "--timeout=90s"])?;
    }
    Ok(())
}

/// A node that serves is cordoned: its copies are ready elsewhere before they end there, and nothing comes back until it stays.
pub(super) fn cordon(cluster: &mut Cluster) -> Result<()> {
    on_nodes(cluster)?;
    let calm = calm(cluster)?;
    let (host, _) = meanwhile(cluster, &calm, |cluster, host| cluster.kubectl(&["cordon", host]).map(drop))?;
    cluster.until("nothing runs on the cordoned node", SOON, || {
        ensure!(cluster.condition("Ready")? == "True", "Ready is not True");
        Ok(cluster.field(&["infh", &host], "{.status.workloads[*].id}")?.is_empty())
    })?;
    eprintln!("      {host} was cordoned");
    cluster.kubectl(&["uncordon", &host])?;
    cluster.kubectl(&["wait", "--for=condition=Redundant", "infd/tiny-kimi", "--timeout=60s"]).map(drop)
}

/// `helm upgrade` to another image while a client streams: operators and gateways roll by Kubernetes, agents host by host by the
/// operator. The client asks again and again, and every answer is whole.
pub(super) fn upgrade(cluster: &mut Cluster) -> Result<()> {
    let calm = calm(cluster)?;
    for node in &cluster.nodes {
        for image in ["operator", "agent", "gateway", "cli"] {
            let (old, new) = (format!("local.test/tandem-{image}:1"), format!("local.test/tandem-{image}:2"));
            output(&mut cluster.containerd(node, &["images", "tag", &old, &new])?)?;
        }
    }
    let chart = cache::workspace().join("charts/tandem").display().to_string();
    cluster.helm(&[
        "upgrade",
        "tandem",
        &chart,
        "--namespace",
        SYSTEM,
        "--reuse-values",
        "--set-string=image.tag=2",
    ])?;
    let path = "{.spec.ports[0].nodePort}";
    let port = cluster.field(&["svc", "tandem-gateway", "-n", SYSTEM], path)?;
    let client = cluster.client(&format!("http://{}:{port}", cluster.nodes[0].address()))?;
    let runtime = cluster.runtime.clone();
    let (mut streams, mut takeovers) = (0, 0);
    let rolled = || {
        let images =
            "{.items[*].spec.containers[0].image} {.items[*].status.conditions[?(@.type=='Ready')].status}";
        let label = "app.kubernetes.io/part-of=tandem";
        let told = cluster.field(&["pods", "-A", "-l", label], images)?;
        Ok::<_, anyhow::Error>(!told.contains(":1") && !told.contains("False"))
    };
    let end = std::time::Instant::now() + 2 * SOON;
    while !rolled()? {
        ensure!(std::time::Instant::now() < end, "the roll-out takes longer than {:?}", 2 * SOON);
        let seen = runtime.block_on(client.chat(&story(TOKENS, 11), |_| Ok(())))?;
        ensure!(seen.tokens == calm.tokens && seen.text == calm.text, "the text is another");
        streams += 1;
        takeovers += seen.seams.len();
    }
    for component in ["operator", "gateway"] {
        let label = format!("app.kubernetes.io/component={component}");
        let nodes = cluster.field(&["pods", "-n", SYSTEM, "-l", &label], "{.items[*].spec.nodeName}")?;
        ensure!(nodes.contains("n1") && nodes.contains("n2"), "every {component} is on {nodes}");
    }
    eprintln!("      everything was replaced while {streams} streams were whole, with {takeovers} takeovers");
    cluster.kubectl(&["wait", "--for=condition=Redundant", "infd/tiny-kimi", "--timeout=60s"]).map(drop)
}

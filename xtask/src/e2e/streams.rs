//! Streams through a cluster's gateways, and what happens to them meanwhile.

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use tandem_e2e::{Completion, attempts, story};

use super::cluster::{Cluster, SOON, SYSTEM};

/// Tokens of the long text.
pub(super) const TOKENS: usize = 900;
/// Streams that may be served by the node on which their gateway runs, before one is not.
const TRIES: usize = 8;

/// A gateway's pod.
struct Gateway {
    pod: String,
    node: String,
    url: String,
}

/// One on another machine than this host.
fn gateway_away_from(cluster: &Cluster, host: &str) -> Result<Gateway> {
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
    let url = format!("http://{}:8080", text("/status/podIP"));
    Ok(Gateway { pod: text("/metadata/name"), node: text("/spec/nodeName"), url })
}

/// On which host a gateway's pod has this stream.
fn serving_host(cluster: &Cluster, gateway: &Gateway, seen: &Completion) -> Result<String> {
    attempts::serving_host(|| cluster.kubectl(&["logs", "-n", SYSTEM, &gateway.pod]), seen)
}

/// The host that served last: which one serves next is known only when it does.
fn likely_host(cluster: &Cluster) -> Result<String> {
    let gateway = gateway_away_from(cluster, "")?;
    let seen = cluster.runtime.block_on(cluster.client(&gateway.url)?.chat(&story(8, 5), |_| Ok(())))?;
    serving_host(cluster, &gateway, &seen)
}

/// The text of a calm run, through any gateway; the model is ready before.
pub(super) fn calm(cluster: &Cluster) -> Result<Completion> {
    let Gateway { url, .. } = gateway_away_from(cluster, "")?;
    let calm = cluster.runtime.block_on(cluster.client(&url)?.chat(&story(TOKENS, 11), |_| Ok(())))?;
    ensure!(calm.tokens.len() == TOKENS, "the calm run has {} tokens", calm.tokens.len());
    Ok(calm)
}

/// Streams the text of the calm run through a gateway on another machine than the one that serves, and lets something happen to
/// that one in mid-stream. What the client saw has to be the same. The host in question, and how long takeovers took.
pub(super) fn meanwhile(
    cluster: &mut Cluster,
    calm: &Completion,
    happens: impl FnOnce(&mut Cluster, &str) -> Result<()>,
) -> Result<(String, Completion)> {
    let runtime = cluster.runtime.clone();
    let mut happens = Some(happens);
    for _ in 0..TRIES {
        // Who is asked must not die with the host. Which host that is, is a guess: another one may be the idlest by now.
        let gateway = gateway_away_from(cluster, &likely_host(cluster)?)?;
        let client = cluster.client(&gateway.url)?;
        let mut serving = None;
        let seen = runtime.block_on(client.chat(&story(TOKENS, 11), |so_far| {
            if so_far.tokens.len() >= 40 && serving.is_none() {
                let host = serving.insert(serving_host(cluster, &gateway, so_far)?);
                if *host != gateway.node
                    && let Some(happens) = happens.take()
                {
                    happens(cluster, host)?;
                }
            }
            Ok(())
        }))?;
        ensure!(seen.tokens == calm.tokens && seen.text == calm.text, "the text is another");
        let host = serving.context("the text ended before it was known who serves")?;
        if happens.is_none() {
            return Ok((host, seen));
        }
    }
    bail!("the gateway that is asked is on the node that serves, each of {TRIES} times")
}

/// Leaves the machine outside empty, so that nodes serve.
pub(super) fn on_nodes(cluster: &Cluster) -> Result<()> {
    cluster.tandem(&["hosts", "drain", "mac"])?;
    cluster.until("nothing runs outside", SOON, || {
        Ok(cluster.field(&["infh", "mac"], "{.status.workloads[*].id}")?.is_empty())
    })?;
    cluster.tandem(&["hosts", "uncordon", "mac"])?;
    cluster.kubectl(&["wait", "--for=condition=Redundant", "infd/tiny-kimi", "--timeout=60s"]).map(drop)
}

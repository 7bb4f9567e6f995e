//! Something dies, or can't be reached, in mid-stream.

use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use tandem_servers::Node;

use crate::e2e::cluster::{AGENTS, Cluster, SOON, SYSTEM, output};
use crate::e2e::streams::{calm, meanwhile, on_nodes};

/// The agent of the host that serves is killed as the kernel kills what takes too much memory: no stream notices.
pub(super) fn agent_killed(cluster: &mut Cluster) -> Result<()> {
    let host = without_its_agent(cluster, |node| {
        output(node.command("pkill")?.args(["-KILL", "-f", "tandem-agent run "])).map(drop)
    })?;
    eprintln!("      the agent of {host} was killed");
    Ok(())
}

/// The agent of the host that serves takes more memory than it may, and the kernel kills it: no stream notices.
pub(super) fn agent_out_of_memory(cluster: &mut Cluster) -> Result<()> {
    let host = without_its_agent(cluster, |node| {
        output(node.command("timeout")?.args(["60", "bash", "-c", STARVE])).map(drop)
    })?;
    let why = agent(cluster, &host, "lastState.terminated.reason")?;
    ensure!(why == "OOMKilled", "Kubernetes says of the agent's end: {why}");
    eprintln!("      the agent of {host} was out of memory");
    Ok(())
}

/// Gives the agent no byte more than it has, and asks it for its figures until it wants one.
const STARVE: &str = r#"
trap '' PIPE
agent=$(pgrep -o -f 'tandem-agent run ')
group=$(sed -n 's|.*:memory:.*\(/kubepods.*\)|/sys/fs/cgroup/memory\1|p' "/proc/$agent/cgroup")
while [ -d "/proc/$agent" ]; do
  cat "$group/memory.usage_in_bytes" > "$group/memory.limit_in_bytes" || true
  for _ in $(seq 50); do
    exec {asked}<> /dev/tcp/127.0.0.1/7445 && printf 'GET /metrics HTTP/1.1\r\nHost: agent\r\n\r\n' >&"$asked" || break
  done
done 2> /dev/null
"#;

/// Something ends the agent of the host that serves: no stream notices, and Kubernetes starts it again. The host.
fn without_its_agent(cluster: &mut Cluster, end: impl FnOnce(&Node) -> Result<()>) -> Result<String> {
    on_nodes(cluster)?;
    let calm = calm(cluster)?;
    let mut before = String::new();
    let (host, seen) = meanwhile(cluster, &calm, |cluster, host| {
        before = agent(cluster, host, "restartCount")?;
        let node = cluster.nodes.iter().find(|node| node.name() == host);
        end(node.with_context(|| format!("{host} is no node"))?)
    })?;
    ensure!(seen.seams.is_empty(), "the stream noticed: {:?}", seen.seams);
    cluster.until("Kubernetes has started the agent again", SOON, || {
        Ok(agent(cluster, &host, "restartCount")? != before && agent(cluster, &host, "ready")? == "true")
    })?;
    cluster.until("the host is heard again", SOON, || {
        let path = "{.status.conditions[?(@.type=='Ready')].status}";
        Ok(cluster.field(&["infh", &host], path)? == "True")
    })?;
    Ok(host)
}

/// What Kubernetes says of the agent's container on a node.
fn agent(cluster: &Cluster, node: &str, what: &str) -> Result<String> {
    let path = format!(
        "{{.items[?(@.spec.nodeName=='{node}')].status.containerStatuses[?(@.name=='agent')].{what}}}"
    );
    cluster.field(&["pods", "-n", AGENTS, "-l", "app.kubernetes.io/component=agent"], &path)
}

/// The link between the two nodes is cut, and mended later: the gateway on one can't reach the host that serves on the other, and the
/// control plane reaches both.
pub(super) fn cut_link(cluster: &mut Cluster) -> Result<()> {
    on_nodes(cluster)?;
    let calm = calm(cluster)?;
    let mut cut = None;
    let (host, seen) = meanwhile(cluster, &calm, |cluster, _| {
        cut = Some(Instant::now());
        cluster.nodes.iter().try_for_each(|node| node.isolate(true))
    })?;
    ensure!(seen.seams.len() == 1 && seen.seams[0].exact, "{:?}", seen.seams);
    cluster.nodes.iter().try_for_each(|node| node.isolate(false))?;
    let took = cut.context("nothing was cut")?.elapsed().as_secs_f64();
    eprintln!(
        "      the link to {host} was cut for {took:.1} s; the stream went on after {:.0} ms",
        seen.seams[0].recovery_ms
    );
    cluster.until("every host is heard again", SOON, || {
        let path = "{.items[*].status.conditions[?(@.type=='Ready')].status}";
        Ok(cluster.field(&["infh"], path)? == "True True True")
    })?;
    cluster.kubectl(&["wait", "--for=condition=Redundant", "infd/tiny-kimi", "--timeout=60s"])?;
    let (_, seen) = meanwhile(cluster, &calm, |_, _| Ok(()))?;
    ensure!(seen.seams.is_empty(), "a stream after it noticed: {:?}", seen.seams);
    Ok(())
}

/// The leading operator's pod, and its node.
fn leader(cluster: &Cluster) -> Result<(String, String)> {
    let holder = cluster.field(&["lease", "tandem-leader", "-n", SYSTEM], "{.spec.holderIdentity}")?;
    let path = "{range .items[*]}{.status.podIP} {.metadata.name} {.spec.nodeName}{'\\n'}{end}";
    let label = "app.kubernetes.io/component=operator";
    let pods = cluster.field(&["pods", "-n", SYSTEM, "-l", label], path)?;
    // It is told apart by the address at which others reach it.
    let leads = |line: &&str| {
        line.split(' ').next().is_some_and(|address| holder.ends_with(&format!("//{address}:7443")))
    };
    let line = pods.lines().find(leads).with_context(|| format!("{holder} is none of\n{pods}"))?;
    let mut words = line.split(' ').skip(1).map(str::to_owned);
    words.next().zip(words.next()).context("a pod has a name and a node")
}

/// Has the operator on another node lead, so that what a host's death does is not mixed with what a leader's does.
fn leads_elsewhere(cluster: &Cluster, host: &str) -> Result<()> {
    // The pod that replaces a leader's may be the next leader, on the same node.
    for _ in 0..5 {
        let (pod, node) = leader(cluster)?;
        if node != host {
            cluster.until("every host is heard", SOON, || {
                let ready = "{.items[*].status.conditions[?(@.type=='Ready')].status}";
                Ok(cluster.field(&["infh"], ready)? == "True True True")
            })?;
            return cluster
                .kubectl(&["wait", "--for=condition=Redundant", "infd/tiny-kimi", "--timeout=60s"])
                .map(drop);
        }
        cluster.kubectl(&["delete", "pod", &pod, "-n", SYSTEM, "--timeout=60s"])?;
        cluster.kubectl(&[
            "rollout",
            "status",
            "deployment/tandem-operator",
            "-n",
            SYSTEM,
            "--timeout=60s",
        ])?;
        cluster.until("another operator leads", SOON, || Ok(leader(cluster)?.0 != pod))?;
    }
    bail!("each new leader is on {host}")
}

/// The whole process tree of the node that serves is killed in mid-stream.
pub(super) fn node_death(cluster: &mut Cluster) -> Result<()> {
    on_nodes(cluster)?;
    let calm = calm(cluster)?;
    let mut tries = 0..5;
    let (ready, redundant, host, seen) = loop {
        tries.next().context("the node that serves is always the one that the leading operator is on")?;
        let (ready, redundant) = (cluster.since("Ready")?, cluster.since("Redundant")?);
        let mut led_by = String::new();
        let (host, seen) = meanwhile(cluster, &calm, |cluster, host| {
            led_by = leader(cluster)?.1;
            // What a leader's death does is another story: until the next one has heard from hosts, it knows of no copy.
            let node = cluster.nodes.iter_mut().find(|node| node.name() == host && led_by != host);
            node.map_or(Ok(()), |node| node.kill())
        })?;
        if led_by != host {
            break (ready, redundant, host, seen);
        }
        leads_elsewhere(cluster, &host)?;
    };
    ensure!(seen.seams.len() == 1 && seen.seams[0].exact, "{:?}", seen.seams);
    eprintln!("      {host} died; the stream went on after {:.0} ms", seen.seams[0].recovery_ms);
    // It goes False and comes back; a look every 200 ms may miss the first.
    let took = cluster.until("Redundant has been False, and is True again", SOON, || {
        Ok(cluster.since("Redundant")? != redundant && cluster.condition("Redundant")? == "True")
    })?;
    // A look now and then would miss a short No; the time of the last change doesn't.
    ensure!(cluster.condition("Ready")? == "True", "a survived loss of a host is no loss of Ready");
    let since = cluster.since("Ready")?;
    ensure!(since == ready, "Ready changed at {since}: a survived loss of a host is no loss of Ready");
    eprintln!("      redundant again {:.1} s after the stream's end", took.as_secs_f64());
    // The Service goes on naming the dead operator until Kubernetes believes in its death.
    let lives = cluster.nodes.iter().find(|node| node.name() != host).context("a node lives")?;
    for _ in 0..2 {
        cluster.tandem_through(lives, &["get", "infd"])?;
    }
    let told = cluster.kubectl(&["describe", "infd", "tiny-kimi"])?;
    for word in ["Redundant", "Starting", host.as_str()] {
        ensure!(told.contains(word), "kubectl describe does not tell of {word}:\n{told}");
    }
    let node = cluster.nodes.iter_mut().position(|node| node.name() == host).context("it is gone")?;
    cluster.nodes[node].boot()?;
    cluster.nodes[node].wait_ready(&cluster.plane, SOON)?;
    cluster.until("the node is a host again", SOON, || {
        let path = "{.status.conditions[?(@.type=='Ready')].status}";
        Ok(cluster.field(&["infh", &host], path)? == "True")
    })?;
    let pods = "app.kubernetes.io/part-of=tandem";
    for namespace in [SYSTEM, AGENTS] {
        cluster.kubectl(&[
            "wait",
            "--for=condition=Ready",
            "pod",
            "-n",
            namespace,
            "-l",
            pods,
            "--timeout=90s",
        ])?;
    }
    Ok(())
}

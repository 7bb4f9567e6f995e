//! What is shown, in the order in which it is shown.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tandem_e2e::{Client, Completion, story};
use tandem_servers::bare;

use super::cluster::{AGENTS, Cluster, OPERATOR_PORT, SYSTEM, output};
use crate::{cache, programs};

type Scenario = fn(&mut Cluster) -> Result<()>;

/// The one that all others stand on.
pub(super) const FIRST: &str = "install";
pub(super) const ALL: [(&str, Scenario); 9] = [
    (FIRST, install),
    ("scale", scale),
    ("drain", drain),
    ("agent-killed", agent_killed),
    ("cordon", cordon),
    ("upgrade", upgrade),
    ("node-death", node_death),
    ("rights", rights),
    ("uninstall", uninstall),
];
pub(super) const NAMES: [&str; ALL.len()] = {
    let mut names = [""; ALL.len()];
    let mut n = 0;
    while n < ALL.len() {
        names[n] = ALL[n].0;
        n += 1;
    }
    names
};

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
        "--set-string=image.tag=1",
        "--set=image.registry=local.test,models.preseeded=/var/lib/tandem/examples,models.preseededClaim=models",
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

/// The text of a calm run, through any gateway; the model is ready before.
fn calm(cluster: &Cluster) -> Result<Completion> {
    let (_, url) = gateway_away_from(cluster, "")?;
    let calm = cluster.runtime.block_on(Client::new(&url)?.chat(&story(TOKENS, 11), |_| Ok(())))?;
    ensure!(calm.tokens.len() == TOKENS, "the calm run has {} tokens", calm.tokens.len());
    Ok(calm)
}

/// Streams the text of the calm run through a gateway on another machine than the one that serves, and lets something happen to
/// that one in mid-stream. What the client saw has to be the same. The host in question, and how long takeovers took.
fn meanwhile(
    cluster: &mut Cluster,
    calm: &Completion,
    happens: impl FnOnce(&mut Cluster, &str) -> Result<()>,
) -> Result<(String, Completion)> {
    let runtime = cluster.runtime.clone();
    // Which host serves is known only when it does; the gateway that is asked must not die with it.
    let mut pod = gateway_away_from(cluster, "")?;
    let first = runtime.block_on(Client::new(&pod.1)?.chat(&story(8, 5), |_| Ok(())))?;
    let likely = serving_host(cluster, &pod.0, &first)?;
    pod = gateway_away_from(cluster, &likely)?;
    let client = Client::new(&pod.1)?;
    let (mut happened, mut happens) = (None, Some(happens));
    let seen = runtime.block_on(client.chat(&story(TOKENS, 11), |so_far| {
        if so_far.tokens.len() >= 40
            && let Some(happens) = happens.take()
        {
            let host = serving_host(cluster, &pod.0, so_far)?;
            happens(cluster, &host)?;
            happened = Some(host);
        }
        Ok(())
    }))?;
    let host = happened.context("the text ended before anything happened")?;
    ensure!(seen.tokens == calm.tokens && seen.text == calm.text, "the text is another");
    Ok((host, seen))
}

/// Leaves the machine outside empty, so that nodes serve.
fn on_nodes(cluster: &Cluster) -> Result<()> {
    cluster.tandem(&["hosts", "drain", "mac"])?;
    cluster.until("nothing runs outside", SOON, || {
        Ok(cluster.field(&["infh", "mac"], "{.status.workloads[*].id}")?.is_empty())
    })?;
    cluster.tandem(&["hosts", "uncordon", "mac"])?;
    cluster.kubectl(&["wait", "--for=condition=Redundant", "infd/tiny-kimi", "--timeout=60s"]).map(drop)
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

/// The machine outside is drained while it serves: its copy is ready elsewhere before it ends there.
fn drain(cluster: &mut Cluster) -> Result<()> {
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

/// A node that serves is cordoned: its copies are ready elsewhere before they end there, and nothing comes back until it stays.
fn cordon(cluster: &mut Cluster) -> Result<()> {
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
fn upgrade(cluster: &mut Cluster) -> Result<()> {
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
    let client = Client::new(&format!("http://{}:{port}", cluster.nodes[0].address()))?;
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
    eprintln!("      everything was replaced while {streams} streams were whole, with {takeovers} takeovers");
    cluster.kubectl(&["wait", "--for=condition=Redundant", "infd/tiny-kimi", "--timeout=60s"]).map(drop)
}

/// The agent of the host that serves is killed as the kernel kills what takes too much memory: no stream notices.
fn agent_killed(cluster: &mut Cluster) -> Result<()> {
    on_nodes(cluster)?;
    let calm = calm(cluster)?;
    let (host, seen) = meanwhile(cluster, &calm, |cluster, host| {
        let node = cluster.nodes.iter().find(|node| node.name() == host);
        let node = node.with_context(|| format!("{host} is no node"))?;
        output(node.command("pkill")?.args(["-KILL", "-f", "tandem-agent run "])).map(drop)
    })?;
    ensure!(seen.seams.is_empty(), "the stream noticed: {:?}", seen.seams);
    cluster.until("Kubernetes has started the agent again", SOON, || {
        let path = format!("{{.items[?(@.spec.nodeName=='{host}')].status.containerStatuses[?(@.name=='agent')].restartCount}}");
        Ok(cluster.field(&["pods", "-n", AGENTS, "-l", "app.kubernetes.io/component=agent"], &path)? == "1")
    })?;
    cluster.until("the host is heard again", SOON, || {
        let path = "{.status.conditions[?(@.type=='Ready')].status}";
        Ok(cluster.field(&["infh", &host], path)? == "True")
    })?;
    eprintln!("      the agent of {host} was killed");
    Ok(())
}

/// The whole process tree of the node that serves is killed in mid-stream.
fn node_death(cluster: &mut Cluster) -> Result<()> {
    on_nodes(cluster)?;
    let calm = calm(cluster)?;
    let since = "{.status.conditions[?(@.type=='Redundant')].lastTransitionTime}";
    let before = cluster.field(&["infd", "tiny-kimi"], since)?;
    let (host, seen) = meanwhile(cluster, &calm, |cluster, host| {
        let node = cluster.nodes.iter_mut().find(|node| node.name() == host);
        node.with_context(|| format!("{host} is no node"))?.kill()
    })?;
    ensure!(seen.seams.len() == 1 && seen.seams[0].exact, "{:?}", seen.seams);
    eprintln!("      {host} died; the stream went on after {:.0} ms", seen.seams[0].recovery_ms);
    ensure!(cluster.condition("Ready")? == "True", "a survived loss of a host is no loss of Ready");
    // It goes False and comes back; a look every 200 ms may miss the first.
    let took = cluster.until("Redundant has been False, and is True again", SOON, || {
        ensure!(cluster.condition("Ready")? == "True", "Ready is not True");
        let turned = cluster.field(&["infd", "tiny-kimi"], since)? != before;
        Ok(turned && cluster.condition("Redundant")? == "True")
    })?;
    eprintln!("      redundant again {:.1} s after the stream's end", took.as_secs_f64());
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

/// Every right of the operator's was used, and none was missing.
fn rights(cluster: &mut Cluster) -> Result<()> {
    let manifest = cache::workspace().join("examples/tiny.yaml").display().to_string();
    // What people do by the CLI, the operator does for them.
    let text = std::fs::read_to_string(&manifest)?.replace("name: tiny-kimi", "name: other");
    let other = cluster.dir().join("other.yaml");
    std::fs::write(&other, &text)?;
    let other = other.display().to_string();
    cluster.tandem(&["apply", "-f", &other])?;
    cluster.tandem(&["scale", "infd/other", "--replicas=2"])?;
    // An object keeps its newest events: older ones make room.
    for wrong in 0..10 {
        let text = text.replace("tiny-kimi\n  quant", &format!("no-such-folder-{wrong}\n  quant"));
        std::fs::write(&other, text)?;
        cluster.tandem(&["apply", "-f", &other])?;
        cluster.until("the wrong folder is told of", SOON, || {
            let path = "{.status.conditions[?(@.type=='Stalled')].message}";
            Ok(cluster.field(&["infd", "other"], path)?.contains(&format!("no-such-folder-{wrong}")))
        })?;
    }
    cluster.tandem(&["delete", "infd/other"])?;
    // A node whose folder was lost joins again, as itself.
    let node = &cluster.nodes[1];
    output(node.command("rm")?.args(["-rf", "/var/lib/tandem/agent/identity"]))?;
    let field = format!("--field-selector=spec.nodeName={}", node.name());
    cluster.kubectl(&["delete", "pod", "-n", AGENTS, &field, "--wait=true", "--timeout=60s"])?;
    cluster.until("the node has joined again", SOON, || {
        let log = cluster.kubectl(&["logs", "-n", AGENTS, &agent_on(cluster, "n2")?, "-c", "agent"])?;
        Ok(log.contains("in session with the operator"))
    })?;
    // A machine that is gone for good is forgotten.
    cluster.mac.as_mut().context("there is no third machine")?.kill()?;
    cluster.tandem(&["delete", "infh/mac"])?;
    let account = format!("system:serviceaccount:{SYSTEM}:tandem-operator");
    let audit = cluster.plane.audit()?;
    let refused: Vec<String> = audit
        .iter()
        .filter(|event| event.user.username == account)
        .filter(|event| event.response_status.as_ref().is_some_and(|status| status.code == 403))
        .map(|event| format!("{} {}", event.verb, event.request_uri))
        .collect();
    ensure!(refused.is_empty(), "the operator was refused: {refused:#?}");
    let unused = unused_rights(cluster, &account)?;
    ensure!(unused.is_empty(), "the operator has rights that it never used: {unused:#?}");
    Ok(())
}

/// The agent's pod on a node.
fn agent_on(cluster: &Cluster, node: &str) -> Result<String> {
    let path = format!("{{.items[?(@.spec.nodeName=='{node}')].metadata.name}}");
    cluster.field(&["pods", "-n", AGENTS, "-l", "app.kubernetes.io/component=agent"], &path)
}

/// (verb, group, resource) of the rules that are bound to an account and of which no request made use.
fn unused_rights(cluster: &Cluster, account: &str) -> Result<Vec<String>> {
    let audit = cluster.plane.audit()?;
    let used = |verb: &str, group: &str, resource: &str| {
        // An apply that makes the object needs the right to create, and is written down as a patch.
        let did = |event: &tandem_servers::AuditEvent| {
            let made = event.response_status.as_ref().is_some_and(|status| status.code == 201);
            event.verb == verb || (verb == "create" && event.verb == "patch" && made)
        };
        audit.iter().filter(|event| event.user.username == account && did(event)).any(|event| {
            event.object_ref.as_ref().is_some_and(|object| {
                let name = if object.subresource.is_empty() {
                    object.resource.clone()
                } else {
                    format!("{}/{}", object.resource, object.subresource)
                };
                object.api_group == group && name == resource
            })
        })
    };
    let mut unused = Vec::new();
    for (kind, label) in [("clusterrole", "operator"), ("role", "operator")] {
        let label = format!("app.kubernetes.io/component={label}");
        let json = cluster.kubectl(&["get", kind, "-A", "-l", &label, "-o", "json"])?;
        let roles: Value = serde_json::from_str(&json)?;
        for role in roles["items"].as_array().into_iter().flatten() {
            for rule in role["rules"].as_array().into_iter().flatten() {
                let texts = |key: &str| -> Vec<String> {
                    let list = rule[key].as_array().into_iter().flatten();
                    list.filter_map(|text| text.as_str().map(str::to_owned)).collect()
                };
                for (group, resource, verb) in texts("apiGroups").iter().flat_map(|group| {
                    let verbs = texts("verbs");
                    texts("resources").into_iter().flat_map(move |resource| {
                        let verbs = verbs.clone();
                        verbs.into_iter().map(move |verb| (group.clone(), resource.clone(), verb))
                    })
                }) {
                    if !used(&verb, &group, &resource) {
                        unused
                            .push(format!("{verb} {resource}.{group} ({kind} {})", role["metadata"]["name"]));
                    }
                }
            }
        }
    }
    Ok(unused)
}

/// Nothing of the release is left but what was asked to stay.
fn uninstall(cluster: &mut Cluster) -> Result<()> {
    cluster.kubectl(&["delete", "infd", "--all", "-A", "--timeout=60s"])?;
    cluster.helm(&["uninstall", "tandem", "--namespace", SYSTEM, "--wait", "--timeout=120s"])?;
    // Gateways let their streams end.
    let kinds = "all,sa,cm,role,rolebinding,networkpolicy,pdb";
    cluster.until("nothing of the release is left", SOON, || {
        let left = ["get", kinds, "-A", "-l", "app.kubernetes.io/instance=tandem", "-o", "name"];
        let left = cluster.kubectl(&left)?;
        ensure!(left.trim().is_empty(), "the release left:\n{left}");
        Ok(true)
    })?;
    cluster.kubectl(&["get", "crd", "inferencedeployments.inference.tandem.dev"])?;
    cluster.kubectl(&["delete", "namespace", SYSTEM, "--timeout=60s"])?;
    cluster.kubectl(&["delete", "namespace", AGENTS, "--timeout=60s", "--ignore-not-found"])?;
    cluster.kubectl(&["delete", "crd", "-l", "!none", "--timeout=60s"]).map(drop)
}

//! The operator's rights, held against what it asked for.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tandem_servers::AuditEvent;

use crate::cache;
use crate::e2e::cluster::{AGENTS, Cluster, SOON, SYSTEM, output};

/// Every right of the operator's was used where it is granted, and none was missing.
pub(super) fn rights(cluster: &mut Cluster) -> Result<()> {
    let manifest = cache::workspace().join("examples/tiny.yaml").display().to_string();
    // What people do by the CLI, the operator does for them.
    let text = std::fs::read_to_string(&manifest)?.replace("name: tiny-kimi", "name: other");
    let other = cluster.dir().join("other.yaml");
    let file = other.display().to_string();
    std::fs::write(&other, &text)?;
    cluster.tandem(&["apply", "-f", &file])?;
    cluster.tandem(&["scale", "infd/other", "--replicas=2"])?;
    // An object keeps its newest events: older ones make room.
    for wrong in 0..10 {
        let text = text.replace("tiny-kimi\n  quant", &format!("no-such-folder-{wrong}\n  quant"));
        std::fs::write(&other, text)?;
        cluster.tandem(&["apply", "-f", &file])?;
        stalls(cluster, "default", &format!("no-such-folder-{wrong}"))?;
    }
    cluster.tandem(&["delete", "infd/other"])?;
    // A credential is read where its people keep it.
    let text = text.replace("namespace: default", "namespace: team").replace(
        "tiny-kimi\n  quant",
        "tiny-kimi\n    credentials: {secretRef: {name: hub, key: token}}\n  quant",
    );
    std::fs::write(&other, text)?;
    cluster.kubectl(&["create", "namespace", "team"])?;
    cluster.kubectl(&["apply", "-f", &file])?;
    stalls(cluster, "team", "kubectl create secret generic hub -n team")?;
    cluster.kubectl(&["create", "secret", "generic", "hub", "-n", "team", "--from-literal=token=secret"])?;
    cluster.kubectl(&["wait", "--for=condition=Ready", "infd/other", "-n", "team", "--timeout=90s"])?;
    // Not its namespace: in one that is being deleted, the Events of the deletion would be refused.
    cluster.kubectl(&["delete", "infd/other", "-n", "team", "--timeout=60s"])?;
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
    let own: Vec<&AuditEvent> = audit.iter().filter(|event| event.user.username == account).collect();
    let refused: Vec<String> = own
        .iter()
        .filter(|event| event.response_status.as_ref().is_some_and(|status| status.code == 403))
        .map(|event| format!("{} {}", event.verb, event.request_uri))
        .collect();
    ensure!(refused.is_empty(), "the operator was refused: {refused:#?}");
    let uses = own.into_iter().flat_map(uses_of).collect();
    let unused = unused(&grants(cluster)?, &uses);
    ensure!(unused.is_empty(), "the operator has rights that it never used: {unused:#?}");
    Ok(())
}

fn stalls(cluster: &Cluster, namespace: &str, says: &str) -> Result<()> {
    let what = format!("the deployment says {says}");
    let path = "{.status.conditions[?(@.type=='Stalled')].message}";
    let told = || Ok(cluster.field(&["infd", "other", "-n", namespace], path)?.contains(says));
    cluster.until(&what, SOON, told).map(drop)
}

/// The agent's pod on a node.
fn agent_on(cluster: &Cluster, node: &str) -> Result<String> {
    let path = format!("{{.items[?(@.spec.nodeName=='{node}')].metadata.name}}");
    cluster.field(&["pods", "-n", AGENTS, "-l", "app.kubernetes.io/component=agent"], &path)
}

/// To do something with something.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Right {
    verb: String,
    group: String,
    /// With its subresource, if any.
    resource: String,
}

/// A right, where it is granted, and by which role.
struct Grant {
    right: Right,
    /// None: in the whole cluster.
    namespace: Option<String>,
    role: String,
}

/// What a request made use of, with its namespace; an empty one for what has none, and for lists over all.
fn uses_of(event: &AuditEvent) -> Vec<(Right, String)> {
    let Some(object) = &event.object_ref else { return Vec::new() };
    let mut resource = object.resource.clone();
    if !object.subresource.is_empty() {
        resource = format!("{resource}/{}", object.subresource);
    }
    // An apply that makes the object needs the right to create, and is written down as a patch.
    let made = event.response_status.as_ref().is_some_and(|status| status.code == 201);
    let create = (event.verb == "patch" && made).then(|| "create".to_owned());
    let verbs = std::iter::once(event.verb.clone()).chain(create);
    let right = |verb| Right { verb, group: object.api_group.clone(), resource: resource.clone() };
    verbs.map(|verb| (right(verb), object.namespace.clone())).collect()
}

/// Grants of which nobody made use. One for the whole cluster is used where nothing less would have done.
fn unused(grants: &[Grant], uses: &BTreeSet<(Right, String)>) -> Vec<String> {
    let granted = |right: &Right, namespace: &str| {
        grants.iter().any(|grant| grant.right == *right && grant.namespace.as_deref() == Some(namespace))
    };
    let used = |grant: &Grant| {
        uses.iter().filter(|(right, _)| *right == grant.right).any(|(right, namespace)| {
            match &grant.namespace {
                Some(own) => own == namespace,
                None => !granted(right, namespace),
            }
        })
    };
    let unused = grants.iter().filter(|grant| !used(grant));
    unused
        .map(|Grant { right, namespace, role }| {
            let place = namespace.as_deref().unwrap_or("the whole cluster");
            format!("{} {}.{} in {place} ({role})", right.verb, right.resource, right.group)
        })
        .collect()
}

/// Every right that the operator's roles grant.
fn grants(cluster: &Cluster) -> Result<Vec<Grant>> {
    let label = "app.kubernetes.io/component=operator";
    let json = cluster.kubectl(&["get", "clusterrole,role", "-A", "-l", label, "-o", "json"])?;
    let roles: Value = serde_json::from_str(&json)?;
    let mut grants = Vec::new();
    for role in roles["items"].as_array().into_iter().flatten() {
        let namespace = role["metadata"]["namespace"].as_str().map(str::to_owned);
        let name = role["metadata"]["name"].as_str().context("a role has a name")?;
        for rule in role["rules"].as_array().into_iter().flatten() {
            let texts = |key: &str| -> Vec<&str> {
                rule[key].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
            };
            for group in texts("apiGroups") {
                for resource in texts("resources") {
                    for verb in texts("verbs") {
                        let (verb, group, resource) =
                            (verb.to_owned(), group.to_owned(), resource.to_owned());
                        let right = Right { verb, group, resource };
                        grants.push(Grant { right, namespace: namespace.clone(), role: name.to_owned() });
                    }
                }
            }
        }
    }
    Ok(grants)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get_secrets() -> Right {
        Right { verb: "get".to_owned(), group: String::new(), resource: "secrets".to_owned() }
    }

    fn grants() -> Vec<Grant> {
        let grant = |namespace: Option<&str>, role: &str| Grant {
            right: get_secrets(),
            namespace: namespace.map(str::to_owned),
            role: role.to_owned(),
        };
        vec![grant(None, "everywhere"), grant(Some("tandem-system"), "own")]
    }

    #[test]
    fn a_right_is_used_where_it_is_granted_and_in_the_whole_cluster_where_nothing_less_would_do() {
        let uses = |namespaces: &[&str]| {
            namespaces.iter().map(|namespace| (get_secrets(), (*namespace).to_owned())).collect()
        };
        let own = ["get secrets. in tandem-system (own)"];
        let everywhere = ["get secrets. in the whole cluster (everywhere)"];
        assert_eq!(unused(&grants(), &uses(&["tandem-system"])), everywhere);
        assert_eq!(unused(&grants(), &uses(&["team"])), own);
        assert_eq!(unused(&grants(), &uses(&[""])), own);
        assert!(unused(&grants(), &uses(&["team", "tandem-system"])).is_empty());
    }
}

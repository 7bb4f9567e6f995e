//! `tandem status`: the whole on one screen, what is wrong first.

use anyhow::Result;
use jiff::Timestamp;
use serde_json::Value;
use tandem_control_api::{StatusRequest, StatusResponse};

use crate::connection::Connection;
use crate::object::{Kind, condition, items, name, text};
use crate::output::write;
use crate::table;

pub(crate) async fn run(mut connection: Connection) -> Result<()> {
    let status = connection.fleet.status(StatusRequest {}).await;
    let status = status.map_err(|status| connection.explain(&status))?;
    let hosts = connection.list(Kind::Host, true).await?;
    let deployments = connection.list(Kind::Deployment, true).await?;
    write(&screen(&connection.operator, &status.into_inner(), &hosts, &deployments, Timestamp::now()))
}

fn screen(
    operator: &str,
    status: &StatusResponse,
    hosts: &[Value],
    deployments: &[Value],
    now: Timestamp,
) -> String {
    let role = if status.leading { "leads" } else { "follows" };
    let mut out = format!(
        "Operator {} at {operator}, {role} in term {}, store: {}\n",
        status.version, status.term, status.store
    );
    let connected = status.hosts.iter().filter(|host| host.connected).count();
    out += &format!("Hosts    {connected} of {} connected\n", status.hosts.len());
    let gateways: Vec<&str> = status
        .gateways
        .iter()
        .filter(|gateway| gateway.connected)
        .map(|gateway| gateway.url.as_str())
        .collect();
    out += &format!(
        "Gateways {} of {} connected{}{}\n",
        gateways.len(),
        status.gateways.len(),
        if gateways.is_empty() { "" } else { ": " },
        gateways.join(", ")
    );
    let wrong = trouble(status, hosts, deployments);
    if !wrong.is_empty() {
        out += "\nWrong:\n";
        for line in wrong {
            out += &format!("  ✗ {line}\n");
        }
    }
    if !deployments.is_empty() {
        out += "\n";
        out += &table::of(Kind::Deployment, deployments, false, true, now);
    }
    if !hosts.is_empty() {
        out += "\n";
        out += &table::of(Kind::Host, hosts, false, true, now);
    }
    if hosts.is_empty() {
        out += "\nNext: `tandem join-token` on this machine, then `tandem-agent run` with it on each host.\n";
    } else if deployments.is_empty() {
        out += "\nNext: `tandem apply -f examples/tiny.yaml`.\n";
    }
    out
}

/// One line for everything that somebody should look at.
fn trouble(status: &StatusResponse, hosts: &[Value], deployments: &[Value]) -> Vec<String> {
    let mut lines = Vec::new();
    for host in status.hosts.iter().filter(|host| !host.connected) {
        lines.push(format!(
            "host {0} is not connected: see to its agent there, or `tandem delete infh/{0}` if it is gone for good",
            host.name
        ));
    }
    for host in hosts {
        for workload in items(&host["status"], "workloads").iter().filter(|w| w["state"] == "Failed") {
            let why = workload["message"].as_str().or(workload["lastExit"]["cause"].as_str());
            lines.push(format!(
                "{} on host {} has failed: {}",
                text(workload, &["id"]),
                name(host),
                why.unwrap_or("see `tandem logs`")
            ));
        }
    }
    if !deployments.is_empty() && !status.gateways.iter().any(|gateway| gateway.connected) {
        lines.push(
            "no gateway is connected, so clients reach no model: see `tandem join-token --role gateway`"
                .to_owned(),
        );
    }
    for object in deployments {
        let namespace = text(object, &["metadata", "namespace"]);
        let mut said = Vec::new();
        for (kind, bad) in
            [("Stalled", "True"), ("Ready", "False"), ("Redundant", "False"), ("Degraded", "True")]
        {
            if let Some((found, reason, message)) = condition(object, kind)
                && found == bad
                && !said.contains(&message)
            {
                said.push(message);
                let not = if bad == "False" { "not " } else { "" };
                lines.push(format!("{namespace}/{} is {not}{kind} ({reason}): {message}", name(object)));
            }
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use tandem_control_api::{GatewaySummary, HostSummary};

    #[test]
    fn what_is_wrong_stands_before_the_tables() {
        let status = StatusResponse {
            version: "0.1.0".into(),
            leading: true,
            term: 4,
            store: "embedded".into(),
            hosts: vec![HostSummary { name: "mac-b".into(), connected: false, last_seen: 0 }],
            gateways: vec![GatewaySummary {
                name: "edge".into(),
                url: "http://edge".into(),
                connected: true,
            }],
            operators: Vec::new(),
        };
        let deployment = json!({"metadata": {"name": "kimi", "namespace": "llm"}, "status": {"conditions": [
            {"type": "Ready", "status": "True"},
            {"type": "Redundant", "status": "False", "reason": "HostLost", "message": "mac-b is silent"}]}});
        let text = screen("https://op:7443", &status, &[], &[deployment], Timestamp::UNIX_EPOCH);
        let at = |part: &str| text.find(part).unwrap_or_else(|| panic!("{part:?} is not in\n{text}"));
        assert!(at("✗ host mac-b is not connected") < at("NAME"));
        assert!(at("✗ llm/kimi is not Redundant (HostLost): mac-b is silent") < at("NAME"));
        assert!(!text.contains("not Ready") && at("leads in term 4") < at("Gateways 1 of 1"));
    }
}

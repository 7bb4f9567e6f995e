//! `tandem describe`: one object's story.

use std::fmt::Write as _;

use anyhow::Result;
use jiff::Timestamp;
use serde_json::Value;

use crate::connection::Connection;
use crate::events;
use crate::object::{Kind, Target, items, name, text};
use crate::output::write;
use crate::progress::Progress;
use crate::span::since;
use crate::table::{age, or_dash, plain, schedulable, size};

pub(crate) async fn run(mut connection: Connection, target: &Target) -> Result<()> {
    let (kind, object_name) = target.one()?;
    let object = connection.get(kind, object_name).await?;
    let reference = connection.reference(kind, object_name);
    let events = connection.events(kind, reference).await?;
    write(&story(kind, &object, &events, Timestamp::now()))
}

/// All there is to say, in the order in which somebody on call asks: is it well, why not, where is it, what happened.
fn story(kind: Kind, object: &Value, events: &[Value], now: Timestamp) -> String {
    let mut out = String::new();
    let facts = match kind {
        Kind::Deployment => deployment(object),
        Kind::Host => host(object),
    };
    let of_all = [
        ("Name", name(object).to_owned()),
        ("Namespace", text(object, &["metadata", "namespace"]).to_owned()),
        ("Labels", pairs(&object["metadata"]["labels"])),
        ("Age", age(object, now)),
    ];
    for (label, value) in of_all.into_iter().chain(facts).filter(|(_, value)| !value.is_empty()) {
        writeln!(out, "{:<13} {value}", format!("{label}:")).expect("a String takes all");
    }
    let status = &object["status"];
    section(&mut out, "Conditions", conditions(status, now));
    match kind {
        Kind::Deployment => section(&mut out, "Placements", placements(status)),
        Kind::Host => {
            section(&mut out, "Devices", devices(status));
            section(&mut out, "Workloads", workloads(object));
        }
    }
    let events = if events.is_empty() { "none\n".to_owned() } else { events::table(events, false, now) };
    section(&mut out, "Events", events);
    out
}

fn deployment(object: &Value) -> Vec<(&'static str, String)> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let said = |path: &[&str]| text(object, path).to_owned();
    let number = |value: &Value| value.as_u64().map_or_else(String::new, |number| number.to_string());
    let context = match (spec["context"]["tokens"].as_u64(), spec["context"]["poolTokens"].as_u64()) {
        (Some(tokens), Some(pool)) => format!("{tokens} tokens a sequence, {pool} in all"),
        (Some(tokens), None) => format!("{tokens} tokens a sequence"),
        _ => String::new(),
    };
    // The source as hosts fetch from it, where that says more than the manifest.
    let mut pinned = said(&["status", "model", "source"]);
    if pinned == text(object, &["spec", "model", "source"]) {
        pinned.clear();
    }
    let reference = &spec["model"]["credentials"]["secretRef"];
    let secret = match (text(reference, &["name"]), text(reference, &["key"])) {
        ("", _) => String::new(),
        (name, key) => format!("{name}/{key}"),
    };
    let failures = spec["redundancy"]["hostFailures"].as_u64().unwrap_or(0);
    let copies = match text(status, &["ready"]) {
        "" => String::new(),
        ready => format!("{ready} ready, {} placed", status["copies"].as_u64().unwrap_or(0)),
    };
    vec![
        ("Model", said(&["spec", "model", "name"])),
        ("Source", said(&["spec", "model", "source"])),
        ("Pinned", pinned),
        ("Secret", secret),
        ("Revision", said(&["status", "model", "revision"])),
        ("Quant", said(&["spec", "quant"])),
        ("Context", context),
        ("Replicas", number(&spec["replicas"])),
        (
            "Survives",
            match failures {
                0 => "no loss of a host is planned for".to_owned(),
                1 => "the loss of any one host".to_owned(),
                more => format!("the loss of any {more} hosts"),
            },
        ),
        ("Copies", copies),
        ("Cover", said(&["status", "cover"])),
        ("Memory", memory(&status["sizing"])),
        ("Endpoint", said(&["status", "endpoint"])),
        ("Recovery", said(&["status", "recovery", "reason"])),
    ]
}

fn host(object: &Value) -> Vec<(&'static str, String)> {
    let status = &object["status"];
    let said = |path: &[&str]| text(object, path).to_owned();
    let of = |part: &Value, free: &str| match (part[free].as_u64(), part["totalBytes"].as_u64()) {
        (Some(free), Some(total)) => format!("{} free of {}", size(free), size(total)),
        _ => String::new(),
    };
    vec![
        ("Address", said(&["status", "address"])),
        ("Gateway", said(&["status", "gatewayUrl"])),
        ("Agent", said(&["status", "agentVersion"])),
        ("Schedulable", schedulable(object).to_owned()),
        ("Memory", of(&status["memory"], "availableBytes")),
        ("Disk", of(&status["disk"], "freeBytes")),
        ("Weights", weights(&status["weights"])),
        ("Networks", networks(items(status, "links"))),
    ]
}

/// What is kept of how much there may be.
fn weights(weights: &Value) -> String {
    let Some(used) = weights["usedBytes"].as_u64() else { return String::new() };
    let budget = weights["budgetBytes"].as_u64().map(|budget| format!(" of {}", size(budget)));
    let files = match items(weights, "files").len() {
        1 => "1 file".to_owned(),
        count => format!("{count} files"),
    };
    format!("{}{} kept, {files}", size(used), budget.unwrap_or_default())
}

fn networks(links: &[Value]) -> String {
    let link = |link: &Value| {
        let speed = link["megabits"].as_u64().map(|megabits| match megabits {
            1_000.. => format!(" {} Gb/s", megabits / 1_000),
            _ => format!(" {megabits} Mb/s"),
        });
        format!("{}{}", text(link, &["address"]), speed.unwrap_or_default())
    };
    links.iter().map(link).collect::<Vec<_>>().join(", ")
}

fn pairs(labels: &Value) -> String {
    let labels = labels.as_object().into_iter().flatten();
    labels
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect::<Vec<_>>()
        .join(" ")
}

fn section(out: &mut String, title: &str, body: String) {
    if body.is_empty() {
        return;
    }
    writeln!(out, "\n{title}:").expect("a String takes all");
    for line in body.lines() {
        writeln!(out, "  {line}").expect("a String takes all");
    }
}

/// A table with a title, or nothing where there are no rows.
fn rows(title: &[&str], rows: Vec<Vec<String>>) -> String {
    if rows.is_empty() { String::new() } else { plain(title, rows) }
}

fn conditions(status: &Value, now: Timestamp) -> String {
    let cells = items(status, "conditions").iter().map(|condition| {
        let said = |key: &str| text(condition, &[key]).to_owned();
        let since = text(condition, &["lastTransitionTime"])
            .parse()
            .map_or_else(|_| "-".to_owned(), |then| since(then, now));
        vec![said("type"), said("status"), since, said("reason"), said("message")]
    });
    rows(&["TYPE", "STATUS", "SINCE", "REASON", "MESSAGE"], cells.collect())
}

fn placements(status: &Value) -> String {
    let cells = items(status, "placements").iter().map(|placement| {
        let said = |key: &str| or_dash(text(placement, &[key]));
        let mut cells = vec![said("host"), said("workload"), placement["epoch"].to_string(), said("state")];
        // Only where something is on its way.
        cells.extend(Progress::of_copy(placement).map(|progress| progress.long()));
        cells
    });
    let mut title = vec!["HOST", "WORKLOAD", "EPOCH", "STATE"];
    title.extend(["PROGRESS"].iter().filter(|_| items(status, "placements").iter().any(moves)));
    rows(&title, cells.collect())
}

fn moves(copy: &Value) -> bool {
    Progress::of_copy(copy).is_some()
}

fn devices(status: &Value) -> String {
    let cells = items(status, "devices").iter().map(|device| {
        let said = |key: &str| or_dash(text(device, &[key]));
        let bytes = |key: &str| device[key].as_u64().map_or_else(|| "-".to_owned(), size);
        vec![said("id"), said("kind"), said("name"), bytes("memoryBytes"), bytes("availableBytes")]
    });
    rows(&["ID", "KIND", "NAME", "MEMORY", "FOR TANDEM"], cells.collect())
}

/// What shall run, and how it fares; what has no line in the spec any more is ending.
fn workloads(object: &Value) -> String {
    let (wanted, seen) = (items(&object["spec"], "workloads"), items(&object["status"], "workloads"));
    let is = |a: &Value, b: &Value| a["id"] == b["id"];
    let unseen = wanted.iter().filter(|wanted| !seen.iter().any(|seen| is(seen, wanted)));
    let cells = seen.iter().chain(unseen).map(|workload| {
        let of = wanted.iter().find(|wanted| is(wanted, workload)).map_or_else(String::new, |wanted| {
            format!(
                "{}/{}",
                text(wanted, &["deployment", "namespace"]),
                text(wanted, &["deployment", "name"])
            )
        });
        let state = workload["state"].as_str().unwrap_or("Assigned");
        let progress = match Progress::of_copy(workload) {
            Some(progress) => Some(format!(" {}", progress.long())),
            None => workload["progress"].as_u64().map(|percent| format!(" {percent} %")),
        };
        let exit = workload["lastExit"]["cause"].as_str().map(|cause| format!("last exit: {cause}"));
        let message = workload["message"].as_str().map(str::to_owned).or(exit).unwrap_or_default();
        vec![
            text(workload, &["id"]).to_owned(),
            or_dash(&of),
            workload["epoch"].to_string(),
            format!("{state}{}", progress.unwrap_or_default()),
            workload["restarts"].as_u64().unwrap_or(0).to_string(),
            or_dash(text(workload, &["endpoint"])),
            message,
        ]
    });
    rows(&["ID", "DEPLOYMENT", "EPOCH", "STATE", "RESTARTS", "ENDPOINT", "MESSAGE"], cells.collect())
}

fn memory(sizing: &Value) -> String {
    let bytes = |key: &str| sizing[key].as_u64().map(size);
    match (bytes("totalBytes"), bytes("weightsBytes"), bytes("kvBytes"), bytes("arenaBytes")) {
        (Some(total), Some(weights), Some(kv), Some(arena)) => {
            format!("{total} a copy: weights {weights}, KV cache {kv}, arena {arena}")
        }
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn a_deployment_tells_what_is_wrong_before_the_details() {
        let object = json!({
            "metadata": {"name": "kimi", "namespace": "llm", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"model": {"name": "kimi-k2.5", "source": "https://models/kimi/",
                "credentials": {"secretRef": {"name": "hub", "key": "token"}}}, "quant": "UD-Q2_K_XL",
                "context": {"tokens": 98304, "poolTokens": 196_608}, "redundancy": {"hostFailures": 1}, "replicas": 1},
            "status": {"copies": 2, "readyCopies": 1, "ready": "1/2", "cover": "None",
                "model": {"source": "https://models/kimi/@0123abc", "revision": "sha256:77"},
                "sizing": {"totalBytes": 3_u64 << 30, "weightsBytes": 2_u64 << 30, "kvBytes": 1 << 29, "arenaBytes": 1 << 29},
                "conditions": [{"type": "Redundant", "status": "False", "reason": "HostLost",
                    "message": "host mac-b is silent for 12 s", "lastTransitionTime": "2026-01-01T00:00:48Z"}],
                "placements": [{"host": "mac-a", "workload": "llm-kimi-0", "epoch": 3, "state": "Ready"}]},
        });
        let events = [json!({"type": "Warning", "reason": "HostLost", "message": "mac-b", "count": 2,
            "lastTimestamp": "2026-01-01T00:00:50Z"})];
        assert_eq!(
            story(Kind::Deployment, &object, &events, at("2026-01-01T00:01:00Z")),
            "Name:         kimi
Namespace:    llm
Age:          60s
Model:        kimi-k2.5
Source:       https://models/kimi/
Pinned:       https://models/kimi/@0123abc
Secret:       hub/token
Revision:     sha256:77
Quant:        UD-Q2_K_XL
Context:      98304 tokens a sequence, 196608 in all
Replicas:     1
Survives:     the loss of any one host
Copies:       1/2 ready, 2 placed
Cover:        None
Memory:       3.0 GiB a copy: weights 2.0 GiB, KV cache 512.0 MiB, arena 512.0 MiB

Conditions:
  TYPE       STATUS  SINCE  REASON    MESSAGE
  Redundant  False   12s    HostLost  host mac-b is silent for 12 s

Placements:
  HOST   WORKLOAD    EPOCH  STATE
  mac-a  llm-kimi-0  3      Ready

Events:
  AGE       TYPE     REASON    MESSAGE
  10s (x2)  Warning  HostLost  mac-b
"
        );
    }

    #[test]
    fn a_host_tells_what_shall_run_and_how_it_fares() {
        let wanted =
            |id: &str| json!({"id": id, "epoch": 2, "deployment": {"namespace": "llm", "name": "kimi"}});
        let object = json!({
            "metadata": {"name": "mac-a", "labels": {"zone": "a"}},
            "spec": {"unschedulable": true, "workloads": [wanted("kimi-0"), wanted("kimi-1")]},
            "status": {"address": "10.0.0.7", "memory": {"totalBytes": 2_u64 << 30, "availableBytes": 1 << 30},
                "weights": {"usedBytes": 3_u64 << 30, "budgetBytes": 4_u64 << 30, "files": ["f"]},
                "links": [{"address": "10.0.0.7/24", "megabits": 10_000}, {"address": "10.1.0.7/24"}],
                "devices": [{"id": "cpu", "kind": "CPU", "name": "M3", "memoryBytes": 2_u64 << 30, "availableBytes": 1 << 30}],
                "workloads": [{"id": "kimi-0", "epoch": 2, "state": "Failed", "restarts": 4,
                    "lastExit": {"cause": "killed by the kernel, out of memory"}}]},
        });
        assert_eq!(
            story(Kind::Host, &object, &[], at("2026-01-01T00:01:00Z")),
            "Name:         mac-a
Labels:       zone=a
Age:          -
Address:      10.0.0.7
Schedulable:  no
Memory:       1.0 GiB free of 2.0 GiB
Weights:      3.0 GiB of 4.0 GiB kept, 1 file
Networks:     10.0.0.7/24 10 Gb/s, 10.1.0.7/24

Devices:
  ID   KIND  NAME  MEMORY   FOR TANDEM
  cpu  CPU   M3    2.0 GiB  1.0 GiB

Workloads:
  ID      DEPLOYMENT  EPOCH  STATE     RESTARTS  ENDPOINT  MESSAGE
  kimi-0  llm/kimi    2      Failed    4         -         last exit: killed by the kernel, out of memory
  kimi-1  llm/kimi    2      Assigned  0         -

Events:
  none
"
        );
    }
}

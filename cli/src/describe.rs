//! `tandem describe`: one object's story.

use std::fmt::Write as _;

use anyhow::Result;
use jiff::Timestamp;
use serde_json::Value;

use crate::connection::Connection;
use crate::get::{events_table, fetch_events, write};
use crate::object::{Kind, Target, name, text};
use crate::table::{age, plain, since, size};

pub(crate) async fn run(mut connection: Connection, target: &Target) -> Result<()> {
    let (kind, object_name) = target.one()?;
    let object = connection.get(kind, object_name).await?;
    let events = fetch_events(&mut connection, kind, object_name).await?;
    write(&story(kind, &object, &events, Timestamp::now()))
}

/// All there is to say, in the order in which somebody on call asks: is it well, why not, where is it, what happened.
fn story(kind: Kind, object: &Value, events: &[Value], now: Timestamp) -> String {
    let mut out = String::new();
    let mut line = |label: &str, value: String| {
        if !value.is_empty() {
            writeln!(out, "{:<14} {value}", format!("{label}:")).expect("a String takes all");
        }
    };
    line("Name", name(object).to_owned());
    line("Namespace", text(object, &["metadata", "namespace"]).to_owned());
    line("Age", age(object, now));
    let status = &object["status"];
    match kind {
        Kind::Deployment => {
            line("Model", text(object, &["spec", "model", "name"]).to_owned());
            line("Source", text(object, &["spec", "model", "source"]).to_owned());
            line("Revision", text(object, &["status", "model", "revision"]).to_owned());
            line("Quant", text(object, &["spec", "quant"]).to_owned());
            let context = &object["spec"]["context"];
            line("Context", format!("{} tokens, a pool of {}", context["tokens"], context["poolTokens"]));
            let copies = |key: &str| status[key].as_i64().unwrap_or(0);
            line("Copies", format!("{} ready of {}", copies("readyCopies"), copies("copies")));
            line("Cover", text(object, &["status", "cover"]).to_owned());
            line("Memory", memory(&status["sizing"]));
            line("Recovery", text(object, &["status", "recovery", "reason"]).to_owned());
        }
        Kind::Host => {
            line("Address", text(object, &["status", "address"]).to_owned());
            line("Agent", text(object, &["status", "agentVersion"]).to_owned());
            let unschedulable = object["spec"]["unschedulable"].as_bool() == Some(true);
            line("Schedulable", if unschedulable { "no (cordoned)" } else { "yes" }.to_owned());
            let disk = &status["disk"];
            if let (Some(free), Some(total)) = (disk["freeBytes"].as_u64(), disk["totalBytes"].as_u64()) {
                line("Disk", format!("{} free of {}", size(free), size(total)));
            }
        }
    }
    section(&mut out, "Conditions", conditions(status, now));
    match kind {
        Kind::Deployment => section(&mut out, "Placements", placements(status)),
        Kind::Host => {
            section(&mut out, "Devices", devices(status));
            section(&mut out, "Workloads", workloads(status));
        }
    }
    let events = if events.is_empty() { "none\n".to_owned() } else { events_table(events, now) };
    section(&mut out, "Events", events);
    out
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

fn array<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map(Vec::as_slice).unwrap_or_default()
}

/// A table with one column per JSON key, or nothing where there are no rows.
fn columns(rows: &[Value], header: &[&str], cell: impl Fn(&Value, &str) -> String) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let titles: Vec<String> = header.iter().map(|key| key.to_uppercase()).collect();
    let titles: Vec<&str> = titles.iter().map(String::as_str).collect();
    plain(&titles, rows.iter().map(|row| header.iter().map(|key| cell(row, key)).collect()))
}

fn plain_cell(row: &Value, key: &str) -> String {
    match &row[key] {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    }
}

fn conditions(status: &Value, now: Timestamp) -> String {
    let rows = array(status, "conditions").iter().map(|condition| {
        let text = |key: &str| condition[key].as_str().unwrap_or_default().to_owned();
        let since =
            text("lastTransitionTime").parse().map_or_else(|_| "-".to_owned(), |then| since(then, now));
        vec![text("type"), text("status"), since, text("reason"), text("message")]
    });
    plain(&["TYPE", "STATUS", "SINCE", "REASON", "MESSAGE"], rows)
}

fn placements(status: &Value) -> String {
    columns(array(status, "placements"), &["host", "workload", "epoch", "state"], plain_cell)
}

fn devices(status: &Value) -> String {
    columns(array(status, "devices"), &["id", "kind", "name", "memoryBytes", "availableBytes"], |row, key| {
        match row[key].as_u64() {
            Some(bytes) if key.ends_with("Bytes") => size(bytes),
            _ => plain_cell(row, key),
        }
    })
}

fn workloads(status: &Value) -> String {
    let header = ["id", "epoch", "state", "endpoint", "restarts", "message"];
    columns(array(status, "workloads"), &header, plain_cell)
}

fn memory(sizing: &Value) -> String {
    let bytes = |key: &str| sizing[key].as_u64();
    match (bytes("totalBytes"), bytes("weightsBytes"), bytes("kvBytes"), bytes("arenaBytes")) {
        (Some(total), Some(weights), Some(kv), Some(arena)) => format!(
            "{} a copy: weights {}, KV cache {}, arena {}",
            size(total),
            size(weights),
            size(kv),
            size(arena)
        ),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_story_names_what_is_wrong_before_the_details() {
        let object = json!({
            "metadata": {"name": "kimi", "namespace": "llm", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"model": {"name": "kimi-k2.5", "source": "https://models/kimi/"}, "quant": "UD-Q2_K_XL",
                "context": {"tokens": 98304, "poolTokens": 196_608}},
            "status": {"copies": 2, "readyCopies": 1, "cover": "None",
                "sizing": {"totalBytes": 3_u64 << 30, "weightsBytes": 2_u64 << 30, "kvBytes": 1 << 29, "arenaBytes": 1 << 29},
                "conditions": [{"type": "Redundant", "status": "False", "reason": "HostLost",
                    "message": "host mac-b is silent for 12 s", "lastTransitionTime": "2026-01-01T00:00:48Z"}],
                "placements": [{"host": "mac-a", "workload": "llm-kimi-0", "epoch": 3, "state": "Ready"}]},
        });
        let events = [json!({"type": "Warning", "reason": "HostLost", "message": "mac-b", "count": 2,
            "lastTimestamp": "2026-01-01T00:00:50Z"})];
        let text = story(Kind::Deployment, &object, &events, "2026-01-01T00:01:00Z".parse().unwrap());
        for expected in [
            "Copies:        1 ready of 2",
            "Memory:        3.0 GiB a copy: weights 2.0 GiB, KV cache 512.0 MiB, arena 512.0 MiB",
            "  Redundant  False   12s    HostLost  host mac-b is silent for 12 s",
            "  mac-a  llm-kimi-0  3      Ready",
            "  10s (x2)  Warning  HostLost  mac-b",
        ] {
            assert!(text.contains(expected), "{expected:?} is not in\n{text}");
        }
    }
}

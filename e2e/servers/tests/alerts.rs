//! Alerts, runbooks and dashboard: by real promtool, and true to each other and to the documented figures.
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use tandem_servers::{Tool, Tools};

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn alerts() -> PathBuf {
    workspace().join("charts/tandem/files/alerts.yaml")
}

fn rules() -> Vec<Value> {
    let file: Value = serde_yaml::from_str(&fs::read_to_string(alerts()).unwrap()).unwrap();
    file["groups"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|group| group["rules"].as_array().unwrap().clone())
        .collect()
}

fn promtool(arguments: &[&str]) {
    let promtool = Tools::find().unwrap().program(Tool::Prometheus, "promtool").unwrap();
    let output = Command::new(promtool).args(arguments).output().unwrap();
    let (out, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}{said}");
}

#[test]
fn promtool_takes_the_alerts() {
    promtool(&["check", "rules", "--lint=all", "--lint-fatal", &alerts().display().to_string()]);
}

/// Series, when, and whether an alert fires then.
#[test]
fn alerts_fire_when_they_should_and_not_before() {
    let dir = tempfile::tempdir().unwrap();
    let test = |series: &str, values: &str, alert: &str, at: &str, fires: Value| {
        json!({
            "interval": "30s",
            "input_series": [{"series": series, "values": values}],
            "alert_rule_test": [{"eval_time": at, "alertname": alert, "exp_alerts": fires}],
        })
    };
    let with = |alert: &str, labels: Value| {
        let rule = rules().into_iter().find(|rule| rule["alert"] == alert).unwrap();
        let mut all = labels.clone();
        all["severity"] = rule["labels"]["severity"].clone();
        let fill = |text: &Value| {
            let mut text = text.as_str().unwrap().to_owned();
            for (name, value) in labels.as_object().unwrap() {
                text = text.replace(&format!("{{{{ $labels.{name} }}}}"), value.as_str().unwrap());
            }
            text
        };
        let notes = &rule["annotations"];
        json!([{
            "exp_labels": all,
            "exp_annotations": {"summary": fill(&notes["summary"]), "description": fill(&notes["description"])},
        }])
    };
    let ready = r#"tandem_deployment_condition{namespace="llm",name="kimi",condition="Ready"}"#;
    let labels = json!({"namespace": "llm", "name": "kimi", "condition": "Ready"});
    let host = r#"tandem_host_heard{host="mac-a"}"#;
    let tests = json!({
        "rule_files": [alerts().display().to_string()],
        "evaluation_interval": "30s",
        "tests": [
            test("tandem_operator_leader", "0x10", "TandemNoLeader", "4m", with("TandemNoLeader", json!({}))),
            test("tandem_operator_leader", "1x10", "TandemNoLeader", "4m", json!([])),
            test(ready, "1 1 0x10", "TandemDeploymentDown", "2m", json!([])),
            test(ready, "1 1 0x10", "TandemDeploymentDown", "4m", with("TandemDeploymentDown", labels)),
            test(host, "0x20", "TandemHostSilent", "6m", with("TandemHostSilent", json!({"host": "mac-a"}))),
            test(host, "1x20", "TandemHostSilent", "6m", json!([])),
        ],
    });
    let file = dir.path().join("tests.yaml");
    fs::write(&file, serde_yaml::to_string(&tests).unwrap()).unwrap();
    promtool(&["test", "rules", &file.display().to_string()]);
}

#[test]
fn every_alert_has_a_runbook_and_every_runbook_an_alert() {
    let alerts: BTreeSet<String> =
        rules().iter().map(|rule| rule["alert"].as_str().unwrap().to_owned()).collect();
    let files = fs::read_dir(workspace().join("docs/runbooks")).unwrap();
    let runbooks: BTreeSet<String> =
        files.map(|file| file.unwrap().file_name().into_string().unwrap().replace(".md", "")).collect();
    assert_eq!(alerts, runbooks);
}

#[test]
fn alerts_and_dashboard_ask_for_documented_figures_only() {
    let documented = fs::read_to_string(workspace().join("docs/metrics.md")).unwrap();
    let dashboard = fs::read_to_string(workspace().join("charts/tandem/files/dashboard.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&dashboard).unwrap();
    let panels =
        dashboard["panels"].as_array().unwrap().iter().flat_map(|panel| panel["targets"].as_array().unwrap());
    let mut expressions: Vec<String> =
        panels.map(|target| target["expr"].as_str().unwrap().to_owned()).collect();
    expressions.extend(rules().iter().map(|rule| rule["expr"].as_str().unwrap().to_owned()));
    let mut figures = BTreeSet::new();
    for expression in &expressions {
        let words = expression.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        figures
            .extend(words.filter(|word| word.starts_with("tandem_")).map(|word| word.replace("_bucket", "")));
    }
    assert!(figures.len() > 8, "{figures:?}");
    for figure in figures {
        assert!(documented.contains(&format!("`{figure}")), "docs/metrics.md does not know {figure}");
    }
}

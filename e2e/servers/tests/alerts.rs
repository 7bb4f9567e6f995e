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

/// What a rule is held to: series with their values, every 30 s, and when it is looked at.
struct Case {
    rule: &'static str,
    series: Vec<(String, &'static str)>,
    at: &'static str,
}

fn case(rule: &'static str, series: &str, values: &'static str, at: &'static str) -> Case {
    Case { rule, series: vec![(series.to_owned(), values)], at }
}

impl Case {
    fn and(mut self, series: &str, values: &'static str) -> Self {
        self.series.push((series.to_owned(), values));
        self
    }

    fn input(&self) -> Vec<Value> {
        self.series.iter().map(|(series, values)| json!({"series": series, "values": values})).collect()
    }
}

const OF: &str = r#"namespace="llm",name="kimi""#;

fn condition(of: &str) -> String {
    format!("tandem_deployment_condition{{{OF},condition=\"{of}\"}}")
}

fn gateway(figure: &str, more: &str) -> String {
    format!("tandem_gateway_{figure}{{{OF}{more}}}")
}

/// Series under which each alert fires.
fn firing() -> Vec<(Case, Value)> {
    let kimi = || json!({"namespace": "llm", "name": "kimi"});
    let with = |condition: &str| json!({"namespace": "llm", "name": "kimi", "condition": condition});
    let agent = r#"tandem_agent_session_up{instance="mac-a:7445"}"#;
    let damaged = r#"tandem_weights_verify_failures_total{instance="mac-a:7445"}"#;
    let refused = r#"tandem_operator_failed_writes_total{kind="InferenceHost"}"#;
    let at = || json!({"instance": "mac-a:7445"});
    let failed = gateway("streams_total", r#",result="overloaded""#);
    let slow = |le: &str| gateway("recovery_seconds_bucket", &format!(r#",le="{le}""#));
    vec![
        (case("TandemNoLeader", "tandem_operator_leader", "0x10", "4m"), json!({})),
        (
            case("TandemTwoLeaders", r#"tandem_operator_leader{pod="a"}"#, "1x10", "4m")
                .and(r#"tandem_operator_leader{pod="b"}"#, "1x10"),
            json!({}),
        ),
        (
            case("TandemReconcileFails", "tandem_operator_last_success_timestamp_seconds", "0x20", "4m"),
            json!({}),
        ),
        // Every five minutes at the least, while it is refused.
        (case("TandemWritesRefused", refused, "0 1x9 2x30", "12m"), json!({"kind": "InferenceHost"})),
        (case("TandemDeploymentDown", &condition("Ready"), "1 1 0x10", "4m"), with("Ready")),
        (case("TandemDeploymentNotRedundant", &condition("Redundant"), "0x40", "16m"), with("Redundant")),
        (case("TandemDeploymentStalled", &condition("Stalled"), "1x20", "6m"), with("Stalled")),
        (
            case("TandemHostSilent", r#"tandem_host_heard{host="mac-a"}"#, "0x20", "6m"),
            json!({"host": "mac-a"}),
        ),
        (case("TandemAgentOffline", agent, "0x20", "6m"), at()),
        (case("TandemWeightsDamaged", damaged, "0 0 1x10", "4m"), at()),
        (
            case("TandemStreamsFail", &failed, "0+1x40", "12m")
                .and(&gateway("streams_total", r#",result="stop""#), "0+9x40"),
            kimi(),
        ),
        (case("TandemStreamsWait", &gateway("streams_waiting", ""), "1x60", "20m"), kimi()),
        (
            case("TandemTakeoversSlow", &slow("2"), "0x10", "4m")
                .and(&slow("3"), "0+1x10")
                .and(&slow("+Inf"), "0+1x10"),
            kimi(),
        ),
    ]
}

/// Series under which each alert is silent: all is well, or it has not lasted.
fn silent() -> Vec<Case> {
    let failed = gateway("streams_total", r#",result="overloaded""#);
    let quick = |le: &str| gateway("recovery_seconds_bucket", &format!(r#",le="{le}""#));
    vec![
        case("TandemNoLeader", "tandem_operator_leader", "1x10", "4m"),
        case("TandemTwoLeaders", r#"tandem_operator_leader{pod="a"}"#, "1x10", "4m")
            .and(r#"tandem_operator_leader{pod="b"}"#, "0x10"),
        case("TandemReconcileFails", "tandem_operator_last_success_timestamp_seconds", "0+30x20", "4m"),
        case("TandemWritesRefused", "tandem_operator_failed_writes_total", "3x40", "12m"),
        case("TandemDeploymentDown", &condition("Ready"), "1 1 0x10", "2m"),
        case("TandemDeploymentNotRedundant", &condition("Redundant"), "0x20 1x20", "14m"),
        case("TandemDeploymentStalled", &condition("Stalled"), "0x20", "6m"),
        case("TandemHostSilent", r#"tandem_host_heard{host="mac-a"}"#, "1x20", "6m"),
        case("TandemAgentOffline", "tandem_agent_session_up", "0 0 1x20", "6m"),
        case("TandemWeightsDamaged", "tandem_weights_verify_failures_total", "3x20", "4m"),
        // Clients that go away, and one answer in a hundred.
        case("TandemStreamsFail", &failed, "0+1x40", "12m")
            .and(&gateway("streams_total", r#",result="client_gone""#), "0+99x40"),
        case("TandemStreamsWait", &gateway("streams_waiting", ""), "1x20 0 1x40", "20m"),
        case("TandemTakeoversSlow", &quick("2"), "0+1x10", "4m").and(&quick("+Inf"), "0+1x10"),
    ]
}

#[test]
fn every_alert_fires_when_it_should_and_no_sooner() {
    let all: BTreeSet<String> =
        rules().iter().filter_map(|rule| Some(rule["alert"].as_str()?.to_owned())).collect();
    let named = |names: Vec<&str>| names.into_iter().map(str::to_owned).collect::<BTreeSet<_>>();
    assert_eq!(named(firing().iter().map(|(case, _)| case.rule).collect()), all);
    assert_eq!(named(silent().iter().map(|case| case.rule).collect()), all);
    let test = |case: &Case, fires: Value| {
        json!({
            "interval": "30s",
            "input_series": case.input(),
            "alert_rule_test": [{"eval_time": case.at, "alertname": case.rule, "exp_alerts": fires}],
        })
    };
    let with = |alert: &str, labels: &Value| {
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
    let fire = firing();
    let fire = fire.iter().map(|(case, labels)| test(case, with(case.rule, labels)));
    let quiet = silent();
    let quiet = quiet.iter().map(|case| test(case, json!([])));
    promtool_tests(fire.chain(quiet).collect());
}

/// What each recorded rule makes of series.
fn recorded() -> Vec<(Case, f64)> {
    let bucket = |figure: &str, le: &str| gateway(&format!("{figure}_bucket"), &format!(r#",le="{le}""#));
    let quantile = |rule, figure, edge: &str| {
        case(rule, &bucket(figure, "0"), "0x80", "35m")
            .and(&bucket(figure, edge), "0+1x80")
            .and(&bucket(figure, "+Inf"), "0+1x80")
    };
    let of = |pod: &str| format!(r#",pod="{pod}""#);
    vec![
        (
            case(
                "namespace_name:tandem_gateway_streams_open:sum",
                &gateway("streams_running", &of("a")),
                "3x10",
                "2m",
            )
            .and(&gateway("streams_running", &of("b")), "2x10")
            .and(&gateway("streams_waiting", &of("a")), "4x10"),
            9.0,
        ),
        (
            case(
                "namespace_name:tandem_gateway_streams_waiting:sum",
                &gateway("streams_waiting", &of("a")),
                "4x10",
                "2m",
            )
            .and(&gateway("streams_waiting", &of("b")), "1x10"),
            5.0,
        ),
        (
            case(
                "namespace_name:tandem_gateway_streams_failed:rate5m",
                &gateway("streams_total", r#",result="deadline""#),
                "0+3x40",
                "10m",
            )
            .and(&gateway("streams_total", r#",result="invalid""#), "0+30x40"),
            0.1,
        ),
        (
            case(
                "namespace_name:tandem_gateway_streams:rate5m",
                &gateway("streams_total", r#",result="deadline""#),
                "0+3x40",
                "10m",
            )
            .and(&gateway("streams_total", r#",result="stop""#), "0+27x40"),
            1.0,
        ),
        (
            quantile(
                "namespace_name:tandem_gateway_time_to_first_token_seconds:p95_5m",
                "time_to_first_token_seconds",
                "10",
            ),
            9.5,
        ),
        (
            quantile("namespace_name:tandem_gateway_inter_token_seconds:p95_5m", "inter_token_seconds", "1"),
            0.95,
        ),
        (quantile("namespace_name:tandem_gateway_recovery_seconds:p99_1h", "recovery_seconds", "2"), 1.98),
        (
            case(
                "namespace_name:tandem_gateway_tokens_completion:rate5m",
                &gateway("tokens_total", r#",kind="completion""#),
                "0+300x40",
                "10m",
            )
            .and(&gateway("tokens_total", r#",kind="prompt""#), "0+900x40"),
            10.0,
        ),
    ]
}

#[test]
fn every_recorded_rule_makes_of_the_figures_what_its_name_says() {
    let all: BTreeSet<String> =
        rules().iter().filter_map(|rule| Some(rule["record"].as_str()?.to_owned())).collect();
    let held: BTreeSet<String> = recorded().iter().map(|(case, _)| case.rule.to_owned()).collect();
    assert_eq!(held, all);
    let test = |(case, value): &(Case, f64)| {
        json!({
            "interval": "30s",
            "input_series": case.input(),
            "promql_expr_test": [{
                // As it is told: floating point has other last digits.
                "expr": format!("round({}, 0.001)", case.rule),
                "eval_time": case.at,
                "exp_samples": [{"labels": format!("{{{OF}}}"), "value": value}],
            }],
        })
    };
    promtool_tests(recorded().iter().map(test).collect());
}

fn promtool_tests(tests: Vec<Value>) {
    let dir = tempfile::tempdir().unwrap();
    let tests = json!({
        "rule_files": [alerts().display().to_string()], "evaluation_interval": "30s", "tests": tests,
    });
    let file = dir.path().join("tests.yaml");
    fs::write(&file, serde_yaml::to_string(&tests).unwrap()).unwrap();
    promtool(&["test", "rules", &file.display().to_string()]);
}

#[test]
fn every_alert_has_a_runbook_and_every_runbook_an_alert() {
    let alerts: BTreeSet<String> =
        rules().iter().filter_map(|rule| Some(rule["alert"].as_str()?.to_owned())).collect();
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
    // Recorded rules are figures of these figures.
    for rule in rules().iter().filter_map(|rule| rule["record"].as_str()) {
        for expression in &mut expressions {
            *expression = expression.replace(rule, "");
        }
    }
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

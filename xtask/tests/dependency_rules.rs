//! Arrows point at nouns and pure code: the rules of ARCHITECTURE.md, held over `cargo metadata`.
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

/// Programs. Nothing depends on them.
const PROGRAMS: [&str; 6] =
    ["tandem-operator", "tandem-agent", "inference-worker", "tandem-gateway", "tandem", "xtask"];

/// Cores that know neither I/O nor time nor chance.
const PURE: [&str; 8] = [
    "tandem-crds",
    "tandem-plan",
    "tandem-agent-core",
    "tandem-gateway-core",
    "tandem-gguf",
    "tandem-tokenizer",
    "tandem-engine",
    "tandem-kernels",
];

/// What a pure core must not even link directly.
const IMPURE: [&str; 12] = [
    "tokio",
    "reqwest",
    "axum",
    "redb",
    "rand",
    "nix",
    "rustls",
    "tower",
    "futures",
    "tracing-subscriber",
    "hyper",
    "tokio-util",
];

/// The only crates that may talk to an API server.
const KUBERNETES_CLIENTS: [&str; 4] = ["tandem-store", "tandem", "tandem-e2e", "tandem-servers"];

struct Member {
    /// Direct dependencies that are linked into the crate itself, with their features; not those of tests or builds.
    dependencies: BTreeMap<String, BTreeSet<String>>,
    /// Those of tests and builds too, by the name that code uses.
    every_dependency: BTreeSet<String>,
    manifest: String,
}

fn members() -> BTreeMap<String, Member> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    metadata["packages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|package| {
            let dependencies = package["dependencies"].as_array().unwrap().iter();
            let named = |d: &Value| text(if d["rename"].is_null() { &d["name"] } else { &d["rename"] });
            let every_dependency = dependencies.clone().map(named).collect();
            let dependencies = dependencies
                .filter(|d| d["kind"].is_null())
                .map(|d| (text(&d["name"]), d["features"].as_array().unwrap().iter().map(text).collect()))
                .collect();
            let manifest = std::fs::read_to_string(package["manifest_path"].as_str().unwrap()).unwrap();
            (text(&package["name"]), Member { dependencies, every_dependency, manifest })
        })
        .collect()
}

/// Every crate of ours that `name` reaches, itself included.
fn reach(members: &BTreeMap<String, Member>, name: &str) -> BTreeSet<String> {
    let mut seen = BTreeSet::from([name.to_owned()]);
    let mut todo = vec![name.to_owned()];
    while let Some(next) = todo.pop() {
        for dependency in members[&next].dependencies.keys().filter(|d| members.contains_key(*d)) {
            if seen.insert(dependency.clone()) {
                todo.push(dependency.clone());
            }
        }
    }
    seen
}

#[test]
fn every_name_in_the_rules_is_a_crate() {
    let members = members();
    for name in PROGRAMS.iter().chain(&PURE).chain(&KUBERNETES_CLIENTS) {
        assert!(members.contains_key(*name), "{name} is in a rule and not in the workspace");
    }
}

#[test]
fn nothing_depends_on_a_program() {
    for (name, member) in members() {
        for program in PROGRAMS {
            assert!(!member.dependencies.contains_key(program), "{name} depends on the program {program}");
        }
    }
}

#[test]
fn pure_crates_link_no_input_or_output() {
    let members = members();
    for name in PURE {
        for reached in reach(&members, name) {
            for impure in IMPURE {
                let links = members[&reached].dependencies.contains_key(impure);
                // The generated worker client needs tonic and with it tokio; the nouns that cores take from it do not.
                assert!(!links, "{name} is pure, but {reached}, which it uses, links {impure}");
            }
        }
    }
}

#[test]
fn only_a_few_crates_talk_to_an_api_server() {
    for (name, member) in members() {
        let client = member.dependencies.get("kube").is_some_and(|features| {
            features.iter().any(|f| matches!(f.as_str(), "client" | "runtime" | "rustls-tls" | "default"))
        });
        assert!(!client || KUBERNETES_CLIENTS.contains(&name.as_str()), "{name} links kube's client");
    }
}

#[test]
fn workers_know_nothing_of_kubernetes() {
    let members = members();
    for reached in reach(&members, "inference-worker") {
        for foreign in ["kube", "k8s-openapi", "tandem-crds"] {
            let links = members[&reached].dependencies.contains_key(foreign);
            assert!(!links, "inference-worker reaches {foreign} through {reached}");
        }
    }
}

#[test]
fn unsafe_is_forbidden_outside_the_kernels() {
    for (name, member) in members() {
        let inherits = member.manifest.contains("[lints]\nworkspace = true");
        assert!(inherits || name == "tandem-kernels", "{name} does not inherit the workspace's lints");
    }
}

#[test]
fn every_dependency_has_a_reason() {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../DEPENDENCIES.md")).unwrap();
    let rows = text.lines().filter(|line| line.starts_with('|')).filter_map(|line| line.split('|').nth(1));
    let named: BTreeSet<&str> = rows.flat_map(|cell| cell.split(',')).map(str::trim).collect();
    let members = members();
    for (name, member) in &members {
        for dependency in member.every_dependency.iter().filter(|d| !members.contains_key(*d)) {
            assert!(
                named.contains(dependency.as_str()),
                "{name} uses {dependency}, which DEPENDENCIES.md does not name"
            );
        }
    }
}

//! What the generated definitions promise: they are fresh, names are for ever, and an API server takes them.
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use kube::core::cel::{ScopeContext, WarningKind, analyze_rule, compile_schema};
use serde_json::Value;
use tandem_crds::{Kind, generated_files};

fn here(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

#[test]
fn generated_files_are_fresh() {
    for (name, expected) in generated_files() {
        let found = fs::read_to_string(here(name)).unwrap_or_default();
        assert!(found == expected, "crds/{name} is stale; run `cargo xtask crds`");
    }
}

/// One line for each field and enum value, with whether a new object must state it.
fn lines(kind: Kind) -> BTreeMap<String, bool> {
    fn walk(schema: &Value, path: &str, required: bool, lines: &mut BTreeMap<String, bool>) {
        let of_type = schema["type"].as_str().unwrap_or_else(|| panic!("{path} has no type: {schema}"));
        lines.insert(format!("{path}: {of_type}"), required);
        for value in schema["enum"].as_array().into_iter().flatten() {
            lines.insert(format!("{path} = {value}"), false);
        }
        for (name, child) in schema["properties"].as_object().into_iter().flatten() {
            let required =
                schema["required"].as_array().is_some_and(|all| all.contains(&name.as_str().into()));
            walk(child, &format!("{path}.{name}"), required, lines);
        }
        if let Some(items) = schema.get("items") {
            walk(items, &format!("{path}[]"), false, lines);
        }
        if let Some(values) = schema.get("additionalProperties").filter(|values| values.is_object()) {
            walk(values, &format!("{path}{{}}"), false, lines);
        }
    }
    let mut lines = BTreeMap::new();
    for part in ["spec", "status"] {
        walk(&kind.schema()["properties"][part], &format!("{kind}.{part}"), false, &mut lines);
    }
    lines
}

#[test]
fn names_are_for_ever() {
    let path = here("schema.golden");
    let golden = fs::read_to_string(&path).unwrap_or_default();
    let promised: Vec<&str> = golden.lines().filter(|line| !line.starts_with('#')).collect();
    let now: BTreeMap<String, bool> = Kind::ALL.into_iter().flat_map(lines).collect();

    let broken: Vec<&&str> = promised.iter().filter(|line| !now.contains_key(**line)).collect();
    assert!(
        broken.is_empty(),
        "there is no conversion between versions, so what was once served stays. Bring back, with the same type:\n{broken:#?}"
    );
    let added: Vec<(&String, &bool)> =
        now.iter().filter(|(line, _)| !promised.contains(&line.as_str())).collect();
    let parent_is_old = |line: &str| {
        let parent =
            line.split(':').next().and_then(|field| field.rsplit_once('.')).map(|(parent, _)| parent);
        parent.is_some_and(|parent| promised.contains(&format!("{parent}: object").as_str()))
    };
    let demanding: Vec<&String> = added
        .iter()
        .filter(|(line, required)| **required && parent_is_old(line))
        .map(|(line, _)| *line)
        .collect();
    assert!(
        demanding.is_empty(),
        "objects that are stored already lack these, so they need a default or `Option`:\n{demanding:#?}"
    );
    if added.is_empty() {
        return;
    }
    assert!(
        std::env::var_os("TANDEM_BLESS_SCHEMA").is_some(),
        "new fields: run `TANDEM_BLESS_SCHEMA=1 cargo test -p tandem-crds names_are_for_ever` and commit crds/schema.golden, \
         if these names shall stay for ever:\n{added:#?}"
    );
    let header =
        "# Every field and enum value that was ever served. Lines are added, never removed or changed.\n";
    let text = now.keys().fold(header.to_owned(), |text, line| text + line + "\n");
    fs::write(path, text).unwrap();
}

/// Visits every schema node with its path.
fn visit(schema: &Value, path: &str, see: &mut impl FnMut(&str, &Value)) {
    see(path, schema);
    for (name, child) in schema["properties"].as_object().into_iter().flatten() {
        visit(child, &format!("{path}.{name}"), see);
    }
    for key in ["items", "additionalProperties"] {
        if let Some(child) = schema.get(key).filter(|child| child.is_object()) {
            visit(child, &format!("{path}[]"), see);
        }
    }
}

#[test]
fn every_field_is_described_and_bounded() {
    for kind in Kind::ALL {
        for part in ["spec", "status"] {
            visit(&kind.schema()["properties"][part], part, &mut |path, schema| {
                if !path.ends_with("[]") {
                    let described = schema["description"].as_str().unwrap_or_default();
                    assert!(!described.is_empty(), "{kind} {path} has no description");
                }
                let bounded = match schema["type"].as_str() {
                    Some("array") => schema.get("maxItems").is_some(),
                    Some("string") => {
                        path.ends_with("[]")
                            || schema.get("maxLength").is_some()
                            || schema.get("enum").is_some()
                    }
                    Some("object") => {
                        schema.get("additionalProperties").is_none() || schema.get("maxProperties").is_some()
                    }
                    _ => true,
                };
                assert!(bounded, "{kind} {path} has no upper bound: {schema}");
                assert!(schema["type"] != "number", "{kind} {path}: numbers with a fraction are strings");
                assert!(schema.get("nullable").is_none(), "{kind} {path} is nullable");
                assert!(
                    schema["type"] != "array" || schema.get("x-kubernetes-list-type").is_some(),
                    "{kind} {path}: lists say how they merge"
                );
            });
        }
    }
}

#[test]
fn every_rule_compiles_stays_cheap_and_has_a_fixed_message() {
    for kind in Kind::ALL {
        visit(kind.schema(), "", &mut |path, schema| {
            let compiled = compile_schema(schema);
            assert!(!compiled.has_errors(), "{kind} {path}: {:?}", compiled.compilation_errors());
            for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
                let text = rule["rule"].as_str().unwrap();
                let warnings = analyze_rule(text, &compiled, ScopeContext::CrdValidation);
                assert!(
                    !warnings.iter().any(|warning| matches!(warning.kind, WarningKind::CostExceeded)),
                    "{kind} {path}: {warnings:?}"
                );
                // An API server falls back to it where the expression fails.
                assert!(
                    rule["message"].as_str().is_some_and(|message| !message.is_empty()),
                    "{kind} {path}: `{text}`"
                );
            }
        });
    }
}

#[test]
fn definitions_carry_what_tools_use() {
    let deployment = Kind::InferenceDeployment.definition();
    let version = &deployment["spec"]["versions"][0];
    assert_eq!(deployment["metadata"]["name"], "inferencedeployments.inference.tandem.dev");
    assert_eq!(deployment["spec"]["scope"], "Namespaced");
    assert_eq!(deployment["spec"]["names"]["shortNames"][0], "infd");
    assert_eq!(deployment["spec"]["names"]["categories"][0], "tandem");
    assert_eq!(version["subresources"]["scale"]["specReplicasPath"], ".spec.replicas");
    assert_eq!(version["subresources"]["scale"]["statusReplicasPath"], ".status.replicas");
    assert_eq!(version["subresources"]["scale"]["labelSelectorPath"], ".status.selector");
    assert!(version["subresources"]["status"].is_object());
    let columns: Vec<&str> = version["additionalPrinterColumns"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|c| c["name"].as_str())
        .collect();
    assert_eq!(columns, ["Model", "Quant", "Ready", "Cover", "Redundant", "Lane", "Endpoint", "Why", "Age"]);
    let selectable = |version: &Value| -> Vec<String> {
        let fields = version["selectableFields"].as_array().unwrap().iter();
        fields.map(|field| field["jsonPath"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(selectable(version), [".spec.model.name", ".spec.quant"]);

    let host = Kind::InferenceHost.definition();
    assert_eq!(host["spec"]["scope"], "Cluster");
    assert_eq!(selectable(&host["spec"]["versions"][0]), [".spec.unschedulable"]);
    assert_eq!(host["spec"]["names"]["shortNames"][0], "infh");
}

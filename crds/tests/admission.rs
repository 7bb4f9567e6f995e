//! Every CEL rule has an object that breaks it, and one beside it that does not.
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

mod cases;

use std::collections::BTreeSet;

use cases::{cases, deployment, host, set, transitions, with};
use serde_json::{Value, json};
use tandem_crds::{Kind, admit};

fn said(new: &Value, old: Option<&Value>) -> Vec<String> {
    admit(new, old).err().unwrap_or_default().iter().map(ToString::to_string).collect()
}

#[test]
fn every_rule_refuses_what_breaks_it_and_only_that() {
    for (object, path, good, bad, says) in cases() {
        assert_eq!(said(&with(object.clone(), path, good.clone()), None), [""; 0], "{path} = {good}");
        let violations = said(&with(object, path, bad.clone()), None);
        assert!(
            violations.iter().any(|violation| violation.contains(says)),
            "{path} = {bad}: {violations:?}"
        );
    }
    for (old, new, says) in transitions() {
        assert_eq!(said(&old, Some(&old)), [""; 0]);
        assert_eq!(said(&new, None), [""; 0], "a transition rule says nothing of a new object");
        let violations = said(&new, Some(&old));
        assert!(violations.iter().any(|violation| violation.contains(says)), "{violations:?}");
    }
    let newer_term = with(with(host(), "spec.term", json!(5)), "spec.generation", json!(1));
    assert_eq!(
        said(&newer_term, Some(&host())),
        [""; 0],
        "a leader that restored a backup starts above, with its own count"
    );
}

/// A rule that no case breaks is a rule nobody has seen work.
#[test]
fn every_rule_is_broken_by_some_case() {
    fn messages(schema: &Value, found: &mut BTreeSet<String>) {
        match schema {
            Value::Object(object) => {
                for rule in
                    object.get("x-kubernetes-validations").and_then(Value::as_array).into_iter().flatten()
                {
                    found.insert(rule["rule"].as_str().unwrap().to_owned());
                }
                object.values().for_each(|child| messages(child, found));
            }
            Value::Array(items) => items.iter().for_each(|child| messages(child, found)),
            _ => {}
        }
    }
    let mut rules = BTreeSet::new();
    Kind::ALL.into_iter().for_each(|kind| messages(kind.schema(), &mut rules));
    let mut broken = BTreeSet::new();
    let objects = cases().into_iter().map(|(object, path, _, bad, _)| (with(object, path, bad), None));
    for (new, old) in objects.chain(transitions().into_iter().map(|(old, new, _)| (new, Some(old)))) {
        let kind = Kind::from_name(new["kind"].as_str().unwrap()).unwrap();
        let errors =
            kube::core::cel::Validator::new().validate(kind.schema(), &new, old.as_ref()).unwrap_err();
        broken.extend(errors.into_vec().into_iter().map(|error| error.rule));
    }
    let unseen: Vec<&String> = rules.difference(&broken).collect();
    assert!(unseen.is_empty(), "no case breaks {unseen:#?}");
}

#[test]
fn unknown_fields_and_nulls_are_pruned_and_defaults_filled_in() {
    let mut object = with(deployment(), "spec.colour", json!("red"));
    set(&mut object, "spec.context.poolTokens", Value::Null);
    let stored = admit(&object, None).unwrap();
    assert!(stored["spec"].get("colour").is_none() && stored["spec"]["context"].get("poolTokens").is_none());
    assert_eq!(
        stored["spec"]["redundancy"],
        json!({"hostFailures": 0, "standby": "Hot", "replaceAfterSeconds": 60})
    );
    assert_eq!(stored["spec"]["placement"], json!({"accelerators": ["CPU"], "lane": "Production"}));
    assert_eq!(stored["spec"]["replicas"], 1);
    assert_eq!(admit(&stored, Some(&stored)).unwrap(), stored, "admitting twice changes nothing");
}

#[test]
fn a_host_belongs_to_no_namespace() {
    let object = with(host(), "metadata.namespace", json!("llm"));
    assert!(said(&object, None)[0].contains("belongs to the whole cluster"));
}

#[test]
fn rules_wait_until_the_shape_is_right() {
    let mut object = with(deployment(), "spec.redundancy", json!({"hostFailures": "9"}));
    set(&mut object, "spec.context.tokens", json!(1));
    let violations = said(&object, None);
    assert_eq!(violations, ["spec.redundancy.hostFailures: must be a whole number, not a string"]);
}

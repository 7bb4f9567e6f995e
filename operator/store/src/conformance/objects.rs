//! Objects: what a write makes of them, and which writes are refused.

use serde_json::json;

use super::*;
use crate::{ApplyOutcome, Kind, MAX_OBJECT_BYTES, Selector, Version};

/// Created objects can be read and listed, with what the store writes into their metadata.
pub async fn what_is_created_is_found(home: &dyn Home) {
    let store = home.store();
    assert_eq!(store.get(&key("kimi")).await.unwrap(), None);
    let made = store.create(deployment("kimi"), "ci").await.unwrap();
    assert_eq!(store.get(&key("kimi")).await.unwrap().as_ref(), Some(&made));
    assert_eq!(made.generation(), 1);
    assert!(!made.uid().is_empty());
    assert!(made.json["metadata"]["creationTimestamp"].as_str().unwrap().ends_with('Z'));
    assert_eq!(made.json["metadata"]["resourceVersion"], json!(made.version.0));
    assert!(matches!(store.create(deployment("kimi"), "ci").await, Err(StoreError::AlreadyExists(_))));

    store.create(host("mac-a"), "operator").await.unwrap();
    let listing = store.list(&Selector::all(Kind::InferenceDeployment)).await.unwrap();
    assert_eq!(listing.objects, [made]);
    let elsewhere = Selector { namespace: Some("other".into()), ..Selector::all(Kind::InferenceDeployment) };
    assert_eq!(store.list(&elsewhere).await.unwrap().objects, []);
}

/// Fields with a default are there after a write that doesn't state them.
pub async fn defaults_are_filled_in(home: &dyn Home) {
    let made = applied(&*home.store(), "kimi").await;
    assert_eq!(made.spec()["replicas"], 1);
    assert_eq!(made.spec()["redundancy"]["hostFailures"], 0);
}

/// A misspelt field is an error that names it, never dropped in silence.
pub async fn unknown_fields_are_refused_by_name(home: &dyn Home) {
    let store = home.store();
    let mut misspelt = deployment("kimi");
    misspelt["spec"]["redundancy"] = json!({"hostFailure": 1});
    assert!(refusal(apply(&*store, misspelt, "ci").await).contains("hostFailure"));
    let mut misplaced = deployment("kimi");
    misplaced["quant"] = json!("Q8_0");
    assert!(refusal(apply(&*store, misplaced, "ci").await).contains("quant"));
    let mut owned = deployment("kimi");
    owned["metadata"]["finalizers"] = json!(["x/y"]);
    assert!(refusal(apply(&*store, owned, "ci").await).contains("finalizers"));
    assert_eq!(store.get(&key("kimi")).await.unwrap(), None);
}

/// Limits that the API types state hold for every kind of write.
pub async fn rules_of_the_types_hold(home: &dyn Home) {
    let store = home.store();
    let mut greedy = deployment("kimi");
    greedy["spec"]["redundancy"] = json!({"hostFailures": 9});
    assert!(refusal(apply(&*store, greedy.clone(), "ci").await).contains("hostFailures"));
    assert!(refusal(store.create(greedy.clone(), "ci").await).contains("hostFailures"));
    let mut made = applied(&*store, "kimi").await;
    made.json["spec"]["redundancy"]["hostFailures"] = json!(9);
    assert!(refusal(store.replace(&made, "ci").await).contains("hostFailures"));
    assert!(refusal(store.scale(&key("kimi"), -1, "oncall").await).contains("replicas"));
    let mut sourceless = deployment("other");
    sourceless["spec"]["model"].as_object_mut().unwrap().remove("source");
    assert!(refusal(apply(&*store, sourceless, "ci").await).contains("source"));
}

/// What clients know a model by can't be changed under them.
pub async fn what_is_immutable_stays(home: &dyn Home) {
    let store = home.store();
    applied(&*store, "kimi").await;
    let mut renamed = deployment("kimi");
    renamed["spec"]["model"]["name"] = json!("other");
    assert!(refusal(apply(&*store, renamed, "ci").await).contains("immutable"));
}

/// An object of megabytes is refused with its size.
pub async fn a_huge_object_is_refused(home: &dyn Home) {
    let mut huge = deployment("kimi");
    huge["metadata"]["annotations"] = json!({"note": "x".repeat(MAX_OBJECT_BYTES)});
    let error = apply(&*home.store(), huge, "ci").await.unwrap_err();
    assert!(matches!(error, StoreError::TooLarge { .. }), "{error}");
}

/// Kind, version, name and namespace are checked, each with a sentence.
pub async fn names_are_checked(home: &dyn Home) {
    let store = home.store();
    let edits: [(&str, serde_json::Value, &str); 5] = [
        ("/kind", json!("Deployment"), "kind"),
        ("/apiVersion", json!("v1"), "apiVersion"),
        ("/metadata/name", json!(""), "metadata.name"),
        ("/metadata/name", json!("No Label"), "name"),
        ("/metadata/namespace", json!("a/b"), "namespace"),
    ];
    for (pointer, value, names) in edits {
        let mut wrong = deployment("kimi");
        *wrong.pointer_mut(pointer).unwrap() = value;
        let said = refusal(apply(&*store, wrong, "ci").await);
        assert!(said.contains(names), "{pointer}: {said}");
    }
}

/// A write that read an older version changes nothing, and is told the newest.
pub async fn a_stale_write_is_refused(home: &dyn Home) {
    let store = home.store();
    let read = applied(&*store, "kimi").await;
    let newer = store.scale(&key("kimi"), 2, "oncall").await.unwrap();
    assert_eq!(is_conflict(store.replace(&read, "ci").await), newer.version);
    assert_eq!(
        is_conflict(store.replace_status(&key("kimi"), &read.version, json!({})).await),
        newer.version
    );
    assert_eq!(is_conflict(store.delete(&key("kimi"), Some(&read.version)).await), newer.version);
    assert_eq!(store.get(&key("kimi")).await.unwrap(), Some(newer));
    assert!(matches!(store.delete(&key("none"), None).await, Err(StoreError::NotFound(_))));
    assert!(matches!(store.scale(&key("none"), 1, "oncall").await, Err(StoreError::NotFound(_))));
}

/// Generation grows with the spec, and with nothing else.
pub async fn generation_counts_changes_of_spec(home: &dyn Home) {
    let store = home.store();
    let made = applied(&*store, "kimi").await;
    let mut labelled = deployment("kimi");
    labelled["metadata"]["labels"] = json!({"team": "ml"});
    let labelled = apply(&*store, labelled, "ci").await.unwrap();
    assert_eq!(labelled.generation(), 1);
    assert_ne!(labelled.version, made.version);
    assert_eq!(store.scale(&key("kimi"), 2, "oncall").await.unwrap().generation(), 2);
}

/// Status writes touch status only, spec writes never status.
pub async fn status_is_written_apart(home: &dyn Home) {
    let store = home.store();
    let made = applied(&*store, "kimi").await;
    let status = json!({"observedGeneration": 1, "replicas": 1});
    let with = store.replace_status(&key("kimi"), &made.version, status).await.unwrap();
    assert_eq!(with.generation(), 1);
    assert_eq!(with.spec(), made.spec());
    assert_eq!(with.status()["observedGeneration"], 1);

    let mut lying = deployment("kimi");
    lying["spec"]["quant"] = json!("Q4_0");
    lying["status"] = json!({"observedGeneration": 7});
    let after = apply(&*store, lying, "ci").await.unwrap();
    assert_eq!(after.status(), with.status());
    assert_eq!(after.generation(), 2);
    let mut replaced = after.clone();
    replaced.json["status"] = json!({"observedGeneration": 9});
    assert_eq!(store.replace(&replaced, "ci").await.unwrap().status(), with.status());
}

/// Saying the same again makes no new version.
pub async fn a_write_of_nothing_changes_nothing(home: &dyn Home) {
    let store = home.store();
    let made = applied(&*store, "kimi").await;
    // An API server stores the defaults of a status with the first write after the creation, whatever that write is.
    let seen = json!({"observedGeneration": 1, "replicas": 1});
    let made = store.replace_status(&key("kimi"), &made.version, seen).await.unwrap();
    home.advance(Duration::from_secs(60));
    let (again, outcome) = store.apply(deployment("kimi"), &ApplyOptions::by("ci")).await.unwrap();
    assert_eq!((again.version.clone(), outcome), (made.version.clone(), ApplyOutcome::Unchanged));
    assert_eq!(store.replace(&made, "ci").await.unwrap().version, made.version);
    let status = json!({"observedGeneration": 1});
    let first = store.replace_status(&key("kimi"), &made.version, status.clone()).await.unwrap();
    let second = store.replace_status(&key("kimi"), &first.version, status).await.unwrap();
    assert_eq!(first.version, second.version);
}

/// A dry run is refused or answered like the real one, and leaves no trace.
pub async fn a_dry_run_changes_nothing(home: &dyn Home) {
    let store = home.store();
    let dry = ApplyOptions { dry_run: true, ..ApplyOptions::by("ci") };
    let (shown, outcome) = store.apply(deployment("kimi"), &dry).await.unwrap();
    assert_eq!(outcome, ApplyOutcome::Created);
    assert_eq!(shown.spec()["replicas"], 1);
    assert_eq!(store.get(&key("kimi")).await.unwrap(), None);
    let mut greedy = deployment("kimi");
    greedy["spec"]["redundancy"] = json!({"hostFailures": 9});
    refusal(store.apply(greedy, &dry).await);
}

/// Deleting and making again gives another identity.
pub async fn a_new_object_of_an_old_name_is_another(home: &dyn Home) {
    let store = home.store();
    let first = applied(&*store, "kimi").await;
    store.delete(&key("kimi"), None).await.unwrap();
    assert_eq!(store.get(&key("kimi")).await.unwrap(), None);
    let second = applied(&*store, "kimi").await;
    assert_ne!(first.uid(), second.uid());
    assert_eq!(second.generation(), 1);
    assert!(matches!(apply(&*store, first.json, "ci").await, Err(StoreError::Conflict { .. })));
}

/// A leader of the past can't write a host's spec.
pub async fn terms_never_go_back(home: &dyn Home) {
    let store = home.store();
    let mut read = store.create(host("mac-a"), "operator").await.unwrap();
    read.json["spec"]["term"] = json!(5);
    let mut newer = store.replace(&read, "operator").await.unwrap();
    newer.json["spec"]["term"] = json!(4);
    assert!(refusal(store.replace(&newer, "operator").await).contains("term"));
}

/// A manifest that was read carries a version: it applies to that version, or says that there is a newer one.
pub async fn a_read_manifest_applies_to_what_was_read(home: &dyn Home) {
    let store = home.store();
    let mut read = applied(&*store, "kimi").await;
    read.json["spec"]["quant"] = json!("Q4_0");
    read.json["metadata"].as_object_mut().unwrap().remove("managedFields");
    let newer = apply(&*store, read.json.clone(), "ci").await.unwrap();
    assert_eq!(is_conflict(apply(&*store, read.json.clone(), "ci").await), newer.version);
    store.delete(&key("kimi"), None).await.unwrap();
    assert!(matches!(apply(&*store, read.json, "ci").await, Err(StoreError::NotFound(_))));
    assert_ne!(newer.version, Version(String::new()));
}

//! A real API server accepts and refuses what `tandem_crds::admit` does, in the same words: the table of cases is the same.
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

#[path = "../../../crds/tests/cases/mod.rs"]
mod cases;

use kube::api::{DynamicObject, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Api, Client};
use serde_json::Value;
use tandem_crds::{Kind, admit};
use tandem_servers::{ControlPlane, User};

/// What the server makes of an object; nothing is stored.
const TRY: PostParams = PostParams { dry_run: true, field_manager: None };

fn api(client: &Client, object: &Value) -> Api<DynamicObject> {
    let kind = Kind::from_name(object["kind"].as_str().unwrap()).unwrap();
    let group = GroupVersionKind::gvk(tandem_crds::GROUP, tandem_crds::VERSION, kind.as_str());
    let resource = ApiResource::from_gvk(&group);
    match object["metadata"]["namespace"].as_str() {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    }
}

fn typed(object: &Value) -> DynamicObject {
    serde_json::from_value(object.clone()).unwrap()
}

fn refusal(error: kube::Error) -> String {
    match error {
        kube::Error::Api(status) => {
            assert_eq!(status.code, 422, "{status:?}");
            status.message
        }
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn the_server_and_the_offline_rules_say_the_same() {
    let plane = ControlPlane::start().await.unwrap();
    plane.kubectl(&["create", "namespace", "llm"]).unwrap();
    let client = plane.client(User::ADMIN).await.unwrap();
    for (object, path, good, bad, says) in cases::cases() {
        let good = cases::with(object.clone(), path, good);
        let stored = api(&client, &good).create(&TRY, &typed(&good)).await.unwrap_or_else(|error| {
            panic!("{path}: the server refuses {good}: {error}");
        });
        // Defaults and pruning, too, are the same.
        assert_eq!(stored.data["spec"], admit(&good, None).unwrap()["spec"], "{path}");
        let bad = cases::with(object, path, bad);
        let said = refusal(api(&client, &bad).create(&TRY, &typed(&bad)).await.unwrap_err());
        assert!(said.contains(says), "{path}: the server says `{said}`, and not `{says}`");
    }
}

#[tokio::test]
async fn the_server_refuses_the_same_changes() {
    let plane = ControlPlane::start().await.unwrap();
    plane.kubectl(&["create", "namespace", "llm"]).unwrap();
    let client = plane.client(User::ADMIN).await.unwrap();
    for object in [cases::deployment(), cases::host()] {
        api(&client, &object).create(&PostParams::default(), &typed(&object)).await.unwrap();
    }
    for (old, new, says) in cases::transitions() {
        let api = api(&client, &old);
        let name = old["metadata"]["name"].as_str().unwrap();
        let mut new = typed(&new);
        new.metadata.resource_version = api.get(name).await.unwrap().metadata.resource_version;
        let said = refusal(api.replace(name, &TRY, &new).await.unwrap_err());
        assert!(said.contains(says), "the server says `{said}`, and not `{says}`");
    }
}

#[tokio::test]
async fn fields_select_and_tables_show() {
    let plane = ControlPlane::start().await.unwrap();
    plane.kubectl(&["create", "namespace", "llm"]).unwrap();
    let client = plane.client(User::ADMIN).await.unwrap();
    let named = |name: &str, model: &str| {
        let object = cases::with(cases::deployment(), "metadata.name", name.into());
        cases::with(object, "spec.model.name", model.into())
    };
    for object in [named("kimi", "kimi-k2.5"), named("other", "other"), cases::host()] {
        api(&client, &object).create(&PostParams::default(), &typed(&object)).await.unwrap();
    }
    let select = |kind: &str, field: &str| {
        plane.kubectl(&["get", kind, "-A", "-o", "name", "--field-selector", field]).unwrap()
    };
    assert_eq!(select("infd", "spec.model.name=other"), "inferencedeployment.inference.tandem.dev/other\n");
    assert_eq!(select("infd", "spec.quant!=Q4_K_M"), "");
    assert_eq!(select("infh", "spec.unschedulable=false"), "inferencehost.inference.tandem.dev/mac-1\n");
    assert_eq!(select("infh", "spec.unschedulable=true"), "");
    let table = plane.kubectl(&["get", "infd", "-n", "llm"]).unwrap();
    let head: Vec<&str> = table.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(head, ["NAME", "MODEL", "QUANT", "READY", "COVER", "REDUNDANT", "AGE"]);
}

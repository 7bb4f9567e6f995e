//! Objects through the API: apply, get, list, watch, scale, delete, and the sentences of refusals.

mod world;

use serde_json::{Value, json};
use tandem_control_api::{
    ApplyRequest, CordonRequest, DeleteRequest, DrainHostRequest, ListRequest, ObjectRef, ScaleRequest,
    apply_response, object_event,
};
use tonic::Code;
use world::{World, report, within};

fn deployment(name: &str) -> Value {
    json!({
        "apiVersion": "inference.tandem.dev/v1alpha1",
        "kind": "InferenceDeployment",
        "metadata": {"name": name, "namespace": "llm"},
        "spec": {
            "model": {"name": name, "source": "file:///nowhere"},
            "quant": "Q8_0",
            "context": {"tokens": 512},
        },
    })
}

fn reference(name: &str) -> Option<ObjectRef> {
    Some(ObjectRef { kind: "InferenceDeployment".into(), namespace: "llm".into(), name: name.into() })
}

#[tokio::test]
async fn an_object_is_applied_scaled_applied_again_and_deleted() {
    let world = World::start().await;
    let mut objects = world.objects();
    let mut apply = async |manifest: Value, force: bool| {
        let request = ApplyRequest { manifest_json: manifest.to_string(), force, ..ApplyRequest::default() };
        objects.apply(request).await.map(tonic::Response::into_inner)
    };
    let made = apply(deployment("tiny"), false).await.unwrap();
    assert_eq!(made.result(), apply_response::Result::Created);
    assert!(!made.json.contains("managedFields"));
    assert_eq!(apply(deployment("tiny"), false).await.unwrap().result(), apply_response::Result::Unchanged);

    let scale = ScaleRequest { r#ref: reference("tiny"), replicas: 3 };
    world.objects().scale(scale).await.unwrap();
    let mut changed = deployment("tiny");
    changed["spec"]["context"]["tokens"] = json!(1024);
    let kept: Value = serde_json::from_str(&apply(changed.clone(), false).await.unwrap().json).unwrap();
    assert_eq!(kept["spec"]["replicas"], 3);

    changed["spec"]["replicas"] = json!(1);
    let status = apply(changed.clone(), false).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains("spec.replicas is owned by tandem-scale"), "{status}");
    assert_eq!(apply(changed, true).await.unwrap().result(), apply_response::Result::Configured);

    world.objects().delete(DeleteRequest { r#ref: reference("tiny") }).await.unwrap();
    assert_eq!(world.get("InferenceDeployment", "llm", "tiny").await, None);
    let status = world.objects().delete(DeleteRequest { r#ref: reference("tiny") }).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
}

#[tokio::test]
async fn a_watch_lists_marks_and_follows() {
    use object_event::Type;
    let world = World::start().await;
    world.apply(deployment("a")).await.unwrap();
    let request = ListRequest { kind: "InferenceDeployment".into(), ..ListRequest::default() };
    let mut watch = world.objects().watch(request).await.unwrap().into_inner();
    let mut seen = Vec::new();
    within("three events", async {
        while seen.len() < 3 {
            let event = watch.message().await.unwrap().unwrap();
            if event.r#type() == Type::Bookmark {
                world.apply(deployment("b")).await.unwrap();
            }
            // Status writes of the control loop come as they come.
            if event.r#type() != Type::Modified {
                seen.push(event.r#type());
            }
        }
    })
    .await;
    assert_eq!(seen, [Type::Added, Type::Bookmark, Type::Added]);
}

#[tokio::test]
async fn hosts_take_labels_from_people_and_nothing_else() {
    let world = World::start().await;
    let host = world.host("mac-a").await;
    host.report(&report(1 << 30)).await;
    let label = |labels: Value, spec: Value| {
        json!({
            "apiVersion": "inference.tandem.dev/v1alpha1", "kind": "InferenceHost",
            "metadata": {"name": "mac-a", "labels": labels}, "spec": spec
        })
    };
    let labelled = world.apply(label(json!({"rack": "1"}), json!({}))).await.unwrap();
    assert_eq!(labelled["metadata"]["labels"]["rack"], "1");
    let status = world.apply(label(json!({}), json!({"term": 99}))).await.unwrap_err();
    assert!(status.message().contains("tandem hosts cordon"), "{status}");
    let mut unknown = label(json!({}), json!({}));
    unknown["metadata"]["name"] = json!("mac-z");
    assert_eq!(world.apply(unknown).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn cordon_and_drain_are_spec_and_uncordon_takes_both_back() {
    let world = World::start().await;
    let _host = world.host("mac-a").await;
    let spec = |json: &str| serde_json::from_str::<Value>(json).unwrap()["spec"].clone();
    let drained = world.fleet().drain(DrainHostRequest { host: "mac-a".into() }).await.unwrap().into_inner();
    assert_eq!(spec(&drained.json)["drain"], "Requested");
    assert_eq!(spec(&drained.json)["unschedulable"], true);
    let request = CordonRequest { host: "mac-a".into(), unschedulable: false };
    let back = world.fleet().cordon(request).await.unwrap().into_inner();
    assert_eq!(spec(&back.json)["drain"], Value::Null);
    assert_eq!(spec(&back.json)["unschedulable"], false);
    let request = CordonRequest { host: "none".into(), unschedulable: true };
    assert_eq!(world.fleet().cordon(request).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn a_report_becomes_status_with_a_ready_condition_that_silence_ends() {
    let world = World::start().await;
    let host = world.host("mac-a").await;
    let mut status = report(1 << 30);
    status["labels"] = json!({"zone": "attic"});
    host.report(&status).await;
    let ready = |host: &Value| host["status"]["conditions"][0]["status"].clone();
    let seen = world.until("InferenceHost", "mac-a", "Ready", |host| ready(host) == "True").await;
    assert_eq!(seen["status"]["devices"][0]["id"], "cpu");
    world
        .until("InferenceHost", "mac-a", "labels", |host| host["metadata"]["labels"]["zone"] == "attic")
        .await;
    drop(host);
    world.until("InferenceHost", "mac-a", "silence", |host| ready(host) == "Unknown").await;
}

#[tokio::test]
async fn a_manifest_that_breaks_a_rule_is_refused_in_words() {
    let world = World::start().await;
    let mut greedy = deployment("tiny");
    greedy["spec"]["redundancy"] = json!({"hostFailures": 9});
    let mut sourceless = deployment("tiny");
    sourceless["spec"]["model"].as_object_mut().unwrap().remove("source");
    let mut misspelt = deployment("tiny");
    misspelt["spec"]["quantisation"] = json!("Q8_0");
    for (manifest, names) in
        [(greedy, "hostFailures is out of range"), (sourceless, "source"), (misspelt, "quantisation")]
    {
        let status = world.apply(manifest).await.unwrap_err();
        println!("{}", status.message());
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().contains(names), "{status}");
    }
    let request = ApplyRequest { manifest_json: "{".into(), ..ApplyRequest::default() };
    assert_eq!(world.objects().apply(request).await.unwrap_err().code(), Code::InvalidArgument);
}

//! Models from a hub: private, pinned, moved on upstream, mirrored and forbidden.

#![allow(clippy::unwrap_used, reason = "helpers of tests, outside of any test function")]

mod world;

use std::collections::HashMap;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tandem_control_api::{DeleteRequest, ObjectRef, SetSecretRequest};
use tandem_hub::{Content, Door, Hub, Keys, Options};
use tandem_operator::SourceSettings;
use world::{World, condition, impatient, model, workloads};

const MEMORY: u64 = 4 << 30;
const TOKEN: &str = "hf_s3cr3t";

async fn hub() -> Hub {
    let hub = Hub::start(Options::default()).await.unwrap();
    publish(&hub, 7);
    hub
}

/// Moves `main` on to another model.
fn publish(hub: &Hub, seed: u64) -> String {
    hub.publish("acme/tiny", [("tiny-F32.gguf", Content::of(model(seed)))])
}

fn sources(hub: &Hub) -> SourceSettings {
    SourceSettings { mirrors: vec![format!("hf://={}", hub.url(Door::Hub))], ..SourceSettings::default() }
}

fn from_hub(world: &World, name: &str) -> Value {
    let mut manifest = world.deployment(name, 0);
    manifest["spec"]["model"]["source"] = json!("hf://acme/tiny@main");
    manifest
}

async fn set(world: &World, value: &str) {
    let values = HashMap::from([("token".to_owned(), value.to_owned())]);
    let request = SetSecretRequest { namespace: "llm".into(), name: "hub".into(), values };
    world.secrets().set(request).await.unwrap();
}

fn is(object: &Value, name: &str, status: &str) -> bool {
    condition(object, name)["status"] == status
}

fn message(object: &Value, name: &str) -> String {
    condition(object, name)["message"].as_str().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn a_private_model_waits_for_a_secret_that_opens_it() {
    let hub = hub().await;
    hub.set_keys(Keys { token: Some(TOKEN.to_owned()), ..Keys::default() });
    let world = World::start_reading(impatient(), sources(&hub)).await;
    let mut machine = world.machine("a", MEMORY).await;
    let mut manifest = from_hub(&world, "tiny");
    manifest["spec"]["model"]["credentials"] = json!({"secretRef": {"name": "hub", "key": "token"}});
    set(&world, "hf_wrong").await;
    world.apply(manifest).await.unwrap();
    let stalled = |o: &Value| is(o, "Stalled", "True");
    let object = world.until("InferenceDeployment", "tiny", "a word on the wrong secret", stalled).await;
    let said = message(&object, "Stalled");
    println!("{said}");
    assert!(said.contains("acme/tiny") && !said.contains("hf_wrong"), "{said}");
    // A new value is a reason to ask again at once.
    set(&world, TOKEN).await;
    let object = world.until("InferenceDeployment", "tiny", "Ready", |o| is(o, "Ready", "True")).await;
    assert!(!object.to_string().contains(TOKEN));
    let supply = machine.supply("the secret", |supply| !supply.credentials.is_empty()).await;
    assert_eq!(supply.credentials[0].secret, TOKEN);
    assert_eq!(supply.mirrors, [format!("hf://={}", hub.url(Door::Hub))]);
}

#[tokio::test]
async fn a_branch_is_pinned_once_and_neither_a_restart_nor_another_context_moves_it_on() {
    let hub = hub().await;
    let mut world = World::start_reading(impatient(), sources(&hub)).await;
    let mut machine = world.machine("a", MEMORY).await;
    world.apply(from_hub(&world, "tiny")).await.unwrap();
    let ready = |o: &Value| {
        is(o, "Ready", "True") && o["status"]["observedGeneration"] == o["metadata"]["generation"]
    };
    let first = world.until("InferenceDeployment", "tiny", "Ready", ready).await;
    let pinned = first["status"]["model"].clone();
    let source = pinned["source"].as_str().unwrap().to_owned();
    println!("{source}");
    assert!(source.starts_with("hf://acme/tiny@") && !source.ends_with("@main"), "{source}");
    let told = machine.spec("the workload", |spec| spec["workloads"][0]["source"] == source.as_str()).await;
    assert_eq!(told["workloads"][0]["files"], pinned["files"]);

    publish(&hub, 8);
    world.stop().await;
    world.start_again().await;
    let mut longer = from_hub(&world, "tiny");
    longer["spec"]["context"]["tokens"] = json!(64);
    world.apply(longer).await.unwrap();
    machine.spec("the longer context", |spec| spec["workloads"][0]["contextTokens"] == 64).await;
    let again = world.until("InferenceDeployment", "tiny", "Ready again", ready).await;
    assert_eq!(again["status"]["model"], pinned);
    // Another deployment, which comes later, gets what is there now... unless it asks for the same.
    world.apply(from_hub(&world, "second")).await.unwrap();
    let second = world.until("InferenceDeployment", "second", "Ready", ready).await;
    assert_eq!(second["status"]["model"], pinned, "the same source and quant are one model");
    let mut other = from_hub(&world, "third");
    other["spec"]["model"]["source"] = json!("hf://acme/tiny");
    world.apply(other).await.unwrap();
    let third = world.until("InferenceDeployment", "third", "Ready", ready).await;
    assert_ne!(third["status"]["model"]["revision"], pinned["revision"]);
}

#[tokio::test]
async fn hosts_trust_the_authorities_that_their_operator_trusts() {
    let hub = Hub::start(Options { tls: true, ..Options::default() }).await.unwrap();
    publish(&hub, 7);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&file, hub.ca_pem()).unwrap();
    let trusting = SourceSettings { extra_ca: Some(file.path().to_owned()), ..sources(&hub) };
    let world = World::start_reading(impatient(), trusting).await;
    let mut machine = world.machine("a", MEMORY).await;
    let supply = machine.supply("authorities", |supply| !supply.extra_ca_pem.is_empty()).await;
    assert_eq!(supply.extra_ca_pem, hub.ca_pem());
    // It reads the model's header through them itself.
    world.apply(from_hub(&world, "tiny")).await.unwrap();
    world.until("InferenceDeployment", "tiny", "Ready", |o| is(o, "Ready", "True")).await;
}

#[tokio::test]
async fn what_is_not_allowed_says_what_would_allow_it() {
    let hub = hub().await;
    let allowed = SourceSettings {
        allowed: vec!["hf://unsloth/".to_owned()],
        s3_endpoint: Some(hub.url(Door::S3)),
        s3_region: Some("eu-west-1".to_owned()),
        ..sources(&hub)
    };
    let mut world = World::start_reading(impatient(), allowed).await;
    let mut machine = world.machine("a", MEMORY).await;
    let supply = machine.supply("a supply", |_| true).await;
    assert_eq!(supply.allowed_sources, ["hf://unsloth/"]);
    assert_eq!(supply.mirrors[1], format!("s3://={}", hub.url(Door::S3)));
    assert_eq!(supply.s3_region, "eu-west-1");
    world.apply(from_hub(&world, "tiny")).await.unwrap();
    let stalled = |o: &Value| is(o, "Stalled", "True");
    let object = world.until("InferenceDeployment", "tiny", "a refusal", stalled).await;
    let said = message(&object, "Stalled");
    println!("{said}");
    assert!(said.contains("`--allow-source hf://acme/`"), "{said}");
    assert_eq!(hub.count(Door::Hub, "").requests, 0, "nobody was asked");

    world.stop().await;
    world.sources.allowed.push("hf://acme/".to_owned());
    world.start_again().await;
    world.until("InferenceDeployment", "tiny", "Ready", |o| is(o, "Ready", "True")).await;
    // The rule may get narrower, too.
    world.stop().await;
    world.sources.allowed.pop();
    world.start_again().await;
    world.until("InferenceDeployment", "tiny", "a refusal again", stalled).await;
    assert_eq!(machine.runs().len(), 1, "what runs goes on");
}

#[tokio::test]
async fn files_that_changed_under_a_deployment_are_noticed() {
    let world = World::start().await;
    let mut machine = world.machine("a", MEMORY).await;
    let manifest = world.deployment("tiny", 0);
    world.apply(manifest.clone()).await.unwrap();
    world.until("InferenceDeployment", "tiny", "Ready", |o| is(o, "Ready", "True")).await;
    let folder = manifest["spec"]["model"]["source"].as_str().unwrap().strip_prefix("file://").unwrap();
    let other = model(8);
    let digest: String = Sha256::digest(&other).iter().map(|byte| format!("{byte:02x}")).collect();
    std::fs::write(format!("{folder}/tiny-F32.gguf"), other).unwrap();
    std::fs::write(format!("{folder}/SHA256SUMS"), format!("{digest}  tiny-F32.gguf\n")).unwrap();
    let mut longer = manifest.clone();
    longer["spec"]["context"]["tokens"] = json!(64);
    world.apply(longer).await.unwrap();
    let stalled = |o: &Value| is(o, "Stalled", "True");
    let object = world.until("InferenceDeployment", "tiny", "a word on the change", stalled).await;
    assert!(message(&object, "Stalled").contains("have changed since"), "{object:#}");
    assert_eq!(machine.told()["workloads"][0]["contextTokens"], 32, "what runs goes on");
    // Deleted and applied again, it is the model that is there now.
    let reference =
        ObjectRef { kind: "InferenceDeployment".into(), namespace: "llm".into(), name: "tiny".into() };
    world.objects().delete(DeleteRequest { r#ref: Some(reference) }).await.unwrap();
    machine.spec("nothing runs", |spec| workloads(spec).is_empty()).await;
    world.apply(manifest).await.unwrap();
    machine.spec("the other model", |spec| spec["workloads"][0]["files"][0]["sha256"] == digest).await;
}

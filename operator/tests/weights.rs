//! Secrets, and what hosts are told of where weights come from.

#![allow(clippy::unwrap_used, reason = "helpers of tests, outside of any test function")]

mod world;

use std::collections::HashMap;

use serde_json::{Value, json};
use tandem_control_api::{
    DeleteRequest, DeleteSecretRequest, EventsRequest, ListRequest, ListSecretsRequest, ObjectEvent,
    ObjectRef, Role, SetSecretRequest, Supply,
};
use tandem_operator::Timing;
use tonic::Code;
use world::{World, condition, impatient, within, workloads};

const MEMORY: u64 = 4 << 30;
/// Values that must not be seen anywhere but in a supply.
const VALUE: &str = "hf_s3cr3t-0ne";
const OTHER: &str = "hf_s3cr3t-tw0";

fn reference(name: &str) -> Option<ObjectRef> {
    Some(ObjectRef { kind: "InferenceDeployment".into(), namespace: "llm".into(), name: name.into() })
}

fn private(world: &World, name: &str) -> Value {
    let mut manifest = world.deployment(name, 0);
    manifest["spec"]["model"]["credentials"] = json!({"secretRef": {"name": "hub", "key": "token"}});
    manifest
}

async fn set(world: &World, namespace: &str, value: &str) -> String {
    let values = HashMap::from([("token".to_owned(), value.to_owned())]);
    let request = SetSecretRequest { namespace: namespace.into(), name: "hub".into(), values };
    format!("{:?}", world.secrets().set(request).await.unwrap().into_inner())
}

fn credentials(supply: &Supply) -> Vec<(&str, &str)> {
    let credentials = supply.credentials.iter();
    credentials.map(|credential| (credential.deployment.as_str(), credential.secret.as_str())).collect()
}

/// Everything that the API tells of objects, their events and secrets.
async fn all_that_is_told(world: &World) -> String {
    let mut told = String::new();
    for kind in ["InferenceDeployment", "InferenceHost"] {
        let request = ListRequest { kind: kind.into(), ..ListRequest::default() };
        let objects = world.objects().list(request).await.unwrap().into_inner().json;
        for json in &objects {
            let object: Value = serde_json::from_str(json).unwrap();
            let text = |key: &str| object["metadata"][key].as_str().unwrap_or_default().to_owned();
            let about = ObjectRef { kind: kind.into(), namespace: text("namespace"), name: text("name") };
            let events = world.objects().events(EventsRequest { r#ref: Some(about) }).await.unwrap();
            told += &events.into_inner().json.join("\n");
        }
        told += &objects.join("\n");
    }
    told + &format!("{:?}", world.secrets().list(ListSecretsRequest::default()).await.unwrap().into_inner())
}

#[tokio::test]
async fn a_deployment_waits_for_its_secret_and_its_hosts_alone_are_told() {
    let world = World::start().await;
    let (mut a, mut b) = (world.machine("a", MEMORY).await, world.machine("b", MEMORY).await);
    set(&world, "elsewhere", VALUE).await;
    world.apply(private(&world, "tiny")).await.unwrap();
    let object = world
        .until("InferenceDeployment", "tiny", "a word on the secret", |o| {
            condition(o, "Stalled")["status"] == "True"
        })
        .await;
    let message = condition(&object, "Stalled")["message"].as_str().unwrap();
    println!("{message}");
    assert!(message.contains("run `tandem secret set hub token -n llm`"), "{message}");

    let answer = set(&world, "llm", VALUE).await;
    let ready = |o: &Value| condition(o, "Ready")["status"] == "True";
    let object = world.until("InferenceDeployment", "tiny", "Ready", ready).await;
    let ran = object["status"]["placements"][0]["host"].as_str().unwrap().to_owned();
    let (host, other) = if ran == "a" { (&mut a, &mut b) } else { (&mut b, &mut a) };
    let supply = host.supply("the credential", |supply| !supply.credentials.is_empty()).await;
    assert_eq!(credentials(&supply), [("llm/tiny", VALUE)]);
    let elsewhere = other.supply("a supply", |_| true).await;
    assert_eq!(credentials(&elsewhere), [], "nothing of it runs there");

    set(&world, "llm", OTHER).await;
    let newer = |supply: &Supply| credentials(supply) == [("llm/tiny", OTHER)];
    host.supply("the new credential", newer).await;

    let told = answer + &all_that_is_told(&world).await;
    assert!(told.contains("hub") && told.contains("token"), "{told}");
    assert!(!told.contains(VALUE) && !told.contains(OTHER), "{told}");

    let gone = DeleteSecretRequest { namespace: "llm".into(), name: "hub".into() };
    world.secrets().delete(gone.clone()).await.unwrap();
    host.supply("no credential any more", |supply| supply.credentials.is_empty()).await;
    assert_eq!(world.secrets().delete(gone).await.unwrap_err().code(), Code::NotFound);
    set(&world, "llm", VALUE).await;
    host.supply("the credential again", |supply| !supply.credentials.is_empty()).await;
    world.objects().delete(DeleteRequest { r#ref: reference("tiny") }).await.unwrap();
    host.spec("nothing runs", |spec| workloads(spec).is_empty()).await;
    host.supply("no credential for nothing", |supply| supply.credentials.is_empty()).await;
}

#[tokio::test]
async fn secrets_are_for_admins() {
    let world = World::start().await;
    for role in [Role::Host, Role::Gateway] {
        let credentials = world.join(role, "stranger").await;
        let mut secrets = tandem_control_api::secrets_client::SecretsClient::new(world.channel(&credentials));
        let values = HashMap::from([("token".to_owned(), VALUE.to_owned())]);
        let request = SetSecretRequest { namespace: "llm".into(), name: "hub".into(), values };
        let codes = [
            secrets.set(request).await.unwrap_err(),
            secrets.list(ListSecretsRequest::default()).await.unwrap_err(),
            secrets.delete(DeleteSecretRequest::default()).await.unwrap_err(),
        ]
        .map(|status| status.code());
        assert_eq!(codes, [Code::PermissionDenied; 3]);
    }
    let request = SetSecretRequest {
        namespace: "llm".into(),
        name: "hub".into(),
        values: HashMap::from([("a token".to_owned(), VALUE.to_owned())]),
    };
    let status = world.secrets().set(request).await.unwrap_err();
    assert!(status.message().contains("`a token`") && !status.message().contains(VALUE), "{status}");
}

#[tokio::test]
async fn hosts_that_share_files_are_told_of_each_other() {
    let mut world = World::start().await;
    let mut machines = Vec::new();
    for name in ["a", "b", "c"] {
        machines.push(world.machine(name, MEMORY).await);
    }
    world.apply(world.deployment("tiny", 1)).await.unwrap();
    let redundant = |o: &Value| condition(o, "Redundant")["status"] == "True";
    world.until("InferenceDeployment", "tiny", "redundancy", redundant).await;
    let runs: Vec<bool> = machines.iter().map(|machine| !machine.runs().is_empty()).collect();
    let names: Vec<String> = machines.iter().map(|machine| machine.name.clone()).collect();
    for at in 0..machines.len() {
        let expected: Vec<&String> = (0..names.len())
            .filter(|other| *other != at && runs[*other])
            .map(|other| &names[other])
            .collect();
        if !runs[at] {
            let supply = machines[at].supply("a supply", |_| true).await;
            assert_eq!(supply.peers, [], "it has and wants nothing");
            continue;
        }
        let supply = machines[at].supply("a peer", |supply| !supply.peers.is_empty()).await;
        let told: Vec<&String> = supply.peers.iter().map(|peer| &peer.host).collect();
        assert_eq!(told, expected);
        let peer = &supply.peers[0];
        assert!(peer.server_name.starts_with(&format!("{}.host.", peer.host)), "{}", peer.server_name);
        assert_eq!((peer.links[0].address.as_str(), peer.links[0].tier), ("127.0.0.1:9", 4));
    }
    // A host that falls silent is nobody's peer, and one that comes back is again.
    let two: Vec<usize> = (0..3).filter(|at| runs[*at]).collect();
    machines[two[1]].mute(true);
    machines[two[0]].supply("no peer", |supply| supply.peers.is_empty()).await;
    machines[two[1]].mute(false);
    machines[two[0]].supply("the peer again", |supply| !supply.peers.is_empty()).await;
    world.stop().await;
    world.start_again().await;
    machines[two[1]].supply("peers from the next operator", |supply| !supply.peers.is_empty()).await;
}

#[tokio::test]
async fn what_runs_is_kept_where_it_ran_when_nothing_runs_any_more() {
    let world = World::start().await;
    let mut machine = world.machine("a", MEMORY).await;
    world.apply(world.deployment("tiny", 0)).await.unwrap();
    let kept = |spec: &Value| spec["keepFiles"].as_array().map_or(0, Vec::len);
    let spec = machine.spec("a kept file", |spec| kept(spec) == 1).await;
    assert_eq!(spec["keepFiles"][0], spec["workloads"][0]["files"][0]["sha256"]);
    let scale = tandem_control_api::ScaleRequest { r#ref: reference("tiny"), replicas: 0 };
    world.objects().scale(scale).await.unwrap();
    machine.spec("nothing runs, and it is kept", |spec| workloads(spec).is_empty() && kept(spec) == 1).await;
    world.objects().delete(DeleteRequest { r#ref: reference("tiny") }).await.unwrap();
    machine.spec("nobody wants it", |spec| kept(spec) == 0).await;
}

#[tokio::test]
async fn what_hosts_say_of_networks_weights_and_transfers_is_kept_within_bounds() {
    let world = World::start().await;
    let host = world.host("a").await;
    let digest = |n: usize| format!("{n:064}");
    let mut status = world::report(MEMORY);
    status["links"] = json!([{"address": "10.0.7.1/24", "interface": "en5", "megabits": 10_000}]);
    status["weights"] = json!({"port": 7600, "usedBytes": 5, "files": [digest(1)], "diskBytesPerSecond": 7});
    status["workloads"] = json!([{
        "id": "w", "epoch": 1, "state": "Fetching",
        "transfer": {"doneBytes": 1, "totalBytes": 2, "bytesPerSecond": 1, "etaSeconds": 1},
    }]);
    host.report(&status).await;
    let kept = |o: &Value| o["status"]["workloads"][0]["transfer"]["totalBytes"] == 2;
    let object = world.until("InferenceHost", "a", "the report", kept).await;
    for part in ["links", "weights"] {
        assert_eq!(object["status"][part], status[part]);
    }
    let request = ListRequest { kind: "InferenceHost".into(), name: "a".into(), ..ListRequest::default() };
    let mut watch = world.objects().watch(request).await.unwrap().into_inner();
    let files: Vec<String> = (0..129).map(digest).collect();
    let links: Vec<Value> = (0..17).map(|n| json!({"address": format!("10.0.{n}.1/24")})).collect();
    for (part, value) in [
        ("/weights/files", json!(files)),
        ("/weights/files", json!(["short"])),
        ("/links", json!(links)),
        ("/workloads/0/message", json!("m".repeat(5000))),
    ] {
        let mut greedy = status.clone();
        let (parent, key) = part.rsplit_once('/').unwrap();
        let parent = if parent.is_empty() { Some(&mut greedy) } else { greedy.pointer_mut(parent) };
        parent.unwrap()[key] = value;
        greedy["agentVersion"] = json!("greedy");
        host.report(&greedy).await;
    }
    status["agentVersion"] = json!("modest");
    host.report(&status).await;
    // Reports are taken in order, and every write is seen here: the greedy ones would come first.
    let mut versions = Vec::new();
    while versions.last() != Some(&json!("modest")) {
        let event = within("a report within bounds", watch.message()).await.unwrap().unwrap();
        if !event.json.is_empty() {
            let object: Value = serde_json::from_str(&event.json).unwrap();
            versions.push(object["status"]["agentVersion"].clone());
        }
    }
    assert!(!versions.contains(&json!("greedy")), "{versions:?}");
}

/// State and bytes of a deployment's first copy, as the next event has it.
async fn placement(watch: &mut tonic::Streaming<ObjectEvent>) -> Option<(Value, Value)> {
    let event = within("news of the deployment", watch.message()).await.unwrap().unwrap();
    let object: Value = serde_json::from_str(&event.json).ok()?;
    let placement = &object["status"]["placements"][0];
    Some((placement["state"].clone(), placement["transfer"]["doneBytes"].clone()))
}

/// The beginning and the end of a transfer are told at once; what moves in between, now and then.
#[tokio::test]
async fn weights_on_their_way_are_seen_on_the_deployment() {
    let timing = Timing { silent_after: std::time::Duration::from_secs(60), ..impatient() };
    let world = World::start_with(timing).await;
    let mut host = world.host("a").await;
    host.report(&world::report(MEMORY)).await;
    world.apply(world.deployment("tiny", 0)).await.unwrap();
    let spec = host.spec("a workload", |spec| !workloads(spec).is_empty()).await;
    let request =
        ListRequest { kind: "InferenceDeployment".into(), namespace: String::new(), name: "tiny".into() };
    let mut watch = world.objects().watch(request).await.unwrap().into_inner();
    let mut fetching = world::obedient(&spec, MEMORY);
    fetching["workloads"][0]["state"] = json!("Fetching");
    let mut seen: Vec<(Value, Value)> = Vec::new();
    for done in 0..200 {
        fetching["workloads"][0]["transfer"] =
            json!({"doneBytes": done, "totalBytes": 200, "bytesPerSecond": 7, "etaSeconds": 200 - done});
        host.report(&fetching).await;
        while !seen.iter().any(|(_, figure)| !figure.is_null()) {
            seen.extend(placement(&mut watch).await);
        }
    }
    host.report(&world::obedient(&spec, MEMORY)).await;
    while !seen.last().is_some_and(|(state, _)| state == "Ready") {
        seen.extend(placement(&mut watch).await);
    }
    let figures: Vec<&Value> = seen.iter().map(|(_, done)| done).filter(|done| !done.is_null()).collect();
    println!("{} versions, figures {figures:?}", seen.len());
    assert!(figures.len() <= 10, "200 reports are not 200 writes: {figures:?}");
    assert_eq!(seen.last().unwrap().1, Value::Null);
}

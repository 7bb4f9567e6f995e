//! From a manifest to routes, and what happens when hosts fall silent, drain, or the operator itself goes.

#![allow(clippy::unwrap_used, reason = "helpers of tests, outside of any test function")]

mod world;

use serde_json::{Value, json};
use tandem_control_api::{DeleteRequest, DrainHostRequest, EventsRequest, ObjectRef, ScaleRequest};
use world::{Machine, World, condition, within, workloads};

const MEMORY: u64 = 4 << 30;

fn reference(name: &str) -> Option<ObjectRef> {
    Some(ObjectRef { kind: "InferenceDeployment".into(), namespace: "llm".into(), name: name.into() })
}

async fn fleet(world: &World, names: &[&str]) -> Vec<Machine> {
    let mut machines = Vec::new();
    for name in names {
        machines.push(world.machine(name, MEMORY).await);
    }
    machines
}

fn is(object: &Value, name: &str, status: &str) -> bool {
    condition(object, name)["status"] == status
}

/// Hosts on which a copy serves.
fn ready_on(object: &Value) -> Vec<String> {
    let placements = object["status"]["placements"].as_array().into_iter().flatten();
    let ready = placements.filter(|placement| placement["state"] == "Ready");
    ready.map(|placement| placement["host"].as_str().unwrap().to_owned()).collect()
}

fn running(machines: &[Machine]) -> usize {
    machines.iter().map(|machine| machine.runs().len()).sum()
}

#[tokio::test]
async fn a_manifest_is_placed_told_served_and_routed() {
    let world = World::start().await;
    let machines = fleet(&world, &["a", "b", "c"]).await;
    let mut gateway = world.gateway("edge").await;
    world.apply(world.deployment("tiny", 1)).await.unwrap();
    let object =
        world.until("InferenceDeployment", "tiny", "redundancy", |o| is(o, "Redundant", "True")).await;
    assert_eq!(object["status"]["readyCopies"], 2, "{object:#}");
    assert_eq!(object["status"]["observedGeneration"], 1);
    assert_eq!(object["status"]["endpoint"], "http://edge:8080");
    assert!(object["status"]["sizing"]["totalBytes"].as_u64().unwrap() > 0);
    assert_eq!(running(&machines), 2);
    assert!(machines.iter().all(|machine| machine.runs().len() <= 1), "spread over hosts");
    let table =
        gateway.table("two replicas", |t| t.models.first().is_some_and(|m| m.replicas.len() == 2)).await;
    assert_eq!(table.models[0].name, "tiny");
    assert!(table.models[0].owns_short_name);
    assert!(table.models[0].replicas.iter().all(|replica| !replica.draining && replica.epoch > 0));

    let events =
        world.objects().events(EventsRequest { r#ref: reference("tiny") }).await.unwrap().into_inner().json;
    for event in &events {
        println!("{event}");
    }
    let started: Vec<&String> = events.iter().filter(|event| event.contains("\"Starting\"")).collect();
    assert_eq!(started.len(), 2, "each step is an event");
    assert!(events.iter().all(|event| !event.contains("Warning")), "nothing went wrong");
}

#[tokio::test]
async fn a_host_that_falls_silent_leaves_the_routes_and_is_replaced() {
    let world = World::start().await;
    let mut machines = fleet(&world, &["a", "b", "c", "d"]).await;
    let mut gateway = world.gateway("edge").await;
    world.apply(world.deployment("tiny", 1)).await.unwrap();
    world.until("InferenceDeployment", "tiny", "redundancy", |o| is(o, "Redundant", "True")).await;
    let at = machines.iter().position(|machine| !machine.runs().is_empty()).unwrap();
    let dead = machines.remove(at);
    dead.kill();
    world.until("InferenceHost", &dead.name, "silence", |o| is(o, "Ready", "Unknown")).await;
    let object =
        world.until("InferenceDeployment", "tiny", "the loss", |o| is(o, "Redundant", "False")).await;
    assert!(is(&object, "Ready", "True"), "it stays Ready through a survived loss: {object:#}");
    world.until("InferenceDeployment", "tiny", "redundancy again", |o| is(o, "Redundant", "True")).await;
    assert_eq!(running(&machines), 2);
    gateway
        .table("two replicas, none on the dead host", |table| {
            table.models.first().is_some_and(|model| {
                model.replicas.len() == 2 && model.replicas.iter().all(|replica| replica.host != dead.name)
            })
        })
        .await;
}

#[tokio::test]
async fn a_host_that_comes_back_in_time_keeps_what_it_runs() {
    let world = World::start().await;
    let mut machines = fleet(&world, &["a", "b", "c", "d"]).await;
    let mut manifest = world.deployment("tiny", 1);
    manifest["spec"]["redundancy"]["replaceAfterSeconds"] = json!(3600);
    world.apply(manifest).await.unwrap();
    world.until("InferenceDeployment", "tiny", "redundancy", |o| is(o, "Redundant", "True")).await;
    let at = machines.iter().position(|machine| !machine.runs().is_empty()).unwrap();
    let before = machines.remove(at);
    let told = before.told();
    before.kill();
    world.until("InferenceDeployment", "tiny", "the loss", |o| is(o, "Redundant", "False")).await;
    let back = world.machine_with(&before.name, before.credentials.clone(), MEMORY, told.clone()).await;
    world.until("InferenceDeployment", "tiny", "redundancy again", |o| is(o, "Redundant", "True")).await;
    assert_eq!(back.runs(), workloads(&told));
    assert_eq!(running(&machines), 1);
}

#[tokio::test]
async fn scaling_draining_and_deleting_move_what_runs() {
    let world = World::start().await;
    let mut machines = fleet(&world, &["a", "b", "c"]).await;
    world.apply(world.deployment("tiny", 0)).await.unwrap();
    world.until("InferenceDeployment", "tiny", "Ready", |o| is(o, "Ready", "True")).await;
    assert_eq!(running(&machines), 1);

    world.objects().scale(ScaleRequest { r#ref: reference("tiny"), replicas: 2 }).await.unwrap();
    world.until("InferenceDeployment", "tiny", "two copies", |o| o["status"]["readyCopies"] == 2).await;

    let at = machines.iter().position(|machine| !machine.runs().is_empty()).unwrap();
    let name = machines[at].name.clone();
    world.fleet().drain(DrainHostRequest { host: name.clone() }).await.unwrap();
    machines[at].spec("nothing left on the drained host", |spec| workloads(spec).is_empty()).await;
    let elsewhere = |o: &Value| ready_on(o).len() == 2 && !ready_on(o).contains(&name);
    world.until("InferenceDeployment", "tiny", "two copies elsewhere", elsewhere).await;

    world.objects().delete(DeleteRequest { r#ref: reference("tiny") }).await.unwrap();
    for machine in &mut machines {
        machine.spec("nothing runs any more", |spec| workloads(spec).is_empty()).await;
    }
}

#[tokio::test]
async fn a_restart_of_the_operator_moves_nothing() {
    let mut world = World::start().await;
    let machines = fleet(&world, &["a", "b", "c"]).await;
    world.apply(world.deployment("tiny", 1)).await.unwrap();
    let before =
        world.until("InferenceDeployment", "tiny", "redundancy", |o| is(o, "Redundant", "True")).await;
    let ran: Vec<_> = machines.iter().map(Machine::runs).collect();
    let term = machines[0].told()["term"].as_u64().unwrap();
    world.stop().await;
    world.start_again().await;
    for mut machine in machines {
        // The new leader's first word to every host.
        let spec = machine.spec("a newer term", |spec| spec["term"].as_u64() > Some(term)).await;
        let at = ["a", "b", "c"].iter().position(|name| *name == machine.name).unwrap();
        assert_eq!(workloads(&spec), ran[at]);
    }
    let mut gateway = world.gateway("edge").await;
    let first = gateway.table("the first table after the restart", |_| true).await;
    assert_eq!(first.models[0].replicas.len(), 2, "no table without the replicas that serve");
    let after = world.get("InferenceDeployment", "llm", "tiny").await.unwrap();
    assert_eq!(after["status"]["placements"], before["status"]["placements"]);
    assert_eq!(condition(&after, "Redundant"), condition(&before, "Redundant"));
    assert_eq!(after["metadata"]["uid"], before["metadata"]["uid"]);
}

#[tokio::test]
async fn a_host_that_died_with_the_operator_is_noticed_after_the_restart() {
    let mut world = World::start().await;
    let mut machines = fleet(&world, &["a", "b", "c", "d"]).await;
    world.apply(world.deployment("tiny", 1)).await.unwrap();
    world.until("InferenceDeployment", "tiny", "redundancy", |o| is(o, "Redundant", "True")).await;
    world.stop().await;
    let at = machines.iter().position(|machine| !machine.runs().is_empty()).unwrap();
    let dead = machines.remove(at);
    dead.kill();
    world.start_again().await;
    world.until("InferenceHost", &dead.name, "silence", |o| is(o, "Ready", "Unknown")).await;
    world
        .until("InferenceDeployment", "tiny", "redundancy elsewhere", |o| {
            is(o, "Redundant", "True") && ready_on(o).len() == 2 && !ready_on(o).contains(&dead.name)
        })
        .await;
}

#[tokio::test]
async fn a_leader_rises_above_what_hosts_have_obeyed() {
    let world = World::start().await;
    let credentials = world.join(tandem_control_api::Role::Host, "a").await;
    let mut machine = world
        .machine_with("a", credentials, MEMORY, json!({"term": 70, "generation": 9, "workloads": []}))
        .await;
    machine.spec("a spec of this cluster's leader", |spec| spec["term"].as_u64() > Some(70)).await;
}

/// The store goes back, the hosts don't: terms and start numbers rise above what hosts have obeyed and run.
#[tokio::test]
async fn a_store_from_an_older_backup_leads_no_host_back() {
    let mut world = World::start().await;
    let mut machine = world.machine("a", MEMORY).await;
    world.apply(world.deployment("tiny", 0)).await.unwrap();
    world.until("InferenceDeployment", "tiny", "Ready", |o| is(o, "Ready", "True")).await;
    world.stop().await;
    let store = world.dir.path().join("operator/store.redb");
    let backup = world.dir.path().join("backup.redb");
    std::fs::copy(&store, &backup).unwrap();

    world.start_again().await;
    let mut changed = world.deployment("tiny", 0);
    changed["spec"]["context"]["tokens"] = json!(64);
    world.apply(changed.clone()).await.unwrap();
    let raised = machine
        .spec("the change", |spec| {
            spec["workloads"][0]["contextTokens"] == 64 && spec["workloads"].as_array().unwrap().len() == 1
        })
        .await;
    world.stop().await;
    std::fs::copy(&backup, &store).unwrap();

    world.start_again().await;
    world.apply(changed).await.unwrap();
    let spec = machine
        .spec("a later word", |spec| {
            spec["term"].as_u64() > raised["term"].as_u64() && !workloads(spec).is_empty()
        })
        .await;
    println!("{spec:#}");
    world
        .until("InferenceDeployment", "tiny", "Ready again", |o| {
            is(o, "Ready", "True") && o["status"]["observedGeneration"] == o["metadata"]["generation"]
        })
        .await;
    assert!(machine.told()["term"].as_u64() > raised["term"].as_u64());
}

#[tokio::test]
async fn what_cannot_be_says_what_to_change() {
    let world = World::start().await;
    let _machines = fleet(&world, &["a", "b"]).await;
    let mut quant = world.deployment("wrong-quant", 0);
    quant["spec"]["quant"] = json!("Q9_K");
    let mut source = world.deployment("no-source", 0);
    source["spec"]["model"]["source"] = json!("file:///nowhere/at/all");
    let mut context = world.deployment("long-context", 0);
    context["spec"]["context"]["tokens"] = json!(1 << 20);
    let greedy = world.deployment("too-redundant", 5);
    for (manifest, name, words) in [
        (quant, "wrong-quant", &["Q9_K", "F32"][..]),
        (source, "no-source", &["/nowhere/at/all"]),
        (context, "long-context", &["context"]),
        (greedy, "too-redundant", &["add 4 hosts", "lower redundancy.hostFailures to 1"]),
    ] {
        world.apply(manifest).await.unwrap();
        let told = |o: &Value| is(o, "Redundant", "False") && !is(o, "Reconciling", "True");
        let object = world.until("InferenceDeployment", name, "a condition", told).await;
        let all: Vec<&str> = object["status"]["conditions"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|c| c["message"].as_str())
            .collect();
        println!("{name}:");
        for condition in object["status"]["conditions"].as_array().unwrap() {
            println!("  {} {}: {}", condition["type"], condition["status"], condition["message"]);
        }
        for word in words {
            assert!(
                all.iter().any(|message| message.contains(word)),
                "{name}: nothing about {word} in {all:?}"
            );
        }
    }
}

#[tokio::test]
async fn of_two_that_do_not_fit_the_older_one_runs_and_the_younger_is_told() {
    let world = World::start().await;
    world.apply(world.deployment("older", 0)).await.unwrap();
    let sized =
        world.until("InferenceDeployment", "older", "a size", |o| o["status"]["sizing"].is_object()).await;
    let bytes = sized["status"]["sizing"]["totalBytes"].as_u64().unwrap();
    let machine = world.machine("a", bytes * 3 / 2).await;
    world.until("InferenceDeployment", "older", "Ready", |o| is(o, "Ready", "True")).await;
    world.apply(world.deployment("younger", 0)).await.unwrap();
    let told = |o: &Value| is(o, "Ready", "False") && !is(o, "Reconciling", "True");
    let object = world.until("InferenceDeployment", "younger", "a condition", told).await;
    for condition in object["status"]["conditions"].as_array().unwrap() {
        println!("  {} {}: {}", condition["type"], condition["status"], condition["message"]);
    }
    assert!(
        object["status"]["conditions"].to_string().contains("GiB")
            || object["status"]["conditions"].to_string().contains("MiB")
            || object["status"]["conditions"].to_string().contains("KiB")
    );
    assert_eq!(machine.runs().len(), 1);
}

#[tokio::test]
async fn a_model_that_appears_later_is_found() {
    let world = World::start().await;
    let _machines = fleet(&world, &["a"]).await;
    let mut manifest = world.deployment("tiny", 0);
    let source = world.source();
    let folder = source.strip_prefix("file://").unwrap().to_owned();
    let hidden = format!("{folder}-hidden");
    std::fs::rename(&folder, &hidden).unwrap();
    manifest["spec"]["model"]["source"] = json!(source);
    world.apply(manifest).await.unwrap();
    world.until("InferenceDeployment", "tiny", "the failure", |o| is(o, "Ready", "False")).await;
    std::fs::rename(&hidden, &folder).unwrap();
    world.until("InferenceDeployment", "tiny", "Ready", |o| is(o, "Ready", "True")).await;
}

#[tokio::test]
async fn logs_come_from_every_copy_and_end() {
    use tandem_control_api::operator_message::Message as Down;
    use tandem_control_api::{AgentMessage, LogChunk, LogsRequest, agent_message};
    let world = World::start().await;
    let mut host = world.host("a").await;
    host.report(&world::report(MEMORY)).await;
    world.apply(world.deployment("tiny", 0)).await.unwrap();
    let beat = host.up.clone();
    let beating = tokio::spawn(async move {
        let report = tandem_control_api::HostReport { status_json: world::report(MEMORY).to_string() };
        let message = AgentMessage { message: Some(agent_message::Message::Report(report)) };
        while beat.send(message.clone()).await.is_ok() {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    });
    let spec = host.spec("a workload", |spec| !workloads(spec).is_empty()).await;
    let request = LogsRequest { deployment: reference("tiny"), follow: true, ..LogsRequest::default() };
    let mut logs = world.fleet().logs(request).await.unwrap().into_inner();
    let asked = within("the question", async {
        loop {
            if let Some(Down::Logs(asked)) = host.next().await.unwrap() {
                return asked;
            }
        }
    })
    .await;
    assert_eq!((asked.workload.clone(), asked.tail_lines), (workloads(&spec)[0].0.clone(), 100));
    let chunk = |text: &str, end| LogChunk {
        request: asked.request.clone(),
        host: "somebody-else".into(),
        workload: asked.workload.clone(),
        text: text.into(),
        end,
    };
    for chunk in [chunk("one\n", false), chunk("two\n", true)] {
        host.up.send(AgentMessage { message: Some(agent_message::Message::Log(chunk)) }).await.unwrap();
    }
    let first = within("a chunk", logs.message()).await.unwrap().unwrap();
    assert_eq!((first.host.as_str(), first.text.as_str()), ("a", "one\n"));
    assert_eq!(within("a chunk", logs.message()).await.unwrap().unwrap().text, "two\n");
    assert!(within("the end", logs.message()).await.unwrap().is_none());
    beating.abort();
}

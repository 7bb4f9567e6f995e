//! Nodes that are deleted, and made again, while no operator runs: the next one knows it by the UIDs that hosts are bound to.

#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

mod world;

use std::time::Duration;

use serde_json::Value;
use tandem_control_api::Role;
use tandem_servers::{ControlPlane, Fault, FaultProxy};
use world::kubernetes::{AGENTS, AUDIENCE, OPERATOR, Site};
use world::{Host, Machine, condition, within};

const MEMORY: u64 = 4 << 30;

fn copies(object: &Value) -> Vec<&str> {
    let placements = object["status"]["placements"].as_array().into_iter().flatten();
    let ready = placements.filter(|placement| placement["state"] == "Ready");
    ready.filter_map(|placement| placement["host"].as_str()).collect()
}

async fn machine(site: &Site, node: &str, pod: &str) -> Machine {
    let credentials = site.agent(pod, node).await;
    site.world.machine_with(node, credentials, MEMORY, Value::Null).await
}

#[tokio::test]
async fn hosts_whose_nodes_went_while_no_operator_ran_are_emptied_and_then_parted_from() {
    let plane = ControlPlane::start().await.unwrap();
    let proxy = FaultProxy::start(plane.client(OPERATOR).await.unwrap()).await.unwrap();
    let kubeconfig = plane.dir().join("operator.kubeconfig");
    std::fs::write(&kubeconfig, proxy.kubeconfig()).unwrap();
    let mut site = Site::start_on(plane, kubeconfig).await;
    let mut machines = Vec::new();
    for name in ["a", "b"] {
        site.node(name);
        machines.push(machine(&site, name, &format!("agent-{name}")).await);
    }
    let [a, b] = &mut machines[..] else { panic!("two of them") };
    site.world.apply(site.world.deployment("tiny", 1)).await.unwrap();
    let on = |hosts: [&'static str; 2]| move |object: &Value| copies(object) == hosts;
    site.world.until("InferenceDeployment", "tiny", "a copy on each", on(["a", "b"])).await;
    let mut others = Vec::new();
    for name in ["c", "d"] {
        site.node(name);
        others.push(machine(&site, name, &format!("agent-{name}")).await);
    }
    // A machine outside, which never had a node.
    let mut outside = site.world.machine("mac-a", 0).await;
    let object = site.world.get("InferenceHost", "", "b").await.unwrap();
    let term = a.spec("a leader's word", |spec| spec["term"].as_u64() > Some(0)).await["term"].as_u64();

    // One is deleted, one is deleted and made again; both agents go on.
    let token = site.token(AGENTS, "tandem-agent", Some("agent-a"), AUDIENCE);
    site.kill();
    site.plane.kubectl(&["delete", "node", "a", "b"]).unwrap();
    site.node("b");
    proxy.strike(Fault::Hold, usize::MAX, |_, uri| uri.contains("/nodes"));
    site.start_operator();
    site.leads().await;

    // It leads, and does not know the nodes yet: nobody lacks one.
    a.spec("the new leader's word", |spec| spec["term"].as_u64() > term).await;
    let marker = site.world.deployment("marker", 1);
    site.world.apply(marker).await.unwrap();
    let serves = |object: &Value| condition(object, "Redundant")["status"] == "True";
    site.world.until("InferenceDeployment", "marker", "two copies of something new", serves).await;
    let tiny = site.world.get("InferenceDeployment", "llm", "tiny").await.unwrap();
    assert_eq!(copies(&tiny), ["a", "b"]);

    // Then copies are ready elsewhere before they end there, and what runs nothing more is let in no more.
    proxy.release();
    let mut least = usize::MAX;
    let moved = |object: &Value| copies(object) == ["c", "d"];
    let watched = async {
        loop {
            let tiny = site.world.get("InferenceDeployment", "llm", "tiny").await.unwrap();
            least = least.min(copies(&tiny).len());
            if moved(&tiny) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    within("copies on nodes that are there", watched).await;
    assert_eq!(least, 2, "no copy ended before another was ready");
    for machine in [&mut *a, &mut *b] {
        let refused = within("the end of its certificate", async {
            loop {
                match Host::connect(&site.world.url, &machine.name, machine.credentials.clone(), 0).await {
                    Ok(_) => tokio::time::sleep(Duration::from_millis(100)).await,
                    Err(refused) => return refused,
                }
            }
        })
        .await;
        assert!(refused.message().contains("revoked"), "{refused}");
    }
    // Its pod may be there for a while more.
    let refused = site.join(Role::Host, "a", &token).await.unwrap_err().to_string();
    assert!(refused.contains("node a, which is gone"), "{refused}");
    within("the host is forgotten", async {
        while site.world.get("InferenceHost", "", "a").await.is_some() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
    site.world.join(Role::Host, "a").await;

    // The node that was made again is a host like any other, once its own agent has joined.
    site.plane.kubectl(&["delete", "pod", "agent-b", "-n", AGENTS, "--force", "--grace-period=0"]).unwrap();
    let mut reborn = machine(&site, "b", "agent-b2").await;
    site.plane.kubectl(&["cordon", "c"]).unwrap();
    reborn
        .spec("copies of the host that is cordoned", |spec| {
            spec["workloads"].as_array().is_some_and(|all| !all.is_empty())
        })
        .await;
    let newer = site.world.get("InferenceHost", "", "b").await.unwrap();
    assert_eq!(newer["metadata"]["uid"], object["metadata"]["uid"]);
    outside.spec("it is a host still", |spec| spec["term"].as_u64() > term).await;
}

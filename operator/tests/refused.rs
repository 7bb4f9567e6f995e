//! An object that a real API server refuses to have written holds up nobody else, and is tried again, less and less often.

#![allow(clippy::unwrap_used, reason = "helpers of tests, outside of any test function")]

mod world;

use std::time::Duration;

use serde_json::{Value, json};
use tandem_servers::AuditEvent;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use world::kubernetes::{OPERATOR, Site};
use world::{condition, within};

const MEMORY: u64 = 4 << 30;
/// Refusals of the same write that are waited for: between them lie 1, 2 and 4 s.
const REFUSALS: usize = 4;

/// When the operator's writes of this host's spec came that were refused, in seconds, in order.
fn refusals(site: &Site, host: &str) -> Vec<f64> {
    let ours = |event: &&AuditEvent| {
        let about = event.object_ref.as_ref();
        let spec = about.is_some_and(|object| {
            object.resource == "inferencehosts" && object.name == host && object.subresource.is_empty()
        });
        let code = event.response_status.as_ref().map_or(0, |status| status.code);
        spec && event.user.username == OPERATOR.name && event.verb == "update" && code == 422
    };
    let audit = site.plane.audit().unwrap();
    let times = audit.iter().filter(ours).map(|event| {
        let at: jiff::Timestamp = event.request_received_timestamp.parse().unwrap();
        at.as_duration().as_secs_f64()
    });
    let mut times: Vec<f64> = times.collect();
    times.sort_by(f64::total_cmp);
    times
}

/// One figure of the operator's, by its name and labels.
async fn figure(site: &Site, name: &str) -> f64 {
    let mut stream = TcpStream::connect(("127.0.0.1", site.metrics)).await.unwrap();
    stream.write_all(b"GET /metrics HTTP/1.0\r\nhost: localhost\r\n\r\n").await.unwrap();
    let mut text = String::new();
    within("the figures", stream.read_to_string(&mut text)).await.unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{text}"));
    line.trim().parse().unwrap()
}

/// Nobody changes the spec of host `a`.
fn policy() -> Value {
    let name = json!({"name": "leave-a-alone"});
    let group = "admissionregistration.k8s.io/v1";
    json!({"apiVersion": "v1", "kind": "List", "items": [
        {
            "apiVersion": group,
            "kind": "ValidatingAdmissionPolicy",
            "metadata": name,
            "spec": {
                "matchConstraints": {"resourceRules": [{
                    "apiGroups": ["inference.tandem.dev"],
                    "apiVersions": ["*"],
                    "operations": ["UPDATE"],
                    "resources": ["inferencehosts"],
                }]},
                "validations": [{
                    "expression": "object.metadata.name != 'a' || object.spec == oldObject.spec",
                    "message": "host a is left alone",
                }],
            },
        },
        {
            "apiVersion": group,
            "kind": "ValidatingAdmissionPolicyBinding",
            "metadata": name,
            "spec": {"policyName": "leave-a-alone", "validationActions": ["Deny"]},
        },
    ]})
}

#[tokio::test]
async fn a_host_that_may_not_be_written_holds_up_nobody_and_is_tried_less_and_less_often() {
    let site = Site::start().await;
    let mut machines = Vec::new();
    for name in ["a", "b"] {
        let mut machine = site.world.machine(name, MEMORY).await;
        machine.spec("the leader's first word", |spec| spec["term"].as_u64() > Some(0)).await;
        machines.push(machine);
    }
    let [a, b] = &mut machines[..] else { panic!("two of them") };
    site.kubectl("create", &policy());
    within("the policy", async {
        let patch = r#"{"spec": {"unschedulable": true}}"#;
        let attempt = ["patch", "infh", "a", "--type=merge", "--dry-run=server", "-p", patch];
        while site.plane.kubectl(&attempt).is_ok() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await;

    // One copy for each of them; `a` is the first by name.
    site.world.apply(site.world.deployment("tiny", 1)).await.unwrap();
    b.spec("its copy", |spec| spec["workloads"].as_array().is_some_and(|all| all.len() == 1)).await;
    let serves = |object: &Value| {
        condition(object, "Ready")["status"] == "True" && condition(object, "Redundant")["status"] == "False"
    };
    site.world.until("InferenceDeployment", "tiny", "one copy that serves", serves).await;
    assert!(a.runs().is_empty());

    within("refusals", async {
        while refusals(&site, "a").len() < REFUSALS {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
    let times = refusals(&site, "a");
    let waits: Vec<f64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    for (nth, wait) in waits.iter().take(REFUSALS - 1).enumerate() {
        assert!(*wait >= f64::from(1 << nth), "the waits are {waits:?}");
    }
    let failed = figure(&site, r#"tandem_operator_failed_writes_total{kind="InferenceHost"}"#).await;
    assert!(failed >= 4.0, "{failed}");
    let path = "jsonpath={.items[?(@.reason=='WriteRefused')].message}";
    let said = site.plane.kubectl(&["get", "events", "-n", "default", "-o", path]).unwrap();
    assert!(said.contains("host a is left alone"), "{said}");

    // Nothing of the object has changed since; its time comes all the same.
    site.kubectl("delete", &policy());
    a.spec("its copy", |spec| spec["workloads"].as_array().is_some_and(|all| all.len() == 1)).await;
    let redundant = |object: &Value| condition(object, "Redundant")["status"] == "True";
    site.world.until("InferenceDeployment", "tiny", "redundancy", redundant).await;
}

//! `tandem plan` with a cluster and without hosts named: the cluster's own, less what runs there.
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

mod support;

use serde_json::{Value, json};
use support::Site;

const HOSTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/hosts/m3-ultra-512.yaml");
const KIMI: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/kimi.yaml");

fn on_cpu(report: &Value) -> Value {
    let options = report["fleets"][0]["options"].as_array().unwrap();
    options.iter().find(|option| option["device"] == "CPU").unwrap().clone()
}

async fn planned(site: &Site) -> Value {
    let text = site.tandem(&["plan", "-f", KIMI, "--offline", "-o", "json"]).await.ok();
    serde_json::from_str(&text).unwrap()
}

#[tokio::test]
async fn the_clusters_hosts_are_planned_with_less_what_runs_there() {
    let site = Site::start().await;
    site.tandem(&["plan", "-f", KIMI, "--offline"]).await.refused(1, &["the cluster has no hosts yet"]);

    let mut host: Value = serde_yaml::from_str(&std::fs::read_to_string(HOSTS).unwrap()).unwrap();
    site.fake.put(&host);
    let empty = planned(&site).await;
    assert_eq!(empty["fleets"][0]["fleet"], "cluster");
    assert_eq!(on_cpu(&empty)["fits"], true);

    let taken = 200_u64 << 30;
    let workload = |deployment: &str| {
        json!({
            "id": "llm-other-1", "epoch": 1, "deployment": {"namespace": "llm", "name": deployment}, "model": "other",
            "source": "file:///models", "quant": "Q4_0", "contextTokens": 32, "poolTokens": 32, "memoryBytes": taken,
            "files": [{"name": "other-Q4_0.gguf", "sha256": "0".repeat(64), "bytes": 1}],
        })
    };
    host["spec"] = json!({"workloads": [workload("other")]});
    site.fake.put(&host);
    let crowded = planned(&site).await;
    assert_eq!(on_cpu(&crowded)["fits"], false, "{crowded}");
    let room = |report: &Value| on_cpu(report)["roomBytes"].as_u64().unwrap();
    assert_eq!(room(&empty) - room(&crowded), taken);

    // Its own copy gives way to what is planned.
    host["spec"] = json!({"workloads": [workload("kimi")]});
    site.fake.put(&host);
    assert_eq!(room(&planned(&site).await), room(&empty));
    // What `get` prints is what `--hosts` reads.
    let yaml = site.tandem(&["get", "infh/mac-a", "-o", "yaml"]).await.ok();
    let saved = site.file("real.yaml", &yaml);
    let text = site.tandem(&["plan", "-f", KIMI, "--offline", "-o", "json", "--hosts", &saved]).await.ok();
    let named: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((named["fleets"][0]["fleet"].as_str(), room(&named)), (Some("real"), room(&empty)));
}

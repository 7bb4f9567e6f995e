//! Weights on their way: from a hub that wants a token, past killed agents, and from host to host.
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tandem_e2e::{BULK, BULK_FILE, Layout, Programs, Site, bulk_manifest, bulk_model, model_file};
use tandem_hub::{Content, Door, Hub, Keys, Options};
use tokio::runtime::Runtime;

const TOKEN: &str = "hf_not-to-be-seen-anywhere";
const REPOSITORY: &str = "owner/bulk";
const BULK_DEPLOYMENT: &str = "infd/bulk";

/// A hub of its own with a model of random weights.
fn hub(runtime: &Runtime, options: Options) -> Hub {
    let hub = runtime.block_on(Hub::start(options)).unwrap();
    hub.publish(REPOSITORY, [(BULK_FILE, Content::of(bulk_model().to_vec()))]);
    hub
}

fn site(hub: &Hub, layout: Layout) -> Site {
    let mirror = format!("hf://={}", hub.url(Door::Hub));
    Site::start_with(Programs::find().unwrap(), layout, &["--mirror", &mirror]).unwrap()
}

fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    object["status"]["conditions"].as_array()?.iter().find(|condition| condition["type"] == kind)
}

/// Files below a folder that hold these bytes.
fn files_with(folder: &Path, needle: &[u8], found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            files_with(&path, needle, found);
        } else if fs::read(&path).is_ok_and(|bytes| bytes.windows(needle.len()).any(|part| part == needle)) {
            found.push(path.display().to_string());
        }
    }
}

#[test]
fn a_private_model_is_fetched_with_a_token_that_nobody_sees_and_from_the_revision_it_was_resolved_at() {
    let runtime = Runtime::new().unwrap();
    let hub = runtime.block_on(Hub::start(Options::default())).unwrap();
    let tiny = fs::read(model_file()).unwrap();
    hub.publish("owner/tiny", [("tiny-kimi-Q4_K_M.gguf", Content::of(tiny))]);
    hub.set_keys(Keys { token: Some(TOKEN.to_owned()), ..Keys::default() });
    let site = site(&hub, Layout { hosts: 1, gateways: 1 });
    let manifest = json!({
        "apiVersion": "inference.tandem.dev/v1alpha1",
        "kind": "InferenceDeployment",
        "metadata": {"name": "private"},
        "spec": {
            "model": {
                "name": "private",
                "source": "hf://owner/tiny",
                "credentials": {"secretRef": {"name": "hub", "key": "token"}},
            },
            "quant": "Q4_K_M",
            "context": {"tokens": 512},
        },
    });
    site.apply(&manifest.to_string()).unwrap();
    // Without the secret it says which command makes it.
    let stalled = site.watch("infd/private", Duration::from_secs(30), |object| {
        condition(object, "Stalled").is_some_and(|stalled| {
            stalled["status"] == "True"
                && stalled["message"].as_str().unwrap().contains("tandem secret set hub")
        })
    });
    assert!(stalled.is_ok(), "{}", site.tandem(&["describe", "infd/private"]).unwrap());
    site.tandem(&["secret", "set", "hub", &format!("token={TOKEN}")]).unwrap();
    site.wait_for("infd/private", "Ready", Duration::from_secs(60)).unwrap();

    // The hub moves on; what was resolved stays what it was.
    let resolved = |site: &Site| -> Value {
        let object = site.tandem(&["get", "infd/private", "-o", "json"]).unwrap();
        serde_json::from_str::<Value>(&object).unwrap()["status"]["model"].clone()
    };
    let before = resolved(&site);
    assert!(before["source"].as_str().unwrap().starts_with("hf://owner/tiny@"), "{before}");
    hub.publish("owner/tiny", [("tiny-kimi-Q4_K_M.gguf", Content::of(b"something else".to_vec()))]);
    site.tandem(&["scale", "infd/private", "--replicas", "0"]).unwrap();
    site.tandem(&["scale", "infd/private", "--replicas", "1"]).unwrap();
    site.wait_for("infd/private", "Ready", Duration::from_secs(60)).unwrap();
    assert_eq!(resolved(&site), before);
    let answer = runtime.block_on(site.client(0).unwrap().chat(
        &json!({"model": "private", "max_tokens": 4, "messages": [{"role": "user", "content": "Hello"}]}),
        |_| Ok(()),
    ));
    assert!(!answer.unwrap().tokens.is_empty());

    // The token is in the operator's store and nowhere else: not in objects, logs, or on a host's disk.
    for kind in ["infd", "infh", "events"] {
        assert!(!site.tandem(&["get", kind, "-o", "json"]).unwrap().contains(TOKEN), "{kind}");
    }
    let mut seen = Vec::new();
    files_with(site.dir(), TOKEN.as_bytes(), &mut seen);
    seen.retain(|path| !path.ends_with("operator/store.redb"));
    assert_eq!(seen, [""; 0]);
}

/// The agent is killed after so many more bytes have left the hub, drawn anew each time; a download that ends is checked, and
/// the next one begins.
#[test]
fn two_hundred_kills_in_the_middle_of_downloads_end_in_the_right_bytes() {
    const KILLS: u32 = 200;
    let runtime = Runtime::new().unwrap();
    let size = bulk_model().len() as u64;
    let hub = hub(&runtime, Options { bytes_per_second: Some(64 << 20), ..Options::default() });
    let mut site = site(&hub, Layout { hosts: 0, gateways: 0 });
    site.join_host_with("host-a", &["--download-connections", "4"]).unwrap();
    site.apply(&bulk_manifest("hf://owner/bulk", 1, 0).to_string()).unwrap();
    let start = Instant::now();
    let mut state = 1_u64;
    let (mut kills, mut downloads) = (0, 0);
    while kills < KILLS {
        // A step of a linear congruential generator: enough chance for where a kill falls.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let target = hub.bytes_sent() + (state >> 33) % (size / 4);
        while hub.bytes_sent() < target && stored(&site).is_none() {
            assert!(start.elapsed() < Duration::from_secs(500), "{}", site.last_words(20));
            std::thread::park_timeout(Duration::from_millis(1));
        }
        if stored(&site).is_some() {
            check(&site);
            downloads += 1;
            begin_again(&site);
        } else {
            site.hosts[0].kill_agent().unwrap();
            kills += 1;
            site.start_agent(0).unwrap();
        }
    }
    site.wait_for(BULK_DEPLOYMENT, "Ready", Duration::from_secs(120)).unwrap();
    check(&site);
    downloads += 1;
    let ratio = hub.bytes_sent() as f64 / (size * downloads) as f64;
    println!(
        "{kills} kills, {downloads} downloads in {:?}: {ratio:.3} times the files' bytes were sent",
        start.elapsed()
    );
}

fn check(site: &Site) {
    assert!(fs::read(stored(site).unwrap()).unwrap() == bulk_model(), "the stored file has other bytes");
}

/// Lets the host forget the file, so that it is fetched anew.
fn begin_again(site: &Site) {
    let scale = |replicas| site.tandem(&["scale", BULK_DEPLOYMENT, "--replicas", replicas]).unwrap();
    scale("0");
    let gone = |object: &Value| object["status"]["workloads"].as_array().is_none_or(Vec::is_empty);
    site.watch("infh/host-a", Duration::from_secs(60), gone).unwrap();
    // The deployment still wants it, so that only its own end lets go of what may be the last copy.
    site.tandem(&["delete", BULK_DEPLOYMENT]).unwrap();
    let start = Instant::now();
    while stored(site).is_some() {
        assert!(start.elapsed() < Duration::from_secs(60), "{}", site.tandem(&["models", "list"]).unwrap());
        site.tandem(&["models", "prune", "--all"]).unwrap();
    }
    site.apply(&bulk_manifest("hf://owner/bulk", 1, 0).to_string()).unwrap();
}

/// The bulk model's file in the store of the first host, once it is whole.
fn stored(site: &Site) -> Option<std::path::PathBuf> {
    let folder = site.hosts[0].data.join("weights/sha256");
    fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path()).find(|path| path.is_file())
}

#[test]
fn the_hub_is_asked_once_however_many_hosts_want_a_file() {
    let runtime = Runtime::new().unwrap();
    let size = bulk_model().len() as u64;
    let hub = hub(&runtime, Options { bytes_per_second: Some(16 << 20), ..Options::default() });
    let site = site(&hub, Layout { hosts: 4, gateways: 0 });
    site.apply(&bulk_manifest("hf://owner/bulk", 1, 3).to_string()).unwrap();
    site.wait_for(BULK_DEPLOYMENT, "Redundant", Duration::from_secs(120)).unwrap();
    let ratio = hub.bytes_sent() as f64 / size as f64;
    println!("4 hosts, {BULK}: {ratio:.3} times the file's bytes left the hub");
    assert!(ratio < 1.5, "{ratio}");
}

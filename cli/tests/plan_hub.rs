//! `tandem plan` and `tandem quants` over a hub that speaks the real one's protocol: a Kimi of true shape, of which nothing but
//! headers is asked for.
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

use std::path::Path;
use std::time::Instant;

use serde_json::Value;
use tandem_hub::{Content, Door, Fault, Hub, Keys, Options};
use tandem_reference::true_shape::{UD_Q2_K_XL_BYTES, kimi_shards, write_sparse};
use tokio::process::Command;

const REPOSITORY: &str = "unsloth/Kimi-K2.5-GGUF";

/// The repository of `examples/kimi.yaml`: two quants of eight files each, and what else such repositories hold.
async fn hub(folder: &Path) -> Hub {
    let hub = Hub::start(Options::default()).await.unwrap();
    let shards = kimi_shards(8);
    let paths = write_sparse(folder, &shards).unwrap();
    let mut files = Vec::new();
    for (index, (shard, path)) in shards.iter().zip(&paths).enumerate() {
        let content = || Content::declared(path, &format!("{:064x}", 2 * index)).unwrap();
        files.push((format!("UD-Q2_K_XL/{}", shard.name), content()));
        let other = shard.name.replace("UD-Q2_K_XL", "UD-IQ1_S");
        // Another quant, whose files are not there yet but for their lengths.
        let small = folder.join(&other);
        std::fs::File::create(&small).unwrap().set_len(25 << 30).unwrap();
        files.push((
            format!("UD-IQ1_S/{other}"),
            Content::declared(&small, &format!("{:064x}", 2 * index + 1)).unwrap(),
        ));
    }
    files.push(("README.md".to_owned(), Content::of(b"# Kimi".to_vec())));
    files.push(("mmproj-BF16.gguf".to_owned(), Content::of(b"no language model".to_vec())));
    hub.publish(REPOSITORY, files);
    hub
}

struct Said {
    out: String,
    err: String,
    ok: bool,
}

async fn tandem(hub: &Hub, arguments: &[&str]) -> Said {
    let output = Command::new(env!("CARGO_BIN_EXE_tandem"))
        .args(arguments)
        .args(["--mirror", &format!("hf://={}", hub.url(Door::Hub))])
        .env("TANDEM_CONFIG", "/nonexistent/tandem.yaml")
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
        .output()
        .await
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Said { out: text(output.stdout), err: text(output.stderr), ok: output.status.success() }
}

const PLAN: [&str; 7] = ["plan", "-f", "examples/kimi.yaml", "--hosts", "examples/hosts/", "-o", "json"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_are_all_that_is_asked_of_375_gigabytes() {
    let folder = tempfile::tempdir().unwrap();
    let hub = hub(folder.path()).await;
    let start = Instant::now();
    let said = tandem(&hub, &PLAN).await;
    assert!(said.ok, "{}", said.err);
    let (took, sent) = (start.elapsed(), hub.bytes_sent());
    println!("planned in {took:.1?}; the hub sent {sent} bytes of {UD_Q2_K_XL_BYTES}");
    assert!(sent < 32 << 20, "{sent} bytes, where the headers are some five million");
    let report: Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!(report["need"]["exactness"], "exact");
    assert_eq!(report["need"]["fileBytes"], UD_Q2_K_XL_BYTES);
    let fleets = report["fleets"].as_array().unwrap();
    let option = |fleet: &str, device: &str| -> Value {
        let fleet = fleets.iter().find(|f| f["fleet"] == fleet).unwrap();
        fleet["options"].as_array().unwrap().iter().find(|o| o["device"] == device).unwrap().clone()
    };
    assert_eq!(option("m3-ultra-512", "CPU")["exactness"], "exact");
    assert_eq!(option("m3-ultra-512", "Metal")["exactness"], "estimated");
    // Out of the same repository: what the catalogue knows beside is not there.
    let offers = option("m3-ultra-512", "Metal")["offers"].clone();
    let quant = offers.as_array().unwrap().iter().find(|offer| offer["offer"] == "smallerQuant").unwrap();
    assert_eq!((&quant["quant"], &quant["number"]), (&"UD-IQ1_S".into(), &(200_u64 << 30).into()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quants_are_listed_beside_what_they_need() {
    let folder = tempfile::tempdir().unwrap();
    let hub = hub(folder.path()).await;
    let arguments =
        ["quants", "hf://unsloth/Kimi-K2.5-GGUF@main", "--context", "32768", "--hosts", "examples/hosts/"];
    let said = tandem(&hub, &arguments).await;
    assert!(said.ok, "{}", said.err);
    insta::assert_snapshot!(said.out);
}

/// A hub that is down is no reason to know nothing, and no reason to pretend.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_hub_sizes_are_estimates_and_said_to_be() {
    let folder = tempfile::tempdir().unwrap();
    let hub = hub(folder.path()).await;
    hub.always(Door::Hub, "", Fault::Status(503));
    let said = tandem(&hub, &PLAN).await;
    assert!(said.ok, "{}", said.err);
    assert!(said.err.contains("estimated from the catalogue"), "{}", said.err);
    let report: Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!(report["need"]["exactness"], "estimated");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quant_that_is_not_there_is_the_manifests_fault() {
    let folder = tempfile::tempdir().unwrap();
    let hub = hub(folder.path()).await;
    let manifest =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/kimi.yaml")).unwrap();
    let path = folder.path().join("kimi.yaml");
    std::fs::write(&path, manifest.replace("UD-Q2_K_XL ", "Q3_K_M ")).unwrap();
    let said = tandem(&hub, &["plan", "-f", path.to_str().unwrap(), "--hosts", "examples/hosts/"]).await;
    assert!(!said.ok && said.err.contains("no file is of quant `Q3_K_M`"), "{}", said.err);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_private_repository_takes_a_token_from_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let hub = hub(folder.path()).await;
    hub.set_keys(Keys { token: Some("hf_secret".to_owned()), ..Keys::default() });
    let token = folder.path().join("token");
    std::fs::write(&token, "hf_secret\n").unwrap();
    let arguments: Vec<&str> = PLAN.into_iter().chain(["--token-file", token.to_str().unwrap()]).collect();
    let said = tandem(&hub, &arguments).await;
    assert!(said.ok && said.out.contains("\"exactness\": \"exact\""), "{}", said.err);
    assert!(!said.err.contains("hf_secret") && !said.out.contains("hf_secret"));
}

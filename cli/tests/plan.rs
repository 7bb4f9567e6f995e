//! `tandem plan` and `tandem quants` as people see them, without a cluster and without a network.
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

use std::path::Path;
use std::process::{Command, Output};
use std::time::Instant;

use tandem_reference::true_shape::{UD_Q2_K_XL_BYTES, kimi_shards, write_sparse};

fn tandem(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tandem"))
        .args(arguments)
        .env("TANDEM_CONFIG", "/nonexistent/tandem.yaml")
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
        .output()
        .unwrap()
}

fn said(arguments: &[&str]) -> String {
    let output = tandem(arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let widest = text.lines().map(|line| line.chars().count()).max().unwrap();
    let is_table = !arguments.contains(&"-o");
    assert!(widest <= 100 || !is_table, "{widest} columns:\n{text}");
    text
}

fn refused(arguments: &[&str]) -> String {
    let output = tandem(arguments);
    assert!(!output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn kimi_on_six_fleets() {
    insta::assert_snapshot!(said(&[
        "plan",
        "-f",
        "examples/kimi.yaml",
        "--hosts",
        "examples/hosts/",
        "--offline"
    ]));
}

#[test]
fn rules_of_thumb_are_explained() {
    let text = said(&[
        "plan",
        "-f",
        "examples/kimi.yaml",
        "--hosts",
        "examples/hosts/rtx-4090-256.yaml",
        "--offline",
        "--explain",
    ]);
    insta::assert_snapshot!(text);
}

/// What pipelines read: names and numbers stay.
#[test]
fn a_report_for_programs() {
    let hosts = "examples/hosts/two-m3-ultra-512.yaml";
    let json = said(&["plan", "-f", "examples/kimi.yaml", "--hosts", hosts, "--offline", "-o", "json"]);
    insta::assert_snapshot!(json);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let yaml = said(&["plan", "-f", "examples/kimi.yaml", "--hosts", hosts, "--offline", "-o", "yaml"]);
    let yaml: serde_json::Value = serde_yaml::from_str(&yaml).unwrap();
    assert_eq!(json, yaml);
}

/// With a pool that fits and the accelerator named: covered, and as fast as somebody measured.
#[test]
fn a_manifest_for_metal_is_planned_although_apply_refuses_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kimi.yaml");
    let manifest =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/kimi.yaml")).unwrap();
    let manifest = manifest.replace("poolTokens: 196608 ", "poolTokens: 131072 ");
    std::fs::write(&path, format!("{manifest}  placement:\n    accelerators: [Metal, CUDA]\n")).unwrap();
    let path = path.to_str().unwrap();
    insta::assert_snapshot!(said(&["plan", "-f", path, "--hosts", "examples/hosts/", "--offline"]));
}

#[test]
fn an_unknown_size_is_refused_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("other.yaml");
    let manifest =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/kimi.yaml")).unwrap();
    std::fs::write(&path, manifest.replace("unsloth/Kimi-K2.5-GGUF@main", "somebody/else")).unwrap();
    let message = refused(&["plan", "-f", path.to_str().unwrap(), "--hosts", "examples/hosts/", "--offline"]);
    assert!(message.contains("nothing is guessed") && message.contains("--model-headers"), "{message}");
    let message = refused(&["quants", "hf://somebody/else", "--offline"]);
    assert!(message.contains("--mirror"), "{message}");
}

#[test]
fn without_hosts_and_without_a_cluster_it_says_where_hosts_come_from() {
    let message = refused(&["plan", "-f", "examples/kimi.yaml", "--offline"]);
    assert!(message.contains("--hosts examples/hosts/"), "{message}");
}

/// Experts in Q4_0 and all else in Q8_0, which this release computes: it runs where main memory takes it.
#[test]
fn a_flagship_that_this_release_computes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kimi.yaml");
    let manifest =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/kimi.yaml")).unwrap();
    let manifest = manifest.replace("Kimi-K2.5-GGUF", "Kimi-K2.6-GGUF").replace("UD-Q2_K_XL ", "UD-Q4_K_XL ");
    std::fs::write(&path, manifest).unwrap();
    let path = path.to_str().unwrap();
    insta::assert_snapshot!(said(&[
        "plan",
        "-f",
        path,
        "--hosts",
        "examples/hosts/",
        "--offline",
        "--explain"
    ]));
}

/// Headers that are here are exact, and what this release computes runs on its CPU.
#[test]
fn the_tiny_model_is_sized_from_its_own_headers() {
    let tiny = "examples/tiny-kimi/tiny-kimi-Q4_K_M.gguf";
    let hosts = "examples/hosts/laptop-64.yaml";
    let json =
        said(&["plan", "-f", "examples/tiny.yaml", "--hosts", hosts, "--model-headers", tiny, "-o", "json"]);
    let report: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(report["need"]["exactness"], "exact");
    assert_eq!(report["limits"], serde_json::json!([]));
    let cpu =
        report["fleets"][0]["options"].as_array().unwrap().iter().find(|o| o["device"] == "CPU").unwrap();
    assert_eq!(
        (&cpu["fits"], &cpu["runs"], &cpu["exactness"]),
        (&true.into(), &true.into(), &"exact".into())
    );
    assert_eq!(cpu["hostsMissing"], 1, "the manifest asks to survive a host");
}

/// Files of full length, of which only the headers are there: 375 GB are headed, sized and planned for six fleets in seconds.
#[test]
fn kimi_from_the_headers_of_sparse_files() {
    let folder = tempfile::tempdir().unwrap();
    write_sparse(folder.path(), &kimi_shards(8)).unwrap();
    let start = Instant::now();
    let headers = folder.path().to_str().unwrap();
    let arguments = [
        "plan",
        "-f",
        "examples/kimi.yaml",
        "--hosts",
        "examples/hosts/",
        "--model-headers",
        headers,
        "-o",
        "json",
    ];
    let report: serde_json::Value = serde_json::from_str(&said(&arguments)).unwrap();
    println!("headed, sized and planned for six fleets in {:.1?}", start.elapsed());
    let need = &report["need"];
    assert_eq!((&need["exactness"], &need["fileBytes"]), (&"exact".into(), &UD_Q2_K_XL_BYTES.into()));
    assert_eq!(need["kvBytes"], 196_608_u64 * 70_272);
    assert_eq!(report["fleets"].as_array().unwrap().len(), 6);
    // From the catalogue, without a header: as near as the headers are small.
    let arguments =
        ["plan", "-f", "examples/kimi.yaml", "--hosts", "examples/hosts/", "--offline", "-o", "json"];
    let estimated: serde_json::Value = serde_json::from_str(&said(&arguments)).unwrap();
    let total = |report: &serde_json::Value| report["need"]["totalBytes"].as_u64().unwrap();
    assert!(total(&estimated).abs_diff(total(&report)) < 16 << 20, "{need} against {}", estimated["need"]);
    let active = |report: &serde_json::Value| report["need"]["activeBytesPerToken"].as_f64().unwrap();
    println!("active bytes a token: {} from headers, {} known", active(&report), active(&estimated));
    assert!((active(&report) / active(&estimated) - 1.0).abs() < 0.1);
}

#[test]
fn quants_of_a_repository_that_can_not_be_asked() {
    let arguments = [
        "quants",
        "hf://unsloth/Kimi-K2.5-GGUF",
        "--context",
        "98304",
        "--hosts",
        "examples/hosts/",
        "--offline",
    ];
    let output = tandem(&arguments);
    assert!(String::from_utf8_lossy(&output.stderr).contains("the quants that the catalogue knows"));
    insta::assert_snapshot!(said(&arguments));
}

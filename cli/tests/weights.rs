//! Secrets and weights, as people set, fetch, list and prune them, and how those on their way are shown.
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

mod support;

use serde_json::{Value, json};
use tandem_control_api::models_reply::Said;
use tandem_control_api::{ModelsProgress, ModelsReply, StoredFile};

use support::{Site, deployment, end, first_lines, host};

const VALUE: &str = "hf_s3cr3t";

#[tokio::test]
async fn secrets_go_in_by_every_way_and_come_out_by_none() {
    let site = Site::start().await;
    site.tandem(&["secret", "list"])
        .await
        .refused(0, &["no secret in namespace default", "tandem secret set"]);
    let path = site.file("token", &format!("{VALUE}-3\n"));
    let said = site.tandem(&["secret", "set", "hub", &format!("token={VALUE}-1")]).await.ok();
    assert_eq!(said, "secret/hub set: token\n");
    let input = site.tell(&["secret", "set", "hub", "other"], &format!("{VALUE}-2\n")).await.ok();
    let file = site.tandem(&["secret", "set", "hub", "--from-file", &format!("file={path}")]).await.ok();
    assert_eq!(file, "secret/hub set: file, other, token\n");
    let kept = site.fake.secret("default", "hub").unwrap();
    let values: Vec<(&str, &str)> = kept.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    assert_eq!(values, [("file", "hf_s3cr3t-3"), ("other", "hf_s3cr3t-2"), ("token", "hf_s3cr3t-1")]);

    let table = site.tandem(&["secret", "list"]).await.ok();
    assert!(table.starts_with("NAME  KEYS              CHANGED\nhub   file,other,token  "), "{table}");
    let everywhere = site.tandem(&["secret", "list", "-A"]).await.ok();
    assert!(everywhere.starts_with("NAMESPACE  NAME"), "{everywhere}");
    assert_eq!(site.tandem(&["secret", "list", "-o", "name"]).await.ok(), "secret/hub\n");
    let json = site.tandem(&["secret", "list", "-o", "json"]).await.ok();
    let list: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(
        list["items"][0],
        json!({"namespace": "default", "name": "hub", "keys": ["file", "other", "token"], "changedAt": "2026-01-01T00:00:00Z"})
    );
    let all = [said, input, file, table, everywhere, json].concat();
    assert!(!all.contains(VALUE), "{all}");

    assert_eq!(site.tandem(&["secret", "delete", "hub"]).await.ok(), "secret/hub deleted\n");
    site.tandem(&["secret", "delete", "hub"]).await.refused(1, &["there is no secret hub"]);
}

#[tokio::test]
async fn what_is_no_secret_says_what_to_write() {
    let site = Site::start().await;
    for (arguments, code, words) in [
        (&["secret", "set", "hub"][..], 2, "KEY=VALUE"),
        (&["secret", "set", "hub", "a", "b"], 2, "standard input holds one value"),
        (&["secret", "set", "hub", "a=1", "a=2"], 2, "two values are given for a"),
        (&["secret", "set", "hub", "--from-file", "token"], 2, "KEY=PATH"),
        (&["secret", "set", "hub", "--from-file", "token=/nonexistent"], 1, "/nonexistent can't be opened"),
    ] {
        site.tandem(arguments).await.refused(code, &[words]);
    }
}

fn said(host: &str, said: Said, end: bool) -> ModelsReply {
    ModelsReply { request: "models-1".into(), host: host.into(), said: Some(said), end }
}

fn file(name: &str, digit: &str, bytes: u64, state: &str) -> StoredFile {
    StoredFile {
        sha256: digit.repeat(64),
        bytes,
        name: name.into(),
        state: state.into(),
        ..StoredFile::default()
    }
}

#[tokio::test]
async fn weights_are_listed_for_people_and_for_programs() {
    let site = Site::start().await;
    site.tandem(&["models", "list"]).await.refused(0, &["No host keeps any weights yet"]);
    let mut kimi = file("kimi.gguf", "a", 3 << 30, "Verified");
    kimi.pinned = "llm/kimi runs here".into();
    let mut adopted = file("tiny.gguf", "b", 5 << 20, "Changed");
    adopted.path = "/models/tiny.gguf".into();
    adopted.last_used = 1_767_225_600;
    site.fake.models(vec![
        said("mac-b", Said::File(adopted), true),
        said("mac-a", Said::File(kimi), false),
        ModelsReply { host: "mac-a".into(), end: true, ..ModelsReply::default() },
    ]);
    let table = site.tandem(&["models", "list"]).await.ok();
    let rows: Vec<&str> = table.lines().collect();
    assert_eq!(rows.len(), 3, "{table}");
    assert_eq!(rows[1], "mac-a  aaaaaaaaaaaa  3.0 GiB  Verified  -     kimi.gguf  llm/kimi runs here");
    assert!(rows[2].starts_with("mac-b  bbbbbbbbbbbb  5.0 MiB  Changed "), "{table}");
    let wide = site.tandem(&["models", "list", "-o", "wide"]).await.ok();
    assert!(wide.contains(&"b".repeat(64)) && wide.contains("/models/tiny.gguf"), "{wide}");
    let list: Value =
        serde_json::from_str(&site.tandem(&["models", "list", "-o", "json"]).await.ok()).unwrap();
    assert_eq!(list["items"][1]["lastUsed"], "2026-01-01T00:00:00Z");
    assert_eq!(list["items"][0]["pinned"], "llm/kimi runs here");
    let names = site.tandem(&["models", "list", "-o", "name"]).await.ok();
    assert_eq!(names, format!("{}\n{}\n", "a".repeat(64), "b".repeat(64)));

    site.fake.put(&host("mac-a", &[]));
    site.fake.models(vec![said("mac-a", Said::Error("the disk is gone".into()), true)]);
    site.tandem(&["models", "list", "--host", "mac-a"])
        .await
        .refused(1, &["error: host mac-a: the disk is gone"]);
    site.tandem(&["models", "list", "--host", "mac-aa"]).await.refused(1, &["mac-a"]);
}

#[tokio::test]
async fn a_pull_tells_of_each_file_and_fails_with_any_host() {
    let site = Site::start().await;
    for name in ["mac-a", "mac-b"] {
        site.fake.put(&host(name, &[]));
    }
    let progress = ModelsProgress { what: "kimi.gguf".into(), done: 1, total: 2, bytes_per_second: 7 };
    let replies = |last: Said| {
        vec![
            said("mac-a", Said::Progress(progress.clone()), false),
            said("mac-a", Said::File(file("kimi.gguf", "a", 3 << 30, "Verified")), true),
            said("mac-b", last, true),
        ]
    };
    let pull = ["models", "pull", "hf://acme/kimi", "--quant", "Q8_0", "--host", "mac-a", "--host", "mac-b"];
    site.fake.models(replies(Said::File(file("kimi.gguf", "a", 3 << 30, "Verified"))));
    let out = site.tandem(&[&pull[..], &["--secret", "hub/token", "-n", "llm"]].concat()).await.ok();
    assert_eq!(out, "mac-a: kimi.gguf (3.0 GiB) verified\nmac-b: kimi.gguf (3.0 GiB) verified\n");
    let asked = site.fake.asked().concat();
    for part in ["[\"mac-a\", \"mac-b\"]", "hf://acme/kimi", "Q8_0", "\"hub\"", "\"token\"", "\"llm\""] {
        assert!(asked.contains(part), "{part} is not in {asked}");
    }
    site.fake.models(replies(Said::Error("the disk is full".into())));
    let failed = site.tandem(&pull).await;
    assert_eq!(failed.out, "mac-a: kimi.gguf (3.0 GiB) verified\n");
    failed.refused(1, &["error: host mac-b: the disk is full"]);
    site.tandem(&["models", "pull", "hf://acme/kimi"]).await.refused(2, &["--quant"]);
    site.tandem(&[&pull[..], &["--secret", "hub"]].concat()).await.refused(2, &["NAME/KEY"]);
}

#[tokio::test]
async fn import_verify_and_prune_ask_for_what_was_said() {
    let site = Site::start().await;
    site.fake.put(&host("mac-a", &[]));
    let digest = "A".repeat(64);
    site.fake.models(vec![said("mac-a", Said::File(file("", "a", 1 << 30, "Removed")), true)]);
    let gone = format!("mac-a: {} (1.0 GiB) removed\n", "a".repeat(64));
    assert_eq!(site.tandem(&["models", "prune", "--keep", "1.5TiB"]).await.ok(), gone);
    let dry = site.tandem(&["models", "prune", "--all", "--dry-run"]).await.ok();
    assert_eq!(dry, gone.replace("removed", "would go"));
    site.fake.models(Vec::new());
    site.tandem(&["models", "verify", &digest]).await.refused(0, &["Nothing was there to do"]);
    site.tandem(&["models", "import", "/models", "--host", "mac-a", "--copy"]).await.refused(0, &[]);
    assert_eq!(
        site.fake.asked(),
        [
            "[] Prune(ModelsPrune { keep_bytes: 1649267441664, all: false, dry_run: false })".to_owned(),
            "[] Prune(ModelsPrune { keep_bytes: 0, all: true, dry_run: true })".to_owned(),
            format!("[] Verify(ModelsVerify {{ sha256: [\"{}\"] }})", "a".repeat(64)),
            "[\"mac-a\"] Import(ModelsImport { path: \"/models\", copy: true })".to_owned(),
        ]
    );
    for arguments in [
        &["models", "prune"][..],
        &["models", "prune", "--all", "--keep", "1GB"],
        &["models", "prune", "--keep", "much"],
        &["models", "import", "/models"],
        &["models", "verify", "abc"],
    ] {
        site.tandem(arguments).await.refused(2, &["error"]);
    }
}

#[tokio::test]
async fn weights_on_their_way_bring_a_column_of_their_own() {
    let site = Site::start().await;
    let still = deployment("default", "kimi", &[]);
    let mut moves = still.clone();
    moves["status"]["placements"][0]["state"] = "Fetching".into();
    moves["status"]["placements"][0]["transfer"] = json!({"doneBytes": 161_u64 << 30, "totalBytes": 375_u64 << 30,
        "bytesPerSecond": 1_200_000_000, "etaSeconds": 252});
    site.fake.put(&still);
    assert!(!site.tandem(&["get", "infd"]).await.ok().contains("PROGRESS"));
    let watching = site.command(&["get", "infd", "-w"]).spawn().unwrap();
    site.fake.watched(1).await;
    site.fake.put(&moves);
    let lines = first_lines(watching, 4).await;
    assert!(!lines[0].contains("PROGRESS") && lines[2].ends_with("PROGRESS"), "{lines:#?}");
    assert!(lines[3].ends_with("42% ███░░░░░ 1.2 GB/s 4m12s"), "{lines:#?}");

    let story = site.tandem(&["describe", "infd/kimi"]).await.ok();
    assert!(story.contains("Fetching  42% ███░░░░░ 1.2 GB/s 4m12s (161.0 GiB of 375.0 GiB)"), "{story}");
    let mut fetching = host("mac-a", &["kimi-0"]);
    fetching["status"]["workloads"][0]["state"] = "Fetching".into();
    fetching["status"]["workloads"][0]["transfer"] = moves["status"]["placements"][0]["transfer"].clone();
    site.fake.put(&fetching);
    for (arguments, part) in [
        (&["get", "infh"][..], "42% ███░░░░░ 1.2 GB/s 4m12s"),
        (&["status"], "42% ███░░░░░ 1.2 GB/s 4m12s"),
        (&["describe", "infh/mac-a"], "Fetching 42% ███░░░░░ 1.2 GB/s 4m12s (161.0 GiB of 375.0 GiB)"),
    ] {
        let text = site.tandem(arguments).await.ok();
        assert!(text.contains(part), "{arguments:?}: {text}");
    }
    site.fake.remove(&fetching);
    let wide = end(site.command(&["get", "infd", "-o", "wide"]).spawn().unwrap()).await.ok();
    assert!(wide.lines().next().is_some_and(|header| header.ends_with("PROGRESS")), "{wide}");
}

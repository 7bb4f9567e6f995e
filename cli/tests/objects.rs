//! What people do with objects: the real program against an operator behind real TLS.
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

mod support;

use serde_json::Value;

use support::{Site, deployment, end, first_lines, host, manifest};

#[tokio::test]
async fn apply_says_what_became_of_each_document() {
    let site = Site::start().await;
    let file = site.file("one.yaml", &manifest("tiny", "Q4_K_M"));
    let apply = ["apply", "-f", &file];
    let dry = site.tandem(&["apply", "-f", &file, "--dry-run"]).await.ok();
    assert_eq!(dry, "inferencedeployment/tiny created (dry run)\n");
    assert!(site.fake.object("InferenceDeployment", "default", "tiny").is_none());
    assert_eq!(site.tandem(&apply).await.ok(), "inferencedeployment/tiny created\n");
    assert_eq!(site.tandem(&apply).await.ok(), "inferencedeployment/tiny unchanged\n");
    let changed = site.tell(&["apply", "-f", "-"], &manifest("tiny", "Q8_0")).await.ok();
    assert_eq!(changed, "inferencedeployment/tiny configured\n");
    let elsewhere = site.tandem(&["-n", "llm", "apply", "-f", &file]).await.ok();
    assert_eq!(elsewhere, "inferencedeployment/tiny created\n");
    assert!(site.fake.object("InferenceDeployment", "llm", "tiny").is_some());
}

#[tokio::test]
async fn one_bad_document_fails_alone_and_is_named_with_file_number_and_path() {
    let site = Site::start().await;
    let misspelt = manifest("b", "Q4_K_M").replace("quant:", "qant:");
    let refused = manifest("c", "Q0_NONE");
    let text = [manifest("a", "F32"), misspelt, refused, manifest("d", "Q4_K_M")].join("---\n");
    let folder = site.file("all/many.yaml", &text).replace("/many.yaml", "");
    site.file("all/README.md", "not a manifest");
    let said = site.tandem(&["apply", "-f", &folder]).await;
    assert_eq!(said.out, "inferencedeployment/a created\ninferencedeployment/d created\n");
    said.refused(
        1,
        &[
            "many.yaml: document 2, InferenceDeployment b, is refused:\n  spec.qant: is not a known field",
            "many.yaml: inferencedeployment/c: spec.quant: Q0_NONE is none: use Q4_K_M",
            "warning: ",
            "many.yaml: inferencedeployment/a: F32 is large",
        ],
    );
}

#[tokio::test]
async fn what_get_prints_can_be_applied_again() {
    let site = Site::start().await;
    let mut tiny = deployment("default", "tiny", &[("Ready", "True")]);
    tiny["metadata"]["resourceVersion"] = "41".into();
    site.fake.put(&tiny);
    let yaml = site.tandem(&["get", "infd/tiny", "-o", "yaml"]).await.ok();
    let changed = yaml.replace("Q4_K_M", "Q8_0");
    assert_eq!(
        site.tell(&["apply", "-f", "-"], &changed).await.ok(),
        "inferencedeployment/tiny configured\n"
    );
    let sent = site.fake.object("InferenceDeployment", "default", "tiny").unwrap();
    assert_eq!(sent["spec"]["quant"], "Q8_0");
    assert_eq!(sent["metadata"], serde_json::json!({"name": "tiny", "namespace": "default"}));
    assert!(sent.get("status").is_none(), "what the operator writes is not sent back to it");
}

#[tokio::test]
async fn manifests_that_cannot_be_read_are_refused_before_anything_is_sent() {
    let site = Site::start().await;
    let good = site.file("good.yaml", &manifest("tiny", "Q4_K_M"));
    let said = site.tandem(&["apply", "-f", &good, "-f", "/nonexistent.yaml"]).await;
    assert_eq!(said.out, "");
    said.refused(1, &["/nonexistent.yaml can't be read", "No such file"]);
    let empty = site.file("empty/x.txt", "").replace("/x.txt", "");
    site.tandem(&["apply", "-f", &empty]).await.refused(1, &["holds no *.yaml"]);
    site.tell(&["apply", "-f", "-"], "").await.refused(1, &["standard input: there is no object"]);
    site.tell(&["apply", "-f", "-"], "a: [1,\nb: 2").await.refused(1, &["document 1 is not YAML", "line"]);
    site.tandem(&["apply"]).await.refused(2, &["--filename"]);
}

#[tokio::test]
async fn get_prints_each_form() {
    let site = Site::start().await;
    site.tandem(&["get", "infd"])
        .await
        .refused(0, &["There is no InferenceDeployment in namespace default."]);
    let tiny = deployment("default", "tiny", &[("Ready", "True"), ("Redundant", "False")]);
    site.fake.put(&tiny);
    site.fake.put(&deployment("llm", "kimi", &[]));
    let table = site.tandem(&["get", "infd"]).await.ok();
    assert_eq!(
        table,
        "NAME  MODEL  QUANT   READY  COVER  REDUNDANT  AGE\ntiny  tiny   Q4_K_M  1/2    None   False      -\n"
    );
    let everywhere = site.tandem(&["get", "deployments", "-A", "-o", "wide"]).await.ok();
    assert!(
        everywhere.starts_with("NAMESPACE  NAME") && everywhere.contains("llm        kimi"),
        "{everywhere}"
    );
    assert!(everywhere.contains("mac-a  http://edge:8080"), "{everywhere}");
    let one: Value =
        serde_json::from_str(&site.tandem(&["get", "infd/tiny", "-o", "json"]).await.ok()).unwrap();
    assert_eq!(one, tiny);
    let list: Value = serde_json::from_str(&site.tandem(&["get", "infd", "-o", "json"]).await.ok()).unwrap();
    assert_eq!((list["kind"].as_str(), &list["items"][0]), (Some("List"), &tiny));
    let yaml = site.tandem(&["get", "infd", "tiny", "-o", "yaml"]).await.ok();
    assert!(
        yaml.starts_with("apiVersion: inference.tandem.dev/v1alpha1\nkind: InferenceDeployment\n"),
        "{yaml}"
    );
    let lines = site.tandem(&["get", "infd", "-A", "-o", "jsonl"]).await.ok();
    assert_eq!(lines.lines().count(), 2);
    let names = site.tandem(&["get", "infd", "-A", "-o", "name"]).await.ok();
    assert_eq!(names, "inferencedeployment/tiny\ninferencedeployment/kimi\n");
}

#[tokio::test]
async fn what_is_not_there_is_answered_with_what_is() {
    let site = Site::start().await;
    site.tandem(&["get", "infd/tiny"])
        .await
        .refused(1, &["there is no InferenceDeployment tiny", "none has been made"]);
    site.fake.put(&deployment("default", "tiny-kimi", &[]));
    site.fake.put(&deployment("llm", "qwen", &[]));
    site.fake.put(&host("mac-a", &[]));
    site.tandem(&["get", "infd/tiny-kmi"]).await.refused(1, &["did you mean tiny-kimi?"]);
    site.tandem(&["describe", "infd/qwen"]).await.refused(1, &["say -n llm"]);
    site.tandem(&["delete", "infd/tiny"]).await.refused(1, &["did you mean tiny-kimi?"]);
    site.tandem(&["scale", "infd/tiny", "--replicas", "2"]).await.refused(1, &["did you mean tiny-kimi?"]);
    site.tandem(&["hosts", "cordon", "mac-b"]).await.refused(1, &["did you mean mac-a?"]);
    site.tandem(&["logs", "infd/tiny"]).await.refused(1, &["did you mean tiny-kimi?"]);
    site.tandem(&["get", "pods"])
        .await
        .refused(2, &["there is no kind `pods`", "infd (InferenceDeployment)"]);
    site.tandem(&["describe", "infd"]).await.refused(2, &["which one?"]);
    site.tandem(&["get", "infd/a", "b"]).await.refused(2, &["two names"]);
}

#[tokio::test]
async fn a_watch_prints_every_version_as_one_line() {
    let site = Site::start().await;
    let mut tiny = deployment("default", "tiny", &[("Ready", "False")]);
    site.fake.put(&tiny);
    let watch =
        site.command(&["get", "infd/tiny", "--watch", "-o", "jsonl", "--timeout", "60s"]).spawn().unwrap();
    site.fake.watched(1).await;
    site.fake.put(&deployment("default", "other", &[]));
    tiny["status"]["ready"] = "2/2".into();
    site.fake.put(&tiny);
    site.fake.remove(&tiny);
    let seen: Vec<Value> =
        first_lines(watch, 3).await.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    let ready: Vec<&str> = seen.iter().map(|object| object["status"]["ready"].as_str().unwrap()).collect();
    assert_eq!(ready, ["1/2", "2/2", "2/2"]);
    assert!(seen[1]["metadata"]["deletionTimestamp"].is_null());
    assert!(seen[2]["metadata"]["deletionTimestamp"].is_string(), "what is gone says so");
}

#[tokio::test]
async fn a_watch_ends_well_when_its_time_is_over() {
    let site = Site::start().await;
    let said = site.tandem(&["get", "infd", "-w", "-o", "jsonl", "--timeout", "1s"]).await;
    assert_eq!(said.ok(), "");
    site.tandem(&["get", "infd", "--timeout", "1s"]).await.refused(2, &["--watch"]);
}

#[tokio::test]
async fn a_watched_table_grows_in_its_columns() {
    let site = Site::start().await;
    site.fake.put(&deployment("default", "tiny-kimi", &[]));
    let watch = site.command(&["get", "infd", "-w"]).spawn().unwrap();
    site.fake.watched(1).await;
    let late = deployment("default", "b", &[]);
    site.fake.put(&late);
    site.fake.remove(&late);
    assert_eq!(
        first_lines(watch, 4).await,
        [
            "NAME       MODEL      QUANT   READY  COVER  REDUNDANT  AGE",
            "tiny-kimi  tiny-kimi  Q4_K_M  1/2    None   -          -",
            "b          b          Q4_K_M  1/2    None   -          -",
            "inferencedeployment/b is gone",
        ]
    );
    site.tandem(&["get", "events", "-w"]).await.refused(2, &["watch the object"]);
}

#[tokio::test]
async fn wait_ends_when_a_condition_holds_now_or_later() {
    let site = Site::start().await;
    let wait = ["wait", "infd/tiny", "--for", "condition=Redundant", "--timeout", "30s"];
    let waiting = site.command(&wait).spawn().unwrap();
    site.fake.watched(1).await;
    site.fake.put(&deployment("default", "tiny", &[("Redundant", "False")]));
    let mut old = deployment("default", "tiny", &[("Redundant", "True")]);
    old["metadata"]["generation"] = 2.into();
    site.fake.put(&old);
    let early = site.tandem(&["wait", "infd/tiny", "--for", "condition=Redundant", "--timeout", "5s"]).await;
    early.refused(1, &["inferencedeployment/tiny after 5s: Redundant is True for the manifest before"]);
    site.fake.put(&deployment("default", "tiny", &[("Redundant", "True")]));
    assert_eq!(end(waiting).await.ok(), "inferencedeployment/tiny has Redundant=True\n");
    assert_eq!(site.tandem(&wait).await.ok(), "inferencedeployment/tiny has Redundant=True\n");
}

#[tokio::test]
async fn a_wait_in_vain_says_how_it_stands() {
    let site = Site::start().await;
    site.fake.put(&deployment("default", "tiny", &[("Redundant", "False")]));
    let wait = async |object: &str, goal: &str| {
        site.tandem(&["wait", object, "--for", goal, "--timeout", "5s"]).await
    };
    let (absent, bad, unknown, there, senseless) = tokio::join!(
        wait("infd/other", "condition=Ready"),
        wait("infd/tiny", "condition=redundant"),
        wait("infd/tiny", "condition=Ready"),
        wait("infd/tiny", "delete"),
        wait("infd/tiny", "readiness"),
    );
    absent.refused(1, &["inferencedeployment/other after 5s: it does not exist"]);
    bad.refused(1, &["redundant is False (HostLost): mac-b is silent"]);
    unknown.refused(1, &["it has no condition Ready"]);
    there.refused(1, &["it still exists"]);
    senseless.refused(2, &["condition=NAME"]);
}

#[tokio::test]
async fn a_wait_outlives_the_operator_and_learns_what_it_missed() {
    let site = Site::start().await;
    let tiny = deployment("default", "tiny", &[]);
    site.fake.put(&tiny);
    let waiting =
        site.command(&["wait", "infd/tiny", "--for", "delete", "--timeout", "30s"]).spawn().unwrap();
    site.fake.watched(1).await;
    site.fake.end_watches(|fake| fake.remove(&tiny));
    assert_eq!(end(waiting).await.ok(), "inferencedeployment/tiny is gone\n");
    assert_eq!(
        site.tandem(&["wait", "infd/tiny", "--for", "delete"]).await.ok(),
        "inferencedeployment/tiny is gone\n"
    );
}

#[tokio::test]
async fn describe_tells_the_story_and_events_the_history() {
    let site = Site::start().await;
    site.fake.put(&deployment("default", "tiny", &[("Redundant", "False")]));
    site.fake.put(&host("mac-a", &["default-tiny-0"]));
    let story = site.tandem(&["describe", "infd/tiny"]).await.ok();
    for part in [
        "Copies:       1/2 ready, 2 placed",
        "HostLost  mac-b is silent",
        "mac-a  default-tiny-0  1      Ready",
    ] {
        assert!(story.contains(part), "{part:?} is not in {story}");
    }
    let story = site.tandem(&["describe", "infh", "mac-a"]).await.ok();
    assert!(story.contains("default-tiny-0  default/tiny  1      Ready"), "{story}");
    let events = site.tandem(&["get", "events"]).await.ok();
    let objects: Vec<&str> =
        events.lines().skip(1).filter_map(|line| line.split_whitespace().nth(4)).collect();
    assert_eq!(objects, ["inferencehost/mac-a", "inferencedeployment/tiny"], "oldest first: {events}");
    let one = site.tandem(&["get", "events", "infd/tiny", "-o", "jsonl"]).await.ok();
    let one: Value = serde_json::from_str(&one).unwrap();
    assert_eq!((one["count"].as_u64(), one["object"].as_str()), (Some(2), Some("inferencedeployment/tiny")));
}

#[tokio::test]
async fn scale_and_delete_do_as_they_say() {
    let site = Site::start().await;
    let tiny = deployment("default", "tiny", &[]);
    site.fake.put(&tiny);
    let scaled = site.tandem(&["scale", "infd/tiny", "--replicas", "3"]).await.ok();
    assert_eq!(scaled, "inferencedeployment/tiny scaled to 3\n");
    let now = site.fake.object("InferenceDeployment", "default", "tiny").unwrap();
    assert_eq!(now["spec"]["replicas"], 3);
    site.tandem(&["scale", "infd/tiny", "--replicas", "-1"]).await.refused(2, &["-1"]);
    site.tandem(&["scale", "infh/a", "--replicas", "1"]).await.refused(2, &["only deployments"]);
    assert_eq!(site.tandem(&["delete", "infd", "tiny"]).await.ok(), "inferencedeployment/tiny deleted\n");
    site.fake.put(&tiny);
    let file =
        site.file("two.yaml", &format!("{}---\n{}", manifest("gone", "Q4_K_M"), manifest("tiny", "Q4_K_M")));
    let said = site.tandem(&["delete", "-f", &file]).await;
    assert_eq!(said.out, "inferencedeployment/tiny deleted\n");
    said.refused(1, &["there is no InferenceDeployment gone"]);
}

//! What people do with hosts, tokens and logs, and how mistakes of configuration read.
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

mod support;

use std::time::SystemTime;

use serde_json::json;
use tandem_control_api::{AuthorityParty, AuthorityStatus, AuthoritySummary, LogChunk, Role};
use tandem_pki::{CertificateAuthority, Identity};
use tokio::net::TcpListener;

use support::{Site, command, credentials_of_admin, deployment, end, host, run};

#[tokio::test]
async fn hosts_are_listed_cordoned_and_taken_back() {
    let site = Site::start().await;
    site.tandem(&["hosts", "list"]).await.refused(0, &["No host has joined yet", "tandem join-token"]);
    site.fake.put(&host("mac-a", &["tiny-0"]));
    assert_eq!(
        site.tandem(&["hosts", "list"]).await.ok(),
        "NAME   READY  SCHEDULABLE  DEVICES  MEMORY    WORKLOADS  AGE\n\
         mac-a  True   yes          CPU      16.0 GiB  1          -\n"
    );
    assert_eq!(site.tandem(&["hosts", "list", "-o", "name"]).await.ok(), "inferencehost/mac-a\n");
    assert_eq!(site.tandem(&["hosts", "cordon", "mac-a"]).await.ok(), "inferencehost/mac-a cordoned\n");
    let unschedulable =
        || site.fake.object("InferenceHost", "", "mac-a").unwrap()["spec"]["unschedulable"].clone();
    assert_eq!(unschedulable(), true);
    assert_eq!(site.tandem(&["hosts", "uncordon", "mac-a"]).await.ok(), "inferencehost/mac-a uncordoned\n");
    assert_eq!(unschedulable(), false);
}

#[tokio::test]
async fn a_revocation_says_what_it_took_and_how_to_come_back() {
    let site = Site::start().await;
    site.fake.put(&host("mac-a", &[]));
    let text = site.tandem(&["hosts", "revoke", "mac-a"]).await.ok();
    assert!(text.contains("host/mac-a revoked: 2 certificates are no longer trusted"), "{text}");
    assert!(text.contains("tandem join-token --role host --name mac-a"), "{text}");
    let text = site.tandem(&["hosts", "revoke", "--gateway", "edge"]).await.ok();
    assert!(text.contains("--role gateway --name edge"), "{text}");
    assert!(site.fake.asked().iter().any(|asked| asked == "revoke ROLE_GATEWAY edge"));
    site.tandem(&["hosts", "revoke", "mac-z"]).await.refused(1, &["mac-z"]);
}

#[tokio::test]
async fn a_replacement_of_the_authority_is_begun_followed_and_waited_for() {
    let site = Site::start().await;
    let authority = |name: &str, signs| AuthoritySummary {
        fingerprint: name.repeat(32),
        subject: "Tandem".into(),
        not_after: 2_000_000_000,
        signs,
    };
    let of = |phase: &str, authorities: &[AuthoritySummary], lacks: &str| AuthorityStatus {
        phase: phase.into(),
        since: 1_000,
        authorities: authorities.to_vec(),
        parties: vec![AuthorityParty {
            role: Role::Host.into(),
            name: "mac-c".into(),
            lacks: lacks.into(),
            waited_for: true,
            last_heard: 0,
        }],
    };
    let (old, new) = (authority("0a", true), authority("0b", false));
    let introducing = of("Introducing", &[old.clone(), new.clone()], "does not trust the new authority yet");
    let stable = |one: AuthoritySummary| AuthorityStatus {
        parties: Vec::new(),
        since: 0,
        ..of("Stable", &[AuthoritySummary { signs: true, ..one }], "")
    };
    site.fake.authorities(vec![stable(old)]);
    let text = site.tandem(&["authority", "status"]).await.ok();
    assert!(text.contains(&"0a".repeat(32)) && text.contains("2033-05-18"), "{text}");

    site.fake.authorities(vec![introducing.clone()]);
    let text =
        site.tandem(&["authority", "rotate", "--without", "mac-a", "--without", "gateway/edge"]).await.ok();
    assert!(text.contains("waits for host/mac-c") && text.contains("tandem authority status"), "{text}");
    assert!(site.fake.asked().contains(&"rotate [\"ROLE_HOST mac-a\", \"ROLE_GATEWAY edge\"]".to_owned()));
    let json = site.tandem(&["authority", "status", "-o", "json"]).await.ok();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json["phase"], &json["parties"][0]["name"]), (&json!("Introducing"), &json!("host/mac-c")));
    let said = site.tandem(&["authority", "rotate", "--wait", "--timeout", "2s"]).await;
    said.refused(1, &["waits for host/mac-c after 2s", "--without NAME"]);

    site.fake.authorities(vec![introducing, stable(new)]);
    let text = site.tandem(&["authority", "rotate", "--wait"]).await.ok();
    assert_eq!(text, format!("the authority is replaced: {}\n", "0b".repeat(32)));
}

#[tokio::test]
async fn admins_are_made_with_a_configuration_and_revoked() {
    let site = Site::start().await;
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("ada");
    let path = folder.to_str().unwrap();
    let text = site.tandem(&["admins", "create", "ada", "--folder", path]).await.ok();
    assert!(text.contains("admin/ada created"), "{text}");
    let made = tandem_pki::Credentials::load(&folder).unwrap();
    assert_eq!(made.identity().unwrap(), Identity::admin("ada").unwrap());
    let yaml = std::fs::read_to_string(folder.join("tandem.yaml")).unwrap();
    assert!(yaml.contains(&format!("operator: {}", site.url)) && yaml.contains("credentials: ."), "{yaml}");
    site.tandem(&["admins", "create", "ada", "--folder", path]).await.refused(1, &["is there already"]);
    let table = site.tandem(&["admins", "list"]).await.ok();
    assert!(table.starts_with("NAME  CERTIFICATES  NOT AFTER") && table.contains("ada"), "{table}");
    site.tandem(&["admins", "revoke", "ada"]).await.refused(1, &["--force"]);
    let text = site.tandem(&["admins", "revoke", "ada", "--force"]).await.ok();
    assert_eq!(text, "admin/ada revoked: 2 certificates are no longer trusted\n");
}

#[tokio::test]
async fn a_backup_is_private_and_overwrites_nothing() {
    use std::os::unix::fs::PermissionsExt as _;
    let site = Site::start().await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("kept");
    let path = file.to_str().unwrap();
    let text = site.tandem(&["backup", path]).await.ok();
    assert!(text.contains("written: 9 bytes"), "{text}");
    assert_eq!(std::fs::read(&file).unwrap(), b"all of it");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o077, 0);
    site.tandem(&["backup", path]).await.refused(1, &["choose a name that is not there yet"]);
    assert_eq!(std::fs::read(&file).unwrap(), b"all of it");
}

#[tokio::test]
async fn a_drain_ends_when_nothing_is_left_there() {
    let site = Site::start().await;
    site.fake.put(&host("mac-a", &["tiny-0"]));
    let draining = site.command(&["hosts", "drain", "mac-a"]).spawn().unwrap();
    site.fake.watched(1).await;
    let mut ending = host("mac-a", &["tiny-0"]);
    ending["spec"]["workloads"] = json!([]);
    site.fake.put(&ending);
    ending["status"]["workloads"][0]["state"] = "Stopped".into();
    site.fake.put(&ending);
    assert_eq!(end(draining).await.ok(), "inferencehost/mac-a drained\n");

    site.fake.put(&host("mac-c", &["kimi-1", "kimi-0"]));
    let said = site.tandem(&["hosts", "drain", "mac-c", "--timeout", "3s"]).await;
    said.refused(1, &["mac-c still runs kimi-0, kimi-1 after 3s", "tandem hosts uncordon mac-c"]);
}

#[tokio::test]
async fn a_token_stands_alone_on_standard_output() {
    let site = Site::start().await;
    assert_eq!(site.tandem(&["join-token", "--role", "host"]).await.ok(), "the-token\n");
    let gateway = ["join-token", "--role", "gateway", "--name", "edge", "--ttl", "10m"];
    assert_eq!(site.tandem(&gateway).await.ok(), "the-token\n");
    assert_eq!(site.fake.asked(), ["ROLE_HOST \"\" 3600", "ROLE_GATEWAY \"edge\" 600"]);
    site.tandem(&["join-token", "--ttl", "0s"]).await.refused(1, &["longer --ttl"]);
    site.tandem(&["join-token", "--role", "worker"]).await.refused(2, &["host, gateway"]);
}

#[tokio::test]
async fn logs_put_lines_together_and_say_whose_they_are() {
    let site = Site::start().await;
    site.fake.put(&deployment("default", "tiny", &[]));
    let chunk = |host: &str, text: &str, end| LogChunk {
        host: host.into(),
        workload: "tiny-0".into(),
        text: text.into(),
        end,
        ..LogChunk::default()
    };
    site.fake.log(vec![
        chunk("mac-a", "loading\nser", false),
        chunk("mac-b", "loading\n", true),
        chunk("mac-a", "ving\n", true),
    ]);
    assert_eq!(
        site.tandem(&["logs", "infd/tiny", "-f", "--tail", "7"]).await.ok(),
        "mac-a/tiny-0: loading\nmac-b/tiny-0: loading\nmac-a/tiny-0: serving\n"
    );
    site.fake.log(Vec::new());
    site.tandem(&["logs", "host/mac-a/tiny-0"]).await.refused(0, &["Nothing has been logged"]);
    site.tandem(&["logs", "host/mac-a"]).await.refused(0, &["tandem describe host/mac-a"]);
    assert_eq!(
        site.fake.asked(),
        [
            "Some(\"tiny\") \"\" \"\" 7 true",
            "None \"mac-a\" \"tiny-0\" 100 false",
            "None \"mac-a\" \"\" 100 false"
        ]
    );
    site.tandem(&["logs", "infd/tiny/0"]).await.refused(2, &["host/HOST/WORKLOAD"]);
}

#[tokio::test]
async fn status_puts_what_is_wrong_first() {
    let site = Site::start().await;
    let fresh = site.tandem(&["status"]).await.ok();
    assert!(
        fresh.contains("leads in term 2, store: embedded") && fresh.contains("Next: `tandem join-token`"),
        "{fresh}"
    );
    site.fake.put(&host("mac-a", &[]));
    let mut failed = host("mac-b", &["tiny-1"]);
    failed["status"]["workloads"][0]["state"] = "Failed".into();
    failed["status"]["workloads"][0]["message"] = "the disk is full".into();
    site.fake.put(&failed);
    site.fake.put(&deployment("default", "tiny", &[("Ready", "True"), ("Redundant", "False")]));
    let text = site.tandem(&["status"]).await.ok();
    let wrong = [
        "host mac-b is not connected",
        "tiny-1 on host mac-b has failed: the disk is full",
        "no gateway is connected",
        "default/tiny is not Redundant (HostLost): mac-b is silent",
        "NAMESPACE",
    ];
    let places: Vec<Option<usize>> = wrong.iter().map(|part| text.find(part)).collect();
    assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{places:?} in {text}");
    site.fake.gateway("edge", "http://edge:8080");
    let text = site.tandem(&["status"]).await.ok();
    assert!(text.contains("Gateways 1 of 1 connected: http://edge:8080"), "{text}");
}

#[tokio::test]
async fn each_way_of_not_reaching_an_operator_says_what_to_do() {
    let site = Site::start().await;
    let status = async |config| run(command(config, &["status"])).await;
    status(std::path::PathBuf::from("/nonexistent/tandem.yaml"))
        .await
        .refused(1, &["/nonexistent/tandem.yaml does not exist", "DATA-DIR/admin/tandem.yaml"]);

    let admin = site.credentials(&Identity::admin("admin").unwrap());
    // Bound and dropped: nobody listens there.
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let nobody = site.configure("nobody", &admin, &format!("https://{free}"));
    status(nobody)
        .await
        .refused(1, &["no operator answers at https://127.0.0.1", "check that it runs", "refused"]);

    let host = site.configure("host", &site.credentials(&Identity::host("mac-a").unwrap()), &site.url);
    status(host).await.refused(1, &["the operator refuses these credentials", "host", "DATA-DIR/admin"]);

    let other = CertificateAuthority::create(SystemTime::now()).unwrap();
    let foreign = credentials_of_admin(&other);
    let strange = site.configure("strange", &foreign, &site.url);
    status(strange).await.refused(1, &["not of one cluster", "DATA-DIR/admin"]);

    let mut mixed = foreign.clone();
    mixed.ca_pem.clone_from(&admin.ca_pem);
    status(site.configure("mixed", &mixed, &site.url)).await.refused(1, &["credentials", "DATA-DIR/admin"]);

    let day = std::time::Duration::from_secs(86_400);
    let expired = CertificateAuthority::create(SystemTime::now() - 9 * day).unwrap();
    let expired =
        expired.credentials(&Identity::admin("a").unwrap(), &[], SystemTime::now() - 9 * day, day).unwrap();
    status(site.configure("expired", &expired, &site.url))
        .await
        .refused(1, &["has expired", "when it starts"]);

    let bad = site.file("bad/tandem.yaml", "operator: https://x\ncredential: .\n");
    status(bad.into()).await.refused(1, &["is not a configuration", "credential"]);
}

#[tokio::test]
async fn completion_and_version_need_no_operator() {
    for (shell, part) in [("bash", "complete -F"), ("zsh", "#compdef tandem"), ("fish", "complete -c tandem")]
    {
        let script = run(command("/nonexistent", &["completion", shell])).await.ok();
        for word in [part, "join-token", "secret", "models", "prune", "dry-run"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
    let version = run(command("/nonexistent", &["--version"])).await.ok();
    assert!(version.starts_with("tandem "), "{version}");
}

#[tokio::test]
async fn as_kubectl_tandem_it_is_a_plugin() {
    let dir = tempfile::tempdir().unwrap();
    let plugin = dir.path().join("kubectl-tandem");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_tandem"), &plugin).unwrap();
    let output = tokio::process::Command::new(&plugin).args(["get", "--help"]).output().await.unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    assert!(
        help.contains("Usage: kubectl tandem get") && help.contains("\n  kubectl tandem get infd\n"),
        "{help}"
    );
}

//! The operator as a process: killed at any moment, started again, and never twice on one folder.

#![allow(clippy::unwrap_used, reason = "helpers of tests, outside of any test function")]

mod world;

use std::collections::HashMap;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tandem_control_api::{Role, SetSecretRequest, StatusRequest};
use tandem_pki::Credentials;
use world::{Machine, World, condition, within};

const MEMORY: u64 = 4 << 30;

struct Process(Child);

impl Process {
    fn start(data: &Path, port: u16) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tandem-operator"));
        command.arg("run").arg("--data-dir").arg(data).args(["--listen", &format!("127.0.0.1:{port}")]);
        Self(command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }

    /// One that logs everything into a file.
    fn start_telling_all(data: &Path, port: u16, log: &Path) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tandem-operator"));
        command.arg("run").arg("--data-dir").arg(data).args(["--listen", &format!("127.0.0.1:{port}")]);
        command.env("RUST_LOG", "trace").stdin(Stdio::null()).stderr(std::fs::File::create(log).unwrap());
        Self(command.spawn().unwrap())
    }

    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.0.try_wait().is_ok_and(|ended| ended.is_none()) {
            self.kill();
        }
    }
}

fn free_port() -> u16 {
    tandem_servers::free_port([127, 0, 0, 1].into()).unwrap()
}

async fn answers(url: &str, admin: &Path) -> Credentials {
    within("the operator answers", async {
        loop {
            if let Ok(credentials) = Credentials::load(admin) {
                let mut fleet =
                    tandem_control_api::fleet_client::FleetClient::new(world::channel(url, &credentials));
                if fleet.status(StatusRequest {}).await.is_ok() {
                    return credentials;
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await
}

fn is_redundant(object: &Value) -> bool {
    let current = object["status"]["observedGeneration"] == object["metadata"]["generation"];
    current && condition(object, "Redundant")["status"] == "True"
}

#[tokio::test]
async fn sigkill_and_a_new_start_lose_nothing() {
    tandem_pki::install_tls_provider();
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("operator");
    let port = free_port();
    let url = format!("https://127.0.0.1:{port}");
    let mut process = Process::start(&data, port);
    let admin = answers(&url, &data.join("admin")).await;
    let world = World::of_process(dir, &url, admin);

    let mut machines = Vec::new();
    for name in ["a", "b", "c"] {
        machines.push(world.machine(name, MEMORY).await);
    }
    let unspent = world.token(Role::Host, "").await;
    world.apply(world.deployment("tiny", 1)).await.unwrap();
    let before = world.until("InferenceDeployment", "tiny", "redundancy", is_redundant).await;
    let ran: Vec<_> = machines.iter().map(Machine::runs).collect();

    for _ in 0..3 {
        let term = machines[0].told()["term"].as_u64();
        process.kill();
        process = Process::start(&data, port);
        answers(&url, &data.join("admin")).await;
        for machine in &mut machines {
            machine.spec("a newer term", |spec| spec["term"].as_u64() > term).await;
        }
        assert_eq!(machines.iter().map(Machine::runs).collect::<Vec<_>>(), ran);
    }
    let after = world.until("InferenceDeployment", "tiny", "redundancy", is_redundant).await;
    assert_eq!(after["metadata"]["uid"], before["metadata"]["uid"]);
    assert_eq!(after["metadata"]["generation"], before["metadata"]["generation"]);
    assert_eq!(after["status"]["placements"], before["status"]["placements"]);
    world.join_with(&unspent, Role::Host, "d").await.unwrap();
}

#[tokio::test]
async fn a_secret_is_in_no_line_of_the_log() {
    const VALUE: &str = "hf_s3cr3t-0ne";
    tandem_pki::install_tls_provider();
    let dir = tempfile::tempdir().unwrap();
    let (data, log) = (dir.path().join("operator"), dir.path().join("log"));
    let port = free_port();
    let url = format!("https://127.0.0.1:{port}");
    let mut process = Process::start_telling_all(&data, port, &log);
    let admin = answers(&url, &data.join("admin")).await;
    let world = World::of_process(dir, &url, admin);
    let mut machine = world.machine("a", MEMORY).await;
    let set = |key: &str| SetSecretRequest {
        namespace: "llm".into(),
        name: "hub".into(),
        values: HashMap::from([(key.to_owned(), VALUE.to_owned())]),
    };
    world.secrets().set(set("a bad key")).await.unwrap_err();
    world.secrets().set(set("token")).await.unwrap();
    let mut manifest = world.deployment("tiny", 0);
    manifest["spec"]["model"]["credentials"] = json!({"secretRef": {"name": "hub", "key": "token"}});
    world.apply(manifest).await.unwrap();
    machine.supply("the secret", |supply| supply.credentials.iter().any(|c| c.secret == VALUE)).await;
    process.kill();
    let log = std::fs::read_to_string(&log).unwrap();
    assert!(log.contains("set a secret") && log.contains("TRACE"), "everything is logged");
    assert!(!log.contains(VALUE), "{}", log.lines().find(|line| line.contains(VALUE)).unwrap_or_default());
}

/// Kills fall at moments that differ by a few milliseconds, all over applying, planning and writing.
#[tokio::test]
async fn killed_at_any_moment_it_goes_on_where_it_was() {
    tandem_pki::install_tls_provider();
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("operator");
    let port = free_port();
    let url = format!("https://127.0.0.1:{port}");
    let mut process = Process::start(&data, port);
    let admin = answers(&url, &data.join("admin")).await;
    let world = World::of_process(dir, &url, admin);
    let mut machines = Vec::new();
    for name in ["a", "b", "c"] {
        machines.push(world.machine(name, MEMORY).await);
    }
    for round in 0..12u64 {
        let name = format!("d-{}", round % 3);
        let manifest = world.deployment(&name, u32::from(round % 2 == 0));
        // Whether the operator got to answer is left open: what it answered has to be true afterwards.
        let applied = world.apply(manifest.clone()).await.is_ok();
        tokio::time::sleep(Duration::from_millis(round * 7 % 40)).await;
        process.kill();
        process = Process::start(&data, port);
        answers(&url, &data.join("admin")).await;
        let stored = world.get("InferenceDeployment", "llm", &name).await;
        let failures = |object: &Value| object["spec"]["redundancy"]["hostFailures"].clone();
        assert!(!applied || stored.is_some_and(|stored| failures(&stored) == failures(&manifest)));
    }
    for name in ["d-0", "d-1", "d-2"] {
        world.apply(world.deployment(name, 1)).await.unwrap();
        world.until("InferenceDeployment", name, "redundancy", is_redundant).await;
    }
    let mut runs: Vec<String> = machines.iter().flat_map(Machine::runs).map(|(id, _)| id).collect();
    runs.sort();
    let copies = runs.len();
    runs.dedup();
    assert_eq!((copies, runs.len()), (6, 6), "two copies of each, none twice: {runs:?}");
}

/// A machine that sleeps stops operator and agents alike: their silence was nobody's.
#[tokio::test]
async fn a_pause_of_the_operator_is_no_silence_of_its_hosts() {
    tandem_pki::install_tls_provider();
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("operator");
    let port = free_port();
    let url = format!("https://127.0.0.1:{port}");
    let process = Process::start(&data, port);
    let admin = answers(&url, &data.join("admin")).await;
    let world = World::of_process(dir, &url, admin);
    let machine = world.machine("a", MEMORY).await;
    let is_ready = |host: &Value| condition(host, "Ready")["status"] == "True";
    let before = world.until("InferenceHost", "a", "Ready", is_ready).await;

    let pid = nix::unistd::Pid::from_raw(process.0.id().try_into().unwrap());
    machine.mute(true);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP).unwrap();
    let silent_after = tandem_operator::Timing::default().silent_after;
    tokio::time::sleep(silent_after + Duration::from_secs(2)).await;
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGCONT).unwrap();

    // A change makes the operator look at everything, before the host has said a word.
    world.apply(world.deployment("tiny", 0)).await.unwrap();
    world.until("InferenceDeployment", "tiny", "a look", |o| o["status"].is_object()).await;
    machine.mute(false);
    world.until("InferenceDeployment", "tiny", "Ready", is_ready).await;
    assert_eq!(machine.runs().len(), 1);
    let after = world.get("InferenceHost", "", "a").await.unwrap();
    assert_eq!(condition(&after, "Ready"), condition(&before, "Ready"), "no turn in between");
}

/// A full disk refuses what it can't keep, keeps what was said, and is used again once there is room.
#[tokio::test]
#[cfg(target_os = "linux")]
async fn a_full_disk_refuses_writes_and_loses_nothing() {
    tandem_pki::install_tls_provider();
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("operator");
    let port = free_port();
    let url = format!("https://127.0.0.1:{port}");
    // Ignoring SIGXFSZ makes a write beyond the limit an error instead of a death.
    let program = env!("CARGO_BIN_EXE_tandem-operator");
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' XFSZ; exec \"$@\"", "sh", program, "run", "--data-dir"]).arg(&data);
    command.args(["--listen", &format!("127.0.0.1:{port}")]).stdin(Stdio::null()).stderr(Stdio::null());
    let mut process = Process(command.spawn().unwrap());
    let admin = answers(&url, &data.join("admin")).await;
    let world = World::of_process(dir, &url, admin);
    let pid = process.0.id();
    let limit = |bytes: u64| limit_file_size(pid, bytes);
    let room = std::fs::metadata(data.join("store.redb")).unwrap().len();
    assert!(limit(room), "prlimit of util-linux sets the limit");

    let manifest = |n: usize| {
        let mut manifest = world.deployment(&format!("d-{n}"), 0);
        manifest["metadata"]["annotations"] = serde_json::json!({"note": "x".repeat(200_000)});
        manifest
    };
    let mut kept = 0;
    let refusal = loop {
        match world.apply(manifest(kept)).await {
            Ok(_) => kept += 1,
            Err(status) => break status,
        }
        assert!(kept < 100, "the disk never gets full");
    };
    assert_eq!(refusal.code(), tonic::Code::Internal, "{refusal}");
    assert!(
        world.get("InferenceDeployment", "llm", &format!("d-{kept}")).await.is_none(),
        "refused is not there"
    );

    assert!(limit(u64::MAX));
    world.apply(manifest(kept)).await.unwrap();
    process.kill();
    let _process = Process::start(&data, port);
    answers(&url, &data.join("admin")).await;
    for n in 0..=kept {
        assert!(world.get("InferenceDeployment", "llm", &format!("d-{n}")).await.is_some(), "d-{n}");
    }
}

/// Limits how long files of another process may grow.
#[cfg(target_os = "linux")]
fn limit_file_size(pid: u32, bytes: u64) -> bool {
    let bytes = if bytes == u64::MAX { "unlimited".to_owned() } else { bytes.to_string() };
    let mut command = Command::new("prlimit");
    command.args(["--pid", &pid.to_string(), &format!("--fsize={bytes}:unlimited")]);
    command.status().is_ok_and(|status| status.success())
}

#[tokio::test]
async fn a_second_process_on_the_same_folder_says_why_it_ends() {
    tandem_pki::install_tls_provider();
    let dir = tempfile::tempdir().unwrap();
    let (data, port) = (dir.path().join("operator"), free_port());
    let _first = Process::start(&data, port);
    answers(&format!("https://127.0.0.1:{port}"), &data.join("admin")).await;
    let second = Command::new(env!("CARGO_BIN_EXE_tandem-operator"))
        .arg("run")
        .arg("--data-dir")
        .arg(&data)
        .args(["--listen", "127.0.0.1:0"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(!second.status.success());
    assert!(said.contains("in use by another tandem-operator"), "{said}");
}

#[test]
fn as_many_files_may_be_open_as_the_system_lets_and_few_are_said() {
    let dir = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    // It ends at once, since its port is taken.
    let said = |limits: &str| {
        let output = Command::new("sh")
            .args(["-c", &format!("ulimit {limits} && exec \"$0\" \"$@\"")])
            .args([env!("CARGO_BIN_EXE_tandem-operator"), "run", "--listen"])
            .arg(taken.local_addr().unwrap().to_string())
            .arg("--data-dir")
            .arg(dir.path())
            .env("RUST_LOG", "info")
            .output()
            .unwrap();
        String::from_utf8(output.stderr).unwrap()
    };
    let few = said("-n 1000");
    assert!(few.contains("WARN") && few.contains("open_files=1000") && few.contains("LimitNOFILE"), "{few}");
    let raised = said("-Sn 256 && ulimit -Hn 5000");
    assert!(raised.contains("INFO") && raised.contains("open_files=5000"), "{raised}");
}

#[tokio::test]
async fn a_port_that_is_taken_is_named() {
    tandem_pki::install_tls_provider();
    let dir = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let second = Command::new(env!("CARGO_BIN_EXE_tandem-operator"))
        .arg("run")
        .arg("--data-dir")
        .arg(dir.path())
        .args(["--listen", &taken.local_addr().unwrap().to_string()])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(!second.status.success());
    assert!(said.contains("can't listen on 127.0.0.1"), "{said}");
}

//! Agents as processes, under an operator in this process, with real mTLS, runners and workers.
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

mod cluster;
mod weights;
#[path = "cluster/worker.rs"]
mod worker;

use std::fs;

use cluster::{Cluster, LIMIT, MODEL, executable, the_workload};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use tandem_control_api::operator_message::Message as Down;
use tandem_control_api::{LogsRequest, OperatorMessage, Role};
use tandem_crds::WorkloadState::{Failed, Ready, Warm};
use tandem_crds::{InferenceHostStatus, WorkloadMode, WorkloadSpec, WorkloadStatus};
use tandem_worker_api::{FileStamp, WorkerSpec};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::time::timeout;

/// Not a test of its own: agents start it as their worker.
#[test]
#[ignore = "the worker program of the other tests"]
fn worker_program() {
    let Ok(spec) = std::env::var("STUB_SPEC") else { return };
    tokio::runtime::Runtime::new().unwrap().block_on(worker::serve(&spec));
}

fn ready(workload: &WorkloadStatus) -> bool {
    workload.state == Ready
}

async fn serving() -> (Cluster, WorkloadStatus) {
    serving_in(Cluster::start().await).await
}

async fn serving_in(mut cluster: Cluster) -> (Cluster, WorkloadStatus) {
    let workload = cluster.workload(1);
    cluster.order(1, 1, vec![workload]).await;
    cluster.start_agent();
    let status = cluster.until_workload("ready", ready).await;
    (cluster, status)
}

#[tokio::test]
async fn a_host_joins_obeys_and_reports() {
    let (cluster, status) = serving().await;
    assert_eq!(status.server_name.as_deref(), Some("w.host-a.worker.tandem.internal"));
    assert_eq!((status.numerics_id.as_deref(), status.restarts, &status.last_exit), (Some("stub"), 0, &None));
    let report = cluster.until("complete", |report| !report.devices.is_empty()).await;
    assert_eq!((report.observed_term, report.observed_generation), (Some(1), Some(1)));
    assert_eq!(report.labels["zone"], "b");
    assert!(report.memory.is_some() && report.disk.is_some() && report.conditions.is_empty());
    assert_eq!((cluster.joins(), cluster.certified()), (1, vec![(Role::Worker, "w".to_owned())]));
    // A second agent would obey the same orders a second time.
    let second = timeout(LIMIT, cluster.command().output()).await.unwrap().unwrap();
    assert!(!second.status.success());
    assert!(String::from_utf8_lossy(&second.stderr).contains("another agent runs"));
}

/// The operators' common address may lead to one that is dead; the session's connection does not.
#[tokio::test]
async fn certificates_are_asked_for_over_the_sessions_connection_and_over_another_when_that_brings_none() {
    let (cluster, _) = serving().await;
    assert_eq!(cluster.asked_in_session(), [true]);
    let cluster = Cluster::start().await;
    cluster.refuse_certificates_in_session();
    let (cluster, _) = serving_in(cluster).await;
    assert_eq!(cluster.asked_in_session(), [true, false]);
}

#[tokio::test]
async fn an_agent_that_was_killed_finds_its_workers_and_never_calls_them_unready() {
    let (mut cluster, before) = serving().await;
    let pid = cluster.worker_pid();
    cluster.kill_agent().await;
    cluster.forget_reports();
    cluster.start_agent();
    let report = cluster.until("reported again", |report| the_workload(report).is_some()).await;
    let after = the_workload(&report).unwrap();
    assert_eq!((after.state, &after.endpoint, after.restarts), (Ready, &before.endpoint, 0));
    assert_eq!((cluster.worker_pid(), cluster.joins()), (pid, 1));
    assert_eq!(cluster.hellos(2).await, [0, 1]);
}

#[tokio::test]
async fn when_another_authority_signs_workers_get_certificates_of_it_before_their_host() {
    let (mut cluster, _) = serving().await;
    let worker = cluster.worker_pid();
    let new = cluster.another_authority_signs().await;
    let trusts = cluster.confirmed_by(&new).await;
    assert!(trusts.len() == 2 && trusts.contains(&new), "{trusts:?}");
    let worker_certified = (Role::Worker, "w".to_owned());
    assert_eq!(
        cluster.certified(),
        [worker_certified.clone(), worker_certified, (Role::Host, "host-a".to_owned())]
    );
    for dir in ["identity", "workloads/w/identity"] {
        let kept = tandem_pki::Credentials::load(&cluster.data().join(dir)).unwrap();
        let issuer = kept.issuer(&kept.ca_pem).unwrap().map(|issuer| issuer.to_string());
        assert_eq!((issuer, kept.authorities().len()), (Some(new.clone()), 2), "{dir}");
    }
    assert_eq!(cluster.worker_pid(), worker, "its worker runs on");
}

#[tokio::test]
async fn sigterm_ends_the_agent_and_no_worker() {
    let (mut cluster, _) = serving().await;
    let (worker, runner) = (cluster.worker_pid(), cluster.runner_pid());
    cluster.terminate_agent().await;
    kill(worker, None).unwrap();
    kill(runner, None).unwrap();
}

#[tokio::test]
async fn without_an_operator_a_host_goes_on_and_starts_again_what_dies() {
    let (mut cluster, _) = serving().await;
    cluster.kill_operator().await;
    cluster.kill_agent().await;
    kill(cluster.worker_pid(), Signal::SIGKILL).unwrap();
    let dead = cluster.worker_pid();
    cluster.forget_reports();
    cluster.start_agent();
    // Nobody hears reports now; the endpoint file tells of the new worker.
    let data = cluster.data();
    let restarted = async {
        while fs::metadata(data.join("workloads/w/endpoint.json")).is_err() || cluster.worker_pid() == dead {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    timeout(LIMIT, restarted).await.unwrap();
    cluster.restart_operator().await;
    let status = cluster.until_workload("ready", ready).await;
    assert_eq!(status.last_exit.unwrap().signal, Some(9));
    // Its certificate was kept: none was asked for a second time.
    assert_eq!((cluster.joins(), cluster.certified().len()), (1, 1));
}

#[tokio::test]
async fn a_new_token_lets_a_host_join_again_and_its_worker_runs_on_with_a_new_certificate() {
    let (mut cluster, _) = serving().await;
    let pid = cluster.worker_pid();
    cluster.kill_agent().await;
    cluster.forget_reports();
    cluster.new_token();
    cluster.start_agent();
    cluster.until_workload("ready", ready).await;
    assert_eq!((cluster.worker_pid(), cluster.joins()), (pid, 2));
    cluster.until("a certificate for the worker", |_| cluster.certified().len() == 2).await;
}

#[tokio::test]
async fn a_host_that_lost_all_its_processes_serves_again_from_what_it_has() {
    let (mut cluster, _) = serving().await;
    cluster.kill_agent().await;
    kill(cluster.runner_pid(), Signal::SIGKILL).unwrap();
    kill(cluster.worker_pid(), Signal::SIGKILL).unwrap();
    // Nothing is fetched or certified again.
    fs::remove_dir_all(cluster.dir.path().join("models")).unwrap();
    cluster.forget_reports();
    cluster.start_agent();
    cluster.until_workload("ready", ready).await;
    assert_eq!((cluster.joins(), cluster.certified().len()), (1, 1));
}

#[tokio::test]
async fn workers_end_with_their_runner_are_reported_and_start_again() {
    let (cluster, _) = serving().await;
    let (worker, runner) = (cluster.worker_pid(), cluster.runner_pid());
    kill(runner, Signal::SIGKILL).unwrap();
    let status = cluster.until_workload("failed", |workload| workload.state == Failed).await;
    assert_eq!(status.last_exit.unwrap().cause, "ended with its runner");
    cluster.until_workload("ready again", |workload| ready(workload) && workload.restarts == 1).await;
    assert_ne!((cluster.worker_pid(), cluster.runner_pid()), (worker, runner));
}

/// What a worker is told that this host has verified.
fn evidence(cluster: &Cluster) -> Option<FileStamp> {
    let spec = fs::read(cluster.data().join("workloads/w/spec.json")).unwrap();
    let spec = WorkerSpec::parse(&spec).unwrap();
    let [file] = &spec.files[..] else { panic!("one file") };
    assert_eq!(file.verified.unwrap().difference(&FileStamp::read(&file.path).unwrap()), None);
    file.verified
}

#[tokio::test]
async fn a_warm_workload_turns_into_a_serving_one_and_back_and_hashes_nothing_again() {
    let mut cluster = Cluster::start().await;
    let of = |mode, epoch| WorkloadSpec { mode, ..cluster.workload(epoch) };
    let [warm, serve, again] = [(WorkloadMode::Warm, 1), (WorkloadMode::Serve, 2), (WorkloadMode::Warm, 3)]
        .map(|(mode, epoch)| of(mode, epoch));
    cluster.order(1, 1, vec![warm]).await;
    cluster.start_agent();
    let status = cluster.until_workload("warm", |w| w.state == Warm && w.epoch == 1).await;
    // 20 bytes from disk at 1 a second, then all 100 from memory at 5 a second: nothing has served here yet.
    assert_eq!((status.seconds_to_ready, &status.numerics_id, status.restarts), (Some(40), &None, 0));
    let (first, stamp) = (cluster.worker_pid(), evidence(&cluster));

    cluster.order(1, 2, vec![serve]).await;
    let status = cluster.until_workload("ready", |w| ready(w) && w.epoch == 2).await;
    assert_eq!((status.seconds_to_ready, status.numerics_id.as_deref()), (None, Some("stub")));
    assert_ne!(cluster.worker_pid(), first);
    assert_eq!(evidence(&cluster), stamp);
    assert_eq!(cluster.certified().len(), 1, "its certificate is the same");

    let measured = fs::read_to_string(cluster.data().join("workloads/w/last-start.json")).unwrap();
    let start = std::time::Duration::from_millis(measured.parse().unwrap());
    let expected = (20.0 + start.as_secs_f64()).ceil() as u32;
    cluster.order(1, 3, vec![again]).await;
    let status = cluster.until_workload("warm again", |w| w.state == Warm && w.epoch == 3).await;
    assert_eq!(status.seconds_to_ready, Some(expected));
    // Also by an agent that has not seen it.
    cluster.kill_agent().await;
    cluster.forget_reports();
    cluster.start_agent();
    let status = cluster.until_workload("warm still", |w| w.state == Warm).await;
    assert_eq!((status.epoch, status.seconds_to_ready), (3, Some(expected)));
}

#[tokio::test]
async fn a_crash_loop_is_reported_with_its_exit_and_ends_with_a_new_epoch() {
    let mut cluster = Cluster::start().await;
    cluster.worker_script("exit 5");
    let workload = cluster.workload(1);
    cluster.order(1, 1, vec![workload]).await;
    cluster.start_agent();
    let status = cluster.until_workload("restarted twice", |w| w.state == Failed && w.restarts == 2).await;
    assert_eq!(status.last_exit.unwrap().code, Some(5));
    assert!(status.message.unwrap().contains("crashed while computing"));
    cluster.worker_script("");
    let workload = cluster.workload(2);
    cluster.order(1, 2, vec![workload]).await;
    let status = cluster.until_workload("ready", |w| ready(w) && w.epoch == 2).await;
    assert_eq!(status.restarts, 0);
}

#[tokio::test]
async fn a_hopeless_worker_is_not_started_again() {
    let mut cluster = Cluster::start().await;
    cluster.worker_script("echo started >> \"$(dirname $3)/starts\"; exit 4");
    let workload = cluster.workload(1);
    cluster.order(1, 1, vec![workload]).await;
    cluster.start_agent();
    let status = cluster.until_workload("failed", |workload| workload.state == Failed).await;
    let message = status.message.unwrap();
    assert!(message.contains("more memory than this machine has"), "{message}");
    assert!(message.contains("not started again before its spec changes"), "{message}");
    assert_eq!(fs::read_to_string(cluster.data().join("workloads/w/starts")).unwrap(), "started\n");
}

#[tokio::test]
async fn damaged_weights_are_fetched_again_before_the_next_start() {
    let mut cluster = Cluster::start().await;
    // The first worker finds other bytes than the agent had verified.
    cluster.worker_script(
        "D=$(dirname $3)\nif [ ! -e $D/once ]; then touch $D/once; W=$(echo $D/../../weights/sha256/*)
        chmod u+w $W; printf X | dd of=$W conv=notrunc 2>/dev/null; exit 3; fi",
    );
    let workload = cluster.workload(1);
    let blob = cluster.data().join("weights/sha256").join(&workload.files[0].sha256);
    cluster.order(1, 1, vec![workload]).await;
    cluster.start_agent();
    let status = cluster.until_workload("ready", ready).await;
    assert_eq!((status.restarts, status.last_exit.unwrap().code), (1, Some(3)));
    assert_eq!(fs::read(&blob).unwrap(), MODEL);
}

#[tokio::test]
async fn a_leader_of_yesterday_is_not_obeyed() {
    let (mut cluster, _) = serving().await;
    let pid = cluster.worker_pid();
    let workload = cluster.workload(1);
    cluster.order(5, 1, vec![workload.clone()]).await;
    cluster.until("obeying term 5", |report| report.observed_term == Some(5)).await;
    cluster.order(4, 9, vec![]).await;
    // What is said after it is obeyed, so that the word of term 4 was heard and refused.
    cluster.order(5, 2, vec![workload]).await;
    let report = cluster.until("at generation 2", |report| report.observed_generation == Some(2)).await;
    assert_eq!(report.observed_term, Some(5));
    assert_eq!((the_workload(&report).unwrap().state, cluster.worker_pid()), (Ready, pid));
    // Also when it comes to a host that has restarted.
    cluster.kill_agent().await;
    cluster.start_agent();
    assert_eq!(cluster.hellos(2).await.last(), Some(&5));
}

#[tokio::test]
async fn a_corrupt_ledger_stops_the_agent_and_is_left_as_it_is() {
    let cluster = Cluster::start().await;
    fs::create_dir_all(cluster.data()).unwrap();
    let ledger = cluster.data().join("ledger.json");
    for (content, expected) in
        [(&b"{\"version\": 1, \"te"[..], "restore it"), (b"{\"version\": 9}", "newer release")]
    {
        fs::write(&ledger, content).unwrap();
        let output = timeout(LIMIT, cluster.command().output()).await.unwrap().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(expected), "{said}");
        assert_eq!(fs::read(&ledger).unwrap(), content);
    }
    assert_eq!(cluster.joins(), 0);
}

#[tokio::test]
async fn what_is_dropped_ends_and_leaves_no_folder() {
    let (cluster, _) = serving().await;
    let life = cluster.data().join("life");
    mkfifo(&life, Mode::S_IRWXU).unwrap();
    cluster.worker_script(&format!("exec 3>{}", life.display()));
    let mut end = pipe::OpenOptions::new().open_receiver(&life).unwrap();
    let workload = cluster.workload(2);
    cluster.order(1, 2, vec![workload]).await;
    cluster.until_workload("replaced", |workload| ready(workload) && workload.epoch == 2).await;
    cluster.order(1, 3, vec![]).await;
    cluster.until("empty", |report| report.workloads.is_empty()).await;
    timeout(LIMIT, end.read_to_end(&mut Vec::new())).await.unwrap().unwrap();
    assert!(!cluster.data().join("workloads/w").exists());
    // The weights stay: they might be the last copy.
    assert_eq!(fs::read_dir(cluster.data().join("weights/sha256")).unwrap().count(), 1);
}

#[tokio::test]
async fn memory_is_not_promised_twice() {
    let mut cluster = Cluster::start().await;
    let (first, mut second) = (cluster.workload(1), cluster.workload(1));
    second.id = "x".to_owned();
    cluster.order(1, 1, vec![first, second]).await;
    cluster.start_agent_with(&["--memory-limit", "1500000"]);
    cluster.until_workload("ready", ready).await;
    let refused = |report: &InferenceHostStatus| {
        report.workloads.iter().any(|workload| {
            let message = workload.message.as_deref().unwrap_or_default();
            workload.id == "x" && workload.state == Failed && message.contains("takes 1 MiB of memory")
        })
    };
    let report = cluster.until("refused", refused).await;
    assert_eq!(report.devices[0].available_bytes, 1_500_000);
}

#[tokio::test]
async fn a_source_that_is_gone_is_reported_and_asked_again() {
    let mut cluster = Cluster::start().await;
    let model = cluster.dir.path().join("models/m-Q8_0.gguf");
    fs::remove_file(&model).unwrap();
    let workload = cluster.workload(1);
    cluster.order(1, 1, vec![workload]).await;
    cluster.start_agent();
    let status = cluster.until_workload("failed", |workload| workload.state == Failed).await;
    assert!(status.message.unwrap().contains("does not exist"));
    fs::write(&model, MODEL).unwrap();
    cluster.until_workload("ready", ready).await;
}

#[tokio::test]
async fn logs_reach_whoever_asks_until_they_stop_listening() {
    let (mut cluster, _) = serving().await;
    let ask = |request: &str, workload: &str, follow| {
        let (request, workload) = (request.to_owned(), workload.to_owned());
        let logs = LogsRequest { request, workload, follow, tail_lines: 5, ..LogsRequest::default() };
        OperatorMessage { message: Some(Down::Logs(logs)) }
    };
    for (workload, expected) in [("w", "the stub serves"), ("nobody", "no log"), ("../..", "is not a name")] {
        cluster.say(ask("1", workload, false)).await;
        let mut text = String::new();
        loop {
            let chunk = timeout(LIMIT, cluster.logs.recv()).await.unwrap().unwrap();
            assert_eq!((chunk.request.as_str(), chunk.workload.as_str()), ("1", workload));
            text.push_str(&chunk.text);
            if chunk.end {
                break;
            }
        }
        assert!(text.contains(expected), "{text}");
    }
    cluster.say(ask("2", "w", true)).await;
    timeout(LIMIT, cluster.logs.recv()).await.unwrap().unwrap();
    let log = cluster.data().join("workloads/w/log");
    let mut text = fs::read_to_string(&log).unwrap();
    text.push_str("one more line\n");
    fs::write(&log, text).unwrap();
    let chunk = timeout(LIMIT, cluster.logs.recv()).await.unwrap().unwrap();
    assert_eq!((chunk.text.as_str(), chunk.end), ("one more line\n", false));
}

#[tokio::test]
async fn a_gateway_runs_beside_the_workers_in_the_hosts_name() {
    let mut cluster = Cluster::start().await;
    let program = cluster.dir.path().join("gateway");
    let said = cluster.dir.path().join("said");
    let pid = cluster.dir.path().join("pid");
    let script =
        format!("#!/bin/sh\necho $$ > {}\necho \"$@\" > {}\nexec cat\n", pid.display(), said.display());
    executable(&program, &script);
    cluster.start_agent_with(&[
        "--gateway-listen",
        "127.0.0.1:8123",
        "--gateway-program",
        program.to_str().unwrap(),
    ]);
    let report = cluster.until("a gateway", |report| report.gateway_url.is_some()).await;
    assert_eq!(report.gateway_url.as_deref(), Some("http://127.0.0.1:8123"));
    assert_eq!(cluster.certified(), [(Role::Gateway, "host-a".to_owned())]);
    assert!(cluster.data().join("gateway/identity/certificate.pem").is_file());
    let args = timeout(LIMIT, async {
        loop {
            match fs::read_to_string(&said) {
                Ok(args) if args.ends_with('\n') => return args,
                _ => tokio::time::sleep(std::time::Duration::from_millis(20)).await,
            }
        }
    });
    let args = args.await.unwrap();
    assert!(args.contains("--name host-a") && args.contains("--listen 127.0.0.1:8123"), "{args}");
    assert!(args.contains("--advertise http://127.0.0.1:8123"), "{args}");
    // When it dies it is started again.
    let pid = fs::read_to_string(pid).unwrap().trim().parse().unwrap();
    kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    cluster.until("no gateway", |report| report.gateway_url.is_none()).await;
    cluster.until("a gateway again", |report| report.gateway_url.is_some()).await;
}

/// Mounts a small tmpfs, which takes root; without, it says so and passes.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_full_disk_is_reported_and_what_runs_goes_on_as_root() {
    use nix::mount::{MntFlags, MsFlags, mount, umount2};
    let mut cluster = Cluster::start().await;
    let tmpfs: Option<&str> = Some("tmpfs");
    fs::create_dir(cluster.data()).unwrap();
    if let Err(error) = mount(tmpfs, &cluster.data(), tmpfs, MsFlags::empty(), Some("size=2m")) {
        eprintln!("skipped: no tmpfs can be mounted here ({error})");
        return;
    }
    let workload = cluster.workload(1);
    cluster.order(1, 1, vec![workload.clone()]).await;
    cluster.start_agent();
    cluster.until_workload("ready", ready).await;
    let pid = cluster.worker_pid();
    // Weights that do not fit.
    let large = vec![7; 4 << 20];
    fs::write(cluster.dir.path().join("models/large-Q8_0.gguf"), &large).unwrap();
    let mut other = workload.clone();
    other.id = "x".to_owned();
    other.files[0] = tandem_crds::ResolvedFile {
        name: "large-Q8_0.gguf".to_owned(),
        sha256: hex::encode(<sha2::Sha256 as sha2::Digest>::digest(&large)),
        bytes: large.len() as u64,
    };
    cluster.order(1, 2, vec![workload.clone(), other]).await;
    let full = |report: &InferenceHostStatus| {
        report
            .workloads
            .iter()
            .any(|workload| workload.message.as_ref().is_some_and(|m| m.contains("is full")))
    };
    cluster.until("full", full).await;
    // Not a byte left: not even a spec can be written down, so that none is obeyed.
    let fill = cluster.data().join("fill");
    let mut file = fs::File::create(&fill).unwrap();
    while std::io::Write::write_all(&mut file, &[0; 4096]).is_ok() {}
    cluster.order(2, 1, vec![]).await;
    let obedient = |report: &InferenceHostStatus| report.conditions.iter().any(|one| one.type_ == "Obedient");
    let report = cluster.until("in trouble", obedient).await;
    assert_eq!(report.observed_term, Some(1));
    assert!(report.conditions[0].message.contains("can't be written"), "{:?}", report.conditions);
    assert_eq!((the_workload(&report).unwrap().state, cluster.worker_pid()), (Ready, pid));
    drop(file);
    fs::remove_file(&fill).unwrap();
    let report = cluster.until("obeying again", |report| report.observed_term == Some(2)).await;
    assert!(report.conditions.is_empty());
    let data = cluster.data();
    drop(cluster);
    umount2(&data, MntFlags::MNT_DETACH).unwrap();
}

//! Weights of a host: how they come, stay, are shared, and go.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;

use tandem_control_api::models_reply::Said;
use tandem_control_api::models_request::Ask;
use tandem_control_api::operator_message::Message as Down;
use tandem_control_api::{
    Credential, ModelFile, ModelsImport, ModelsList, ModelsPrune, ModelsPull, ModelsRequest, ModelsVerify,
    OperatorMessage, StoredFile, Supply, WeightLink, WeightPeer,
};
use tandem_crds::WorkloadState::{Failed, Fetching, Ready};
use tandem_crds::{InferenceHostSpec, InferenceHostStatus, WorkloadSpec, WorkloadStatus};
use tandem_hub::{Content, Door, Fault, Hub, Keys, Options};
use tandem_pki::Identity;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::cluster::{Cluster, LIMIT, the_workload};

const MEBIBYTE: usize = 1 << 20;

/// Bytes that no compression and no other model shares.
fn content(seed: u8, bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8 ^ seed).collect()
}

fn ready(workload: &WorkloadStatus) -> bool {
    workload.state == Ready
}

fn blob(cluster: &Cluster, workload: &WorkloadSpec) -> PathBuf {
    cluster.data().join("weights/sha256").join(&workload.files[0].sha256)
}

/// A figure of `/metrics`, by name and labels; 0 if it is not there.
async fn figure(address: SocketAddr, series: &str) -> f64 {
    let text = scrape(address).await;
    let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.map_or(0.0, |value| value.parse().unwrap())
}

async fn scrape(address: SocketAddr) -> String {
    let answer = async {
        let mut socket = TcpStream::connect(address).await.unwrap();
        socket.write_all(b"GET /metrics HTTP/1.1\r\nHost: here\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.unwrap();
        answer
    };
    timeout(LIMIT, answer).await.unwrap()
}

/// A port that is free now.
fn free_address() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn files(said: &[Said]) -> Vec<&StoredFile> {
    said.iter()
        .filter_map(|said| match said {
            Said::File(file) => Some(file),
            _ => None,
        })
        .collect()
}

fn error(said: &[Said]) -> Option<&str> {
    said.iter().find_map(|said| match said {
        Said::Error(why) => Some(why.as_str()),
        _ => None,
    })
}

fn keeps(digest: &str) -> impl Fn(&InferenceHostStatus) -> bool + '_ {
    move |report| {
        report.weights.as_ref().is_some_and(|weights| weights.files.iter().any(|file| file == digest))
    }
}

#[tokio::test]
async fn a_host_says_what_it_keeps_where_it_is_asked_for_it_and_which_networks_it_is_in() {
    let mut cluster = Cluster::start().await;
    let workload = cluster.workload(1);
    cluster.order(1, 1, vec![workload.clone()]).await;
    cluster.start_agent_with(&["--link", "192.0.2.7/24=40000", "--weights-budget", "1GiB"]);
    let report = cluster.until("keeping it", keeps(&workload.files[0].sha256)).await;
    let weights = report.weights.unwrap();
    assert_eq!(weights.budget_bytes, Some(1 << 30));
    assert!(weights.used_bytes >= workload.files[0].bytes, "{weights:?}");
    let port = weights.port.unwrap();
    TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let given = report.links.iter().find(|link| link.address == "192.0.2.7/24").unwrap();
    assert_eq!(given.megabits, Some(40_000));
    // The host's own address is on loopback, and so is the first of its networks.
    assert_eq!(report.links[0].address, "127.0.0.1/8");
}

#[tokio::test]
async fn a_download_that_was_cut_off_goes_on_where_it_was() {
    let mut cluster = Cluster::start().await;
    let bytes = 12 * MEBIBYTE;
    let workload = cluster.workload_of("w", "large-Q8_0.gguf", &content(1, bytes));
    cluster.order(1, 1, vec![workload.clone()]).await;
    cluster.start_agent_with(&["--download-limit", "3MiB"]);
    let half =
        |workload: &WorkloadStatus| workload.progress.is_some_and(|percent| (40..90).contains(&percent));
    let status = cluster.until_workload("half here", half).await;
    let transfer = status.transfer.unwrap();
    assert_eq!((status.state, transfer.total_bytes), (Fetching, bytes as u64));
    cluster.kill_agent().await;
    let metrics = free_address();
    cluster.start_agent_with(&["--metrics-listen", &metrics.to_string()]);
    cluster.until_workload("ready", ready).await;
    let fetched = figure(metrics, "tandem_weights_fetched_bytes_total{origin=\"source\"}").await;
    // What was on disk before the kill was not asked for again, but for pieces in flight.
    assert!(fetched > 0.0 && fetched < bytes as f64 * 0.75, "{fetched} of {bytes}");
    assert_eq!(fs::read(blob(&cluster, &workload)).unwrap(), content(1, bytes));
}

#[tokio::test]
async fn an_epoch_that_wants_the_same_files_goes_on_with_their_fetch() {
    let mut cluster = Cluster::start().await;
    let workload = cluster.workload_of("w", "large-Q8_0.gguf", &content(1, 6 * MEBIBYTE));
    cluster.order(1, 1, vec![workload.clone()]).await;
    cluster.start_agent_with(&["--download-limit", "3MiB"]);
    cluster
        .until_workload("on its way", |workload| workload.progress.is_some_and(|percent| percent > 20))
        .await;
    cluster.order(1, 2, vec![WorkloadSpec { epoch: 2, ..workload.clone() }]).await;
    let second = |workload: &WorkloadStatus| workload.epoch == 2;
    let status = cluster.until_workload("under epoch 2", second).await;
    assert!(status.state == Ready || status.progress.is_some_and(|percent| percent > 20), "{status:?}");
    cluster.until_workload("ready", |workload| ready(workload) && workload.epoch == 2).await;
    let begun = cluster.agent_log().matches("fetches weights").count();
    assert_eq!(begun, 1, "{}", cluster.agent_log());
}

#[tokio::test]
async fn hosts_give_each_other_what_they_have_and_ask_the_source_for_nothing() {
    let mut giver = Cluster::start().await;
    let mut taker = giver.beside("host-b").await;
    let model = content(2, 8 * MEBIBYTE);
    let workload = giver.workload_of("w", "large-Q8_0.gguf", &model);
    giver.order(1, 1, vec![workload.clone()]).await;
    let figures = free_address();
    giver.start_agent_with(&["--metrics-listen", &figures.to_string()]);
    let report = giver.until("keeping it", keeps(&workload.files[0].sha256)).await;
    let port = report.weights.unwrap().port.unwrap();
    let peer = |server_name: String| WeightPeer {
        host: "host-a".to_owned(),
        server_name,
        links: vec![WeightLink { address: format!("127.0.0.1:{port}"), tier: 0 }],
    };
    let right = Identity::host("host-a").unwrap().server_name();
    taker.supply(Supply { peers: vec![peer(right)], ..Supply::default() }).await;
    // The source is gone: nobody but the other host has it.
    let mut wanted = taker.workload_of("w", "large-Q8_0.gguf", &model);
    wanted.source = "https://127.0.0.1:1/".to_owned();
    taker.order(1, 1, vec![wanted.clone()]).await;
    let metrics = free_address();
    taker.start_agent_with(&["--metrics-listen", &metrics.to_string()]);
    taker.until_workload("ready", ready).await;
    assert_eq!(fs::read(blob(&taker, &wanted)).unwrap(), model);
    let from = |origin: &str| format!("tandem_weights_fetched_bytes_total{{origin=\"{origin}\"}}");
    assert_eq!(figure(metrics, &from("source")).await, 0.0);
    assert!(figure(metrics, &from("peer")).await >= model.len() as f64);
    assert!(figure(figures, "tandem_weights_served_bytes_total").await >= model.len() as f64);
}

#[tokio::test]
async fn the_budget_collects_what_nothing_needs_and_nothing_else() {
    let mut cluster = Cluster::start().await;
    let [used, old, new] = [("w", 1), ("o", 2), ("n", 3)]
        .map(|(id, seed)| cluster.workload_of(id, &format!("{id}-Q8_0.gguf"), &content(seed, MEBIBYTE)));
    cluster.order(1, 1, vec![used.clone(), old.clone()]).await;
    cluster.start_agent_with(&["--weights-budget", "2500KiB"]);
    let serves = |report: &InferenceHostStatus, id: &str| {
        report.workloads.iter().any(|workload| workload.id == id && workload.state == Ready)
    };
    cluster.until("full", |report| serves(report, "w") && serves(report, "o")).await;
    // One of them is dropped, and stays for others: the new one has no room, and says so.
    let mut spec = InferenceHostSpec {
        term: 1,
        generation: 2,
        workloads: vec![used.clone(), new.clone()],
        keep_files: vec![old.files[0].sha256.clone()],
        ..InferenceHostSpec::default()
    };
    cluster.obey(spec.clone()).await;
    let refused = |report: &InferenceHostStatus| {
        let refused = |workload: &WorkloadStatus| {
            workload.state == Failed && workload.message.as_ref().is_some_and(|why| why.contains("budget"))
        };
        report.workloads.iter().any(refused) && has(report, "DiskPressure")
    };
    let report = cluster.until("refused", refused).await;
    assert!(report.conditions[0].message.contains("--weights-budget"), "{:?}", report.conditions);
    assert!(blob(&cluster, &old).exists());
    // Nobody needs it any more: it makes room, and nothing else does.
    (spec.generation, spec.keep_files) = (3, vec![]);
    cluster.obey(spec).await;
    let report = cluster.until("serving both", |report| serves(report, "w") && serves(report, "n")).await;
    assert!(
        blob(&cluster, &used).exists() && blob(&cluster, &new).exists() && !blob(&cluster, &old).exists()
    );
    assert!(serves(&report, "w"));
    cluster.until("well", |report| !has(report, "DiskPressure")).await;
}

fn has(report: &InferenceHostStatus, condition: &str) -> bool {
    report.conditions.iter().any(|one| one.type_ == condition)
}

/// Mounts a small tmpfs, which takes root; without, it says so and passes.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn what_found_no_room_on_disk_comes_when_there_is_some_as_root() {
    use nix::mount::{MntFlags, MsFlags, mount, umount2};
    let mut cluster = Cluster::start().await;
    let tmpfs: Option<&str> = Some("tmpfs");
    fs::create_dir(cluster.data()).unwrap();
    if let Err(error) = mount(tmpfs, &cluster.data(), tmpfs, MsFlags::empty(), Some("size=8m")) {
        eprintln!("skipped: no tmpfs can be mounted here ({error})");
        return;
    }
    let hoard = cluster.data().join("hoard");
    fs::write(&hoard, vec![1; 6 * MEBIBYTE]).unwrap();
    let workload = cluster.workload_of("w", "large-Q8_0.gguf", &content(9, 4 * MEBIBYTE));
    cluster.order(1, 1, vec![workload.clone()]).await;
    cluster.start_agent_with(&["--weights-spare", "100KiB"]);
    let status = cluster.until_workload("full", |workload| workload.state == Failed).await;
    let message = status.message.unwrap();
    assert!(message.contains("needs 4194304 bytes") && message.contains("are free"), "{message}");
    cluster.until("in want of room", |report| has(report, "DiskPressure")).await;
    fs::remove_file(&hoard).unwrap();
    cluster.until_workload("ready", ready).await;
    cluster.until("well", |report| !has(report, "DiskPressure")).await;
    let data = cluster.data();
    drop(cluster);
    umount2(&data, MntFlags::MNT_DETACH).unwrap();
}

#[tokio::test]
async fn models_are_listed_pulled_verified_imported_and_pruned() {
    let mut cluster = Cluster::start().await;
    let workload = cluster.workload(1);
    cluster.order(1, 1, vec![workload.clone()]).await;
    cluster.start_agent();
    cluster.until_workload("ready", ready).await;
    let listed = cluster.ask(Ask::List(ModelsList {})).await;
    let file = files(&listed)[0];
    assert_eq!((file.sha256.as_str(), file.state.as_str()), (&*workload.files[0].sha256, "Verified"));
    assert_eq!(file.pinned, "workload w uses it");
    assert_eq!(file.name, "m-Q8_0.gguf");

    let other = cluster.workload_of("x", "other-Q8_0.gguf", &content(5, MEBIBYTE));
    let pull = ModelsPull {
        source: other.source.clone(),
        files: other
            .files
            .iter()
            .map(|file| ModelFile { name: file.name.clone(), sha256: file.sha256.clone(), bytes: file.bytes })
            .collect(),
        ..ModelsPull::default()
    };
    let pulled = cluster.ask(Ask::Pull(pull)).await;
    assert_eq!(error(&pulled), None);
    assert!(pulled.iter().any(|said| matches!(said, Said::Progress(p) if p.done == p.total && p.total > 0)));
    assert_eq!(files(&pulled)[0].state, "Verified");
    assert!(blob(&cluster, &other).exists());
    // Pulled just now, so that even pruning all leaves it.
    let gone = cluster.ask(Ask::Prune(ModelsPrune { all: true, ..ModelsPrune::default() })).await;
    assert_eq!((files(&gone).len(), error(&gone)), (0, None));

    let folder = cluster.dir.path().join("mine");
    fs::create_dir(&folder).unwrap();
    let mut gguf = b"GGUF".to_vec();
    gguf.extend(content(6, MEBIBYTE));
    fs::write(folder.join("mine.gguf"), &gguf).unwrap();
    let import = |path: &str| Ask::Import(ModelsImport { path: path.to_owned(), copy: false });
    let imported = cluster.ask(import(folder.to_str().unwrap())).await;
    assert_eq!(error(&imported), None);
    let mine = files(&imported)[0].clone();
    assert_eq!(
        (mine.state.as_str(), mine.path.as_str()),
        ("Imported", folder.join("mine.gguf").to_str().unwrap())
    );
    for (path, expected) in
        [("relative", "absolute path"), ("/dev/null", "neither"), ("/nowhere", "can't be read")]
    {
        let refused = cluster.ask(import(path)).await;
        assert!(error(&refused).is_some_and(|why| why.contains(expected)), "{refused:?}");
    }

    let verify = |digests: &[&str]| {
        Ask::Verify(ModelsVerify { sha256: digests.iter().map(|&digest| digest.to_owned()).collect() })
    };
    let fine = cluster.ask(verify(&[])).await;
    assert_eq!((files(&fine).len(), error(&fine)), (3, None));
    let path = blob(&cluster, &other);
    flip_a_byte(&path);
    let damaged = cluster.ask(verify(&[&other.files[0].sha256])).await;
    assert_eq!(files(&damaged)[0].state, "Damaged");
    assert!(error(&damaged).is_some_and(|why| why.contains("1 of 1 files")), "{damaged:?}");
    let strange = cluster.ask(verify(&["nonsense"])).await;
    assert!(error(&strange).is_some_and(|why| why.contains("not a sha256")));

    let would =
        cluster.ask(Ask::Prune(ModelsPrune { all: true, dry_run: true, ..ModelsPrune::default() })).await;
    assert_eq!(error(&would), None);
    assert!(folder.join("mine.gguf").exists(), "what is only referred to is never deleted");
}

/// In the middle of a file that only its owner may read; its marks change with it.
fn flip_a_byte(path: &std::path::Path) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[tokio::test]
async fn requests_about_models_are_few_at_once_and_end_when_nobody_reads() {
    let mut cluster = Cluster::start().await;
    cluster.order(1, 1, vec![]).await;
    cluster.start_agent_with(&["--download-limit", "64KiB"]);
    cluster.hellos(1).await;
    let slow = cluster.workload_of("x", "slow-Q8_0.gguf", &content(10, 4 * MEBIBYTE));
    let files: Vec<ModelFile> = slow
        .files
        .iter()
        .map(|file| ModelFile { name: file.name.clone(), sha256: file.sha256.clone(), bytes: file.bytes })
        .collect();
    let pull = |request: &str| {
        let pull = ModelsPull { source: slow.source.clone(), files: files.clone(), ..ModelsPull::default() };
        let ask = Some(Ask::Pull(pull));
        let request = ModelsRequest { request: request.to_owned(), hosts: vec![], ask };
        OperatorMessage { message: Some(Down::Models(request)) }
    };
    for request in ["a", "b", "c", "d", "e"] {
        cluster.say(pull(request)).await;
    }
    let refused = timeout(LIMIT, async {
        loop {
            let reply = cluster.models.recv().await.unwrap();
            if let Some(Said::Error(why)) = reply.said {
                return (reply.request, why, reply.end);
            }
        }
    });
    let (request, why, end) = refused.await.unwrap();
    assert!(request == "e" && end && why.contains("4 such requests already"), "{request}: {why}");
    // One of them ends, and there is a place again.
    cluster.say(OperatorMessage { message: Some(Down::EndModels("a".to_owned())) }).await;
    assert_eq!(error(&cluster.ask(Ask::List(ModelsList {})).await), None);
    // Nothing of it comes any more: what comes after the list's end is of the others.
    for _ in 0..6 {
        let reply = timeout(LIMIT, cluster.models.recv()).await.unwrap().unwrap();
        assert_ne!(reply.request, "a");
    }
}

#[tokio::test]
async fn weights_that_change_under_a_worker_end_it_and_are_mended() {
    let mut cluster = Cluster::start().await;
    let workload = cluster.workload_of("w", "large-Q8_0.gguf", &content(7, MEBIBYTE));
    cluster.order(1, 1, vec![workload.clone()]).await;
    cluster.start_agent();
    cluster.until_workload("ready", ready).await;
    let pid = cluster.worker_pid();
    flip_a_byte(&blob(&cluster, &workload));
    // The next look is at most ten seconds away; a list asks for one now.
    cluster.ask(Ask::Verify(ModelsVerify { sha256: vec![workload.files[0].sha256.clone()] })).await;
    let report = cluster
        .until("damaged", |report| the_workload(report).is_some_and(|workload| workload.restarts > 0))
        .await;
    let ended = the_workload(&report).unwrap().last_exit.clone().unwrap();
    assert!(ended.cause.contains("damaged on disk"), "{ended:?}");
    cluster.until_workload("ready again", ready).await;
    assert_ne!(cluster.worker_pid(), pid);
    assert_eq!(fs::read(blob(&cluster, &workload)).unwrap(), content(7, MEBIBYTE));
    cluster.until("well", |report| !has(report, "WeightsDamaged") && !has(report, "WeightsChanged")).await;
}

#[tokio::test]
async fn a_source_that_is_not_allowed_waits_for_another_word() {
    let mut cluster = Cluster::start().await;
    let workload = cluster.workload(1);
    let allow = |prefix: &str| Supply { allowed_sources: vec![prefix.to_owned()], ..Supply::default() };
    cluster.supply(allow("hf://unsloth/")).await;
    cluster.order(1, 1, vec![workload.clone()]).await;
    cluster.start_agent();
    let status = cluster.until_workload("waiting", |workload| workload.message.is_some()).await;
    assert_eq!(status.state, Fetching);
    assert!(status.message.unwrap().contains("not allowed"));
    cluster.supply(allow("file:///")).await;
    cluster.until_workload("ready", ready).await;
}

/// A host that is told to read a model from this hub; and how it was told to reach that.
async fn told_to_read(hub: &Hub, model: &[u8]) -> (Cluster, WorkloadSpec, Supply) {
    let commit = hub.publish("owner/tiny", [("m-Q8_0.gguf", Content::of(model.to_vec()))]);
    let mut cluster = Cluster::start().await;
    let mut workload = cluster.workload_of("w", "m-Q8_0.gguf", model);
    workload.source = format!("hf://owner/tiny@{commit}");
    let supply = Supply { mirrors: vec![format!("hf://={}", hub.url(Door::Hub))], ..Supply::default() };
    cluster.supply(supply.clone()).await;
    cluster.order(1, 1, vec![workload.clone()]).await;
    cluster.start_agent();
    (cluster, workload, supply)
}

#[tokio::test]
async fn a_private_hub_is_read_once_its_credential_is_handed_over_and_nothing_of_it_is_written_down() {
    const TOKEN: &str = "hf_nobody_may_see_this";
    let hub = Hub::start(Options::default()).await.unwrap();
    let model = content(8, MEBIBYTE);
    hub.set_keys(Keys { token: Some(TOKEN.to_owned()), ..Keys::default() });
    let (cluster, workload, mut supply) = told_to_read(&hub, &model).await;
    let status = cluster.until_workload("waiting", |workload| workload.message.is_some()).await;
    assert_eq!(status.state, Fetching);
    assert!(status.message.as_ref().unwrap().contains("credential"), "{status:?}");
    let credential =
        |deployment: &str| Credential { deployment: deployment.to_owned(), secret: TOKEN.to_owned() };
    supply.credentials = vec![credential("llm/other"), credential(&workload.deployment.to_string())];
    cluster.supply(supply).await;
    cluster.until_workload("ready", ready).await;
    assert_eq!(fs::read(blob(&cluster, &workload)).unwrap(), model);
    assert!(!cluster.agent_log().contains(TOKEN));
    assert_eq!(files_with(&cluster.data(), TOKEN.as_bytes()), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn a_hub_of_an_authority_of_its_own_is_read_once_the_operator_hands_that_over() {
    let hub = Hub::start(Options { tls: true, ..Options::default() }).await.unwrap();
    let model = content(12, MEBIBYTE);
    let (cluster, workload, mut supply) = told_to_read(&hub, &model).await;
    let status =
        cluster.until_workload("a stranger's certificate", |workload| workload.message.is_some()).await;
    assert_eq!(status.state, Failed);
    assert!(status.message.as_ref().unwrap().contains("certificate"), "{status:?}");
    supply.extra_ca_pem = hub.ca_pem().to_owned().into();
    cluster.supply(supply).await;
    cluster.until_workload("ready", ready).await;
    assert_eq!(fs::read(blob(&cluster, &workload)).unwrap(), model);
}

#[tokio::test]
async fn another_word_on_how_a_source_is_reached_counts_for_fetches_under_way() {
    let model = content(11, 2 * MEBIBYTE);
    let (slow, fast) =
        (Hub::start(Options::default()).await.unwrap(), Hub::start(Options::default()).await.unwrap());
    for hub in [&slow, &fast] {
        hub.publish("owner/tiny", [("m-Q8_0.gguf", Content::of(model.clone()))]);
    }
    let commit = fast.publish("owner/tiny", [("m-Q8_0.gguf", Content::of(model.clone()))]);
    slow.publish("owner/tiny", [("m-Q8_0.gguf", Content::of(model.clone()))]);
    slow.always(Door::Cdn, "", Fault::Stall { after: 1000 });
    let mirror =
        |hub: &Hub| Supply { mirrors: vec![format!("hf://={}", hub.url(Door::Hub))], ..Supply::default() };
    let mut cluster = Cluster::start().await;
    let mut workload = cluster.workload_of("w", "m-Q8_0.gguf", &model);
    workload.source = format!("hf://owner/tiny@{commit}");
    cluster.supply(mirror(&slow)).await;
    cluster.order(1, 1, vec![workload.clone()]).await;
    cluster.start_agent();
    timeout(LIMIT, async {
        while slow.count(Door::Hub, "").requests == 0 {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    })
    .await
    .unwrap();
    cluster.supply(mirror(&fast)).await;
    cluster.until_workload("ready", ready).await;
    assert_eq!(fs::read(blob(&cluster, &workload)).unwrap(), model);
}

/// Files below a folder that hold these bytes.
fn files_with(folder: &std::path::Path, bytes: &[u8]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files_with(&path, bytes));
        } else if path.is_file()
            && fs::read(&path).unwrap().windows(bytes.len()).any(|window| window == bytes)
        {
            found.push(path);
        }
    }
    found
}

#[tokio::test]
async fn figures_are_served_where_they_are_asked_for() {
    let mut cluster = Cluster::start().await;
    let workload = cluster.workload(1);
    cluster.order(1, 1, vec![workload]).await;
    let metrics = free_address();
    cluster.start_agent_with(&["--metrics-listen", &metrics.to_string()]);
    cluster.until_workload("ready", ready).await;
    let text = scrape(metrics).await;
    assert!(
        text.contains("Content-Type: text/plain; version=0.0.4")
            || text.contains("content-type: text/plain; version=0.0.4")
    );
    for line in ["tandem_agent_session_up 1", "tandem_agent_workloads{state=\"Ready\"} 1"] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
}

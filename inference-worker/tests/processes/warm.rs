//! `inference-worker warm` as agents start it: what it keeps in memory, what it notices, and how it ends.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use sha2::{Digest, Sha256};
use tandem_pki::Identity;
use tandem_worker_api::health_report::State;
use tandem_worker_api::worker_client::WorkerClient;
use tandem_worker_api::{
    FileStamp, GenerateRequest, HealthReport, HealthRequest, Sha256Hex, Warmth, WorkerExit,
};
use tempfile::TempDir;
use tonic::transport::Channel;
use tonic::{Code, Streaming};

use crate::support::{Cluster, PATIENCE, Replica, exit, log_of};

/// Weights to a warm worker are bytes; more than it reads at once.
const BYTES: usize = (9 << 20) + 4711;

/// A file on a disk, with its digest. Files of a file system in memory can't leave it.
fn weights() -> (TempDir, PathBuf, Sha256Hex) {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = folder.path().join("weights.gguf");
    let bytes: Vec<u8> =
        (0..BYTES as u64).map(|n| (n.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8).collect();
    fs::write(&path, &bytes).unwrap();
    File::open(&path).unwrap().sync_all().unwrap();
    let digest = Sha256Hex::from(<[u8; 32]>::from(Sha256::digest(&bytes)));
    (folder, path, digest)
}

struct Kept {
    cluster: Cluster,
    replica: Replica,
}

fn start(cluster: &Cluster, file: serde_json::Value) -> (Child, PathBuf) {
    let (mut spec, endpoint_file) = cluster.spec("w-1");
    spec["files"] = serde_json::json!([file]);
    let mut command = Command::new(env!("CARGO_BIN_EXE_inference-worker"));
    command.arg("warm");
    (
        cluster.spawn_program(command, "w-1", &spec, &["--exit-with-stdin", "--look-every-ms", "50"]),
        endpoint_file,
    )
}

impl Kept {
    async fn new(path: &Path, sha256: Sha256Hex) -> Self {
        let cluster = Cluster::new();
        let (child, endpoint_file) = start(&cluster, serde_json::json!({"path": path, "sha256": sha256}));
        let replica = Replica::announced(child, "w-1", &endpoint_file).await;
        Self { cluster, replica }
    }

    /// As its host's agent dials it.
    async fn client(&self) -> WorkerClient<Channel> {
        self.cluster.dial(&self.replica, &Identity::host("mac-a").unwrap()).await
    }

    async fn health(&self) -> Streaming<HealthReport> {
        self.client().await.health(HealthRequest { interval_ms: 20 }).await.unwrap().into_inner()
    }
}

/// Waits until it is warm, and in this way.
async fn until_warm(health: &mut Streaming<HealthReport>, so: impl Fn(&Warmth) -> bool) -> Warmth {
    let warm = async {
        loop {
            let report = health.message().await.unwrap().expect("it goes on reporting");
            match (report.state(), report.warmth) {
                (State::Warm, Some(warmth)) if so(&warmth) => return warmth,
                (State::Warm | State::Loading, _) => {}
                (other, _) => panic!("{other:?}: {}", report.message),
            }
        }
    };
    tokio::time::timeout(PATIENCE, warm).await.expect("it does not get warm in this way")
}

fn all_there(warmth: &Warmth) -> bool {
    warmth.bytes_total == BYTES as u64 && warmth.bytes_resident == warmth.bytes_total
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_keeps_all_bytes_in_memory_serves_nobody_and_ends_with_its_standard_input() {
    let (_folder, path, digest) = weights();
    let mut kept = Kept::new(&path, digest).await;
    let warmth = until_warm(&mut kept.health().await, all_there).await;
    assert!(warmth.memory_bytes_per_second > 0, "{warmth:?}");
    let mut gateway = kept.cluster.dial(&kept.replica, &Identity::gateway("edge").unwrap()).await;
    assert_eq!(
        gateway.generate(GenerateRequest::default()).await.unwrap_err().code(),
        Code::FailedPrecondition
    );
    let mut stranger = kept.cluster.dial(&kept.replica, &Identity::worker("mac-b", "w-1").unwrap()).await;
    assert_eq!(stranger.health(HealthRequest::default()).await.unwrap_err().code(), Code::PermissionDenied);
    drop(kept.replica.child.stdin.take());
    assert_eq!(exit(&mut kept.replica.child).await.code(), Some(0));
}

/// The process is stopped meanwhile, so that it can't read back what is looked for.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_system_took_out_of_memory_is_noticed_and_read_back() {
    use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
    use nix::sys::signal::{Signal, kill};
    use nix::sys::statfs::{TMPFS_MAGIC, statfs};
    use nix::unistd::Pid;
    use tandem_kernels::map::MappedFile;

    let (folder, path, digest) = weights();
    if statfs(folder.path()).unwrap().filesystem_type() == TMPFS_MAGIC {
        eprintln!(
            "skipped: what_the_system_took_out_of_memory_is_noticed_and_read_back needs a folder on a disk"
        );
        return;
    }
    let kept = Kept::new(&path, digest).await;
    let mut health = kept.health().await;
    until_warm(&mut health, all_there).await;
    let pid = Pid::from_raw(kept.replica.child.id() as i32);
    kill(pid, Signal::SIGSTOP).unwrap();
    posix_fadvise(File::open(&path).unwrap(), 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
    let mapped = MappedFile::open(&path).unwrap();
    let absent = mapped.absent(0, usize::MAX).unwrap();
    assert_eq!(absent, std::slice::from_ref(&(0..BYTES)), "it was not taken out");
    kill(pid, Signal::SIGCONT).unwrap();
    // Nothing but that can have come from the disk.
    let warmth =
        until_warm(&mut health, |warmth| all_there(warmth) && warmth.disk_bytes_per_second > 0).await;
    assert_eq!(mapped.absent(0, usize::MAX).unwrap(), [], "{warmth:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_change_under_it_are_found_out_and_new_attributes_are_not_held_against_them() {
    use std::os::unix::fs::PermissionsExt;
    let (_folder, path, digest) = weights();
    let mut kept = Kept::new(&path, digest).await;
    let log = log_of(&mut kept.replica.child);
    let mut health = kept.health().await;
    until_warm(&mut health, all_there).await;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let hashed_again = async {
        while !log.lock().unwrap().contains("hashed again") {
            health.message().await.unwrap().unwrap();
        }
    };
    tokio::time::timeout(PATIENCE, hashed_again).await.expect("it does not notice");
    until_warm(&mut health, all_there).await;

    File::options().write(true).open(&path).unwrap().write_all_at(b"?", 1 << 20).unwrap();
    let status = exit(&mut kept.replica.child).await;
    let reported = async { while health.message().await.is_ok_and(|report| report.is_some()) {} };
    tokio::time::timeout(PATIENCE, reported).await.expect("its last words don't end");
    assert_eq!(status.code(), Some(WorkerExit::BadWeights.code().into()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_are_hashed_unless_they_are_untouched_since_they_were() {
    let (_folder, path, _) = weights();
    let cluster = Cluster::new();
    let wrong = Sha256Hex::from([7; 32]);
    let (mut unproven, _) = start(&cluster, serde_json::json!({"path": path, "sha256": wrong}));
    let status = exit(&mut unproven).await;
    assert_eq!(status.code(), Some(WorkerExit::BadWeights.code().into()));
    fs::remove_file(cluster.folder.path().join("w-1/endpoint.json")).unwrap();

    // Only who does not look can believe it.
    let stamp = FileStamp::read(&path).unwrap();
    let proven = serde_json::json!({"path": path, "sha256": wrong, "verified": stamp});
    let (child, endpoint_file) = start(&cluster, proven);
    let replica = Replica::announced(child, "w-1", &endpoint_file).await;
    let kept = Kept { cluster, replica };
    until_warm(&mut kept.health().await, all_there).await;
}

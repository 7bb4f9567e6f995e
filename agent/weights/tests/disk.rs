//! Disks that fill up, fail, and lose or change what was written to them.
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

mod cluster;

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use cluster::{Host, NAME, PIECE, Site, named, until};
use proptest::prelude::*;
use tandem_hub::{Content, Door};
use tandem_weights::{FetchError, FetchOptions, Progress, Store, StoreError, StoreOptions};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

/// What becomes of one file of a store while no process has it open.
#[derive(Clone, Debug)]
enum Harm {
    Flip(prop::sample::Index, u8),
    Cut(prop::sample::Index),
    Grow(Vec<u8>),
    Zero(prop::sample::Index),
    Lose,
}

fn harm() -> impl Strategy<Value = Harm> {
    prop_oneof![
        4 => (any::<prop::sample::Index>(), 1_u8..).prop_map(|(at, bits)| Harm::Flip(at, bits)),
        2 => any::<prop::sample::Index>().prop_map(Harm::Cut),
        1 => prop::collection::vec(any::<u8>(), 1..200).prop_map(Harm::Grow),
        1 => any::<prop::sample::Index>().prop_map(Harm::Zero),
        1 => Just(Harm::Lose),
    ]
}

impl Harm {
    fn happen(&self, path: &Path) {
        let Ok(there) = fs::metadata(path) else { return };
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
        let length = usize::try_from(there.len()).unwrap().max(1);
        let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
        match self {
            Self::Flip(at, bits) => {
                let (at, mut byte) = (at.index(length) as u64, [0]);
                if file.read_exact_at(&mut byte, at).is_ok() {
                    file.write_all_at(&[byte[0] ^ bits], at).unwrap();
                }
            }
            Self::Cut(at) => file.set_len(at.index(length) as u64).unwrap(),
            Self::Grow(more) => file.write_all_at(more, there.len()).unwrap(),
            Self::Zero(at) => {
                let at = at.index(length);
                file.write_all_at(&vec![0; (length - at).min(10_000)], at as u64).unwrap();
            }
            Self::Lose => fs::remove_file(path).unwrap(),
        }
    }
}

fn copied(from: &Path) -> TempDir {
    let to = tempfile::tempdir().unwrap();
    for folder in ["sha256", "pieces", "partial"] {
        fs::create_dir_all(to.path().join(folder)).unwrap();
        for entry in fs::read_dir(from.join(folder)).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), to.path().join(folder).join(entry.file_name())).unwrap();
        }
    }
    to
}

/// Which file of a store: of one on its way, or of one that is whole.
fn files(home: &Path, folders: [&str; 2]) -> Vec<PathBuf> {
    let of = |folder: &str| fs::read_dir(home.join(folder)).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = folders.iter().flat_map(|folder| of(folder)).collect();
    files.sort();
    files
}

async fn half(site: &Site) -> Host {
    let one = FetchOptions { connections: 1, ..FetchOptions::default() };
    let host = site.host_in("host-a", tempfile::tempdir().unwrap(), one).await;
    let fetching = host.begin();
    until(|| host.progress.done() >= site.file.bytes / 2).await;
    drop(fetching);
    host
}

/// Whatever became of the files, what is fetched next is right.
fn whatever_happens(
    site: &Site,
    like: &Path,
    runtime: &tokio::runtime::Runtime,
    cases: u32,
    folders: [&str; 2],
) {
    let harms = prop::collection::vec((any::<prop::sample::Index>(), harm()), 1..5);
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases) };
    let least = std::cell::Cell::new(u64::MAX);
    proptest!(config, |(harms in harms)| {
        let home = copied(like);
        let there = files(home.path(), folders);
        for (file, harm) in &harms {
            harm.happen(&there[file.index(there.len())]);
        }
        site.hub.reset_counts();
        let whole = runtime.block_on(async {
            let options = FetchOptions { connections: 1, ..FetchOptions::default() };
            let host = site.host_in("host-a", home, options).await;
            host.fetched().await
        });
        prop_assert!(whole.unwrap() == site.bytes);
        prop_assert!(site.upstream() <= site.file.bytes);
        least.set(least.get().min(site.upstream()));
    });
    println!("{folders:?}: at best {} of {} bytes came again", least.get(), site.file.bytes);
    assert!(least.get() < site.file.bytes);
}

#[test]
fn whatever_happens_to_a_file_on_its_way_the_whole_is_right() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let site = runtime.block_on(Site::start(3 * MIB, Some(24 * MIB)));
    let host = runtime.block_on(half(&site));
    whatever_happens(&site, host.home.path(), &runtime, 24, ["partial", "pieces"]);
}

#[test]
fn whatever_happens_to_a_whole_file_and_its_record_the_whole_is_right() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let site = runtime.block_on(Site::start(3 * MIB, None));
    let host = runtime.block_on(site.host("host-a"));
    runtime.block_on(host.fetched()).unwrap();
    whatever_happens(&site, host.home.path(), &runtime, 24, ["sha256", "pieces"]);
}

/// A small file system of its own, which takes root.
#[cfg(target_os = "linux")]
struct Small(TempDir);

#[cfg(target_os = "linux")]
impl Small {
    fn mount(size: &str) -> Option<Self> {
        use nix::mount::{MsFlags, mount};
        let (home, tmpfs) = (tempfile::tempdir().unwrap(), Some("tmpfs"));
        match mount(tmpfs, home.path(), tmpfs, MsFlags::empty(), Some(size)) {
            Ok(()) => Some(Self(home)),
            Err(error) => {
                eprintln!("skipped: no tmpfs can be mounted here ({error})");
                None
            }
        }
    }

    async fn host(&self, site: &Site, options: StoreOptions) -> (Store, Host) {
        let host = site.host("host-a").await;
        let store = Store::open(&self.0.path().join("weights"), options).unwrap();
        let options = FetchOptions { piece_bytes: Some(PIECE), ..FetchOptions::default() };
        let fetcher = tandem_weights::Fetcher::new(store.clone(), options);
        (store, Host { fetcher, ..host })
    }
}

#[cfg(target_os = "linux")]
impl Drop for Small {
    fn drop(&mut self) {
        if let Err(error) = nix::mount::umount2(self.0.path(), nix::mount::MntFlags::MNT_DETACH) {
            eprintln!("{} stays mounted: {error}", self.0.path().display());
        }
    }
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_without_room_is_told_before_the_first_byte_as_root() {
    let Some(small) = Small::mount("size=3m") else { return };
    let site = Site::start(4 * MIB, None).await;
    let (store, host) = small.host(&site, StoreOptions::default()).await;
    let error = host.fetched().await.unwrap_err();
    println!("{error}");
    let FetchError::DiskFull { needed, free, .. } = error else { panic!("{error:?}") };
    assert_eq!(needed, site.file.bytes);
    assert!(free <= 3 * MIB);
    assert_eq!((site.upstream(), store.used_bytes().unwrap()), (0, 0));
    drop((store, host));
    // With room, but not with what is to be kept spare.
    let Some(small) = Small::mount("size=6m") else { return };
    let (store, host) =
        small.host(&site, StoreOptions { spare_bytes: 3 * MIB, ..StoreOptions::default() }).await;
    assert!(matches!(host.fetched().await, Err(FetchError::DiskFull { .. })));
    drop((store, host));
    let (_store, host) =
        small.host(&site, StoreOptions { spare_bytes: MIB, ..StoreOptions::default() }).await;
    assert!(host.fetched().await.unwrap() == site.bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_come_at_once_share_the_budget() {
    let site = Site::start(2 * MIB, None).await;
    let other: Vec<u8> = site.bytes.iter().map(|byte| !byte).collect();
    let second = named("other.gguf", &other);
    site.hub
        .publish("owner/tiny", [(NAME, Content::of(site.bytes.clone())), ("other.gguf", Content::of(other))]);
    let host = site.host("host-a").await;
    let home = tempfile::tempdir().unwrap();
    let options = StoreOptions { budget_bytes: Some(3 * MIB), ..StoreOptions::default() };
    let store = Store::open(home.path(), options).unwrap();
    let fetcher = tandem_weights::Fetcher::new(store, FetchOptions::default());
    let (one, two) = (host.order(), tandem_weights::Order { file: second, ..host.order() });
    let progress = Progress::new();
    let (one, two) = tokio::join!(fetcher.fetch(&one, &progress), fetcher.fetch(&two, &progress));
    let over = [one, two].into_iter().filter_map(Result::err).collect::<Vec<_>>();
    assert!(matches!(&over[..], [FetchError::OverBudget { budget, .. }] if *budget == 3 * MIB), "{over:?}");
    assert_eq!(site.hub.count(Door::Web, "").bytes, 2 * MIB);
}

/// The file shrinks under the process that reads it back: the system says so as it does of a disk that fails, at a byte.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_can_not_be_read_back_is_an_error_that_says_where() {
    let site = Site::start(4 * MIB, Some(8 * MIB)).await;
    let host = site.host("host-a").await;
    host.fetched().await.unwrap();
    let path = host.store.path_of(&site.file.sha256).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    // Longer than it should be, then cut while it is hashed.
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(1 << 32).unwrap();
    let (store, sha256, progress) = (host.store.clone(), site.file.sha256, Progress::new());
    let seen = progress.clone();
    let verifying = tokio::spawn(async move { store.verify(&sha256, &progress).await });
    until(|| seen.done() >= 16 * MIB).await;
    file.set_len(MIB).unwrap();
    let error = verifying.await.unwrap().unwrap_err();
    println!("{error}");
    let tandem_weights::VerifyError::Store(StoreError::Disk { offset, .. }) = error else {
        panic!("{error:?}")
    };
    assert!(offset >= 16 * MIB);
    // It costs what is missing of it, and is right again.
    site.hub.reset_counts();
    assert!(host.fetched().await.unwrap() == site.bytes);
}

/// The most memory that this process had at once, in bytes.
#[cfg(target_os = "linux")]
fn most_memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

#[cfg(target_os = "linux")]
#[ignore = "it is started by the test below, as a process of its own"]
#[tokio::test(flavor = "multi_thread")]
async fn what_is_measured() {
    tandem_pki::install_tls_provider();
    let said = |name: &str| std::env::var(name).expect("it is started by a test");
    let before = most_memory();
    let home = tempfile::tempdir_in(said("WEIGHTS_FOLDER")).unwrap();
    let store = Store::open(home.path(), StoreOptions::default()).unwrap();
    let order = tandem_weights::Order {
        file: tandem_sources::ResolvedFile {
            name: NAME.to_owned(),
            sha256: said("WEIGHTS_SHA256").parse().unwrap(),
            bytes: said("WEIGHTS_BYTES").parse().unwrap(),
        },
        source: said("WEIGHTS_SOURCE").parse().unwrap(),
        credential: None,
        access: cluster::access(),
        peers: tokio::sync::watch::channel(Vec::new()).1,
        own_host: "host-a".to_owned(),
    };
    let fetcher = tandem_weights::Fetcher::new(store, FetchOptions::default());
    match fetcher.fetch(&order, &Progress::new()).await {
        Ok(_) => println!("MEMORY {}", most_memory() - before),
        Err(error) => println!("ERROR {error}"),
    }
}

/// A process of its own that fetches into a folder and says what it took, or why it failed.
#[cfg(target_os = "linux")]
fn measured(site: &Site, folder: &Path) -> std::process::Command {
    // A write past a limit shall be an error there, as one of the disk is, and not the end.
    let mut command = std::process::Command::new("sh");
    command
        .args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\""])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "what_is_measured", "--ignored", "--nocapture"])
        .env("WEIGHTS_FOLDER", folder)
        .env("WEIGHTS_SOURCE", site.source().to_string())
        .env("WEIGHTS_BYTES", site.file.bytes.to_string())
        .env("WEIGHTS_SHA256", site.file.sha256.to_string())
        .stdout(std::process::Stdio::piped());
    command
}

/// What it printed after a word.
#[cfg(target_os = "linux")]
async fn after(word: &str, child: std::process::Child) -> String {
    let output = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap()).await.unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().find_map(|line| line.split_once(word)).map(|(_, said)| said.trim().to_owned());
    line.unwrap_or_else(|| panic!("{text}"))
}

/// The system refuses writes in mid-file, past a limit that the process gets while it runs.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_fails_is_an_error_that_says_where() {
    let site = Site::start(4 * MIB, Some(2 * MIB)).await;
    let folder = tempfile::tempdir().unwrap();
    let child = measured(&site, folder.path()).spawn().unwrap();
    until(|| site.upstream() > MIB / 2).await;
    let pid = format!("--pid={}", child.id());
    match std::process::Command::new("prlimit").args([&pid, "--fsize=1048576"]).status() {
        Ok(status) => {
            assert!(status.success());
            let said = after("ERROR ", child).await;
            println!("{said}");
            assert!(said.contains("can't be read or written at byte"), "{said}");
        }
        Err(error) => {
            println!("skipped: a_write_that_fails_is_an_error_that_says_where: no prlimit here ({error})");
            after("MEMORY ", child).await;
        }
    }
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn memory_does_not_grow_with_the_file() {
    let mut took = Vec::new();
    for length in [160 * MIB, 320 * MIB] {
        let site = Site::start(length, None).await;
        let folder = tempfile::tempdir().unwrap();
        let child = measured(&site, folder.path()).spawn().unwrap();
        took.push(after("MEMORY ", child).await.parse::<u64>().unwrap());
    }
    println!("160 MiB took {} bytes of memory, 320 MiB {}", took[0], took[1]);
    // Eight connections; two blocks of each, what HTTP reads ahead, and what the allocator does not give back.
    assert!(took.iter().all(|took| *took < 8 * 8 * MIB), "{took:?}");
}

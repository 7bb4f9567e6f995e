//! The runner as a process: its socket, its children, and one watcher's list for all.

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use futures::{SinkExt, StreamExt};
use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{getuid, setsid};
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, watch};
use tokio_util::codec::{Framed, LinesCodec};

use super::child::Started;
use super::protocol::{Answer, LONGEST_LINE, Listed, MOST_CHILDREN, Request, Start, State};

/// Connections at once; an agent needs three.
const MOST_CONNECTIONS: usize = 16;
/// Files that workers may open: shards, sockets of gateways, and room.
const OPEN_FILES: u64 = 65_536;
/// Longest path of a Unix socket, everywhere.
const LONGEST_SOCKET: usize = 103;
/// How long children may take to end when the runner itself is told to.
const LAST_GRACE: Duration = Duration::from_secs(30);

/// Arguments of `tandem-agent runner`.
#[derive(Clone, Debug, Args)]
pub struct RunnerArgs {
    /// Unix socket on which the agent speaks
    #[arg(long, value_name = "PATH")]
    pub socket: PathBuf,
    /// Folder for the process id and the lock
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
}

/// Serves until SIGTERM; then ends its children and itself.
///
/// # Errors
/// When another runner holds the folder, or the socket can't be made.
pub async fn run(args: &RunnerArgs) -> Result<()> {
    // A session of our own, so that no terminal and no agent takes us along. Who leads a group already can't, and needn't.
    match setsid() {
        Ok(_) | Err(Errno::EPERM) => {}
        Err(error) => return Err(error).context("no session of its own"),
    }
    limit()?;
    fs::create_dir_all(&args.dir).with_context(|| format!("{} can't be made", args.dir.display()))?;
    fs::set_permissions(&args.dir, Permissions::from_mode(0o700))?;
    let lock = File::create(args.dir.join("runner.lock"))?;
    if lock.try_lock().is_err() {
        bail!("another runner holds {}: end it first, or give --dir another folder", args.dir.display());
    }
    let listener = listen(&args.socket)?;
    write_pid(&args.dir.join("runner.pid"))?;
    tracing::info!(socket = %args.socket.display(), pid = std::process::id(), "runner is ready");

    let children = Arc::new(Children::default());
    let connections = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    let mut terminate = signal(SignalKind::terminate())?;
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            accepted = listener.accept() => {
                let (stream, _) = accepted.context("the socket is broken")?;
                let Ok(permit) = connections.clone().try_acquire_owned() else { continue };
                let children = children.clone();
                tokio::spawn(async move {
                    if let Err(error) = converse(stream, &children).await {
                        tracing::debug!(%error, "a connection ended");
                    }
                    drop(permit);
                });
            }
        }
    }
    tracing::info!("told to end; ending its children");
    children.end_all(LAST_GRACE).await;
    // While the lock is held still, so that these are not yet those of the next runner.
    for path in [&args.dir.join("runner.pid"), &args.socket] {
        if let Err(error) = fs::remove_file(path) {
            tracing::warn!(path = %path.display(), %error, "a file is left behind");
        }
    }
    drop(lock);
    Ok(())
}

/// Children inherit these: no core files with weights and prompts in them, and enough open files.
fn limit() -> Result<()> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0).context("core files can't be switched off")?;
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard.min(OPEN_FILES), hard).context("open files can't be limited")
}

fn listen(path: &Path) -> Result<UnixListener> {
    let length = path.as_os_str().len();
    ensure!(
        length <= LONGEST_SOCKET,
        "the socket's path has {length} bytes, and systems allow {LONGEST_SOCKET}: give a shorter folder"
    );
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("{} can't be replaced", path.display()));
        }
        _ => {}
    }
    let listener = UnixListener::bind(path).with_context(|| format!("can't listen on {}", path.display()))?;
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok(listener)
}

fn write_pid(path: &Path) -> Result<()> {
    let beside = path.with_extension("new");
    fs::write(&beside, format!("{}\n", std::process::id()))?;
    fs::rename(&beside, path).with_context(|| format!("{} can't be written", path.display()))
}

async fn converse(stream: UnixStream, children: &Arc<Children>) -> Result<()> {
    let caller = stream.peer_cred()?.uid();
    ensure!(caller == getuid().as_raw() || caller == 0, "user {caller} is not this runner's");
    let mut lines = Framed::new(stream, LinesCodec::new_with_max_length(LONGEST_LINE));
    while let Some(line) = lines.next().await {
        let answer = match serde_json::from_str(&line?) {
            Ok(Request::Watch) => return watch_children(lines, children).await,
            Ok(Request::Start(start)) => children.start(start),
            Ok(Request::Stop { id, epoch, grace_ms }) => {
                children.stop(&id, epoch, Duration::from_millis(grace_ms))
            }
            Ok(Request::Acknowledge { id, epoch }) => children.acknowledge(&id, epoch),
            Err(error) => Err(format!("the request can't be read: {error}")),
        };
        let answer = match answer {
            Ok(()) => Answer::Done,
            Err(why) => Answer::Refused(why),
        };
        lines.send(serde_json::to_string(&answer)?).await?;
    }
    Ok(())
}

async fn watch_children(mut lines: Framed<UnixStream, LinesCodec>, children: &Children) -> Result<()> {
    let mut changed = children.changed.subscribe();
    loop {
        changed.borrow_and_update();
        lines.send(serde_json::to_string(&Answer::Children(children.list()))?).await?;
        tokio::select! {
            change = changed.changed() => change?,
            // The watcher says nothing more; this is how its going away is noticed.
            _ = lines.next() => return Ok(()),
        }
    }
}

/// All processes, by workload id.
#[derive(Default)]
struct Children {
    entries: Mutex<BTreeMap<String, Entry>>,
    /// Bumped after every change.
    changed: watch::Sender<u64>,
}

struct Entry {
    listed: Listed,
    stop: watch::Sender<Option<Duration>>,
}

impl Children {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        self.entries.lock().expect("no panic while children are changed")
    }

    fn list(&self) -> Vec<Listed> {
        self.lock().values().map(|entry| entry.listed.clone()).collect()
    }

    fn start(self: &Arc<Self>, start: Start) -> Result<(), String> {
        let mut entries = self.lock();
        if let Some(entry) = entries.get(&start.id) {
            let Listed { id, epoch, pid, state, .. } = &entry.listed;
            return Err(match state {
                State::Exited(_) => format!("the end of epoch {epoch} of {id} has not been acknowledged"),
                State::Running | State::Stopping => format!("epoch {epoch} of {id} runs as process {pid}"),
            });
        }
        if entries.len() >= MOST_CHILDREN {
            return Err(format!("{MOST_CHILDREN} processes are the most that one runner holds"));
        }
        let started = Started::new(&start)
            .map_err(|error| format!("{} can't be started: {error}", start.program.display()))?;
        tracing::info!(id = start.id, epoch = start.epoch, pid = started.pid, "started");
        let Start { id, epoch, memory_bytes, .. } = start;
        let (stop, stopped) = watch::channel(None);
        let listed = Listed { id: id.clone(), epoch, memory_bytes, pid: started.pid, state: State::Running };
        entries.insert(id.clone(), Entry { listed, stop });
        drop(entries);
        self.bump();
        let children = self.clone();
        tokio::spawn(async move {
            let exit = started.end(stopped).await;
            tracing::info!(id, epoch, ?exit, "ended");
            if let Some(entry) = children.lock().get_mut(&id) {
                entry.listed.state = State::Exited(exit);
            }
            children.bump();
        });
        Ok(())
    }

    fn stop(&self, id: &str, epoch: u64, grace: Duration) -> Result<(), String> {
        let mut entries = self.lock();
        let entry = entry_of(&mut entries, id, epoch)?;
        if entry.listed.state == State::Running {
            entry.listed.state = State::Stopping;
            entry.stop.send_replace(Some(grace));
        }
        drop(entries);
        self.bump();
        Ok(())
    }

    fn acknowledge(&self, id: &str, epoch: u64) -> Result<(), String> {
        let mut entries = self.lock();
        if let State::Running | State::Stopping = entry_of(&mut entries, id, epoch)?.listed.state {
            return Err(format!("epoch {epoch} of {id} has not ended"));
        }
        entries.remove(id);
        drop(entries);
        self.bump();
        Ok(())
    }

    fn bump(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    async fn end_all(&self, grace: Duration) {
        let mut changed = self.changed.subscribe();
        for listed in self.list() {
            if let Err(gone) = self.stop(&listed.id, listed.epoch, grace) {
                tracing::debug!(gone);
            }
        }
        let ended = |entry: &Entry| matches!(entry.listed.state, State::Exited(_));
        while !self.lock().values().all(ended) {
            if changed.changed().await.is_err() {
                return;
            }
        }
    }
}

fn entry_of<'a>(
    entries: &'a mut BTreeMap<String, Entry>,
    id: &str,
    epoch: u64,
) -> Result<&'a mut Entry, String> {
    let entry = entries.get_mut(id).filter(|entry| entry.listed.epoch == epoch);
    entry.ok_or_else(|| format!("there is no epoch {epoch} of {id}"))
}

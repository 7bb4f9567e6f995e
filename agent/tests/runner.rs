//! The runner with real processes.
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use futures::{Stream, StreamExt};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};
use tandem_agent::runner::{Client, Exit, Listed, RunnerError, Start, State};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// Far more than anything here takes.
const LIMIT: Duration = Duration::from_secs(60);

struct Runner {
    dir: TempDir,
    process: Child,
    client: Client,
}

fn runner_command(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tandem-agent"));
    command.arg("runner").arg("--dir").arg(dir).arg("--socket").arg(dir.join("runner.sock"));
    command.stdin(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

impl Runner {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut process = runner_command(dir.path()).env("SECRET", "of the agent").spawn().unwrap();
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let ready = async {
            while let Some(line) = lines.next_line().await.unwrap() {
                if line.contains("runner is ready") {
                    return;
                }
            }
            panic!("the runner ended");
        };
        timeout(LIMIT, ready).await.unwrap();
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        let client = Client::new(&dir.path().join("runner.sock"));
        Self { dir, process, client }
    }

    fn shell(&self, id: &str, script: &str) -> Start {
        Start {
            id: id.to_owned(),
            epoch: 1,
            memory_bytes: 7,
            program: "/bin/sh".into(),
            args: vec!["-c".to_owned(), script.to_owned()],
            env: [("PATH".to_owned(), "/usr/bin:/bin".to_owned()), ("GIVEN".to_owned(), "yes".to_owned())]
                .into(),
            log: self.log(id),
        }
    }

    fn log(&self, id: &str) -> PathBuf {
        self.dir.path().join("logs").join(id)
    }

    async fn listed(&self) -> Vec<Listed> {
        let mut list = Box::pin(self.client.watch().await.unwrap());
        timeout(LIMIT, list.next()).await.unwrap().unwrap().unwrap()
    }

    async fn end_of(&self, id: &str) -> Exit {
        let list = self.client.watch().await.unwrap();
        end_of(list, id).await
    }
}

async fn end_of(list: impl Stream<Item = Result<Vec<Listed>, RunnerError>>, id: &str) -> Exit {
    let mut list = Box::pin(list);
    let ended = async {
        loop {
            for listed in list.next().await.unwrap().unwrap() {
                if let (true, State::Exited(exit)) = (listed.id == id, listed.state) {
                    return exit;
                }
            }
        }
    };
    timeout(LIMIT, ended).await.unwrap()
}

/// A pipe by name that ends when the process that writes to it does.
struct LifeLine {
    path: PathBuf,
    end: pipe::Receiver,
}

impl LifeLine {
    fn new(dir: &Path) -> Self {
        let path = dir.join("life");
        mkfifo(&path, Mode::S_IRWXU).unwrap();
        let end = pipe::OpenOptions::new().open_receiver(&path).unwrap();
        Self { path, end }
    }

    /// Waits for a first byte, which says that the writer has it open.
    async fn begun(&mut self) {
        let mut byte = [0];
        timeout(LIMIT, self.end.read_exact(&mut byte)).await.unwrap().unwrap();
    }

    async fn over(mut self) {
        let mut rest = Vec::new();
        timeout(LIMIT, self.end.read_to_end(&mut rest)).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn an_end_is_remembered_until_it_is_acknowledged() {
    let runner = Runner::start().await;
    runner.client.start(runner.shell("a", "echo said; exit 7")).await.unwrap();
    let exit = runner.end_of("a").await;
    assert_eq!(exit, Exit { code: Some(7), ..Exit::default() });
    let error = runner.client.start(runner.shell("a", "true")).await.unwrap_err();
    assert!(error.to_string().contains("has not been acknowledged"), "{error}");
    // Another agent, later, learns it too.
    let another = Client::new(&runner.dir.path().join("runner.sock"));
    assert_eq!(end_of(another.watch().await.unwrap(), "a").await, exit);
    assert!(another.acknowledge("a", 2).await.is_err());
    another.acknowledge("a", 1).await.unwrap();
    assert_eq!(runner.listed().await, []);
    runner.client.start(runner.shell("a", "exit 0")).await.unwrap();
    assert_eq!(runner.end_of("a").await.code, Some(0));
}

#[tokio::test]
async fn a_child_inherits_nothing_but_what_it_is_given() {
    let runner = Runner::start().await;
    runner.client.start(runner.shell("a", "env; ulimit -c; echo to-stderr >&2")).await.unwrap();
    runner.end_of("a").await;
    let log = fs::read_to_string(runner.log("a")).unwrap();
    assert!(log.contains("GIVEN=yes") && log.contains("to-stderr"), "{log}");
    assert!(!log.contains("SECRET"), "{log}");
    assert!(log.lines().any(|line| line == "0"), "core files are not off: {log}");
}

#[tokio::test]
async fn one_process_of_a_workload_and_one_runner_of_a_folder() {
    let runner = Runner::start().await;
    runner.client.start(runner.shell("a", "cat")).await.unwrap();
    let listed = runner.listed().await;
    assert_eq!((listed.len(), listed[0].memory_bytes, &listed[0].state), (1, 7, &State::Running));
    let error = runner.client.start(Start { epoch: 2, ..runner.shell("a", "cat") }).await.unwrap_err();
    assert!(error.to_string().contains("epoch 1 of a runs as process"), "{error}");
    assert!(matches!(runner.client.acknowledge("a", 1).await, Err(RunnerError::Refused(_))));
    let second = runner_command(runner.dir.path()).output();
    let second = timeout(LIMIT, second).await.unwrap().unwrap();
    assert!(!second.status.success());
    assert!(String::from_utf8_lossy(&second.stderr).contains("another runner holds"));
    // The first is as it was.
    assert_eq!(runner.listed().await, listed);
    let missing = Start { program: "/no/such/program".into(), ..runner.shell("b", "") };
    assert!(runner.client.start(missing).await.unwrap_err().to_string().contains("/no/such/program"));
}

#[tokio::test]
async fn a_process_that_ignores_sigterm_is_killed_after_its_grace_with_what_it_started() {
    let runner = Runner::start().await;
    let mut life = LifeLine::new(runner.dir.path());
    let script = format!("trap '' TERM; exec 3>{}; echo x >&3; cat & cat", life.path.display());
    runner.client.start(runner.shell("a", &script)).await.unwrap();
    life.begun().await;
    runner.client.stop("a", 1, Duration::from_millis(50)).await.unwrap();
    let exit = runner.end_of("a").await;
    assert_eq!((exit.signal, exit.asked, exit.note), (Some(9), true, None));
    life.over().await;
    assert!(runner.client.stop("b", 1, Duration::ZERO).await.is_err());
}

#[tokio::test]
async fn a_polite_process_ends_within_its_grace() {
    let runner = Runner::start().await;
    let mut life = LifeLine::new(runner.dir.path());
    let script = format!(
        "trap 'exit 3' TERM; exec 3>{}; echo x >&3; while :; do read line; done",
        life.path.display()
    );
    runner.client.start(runner.shell("a", &script)).await.unwrap();
    life.begun().await;
    runner.client.stop("a", 1, LIMIT).await.unwrap();
    assert!(matches!(runner.end_of("a").await, Exit { code: Some(3), asked: true, .. }));
}

#[tokio::test]
async fn workers_end_when_the_runner_is_killed() {
    let mut runner = Runner::start().await;
    let mut life = LifeLine::new(runner.dir.path());
    let script = format!("exec 3>{}; echo x >&3; cat", life.path.display());
    runner.client.start(runner.shell("a", &script)).await.unwrap();
    life.begun().await;
    runner.process.kill().await.unwrap();
    life.over().await;
    assert!(matches!(runner.client.watch().await.err(), Some(RunnerError::Absent { .. })));
}

#[tokio::test]
async fn a_runner_that_is_told_to_end_ends_its_children_first() {
    let mut runner = Runner::start().await;
    let mut life = LifeLine::new(runner.dir.path());
    let script = format!("exec 3>{}; echo x >&3; cat", life.path.display());
    runner.client.start(runner.shell("a", &script)).await.unwrap();
    life.begun().await;
    let pid = fs::read_to_string(runner.dir.path().join("runner.pid")).unwrap().trim().parse().unwrap();
    assert_eq!(runner.process.id(), Some(u32::try_from(pid).unwrap()));
    kill(Pid::from_raw(pid), Signal::SIGTERM).unwrap();
    assert!(timeout(LIMIT, runner.process.wait()).await.unwrap().unwrap().success());
    life.over().await;
    assert!(!runner.dir.path().join("runner.pid").exists());
}

#[tokio::test]
async fn strangers_and_garbage_change_nothing() {
    let runner = Runner::start().await;
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let socket = runner.dir.path().join("runner.sock");
    assert_eq!((mode(&socket), mode(runner.dir.path())), (0o600, 0o700));
    for garbage in [b"{\"do\":\"dance\"}\n".to_vec(), b"\xff\xfe\n".to_vec(), vec![b'x'; 1 << 20]] {
        let mut stream = UnixStream::connect(&socket).await.unwrap();
        // A line that is too long is not read to its end.
        drop(stream.write_all(&garbage).await);
        drop(stream.shutdown().await);
        let mut answer = String::new();
        drop(timeout(LIMIT, stream.read_to_string(&mut answer)).await.unwrap());
        assert!(answer.is_empty() || answer.contains("can't be read"), "{answer}");
    }
    assert_eq!(runner.listed().await, []);
}

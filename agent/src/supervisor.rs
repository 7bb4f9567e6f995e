//! Keeps a runner on this host, and tells the agent what runs in it.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result};
use futures::StreamExt;
use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::process::Command;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use crate::event::Event;
use crate::home::Home;
use crate::machine::is_alive;
use crate::runner::{Client, Listed, State};
use crate::settings::passed_on;

/// How often a runner that is not there yet is looked for.
const LOOK: Duration = Duration::from_millis(50);
/// How long a runner may take to listen before another is started.
const LISTENS: Duration = Duration::from_secs(5);
/// How long workers without a runner may take to notice and end.
const ORPHANS_END: Duration = Duration::from_secs(10);

/// Watches the runner for ever.
pub(crate) struct Supervisor {
    pub(crate) dir: PathBuf,
    pub(crate) socket: PathBuf,
    pub(crate) external: bool,
    pub(crate) events: mpsc::Sender<Event>,
}

impl Supervisor {
    pub(crate) fn new(home: &Home, external: bool, events: mpsc::Sender<Event>) -> Self {
        Self { dir: home.runner(), socket: home.runner_socket(), external, events }
    }

    pub(crate) async fn run(self) {
        let client = Client::new(&self.socket);
        let mut asked_for = None;
        loop {
            match client.watch().await {
                Ok(children) => {
                    asked_for = None;
                    let last = self.follow(children).await;
                    tracing::error!("the runner is gone");
                    if self.events.send(Event::RunnerGone).await.is_err() {
                        return;
                    }
                    end_orphans(&last).await;
                }
                Err(error) => {
                    tracing::debug!(%error, "no runner yet");
                    let waited = asked_for.is_none_or(|since: Instant| since.elapsed() > LISTENS);
                    if !self.external && waited {
                        asked_for = Some(Instant::now());
                        if let Err(error) = self.start() {
                            tracing::error!(error = format!("{error:#}"), "no runner can be started");
                        }
                    }
                    if self.events.is_closed() {
                        return;
                    }
                    sleep(LOOK).await;
                }
            }
        }
    }

    /// Passes every change on; returns what ran when the runner went away.
    async fn follow(
        &self,
        children: impl futures::Stream<Item = Result<Vec<Listed>, crate::runner::RunnerError>>,
    ) -> Vec<Listed> {
        let mut children = std::pin::pin!(children);
        let mut last = Vec::new();
        while let Some(Ok(list)) = children.next().await {
            last.clone_from(&list);
            if self.events.send(Event::Children(list)).await.is_err() {
                break;
            }
        }
        last
    }

    /// Starts a runner that does not end with us: it makes a session of its own.
    fn start(&self) -> Result<()> {
        let path = self.dir.join("log");
        // A runner says little; its log starts anew with it once it is long.
        let long = fs::metadata(&path).is_ok_and(|log| log.len() > 1 << 20);
        let log = File::options().create(true).append(!long).write(true).truncate(long).open(&path)?;
        let program = std::env::current_exe().context("this program's own path is unknown")?;
        let mut child = Command::new(&program)
            .arg("runner")
            .arg("--socket")
            .arg(&self.socket)
            .arg("--dir")
            .arg(&self.dir)
            .env_clear()
            .envs(passed_on())
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("{} can't be started", program.display()))?;
        tracing::info!(pid = child.id(), "started a runner");
        // As long as we live we are its parent, and reap it.
        tokio::spawn(async move {
            if let Ok(status) = child.wait().await {
                tracing::info!(%status, "the runner that this agent started has ended");
            }
        });
        Ok(())
    }
}

/// Workers end by themselves when their runner does. One that hangs must not hold devices and memory for ever, and nobody
/// else can end it.
async fn end_orphans(last: &[Listed]) {
    let ran = last.iter().filter(|listed| !matches!(listed.state, State::Exited(_)));
    let mut pids: Vec<u32> = ran.map(|listed| listed.pid).collect();
    let start = Instant::now();
    while start.elapsed() < ORPHANS_END {
        pids.retain(|pid| is_alive(*pid));
        if pids.is_empty() {
            return;
        }
        sleep(LOOK).await;
    }
    for pid in pids {
        tracing::warn!(pid, "a worker outlived its runner and is killed");
        match killpg(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => tracing::error!(pid, %error, "it can't be killed"),
        }
    }
}

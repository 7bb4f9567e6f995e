//! One process from start to end.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::net::unix::pipe;
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::log;
use super::protocol::{Exit, Start};

/// How long a log may take to be written once the process has ended.
const LAST_LINES: Duration = Duration::from_secs(2);

/// A process that was just started.
pub(crate) struct Started {
    pub(crate) pid: u32,
    child: Child,
    /// Its standard input: while we hold it, the child knows that we live.
    stdin: Option<ChildStdin>,
    log: JoinHandle<()>,
    kernel_kills: Option<u64>,
}

impl Started {
    /// Starts a process in a process group of its own, with nothing of our environment, and its output in its log.
    pub(crate) fn new(start: &Start) -> io::Result<Self> {
        if let Some(folder) = start.log.parent() {
            fs::create_dir_all(folder)?;
        }
        let (reader, writer) = io::pipe()?;
        let output = pipe::Receiver::from_owned_fd(OwnedFd::from(reader))?;
        let mut child = Command::new(&start.program)
            .args(&start.args)
            .env_clear()
            .envs(&start.env)
            .stdin(Stdio::piped())
            .stdout(writer.try_clone()?)
            .stderr(writer)
            .process_group(0)
            .spawn()?;
        let log = tokio::spawn(log::keep(output, start.log.clone()));
        let pid = child.id().ok_or_else(|| io::Error::other("it ended before it had a process id"))?;
        let stdin = child.stdin.take();
        Ok(Self { pid, child, stdin, log, kernel_kills: kernel_kills() })
    }

    /// Waits for the end. `stop` carries the grace of whoever wants it to end: SIGTERM at once, SIGKILL after that.
    pub(crate) async fn end(mut self, mut stop: watch::Receiver<Option<Duration>>) -> Exit {
        let status = tokio::select! {
            status = self.child.wait() => status,
            grace = asked(&mut stop) => {
                self.signal(Signal::SIGTERM);
                tokio::select! {
                    status = self.child.wait() => status,
                    () = sleep(grace) => {
                        self.signal(Signal::SIGKILL);
                        self.child.wait().await
                    }
                }
            }
        };
        drop(self.stdin.take());
        // Whatever it started itself ends with it.
        self.signal(Signal::SIGKILL);
        // Whoever hears of the end may read the log to its end.
        if timeout(LAST_LINES, &mut self.log).await.is_err() {
            self.log.abort();
        }
        let asked = stop.borrow().is_some();
        match status {
            Ok(status) => self.exit(status, asked),
            Err(error) => {
                Exit { asked, note: Some(format!("its end could not be seen ({error})")), ..Exit::default() }
            }
        }
    }

    fn exit(&self, status: ExitStatus, asked: bool) -> Exit {
        let killed = status.signal() == Some(Signal::SIGKILL as i32) && !asked;
        let out_of_memory = killed && self.kernel_kills < kernel_kills();
        let note = out_of_memory.then(|| "killed by the kernel, out of memory".to_owned());
        Exit { code: status.code(), signal: status.signal(), asked, note }
    }

    fn signal(&self, signal: Signal) {
        match killpg(Pid::from_raw(self.pid.cast_signed()), signal) {
            // No such group: it is gone, which is what was wanted.
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => tracing::warn!(pid = self.pid, %signal, %error, "a signal could not be sent"),
        }
    }
}

async fn asked(stop: &mut watch::Receiver<Option<Duration>>) -> Duration {
    match stop.wait_for(Option::is_some).await.map(|grace| *grace) {
        Ok(Some(grace)) => grace,
        // Nobody can ask any more.
        _ => std::future::pending().await,
    }
}

/// How many processes the kernel has killed for want of memory since it started; Linux counts them.
fn kernel_kills() -> Option<u64> {
    let counters = fs::read_to_string("/proc/vmstat").ok()?;
    let count = counters.lines().find_map(|line| line.strip_prefix("oom_kill "))?;
    count.trim().parse().ok()
}

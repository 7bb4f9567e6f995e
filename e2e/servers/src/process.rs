//! A server process with its log in a file; it ends when it is dropped, and when its owner is killed.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use crate::tether::Tethered;

/// How often it is asked whether a server is ready: none of them says so by itself.
const ASK: Duration = Duration::from_millis(50);

/// A running server. Dropping it kills its process group and reaps it.
pub struct Server {
    name: String,
    command: Command,
    child: Tethered,
    log: PathBuf,
}

impl Server {
    /// Starts `command` in a process group of its own, with both outputs appended to `NAME.log` in `dir`.
    ///
    /// # Errors
    /// When program or log can't be opened.
    pub fn start(name: &str, mut command: Command, dir: &Path) -> Result<Self> {
        let log = dir.join(format!("{name}.log"));
        command.current_dir(dir).stdin(Stdio::null());
        let child = spawn(&mut command, &log)?;
        Ok(Self { name: name.to_owned(), command, child, log })
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// Sends it a signal, such as SIGSTOP.
    ///
    /// # Errors
    /// When it is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(self.id(), signal).with_context(|| format!("{} can't be signalled", self.name))
    }

    /// SIGKILL, and reaps it.
    pub fn kill(&mut self) {
        // A group that is gone already is what we want.
        killpg(self.id(), Signal::SIGKILL).unwrap_or_default();
        drop(self.child.wait());
    }

    /// Starts it again as it was started, after [`Server::kill`].
    ///
    /// # Errors
    /// When program or log can't be opened.
    pub fn restart(&mut self) -> Result<()> {
        self.child = spawn(&mut self.command, &self.log)?;
        Ok(())
    }

    /// Waits until `ready` says so, and fails with the end of the log when the server ends before or `within` has passed.
    ///
    /// # Errors
    /// As said.
    pub fn wait(&mut self, within: Duration, mut ready: impl FnMut() -> bool) -> Result<()> {
        let end = Instant::now() + within;
        while !ready() {
            self.check()?;
            if Instant::now() > end {
                bail!("{} is not ready after {within:?}:\n{}", self.name, self.last_words(20));
            }
            std::thread::sleep(ASK);
        }
        Ok(())
    }

    /// Fails with the end of the log if it has ended.
    ///
    /// # Errors
    /// As said.
    pub fn check(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("{} ended with {status}:\n{}", self.name, self.last_words(20));
        }
        Ok(())
    }

    /// The end of its log, for the report of a failure.
    #[must_use]
    pub fn last_words(&self, lines: usize) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }
}

fn spawn(command: &mut Command, log: &Path) -> Result<Tethered> {
    let file = File::options().create(true).append(true).open(log).context("the log can't be opened")?;
    command.stdout(file.try_clone().context("the log can't be opened twice")?).stderr(file);
    Tethered::spawn(command).with_context(|| format!("{} can't be started", command.get_program().display()))
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

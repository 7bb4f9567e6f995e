//! A child process with its log in a file, that ends when it is dropped, and when its owner is killed.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use tandem_servers::Tethered;

/// A running program. Dropping it kills its process group and reaps it.
pub struct Process {
    name: String,
    child: Tethered,
    log: PathBuf,
}

impl Process {
    /// Starts `command` in a process group of its own, with both outputs appended to `log`.
    ///
    /// # Errors
    /// When the program or the log can't be opened.
    pub fn start(name: &str, mut command: Command, log: &Path) -> Result<Self> {
        let file = File::options().create(true).append(true).open(log).context("the log can't be opened")?;
        command.stdin(Stdio::null());
        command.stdout(file.try_clone().context("the log can't be opened twice")?).stderr(file);
        let child = Tethered::spawn(&mut command)
            .with_context(|| format!("{} can't be started", command.get_program().display()))?;
        Ok(Self { name: name.to_owned(), child, log: log.to_owned() })
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// What it is called in messages.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// All that it has logged.
    ///
    /// # Errors
    /// When the log can't be read.
    pub fn log(&self) -> Result<String> {
        fs::read_to_string(&self.log).with_context(|| format!("the log of {} can't be read", self.name))
    }

    /// The end of its log, for the report of a failure.
    #[must_use]
    pub fn last_words(&self, lines: usize) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    /// Sends a signal to the process alone.
    ///
    /// # Errors
    /// When it is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(self.id(), signal).with_context(|| format!("{} can't be signalled", self.name))
    }

    /// SIGKILL, and reaps it.
    ///
    /// # Errors
    /// When it can't be reaped.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill().with_context(|| format!("{} can't be killed", self.name))?;
        self.child.wait().with_context(|| format!("{} can't be reaped", self.name))?;
        Ok(())
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // A group that is gone already is what we want; nothing is left to report to.
        killpg(self.id(), Signal::SIGKILL).unwrap_or_default();
        drop(self.child.wait());
    }
}

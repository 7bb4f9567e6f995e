//! The program `tandem`, run as an operator of the site would run it.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// The CLI with the credentials of the site's first admin.
#[derive(Clone, Debug)]
pub struct Cli {
    program: PathBuf,
    config: PathBuf,
}

impl Cli {
    pub(crate) fn new(program: PathBuf, config: PathBuf) -> Self {
        Self { program, config }
    }

    /// Runs it; its standard output, or an error with what it said.
    ///
    /// # Errors
    /// When it ends with another code than 0.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        let output = self.command().args(arguments).output()?;
        if !output.status.success() {
            bail!("tandem {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        String::from_utf8(output.stdout).context("the CLI printed no UTF-8")
    }

    /// Waits until a condition of an object is True.
    ///
    /// # Errors
    /// After the timeout, with the state it was in.
    pub fn wait_for(&self, object: &str, condition: &str, timeout: Duration) -> Result<()> {
        let condition = format!("condition={condition}");
        let timeout = format!("{}s", timeout.as_secs());
        self.run(&["wait", object, "--for", &condition, "--timeout", &timeout]).map(drop)
    }

    /// Follows an object by the CLI's watch; returns when `done` says so, called with every version as JSON.
    ///
    /// # Errors
    /// After the timeout, or when the watch ends.
    pub fn watch(
        &self,
        object: &str,
        timeout: Duration,
        mut done: impl FnMut(&Value) -> bool,
    ) -> Result<Value> {
        let start = Instant::now();
        let seconds = format!("{}s", timeout.as_secs());
        let mut child = self
            .command()
            .args(["get", object, "--watch", "-o", "jsonl", "--timeout", &seconds])
            .stdout(Stdio::piped())
            .spawn()?;
        let lines = BufReader::new(child.stdout.take().context("the watch has no output")?).lines();
        let mut found = None;
        for line in lines {
            let value: Value = serde_json::from_str(&line?).context("the watch printed no JSON")?;
            if done(&value) {
                found = Some(value);
                break;
            }
        }
        child.kill()?;
        child.wait()?;
        found.with_context(|| format!("{object} was not as expected after {:?}", start.elapsed()))
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.env("TANDEM_CONFIG", &self.config).stdin(Stdio::null());
        command
    }
}

//! Holds the official OpenAI SDK for Python against `inference-worker serve` and against a gateway.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tandem_e2e::{Layout, MODEL, Programs, Site, deploy, model_file};

use crate::cache;
use crate::steps::Outcome;

pub(crate) fn run() -> Result<Outcome> {
    let python = match python() {
        Ok(python) => python,
        Err(error) => return Ok(Outcome::Skipped(format!("{error:#}"))),
    };
    let programs = Programs::find()?;
    eprintln!("against inference-worker serve:");
    let mut alone = Alone::start(&programs)?;
    check(&python, &alone.base, MODEL)?;
    alone.stop()?;
    eprintln!("against a gateway:");
    let site = Site::start(programs, Layout { hosts: 1, gateways: 1 })?;
    let checked = deploy(&site, 0).and_then(|()| check(&python, site.client(0)?.base(), MODEL));
    if checked.is_err() {
        eprintln!("{}", site.last_words(15));
    }
    checked.map(|()| Outcome::Passed)
}

fn check(python: &Path, base: &str, model: &str) -> Result<()> {
    let script = cache::workspace().join("e2e/sdk/check.py");
    let status = Command::new(python).arg(script).args([base, model]).stdin(Stdio::null()).status()?;
    if !status.success() {
        bail!("the SDK is not content with {base}");
    }
    Ok(())
}

/// A virtual environment with the pinned SDK, made in the cache on first use.
fn python() -> Result<PathBuf> {
    let requirements = cache::workspace().join("e2e/sdk/requirements.txt");
    let pinned = std::fs::read_to_string(&requirements)?;
    let dir = cache::dir()?.join(format!("python-{}", pinned.trim().replace("==", "-")));
    let python = dir.join("bin/python");
    let done = dir.join("complete");
    if done.is_file() {
        return Ok(python);
    }
    let made = Command::new("python3").args(["-m", "venv", "--clear"]).arg(&dir).status();
    if !made.context("python3 is not installed")?.success() {
        bail!("python3 can't make virtual environments: install its venv module");
    }
    let installed = Command::new(&python)
        .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--requirement"])
        .arg(&requirements)
        .status()?;
    if !installed.success() {
        bail!("the SDK could not be installed: is the package index reachable?");
    }
    std::fs::write(done, "")?;
    Ok(python)
}

/// Bound on the start of `inference-worker serve`.
const START: Duration = Duration::from_secs(60);

/// `inference-worker serve` with the tiny model.
struct Alone {
    child: Child,
    base: String,
}

impl Alone {
    fn start(programs: &Programs) -> Result<Self> {
        let mut child = Command::new(programs.path("inference-worker"))
            .arg("serve")
            .arg(model_file())
            .args(["--port", "0", "--name", MODEL])
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("inference-worker can't be started")?;
        let output = child.stderr.take().context("the server has no output")?;
        let (found, base) = mpsc::channel();
        // It says in one line where it listens, once it does. The rest is read too, or it would block.
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                eprintln!("{line}");
                if let Some(at) = line.find("http://") {
                    let url = line[at..].split_whitespace().next().unwrap_or_default();
                    // Nobody waits any more once the first was found.
                    found.send(url.trim_end_matches("/v1").to_owned()).unwrap_or_default();
                }
            }
        });
        let mut alone = Self { child, base: String::new() };
        alone.base =
            base.recv_timeout(START).context("inference-worker serve doesn't say where it listens")?;
        Ok(alone)
    }

    fn stop(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        // Harmless when it was stopped already.
        drop(self.stop());
    }
}

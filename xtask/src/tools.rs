//! Test servers, built once into the cache.

use std::env;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use clap::Args;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tandem_servers::{Tethered, Tool, Tools};

use crate::steps::Outcome;

#[derive(Args)]
pub(crate) struct Options {
    /// Only show where they are, or would be.
    #[arg(long)]
    paths: bool,
}

pub(crate) fn build(options: &Options) -> Result<()> {
    let tools = Tools::find()?;
    for tool in Tool::ALL {
        let dir = if options.paths { tools.place(tool)? } else { tools.dir(tool)? };
        println!("{}", dir.display());
    }
    Ok(())
}

/// Those that tests start, as a step of `test`.
pub(crate) fn step() -> Result<Outcome> {
    let tools = Tools::find()?;
    for tool in
        [Tool::Kubernetes, Tool::Etcd, Tool::Helm, Tool::Prometheus, Tool::Lua, Tool::Kstatus, Tool::Flux]
    {
        tool.check_system()?;
        tools.dir(tool)?;
    }
    Ok(Outcome::Passed)
}

/// Builds every tool while other steps run, from what those leave of the machine. Whoever wants a tool finds it, or waits for it.
pub(crate) struct Ahead(Tethered);

impl Ahead {
    pub(crate) fn begin() -> Result<Self> {
        let own = env::current_exe().context("this program's own path is unknown")?;
        let mut tools = Command::new("nice");
        tools.args(["-n", "10"]).arg(own).arg("tools").stdin(Stdio::null()).stdout(Stdio::null());
        Tethered::spawn(&mut tools).map(Self).context("nice can't be started")
    }

    /// Waits for its end: tests are not to run beside compilers. What it could not build, the step that wants it says.
    pub(crate) fn finish(mut self) -> Result<()> {
        self.0.wait().map(drop).context("a build can't be waited for")
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        killpg(Pid::from_raw(self.0.id().cast_signed()), Signal::SIGKILL).unwrap_or_default();
        drop(self.0.wait());
    }
}

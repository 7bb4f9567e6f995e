//! Test servers, built once into the cache.

use anyhow::Result;
use clap::Args;
use tandem_servers::{Tool, Tools};

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

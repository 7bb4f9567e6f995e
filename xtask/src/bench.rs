//! `cargo xtask bench`: figures that anyone can measure again.

mod quantiles;
mod takeover;

use anyhow::Result;
use clap::Subcommand;

#[derive(Subcommand)]
pub(crate) enum Bench {
    /// Kill and freeze what serves a stream, at random tokens, and measure how long the client waits for the next one.
    Takeover(takeover::Options),
}

pub(crate) fn run(bench: &Bench) -> Result<()> {
    match bench {
        Bench::Takeover(options) => takeover::run(options),
    }
}

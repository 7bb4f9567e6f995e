//! `cargo xtask bench`: figures that anyone can measure again.

mod control_plane;
mod plan;
mod quantiles;
mod release;
mod takeover;
mod weights;

use anyhow::Result;
use clap::Subcommand;

use self::release::Release;

#[derive(Subcommand)]
pub(crate) enum Bench {
    /// Kill and freeze what serves a stream, at random tokens, and measure how long the client waits for the next one.
    Takeover(takeover::Options),
    /// A thousand simulated hosts on one real operator: processor, memory, writes, and how soon hosts are told of a change. Builds for
    /// release.
    ControlPlane(control_plane::Options),
    /// Plan fleets of several sizes, up to 10,000 hosts and 5,000 deployments. Builds for release.
    Plan(plan::Options),
    /// Fetch weights from a hub on loopback, held against dd and curl, and by several hosts at once. Builds for release.
    Weights(weights::Options),
}

pub(crate) fn run(bench: &Bench) -> Result<()> {
    match bench {
        Bench::Takeover(options) => takeover::run(options),
        Bench::ControlPlane(options) => match release::with("tandem-operator")? {
            Release::Ran => Ok(()),
            Release::Here => control_plane::run(options),
        },
        Bench::Plan(options) => match release::alone()? {
            Release::Ran => Ok(()),
            Release::Here => plan::run(options),
        },
        Bench::Weights(options) => match release::again()? {
            Release::Ran => Ok(()),
            Release::Here => weights::run(options),
        },
    }
}

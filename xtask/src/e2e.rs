//! `cargo xtask e2e`: the chart on a real cluster of two nodes and a machine outside of it, in namespaces of this one.

mod cluster;
mod scenarios;
mod streams;

use anyhow::{Result, ensure};
use clap::Args;
use tandem_servers::{Tool, Tools, site};

use crate::steps::{Outcome, Steps};
use crate::{packages, programs};

use self::cluster::Cluster;
use self::scenarios::Scenario;

/// What clusters are made of.
const TOOLS: [Tool; 9] = [
    Tool::Kubernetes,
    Tool::Etcd,
    Tool::Containerd,
    Tool::Runc,
    Tool::Cni,
    Tool::CoreDns,
    Tool::Helm,
    Tool::Dra,
    Tool::Policies,
];

#[derive(Args)]
pub(crate) struct Options {
    /// What is to be shown; without it, everything in this order.
    #[arg(value_parser = clap::builder::PossibleValuesParser::new(scenarios::NAMES))]
    scenarios: Vec<String>,
    /// Leave the cluster running after a failure until Enter is pressed.
    #[arg(long)]
    keep: bool,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    if site::inside().is_some() {
        return inside(options);
    }
    let mut steps = Steps::default();
    steps.step("system packages", packages::step)?;
    steps.step("cluster", || {
        programs::build()?;
        step(&options.scenarios, options.keep)
    })?;
    steps.finish();
    Ok(())
}

/// As a step of `test`: the programs are built already.
pub(crate) fn step(scenarios: &[String], keep: bool) -> Result<Outcome> {
    if let Some(lacks) = site::lacks() {
        return Ok(Outcome::Skipped(lacks));
    }
    let tools = Tools::find()?;
    for tool in TOOLS {
        if let Some(lacks) = tools.lacks(tool)? {
            return Ok(Outcome::Skipped(lacks));
        }
    }
    for tool in TOOLS {
        tools.dir(tool)?;
    }
    let mut arguments = vec!["e2e".to_owned()];
    arguments.extend(scenarios.iter().cloned());
    arguments.extend(keep.then(|| "--keep".to_owned()));
    let status = site::run_inside(&arguments)?;
    ensure!(status.success(), "the scenarios in the cluster ended with {status}");
    Ok(Outcome::Passed)
}

fn inside(options: &Options) -> Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    let mut cluster = Cluster::start(&runtime)?;
    let asked =
        |name: &str| options.scenarios.is_empty() || options.scenarios.iter().any(|other| other == name);
    let needed =
        |name: &str| scenarios::ALL.iter().any(|other| asked(other.name) && other.needs.contains(&name));
    for Scenario { name, run, .. } in scenarios::ALL {
        if !asked(name) && !needed(name) {
            continue;
        }
        eprintln!("   {name} …");
        let begun = std::time::Instant::now();
        if let Err(error) = run(&mut cluster) {
            eprintln!("{}", cluster.story());
            if options.keep {
                eprintln!(
                    "error: {error:#}\nthe cluster is left as it is: `nsenter -t {} -a`; Enter ends it",
                    std::process::id()
                );
                std::io::stdin().read_line(&mut String::new())?;
            }
            return Err(error.context(format!("scenario {name}")));
        }
        eprintln!("   {name}: {:.1} s", begun.elapsed().as_secs_f64());
    }
    Ok(())
}

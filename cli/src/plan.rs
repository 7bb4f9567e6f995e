//! `tandem plan`: what a deployment would need and where it would fit, before anything is applied or bought. Reads and prints;
//! what fits is decided by `tandem_plan::capacity`.

mod fleets;
mod local;
pub(crate) mod models;
pub(crate) mod show;
mod wanted;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use tandem_plan::capacity::{self, Fleet, Question, Report};

use crate::connection::Connection;
use crate::output::write;

pub(crate) use fleets::read as read_fleets;

/// What to plan, and for which machines.
#[derive(Args)]
#[command(
    after_help = "Works without a cluster: sizes come from the headers of the model's files, read by range requests, or \
                  without a network from a catalogue.\n\n\
                  Examples:\n  tandem plan -f examples/kimi.yaml --hosts examples/hosts/\n  \
                  tandem plan -f kimi.yaml --hosts my-macs.yaml --explain\n  \
                  tandem get infh mac-a -o yaml > my-macs.yaml  # a real host to plan with\n  \
                  tandem plan -f kimi.yaml -o json | jq '.fleets[].options[] | select(.fits)'\n  \
                  tandem plan -f kimi.yaml --model-headers /srv/models/kimi/  # files that are here"
)]
pub(crate) struct Options {
    /// A file, a folder of *.yaml, *.yml and *.json, or - for standard input. `placement.accelerators` may name Metal and CUDA
    /// here, too.
    #[arg(short = 'f', long = "filename", value_name = "FILE|DIR|-", required = true)]
    files: Vec<String>,
    /// Hosts to plan for: InferenceHosts with a status, in a file, which is one fleet, or a folder, of which each file is one.
    /// Without it, the cluster's hosts.
    #[arg(long, value_name = "FILE|DIR")]
    hosts: Vec<PathBuf>,
    /// The model's GGUF files, or a folder with them, instead of its source. Only headers are read.
    #[arg(long, value_name = "FILE|DIR")]
    model_headers: Vec<PathBuf>,
    #[command(flatten)]
    reach: models::Reach,
    /// How fast hosts download, in megabits a second.
    #[arg(long, value_name = "MEGABITS", default_value = "1000", value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    download: u64,
    /// Also say why numbers differ from rules of thumb.
    #[arg(long)]
    explain: bool,
    /// Form of output.
    #[arg(short, long, value_enum, default_value = "table")]
    output: Form,
}

/// Forms of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Form {
    /// For people.
    Table,
    /// One indented JSON text.
    Json,
    /// YAML.
    Yaml,
}

impl Form {
    /// The same value for programs; nothing for a table.
    pub(crate) fn of<T: serde::Serialize>(self, value: &T) -> Result<Option<String>> {
        Ok(match self {
            Self::Table => None,
            Self::Json => Some(serde_json::to_string_pretty(value)? + "\n"),
            Self::Yaml => Some(serde_yaml::to_string(value).context("the report can't be written as YAML")?),
        })
    }
}

pub(crate) async fn run(
    connect: &impl Fn() -> Result<Connection>,
    namespace: &str,
    options: &Options,
) -> Result<()> {
    let wanted = wanted::read(&options.files, namespace)?;
    let fleets = if options.hosts.is_empty() {
        vec![of_cluster(connect).await?]
    } else {
        fleets::read(&options.hosts)?
    };
    let mut reports: Vec<Report> = Vec::with_capacity(wanted.len());
    let mut text = String::new();
    for wanted in &wanted {
        let spec = &wanted.deployment.spec;
        let facts = if options.model_headers.is_empty() {
            models::facts(&options.reach, spec).await?
        } else {
            local::facts(&options.model_headers, spec)?
        };
        let question = Question {
            deployment: &wanted.name,
            spec,
            kinds: &wanted.kinds,
            download_bytes_per_second: options.download * 125_000,
        };
        let report = capacity::capacity(&facts, &question, &fleets);
        if options.output == Form::Table {
            text += &show::report(&report, wanted.refused_by_apply.as_deref());
            if let (true, Some(need)) = (options.explain, &report.need) {
                text += &show::notes(&capacity::rules_of_thumb(&facts, spec, need, &fleets));
            }
        }
        reports.push(report);
    }
    let whole = match reports.as_slice() {
        [report] => options.output.of(report)?,
        reports => options.output.of(&reports)?,
    };
    write(&whole.unwrap_or(text))
}

/// The hosts of the cluster that this command is configured for.
async fn of_cluster(connect: &impl Fn() -> Result<Connection>) -> Result<Fleet> {
    let mut connection = connect().context(
        "which hosts? Name some with --hosts, such as --hosts examples/hosts/, or configure a cluster, whose hosts are taken",
    )?;
    let hosts = connection.list(crate::object::Kind::Host, true).await?;
    if hosts.is_empty() {
        bail!("the cluster has no hosts yet: name some with --hosts, such as --hosts examples/hosts/");
    }
    // Read leniently: an operator that is newer than this program may say more of them.
    let hosts = hosts.into_iter().map(|mut host| {
        if host["spec"].is_null() {
            host["spec"] = serde_json::json!({});
        }
        serde_json::from_value(host)
    });
    let hosts = hosts.collect::<Result<_, _>>();
    Ok(Fleet {
        name: "cluster".to_owned(),
        hosts: hosts.context("the operator sent a host that can't be read")?,
    })
}

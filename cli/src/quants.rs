//! `tandem quants`: a repository's quants, what each would need, and where it fits.

use anyhow::{Result, anyhow, bail};
use clap::Args;
use serde::Serialize;
use std::path::PathBuf;
use tandem_crds::InferenceDeploymentSpec;
use tandem_crds::manifest::{self, Object};
use tandem_plan::capacity::{self, Exactness, Fleet, ModelFacts, OtherQuant, Question};
use tandem_plan::catalogue::Catalogue;
use tandem_plan::human;
use tandem_sources::{ResolveError, Source};

use crate::output::{faint, write};
use crate::plan::{Form, models, read_fleets};
use crate::table;

/// Which repository, and what for.
#[derive(Args)]
#[command(after_help = "Examples:\n  tandem quants hf://unsloth/Kimi-K2.5-GGUF\n  \
                  tandem quants hf://unsloth/Kimi-K2.5-GGUF@main --context 98304 --hosts examples/hosts/\n  \
                  tandem quants file:///srv/models/tiny-kimi -o json")]
pub(crate) struct Options {
    /// hf://owner/repository@revision, or any other source.
    #[arg(value_name = "SOURCE")]
    source: String,
    /// Longest sequence in tokens; the pool is as long.
    #[arg(long, value_name = "TOKENS", default_value = "8192", value_parser = clap::value_parser!(u32).range(16..=4_194_304))]
    context: u32,
    /// Hosts to fit them on, as for `tandem plan`.
    #[arg(long, value_name = "FILE|DIR")]
    hosts: Vec<PathBuf>,
    #[command(flatten)]
    reach: models::Reach,
    /// Form of output.
    #[arg(short, long, value_enum, default_value = "table")]
    output: Form,
}

/// One quant. Sizes are bytes.
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    quant: String,
    files: Option<usize>,
    file_bytes: u64,
    /// Absent where neither headers nor catalogue say it.
    #[serde(skip_serializing_if = "Option::is_none")]
    needed_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exactness: Option<Exactness>,
    /// Fleets, with the kinds of device, that take a copy.
    fits: Vec<String>,
    /// What stands against it in this release.
    limits: Vec<String>,
}

struct Listed {
    quant: String,
    files: Option<usize>,
    bytes: u64,
}

pub(crate) async fn run(options: &Options) -> Result<()> {
    let fleets = if options.hosts.is_empty() { Vec::new() } else { read_fleets(&options.hosts)? };
    let listed = listed(options).await?;
    if listed.is_empty() {
        bail!("{} holds no GGUF model", options.source);
    }
    let sizes: Vec<OtherQuant> =
        listed.iter().map(|listed| OtherQuant { quant: listed.quant.clone(), bytes: listed.bytes }).collect();
    let shape = shape(options, &listed).await?;
    let mut rows = Vec::with_capacity(listed.len());
    for listed in &listed {
        let facts = shape.as_ref().map(|shape| shape.for_quant(&listed.quant, listed.bytes, &sizes));
        rows.push(row(listed, &spec(options, &listed.quant)?, facts.as_ref(), &fleets));
    }
    let text = match options.output.of(&rows)? {
        Some(text) => text,
        None => shown(&rows, fleets.len()),
    };
    write(&text)
}

/// What is known of one of the quants. Its headers say all but the weights of the others, since cache and working memory are the
/// shape's.
async fn shape(options: &Options, listed: &[Listed]) -> Result<Option<ModelFacts>> {
    for listed in listed {
        match models::facts(&options.reach, &spec(options, &listed.quant)?).await {
            Ok(facts) => return Ok(Some(facts)),
            Err(error) => eprintln!("{}", faint(&format!("{}: {error:#}.", listed.quant))),
        }
    }
    Ok(None)
}

/// From the repository, or what the catalogue knows of it.
async fn listed(options: &Options) -> Result<Vec<Listed>> {
    let source: Source = options.source.parse()?;
    let reason = if options.reach.is_offline() {
        "--offline asks no source".to_owned()
    } else {
        let (access, secret) = (options.reach.access()?, options.reach.secret()?);
        match tandem_sources::quants(&source, secret.as_ref(), &access).await {
            Ok(found) => {
                let listed = found.iter().map(|found| Listed {
                    quant: found.quant.clone(),
                    files: Some(found.files.len()),
                    bytes: found.bytes(),
                });
                return Ok(listed.collect());
            }
            Err(error @ ResolveError::Transfer(_)) => format!("{:#}", anyhow::Error::from(error)),
            Err(error) => return Err(error.into()),
        }
    };
    let known = Catalogue::built_in().model_of(&options.source).map(|model| &model.quants);
    let known = known.filter(|quants| !quants.is_empty()).ok_or_else(|| {
        anyhow!(
            "{} can't be listed ({reason}), and the catalogue doesn't have it: name a mirror with --mirror",
            options.source
        )
    })?;
    eprintln!(
        "{}",
        faint(&format!(
            "{} can't be listed ({reason}): these are the quants that the catalogue knows.",
            options.source
        ))
    );
    let listed =
        known.iter().map(|known| Listed { quant: known.quant.clone(), files: None, bytes: known.bytes });
    Ok(listed.collect())
}

/// A manifest of defaults around a source and a quant.
fn spec(options: &Options, quant: &str) -> Result<InferenceDeploymentSpec> {
    let manifest = serde_json::json!({
        "apiVersion": "inference.tandem.dev/v1alpha1", "kind": "InferenceDeployment", "metadata": {"name": "quants"},
        "spec": {
            "model": {"name": "quants", "source": options.source}, "quant": quant,
            "context": {"tokens": options.context},
        },
    });
    match manifest::from_value(manifest)?.object() {
        Object::Deployment(deployment) => Ok(deployment.spec),
        Object::Host(_) => bail!("a deployment was written"),
    }
}

fn row(listed: &Listed, spec: &InferenceDeploymentSpec, facts: Option<&ModelFacts>, fleets: &[Fleet]) -> Row {
    let mut row = Row {
        quant: listed.quant.clone(),
        files: listed.files,
        file_bytes: listed.bytes,
        needed_bytes: None,
        exactness: None,
        fits: Vec::new(),
        limits: Vec::new(),
    };
    let Some(facts) = facts else { return row };
    let question = Question { deployment: "", spec, kinds: &[], download_bytes_per_second: 125_000_000 };
    let report = capacity::capacity(facts, &question, fleets);
    row.needed_bytes = report.need.map(|need| need.total_bytes);
    row.exactness = report.need.map(|need| need.exactness);
    row.limits = report.limits.into_iter().map(|limit| limit.sentence).collect();
    if row.limits.is_empty() && row.exactness == Some(Exactness::Estimated) {
        row.limits.push("types of its tensors are not known before its own headers are read".to_owned());
    }
    for fleet in &report.fleets {
        let kinds: Vec<&str> = fleet
            .options
            .iter()
            .filter(|option| option.fits)
            .map(|option| crate::plan::show::kind(option.device))
            .collect();
        if !kinds.is_empty() {
            row.fits.push(format!("{} ({})", fleet.fleet, kinds.join(", ")));
        }
    }
    row
}

fn shown(rows: &[Row], fleets: usize) -> String {
    let cells = |row: &Row| {
        let mut cells = vec![
            row.quant.clone(),
            row.files.map_or_else(|| "-".to_owned(), |files| files.to_string()),
            human(row.file_bytes),
            row.needed_bytes.map_or_else(|| "not known".to_owned(), human),
            row.exactness.map_or("-", crate::plan::show::exactness).to_owned(),
        ];
        if fleets > 0 {
            cells.push(format!("{} of {fleets}", row.fits.len()));
        }
        cells
    };
    let mut header = vec!["QUANT", "FILES", "ON DISK", "NEEDED", "SIZE IS"];
    if fleets > 0 {
        header.push("FITS ON");
    }
    let mut text = table::plain(&header, rows.iter().map(cells));
    for row in rows {
        let mut sentences = Vec::new();
        if !row.fits.is_empty() {
            sentences.push(format!("fits on {}", row.fits.join(", ")));
        }
        sentences.extend(row.limits.iter().cloned());
        if !sentences.is_empty() {
            text += &crate::plan::show::wrapped("", &format!("{}: {}.", row.quant, sentences.join("; ")));
        }
    }
    text
}

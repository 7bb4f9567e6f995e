//! What is known of a model: its headers from its source, by range requests; without a network, the catalogue.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use clap::Args;
use tandem_crds::InferenceDeploymentSpec;
use tandem_gguf::ShardSet;
use tandem_plan::capacity::{ModelFacts, OtherQuant};
use tandem_sources::{Access, ListedFile, QuantListing, ResolveError, Secret, Source};

use crate::output::faint;

/// A person waits: shorter than where a deployment waits.
const CONNECT: Duration = Duration::from_secs(5);
const IDLE: Duration = Duration::from_secs(15);

/// How sources are reached from here.
#[derive(Args)]
pub(crate) struct Reach {
    /// Ask no source; what is not in the catalogue is not known then.
    #[arg(long)]
    offline: bool,
    /// Read sources that start with FROM from another place, such as hf://=https://hub.example.com/.
    #[arg(long, value_name = "FROM=TO")]
    mirror: Vec<String>,
    /// A file with the token of a private source.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Also trust the authorities in this PEM file.
    #[arg(long, value_name = "FILE")]
    extra_ca: Option<PathBuf>,
}

impl Reach {
    pub(crate) fn is_offline(&self) -> bool {
        self.offline
    }

    pub(crate) fn access(&self) -> Result<Access> {
        let mut access = Access::default().waiting(CONNECT, IDLE).retrying(1, Duration::from_millis(500));
        for rule in &self.mirror {
            access = access.mirrored(rule)?;
        }
        if let Some(path) = &self.extra_ca {
            let pem = std::fs::read(path).with_context(|| format!("{} can't be read", path.display()))?;
            access = access.trusting(&pem).with_context(|| format!("{} can't be used", path.display()))?;
        }
        Ok(access)
    }

    pub(crate) fn secret(&self) -> Result<Option<Secret>> {
        let Some(path) = &self.token_file else { return Ok(None) };
        let text =
            std::fs::read_to_string(path).with_context(|| format!("{} can't be read", path.display()))?;
        Ok(Some(Secret::new(&text)))
    }
}

/// What is known of the model that a spec asks for.
pub(crate) async fn facts(reach: &Reach, spec: &InferenceDeploymentSpec) -> Result<ModelFacts> {
    let text = &spec.model.source;
    let unreachable = if reach.offline {
        None
    } else {
        match from_source(reach, spec).await? {
            Ok(facts) => return Ok(facts),
            Err(error) => Some(format!("{:#}", anyhow::Error::from(error))),
        }
    };
    let reason = unreachable.as_deref().unwrap_or("--offline asks no source");
    let facts = ModelFacts::from_catalogue(text, &spec.quant).ok_or_else(|| {
        anyhow!(
            "how large {} of {text} is, is not known, and nothing is guessed: its headers can't be read ({reason}), and the \
             catalogue doesn't have it. Name its files with --model-headers, or a mirror with --mirror",
            spec.quant
        )
    })?;
    if unreachable.is_some() {
        eprintln!(
            "{}",
            faint(&format!(
                "The headers of {text} can't be read ({reason}), so sizes are estimated from the catalogue."
            ))
        );
    }
    Ok(facts)
}

/// The inner error: the source can't be reached. All else is the manifest's fault.
async fn from_source(
    reach: &Reach,
    spec: &InferenceDeploymentSpec,
) -> Result<Result<ModelFacts, ResolveError>> {
    let (access, secret) = (reach.access()?, reach.secret()?);
    let source: Source = spec.model.source.parse()?;
    let listed = spec.model.files.iter().map(|file| {
        let sha256 = file.sha256.parse().with_context(|| format!("{} has no sha256", file.name))?;
        Ok(ListedFile { name: file.name.clone(), sha256 })
    });
    let listed: Vec<ListedFile> = listed.collect::<Result<_>>()?;
    let resolved =
        match tandem_sources::resolve(&source, &spec.quant, &listed, secret.as_ref(), &access).await {
            Ok(resolved) => resolved,
            Err(error @ ResolveError::Transfer(_)) => return Ok(Err(error)),
            Err(error) => return Err(error.into()),
        };
    let headers = ShardSet::assemble(resolved.headers).context("the files are not one whole model")?;
    let others = match tandem_sources::quants(&source, secret.as_ref(), &access).await {
        Ok(listings) => listings.iter().map(other).collect(),
        Err(error) => {
            let error = anyhow::Error::from(error);
            eprintln!("{}", faint(&format!("Other quants of {source} can't be listed ({error:#}).")));
            Vec::new()
        }
    };
    Ok(Ok(ModelFacts::from_headers(&spec.model.source, &spec.quant, headers, others)))
}

fn other(listing: &QuantListing) -> OtherQuant {
    OtherQuant { quant: listing.quant.clone(), bytes: listing.bytes() }
}

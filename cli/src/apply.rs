//! `tandem apply`, `delete`, `scale`: what changes objects.

use std::process::ExitCode;

use anyhow::{Result, anyhow};
use clap::Args;
use serde_json::Value;
use tandem_control_api::apply_response::Result as Outcome;
use tandem_control_api::{ApplyRequest, DeleteRequest, ScaleRequest};
use tandem_crds::manifest::Manifest;

use crate::connection::Connection;
use crate::manifests::{self, Document};
use crate::object::{Kind, Target, Usage};
use crate::output::write;

/// Under which name fields of an applied manifest are owned.
const FIELD_MANAGER: &str = "tandem-cli";

/// Metadata that people write.
const STATED: [&str; 4] = ["name", "namespace", "labels", "annotations"];

/// Manifests to apply.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  tandem apply -f kimi.yaml\n  tandem apply -f manifests/\n  cat kimi.yaml | tandem apply -f -"
)]
pub(crate) struct Options {
    /// A file, a folder of *.yaml, *.yml and *.json, or - for standard input.
    #[arg(short = 'f', long = "filename", value_name = "FILE|DIR|-", required = true)]
    files: Vec<String>,
    /// Check and show what would happen, and change nothing.
    #[arg(long)]
    dry_run: bool,
    /// Take over fields that others own, as a scaled number of replicas.
    #[arg(long)]
    force: bool,
}

/// What to delete.
#[derive(Args)]
#[command(after_help = "Examples:\n  tandem delete infd/tiny-kimi\n  tandem delete -f kimi.yaml\n  \
                        tandem delete infh/mac-b  # a host that is gone for good")]
pub(crate) struct DeleteOptions {
    /// infd or infh, as KIND/NAME or KIND NAME.
    #[arg(value_name = "KIND[/NAME]", num_args = 1..=2, required_unless_present = "files", conflicts_with = "files")]
    target: Vec<String>,
    /// Delete what these manifests name.
    #[arg(short = 'f', long = "filename", value_name = "FILE|DIR|-")]
    files: Vec<String>,
}

/// How many copies.
#[derive(Args)]
#[command(after_help = "Example:\n  tandem scale infd/tiny-kimi --replicas 2")]
pub(crate) struct ScaleOptions {
    #[command(flatten)]
    target: Target,
    /// How many copies answer, beside those that redundancy adds.
    #[arg(long, value_parser = clap::value_parser!(i32).range(0..))]
    replicas: i32,
}

pub(crate) async fn apply(mut connection: Connection, options: &Options) -> Result<ExitCode> {
    let mut failed = false;
    for document in manifests::read(&options.files)? {
        match apply_one(&mut connection, &document, options).await {
            Ok(line) => write(&line)?,
            Err(error) => {
                failed = true;
                eprintln!("error: {}: {error:#}", document.file);
            }
        }
    }
    Ok(code(failed))
}

async fn apply_one(connection: &mut Connection, document: &Document, options: &Options) -> Result<String> {
    let manifest = document.read.as_ref().map_err(|sentence| anyhow!("{sentence}"))?;
    let reference = document.reference(manifest, &connection.namespace);
    let object = stated(manifest, &reference.namespace);
    let request = ApplyRequest {
        manifest_json: object.to_string(),
        field_manager: FIELD_MANAGER.to_owned(),
        dry_run: options.dry_run,
        force: options.force,
    };
    let label = label(&reference.kind, &reference.name);
    let answer = connection.objects.apply(request).await;
    let answer = answer.map_err(|status| connection.explain(&status).context(label.clone()))?.into_inner();
    for warning in &answer.warnings {
        eprintln!("warning: {}: {label}: {warning}", document.file);
    }
    let outcome = match answer.result() {
        Outcome::Created => "created",
        Outcome::Configured => "configured",
        Outcome::Unchanged => "unchanged",
        Outcome::Unspecified => "applied",
    };
    let note = if options.dry_run { " (dry run)" } else { "" };
    Ok(format!("{label} {outcome}{note}\n"))
}

/// What a person states, less what the operator wrote into an object that comes from `get`.
fn stated(manifest: &Manifest, namespace: &str) -> Value {
    let mut object = manifest.written.clone();
    if let Some(fields) = object.as_object_mut() {
        fields.remove("status");
    }
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.retain(|field, _| STATED.contains(&field.as_str()));
        if !namespace.is_empty() {
            metadata.insert("namespace".to_owned(), namespace.into());
        }
    }
    object
}

pub(crate) async fn delete(mut connection: Connection, options: &DeleteOptions) -> Result<ExitCode> {
    let mut failed = false;
    let mut targets = Vec::new();
    if options.files.is_empty() {
        let target = Target::from_words(&options.target);
        let (kind, name) = target.one()?;
        targets.push(connection.reference(kind, name));
    }
    for document in manifests::read(&options.files)? {
        match &document.read {
            Ok(manifest) => targets.push(document.reference(manifest, &connection.namespace)),
            Err(sentence) => {
                failed = true;
                eprintln!("error: {}: {sentence}", document.file);
            }
        }
    }
    for target in targets {
        let label = label(&target.kind, &target.name);
        match connection.objects.delete(DeleteRequest { r#ref: Some(target.clone()) }).await {
            Ok(_) => write(&format!("{label} deleted\n"))?,
            Err(status) => {
                failed = true;
                eprintln!("error: {:#}", connection.explain_about(&target, &status).await);
            }
        }
    }
    Ok(code(failed))
}

pub(crate) async fn scale(mut connection: Connection, options: &ScaleOptions) -> Result<()> {
    let (kind, name) = options.target.one()?;
    if kind != Kind::Deployment {
        return Err(Usage("only deployments have replicas: say infd/NAME".to_owned()).into());
    }
    let reference = connection.reference(kind, name);
    let request = ScaleRequest { r#ref: Some(reference.clone()), replicas: options.replicas };
    if let Err(status) = connection.objects.scale(request).await {
        return Err(connection.explain_about(&reference, &status).await);
    }
    write(&format!("{} scaled to {}\n", label(&reference.kind, name), options.replicas))
}

fn label(kind: &str, name: &str) -> String {
    format!("{}/{name}", kind.to_ascii_lowercase())
}

fn code(failed: bool) -> ExitCode {
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

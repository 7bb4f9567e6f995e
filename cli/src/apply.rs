//! `tandem apply`, `delete`, `scale`: what changes objects.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Deserialize;
use serde_json::Value;
use tandem_control_api::apply_response::Result as Outcome;
use tandem_control_api::{ApplyRequest, DeleteRequest, ScaleRequest};

use crate::connection::Connection;
use crate::object::{Kind, Target, name, text};

/// The largest manifest file that is read: the API takes no larger object.
const MANIFEST_LIMIT: u64 = 1_500_000;
/// Under which name fields of an applied manifest are owned.
const FIELD_MANAGER: &str = "tandem-cli";

/// Manifests to apply.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  tandem apply -f kimi.yaml\n  tandem apply -f manifests/\n  cat kimi.yaml | tandem apply -f -"
)]
pub(crate) struct Options {
    /// A file, a folder of *.yaml, *.yml and *.json, or - for standard input.
    #[arg(short = 'f', long = "filename", value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// Check and show what would happen, and change nothing.
    #[arg(long)]
    dry_run: bool,
    /// Take over fields that others own, as a scaled number of replicas.
    #[arg(long)]
    force: bool,
}

/// What to delete.
#[derive(Args)]
pub(crate) struct DeleteOptions {
    /// infd or infh, as KIND/NAME or KIND NAME.
    #[arg(value_name = "KIND[/NAME]", num_args = 1..=2, required_unless_present = "files", conflicts_with = "files")]
    target: Vec<String>,
    /// Delete what these manifests name.
    #[arg(short = 'f', long = "filename", value_name = "FILE")]
    files: Vec<PathBuf>,
}

/// How many copies.
#[derive(Args)]
pub(crate) struct ScaleOptions {
    #[command(flatten)]
    target: Target,
    /// How many copies answer, beside those that redundancy adds.
    #[arg(long)]
    replicas: i32,
}

/// One document of a manifest, and where it stands.
struct Document {
    place: String,
    object: Value,
}

pub(crate) async fn apply(mut connection: Connection, options: &Options) -> Result<ExitCode> {
    let mut failed = false;
    for document in documents(&options.files)? {
        match apply_one(&mut connection, &document, options.dry_run, options.force).await {
            Ok(line) => println!("{line}"),
            Err(error) => {
                failed = true;
                eprintln!("error: {}: {error:#}", document.place);
            }
        }
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

async fn apply_one(
    connection: &mut Connection,
    document: &Document,
    dry_run: bool,
    force: bool,
) -> Result<String> {
    let object = in_namespace(&document.object, &connection.namespace);
    let kind = Kind::of(&object).context("this is no InferenceDeployment or InferenceHost: check `kind`")?;
    let request = ApplyRequest {
        manifest_json: object.to_string(),
        field_manager: FIELD_MANAGER.to_owned(),
        dry_run,
        force,
    };
    let answer =
        connection.objects.apply(request).await.map_err(|status| connection.explain(status))?.into_inner();
    for warning in &answer.warnings {
        eprintln!("warning: {}: {warning}", document.place);
    }
    let outcome = match answer.result() {
        Outcome::Created => "created",
        Outcome::Configured => "configured",
        Outcome::Unchanged => "unchanged",
        Outcome::Unspecified => "applied",
    };
    let note = if dry_run { " (dry run)" } else { "" };
    Ok(format!("{}/{} {outcome}{note}", kind.lower(), name(&object)))
}

pub(crate) async fn delete(mut connection: Connection, options: &DeleteOptions) -> Result<ExitCode> {
    let mut targets = Vec::new();
    if options.files.is_empty() {
        let target = Target::from_words(&options.target);
        let (kind, name) = target.one()?;
        targets.push(connection.reference(kind, name));
    }
    for document in documents(&options.files)? {
        let object = in_namespace(&document.object, &connection.namespace);
        let kind = Kind::of(&object).with_context(|| format!("{}: unknown kind", document.place))?;
        let mut reference = connection.reference(kind, name(&object));
        text(&object, &["metadata", "namespace"]).clone_into(&mut reference.namespace);
        targets.push(reference);
    }
    let mut failed = false;
    for target in targets {
        let label = format!("{}/{}", target.kind.to_ascii_lowercase(), target.name);
        match connection.objects.delete(DeleteRequest { r#ref: Some(target) }).await {
            Ok(_) => println!("{label} deleted"),
            Err(status) => {
                failed = true;
                eprintln!("error: {label}: {:#}", connection.explain(status));
            }
        }
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

pub(crate) async fn scale(mut connection: Connection, options: &ScaleOptions) -> Result<()> {
    let (kind, name) = options.target.one()?;
    if kind != Kind::Deployment {
        bail!("only deployments have replicas: say infd/NAME");
    }
    let request = ScaleRequest { r#ref: Some(connection.reference(kind, name)), replicas: options.replicas };
    connection.objects.scale(request).await.map_err(|status| connection.explain(status))?;
    println!("{}/{name} scaled to {}", kind.lower(), options.replicas);
    Ok(())
}

/// A manifest that names no namespace gets the command's.
fn in_namespace(object: &Value, namespace: &str) -> Value {
    let mut object = object.clone();
    let namespaced = Kind::of(&object).is_some_and(Kind::namespaced);
    if namespaced && text(&object, &["metadata", "namespace"]).is_empty() && object["metadata"].is_object() {
        object["metadata"]["namespace"] = namespace.into();
    }
    object
}

fn documents(files: &[PathBuf]) -> Result<Vec<Document>> {
    let mut documents = Vec::new();
    for file in files {
        if file.is_dir() {
            let mut inner: Vec<PathBuf> = fs::read_dir(file)
                .with_context(|| format!("{} can't be read", file.display()))?
                .filter_map(|entry| entry.map(|entry| entry.path()).ok())
                .filter(|path| {
                    path.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json")
                        && path.is_file()
                })
                .collect();
            inner.sort();
            if inner.is_empty() {
                bail!("{} holds no *.yaml, *.yml or *.json", file.display());
            }
            for path in inner {
                parse(&path.display().to_string(), &read(&path)?, &mut documents)?;
            }
        } else if file == Path::new("-") {
            let mut text = String::new();
            std::io::stdin()
                .take(MANIFEST_LIMIT + 1)
                .read_to_string(&mut text)
                .context("standard input is no text")?;
            parse("standard input", &text, &mut documents)?;
        } else {
            parse(&file.display().to_string(), &read(file)?, &mut documents)?;
        }
    }
    Ok(documents)
}

fn read(path: &Path) -> Result<String> {
    let size = fs::metadata(path).with_context(|| format!("{} can't be read", path.display()))?.len();
    if size > MANIFEST_LIMIT {
        bail!("{} has {size} bytes; an object may have at most {MANIFEST_LIMIT}", path.display());
    }
    fs::read_to_string(path).with_context(|| format!("{} can't be read", path.display()))
}

fn parse(place: &str, text: &str, documents: &mut Vec<Document>) -> Result<()> {
    if text.len() as u64 > MANIFEST_LIMIT {
        bail!("{place} has more than {MANIFEST_LIMIT} bytes, the most that an object may have");
    }
    for (index, document) in serde_yaml::Deserializer::from_str(text).enumerate() {
        let place = if index == 0 { place.to_owned() } else { format!("{place}, document {}", index + 1) };
        let value =
            serde_yaml::Value::deserialize(document).with_context(|| format!("{place} is no YAML"))?;
        if value.is_null() {
            continue;
        }
        let object =
            serde_json::to_value(&value).with_context(|| format!("{place} holds what JSON can't say"))?;
        documents.push(Document { place, object });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_counted_and_empty_ones_skipped() {
        let mut documents = Vec::new();
        parse("x.yaml", "kind: InferenceHost\n---\n---\nkind: InferenceDeployment\n", &mut documents)
            .unwrap();
        let places: Vec<&str> = documents.iter().map(|document| document.place.as_str()).collect();
        assert_eq!(places, ["x.yaml", "x.yaml, document 3"]);
    }

    #[test]
    fn yaml_errors_name_the_file_and_the_line() {
        let error = parse("x.yaml", "a: [1,\nb: 2", &mut Vec::new()).unwrap_err();
        let text = format!("{error:#}");
        assert!(text.starts_with("x.yaml is no YAML") && text.contains("line"), "{text}");
    }

    #[test]
    fn only_deployments_without_a_namespace_get_one() {
        let host = serde_json::json!({"kind": "InferenceHost", "metadata": {"name": "a"}});
        assert_eq!(in_namespace(&host, "llm"), host);
        let deployment = serde_json::json!({"kind": "InferenceDeployment", "metadata": {"name": "a"}});
        assert_eq!(text(&in_namespace(&deployment, "llm"), &["metadata", "namespace"]), "llm");
    }
}

//! The chart as plain YAML and as a base for kustomize: what helm renders with default values, for who applies files.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::tools::{Tool, Tools};

/// Namespace of the release in what is rendered.
const NAMESPACE: &str = "tandem-system";
const HEAD: &str = "# Written by `cargo xtask manifests` from charts/tandem; change that.\n";
/// What helm says of itself in an object, and what is of no meaning to who applies it by other means.
const HELMS: [&str; 2] = ["app.kubernetes.io/managed-by: Helm", "helm.sh/chart: "];
/// Before each object, helm names the template that it is of.
const SOURCE: &str = "# Source: tandem/templates/";

/// Files by their path in the workspace, with what belongs into them.
///
/// # Errors
/// When helm can't be had, or refuses the chart.
pub fn generated_files() -> Result<Vec<(String, String)>> {
    let objects = rendered()?;
    let mut parts = vec![("namespace.yaml".to_owned(), namespace())];
    for (template, object) in &objects {
        match parts.iter_mut().find(|(name, _)| name == template) {
            Some((_, text)) => text.push_str(object),
            None => parts.push((template.clone(), object.clone())),
        }
    }
    let plain: String =
        std::iter::once(namespace()).chain(objects.into_iter().map(|(_, object)| object)).collect();
    let mut files = vec![("charts/plain/tandem.yaml".to_owned(), format!("{HEAD}{plain}"))];
    files.push(("charts/kustomize/kustomization.yaml".to_owned(), kustomization(&parts)));
    for (name, text) in parts {
        files.push((format!("charts/kustomize/{name}"), format!("{HEAD}{text}")));
    }
    Ok(files)
}

/// Every object with the template that it is of, in the order in which helm applies them.
fn rendered() -> Result<Vec<(String, String)>> {
    let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../charts/tandem");
    let home = tempfile::tempdir().context("no temporary folder")?;
    let output = Command::new(Tools::find()?.program(Tool::Helm, "helm")?)
        .args(["template", "tandem"])
        .arg(&chart)
        // Who deletes a file's objects deletes the definitions in it, too: keeping them is something that only helm does.
        .args(["--namespace", NAMESPACE, "--skip-tests", "--set=crds.keep=false"])
        .env("HOME", home.path())
        .output()
        .context("helm can't be started")?;
    ensure!(output.status.success(), "helm: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).context("helm rendered no text")?;
    let mut objects = Vec::new();
    for document in text.split("---\n").filter(|document| document.contains("kind:")) {
        let (source, object) = document.split_once('\n').context("an object of one line")?;
        let template = source.strip_prefix(SOURCE).with_context(|| format!("{source} names no template"))?;
        let mut kept = String::from("---\n");
        for line in object.trim_end().lines() {
            if !HELMS.iter().any(|helms| line.trim_start().starts_with(helms)) {
                kept.push_str(line.trim_end());
                kept.push('\n');
            }
        }
        objects.push((template.to_owned(), kept));
    }
    Ok(objects)
}

/// Helm leaves the release's namespace to `--create-namespace`.
fn namespace() -> String {
    format!(
        "---\napiVersion: v1\nkind: Namespace\nmetadata:\n  name: {NAMESPACE}\n  labels:\n    pod-security.kubernetes.io/enforce: restricted\n"
    )
}

fn kustomization(parts: &[(String, String)]) -> String {
    let mut text = format!(
        "{HEAD}apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\n# Namespaces and definitions first.\nsortOptions: {{order: legacy}}\nresources:\n"
    );
    for (name, _) in parts {
        text.push_str(&format!("  - {name}\n"));
    }
    text
}

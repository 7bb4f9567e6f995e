//! Deployments to plan: manifests as `apply` takes them, but that accelerators of later releases may be named.

use anyhow::{Result, anyhow, bail};
use serde_json::Value;
use tandem_crds::manifest::{self, Object};
use tandem_crds::{DeviceKind, InferenceDeployment};

use crate::manifests;

/// One deployment.
pub(crate) struct Wanted {
    /// `namespace/name`.
    pub(crate) name: String,
    pub(crate) deployment: InferenceDeployment,
    /// Kinds of device that it names; none, where it names none.
    pub(crate) kinds: Vec<DeviceKind>,
    /// Why `apply` would refuse it, if it would.
    pub(crate) refused_by_apply: Option<String>,
}

/// Reads all deployments that the files hold, and nothing else.
pub(crate) fn read(files: &[String], namespace: &str) -> Result<Vec<Wanted>> {
    let mut wanted = Vec::new();
    for (place, text) in manifests::texts(files)? {
        let documents = manifests::values(&text).map_err(|error| anyhow!("{place}: {error}"))?;
        for document in documents {
            if document["kind"] == "InferenceDeployment" {
                wanted.push(deployment(document, namespace).map_err(|error| anyhow!("{place}: {error}"))?);
            }
        }
    }
    if wanted.is_empty() {
        bail!("there is no InferenceDeployment in what -f names");
    }
    Ok(wanted)
}

fn deployment(mut document: Value, namespace: &str) -> Result<Wanted> {
    let (kinds, later) = accelerators(&mut document)?;
    let manifest = manifest::from_value(document)?;
    let namespace = manifest.namespace.clone().unwrap_or_else(|| namespace.to_owned());
    let name = format!("{namespace}/{}", manifest.name);
    let Object::Deployment(deployment) = manifest.object() else { bail!("{name} is no InferenceDeployment") };
    let refused_by_apply = (!later.is_empty()).then(|| {
        format!("`tandem apply` refuses placement.accelerators {} in this release.", later.join(", "))
    });
    Ok(Wanted { name, deployment: *deployment, kinds, refused_by_apply })
}

/// The kinds that a manifest names. Those of later releases are taken out of it, so that the rest can be checked as ever.
fn accelerators(document: &mut Value) -> Result<(Vec<DeviceKind>, Vec<String>)> {
    let Some(listed) = document.pointer_mut("/spec/placement/accelerators").and_then(Value::as_array_mut)
    else {
        return Ok((Vec::new(), Vec::new()));
    };
    let kind = |value: &Value| match value.as_str() {
        Some("Metal") => Some(DeviceKind::Metal),
        Some("CUDA") => Some(DeviceKind::Cuda),
        Some("CPU") => Some(DeviceKind::Cpu),
        _ => None,
    };
    let kinds = listed.iter().filter_map(kind).collect();
    let is_later = |value: &Value| matches!(value.as_str(), Some("Metal" | "CUDA"));
    let later: Vec<String> =
        listed.iter().filter(|value| is_later(value)).filter_map(Value::as_str).map(str::to_owned).collect();
    if !later.is_empty() {
        listed.retain(|value| !is_later(value));
        if listed.is_empty() {
            listed.push("CPU".into());
        }
    }
    Ok((kinds, later))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn manifest(accelerators: Value) -> Value {
        json!({
            "apiVersion": "inference.tandem.dev/v1alpha1", "kind": "InferenceDeployment",
            "metadata": {"name": "kimi"},
            "spec": {
                "model": {"name": "kimi", "source": "hf://unsloth/Kimi-K2.5-GGUF"}, "quant": "UD-Q2_K_XL",
                "context": {"tokens": 4096}, "placement": {"accelerators": accelerators},
            },
        })
    }

    #[test]
    fn accelerators_of_later_releases_are_planned_and_said_to_be_refused() {
        let wanted = deployment(manifest(json!(["Metal", "CUDA"])), "llm").unwrap();
        assert_eq!(
            (wanted.name.as_str(), wanted.kinds),
            ("llm/kimi", vec![DeviceKind::Metal, DeviceKind::Cuda])
        );
        assert!(wanted.refused_by_apply.unwrap().contains("Metal, CUDA"));
        let wanted = deployment(manifest(json!(["CPU"])), "llm").unwrap();
        assert_eq!((wanted.kinds, wanted.refused_by_apply), (vec![DeviceKind::Cpu], None));
    }

    #[test]
    fn what_is_no_accelerator_is_refused_as_ever() {
        let error = deployment(manifest(json!(["Metal", "Abacus"])), "llm").err().unwrap().to_string();
        assert!(error.contains("Abacus"), "{error}");
    }
}

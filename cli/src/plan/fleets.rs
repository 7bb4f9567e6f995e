//! Hosts to plan for, from manifests: examples, or what `tandem get infh NAME -o yaml` wrote.

use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow, bail};
use serde_json::Value;
use tandem_crds::InferenceHost;
use tandem_crds::manifest::{self, Object};
use tandem_plan::capacity::Fleet;

use crate::manifests;

/// One fleet for each file; of a folder, for each file in it.
pub(crate) fn read(paths: &[PathBuf]) -> Result<Vec<Fleet>> {
    let mut fleets = Vec::new();
    for path in paths {
        for (place, text) in manifests::texts(&[path.display().to_string()])? {
            let name = Path::new(&place)
                .file_stem()
                .map_or_else(|| place.clone(), |stem| stem.to_string_lossy().into());
            let hosts = hosts(&text).map_err(|error| anyhow!("{place}: {error}"))?;
            fleets.push(Fleet { name, hosts });
        }
    }
    Ok(fleets)
}

fn hosts(text: &str) -> Result<Vec<InferenceHost>> {
    let mut hosts = Vec::new();
    for document in manifests::values(text)? {
        let listed = match document.get("items") {
            Some(Value::Array(items)) if document["kind"] == "List" => items.clone(),
            _ => vec![document],
        };
        for object in listed.into_iter().filter(|object| object["kind"] == "InferenceHost") {
            let Object::Host(host) = manifest::from_value(object)?.object() else { continue };
            let devices = host.status.as_ref().map_or(0, |status| status.devices.len());
            if devices == 0 {
                bail!(
                    "host {} has no status.devices, so what it takes is not known: write them as in examples/hosts/, or \
                     take a real host's from `tandem get infh NAME -o yaml`",
                    host.metadata.name.unwrap_or_default()
                );
            }
            hosts.push(*host);
        }
    }
    if hosts.is_empty() {
        bail!("there is no InferenceHost in it");
    }
    Ok(hosts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_without_devices_says_where_they_come_from() {
        let text =
            "{apiVersion: inference.tandem.dev/v1alpha1, kind: InferenceHost, metadata: {name: mac-a}}";
        let error = hosts(text).unwrap_err().to_string();
        assert!(error.contains("mac-a") && error.contains("tandem get infh"), "{error}");
        assert!(hosts("{}").unwrap_err().to_string().contains("no InferenceHost"));
    }
}

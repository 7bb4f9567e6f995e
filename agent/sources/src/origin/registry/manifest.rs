//! Manifests of OCI registries: which layers are model files, and what they are called. Pure.

use std::collections::BTreeMap;

use serde::Deserialize;
use tandem_worker_api::Sha256Hex;

use crate::is_inside;
use crate::source::{is_digest, is_gguf};

/// What is understood, for `Accept`. Indexes are so only to be refused by their name.
pub(super) const TYPES: &str = "application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json, application/vnd.oci.image.index.v1+json;q=0.5, \
    application/vnd.docker.distribution.manifest.list.v2+json;q=0.5";
/// What layers with a model are called by those who publish them, where their file's name doesn't say it.
const MODELS: [&str; 3] = [
    "application/vnd.docker.ai.gguf.v3",
    "application/vnd.docker.ai.model.file.v1+gguf",
    "application/vnd.ollama.image.model",
];
/// Annotations that hold a file's name.
const NAMES: [&str; 2] = ["org.opencontainers.image.title", "org.cncf.model.filepath"];
const MOST_LAYERS: usize = 4096;

#[derive(Deserialize)]
struct Manifest {
    #[serde(default)]
    layers: Vec<Descriptor>,
    #[serde(default)]
    manifests: Vec<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

/// A layer that is a model's file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Layer {
    pub(super) name: String,
    pub(super) sha256: Sha256Hex,
    pub(super) bytes: u64,
}

/// The model files of a manifest, or what it should have been. Files without a name are the shards of one model, in order.
/// The other value says whether no file has a name.
pub(super) fn layers(text: &[u8]) -> Result<(Vec<Layer>, bool), &'static str> {
    let manifest: Manifest =
        serde_json::from_slice(text).map_err(|_| "manifest of an image: is this a registry?")?;
    if !manifest.manifests.is_empty() {
        return Err("manifest of one image but an index of several: name one of them by its digest");
    }
    if manifest.layers.len() > MOST_LAYERS {
        return Err("manifest with a number of layers that a model has");
    }
    let mut named = Vec::new();
    for layer in manifest.layers {
        let name = layer.annotations.as_ref().and_then(|all| NAMES.iter().find_map(|name| all.get(*name)));
        let name = name.filter(|name| is_inside(name)).cloned();
        if !MODELS.contains(&layer.media_type.as_str()) && !name.as_deref().is_some_and(is_gguf) {
            continue;
        }
        let digest = is_digest(&layer.digest).then(|| layer.digest["sha256:".len()..].parse().ok()).flatten();
        let sha256: Sha256Hex = digest.ok_or("manifest whose layers have a sha256")?;
        named.push((name, sha256, layer.size));
    }
    let count = named.iter().filter(|(name, ..)| name.is_none()).count();
    let all = named.len();
    let mut number = 0;
    let layers = named.into_iter().map(|(name, sha256, bytes)| {
        let name = name.unwrap_or_else(|| {
            number += 1;
            if count == 1 { "model.gguf".to_owned() } else { format!("model-{number:05}-of-{count:05}.gguf") }
        });
        Layer { name, sha256, bytes }
    });
    Ok((layers.collect(), count > 0 && count == all))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(layers: &str) -> Result<Vec<String>, &'static str> {
        let text = layers.replace("DIGEST", &format!("sha256:{}", "a1".repeat(32)));
        super::layers(text.as_bytes()).map(|(layers, _)| layers.into_iter().map(|layer| layer.name).collect())
    }

    fn is_unnamed(layers: &str) -> bool {
        super::layers(layers.replace("DIGEST", &format!("sha256:{}", "a1".repeat(32))).as_bytes()).unwrap().1
    }

    fn layer(kind: &str, title: Option<&str>) -> String {
        let title = title.map(|title| format!(r#","annotations":{{"{}":"{title}"}}"#, NAMES[0]));
        format!(r#"{{"mediaType":"{kind}","digest":"DIGEST","size":7{}}}"#, title.unwrap_or_default())
    }

    fn manifest(layers: &[String]) -> String {
        format!(r#"{{"schemaVersion":2,"layers":[{}]}}"#, layers.join(","))
    }

    #[test]
    fn layers_are_known_by_type_or_by_title() {
        let tar = layer("application/vnd.oci.image.layer.v1.tar", None);
        let titled = layer("application/octet-stream", Some("Q8_0/tiny-Q8_0.gguf"));
        let read_me = layer("application/octet-stream", Some("README.md"));
        assert_eq!(names(&manifest(&[tar.clone(), titled, read_me])).unwrap(), ["Q8_0/tiny-Q8_0.gguf"]);
        assert_eq!(names(&manifest(&[layer(MODELS[2], None), tar])).unwrap(), ["model.gguf"]);
        let two = manifest(&[layer(MODELS[0], None), layer(MODELS[0], Some("../x.gguf"))]);
        assert_eq!(names(&two).unwrap(), ["model-00001-of-00002.gguf", "model-00002-of-00002.gguf"]);
        assert!(is_unnamed(&two) && is_unnamed(&manifest(&[layer(MODELS[2], None)])));
        assert!(!is_unnamed(&manifest(&[layer("x", Some("a.gguf"))])) && !is_unnamed(&manifest(&[])));
        let nulls = r#"{"layers":[{"mediaType":"x","digest":"DIGEST","size":7,"annotations":null}]}"#;
        assert!(names(nulls).unwrap().is_empty());
    }

    #[test]
    fn what_is_no_manifest_says_what_it_should_be() {
        assert!(names("<html>").unwrap_err().contains("registry"));
        assert!(names(r#"{"manifests":[{"digest":"DIGEST"}]}"#).unwrap_err().contains("by its digest"));
        let md5 = manifest(&[layer(MODELS[0], None)]).replace("DIGEST", "md5:12");
        assert!(names(&md5).unwrap_err().contains("sha256"));
    }
}

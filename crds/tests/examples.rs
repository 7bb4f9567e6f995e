//! Every manifest in examples/ is what the API takes.
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

use std::fs;
use std::path::{Path, PathBuf};

use tandem_crds::manifest::{self, Object};

fn manifests(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            manifests(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml") {
            found.push(path);
        }
    }
}

#[test]
fn every_example_is_admitted() {
    let mut found = Vec::new();
    manifests(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples"), &mut found);
    let mut admitted = 0;
    for path in found {
        let text = fs::read_to_string(&path).unwrap();
        // What is for Kubernetes itself, Flux, Argo CD and kustomize is theirs to admit.
        if !text.lines().any(|line| line == format!("apiVersion: {}", tandem_crds::API_VERSION)) {
            continue;
        }
        admitted += 1;
        let manifests = manifest::parse(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        for manifest in manifests {
            // Capacity is on-call's, through the scale subresource; an example that people put into Git leaves it out.
            assert!(manifest.written["spec"].get("replicas").is_none(), "{} states replicas", path.display());
            if let Object::Deployment(deployment) = manifest.object() {
                assert_eq!(deployment.spec.replicas, 1);
            }
        }
    }
    assert!(admitted >= 3, "kimi.yaml, tiny.yaml and the one for GitOps at least");
}

#[test]
fn the_flagship_asks_to_survive_a_host() {
    let text =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/kimi.yaml")).unwrap();
    let manifests = manifest::parse(&text).unwrap();
    let [kimi] = manifests.as_slice() else { panic!("one object") };
    let Object::Deployment(kimi) = kimi.object() else { panic!("a deployment") };
    assert_eq!(kimi.spec.model.name, "kimi-k2.5");
    assert_eq!(kimi.spec.redundancy.host_failures, 1);
    assert_eq!(kimi.spec.context.pool(), 196_608);
}

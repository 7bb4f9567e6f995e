//! Bad manifests, each with the sentence that it earns.
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

use tandem_crds::manifest::{self, MAX_BYTES, ManifestError, Object};
use tandem_crds::{KvCache, Standby};

const GOOD: &str = "\
apiVersion: inference.tandem.dev/v1alpha1
kind: InferenceDeployment
metadata:
  name: kimi
  namespace: llm
spec:
  model:
    name: kimi-k2.5
    source: https://models.example.com/kimi/
  quant: Q4_K_M
  context:
    tokens: 4096
";

fn refusal(text: &str) -> String {
    match manifest::parse(text) {
        Ok(_) => panic!("admitted:\n{text}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_plain_manifest_gets_its_defaults() {
    let manifests = manifest::parse(GOOD).unwrap();
    let [manifest] = manifests.as_slice() else { panic!("one object") };
    assert_eq!((manifest.name.as_str(), manifest.namespace.as_deref()), ("kimi", Some("llm")));
    assert!(manifest.written["spec"].get("redundancy").is_none(), "what is applied is what was written");
    let Object::Deployment(deployment) = manifest.object() else { panic!("a deployment") };
    let spec = &deployment.spec;
    assert_eq!(
        (spec.replicas, spec.redundancy.host_failures, spec.redundancy.replace_after_seconds),
        (1, 0, 60)
    );
    assert_eq!(
        (spec.redundancy.standby, spec.context.kv_cache, spec.context.pool()),
        (Standby::Hot, KvCache::F16, 4096)
    );
    assert_eq!(spec.placement.accelerators.len(), 1);
}

/// Text put in place of a part of the good manifest, and what the refusal must say.
const BAD: &[(&str, &str, &[&str])] = &[
    // Nothing unknown passes in silence.
    (
        "  quant: Q4_K_M",
        "  quant: Q4_K_M\n  quantt: Q4",
        &["spec.quantt: is not a known field; spec has ", "quant"],
    ),
    (
        "  name: kimi\n  names",
        "  name: kimi\n  label: {}\n  names",
        &["metadata.label: is not a known field"],
    ),
    ("kind: I", "extra: 1\nkind: I", &["extra: is not a known field"]),
    // What comes later is refused by its name.
    ("  quant:", "  overflow: []\n  quant:", &["spec.overflow: is not supported yet; leave it out"]),
    (
        "  quant:",
        "  placement: {sharding: Auto}\n  quant:",
        &["spec.placement.sharding: is not supported yet"],
    ),
    ("  quant:", "  placement: {lane: Express}\n  quant:", &["spec.placement.lane", "Batch"]),
    (
        "  quant:",
        "  redundancy: {degradeTo: [Q2_K]}\n  quant:",
        &["spec.redundancy.degradeTo: is not supported yet"],
    ),
    (
        "  quant:",
        "  redundancy: {standby: Cold}\n  quant:",
        &["spec.redundancy.standby: `Cold` is not supported yet; use Hot or Warm"],
    ),
    (
        "  quant:",
        "  placement: {accelerators: [CUDA]}\n  quant:",
        &["accelerators[0]: `CUDA` is not supported yet; use CPU"],
    ),
    (
        "  quant:",
        "  placement: {accelerators: [Metal]}\n  quant:",
        &["`Metal` is not supported yet; use CPU"],
    ),
    // Sources and their credentials.
    ("    source:", "    credentials: {}\n    source:", &["spec.model.credentials.secretRef: is missing"]),
    (
        "https://models.example.com/kimi/",
        "ftp://models.example.com/kimi",
        &["spec.model.source: ftp:// is not a kind of source; use hf://, https://, s3://, oci:// or file://"],
    ),
    ("https://models.example.com/kimi/", "hf://unsloth", &["hf://owner/repository"]),
    ("https://models.example.com/kimi/", "s3://", &["an s3:// source is s3://bucket/prefix"]),
    ("https://models.example.com/kimi/", "oci://registry", &["an oci:// source is"]),
    // Shapes.
    ("  quant: Q4_K_M\n", "", &["spec.quant: is missing. It says: Which quantisation"]),
    (
        "    source: https://models.example.com/kimi/\n",
        "",
        &["spec.model.source: is missing. It says: Where the GGUF files are"],
    ),
    ("    tokens: 4096", "    tokens: many", &["spec.context.tokens: must be a whole number, not a string"]),
    ("    tokens: 4096", "    tokens: 4096.5", &["spec.context.tokens: is 4096.5; use a whole number"]),
    (
        "    tokens: 4096",
        "    tokens: 99999999999",
        &["spec.context.tokens: is 99999999999; use at most 2147483647"],
    ),
    ("    tokens: 4096", "    tokens: -1", &["spec.context.tokens: is -1; use 0 or more"]),
    ("    tokens: 4096", "    tokens: .nan", &["spec.context.tokens is not a finite number"]),
    (
        "    tokens: 4096",
        "    tokens: 4096\n    kvCache: Q8_0",
        &["kvCache: `Q8_0` is not known here; use F16 or F32"],
    ),
    ("  quant: Q4_K_M", "  quant: ''", &["spec.quant: is empty"]),
    (
        "  quant:",
        "  sampling: {temperature: 0.7}\n  quant:",
        &["temperature: is a number here but a string in the API; write it in quotes: \"0.7\""],
    ),
    (
        "  quant:",
        "  placement: {accelerators: []}\n  quant:",
        &["spec.placement.accelerators: has 0 items; at least 1"],
    ),
    (
        "  quant:",
        "  placement: {accelerators: [CPU, CPU]}\n  quant:",
        &["accelerators[1]: CPU is listed twice"],
    ),
    ("  quant:", "  placement: fast\n  quant:", &["spec.placement: must be an object, not a string"]),
    // Who and what.
    (
        "v1alpha1",
        "v1",
        &["apiVersion: `inference.tandem.dev/v1` is not a version", "use inference.tandem.dev/v1alpha1"],
    ),
    ("inference.tandem.dev/v1alpha1", "apps/v1", &["apiVersion: `apps/v1` is not served here"]),
    (
        "InferenceDeployment",
        "Deployment",
        &["kind: `Deployment` is not known; use InferenceDeployment or InferenceHost"],
    ),
    ("name: kimi\n", "name: Kimi_1\n", &["metadata.name: `Kimi_1` is not a name; use 1 to 63 of a-z"]),
    ("  name: kimi\n", "", &["metadata.name: is missing"]),
    ("namespace: llm", "namespace: 12", &["metadata.namespace: must be a string"]),
    ("  namespace: llm", "  namespace: llm\n  labels: {a: 1}", &["metadata.labels.a: must be a string"]),
    // YAML that is none, or says two things.
    ("spec:", "spec: {", &["document 1 is not YAML"]),
    ("    tokens: 4096", "    tokens: 4096\n    tokens: 8192", &["document 1 is not YAML", "duplicate"]),
    (
        "    tokens: 4096",
        "    tokens: !far 4096",
        &["spec.context.tokens has the tag !far; leave the tag out"],
    ),
    ("    tokens: 4096", "    tokens: 4096\n    7: x", &["a key in spec.context is not a string"]),
];

#[test]
fn bad_manifests_are_refused_with_a_path_and_a_way_out() {
    for (from, to, expected) in BAD {
        assert!(GOOD.contains(from), "{from} is not in the good manifest");
        let message = refusal(&GOOD.replacen(from, to, 1));
        for part in *expected {
            assert!(message.contains(part), "{from:?} → {to:?}\nexpected: {part}\nsaid: {message}");
        }
    }
}

#[test]
fn all_that_is_wrong_is_said_at_once_and_where() {
    let text = GOOD.replace("quant: Q4_K_M", "overflow: []").replace("tokens: 4096", "tokens: x");
    let message = refusal(&format!("{GOOD}---\n{text}"));
    assert!(message.starts_with("document 2, InferenceDeployment kimi, is refused:"), "{message}");
    for part in ["spec.overflow", "spec.quant", "spec.context.tokens"] {
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn size_and_depth_are_bounded() {
    let huge = format!("{GOOD}# {}", "x".repeat(MAX_BYTES));
    assert!(matches!(manifest::parse(&huge), Err(ManifestError::TooLarge { .. })));
    let deep = format!("a: {}", "[".repeat(10_000));
    assert!(refusal(&deep).contains("not YAML"));
    let aliases = "a: &a [x, x, x, x, x, x, x, x]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a]\nc: &c [*b, *b, *b, *b, *b, *b, *b, *b]\n\
                   d: &d [*c, *c, *c, *c, *c, *c, *c, *c]\ne: &e [*d, *d, *d, *d, *d, *d, *d, *d]\n\
                   f: &f [*e, *e, *e, *e, *e, *e, *e, *e]\ng: [*f, *f, *f, *f, *f, *f, *f, *f]\n";
    assert!(refusal(aliases).contains("not YAML"));
    assert!(refusal("").contains("no object"));
    assert!(refusal("just words").contains("an object is expected here, not a string"));
}

#[test]
fn json_and_what_a_server_returns_are_read_too() {
    let yaml = &manifest::parse(GOOD).unwrap()[0];
    let text = serde_json::to_string_pretty(&yaml.written).unwrap();
    assert_eq!(&manifest::parse(&text).unwrap()[0], yaml);
    let mut stored = yaml.written.clone();
    stored["metadata"]["resourceVersion"] = "7".into();
    stored["metadata"]["managedFields"] = serde_json::json!([]);
    manifest::from_value(stored).unwrap();
}

#[test]
fn nulls_count_as_absent() {
    let text = GOOD.replace("  quant:", "  redundancy: null\n  sampling:\n    topK: null\n  quant:");
    let Object::Deployment(deployment) = manifest::parse(&text).unwrap()[0].object() else {
        panic!("a deployment")
    };
    assert_eq!(deployment.spec.redundancy.replace_after_seconds, 60);
    assert_eq!(deployment.spec.sampling.unwrap().top_k, None);
}

#[test]
fn one_refused_document_does_not_hide_the_others() {
    let text = format!("{GOOD}---\n---\nkind: Pod\n---\n{GOOD}---\na: [1,\nb: 2\n---\n{GOOD}");
    let read = manifest::documents(&text).unwrap();
    let places: Vec<Option<usize>> = read
        .iter()
        .map(|read| match read {
            Ok(_) => None,
            Err(ManifestError::Refused { document, .. } | ManifestError::Syntax { document, .. }) => {
                Some(*document)
            }
            Err(other) => panic!("{other}"),
        })
        .collect();
    assert_eq!(places, [None, Some(3), None, Some(5)], "behind what is not YAML nothing can be read");
}

#[test]
fn a_host_is_labelled_without_a_spec() {
    let text = "{apiVersion: inference.tandem.dev/v1alpha1, kind: InferenceHost, metadata: {name: a, labels: {zone: x}}}";
    let [host] = manifest::parse(text).unwrap().try_into().unwrap();
    assert!(host.written.get("spec").is_none(), "an apply owns only what it states");
    assert!(matches!(host.object(), Object::Host(_)));
}

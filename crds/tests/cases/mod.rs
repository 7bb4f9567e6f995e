//! What admission must accept and refuse, as one table: the rules are held against it offline here, and a real API server in
//! `e2e/servers/tests/admission.rs`.
#![allow(dead_code, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

use serde_json::{Value, json};

pub(crate) fn deployment() -> Value {
    json!({
        "apiVersion": "inference.tandem.dev/v1alpha1",
        "kind": "InferenceDeployment",
        "metadata": {"name": "kimi", "namespace": "llm"},
        "spec": {
            "model": {"name": "kimi-k2.5", "source": "https://models.example.com/kimi/"},
            "quant": "Q4_K_M",
            "context": {"tokens": 4096}
        }
    })
}

pub(crate) fn host() -> Value {
    let files = json!([{"name": "a-Q8_0.gguf", "sha256": "0".repeat(64), "bytes": 1}]);
    json!({
        "apiVersion": "inference.tandem.dev/v1alpha1",
        "kind": "InferenceHost",
        "metadata": {"name": "mac-1"},
        "spec": {"term": 4, "generation": 9, "workloads": [{
            "id": "llm-kimi-1", "epoch": 1, "deployment": {"namespace": "llm", "name": "kimi"}, "model": "kimi-k2.5",
            "source": "file:///m", "files": files, "quant": "Q8_0", "contextTokens": 4096, "poolTokens": 4096,
            "memoryBytes": 1
        }]}
    })
}

/// Sets a field by its path; `null` removes it.
pub(crate) fn set(object: &mut Value, path: &str, value: Value) {
    let mut at = object;
    let parts: Vec<&str> = path.split('.').collect();
    let (last, parents) = parts.split_last().unwrap();
    for part in parents {
        at = match part.parse::<usize>() {
            Ok(index) => &mut at[index],
            Err(_) => &mut at[*part],
        };
    }
    at[*last] = value;
}

pub(crate) fn with(mut object: Value, path: &str, value: Value) -> Value {
    set(&mut object, path, value);
    object
}

/// An object, a field of it, a value that is fine, a value that is not, and part of what is then said.
pub(crate) type Case = (Value, &'static str, Value, Value, &'static str);

/// A field, a value that is fine, a value that is not, and part of what is then said.
pub(crate) fn cases() -> Vec<Case> {
    let deployments = [
        ("spec.quant", json!("UD-Q2_K_XL"), json!("../Q4"), "quant '../Q4' can't be part of a file name"),
        ("spec.replicas", json!(0), json!(65), "replicas is out of range; use 0"),
        (
            "spec.model.name",
            json!("K2.5_a"),
            json!("kimi/k2"),
            "model.name 'kimi/k2' can't be used in a request",
        ),
        (
            "spec.model.source",
            json!("file:///m"),
            json!("ftp://r/m"),
            "ftp:// is not a kind of source; use hf://, https://, s3://, oci:// or file://",
        ),
        (
            "spec.model.source",
            json!("file:///m"),
            json!("models"),
            "'models' is not a URL; use hf://, https://",
        ),
        ("spec.model.source", json!("file:///m"), json!("file://m"), "needs an absolute path"),
        ("spec.model.source", json!("file:///m"), json!("file:///"), "needs an absolute path"),
        (
            "spec.model.source",
            json!("https://h:8443/x"),
            json!("https://u:p@h/x"),
            "without user or password",
        ),
        ("spec.model.source", json!("https://[::1]/x"), json!("https:///x"), "needs a host"),
        (
            "spec.model.source",
            json!("https://h/a..b/"),
            json!("https://h/../b"),
            "no backslashes, spaces or '..'",
        ),
        ("spec.model.source", json!("file:///m"), json!("file:///m\\n"), "no backslashes, spaces or '..'"),
        ("spec.model.source", json!("file:///m"), json!("file:///m n"), "no backslashes, spaces or '..'"),
        (
            "spec.model.source",
            json!("hf://unsloth/Kimi-K2.5-GGUF@main"),
            json!("hf://unsloth"),
            "hf://owner/repository",
        ),
        ("spec.model.source", json!("s3://bucket/kimi"), json!("s3://B"), "s3://bucket/prefix"),
        (
            "spec.model.source",
            json!("oci://r.example:5000/m/kimi:Q4"),
            json!("oci://r.example"),
            "oci://registry/repository",
        ),
        (
            "spec.model.credentials",
            json!({"secretRef": {"name": "hub", "key": "token"}}),
            json!({"secretRef": {"name": "Hub", "key": "token"}}),
            "a secret's name is a DNS name",
        ),
        (
            "spec.model.credentials",
            json!({"secretRef": {"name": "hub", "key": "TOKEN_1"}}),
            json!({"secretRef": {"name": "hub", "key": "to/ken"}}),
            "a secret's key has letters",
        ),
        (
            "spec.model.files",
            json!([{"name": "Q8_0/a.gguf", "sha256": "a".repeat(64)}]),
            json!([{"name": "../a.gguf", "sha256": "a".repeat(64)}]),
            "'../a.gguf' is not the path of a GGUF file below the source",
        ),
        (
            "spec.model.files",
            json!([{"name": "a.gguf", "sha256": "0".repeat(64)}]),
            json!([{"name": "a.gguf", "sha256": "A".repeat(64)}]),
            "64 lowercase hexadecimal digits",
        ),
        ("spec.context.tokens", json!(16), json!(8), "context.tokens is out of range; use 16 to 4194304"),
        ("spec.context.poolTokens", json!(4096), json!(4095), "poolTokens is less than tokens"),
        (
            "spec.context.poolTokens",
            json!(67_108_864),
            json!(67_108_865),
            "context.poolTokens is out of range; use at most",
        ),
        (
            "spec.redundancy",
            json!({"hostFailures": 8}),
            json!({"hostFailures": 9}),
            "hostFailures is out of range; use 0 to 8: each failure",
        ),
        (
            "spec.redundancy",
            json!({"replaceAfterSeconds": 0}),
            json!({"replaceAfterSeconds": 86401}),
            "replaceAfterSeconds is out of range; use 0 to 86400",
        ),
        (
            "spec.placement",
            json!({"hostSelector": {"matchLabels": {"zone": "a"}}}),
            json!({"hostSelector": {"matchLabels": {"zone": "a".repeat(64)}}}),
            "a label's key has at most 317 characters and its value 63",
        ),
        (
            "spec.sampling",
            json!({"temperature": "2"}),
            json!({"temperature": "2.1"}),
            "temperature is '2.1'; use a number from 0 to 2",
        ),
        (
            "spec.sampling",
            json!({"temperature": "0.70"}),
            json!({"temperature": "hot"}),
            "temperature is 'hot'",
        ),
        ("spec.sampling", json!({"topP": "1.0"}), json!({"topP": "0"}), "topP is '0'; use a number above 0"),
        ("spec.sampling", json!({"minP": "0"}), json!({"minP": "1.0"}), "minP is '1.0'; use a number from 0"),
        (
            "spec.sampling",
            json!({"topK": 0}),
            json!({"topK": 1_000_001}),
            "topK is out of range; use 0 (off)",
        ),
        (
            "spec.sampling",
            json!({"repetitionPenalty": "1.05"}),
            json!({"repetitionPenalty": "0.0"}),
            "repetitionPenalty is '0.0'; use a number above 0",
        ),
    ];
    let hosts = [
        (
            "spec.drain",
            json!(null),
            json!("Requested"),
            "a host that is being drained takes nothing new; set unschedulable, too",
        ),
        ("spec.workloads.0.id", json!("a-1"), json!("A-1"), "a workload id is a DNS label"),
    ];
    deployments
        .into_iter()
        .map(|(path, good, bad, says)| (deployment(), path, good, bad, says))
        .chain(hosts.into_iter().map(|(path, good, bad, says)| (host(), path, good, bad, says)))
        .collect()
}

/// What changes may not do: an object before, one after, and part of what is then said.
pub(crate) fn transitions() -> Vec<(Value, Value, &'static str)> {
    vec![
        (
            deployment(),
            with(deployment(), "spec.model.name", json!("other")),
            "model.name is immutable, since clients ask for it: keep 'kimi-k2.5'",
        ),
        (
            host(),
            with(host(), "spec.term", json!(3)),
            "the term is older than the object's: another operator leads",
        ),
        (host(), with(host(), "spec.generation", json!(8)), "within one term a host's generation only grows"),
    ]
}

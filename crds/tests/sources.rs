//! What admission says of a source, and what the code says that reads it, is the same.
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

use serde_json::json;
use tandem_crds::admit;
use tandem_sources::Source;

fn admitted(source: &str) -> bool {
    let object = json!({
        "apiVersion": "inference.tandem.dev/v1alpha1",
        "kind": "InferenceDeployment",
        "metadata": {"name": "kimi", "namespace": "llm"},
        "spec": {"model": {"name": "kimi", "source": source}, "quant": "Q4_K_M", "context": {"tokens": 4096}}
    });
    admit(&object, None).is_ok()
}

#[test]
fn what_can_be_read_is_admitted() {
    let digest = "0f".repeat(32);
    for source in [
        "hf://unsloth/Kimi-K2.5-GGUF",
        "hf://unsloth/Kimi-K2.5-GGUF@main",
        "hf://unsloth/Kimi-K2.5-GGUF@refs/pr/1",
        "hf://unsloth/Kimi-K2.5-GGUF@9c3dd7b8e4f0a1b2c3d4e5f60718293a4b5c6d7e",
        "hf://unsloth/Kimi-K2.5-GGUF@feature%2Fx/UD-Q2_K_XL",
        "hf://unsloth/Kimi-K2.5-GGUF/UD-Q2_K_XL/",
        "hf://unsloth/Kimi-K2.5-GGUF/Kimi%20K2.gguf",
        "https://models.example.com/kimi/",
        "https://models.example.com:8443/kimi/a-Q8_0.gguf",
        "https://[2001:db8::1]/x",
        "s3://models",
        "s3://my.models-2/kimi/k2/",
        "s3://models/kimi/a-Q8_0.gguf",
        "oci://registry.example/ai/kimi",
        "oci://registry.example:5000/ai/kimi:UD-Q2_K_XL",
        &format!("oci://registry.example/ai/kimi@sha256:{digest}"),
        "file:///srv/models/tiny-kimi",
        "file:///srv/models/a%20b.gguf",
    ] {
        assert!(source.parse::<Source>().is_ok(), "{source}");
        assert!(admitted(source), "{source}");
    }
}

#[test]
fn what_is_refused_is_refused_by_both() {
    for source in [
        "models",
        "ftp://models.example.com/",
        "hf://unsloth",
        "hf://unsloth/",
        "hf:///kimi",
        "hf://u:p@unsloth/kimi",
        "hf://unsloth/kimi@",
        "hf://unsloth/kimi@main?x",
        "hf://unsloth/../kimi",
        "https://u:p@models.example.com/",
        "https://",
        "s3://UPPER/x",
        "s3://a",
        "s3://key:secret@bucket/x",
        "s3://bucket/../x",
        "oci://registry.example",
        "oci://registry.example/UPPER",
        "oci://registry.example/kimi:",
        "oci://registry.example/kimi@sha256:12",
        "file://models",
        "file:///a b",
        "file:///a\\b",
    ] {
        assert!(source.parse::<Source>().is_err(), "{source}");
        assert!(!admitted(source), "{source}");
    }
}

//! Models of random weights, large enough that one sees them on their way.

use std::sync::OnceLock;

use serde_json::{Value, json};
use tandem_gguf::StringArray;
use tandem_reference::Reference;
use tandem_reference::dense::Dense;
use tandem_reference::file::{as_f32, writer};

/// What clients call the model, and what its deployment is called.
pub const BULK: &str = "bulk";
/// The quant that its file name says.
pub const BULK_QUANT: &str = "F32";
/// The name of its file.
pub const BULK_FILE: &str = "bulk-F32.gguf";

/// A model of some 30 MB: every process makes it once.
///
/// # Panics
/// When the generated shape can't be written, which it can.
#[must_use]
pub fn bulk_model() -> &'static [u8] {
    static FILE: OnceLock<Vec<u8>> = OnceLock::new();
    FILE.get_or_init(|| {
        let shape = Dense { width: 512, ff: 1024, layers: 3, head: 128, rope: 128, ..Dense::llama() };
        let mut file = writer(&shape, &shape.random_weights(7), &|_, tensor| as_f32(tensor));
        // Every byte is a token, and no two of them merge.
        file.set("tokenizer.ggml.merges", std::iter::empty::<&str>().collect::<StringArray>());
        file.finish().expect("generated models are well-formed")
    })
}

/// A manifest for a model of [`bulk_model`]'s kind at this source: `replicas` copies, one to a host as far as hosts reach.
#[must_use]
pub fn bulk_manifest(source: &str, replicas: usize, host_failures: usize) -> Value {
    json!({
        "apiVersion": "inference.tandem.dev/v1alpha1",
        "kind": "InferenceDeployment",
        "metadata": {"name": BULK},
        "spec": {
            "model": {"name": BULK, "source": source},
            "quant": BULK_QUANT,
            "context": {"tokens": 256},
            "redundancy": {"hostFailures": host_failures},
            "replicas": replicas,
        },
    })
}

//! From a shape in the catalogue to the headers that files of it would have.

use tandem_engine::{ModelShape, tensors};
use tandem_gguf::{GgmlType, Header, ShardSet, Writer};

use super::{KnownQuant, Shape};

/// Keys that every file of `deepseek2` has and that change no size, since no shape in the catalogue would be without them.
const OF_NO_SIZE: [(&str, f32); 3] =
    [("attention.layer_norm_rms_epsilon", 1e-6), ("expert_weights_scale", 2.5), ("rope.freq_base", 50_000.0)];

pub(super) fn headers(shape: &Shape, context_tokens: u32, quant: Option<&KnownQuant>) -> Option<ShardSet> {
    let experts = quant.and_then(|quant| GgmlType::from_name(quant.types.first()?)).unwrap_or(GgmlType::Q4K);
    let mut writer = Writer::new();
    writer.set("general.architecture", shape.architecture.as_str());
    let key = |name: &str| format!("{}.{name}", shape.architecture);
    for (name, value) in &shape.keys {
        writer.set(key(name), *value);
    }
    for (name, value) in OF_NO_SIZE {
        writer.set(key(name), value);
    }
    writer.set(key("context_length"), context_tokens);
    writer.set(key("expert_gating_func"), 2u32);
    writer.set(key("expert_weights_norm"), true);
    // The list of tensors follows from the shape, and the shape from metadata and the two matrices at the ends.
    let (width, vocab) = (*shape.keys.get("embedding_length")?, *shape.keys.get("vocab_size")?);
    let ends = [u64::from(width), u64::from(vocab)];
    let mut ends_only = writer.clone();
    for name in ["token_embd.weight", "output.weight"] {
        ends_only.declare(name, &ends, GgmlType::Q8_0);
    }
    let known = ModelShape::read(&assembled(&ends_only)?).ok()?;
    for spec in tensors::needed(&known, &known.all_layers()) {
        writer.declare(spec.name.as_str(), &spec.dims, ty(&spec, experts));
    }
    assembled(&writer)
}

fn ty(spec: &tensors::TensorSpec, experts: GgmlType) -> GgmlType {
    match spec.role {
        tensors::Role::Vector => GgmlType::F32,
        tensors::Role::Matrix if spec.name.ends_with("ffn_gate_inp.weight") => GgmlType::F32,
        tensors::Role::Matrix if spec.name.contains("_exps.") => experts,
        tensors::Role::Matrix => GgmlType::Q8_0,
    }
}

fn assembled(writer: &Writer) -> Option<ShardSet> {
    let (header, length) = writer.header().ok()?;
    ShardSet::assemble(vec![Header::parse(&header, length).ok()?]).ok()
}

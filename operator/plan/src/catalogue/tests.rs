//! The catalogue agrees with itself, and with what is published.

use super::*;
use tandem_crds::{Context, KvCache};
use tandem_gguf::GgmlType;

use crate::sizing;

fn catalogue() -> &'static Catalogue {
    Catalogue::built_in()
}

fn context(tokens: u32) -> Context {
    Context { tokens, pool_tokens: None, kv_cache: KvCache::F16 }
}

#[test]
fn every_fact_has_a_source_and_every_name_a_meaning() {
    let Catalogue { shapes, models, devices, speeds } = catalogue();
    for (name, shape) in shapes {
        assert!(!shape.architecture.is_empty() && !catalogue().shapes[name].source.is_empty(), "{name}");
        assert!(models.iter().any(|model| &model.shape == name), "no model has the shape {name}");
    }
    for model in models {
        assert!(!model.source.is_empty() && !model.repositories.is_empty(), "{}", model.name);
        let headers = catalogue().headers(model, None).expect(&model.name);
        assert!(sizing::size(&headers, &context(model.context_tokens)).is_ok(), "{}", model.name);
        for quant in &model.quants {
            assert!(!quant.source.is_empty() && quant.bytes > 1 << 30, "{} {}", model.name, quant.quant);
            for ty in &quant.types {
                assert!(GgmlType::from_name(ty).is_some(), "{ty}");
            }
        }
    }
    for device in devices {
        assert!(!device.source.is_empty(), "{}", device.name);
    }
    let (share, source) = catalogue().share();
    assert!((0.1..1.0).contains(&share) && !source.is_empty());
    for measured in &speeds.measured {
        assert!(measured.decode.parse::<f64>().is_ok_and(|speed| speed > 0.0), "{}", measured.source);
        assert!(measured.prefill.as_ref().is_none_or(|speed| speed.parse::<f64>().is_ok()));
        assert!(models.iter().any(|model| model.name == measured.model), "{}", measured.model);
        assert!(!measured.source.is_empty() && !measured.engine.is_empty());
    }
}

#[test]
fn models_are_found_by_their_repository_on_any_hub() {
    let found = |source: &str| catalogue().model_of(source).map(|model| model.name.as_str());
    assert_eq!(found("hf://unsloth/Kimi-K2.5-GGUF@main"), Some("Kimi K2.5"));
    assert_eq!(found("hf://unsloth/kimi-k2.5-gguf"), Some("Kimi K2.5"));
    assert_eq!(found("https://mirror.example.com/unsloth/Kimi-K2.5-GGUF/"), Some("Kimi K2.5"));
    assert_eq!(found("hf://somebody/Kimi-K2.5-GGUF"), None);
    assert_eq!(found("hf://unsloth/Kimi-K2.5-GGUF-extra"), None);
}

/// Bytes of a block times the shape is the published size, where the mix of types is known: K2.6's UD-Q4_K_XL has Q4_0
/// experts, and all else is Q8_0 or f32.
#[test]
fn shapes_and_types_give_the_published_sizes() {
    let model = catalogue().model_of("hf://unsloth/Kimi-K2.6-GGUF").unwrap();
    let quant = model.quant("UD-Q4_K_XL").unwrap();
    let headers = catalogue().headers(model, Some(quant)).unwrap();
    let (computed, published) = (headers.tensor_bytes() as f64, quant.bytes as f64);
    println!("K2.6 UD-Q4_K_XL: {computed:.0} bytes computed, {published:.0} published");
    assert!((computed / published - 1.0).abs() < 0.005, "{computed} against {published}");
    assert_eq!(headers.tensors().count(), 1096);
}

/// A quant can't be smaller than its smallest type makes all weights, nor larger than its largest.
#[test]
fn published_sizes_lie_between_their_types() {
    for model in &catalogue().models {
        for quant in &model.quants {
            let headers = catalogue().headers(model, None).unwrap();
            let weights: u64 = headers.tensors().map(|(_, tensor)| tensor.elements()).sum();
            let bits = |ty: &String| {
                let ty = GgmlType::from_name(ty).unwrap();
                ty.block_bytes() as f64 * 8.0 / ty.block_len() as f64
            };
            let own = quant.bytes as f64 * 8.0 / weights as f64;
            let least = quant.types.iter().map(bits).fold(f64::INFINITY, f64::min);
            println!("{} {}: {own:.2} bits a weight, from {least:.2}", model.name, quant.quant);
            assert!(own >= least, "{} {}", model.name, quant.quant);
            assert!(own <= 9.0, "{} {}", model.name, quant.quant);
        }
    }
}

#[test]
fn keys_and_values_are_what_is_known_of_kimi() {
    let model = catalogue().model_of("hf://unsloth/Kimi-K2.5-GGUF").unwrap();
    let headers = catalogue().headers(model, None).unwrap();
    for tokens in [32_768_u32, 98_304, 262_144] {
        let kv = sizing::size(&headers, &context(tokens)).unwrap().kv_bytes;
        assert_eq!(kv, u64::from(tokens) * 576 * 61 * 2, "{tokens}");
    }
}

/// Bandwidth over active bytes: the ceilings that are known of Kimi, to the rounding of either.
#[test]
fn ceilings_are_the_known_ones() {
    let model = catalogue().model_of("hf://unsloth/Kimi-K2.5-GGUF").unwrap();
    for (kind, name, ceilings) in [
        (DeviceKind::Metal, "Apple M3 Ultra", [67.0, 53.0, 36.0]),
        (DeviceKind::Cuda, "NVIDIA A100-SXM4-80GB", [168.0, 132.0, 90.0]),
        (DeviceKind::Cuda, "NVIDIA H200", [395.0, 311.0, 213.0]),
        (DeviceKind::Cuda, "NVIDIA B200", [658.0, 519.0, 354.0]),
    ] {
        let (bandwidth, _) = catalogue().bandwidth(kind, name).unwrap();
        for (quant, ceiling) in ["UD-TQ1_0", "UD-Q2_K_XL", "UD-Q4_K_XL"].iter().zip(ceilings) {
            let active = model.quant(quant).unwrap().active_bytes.unwrap();
            let found = bandwidth as f64 / active as f64;
            assert!((found / ceiling - 1.0_f64).abs() < 0.01, "{name} {quant}: {found:.1}, not {ceiling}");
        }
    }
    assert_eq!(catalogue().bandwidth(DeviceKind::Cuda, "NVIDIA Unheard-Of"), None);
}

#[test]
fn what_was_measured_is_found_for_one_device() {
    let found = catalogue().measured("Kimi K2.5", "UD-Q2_K_XL", DeviceKind::Metal, "Apple M3 Ultra").unwrap();
    assert_eq!(found.decode, "19.8");
    assert!(catalogue().measured("Kimi K2.5", "UD-Q4_K_XL", DeviceKind::Metal, "Apple M3 Ultra").is_none());
    assert!(catalogue().measured("Kimi K2.5", "UD-Q2_K_XL", DeviceKind::Cuda, "NVIDIA A100").is_none());
}

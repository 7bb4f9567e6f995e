//! Block formats against the `gguf` Python package (see `fixtures/make.py`), and packing against unpacking.

mod random;

use random::{Random, bits};
use tandem_kernels::WeightType;
use tandem_kernels::blocks::{dequantise_row, quantise, quantise_row};

fn fixture(ty: WeightType) -> (Vec<u8>, Vec<f32>) {
    let path = format!("{}/tests/fixtures/{}.txt", env!("CARGO_MANIFEST_DIR"), ty.name());
    let text = std::fs::read_to_string(path).expect("every type has a fixture");
    let (blocks, weights) = text.split_once("\n\n").expect("an empty line after the blocks");
    let weights = unhex(weights).as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    (unhex(blocks), weights)
}

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.chars().filter_map(|c| c.to_digit(16)).map(|d| d as u8).collect();
    digits.as_chunks::<2>().0.iter().map(|[high, low]| high << 4 | low).collect()
}

#[test]
fn weights_are_those_of_the_gguf_package_to_the_bit() {
    for ty in WeightType::ALL.into_iter().filter(|ty| *ty != WeightType::F32) {
        let (blocks, expected) = fixture(ty);
        assert!(expected.len() >= 64);
        let mut weights = vec![0.0; expected.len()];
        dequantise_row(ty, &blocks, &mut weights);
        assert_eq!(bits(&weights), bits(&expected), "{}", ty.name());
    }
}

#[test]
fn packing_loses_no_more_than_a_step() {
    let mut random = Random::new(3);
    for (ty, worst) in [
        (WeightType::F32, 0.0),
        (WeightType::F16, 2.5e-4),
        (WeightType::Bf16, 2e-3),
        (WeightType::Q8_0, 4.5e-3),
        (WeightType::Q4_0, 0.127),
        (WeightType::Q4K, 0.1),
        (WeightType::Q6K, 0.035),
    ] {
        let mut values = random.values(4096);
        values[256..512].fill(0.0);
        for value in &mut values[512..768] {
            *value = value.abs();
        }
        for value in &mut values[768..1024] {
            *value = -value.abs();
        }
        let packed = quantise(ty, &values).unwrap();
        let mut back = vec![9.0; values.len()];
        dequantise_row(ty, &packed, &mut back);
        let loss = values.iter().zip(&back).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(loss <= worst, "{} lost {loss}", ty.name());
        assert!(back[256..512].iter().all(|value| *value == 0.0), "{} moved zeros", ty.name());
    }
}

#[test]
#[should_panic(expected = "64 Q8_0 weights do not take 67 bytes")]
fn dequantising_checks_sizes() {
    dequantise_row(WeightType::Q8_0, &[0; 67], &mut [0.0; 64]);
}

#[test]
#[should_panic(expected = "33 Q4_0 weights do not take 18 bytes")]
fn quantising_checks_sizes() {
    quantise_row(WeightType::Q4_0, &[0.0; 33], &mut [0; 18]);
}

//! Every type of weight: loaded, multiplied, and equal to its dequantised values.

use tandem_engine::{EngineConfig, Mode};
use tandem_kernels::WeightType;
use tandem_kernels::blocks::dequantise_row;
use tandem_reference::Reference;
use tandem_reference::dense::Dense;
use tandem_reference::tensor::{Tensor, Weights};

use crate::support::{
    bits, config, difference, exact, files, in_chunks, load, quantised_file, small_kimi, tokens,
};

/// The weights as the file holds them, each value as the block format gives it back.
fn dequantised(file: &[u8]) -> Weights {
    let files = files(file);
    let mut weights = Weights::default();
    for (_, info) in files.headers().tensors() {
        let ty = WeightType::from_ggml(info.ty.id()).unwrap();
        let (cols, bytes) = (info.row_len() as usize, &file[info.range_in_memory().unwrap()]);
        let mut values = vec![0.0; info.elements() as usize];
        for (row, values) in
            bytes.chunks_exact(ty.row_bytes(cols).unwrap()).zip(values.chunks_exact_mut(cols))
        {
            dequantise_row(ty, row, values);
        }
        let dims = info.shape().iter().map(|&d| d as usize).collect();
        weights.insert(info.name.as_str(), Tensor { dims, values });
    }
    weights
}

fn shapes() -> [(&'static str, Box<dyn Reference>); 3] {
    [
        ("deepseek2", Box::new(small_kimi())),
        ("llama", Box::new(Dense { width: 256, ..Dense::llama() })),
        ("qwen2", Box::new(Dense { width: 256, ..Dense::qwen2() })),
    ]
}

#[test]
fn every_type_agrees_with_its_dequantised_values() {
    let tokens = tokens(3, 12);
    for (name, shape) in shapes() {
        let weights = shape.random_weights(8);
        for ty in WeightType::ALL {
            let file = quantised_file(shape.as_ref(), &weights, ty);
            let expected = shape.logits(&dequantised(&file), &tokens, 0);
            let found = in_chunks(&mut load(&file, config()), &tokens, 12);
            let (difference, greatest) = difference(&found, &expected);
            println!("{name} {}: max |difference| {difference:.1e} of {greatest:.2}", ty.name());
            assert!(difference < 1e-3, "{name} {}: {difference}", ty.name());
        }
    }
}

/// The contract rounds activations to int8, so float64 is no truth for it, only a landmark: a random model's logits drift
/// by some percent (more in a row for which another expert is chosen), where a wrong scale or order drifts by as much as
/// they are. The kernels' own tests hold the rounding to a scalar truth, bit for bit.
#[test]
fn int8_activations_stay_near() {
    const ROWS: usize = 24;
    let tokens = tokens(3, ROWS);
    for (name, shape) in shapes() {
        let weights = shape.random_weights(8);
        for ty in WeightType::ALL {
            let file = quantised_file(shape.as_ref(), &weights, ty);
            let expected = shape.logits(&dequantised(&file), &tokens, 0);
            let found = in_chunks(&mut load(&file, exact()), &tokens, ROWS);
            let mut shares: Vec<f64> =
                found.chunks_exact(shape.vocab()).zip(&expected).map(|(f, e)| noise(f, e)).collect();
            shares.sort_by(f64::total_cmp);
            let median = shares[ROWS / 2];
            println!("{name} {}: noise of {median:.1e}, at most {:.1e}", ty.name(), shares[ROWS - 1]);
            assert!(median < 0.1, "{name} {}: half the rows have noise above {median}", ty.name());
        }
    }
}

/// The root mean square of the difference over that of the expected values.
fn noise(found: &[f32], expected: &[f64]) -> f64 {
    let squares = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>();
    let difference = squares(&mut found.iter().zip(expected).map(|(&f, e)| f64::from(f) - e));
    (difference / squares(&mut expected.iter().copied())).sqrt()
}

#[test]
fn weights_that_are_not_quantised_give_equal_bits_in_both_modes() {
    let (shape, tokens) = (small_kimi(), tokens(3, 12));
    let weights = shape.random_weights(8);
    for ty in [WeightType::F32, WeightType::F16, WeightType::Bf16] {
        let file = quantised_file(&shape, &weights, ty);
        let run =
            |numerics| bits(&in_chunks(&mut load(&file, EngineConfig { numerics, ..config() }), &tokens, 12));
        assert_eq!(run(Mode::Exact), run(Mode::Reference), "{}", ty.name());
    }
}

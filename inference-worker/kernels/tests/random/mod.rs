//! Numbers for tests: the same in every run.

use tandem_kernels::{WeightMatrix, WeightType, blocks};

pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// Uniform from −1 to 1.
    pub(crate) fn value(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    pub(crate) fn values(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.value()).collect()
    }
}

/// Bytes of random weights, and the weights that they stand for.
#[allow(dead_code, reason = "each test crate uses its part of this module")]
pub(crate) fn weights(random: &mut Random, ty: WeightType, count: usize) -> (Vec<u8>, Vec<f32>) {
    let bytes = blocks::quantise(ty, &random.values(count)).expect("whole blocks");
    let mut weights = vec![0.0; count];
    blocks::dequantise_row(ty, &bytes, &mut weights);
    (bytes, weights)
}

#[allow(dead_code, reason = "each test crate uses its part of this module")]
pub(crate) fn matrix(ty: WeightType, rows: usize, cols: usize, bytes: &[u8]) -> WeightMatrix<'_> {
    WeightMatrix::new(ty, rows, cols, bytes).expect("bytes of this shape")
}

#[allow(dead_code, reason = "each test crate uses its part of this module")]
pub(crate) fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

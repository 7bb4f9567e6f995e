//! Rotary position embedding: the angle of each pair, and how pairs lie in a vector.

/// Which two values form pair `i` of a vector of `d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pairs {
    /// `(2i, 2i + 1)`: deepseek2, and llama as GGUF files permute it.
    Interleaved,
    /// `(i, i + d/2)`: qwen2.
    Halves,
}

/// How YaRN stretches a model trained on `original` positions by `factor`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Yarn {
    /// Times longer than the original context.
    pub factor: f64,
    /// Positions the model was trained on.
    pub original: u32,
    /// Pairs that turn more often than this over the original context keep their speed.
    pub beta_fast: f64,
    /// Pairs that turn less often than this are slowed down by the whole factor.
    pub beta_slow: f64,
    /// Multiplies `ln factor` in the attention scale.
    pub log_multiplier: f64,
}

/// Radians per position of each pair of a vector of `dim`, with plain rope.
pub fn frequencies(dim: usize, base: f64) -> Vec<f64> {
    (0..dim / 2).map(|i| base.powf(-((2 * i) as f64) / dim as f64)).collect()
}

/// Radians per position of each pair, with YaRN: between a fast pair's own speed and a slow one's speed over
/// the factor lies a linear ramp over the pairs.
pub fn yarn_frequencies(dim: usize, base: f64, yarn: &Yarn) -> Vec<f64> {
    // The (fractional) pair that turns `turns` times over the original context.
    let pair_of = |turns: f64| {
        dim as f64 * (f64::from(yarn.original) / (turns * std::f64::consts::TAU)).ln() / (2.0 * base.ln())
    };
    let low = pair_of(yarn.beta_fast).floor().max(0.0);
    let high = pair_of(yarn.beta_slow).ceil().min(dim as f64 - 1.0);
    frequencies(dim, base)
        .into_iter()
        .enumerate()
        .map(|(i, own)| {
            let slowed = ((i as f64 - low) / (high - low).max(0.001)).clamp(0.0, 1.0);
            own / yarn.factor * slowed + own * (1.0 - slowed)
        })
        .collect()
}

/// Turns the first `2 · frequencies.len()` values of `vector` to `position`.
pub fn rotate(vector: &mut [f64], position: usize, frequencies: &[f64], pairs: Pairs) {
    let half = frequencies.len();
    for (i, frequency) in frequencies.iter().enumerate() {
        let (first, second) = match pairs {
            Pairs::Interleaved => (2 * i, 2 * i + 1),
            Pairs::Halves => (i, i + half),
        };
        let (sin, cos) = (position as f64 * frequency).sin_cos();
        let (a, b) = (vector[first], vector[second]);
        vector[first] = a * cos - b * sin;
        vector[second] = a * sin + b * cos;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yarn_keeps_fast_pairs_and_slows_down_slow_ones() {
        let yarn =
            Yarn { factor: 32.0, original: 4096, beta_fast: 32.0, beta_slow: 1.0, log_multiplier: 0.1 };
        let plain = frequencies(64, 50_000.0);
        let stretched = yarn_frequencies(64, 50_000.0, &yarn);
        assert_eq!(plain[0], stretched[0]);
        assert_eq!(plain[31] / 32.0, stretched[31]);
        assert!(plain[14] > stretched[14] && plain[14] / 32.0 < stretched[14]);
    }
}

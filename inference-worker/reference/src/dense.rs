//! `llama` and `qwen2`: grouped-query attention and one feed-forward network per layer.

use tandem_gguf::Value;

use crate::arithmetic::{add_scaled, dot, rms_norm, silu, softmax};
use crate::metadata::{count, vocabulary};
use crate::random::Random;
use crate::rope::{Pairs, frequencies, rotate};
use crate::tensor::{Tensor, Weights};
use crate::{Reference, part_of};

/// Which of the two architectures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Interleaved rope, no biases.
    Llama,
    /// Rope over halves, biases on query, key and value.
    Qwen2,
}

/// The sizes of a model. Field by field the metadata of its file.
#[derive(Debug, Clone, PartialEq)]
pub struct Dense {
    /// Which architecture.
    pub family: Family,
    /// Layers.
    pub layers: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Width inside the feed-forward network.
    pub ff: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; each serves `heads / kv_heads` query heads.
    pub kv_heads: usize,
    /// Values of a head.
    pub head: usize,
    /// Leading values of a head that the rope turns.
    pub rope: usize,
    /// Token ids.
    pub vocab: usize,
    /// Longest context.
    pub context: u32,
    /// Base of the rope.
    pub rope_base: f64,
    /// Whether the file has `rope_freqs.weight`, by which the speed of each pair is divided (llama 3.1).
    pub rope_factors: bool,
    /// Whether the output matrix is the embedding's.
    pub tied: bool,
    /// Added to the mean square in norms.
    pub epsilon: f64,
}

impl Dense {
    /// A small llama.
    pub fn llama() -> Self {
        Self {
            family: Family::Llama,
            layers: 2,
            width: 256,
            ff: 512,
            heads: 4,
            kv_heads: 2,
            head: 64,
            rope: 64,
            vocab: 300,
            context: 131_072,
            rope_base: 500_000.0,
            rope_factors: true,
            tied: false,
            epsilon: 1e-5,
        }
    }

    /// A small qwen2.
    pub fn qwen2() -> Self {
        Self {
            family: Family::Qwen2,
            rope_base: 1_000_000.0,
            rope_factors: false,
            tied: true,
            epsilon: 1e-6,
            ..Self::llama()
        }
    }

    /// A model so small that thousands of positions take a second.
    pub fn minute(self) -> Self {
        Self { width: 64, ff: 64, heads: 2, kv_heads: 1, head: 32, rope: 32, vocab: 260, ..self }
    }

    fn pairs(&self) -> Pairs {
        match self.family {
            Family::Llama => Pairs::Interleaved,
            Family::Qwen2 => Pairs::Halves,
        }
    }

    fn frequencies(&self, weights: &Weights) -> Vec<f64> {
        let mut frequencies = frequencies(self.rope, self.rope_base);
        if self.rope_factors {
            for (frequency, factor) in frequencies.iter_mut().zip(weights.get("rope_freqs.weight").vector()) {
                *frequency /= factor;
            }
        }
        frequencies
    }

    /// What attention adds to the rows of `x`.
    fn attention(&self, weights: &Weights, layer: usize, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let norm = weights.layer(layer, "attn_norm.weight").vector();
        let project = |name: &str, h: &[f64]| -> Vec<f64> {
            let mut y = weights.layer(layer, &format!("{name}.weight")).apply(h);
            if self.family == Family::Qwen2 {
                add_scaled(&mut y, 1.0, &weights.layer(layer, &format!("{name}.bias")).vector());
            }
            y
        };
        let output = weights.layer(layer, "attn_output.weight");
        let frequencies = self.frequencies(weights);
        let (mut keys, mut values): (Vec<Vec<f64>>, Vec<Vec<f64>>) = (Vec::new(), Vec::new());
        let mut added = Vec::new();
        for (position, row) in x.iter().enumerate() {
            let h = rms_norm(row, &norm, self.epsilon);
            let mut q = project("attn_q", &h);
            let mut k = project("attn_k", &h);
            for head in q.chunks_exact_mut(self.head).chain(k.chunks_exact_mut(self.head)) {
                rotate(head, position, &frequencies, self.pairs());
            }
            keys.push(k);
            values.push(project("attn_v", &h));
            let mut heads_out = Vec::new();
            for (head, q) in q.chunks_exact(self.head).enumerate() {
                let at = head / (self.heads / self.kv_heads) * self.head;
                let mut shares: Vec<f64> =
                    keys.iter().map(|k| dot(q, &k[at..][..self.head]) / (self.head as f64).sqrt()).collect();
                softmax(&mut shares);
                let mut mixed = vec![0.0; self.head];
                for (share, value) in shares.iter().zip(&values) {
                    add_scaled(&mut mixed, *share, &value[at..][..self.head]);
                }
                heads_out.extend(mixed);
            }
            added.push(output.apply(&heads_out));
        }
        added
    }

    /// What the feed-forward network adds to a row.
    fn feed_forward(&self, weights: &Weights, layer: usize, row: &[f64]) -> Vec<f64> {
        let w = |name: &str| weights.layer(layer, name);
        let h = rms_norm(row, &w("ffn_norm.weight").vector(), self.epsilon);
        let (gate, up) = (w("ffn_gate.weight").apply(&h), w("ffn_up.weight").apply(&h));
        let inner: Vec<f64> = gate.into_iter().zip(up).map(|(g, u)| silu(g) * u).collect();
        w("ffn_down.weight").apply(&inner)
    }
}

impl Reference for Dense {
    fn architecture(&self) -> &'static str {
        match self.family {
            Family::Llama => "llama",
            Family::Qwen2 => "qwen2",
        }
    }

    fn vocab(&self) -> usize {
        self.vocab
    }

    fn metadata(&self) -> Vec<(String, Value)> {
        let mut keys = vec![
            ("block_count", count(self.layers)),
            ("context_length", Value::U32(self.context)),
            ("embedding_length", count(self.width)),
            ("feed_forward_length", count(self.ff)),
            ("attention.head_count", count(self.heads)),
            ("attention.head_count_kv", count(self.kv_heads)),
            ("attention.layer_norm_rms_epsilon", Value::F32(self.epsilon as f32)),
            ("rope.freq_base", Value::F32(self.rope_base as f32)),
            ("rope.dimension_count", count(self.rope)),
        ];
        // Files leave the head's length out where it follows from the others.
        if self.head * self.heads != self.width {
            keys.push(("attention.key_length", count(self.head)));
            keys.push(("attention.value_length", count(self.head)));
        }
        let pre_tokenizer = match self.family {
            Family::Llama => "llama-bpe",
            Family::Qwen2 => "qwen2",
        };
        let keys = keys.into_iter().map(|(key, value)| (format!("{}.{key}", self.architecture()), value));
        keys.chain(vocabulary(self.vocab, pre_tokenizer)).collect()
    }

    fn shapes(&self) -> Vec<(String, Vec<usize>)> {
        let mut shapes = vec![
            ("token_embd.weight".to_owned(), vec![self.width, self.vocab]),
            ("output_norm.weight".to_owned(), vec![self.width]),
        ];
        if !self.tied {
            shapes.push(("output.weight".to_owned(), vec![self.width, self.vocab]));
        }
        if self.rope_factors {
            shapes.push(("rope_freqs.weight".to_owned(), vec![self.rope / 2]));
        }
        let (q_width, kv_width) = (self.heads * self.head, self.kv_heads * self.head);
        for layer in 0..self.layers {
            let mut add = |name: &str, dims: &[usize]| {
                shapes.push((format!("blk.{layer}.{name}"), dims.to_vec()));
            };
            add("attn_norm.weight", &[self.width]);
            add("ffn_norm.weight", &[self.width]);
            for (name, outputs) in [("attn_q", q_width), ("attn_k", kv_width), ("attn_v", kv_width)] {
                add(&format!("{name}.weight"), &[self.width, outputs]);
                if self.family == Family::Qwen2 {
                    add(&format!("{name}.bias"), &[outputs]);
                }
            }
            add("attn_output.weight", &[q_width, self.width]);
            add("ffn_gate.weight", &[self.width, self.ff]);
            add("ffn_up.weight", &[self.width, self.ff]);
            add("ffn_down.weight", &[self.ff, self.width]);
        }
        shapes
    }

    fn random_tensor(&self, random: &mut Random, name: &str, dims: &[usize]) -> Tensor {
        match part_of(name) {
            "token_embd.weight" => Tensor::random(random, dims, 1.0),
            "attn_q.bias" | "attn_k.bias" | "attn_v.bias" => Tensor::random(random, dims, 0.3),
            "attn_q.weight" => Tensor::random_matrix(random, dims).times(3.0),
            // Between 1 and 8, as in llama 3.1.
            "rope_freqs.weight" => Tensor {
                dims: dims.to_vec(),
                values: (0..dims[0]).map(|_| 1.0 + 7.0 * random.uniform() as f32).collect(),
            },
            _ if dims.len() == 1 => Tensor::random_gain(random, dims[0]),
            _ => Tensor::random_matrix(random, dims),
        }
    }

    fn logits(&self, weights: &Weights, tokens: &[u32], from: usize) -> Vec<Vec<f64>> {
        let embedding = weights.get("token_embd.weight");
        let mut x: Vec<Vec<f64>> = tokens.iter().map(|&token| embedding.row(token as usize)).collect();
        for layer in 0..self.layers {
            let added = self.attention(weights, layer, &x);
            for (row, added) in x.iter_mut().zip(&added) {
                add_scaled(row, 1.0, added);
                let added = self.feed_forward(weights, layer, row);
                add_scaled(row, 1.0, &added);
            }
        }
        let norm = weights.get("output_norm.weight").vector();
        let output = if self.tied { embedding } else { weights.get("output.weight") };
        x[from..].iter().map(|row| output.apply(&rms_norm(row, &norm, self.epsilon))).collect()
    }
}

//! `deepseek2` as Kimi K2 uses it: attention over one latent vector per token (MLA), and a mixture of experts
//! that a sigmoid gate with a selection bias chooses.

use tandem_gguf::Value;

use crate::arithmetic::{add_scaled, dot, rms_norm, sigmoid, silu, softmax, top};
use crate::metadata::{count, vocabulary};
use crate::random::Random;
use crate::rope::{Pairs, Yarn, frequencies, rotate, yarn_frequencies};
use crate::tensor::{Tensor, Weights};
use crate::{Reference, part_of};

/// The sizes of a model. Field by field the metadata of its file.
#[derive(Debug, Clone, PartialEq)]
pub struct Deepseek2 {
    /// Layers in all.
    pub layers: usize,
    /// Leading layers with a dense feed-forward network.
    pub dense_layers: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Width inside the dense feed-forward network.
    pub dense_ff: usize,
    /// Query heads.
    pub heads: usize,
    /// Width that queries are squeezed through.
    pub q_lora: usize,
    /// Width of the latent vector that stands for keys and values.
    pub kv_lora: usize,
    /// Values of a key that carry the position.
    pub rope: usize,
    /// Values of a head's key that don't.
    pub nope: usize,
    /// Values of a head's output.
    pub v: usize,
    /// Routed experts.
    pub experts: usize,
    /// Experts that a token goes through.
    pub used: usize,
    /// Groups of experts; 1 means no groups.
    pub groups: usize,
    /// Groups that a token's experts come from.
    pub groups_used: usize,
    /// Width inside an expert. The shared expert has the same.
    pub expert_ff: usize,
    /// Whether the chosen experts' shares are made to add to one.
    pub normalise: bool,
    /// What the shares are multiplied by.
    pub expert_scale: f64,
    /// Whether gate and up of the experts lie in one tensor.
    pub fused_gate_up: bool,
    /// Token ids.
    pub vocab: usize,
    /// Longest context.
    pub context: u32,
    /// Base of the rope.
    pub rope_base: f64,
    /// How the rope is stretched.
    pub yarn: Option<Yarn>,
    /// Added to the mean square in norms.
    pub epsilon: f64,
}

impl Deepseek2 {
    /// A small model in which every part of Kimi K2 is there.
    pub fn tiny() -> Self {
        Self {
            layers: 3,
            dense_layers: 1,
            width: 256,
            dense_ff: 512,
            heads: 4,
            q_lora: 128,
            kv_lora: 512,
            rope: 64,
            nope: 128,
            v: 128,
            experts: 16,
            used: 4,
            groups: 1,
            groups_used: 1,
            expert_ff: 256,
            normalise: true,
            expert_scale: 2.827,
            fused_gate_up: false,
            vocab: 300,
            context: 131_072,
            rope_base: 50_000.0,
            yarn: Some(Yarn {
                factor: 32.0,
                original: 4096,
                beta_fast: 32.0,
                beta_slow: 1.0,
                log_multiplier: 0.1,
            }),
            epsilon: 1e-6,
        }
    }

    /// A model so small that thousands of positions take a second.
    pub fn minute() -> Self {
        Self {
            layers: 2,
            width: 64,
            dense_ff: 64,
            heads: 2,
            q_lora: 32,
            kv_lora: 64,
            rope: 32,
            nope: 32,
            v: 32,
            experts: 8,
            used: 2,
            expert_ff: 32,
            vocab: 260,
            ..Self::tiny()
        }
    }

    fn frequencies(&self) -> Vec<f64> {
        match &self.yarn {
            Some(yarn) => yarn_frequencies(self.rope, self.rope_base, yarn),
            None => frequencies(self.rope, self.rope_base),
        }
    }

    fn attention_scale(&self) -> f64 {
        let stretch = self.yarn.map_or(1.0, |yarn| 1.0 + yarn.log_multiplier * yarn.factor.ln());
        stretch * stretch / ((self.nope + self.rope) as f64).sqrt()
    }

    /// What attention adds to the rows of `x`.
    fn attention(&self, weights: &Weights, layer: usize, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let w = |name: &str| weights.layer(layer, name);
        let frequencies = self.frequencies();
        let (attn_norm, q_norm, kv_norm) = (
            w("attn_norm.weight").vector(),
            w("attn_q_a_norm.weight").vector(),
            w("attn_kv_a_norm.weight").vector(),
        );
        let (q_a, q_b, kv_a) = (w("attn_q_a.weight"), w("attn_q_b.weight"), w("attn_kv_a_mqa.weight"));
        let (k_b, v_b, output) = (w("attn_k_b.weight"), w("attn_v_b.weight"), w("attn_output.weight"));
        let scale = self.attention_scale();
        let (mut latents, mut key_ropes) = (Vec::new(), Vec::new());
        let mut added = Vec::new();
        for (position, row) in x.iter().enumerate() {
            let h = rms_norm(row, &attn_norm, self.epsilon);
            let kv = kv_a.apply(&h);
            latents.push(rms_norm(&kv[..self.kv_lora], &kv_norm, self.epsilon));
            let mut key_rope = kv[self.kv_lora..].to_vec();
            rotate(&mut key_rope, position, &frequencies, Pairs::Interleaved);
            key_ropes.push(key_rope);

            let mut q = q_b.apply(&rms_norm(&q_a.apply(&h), &q_norm, self.epsilon));
            let mut heads_out = Vec::new();
            for (head, q) in q.chunks_exact_mut(self.nope + self.rope).enumerate() {
                let (q_nope, q_rope) = q.split_at_mut(self.nope);
                rotate(q_rope, position, &frequencies, Pairs::Interleaved);
                let absorbed = k_b.apply_nth(head, q_nope);
                let mut shares: Vec<f64> = latents
                    .iter()
                    .zip(&key_ropes)
                    .map(|(latent, key_rope)| (dot(&absorbed, latent) + dot(q_rope, key_rope)) * scale)
                    .collect();
                softmax(&mut shares);
                let mut mixed = vec![0.0; self.kv_lora];
                for (share, latent) in shares.iter().zip(&latents) {
                    add_scaled(&mut mixed, *share, latent);
                }
                heads_out.extend(v_b.apply_nth(head, &mixed));
            }
            added.push(output.apply(&heads_out));
        }
        added
    }

    /// The chosen experts of a row and their shares, in the router's order.
    fn route(&self, weights: &Weights, layer: usize, h: &[f64]) -> Vec<(usize, f64)> {
        let gate: Vec<f64> =
            weights.layer(layer, "ffn_gate_inp.weight").apply(h).into_iter().map(sigmoid).collect();
        let bias = weights.layer(layer, "exp_probs_b.bias").vector();
        let mut choice: Vec<f64> = gate.iter().zip(&bias).map(|(g, b)| g + b).collect();
        if self.groups > 1 {
            // A group is as good as its two best experts together.
            let size = self.experts / self.groups;
            let group_scores: Vec<f64> =
                choice.chunks_exact(size).map(|g| top(g, 2).iter().map(|&i| g[i]).sum()).collect();
            let kept = top(&group_scores, self.groups_used);
            for (expert, score) in choice.iter_mut().enumerate() {
                if !kept.contains(&(expert / size)) {
                    *score = f64::NEG_INFINITY;
                }
            }
        }
        let chosen = top(&choice, self.used);
        let sum: f64 = if self.normalise { chosen.iter().map(|&e| gate[e]).sum() } else { 1.0 };
        chosen.into_iter().map(|e| (e, gate[e] / sum * self.expert_scale)).collect()
    }

    /// What the feed-forward part adds to a row.
    fn feed_forward(&self, weights: &Weights, layer: usize, row: &[f64]) -> Vec<f64> {
        let w = |name: &str| weights.layer(layer, name);
        let h = rms_norm(row, &w("ffn_norm.weight").vector(), self.epsilon);
        let swiglu = |gate: Vec<f64>, up: Vec<f64>| -> Vec<f64> {
            gate.into_iter().zip(up).map(|(g, u)| silu(g) * u).collect()
        };
        if layer < self.dense_layers {
            let inner = swiglu(w("ffn_gate.weight").apply(&h), w("ffn_up.weight").apply(&h));
            return w("ffn_down.weight").apply(&inner);
        }
        let inner = swiglu(w("ffn_gate_shexp.weight").apply(&h), w("ffn_up_shexp.weight").apply(&h));
        let mut y = w("ffn_down_shexp.weight").apply(&inner);
        for (expert, share) in self.route(weights, layer, &h) {
            let inner = if self.fused_gate_up {
                let mut gate = w("ffn_gate_up_exps.weight").apply_nth(expert, &h);
                let up = gate.split_off(self.expert_ff);
                swiglu(gate, up)
            } else {
                swiglu(
                    w("ffn_gate_exps.weight").apply_nth(expert, &h),
                    w("ffn_up_exps.weight").apply_nth(expert, &h),
                )
            };
            add_scaled(&mut y, share, &w("ffn_down_exps.weight").apply_nth(expert, &inner));
        }
        y
    }
}

impl Reference for Deepseek2 {
    fn architecture(&self) -> &'static str {
        "deepseek2"
    }

    fn vocab(&self) -> usize {
        self.vocab
    }

    fn metadata(&self) -> Vec<(String, Value)> {
        let mut keys = vec![
            ("block_count", count(self.layers)),
            ("context_length", Value::U32(self.context)),
            ("embedding_length", count(self.width)),
            ("feed_forward_length", count(self.dense_ff)),
            ("attention.head_count", count(self.heads)),
            ("attention.head_count_kv", Value::U32(1)),
            ("attention.layer_norm_rms_epsilon", Value::F32(self.epsilon as f32)),
            ("attention.q_lora_rank", count(self.q_lora)),
            ("attention.kv_lora_rank", count(self.kv_lora)),
            ("attention.key_length", count(self.kv_lora + self.rope)),
            ("attention.value_length", count(self.kv_lora)),
            ("attention.key_length_mla", count(self.nope + self.rope)),
            ("attention.value_length_mla", count(self.v)),
            ("rope.freq_base", Value::F32(self.rope_base as f32)),
            ("rope.dimension_count", count(self.rope)),
            ("leading_dense_block_count", count(self.dense_layers)),
            ("vocab_size", count(self.vocab)),
            ("expert_count", count(self.experts)),
            ("expert_used_count", count(self.used)),
            ("expert_shared_count", Value::U32(1)),
            ("expert_feed_forward_length", count(self.expert_ff)),
            ("expert_weights_scale", Value::F32(self.expert_scale as f32)),
            ("expert_weights_norm", Value::Bool(self.normalise)),
            ("expert_gating_func", Value::U32(2)),
            ("expert_group_count", count(self.groups)),
            ("expert_group_used_count", count(self.groups_used)),
        ];
        if let Some(yarn) = &self.yarn {
            keys.extend([
                ("rope.scaling.type", Value::from("yarn")),
                ("rope.scaling.factor", Value::F32(yarn.factor as f32)),
                ("rope.scaling.original_context_length", Value::U32(yarn.original)),
                ("rope.scaling.yarn_log_multiplier", Value::F32(yarn.log_multiplier as f32)),
                ("rope.scaling.yarn_beta_fast", Value::F32(yarn.beta_fast as f32)),
                ("rope.scaling.yarn_beta_slow", Value::F32(yarn.beta_slow as f32)),
            ]);
        }
        let keys = keys.into_iter().map(|(key, value)| (format!("deepseek2.{key}"), value));
        keys.chain(vocabulary(self.vocab, "kimi-k2")).collect()
    }

    fn shapes(&self) -> Vec<(String, Vec<usize>)> {
        let mut shapes = vec![
            ("token_embd.weight".to_owned(), vec![self.width, self.vocab]),
            ("output_norm.weight".to_owned(), vec![self.width]),
            ("output.weight".to_owned(), vec![self.width, self.vocab]),
        ];
        for layer in 0..self.layers {
            let mut add = |name: &str, dims: &[usize]| {
                shapes.push((format!("blk.{layer}.{name}"), dims.to_vec()));
            };
            add("attn_norm.weight", &[self.width]);
            add("ffn_norm.weight", &[self.width]);
            add("attn_q_a.weight", &[self.width, self.q_lora]);
            add("attn_q_a_norm.weight", &[self.q_lora]);
            add("attn_q_b.weight", &[self.q_lora, self.heads * (self.nope + self.rope)]);
            add("attn_kv_a_mqa.weight", &[self.width, self.kv_lora + self.rope]);
            add("attn_kv_a_norm.weight", &[self.kv_lora]);
            add("attn_k_b.weight", &[self.nope, self.kv_lora, self.heads]);
            add("attn_v_b.weight", &[self.kv_lora, self.v, self.heads]);
            add("attn_output.weight", &[self.heads * self.v, self.width]);
            if layer < self.dense_layers {
                add("ffn_gate.weight", &[self.width, self.dense_ff]);
                add("ffn_up.weight", &[self.width, self.dense_ff]);
                add("ffn_down.weight", &[self.dense_ff, self.width]);
                continue;
            }
            add("ffn_gate_inp.weight", &[self.width, self.experts]);
            add("exp_probs_b.bias", &[self.experts]);
            if self.fused_gate_up {
                add("ffn_gate_up_exps.weight", &[self.width, 2 * self.expert_ff, self.experts]);
            } else {
                add("ffn_gate_exps.weight", &[self.width, self.expert_ff, self.experts]);
                add("ffn_up_exps.weight", &[self.width, self.expert_ff, self.experts]);
            }
            add("ffn_down_exps.weight", &[self.expert_ff, self.width, self.experts]);
            add("ffn_gate_shexp.weight", &[self.width, self.expert_ff]);
            add("ffn_up_shexp.weight", &[self.width, self.expert_ff]);
            add("ffn_down_shexp.weight", &[self.expert_ff, self.width]);
        }
        shapes
    }

    fn random_tensor(&self, random: &mut Random, name: &str, dims: &[usize]) -> Tensor {
        match part_of(name) {
            "token_embd.weight" => Tensor::random(random, dims, 1.0),
            "exp_probs_b.bias" => Tensor::random(random, dims, 0.3),
            // Sharper attention than chance would give: what is mixed then depends on the position.
            "attn_q_b.weight" => Tensor::random_matrix(random, dims).times(3.0),
            "attn_kv_a_mqa.weight" => Tensor::random_matrix(random, dims).times(2.0),
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
        let (norm, output) = (weights.get("output_norm.weight").vector(), weights.get("output.weight"));
        x[from..].iter().map(|row| output.apply(&rms_norm(row, &norm, self.epsilon))).collect()
    }
}

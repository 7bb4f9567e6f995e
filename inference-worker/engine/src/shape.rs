//! A model's shape: every size the engine needs, parsed from metadata and checked before anything is allocated.

use std::ops::Range;

use tandem_gguf::ShardSet;
use tandem_kernels::rope::{Layout, Scaling};
use tandem_kernels::router::Router;

pub use crate::keys::KeyError;
use crate::keys::Keys;

/// Architectures that the engine runs, as `general.architecture` names them.
pub const SUPPORTED: [&str; 3] = ["deepseek2", "llama", "qwen2"];

/// An architecture that the engine runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// Kimi K2 and DeepSeek V3: one latent vector per token instead of keys and values, and routed experts.
    Deepseek2,
    /// Llama and what copies it: grouped-query attention.
    Llama,
    /// As llama, with biases on query, key and value, and rope over halves.
    Qwen2,
}

impl Architecture {
    /// Its name in `general.architecture`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Deepseek2 => SUPPORTED[0],
            Self::Llama => SUPPORTED[1],
            Self::Qwen2 => SUPPORTED[2],
        }
    }
}

/// Why a file's metadata describes no model that the engine can run.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ShapeError {
    /// The architecture is not one of [`SUPPORTED`].
    #[error("the architecture {name:?} is not supported; supported are {}", SUPPORTED.join(", "))]
    Architecture {
        /// What the file says.
        name: String,
    },
    /// A key is missing or holds something else than it must.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// Two values contradict each other.
    #[error("{key} is {value}, but {other}")]
    Contradiction {
        /// The key.
        key: String,
        /// Its value.
        value: String,
        /// What it should agree with, and that one's value.
        other: String,
    },
    /// The file holds a variant that the engine doesn't compute.
    #[error("{key} is {value}; supported is {supported}")]
    Variant {
        /// The key.
        key: String,
        /// Its value.
        value: String,
        /// What the engine computes.
        supported: &'static str,
    },
    /// A deepseek2 file whose `attn_kv_b` is not split.
    #[error(
        "the file has no {key}: it was converted before attn_kv_b was split into attn_k_b and attn_v_b; \
         use a file converted since then"
    )]
    Unsplit {
        /// The first of the missing keys.
        key: String,
    },
}

/// Rotary position embedding.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Values that it turns: an even number.
    pub dims: usize,
    /// How they pair.
    pub layout: Layout,
    /// The speed of pair `i` is `base^(-2i / dims)` radians per position, before scaling.
    pub base: f64,
    /// How the speeds are scaled.
    pub scaling: Scaling,
}

/// Attention over one latent vector per token, which all heads share.
#[derive(Debug, Clone, PartialEq)]
pub struct Mla {
    /// Query heads.
    pub heads: usize,
    /// Width that queries are squeezed through.
    pub q_lora: usize,
    /// Width of the latent vector.
    pub kv_lora: usize,
    /// Values of a head's query and key without position.
    pub nope: usize,
    /// Values of them with position: the rope's dimensions.
    pub rope: usize,
    /// Values of a head's output.
    pub v: usize,
}

impl Mla {
    /// What is cached per token and layer: the latent vector and the key's turned part.
    pub fn row(&self) -> usize {
        self.kv_lora + self.rope
    }
}

/// Grouped-query attention.
#[derive(Debug, Clone, PartialEq)]
pub struct Grouped {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; they divide the query heads.
    pub kv_heads: usize,
    /// Values of a head.
    pub head: usize,
    /// Whether query, key and value have biases.
    pub biases: bool,
}

/// How a layer attends.
#[derive(Debug, Clone, PartialEq)]
pub enum Attention {
    /// `deepseek2`.
    Mla(Mla),
    /// `llama`, `qwen2`.
    Grouped(Grouped),
}

/// The mixture of experts of the layers after the dense ones.
#[derive(Debug, Clone, PartialEq)]
pub struct Experts {
    /// Routed experts.
    pub count: usize,
    /// Experts that a row goes through.
    pub used: usize,
    /// Width inside a routed expert.
    pub ff: usize,
    /// Width inside all shared experts together; 0 for none.
    pub shared_ff: usize,
    /// Groups of experts; 1 for no groups.
    pub groups: usize,
    /// Groups that a row's experts may come from.
    pub groups_used: usize,
    /// Whether the shares of the chosen experts are made to add to one.
    pub normalise: bool,
    /// What the shares are multiplied by.
    pub scale: f32,
    /// Whether gate and up lie in one tensor, gate first.
    pub fused_gate_up: bool,
}

/// Everything about a model that isn't a weight.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelShape {
    /// The architecture.
    pub architecture: Architecture,
    /// Layers in all, of which an engine may hold a range.
    pub layers: u32,
    /// Leading layers with a dense feed-forward network; all of them where there are no experts.
    pub dense_layers: u32,
    /// The longest context that the model was made for.
    pub context_tokens: u32,
    /// Width of the residual stream.
    pub width: usize,
    /// Width inside the dense feed-forward network.
    pub dense_ff: usize,
    /// Token ids.
    pub vocab: usize,
    /// Added to the mean square in norms.
    pub epsilon: f32,
    /// How layers attend.
    pub attention: Attention,
    /// What attention scores are multiplied by.
    pub attention_scale: f32,
    /// How positions enter.
    pub rope: Rope,
    /// Whether the file has `rope_freqs.weight`.
    pub rope_factors: bool,
    /// The experts, if there are any.
    pub experts: Option<Experts>,
    /// Whether the output matrix is the embedding.
    pub tied_output: bool,
}

impl ModelShape {
    /// Reads the shape of the model with these headers.
    pub fn read(headers: &ShardSet) -> Result<Self, ShapeError> {
        let keys = &Keys::new(headers);
        match keys.architecture()? {
            "deepseek2" => Self::read_deepseek2(keys),
            "llama" => Self::read_grouped(keys, Architecture::Llama),
            "qwen2" => Self::read_grouped(keys, Architecture::Qwen2),
            other => Err(ShapeError::Architecture { name: other.to_owned() }),
        }
    }

    /// Values cached per token and layer.
    pub fn kv_row(&self) -> usize {
        match &self.attention {
            Attention::Mla(mla) => mla.row(),
            Attention::Grouped(grouped) => 2 * grouped.kv_heads * grouped.head,
        }
    }

    /// All its layers.
    pub fn all_layers(&self) -> Range<u32> {
        0..self.layers
    }

    fn read_deepseek2(keys: &Keys<'_>) -> Result<Self, ShapeError> {
        if !keys.has("attention.key_length_mla") {
            return Err(ShapeError::Unsplit { key: keys.full("attention.key_length_mla") });
        }
        let rope_dims = keys.size("rope.dimension_count")?;
        let key = keys.size("attention.key_length_mla")?;
        let Some(nope) = key.checked_sub(rope_dims).filter(|&nope| nope > 0) else {
            return Err(keys.contradiction(
                "attention.key_length_mla",
                key,
                format!("the rope alone takes {rope_dims} values of a key"),
            ));
        };
        let mla = Mla {
            heads: keys.size("attention.head_count")?,
            q_lora: keys.size("attention.q_lora_rank")?,
            kv_lora: keys.size("attention.kv_lora_rank")?,
            nope,
            rope: rope_dims,
            v: keys.size("attention.value_length_mla")?,
        };
        keys.must_be("attention.head_count_kv", 1, "the latent vector is one for all heads")?;
        keys.must_be(
            "attention.key_length",
            mla.row(),
            "kv_lora_rank + rope.dimension_count is the cached row",
        )?;
        keys.must_be("attention.value_length", mla.kv_lora, "values are the latent vector, of kv_lora_rank")?;

        let (scaling, stretch) = read_yarn_of_deepseek2(keys)?;
        let layers = keys.layers()?;
        let dense_layers = keys.u32("leading_dense_block_count")?;
        if dense_layers > layers {
            return Err(keys.contradiction(
                "leading_dense_block_count",
                dense_layers as usize,
                format!("there are {layers} layers"),
            ));
        }
        let experts = if dense_layers < layers { Some(read_experts(keys, dense_layers)?) } else { None };
        Ok(Self {
            architecture: Architecture::Deepseek2,
            layers,
            dense_layers,
            context_tokens: keys.u32("context_length")?,
            width: keys.size("embedding_length")?,
            dense_ff: keys.size("feed_forward_length")?,
            vocab: keys.vocab()?,
            epsilon: keys.epsilon()?,
            attention_scale: (stretch * stretch / (key as f64).sqrt()) as f32,
            attention: Attention::Mla(mla),
            rope: Rope {
                dims: keys.even("rope.dimension_count")?,
                layout: Layout::Pairs,
                base: keys.rope_base()?,
                scaling,
            },
            rope_factors: false,
            experts,
            tied_output: !keys.has_tensor("output.weight"),
        })
    }

    fn read_grouped(keys: &Keys<'_>, architecture: Architecture) -> Result<Self, ShapeError> {
        if keys.has("expert_count") && keys.u32("expert_count")? > 0 {
            return Err(keys.variant("expert_count", "0 (no experts) for this architecture"));
        }
        let (width, heads) = (keys.size("embedding_length")?, keys.size("attention.head_count")?);
        let kv_heads =
            if keys.has("attention.head_count_kv") { keys.size("attention.head_count_kv")? } else { heads };
        if !heads.is_multiple_of(kv_heads) {
            return Err(keys.contradiction(
                "attention.head_count_kv",
                kv_heads,
                format!("it must divide the {heads} query heads"),
            ));
        }
        let head = if keys.has("attention.key_length") {
            keys.size("attention.key_length")?
        } else if width.is_multiple_of(heads) {
            width / heads
        } else {
            return Err(keys.contradiction(
                "attention.head_count",
                heads,
                format!(
                    "it doesn't divide the embedding_length of {width}, and there is no attention.key_length"
                ),
            ));
        };
        if keys.has("attention.value_length") {
            keys.must_be("attention.value_length", head, "keys and values of a head are of one length")?;
        }
        let rope_dims =
            if keys.has("rope.dimension_count") { keys.even("rope.dimension_count")? } else { head };
        if rope_dims > head || !rope_dims.is_multiple_of(2) {
            return Err(keys.contradiction(
                "rope.dimension_count",
                rope_dims,
                format!("it must be even and at most the head's {head} values"),
            ));
        }
        let layers = keys.layers()?;
        Ok(Self {
            architecture,
            layers,
            dense_layers: layers,
            context_tokens: keys.u32("context_length")?,
            width,
            dense_ff: keys.size("feed_forward_length")?,
            vocab: keys.vocab()?,
            epsilon: keys.epsilon()?,
            attention: Attention::Grouped(Grouped {
                heads,
                kv_heads,
                head,
                biases: architecture == Architecture::Qwen2 || keys.has_tensor("blk.0.attn_q.bias"),
            }),
            attention_scale: (1.0 / (head as f64).sqrt()) as f32,
            rope: Rope {
                dims: rope_dims,
                layout: match architecture {
                    Architecture::Qwen2 => Layout::Halves,
                    _ => Layout::Pairs,
                },
                base: keys.rope_base()?,
                scaling: read_linear(keys)?,
            },
            rope_factors: keys.has_tensor("rope_freqs.weight"),
            experts: None,
            tied_output: !keys.has_tensor("output.weight"),
        })
    }
}

/// The scaling, and what each of query and key is stretched by in the attention scale.
///
/// In deepseek2 files the rope's own magnitude is 1; YaRN's correction of it sits in the attention scale.
fn read_yarn_of_deepseek2(keys: &Keys<'_>) -> Result<(Scaling, f64), ShapeError> {
    match keys.rope_scaling()? {
        None | Some("none") => Ok((Scaling::None, 1.0)),
        Some("yarn") => {
            let factor = keys.positive("rope.scaling.factor")?;
            let multiplier = keys.f64("rope.scaling.yarn_log_multiplier")?;
            let beta = |key: &str, default: f64| if keys.has(key) { keys.positive(key) } else { Ok(default) };
            let scaling = Scaling::Yarn {
                factor,
                original_context: keys.size("rope.scaling.original_context_length")? as f64,
                beta_fast: beta("rope.scaling.yarn_beta_fast", 32.0)?,
                beta_slow: beta("rope.scaling.yarn_beta_slow", 1.0)?,
            };
            Ok((scaling, 1.0 + multiplier * libm::log(factor)))
        }
        Some(_) => Err(keys.variant("rope.scaling.type", "none or yarn for this architecture")),
    }
}

fn read_linear(keys: &Keys<'_>) -> Result<Scaling, ShapeError> {
    match keys.rope_scaling()? {
        None | Some("none") => Ok(Scaling::None),
        Some("linear") => Ok(Scaling::Linear { factor: keys.positive("rope.scaling.factor")? }),
        Some(_) => Err(keys.variant("rope.scaling.type", "none or linear for this architecture")),
    }
}

fn read_experts(keys: &Keys<'_>, first_layer: u32) -> Result<Experts, ShapeError> {
    /// `expert_gating_func` for a sigmoid.
    const SIGMOID: u32 = 2;
    if keys.u32("expert_gating_func")? != SIGMOID {
        return Err(keys.variant("expert_gating_func", "2 (sigmoid)"));
    }
    let count_or = |key: &str, default: usize| if keys.has(key) { keys.size(key) } else { Ok(default) };
    let ff = keys.size("expert_feed_forward_length")?;
    let experts = Experts {
        count: keys.size("expert_count")?,
        used: keys.size("expert_used_count")?,
        ff,
        shared_ff: ff * keys.u32_at_most("expert_shared_count", 64)? as usize,
        groups: count_or("expert_group_count", 1)?,
        groups_used: count_or("expert_group_used_count", 1)?,
        normalise: keys.bool("expert_weights_norm")?,
        scale: keys.f64("expert_weights_scale")? as f32,
        fused_gate_up: keys.has_tensor(&format!("blk.{first_layer}.ffn_gate_up_exps.weight")),
    };
    let Experts { count, used, groups, groups_used, .. } = experts;
    if groups > Router::MAX_GROUPS || !count.is_multiple_of(groups) {
        return Err(keys.contradiction(
            "expert_group_count",
            groups,
            format!("it must divide the {count} experts and be at most {}", Router::MAX_GROUPS),
        ));
    }
    if groups_used > groups {
        return Err(keys.contradiction(
            "expert_group_used_count",
            groups_used,
            format!("there are {groups} groups"),
        ));
    }
    let eligible = count / groups * groups_used;
    if used > eligible {
        return Err(keys.contradiction(
            "expert_used_count",
            used,
            format!("only {eligible} experts can be chosen"),
        ));
    }
    Ok(experts)
}

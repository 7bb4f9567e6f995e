//! Kimi K2.5 at its true shape, without weights: headers, and sparse files of full length that hold nothing else. For
//! whatever reads headers, sizes and plans, and must take seconds at it.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use tandem_gguf::{GgmlType, Writer};

use crate::Reference;
use crate::deepseek2::Deepseek2;
use crate::rope::Yarn;

/// What the published files of UD-Q2_K_XL are long in sum.
pub const UD_Q2_K_XL_BYTES: u64 = 374_764_330_144;

/// A file, as far as it has been written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shard {
    /// As publishers name it.
    pub name: String,
    /// Its first bytes: the whole header.
    pub header: Vec<u8>,
    /// The length of the whole file.
    pub bytes: u64,
}

/// Kimi K2.5's true sizes.
pub fn kimi_k2_5() -> Deepseek2 {
    Deepseek2 {
        layers: 61,
        dense_layers: 1,
        width: 7168,
        dense_ff: 18_432,
        heads: 64,
        q_lora: 1536,
        kv_lora: 512,
        rope: 64,
        nope: 128,
        v: 128,
        experts: 384,
        used: 8,
        expert_ff: 2048,
        vocab: 163_840,
        context: 262_144,
        yarn: Some(Yarn {
            factor: 64.0,
            original: 4096,
            beta_fast: 32.0,
            beta_slow: 1.0,
            log_multiplier: 0.1,
        }),
        ..Deepseek2::tiny()
    }
}

/// A mix of the types that files of UD-Q2_K_XL hold. Which tensor has which there is not known here: this one is chosen so that
/// the files come to [`UD_Q2_K_XL_BYTES`], but for half a megabyte that the first file's metadata is filled up with.
pub fn ud_q2_k_xl(name: &str, dims: &[usize]) -> GgmlType {
    let (layer, part) = match name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) {
        Some((layer, part)) => (layer.parse().unwrap_or(0_u32), part),
        None => (0, name),
    };
    match part.trim_end_matches(".weight") {
        _ if dims.len() == 1 => GgmlType::F32,
        "ffn_gate_inp" => GgmlType::F32,
        "ffn_gate_exps" | "ffn_up_exps" => GgmlType::Q2K,
        "ffn_down_exps" if layer > 58 => GgmlType::Q2K,
        "ffn_down_exps" => GgmlType::Q3K,
        // Rows of 128 and of a few heads: only blocks of 32 go into them.
        "attn_k_b" | "attn_v_b" => GgmlType::Q8_0,
        "attn_output" if (1..=46).contains(&layer) => GgmlType::Q5K,
        "attn_q_b" if layer == 0 => GgmlType::Q5K,
        "ffn_gate_shexp" | "ffn_up_shexp" => GgmlType::Q5K,
        "attn_kv_a_mqa" | "ffn_down_shexp" | "ffn_down" | "output" => GgmlType::Q6K,
        _ => GgmlType::Q4K,
    }
}

/// The files of Kimi K2.5 in UD-Q2_K_XL, as many as asked: 1,096 tensors, a vocabulary of 163,840, and
/// [`UD_Q2_K_XL_BYTES`] in sum.
///
/// # Panics
/// When there are more files than tensors.
pub fn kimi_shards(files: usize) -> Vec<Shard> {
    /// With its length and its value's, this key takes 32 bytes, which is also what files are aligned to.
    const FILLING: &str = "test.filling";
    let shape = kimi_k2_5();
    let mut writer = Writer::new();
    writer.set("general.architecture", shape.architecture());
    writer.set("general.name", "Kimi K2.5 without weights");
    for (key, value) in shape.metadata() {
        writer.set(key, value);
    }
    for (name, dims) in shape.shapes() {
        let ty = ud_q2_k_xl(&name, &dims);
        let dims: Vec<u64> = dims.iter().map(|&dim| dim as u64).collect();
        writer.declare(name, &dims, ty);
    }
    let written = |writer: &Writer| writer.header_shards(files).expect("the true shape is well-formed");
    let sum = |shards: &[(Vec<u8>, u64)]| shards.iter().map(|(_, bytes)| bytes).sum::<u64>();
    let missing = UD_Q2_K_XL_BYTES - sum(&written(&writer));
    writer.set(FILLING, "-".repeat(missing as usize - 32));
    let shards = written(&writer);
    assert_eq!(sum(&shards), UD_Q2_K_XL_BYTES, "the filling fills");
    let name = |file: usize| format!("Kimi-K2.5-UD-Q2_K_XL-{file:05}-of-{files:05}.gguf");
    shards
        .into_iter()
        .zip(1..)
        .map(|((header, bytes), file)| Shard { name: name(file), header, bytes })
        .collect()
}

/// Writes files of full length that take no more room than their headers, where the file system has sparse files.
///
/// # Errors
/// When a file can't be written, or be so long.
pub fn write_sparse(folder: &Path, shards: &[Shard]) -> io::Result<Vec<PathBuf>> {
    let write = |shard: &Shard| {
        let path = folder.join(&shard.name);
        let mut file = File::create(&path)?;
        file.write_all(&shard.header)?;
        file.set_len(shard.bytes)?;
        Ok(path)
    };
    shards.iter().map(write).collect()
}

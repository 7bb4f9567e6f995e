//! The bits of every operation, pinned: on any platform a changed digest means that workers of this build may not continue
//! streams of the one before.
//!
//! When a change is meant: raise `KERNEL_REVISION`, and put the digests that the failure prints in place of these.

mod random;

use random::{Random, matrix, weights};
use tandem_kernels::attention::{Context, Scratch, Shape, mla_attention};
use tandem_kernels::elementary::{exp, sigmoid, silu};
use tandem_kernels::experts::combine;
use tandem_kernels::logits::log_sum_exp;
use tandem_kernels::matmul::matmul;
use tandem_kernels::norm::rms_norm;
use tandem_kernels::rope::{Layout, Scaling, angles, frequencies, rope};
use tandem_kernels::router::{Gating, Router, route};
use tandem_kernels::{
    Forms, KERNEL_REVISION, KvPool, KvType, Mode, Pool, QuantisedRows, Segments, WeightType,
};

const PINNED: (u32, &[(&str, u64)]) = (
    1,
    &[
        ("exp", 0x521e_bc2c_ea4b_1991),
        ("sigmoid", 0x6efc_2ee6_0475_28f5),
        ("silu", 0xc992_7422_96e7_cb49),
        ("rope", 0x53e8_3fb3_145b_f061),
        ("attention F32", 0x3f8f_d8e4_ab4d_a1f6),
        ("attention F16", 0x3b04_7544_5ac8_67d0),
        ("router sigmoid", 0xfb95_2d5d_6a33_6381),
        ("router softmax", 0xa1f4_a53c_e00a_4a9d),
        ("norm", 0xaa66_9f30_0c7f_df7d),
        ("combine", 0x18e1_0f7e_5a24_ade0),
        ("log sums", 0x0280_9ecf_b4a6_c02a),
        ("product F32 Exact", 0xf757_6e18_8d44_858f),
        ("product F32 Reference", 0xf757_6e18_8d44_858f),
        ("product F16 Exact", 0xc993_2886_2873_8ee3),
        ("product F16 Reference", 0xc993_2886_2873_8ee3),
        ("product BF16 Exact", 0xa428_4ee3_c4bb_f477),
        ("product BF16 Reference", 0xa428_4ee3_c4bb_f477),
        ("product Q8_0 Exact", 0x20b6_1e81_a4ac_1e2f),
        ("product Q8_0 Reference", 0xe7a0_125c_b994_c689),
        ("product Q4_0 Exact", 0xdd72_675c_7293_a180),
        ("product Q4_0 Reference", 0x1edd_0148_1809_6f02),
        ("product Q4_K Exact", 0x9054_db4c_f45c_2ede),
        ("product Q4_K Reference", 0x0570_db47_4e18_29a6),
        ("product Q6_K Exact", 0x3f86_4a21_eb4c_cbc3),
        ("product Q6_K Reference", 0xada5_7a56_b8b2_b38d),
    ],
);

/// FNV-1a over the bits.
fn digest(values: impl IntoIterator<Item = f32>) -> u64 {
    values
        .into_iter()
        .flat_map(|value| value.to_bits().to_le_bytes())
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

fn product(ty: WeightType, mode: Mode) -> u64 {
    let mut random = Random::new(1);
    let (rows, cols, tokens) = (20, 1024, 5);
    let (bytes, _) = weights(&mut random, ty, rows * cols);
    let x = random.values(tokens * cols);
    let mut scratch = QuantisedRows::with_capacity(x.len(), Forms::all());
    let activations = scratch.quantise(&Pool::inline(), mode, &x, cols, Forms::all());
    let mut out = vec![0.0; tokens * rows];
    matmul(&Pool::inline(), &activations, &matrix(ty, rows, cols, &bytes), &mut out);
    digest(out)
}

fn attention(ty: KvType) -> u64 {
    let mut random = Random::new(2);
    let shape = Shape { heads: 3, kv_heads: 1, key_len: 72, value_len: 64, scale: 0.9 };
    let mut latents = KvPool::new(ty, 1, 600, 72);
    latents.store(&(0..600).collect::<Vec<u32>>(), &random.values(600 * 72));
    let (queries, scratch) = (random.values(3 * 72), Scratch::new(1, 72, 64));
    let mut out = vec![0.0; 3 * 64];
    let context = Context { pages: &[0], len: 600 };
    mla_attention(&Pool::inline(), &shape, &queries, &latents, &[context], &scratch, &mut out);
    digest(out)
}

fn routing(gating: Gating) -> u64 {
    let router =
        Router { experts: 64, used: 6, gating, groups: 8, groups_used: 4, normalise: true, scale: 2.827 };
    let mut random = Random::new(3);
    let (mut logits, bias) = (random.values(10 * 64), random.values(64));
    let (mut ids, mut shares) = (vec![0; 60], vec![0.0; 60]);
    route(&Pool::inline(), &router, &mut logits, Some(&bias), &mut ids, &mut shares);
    digest(ids.into_iter().map(|id| id as f32).chain(shares))
}

fn turning() -> u64 {
    let scaling = Scaling::Yarn { factor: 32.0, original_context: 4096.0, beta_fast: 32.0, beta_slow: 1.0 };
    let frequencies = frequencies(64, 50_000.0, scaling, None);
    let positions = [0, 1, 4095, 4097, 131_071];
    let (mut cos, mut sin) = (vec![0.0; 160], vec![0.0; 160]);
    angles(&positions, &frequencies, 1.0, &mut cos, &mut sin);
    let mut x = Random::new(4).values(5 * 64);
    rope(&Pool::inline(), Layout::Pairs, &mut x, Segments::whole(64), &cos, &sin);
    digest(x.into_iter().chain(cos).chain(sin))
}

fn rows() -> (u64, u64, u64) {
    let mut random = Random::new(5);
    let (x, weight, shares) = (random.values(4 * 500), random.values(500), random.values(4));
    let (mut normed, mut sum) = (vec![0.0; 4 * 500], weight.clone());
    rms_norm(&Pool::inline(), &x, &weight, 1e-6, &mut normed);
    combine(&Pool::inline(), &x, &shares, 4, &mut sum);
    (digest(normed), digest(sum), digest(x.chunks(500).map(log_sum_exp)))
}

#[test]
fn bits_change_only_with_the_revision() {
    let steps = || (-110_000..95_000).map(|i| i as f32 * 1e-3);
    let mut digests = vec![
        ("exp".to_owned(), digest(steps().map(exp))),
        ("sigmoid".to_owned(), digest(steps().map(sigmoid))),
        ("silu".to_owned(), digest(steps().map(silu))),
        ("rope".to_owned(), turning()),
        ("attention F32".to_owned(), attention(KvType::F32)),
        ("attention F16".to_owned(), attention(KvType::F16)),
        ("router sigmoid".to_owned(), routing(Gating::Sigmoid)),
        ("router softmax".to_owned(), routing(Gating::Softmax)),
    ];
    let (norm, combined, sums) = rows();
    digests.extend([
        ("norm".to_owned(), norm),
        ("combine".to_owned(), combined),
        ("log sums".to_owned(), sums),
    ]);
    for ty in WeightType::ALL {
        for mode in [Mode::Exact, Mode::Reference] {
            digests.push((format!("product {} {mode:?}", ty.name()), product(ty, mode)));
        }
    }
    let (revision, pinned) = PINNED;
    let same = digests.iter().map(|(name, digest)| (name.as_str(), *digest)).eq(pinned.iter().copied());
    let table: String =
        digests.iter().map(|(name, digest)| format!("    ({name:?}, {digest:#018x}),\n")).collect();
    assert!(same && revision == KERNEL_REVISION, "revision {KERNEL_REVISION} has other bits:\n{table}");
}

//! Seeded two-layer models with random weights, for tests of both backbones and for the laws that
//! methods obey. Small enough for a naive reference in `f64`, and shaped so that every feature of
//! a [`Blueprint`] is switched on by one flavour at least.

pub mod encoder;
mod file;

use std::collections::HashMap;

use tessera_core::ModelSpec;

use crate::arch::{Activation, Blueprint, LayerPlan, Pairing};

pub use file::{any_subset_gguf, denoiser_gguf, gguf};

/// Tensors by their GGUF name. A shape lists the extents outermost first: a matrix of shape
/// `[n, k]` holds `n` rows of `k` values, row after row (a GGUF file writes that as `k, n`).
pub type ToyWeights = HashMap<String, (Vec<usize>, Vec<f32>)>;

/// Which architecture a toy model resembles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Flavour {
    /// Interleaved pairs, SiLU, a head of its own.
    Llama,
    /// Pairs in halves, biases on q, k and v, tied head.
    Qwen,
    /// Norms on q and k and after each block, GELU, soft caps, scaled embeddings, tied head, and
    /// a window of 8 in every second layer.
    Gemma,
}

impl Flavour {
    /// All three.
    pub const ALL: [Self; 3] = [Self::Llama, Self::Qwen, Self::Gemma];
}

/// The blueprint of a flavour: 2 layers, hidden 64, 4 heads over 2 key heads of width 16, feed
/// forward 96, vocabulary 97.
pub fn blueprint(flavour: Flavour) -> Blueprint {
    let gemma = flavour == Flavour::Gemma;
    let arch = match flavour {
        Flavour::Llama => "llama",
        Flavour::Qwen => "qwen2",
        Flavour::Gemma => "gemma3",
    };
    let layer = |i: usize| match flavour {
        Flavour::Llama => LayerPlan { rope_base: 10_000.0, window: None },
        Flavour::Qwen => LayerPlan { rope_base: 1_000_000.0, window: None },
        Flavour::Gemma if i.is_multiple_of(2) => LayerPlan { rope_base: 10_000.0, window: Some(8) },
        Flavour::Gemma => LayerPlan { rope_base: 1_000_000.0, window: None },
    };
    Blueprint {
        spec: ModelSpec {
            arch: arch.to_owned(),
            layers: 2,
            hidden: 64,
            heads: 4,
            kv_heads: 2,
            head_dim: 16,
            vocab: 97,
            context: 512,
        },
        ffn: 96,
        norm_eps: if gemma { 1e-6 } else { 1e-5 },
        pairing: if flavour == Flavour::Llama { Pairing::Interleaved } else { Pairing::Halves },
        rope_factors: None,
        activation: if gemma { Activation::GeluTanh } else { Activation::Silu },
        qkv_bias: flavour == Flavour::Qwen,
        qk_norm: gemma,
        post_norms: gemma,
        embedding_scale: if gemma { 8.0 } else { 1.0 },
        attention_scale: 0.25,
        // Small enough to bend the scores and logits of a random model.
        attention_softcap: gemma.then_some(4.0),
        logit_softcap: gemma.then_some(10.0),
        tied: flavour != Flavour::Llama,
        layers: (0..2).map(layer).collect(),
        filling: None,
    }
}

/// Random weights for any blueprint. A tensor depends on the seed and its own name only.
pub fn weights(blueprint: &Blueprint, seed: u64) -> ToyWeights {
    let spec = &blueprint.spec;
    let (hidden, ffn) = (spec.hidden, blueprint.ffn);
    let (q, kv) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
    let mut all = ToyWeights::new();
    let mut matrix = |name: String, k: usize, n: usize, scale: f32| {
        let values = normals(seed, &name, k * n).into_iter().map(|x| x * scale).collect();
        all.insert(name, (vec![n, k], values));
    };
    let unit = |k: usize| 1.0 / (k as f32).sqrt();
    matrix("token_embd.weight".into(), hidden, spec.vocab, 2.0 * unit(hidden));
    if !blueprint.tied {
        matrix("output.weight".into(), hidden, spec.vocab, 2.0 * unit(hidden));
    }
    for layer in 0..spec.layers {
        let name = |part: &str| format!("blk.{layer}.{part}.weight");
        // q and k somewhat large, so that attention is not nearly uniform.
        matrix(name("attn_q"), hidden, q, 1.5 * unit(hidden));
        matrix(name("attn_k"), hidden, kv, 1.5 * unit(hidden));
        matrix(name("attn_v"), hidden, kv, unit(hidden));
        matrix(name("attn_output"), q, hidden, unit(q));
        matrix(name("ffn_gate"), hidden, ffn, unit(hidden));
        matrix(name("ffn_up"), hidden, ffn, unit(hidden));
        matrix(name("ffn_down"), ffn, hidden, unit(ffn));
    }
    let mut vector = |name: String, n: usize, around: f32, scale: f32| {
        let values = normals(seed, &name, n).into_iter().map(|x| around + x * scale).collect();
        all.insert(name, (vec![n], values));
    };
    vector("output_norm.weight".into(), hidden, 1.0, 0.1);
    for layer in 0..spec.layers {
        let name = |part: &str| format!("blk.{layer}.{part}");
        vector(name("attn_norm.weight"), hidden, 1.0, 0.1);
        vector(name("ffn_norm.weight"), hidden, 1.0, 0.1);
        if blueprint.qkv_bias {
            vector(name("attn_q.bias"), q, 0.0, 0.5);
            vector(name("attn_k.bias"), kv, 0.0, 0.5);
            vector(name("attn_v.bias"), kv, 0.0, 0.5);
        }
        if blueprint.qk_norm {
            vector(name("attn_q_norm.weight"), spec.head_dim, 1.2, 0.2);
            vector(name("attn_k_norm.weight"), spec.head_dim, 1.2, 0.2);
        }
        if blueprint.post_norms {
            vector(name("post_attention_norm.weight"), hidden, 1.0, 0.1);
            vector(name("post_ffw_norm.weight"), hidden, 1.0, 0.1);
        }
    }
    all
}

/// A stream of 64-bit numbers from one seed (splitmix64).
#[derive(Debug, Clone)]
pub struct Stream(u64);

impl Stream {
    /// The stream of `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number in `0..n`; `n` must not be 0.
    pub fn below(&mut self, n: u32) -> u32 {
        (((self.bits() >> 32) * u64::from(n)) >> 32) as u32
    }

    /// A number in `0.0..1.0`.
    pub fn unit(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u32 << 24) as f32
    }

    /// Nearly normal, mean 0 and variance 1: the sum of four uniform numbers, so that the same
    /// bits come out on every machine.
    pub fn normal(&mut self) -> f32 {
        let sum = self.unit() + self.unit() + self.unit() + self.unit();
        (sum - 2.0) * 3f32.sqrt()
    }
}

fn normals(seed: u64, name: &str, n: usize) -> Vec<f32> {
    // FNV-1a of the name keeps tensors independent of one another and of their order.
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| {
        (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    let mut stream = Stream::new(hash ^ seed.wrapping_mul(0xd6e8_feb8_6659_fd93));
    (0..n).map(|_| stream.normal()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_depend_on_the_seed_and_fit_the_blueprint() {
        for flavour in Flavour::ALL {
            let blueprint = blueprint(flavour);
            let (a, b, c) =
                (weights(&blueprint, 1), weights(&blueprint, 1), weights(&blueprint, 2));
            assert_eq!(a, b);
            for (name, (shape, values)) in &a {
                assert_eq!(shape.iter().product::<usize>(), values.len(), "{name}");
                assert_ne!(values, &c[name].1, "{name}");
                assert!(values.iter().all(|x| x.is_finite()), "{name}");
            }
            assert_eq!(a.contains_key("output.weight"), !blueprint.tied);
            assert_eq!(a.contains_key("blk.1.attn_q.bias"), blueprint.qkv_bias);
            assert_eq!(a.contains_key("blk.1.post_ffw_norm.weight"), blueprint.post_norms);
        }
    }

    #[test]
    fn normals_have_mean_0_and_variance_1() {
        let mut stream = Stream::new(3);
        let list: Vec<f32> = (0..20_000).map(|_| stream.normal()).collect();
        let mean = list.iter().sum::<f32>() / list.len() as f32;
        let variance = list.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / list.len() as f32;
        assert!(mean.abs() < 0.03 && (variance - 1.0).abs() < 0.05, "{mean} {variance}");
    }
}

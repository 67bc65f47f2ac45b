//! Architectures as data: each file here turns hyper-parameters into a [`Blueprint`], and every
//! backbone executes blueprints. A new decoder-only architecture is one file, not one per backbone.

mod dream;
mod gemma3;
mod llada;
mod llama;
mod qwen2;

pub use tessera_core::Pairing;
use tessera_core::{Filling, ModelSpec};

use crate::hyper::{Architecture, HyperParams};

/// The gate's non-linearity in the feed-forward block, `act(gate) * up`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x * sigmoid(x)`.
    Silu,
    /// GELU by its tanh approximation.
    GeluTanh,
}

/// What differs from layer to layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LayerPlan {
    /// Base of the rotary frequencies.
    pub rope_base: f32,
    /// Sliding window in positions; `None` reads everything.
    pub window: Option<u32>,
}

/// A pre-norm decoder with grouped-query attention and a gated feed-forward block.
///
/// Tensors are named as GGUF names them: `token_embd`, `output_norm`, `output`, and in
/// `blk.<layer>.`: `attn_norm`, `attn_q|k|v|output` (`.weight`, `.bias`), `attn_q_norm`,
/// `attn_k_norm`, `post_attention_norm`, `ffn_norm`, `ffn_gate|up|down`, `post_ffw_norm`.
#[derive(Debug, Clone, PartialEq)]
pub struct Blueprint {
    /// The shape that everyone above sees.
    pub spec: ModelSpec,
    /// Width of the feed-forward block.
    pub ffn: usize,
    /// Epsilon of every RMS norm.
    pub norm_eps: f32,
    /// Pairing of the rotary encoding.
    pub pairing: Pairing,
    /// Divisors of the rotary frequencies (`head_dim / 2` of them), if the file carries any.
    pub rope_factors: Option<Vec<f32>>,
    /// Non-linearity of the feed-forward block.
    pub activation: Activation,
    /// Whether q, k and v have biases.
    pub qkv_bias: bool,
    /// Whether q and k are RMS-normed per head before the rotary encoding.
    pub qk_norm: bool,
    /// Whether the outputs of attention and feed-forward are RMS-normed before they are added.
    pub post_norms: bool,
    /// Factor on embeddings as they enter.
    pub embedding_scale: f32,
    /// Factor on attention scores.
    pub attention_scale: f32,
    /// `cap * tanh(score / cap)` on attention scores.
    pub attention_softcap: Option<f32>,
    /// `cap * tanh(logit / cap)` on logits.
    pub logit_softcap: Option<f32>,
    /// Whether the head is the embedding table.
    pub tied: bool,
    /// One plan per layer.
    pub layers: Vec<LayerPlan>,
    /// How the model fills masks; `None` for one that writes from left to right.
    pub filling: Option<Filling>,
}

impl Blueprint {
    /// The blueprint of a model with these hyper-parameters.
    pub fn new(params: &HyperParams) -> Self {
        match params.arch {
            Architecture::Llama => llama::blueprint(params),
            Architecture::Qwen2 => qwen2::blueprint(params),
            Architecture::Gemma3 => gemma3::blueprint(params),
            Architecture::Llada => llada::blueprint(params),
            Architecture::Dream => dream::blueprint(params),
        }
    }

    /// What the hyper-parameters say, without norms beyond the usual two.
    fn common(params: &HyperParams, pairing: Pairing) -> Self {
        let window = params.sliding_window.map(|w| u32::try_from(w).unwrap_or(u32::MAX));
        let layer = |&local: &bool| LayerPlan {
            rope_base: params.rope_base_local.filter(|_| local).unwrap_or(params.rope_base),
            window: window.filter(|_| local),
        };
        Self {
            spec: ModelSpec {
                arch: params.arch.name().to_owned(),
                layers: params.layers,
                hidden: params.hidden,
                heads: params.heads,
                kv_heads: params.kv_heads,
                head_dim: params.head_dim,
                vocab: params.vocab,
                context: params.context,
            },
            ffn: params.ffn,
            norm_eps: params.norm_eps,
            pairing,
            rope_factors: params.rope_factors.clone(),
            activation: params.activation,
            qkv_bias: params.qkv_bias,
            qk_norm: false,
            post_norms: false,
            embedding_scale: params.embedding_scale,
            attention_scale: params.attention_scale,
            attention_softcap: params.attention_softcap,
            logit_softcap: params.logit_softcap,
            tied: params.tied,
            layers: params.local.iter().map(layer).collect(),
            filling: params.filling,
        }
    }
}

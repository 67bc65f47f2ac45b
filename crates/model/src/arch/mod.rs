//! Architectures as data: each file here turns hyper-parameters into a [`Blueprint`], and every
//! backbone executes blueprints. A new decoder-only architecture is one file, not one per backbone.

use tessera_core::ModelSpec;

/// How the pairs that rotary encoding turns lie in a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pairing {
    /// `(0, 1), (2, 3), ...`: how GGUF files of the llama family store q and k.
    Interleaved,
    /// `(0, d/2), (1, d/2 + 1), ...`.
    Halves,
}

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
}

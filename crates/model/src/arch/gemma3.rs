//! Gemma 3, text only: five layers with a sliding window to one without, RMS norms on q and k and
//! after each block, embeddings scaled by the square root of their width.
//!
//! The `+ 1` of Gemma's norm weights is already in GGUF files; `safetensors.rs` adds it.

use super::{Blueprint, Pairing};
use crate::hyper::HyperParams;

pub(super) fn blueprint(params: &HyperParams) -> Blueprint {
    Blueprint { qk_norm: true, post_norms: true, ..Blueprint::common(params, Pairing::Halves) }
}

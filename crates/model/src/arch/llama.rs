//! Llama and its relatives: SmolLM2, Mistral as GGUF files name it.
//!
//! GGUF files of this family store the rows of q and k so that rotary pairs lie side by side;
//! `safetensors.rs` reorders directories to match.

use super::{Blueprint, Pairing};
use crate::hyper::HyperParams;

pub(super) fn blueprint(params: &HyperParams) -> Blueprint {
    Blueprint::common(params, Pairing::Interleaved)
}

//! Qwen2 and Qwen2.5: as llama, with biases on q, k and v and rotary pairs in halves.

use super::{Blueprint, Pairing};
use crate::hyper::HyperParams;

pub(super) fn blueprint(params: &HyperParams) -> Blueprint {
    Blueprint::common(params, Pairing::Halves)
}

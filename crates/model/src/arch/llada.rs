//! LLaDA: as llama, in GGUF files with the same order of the rows of q and k. Its rows read one another
//! in both directions, which is a matter of passes, and it fills masks ([`Blueprint::filling`]).

use super::{Blueprint, Pairing};
use crate::hyper::HyperParams;

pub(super) fn blueprint(params: &HyperParams) -> Blueprint {
    Blueprint::common(params, Pairing::Interleaved)
}

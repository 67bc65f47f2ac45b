//! Dream: as qwen2, from which it was made. Its rows read one another in both directions, which is a
//! matter of passes, and a row still predicts the token after it ([`Blueprint::filling`]).

use super::{Blueprint, Pairing};
use crate::hyper::HyperParams;

pub(super) fn blueprint(params: &HyperParams) -> Blueprint {
    Blueprint::common(params, Pairing::Halves)
}

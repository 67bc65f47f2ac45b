//! Policies of models that fill masks: what a canvas starts as, which masks a step fills, with what.

pub mod ancestral;
pub mod blocks;
pub mod ccd;
pub mod confidence;
pub mod context_aware_init;
pub mod dimple;
pub mod dllm_asr;
pub mod edlm;
pub mod ete;
pub mod first_hitting;
pub mod freedave;
pub mod guided_diffusion;
pub mod threshold;

use tessera_core::entry::Needs;
use tessera_core::unmask::ranked;
use tessera_core::{Capabilities, Evidence, Fill};

/// What every policy here needs: a model that fills masks and computes rows that see both ways.
pub(crate) const DENOISER: Needs = Needs {
    mask_token: true,
    capabilities: Capabilities { masks: true, ..Needs::NONE.capabilities },
    ..Needs::NONE
};

/// The fills (by index) that may be written now, the surest first.
pub(crate) fn surest(evidence: &Evidence<'_>, fills: &[Fill]) -> Vec<usize> {
    let mut order = ranked(fills);
    order.retain(|&i| evidence.is_open(fills[i].position));
    order
}

/// Checks that a setting lies between two bounds.
pub(crate) fn between(name: &str, value: f64, low: f64, high: f64) -> Result<(), String> {
    match (low..=high).contains(&value) {
        true => Ok(()),
        false => Err(format!("{name} = {value}: must be between {low} and {high}")),
    }
}

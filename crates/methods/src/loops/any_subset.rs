//! Title: Reviving Any-Subset Autoregressive Models with Principled Parallel Sampling and Speculative
//!   Decoding
//! Authors: Guo, Ermon
//! Year: 2025
//! Id: arXiv:2504.20456
//! Implemented: any-subset speculative decoding: one network that is causal in the order of writing
//!   guesses the next holes independently and judges the guesses in a second pass. Rows of known
//!   tokens are cached, which is exact because nothing reads what comes later in the order. Holes are
//!   written from left to right, whatever stands between them.
//! Deviation: the network's query stream is a mask token at the hole's position, read by nothing, where
//!   the paper's model has rows of position only; the paper's acceptance (`residual`) is joined by
//!   `keyed`, under which the tokens are those of the run that guesses nothing.
//! Left out: the n-gram drafter (the bound on calls is lost with it), the tolerance in the ratio (it is
//!   not exact).
//! Tag: ASSD

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tessera_core::entry::{
    AnySubset, Claim, Exactness, Kind, Method, MethodConfig, MethodEntry, Needs, Paper,
    defaults_of, read_as, resolve_as, schema_of,
};

use crate::retention::within;
use crate::unmask::DENOISER;

/// What becomes of a guess.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Acceptance {
    /// It stands if the judge draws the same token with the position's key.
    #[default]
    Keyed,
    /// It stands with probability min(1, judge / draft), as in the paper.
    Residual,
}

/// Settings of any-subset decoding.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Assd {
    /// Holes guessed together. 1 (one pass a token, nothing guessed) to 64; the paper: 5.
    pub guesses: usize,
    /// What becomes of a guess: `keyed` (the text of `guesses=1`, always) or `residual` (its law).
    pub accept: Acceptance,
}

impl Default for Assd {
    fn default() -> Self {
        Self { guesses: 5, accept: Acceptance::Keyed }
    }
}

impl MethodConfig for Assd {
    fn validate(&self) -> Result<(), String> {
        within("guesses", self.guesses, 1..=64)
    }
}

/// The registry's line.
pub static ENTRY: MethodEntry = MethodEntry {
    slug: "any-subset",
    aliases: &["assd", "any-order-speculative-decoding"],
    name: "Any-subset speculative decoding",
    paper: Some(Paper {
        title: "Reviving Any-Subset Autoregressive Models with Principled Parallel Sampling and \
                Speculative Decoding",
        authors: "Guo, Ermon",
        year: 2025,
        id: "arXiv:2504.20456",
    }),
    summary: "Fills holes several at a time with the law of filling them one by one.",
    kind: Kind::Loop,
    places: &[],
    exactness: Exactness::DistributionExact,
    needs: Needs { any_subset: true, ..DENOISER },
    claims: &[
        Claim {
            setting: "XLNet-base, WikiText, 95 % masked, k = 5",
            metric: "tokens a round",
            value: 2.24,
            unit: "tokens/step",
            place: "table of speeds",
        },
        Claim {
            setting: "XLNet-base, WikiText, 95 % masked, k = 5, GPU",
            metric: "time over one by one",
            value: 1.1,
            unit: "x",
            place: "table of speeds",
        },
    ],
    schema: schema_of::<Assd>,
    defaults: defaults_of::<Assd>,
    // One hole a pass is its own baseline, not that of other loops.
    neutral: None,
    read: resolve_as::<Assd>,
    build: |settings| {
        let Assd { guesses, accept } = read_as::<Assd>("any-subset", settings)?;
        Ok(Method::AnySubset(AnySubset { guesses, residual: accept == Acceptance::Residual }))
    },
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_out_of_range_are_refused_by_name() {
        for guesses in [0, 65] {
            let error = Assd { guesses, ..Assd::default() }.validate().unwrap_err();
            assert!(error.starts_with("guesses"), "{error}");
        }
    }
}

//! What a model is trained to do: from rows of tokens to a pass with targets.

mod adaptation;
mod any_subset;
mod autoregressive;
mod masked_diffusion;

use serde::{Deserialize, Serialize};

pub use adaptation::Adaptation;
pub use any_subset::AnySubset;
pub use autoregressive::Autoregressive;
pub use masked_diffusion::MaskedDiffusion;

use crate::Result;
use crate::network::Batch;

/// Which rows of a run a batch holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The run's seed.
    pub seed: u64,
    /// The step, from 0.
    pub step: u64,
    /// Number of the batch's first row among the rows of the step.
    pub first: usize,
    /// Rows of the step.
    pub total: usize,
}

/// An objective: makes batches whose weighted loss is nats a token, the mean over a step.
pub trait Objective: Send + Sync {
    /// A batch to learn from.
    fn training(&self, rows: &[&[u32]], place: Place) -> Batch;

    /// Batches whose weighted losses sum up to the held-out figure of `rows` in nats a token: the
    /// surprise itself, or a bound on it. `strata` parts of the bound's range are drawn from.
    fn held_out(&self, rows: &[Vec<u32>], strata: usize) -> Vec<Batch>;

    /// Whether predictions of a masked token are read from the row before it.
    fn is_shifted(&self) -> bool;

    /// Whether a finished model reads in both directions.
    fn is_bidirectional(&self) -> bool;

    /// Whether a finished model is causal in the order of writing, whatever that order is.
    fn is_any_subset(&self) -> bool {
        false
    }

    /// The name of the held-out figure.
    fn figure(&self) -> &'static str {
        if self.is_bidirectional() { "perplexity bound" } else { "perplexity" }
    }
}

/// An objective by name, as recipes write it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Choice {
    /// Each token from those before it.
    Autoregressive,
    /// Masked tokens from all that is visible.
    MaskedDiffusion {
        /// Least probability of a mask. Above 0, at most 0.5.
        #[serde(default = "epsilon")]
        epsilon: f32,
        /// An ASCII character that ends what is given in each document: only what is behind it is
        /// masked. Nothing is given if it is left out.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<char>,
    },
    /// Any subset of a text from any other.
    AnySubset,
    /// An autoregressive model becomes a masked-diffusion one.
    Adaptation {
        /// As for masked diffusion.
        #[serde(default = "epsilon")]
        epsilon: f32,
        /// Steps over which attention opens; 0 opens it at once.
        anneal: u64,
    },
}

fn epsilon() -> f32 {
    1e-3
}

impl Choice {
    /// What ends the given part of each document, if something is given.
    pub fn separator(&self) -> Option<char> {
        match self {
            Self::MaskedDiffusion { after, .. } => *after,
            _ => None,
        }
    }

    /// The objective for a model whose mask token is `mask`.
    ///
    /// # Errors
    /// A setting outside its range.
    pub fn build(&self, mask: u32) -> Result<Box<dyn Objective>> {
        let checked = |epsilon: f32| match epsilon > 0.0 && epsilon <= 0.5 {
            true => Ok(epsilon),
            false => Err(crate::Error::setting(format!(
                "objective.epsilon = {epsilon}: must be above 0 and at most 0.5"
            ))),
        };
        Ok(match *self {
            Self::Autoregressive => Box::new(Autoregressive),
            Self::AnySubset => Box::new(AnySubset { mask }),
            Self::MaskedDiffusion { epsilon, after } => {
                if after.is_some_and(|c| !c.is_ascii()) {
                    let what = "objective.after: must be an ASCII character, which is one token";
                    return Err(crate::Error::setting(what));
                }
                // A vocabulary's first 256 tokens are the bytes.
                let after = after.map(u32::from);
                Box::new(MaskedDiffusion { mask, epsilon: checked(epsilon)?, after })
            }
            Self::Adaptation { epsilon, anneal } => {
                let diffusion = MaskedDiffusion { mask, epsilon: checked(epsilon)?, after: None };
                Box::new(Adaptation { diffusion, anneal })
            }
        })
    }
}

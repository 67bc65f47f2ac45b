//! Title: MaskGIT: Masked Generative Image Transformer
//! Authors: Chang et al.
//! Year: 2022
//! Id: arXiv:2202.04200
//! Implemented: the masks of which the model is surest are filled first, a fixed number a step: the
//!   text decoders of LLaDA and Dream. How sure: the probability of the drawn token, the margin to the
//!   next one, the negative entropy, or chance. The masks are spread evenly over `steps`, what is left
//!   over goes to the first ones.
//! Left out: noise on the scores (their temperature); Dream's floor of a time grid, which gives the
//!   same numbers but for rounding, zero now and then.
//! Tag: MaskGIT

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tessera_core::entry::{
    Exactness, Kind, Method, MethodConfig, MethodEntry, Paper, Place, Role, Settings, Site,
    defaults_of, read_as, resolve_as, schema_of,
};
use tessera_core::unmask::ranked;
use tessera_core::{Evidence, Fill, Result, Unmask};

use crate::retention::within;
use crate::unmask::DENOISER;

/// How sure a fill is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Certainty {
    /// The probability of its token.
    #[default]
    Probability,
    /// The largest probability less the second largest.
    Margin,
    /// The negative entropy of its position.
    Entropy,
    /// A uniform number.
    Random,
}

impl Certainty {
    /// Scores the fills.
    pub fn score(self, evidence: &Evidence<'_>, fills: &mut [Fill]) {
        let prediction = evidence.prediction;
        for fill in fills {
            let Some(i) = prediction.find(fill.position) else { continue };
            fill.score = match self {
                Self::Probability => f64::from(fill.probability),
                Self::Margin => {
                    let (mut first, mut second) = (0f32, 0f32);
                    for &p in prediction.law(i) {
                        second = second.max(p.min(first));
                        first = first.max(p);
                    }
                    f64::from(first) - f64::from(second)
                }
                Self::Entropy => -prediction.entropy(i),
                Self::Random => evidence.key(fill.position, 1).uniform(0),
            };
        }
    }
}

/// Settings of confidence decoding.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Confidence {
    /// How sure a fill is: `probability`, `margin`, `entropy` or `random`.
    pub score: Certainty,
    /// Steps over which the masks are spread. 1 to 1048576; one mask a step if left out.
    pub steps: Option<usize>,
}

impl MethodConfig for Confidence {
    fn validate(&self) -> std::result::Result<(), String> {
        self.steps.map_or(Ok(()), |steps| within("steps", steps, 1..=1 << 20))
    }
}

/// Masks filled in step `step` if `length` are spread over `steps`; at least 1.
pub fn due(step: usize, length: usize, steps: Option<usize>) -> usize {
    let Some(steps) = steps else { return 1 };
    (length / steps + usize::from(step < length % steps)).max(1)
}

/// The registry's line.
pub static ENTRY: MethodEntry = MethodEntry {
    slug: "confidence",
    aliases: &["maskgit", "low-confidence-remasking"],
    name: "Confidence decoding",
    paper: Some(Paper {
        title: "MaskGIT: Masked Generative Image Transformer",
        authors: "Chang et al.",
        year: 2022,
        id: "arXiv:2202.04200",
    }),
    summary: "Fills the masks of which the model is surest, a fixed number a pass.",
    kind: Kind::Policy,
    places: &[
        Place { role: Role::Unmask, site: Site::Score },
        Place { role: Role::Unmask, site: Site::Quota },
    ],
    exactness: Exactness::Lossy { what: "tokens filled in one step do not know of one another" },
    needs: DENOISER,
    claims: &[],
    schema: schema_of::<Confidence>,
    defaults: defaults_of::<Confidence>,
    neutral: Some(|| Settings::from_iter([("score".to_owned(), json!("probability"))])),
    read: resolve_as::<Confidence>,
    build: |settings| {
        let config = read_as::<Confidence>("confidence", settings)?;
        Ok(Method::Unmask(Box::new(Surest { config })))
    },
};

/// The policy.
#[derive(Debug, Clone)]
pub struct Surest {
    config: Confidence,
}

impl Unmask for Surest {
    fn score(&mut self, evidence: &Evidence<'_>, fills: &mut [Fill]) -> Result<()> {
        self.config.score.score(evidence, fills);
        Ok(())
    }

    fn quota(&mut self, evidence: &Evidence<'_>, fills: &[Fill]) -> Result<Option<Vec<usize>>> {
        let mut order = ranked(fills);
        order.retain(|&i| evidence.is_open(fills[i].position));
        order.truncate(due(evidence.step as usize, evidence.length, self.config.steps));
        Ok(Some(order))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_are_spread_evenly_and_the_rest_comes_first() {
        let plan: Vec<usize> = (0..4).map(|s| due(s, 10, Some(4))).collect();
        assert_eq!(plan, [3, 3, 2, 2]);
        assert_eq!((due(0, 10, None), due(7, 10, Some(32)), due(99, 10, Some(4))), (1, 1, 2));
    }
}

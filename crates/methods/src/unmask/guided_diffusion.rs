//! Title: Accelerating Diffusion Language Model Inference via Efficient KV Caching and Guided Diffusion
//! Authors: Hu et al.
//! Year: 2025
//! Id: arXiv:2505.21467
//! Implemented: guided diffusion. The denoiser's most probable tokens for all masks, from left to right,
//!   are shown to a causal model; the longest beginning that agrees with it is written, and at least the
//!   first token. Every token is the denoiser's, the causal model only counts how many may be trusted.
//!   Rules of agreement: its most probable token, its k most probable, a least probability, one relative
//!   to its most probable token's, or chance.
//! Left out: the cache of the paper, which is a window here (`freecache`); guides with another vocabulary.
//! Tag: FlashDLM

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tessera_core::dist::{argmax, softmax};
use tessera_core::entry::{
    Claim, Exactness, Kind, Method, MethodConfig, MethodEntry, Needs, Paper, Place, Role, Site,
    defaults_of, read_as, resolve_as, schema_of,
};
use tessera_core::{Evidence, Fill, Result, TokenId, Unmask};

use crate::guide::{Guide, present};
use crate::retention::within;
use crate::unmask::{DENOISER, between};

/// When the causal model agrees with a token.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Match {
    /// It is its most probable one.
    #[default]
    Argmax,
    /// It is among its `k` most probable ones.
    Top,
    /// Its probability exceeds `least`.
    Threshold,
    /// It is among the `k` most probable ones, with at least `ratio` of the probability of the first.
    Relative,
    /// A coin that falls with its probability.
    Bernoulli,
}

/// Settings of guided diffusion.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Guided {
    /// When the causal model agrees: `argmax`, `top`, `threshold`, `relative` or `bernoulli`.
    pub rule: Match,
    /// Most probable tokens under `top` and `relative`. 1 to 1000; the paper: 5.
    pub k: usize,
    /// Least probability under `threshold`. 0 to 1; the paper: 0.1.
    pub least: f64,
    /// Least share of the first one's probability under `relative`. 0 to 1; the paper names none.
    pub ratio: f64,
    /// Tokens shown to the causal model at once; the rest only if all of them are agreed to. 1 to 4096;
    /// the paper: 32.
    pub chunk: usize,
}

impl Default for Guided {
    fn default() -> Self {
        Self { rule: Match::Argmax, k: 5, least: 0.1, ratio: 0.5, chunk: 32 }
    }
}

impl MethodConfig for Guided {
    fn validate(&self) -> std::result::Result<(), String> {
        within("k", self.k, 1..=1000)?;
        between("least", self.least, 0.0, 1.0)?;
        between("ratio", self.ratio, 0.0, 1.0)?;
        within("chunk", self.chunk, 1..=4096)
    }
}

/// The registry's line.
pub static ENTRY: MethodEntry = MethodEntry {
    slug: "guided-diffusion",
    aliases: &["flashdlm", "freecache-guided-diffusion"],
    name: "Guided diffusion",
    paper: Some(Paper {
        title: "Accelerating Diffusion Language Model Inference via Efficient KV Caching and Guided \
                Diffusion",
        authors: "Hu et al.",
        year: 2025,
        id: "arXiv:2505.21467",
    }),
    summary: "Writes as many tokens from the left as a small causal model would have written too.",
    kind: Kind::Policy,
    places: &[
        Place { role: Role::Unmask, site: Site::Score },
        Place { role: Role::Unmask, site: Site::Quota },
    ],
    exactness: Exactness::Lossy {
        what: "the order, and tokens of one step do not know of one another",
    },
    needs: Needs { draft_model: true, ..DENOISER },
    claims: &[Claim {
        setting: "Dream-7B with Qwen2.5-1.5B, GSM8K, with FreeCache, GPU",
        metric: "speed",
        value: 17.8,
        unit: "x",
        place: "table of results",
    }],
    schema: schema_of::<Guided>,
    defaults: defaults_of::<Guided>,
    neutral: None,
    read: resolve_as::<Guided>,
    build: |settings| {
        let config = read_as::<Guided>("guided-diffusion", settings)?;
        Ok(Method::Unmask(Box::new(Trusted { config, guide: Guide::default() })))
    },
};

/// The policy.
#[derive(Debug)]
pub struct Trusted {
    config: Guided,
    guide: Guide,
}

impl Guided {
    /// Whether a causal model with these logits agrees with `token`; `u` is the coin.
    fn agrees(&self, logits: &[f32], token: TokenId, u: f64) -> Result<bool> {
        let (best, _) = argmax(logits)?;
        if self.rule == Match::Argmax {
            return Ok(best == token);
        }
        let mut law = vec![0.0; logits.len()];
        softmax(logits, &mut law)?;
        let own = law[token as usize];
        // Of equal ones the smaller token ranks first, as everywhere.
        let above = (0..).zip(&law).filter(|&(t, &p)| p > own || (p == own && t < token)).count();
        Ok(match self.rule {
            Match::Argmax => best == token,
            Match::Top => above < self.k,
            Match::Threshold => f64::from(own) > self.least,
            Match::Relative => {
                above < self.k && f64::from(own) >= self.ratio * f64::from(law[best as usize])
            }
            Match::Bernoulli => u < f64::from(own),
        })
    }
}

impl Unmask for Trusted {
    fn score(&mut self, evidence: &Evidence<'_>, fills: &mut [Fill]) -> Result<()> {
        for fill in fills {
            let Some(i) = evidence.prediction.find(fill.position) else { continue };
            (fill.token, fill.probability) = argmax(evidence.prediction.law(i))?;
            fill.score = f64::from(fill.probability);
        }
        Ok(())
    }

    fn quota(&mut self, evidence: &Evidence<'_>, fills: &[Fill]) -> Result<Option<Vec<usize>>> {
        let guide = present("guided-diffusion", evidence.guide)?;
        // From left to right, as far as every mask has its draft.
        let open: Vec<usize> = (0..fills.len())
            .zip(evidence.canvas.masked())
            .take_while(|&(i, mask)| fills[i].position == mask && evidence.is_open(mask))
            .map(|(i, _)| i)
            .collect();
        let Some(&first) = open.first() else { return Ok(None) };
        let mut text = evidence.canvas.tokens().to_vec();
        open.iter().for_each(|&i| text[fills[i].position as usize] = fills[i].token);
        let mut agreed = 0;
        for chunk in open.chunks(self.config.chunk) {
            let place = |i: usize| fills[i].position as usize;
            let (begin, end) = (place(chunk[0]), place(chunk[chunk.len() - 1]));
            if begin == 0 {
                break;
            }
            let mut good = vec![false; chunk.len()];
            let config = &self.config;
            self.guide.read(guide, &text[..end], begin - 1, &mut |row, logits| {
                let at = chunk.iter().position(|&i| place(i) == row + 1);
                if let Some(at) = at {
                    let fill = fills[chunk[at]];
                    let u = evidence.key(fill.position, 0).uniform(0);
                    good[at] = config.agrees(logits, fill.token, u)?;
                }
                Ok(())
            })?;
            let prefix = good.iter().take_while(|&&g| g).count();
            agreed += prefix;
            if prefix < chunk.len() {
                break;
            }
        }
        match agreed {
            0 => Ok(Some(vec![first])),
            _ => Ok(Some(open[..agreed].to_vec())),
        }
    }

    fn guided(&self) -> (usize, usize) {
        (self.guide.passes, self.guide.rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_of_agreement_by_hand() {
        // Probabilities .5, .3, .15, .05.
        let logits = [0.5f32.ln(), 0.3f32.ln(), 0.15f32.ln(), 0.05f32.ln()];
        let agrees = |rule, token, u| {
            let config = Guided { rule, k: 2, ratio: 0.5, ..Guided::default() };
            config.agrees(&logits, token, u).unwrap()
        };
        let all = |rule| (0..4).map(|t| agrees(rule, t, 0.2)).collect::<Vec<_>>();
        assert_eq!(all(Match::Argmax), [true, false, false, false]);
        assert_eq!(all(Match::Top), [true, true, false, false]);
        assert_eq!(all(Match::Threshold), [true, true, true, false]);
        assert_eq!(all(Match::Relative), [true, true, false, false]);
        assert_eq!(all(Match::Bernoulli), [true, true, false, false]);
    }
}

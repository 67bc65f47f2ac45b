//! Title: Energy-Based Diffusion Language Models for Text Generation
//! Authors: Xu et al.
//! Year: 2024
//! Id: arXiv:2410.21357
//! Implemented: importance sampling with a causal model as the energy. `candidates` whole texts are drawn
//!   from the denoiser, mask by mask; each has the weight p(text) / product of the draws' probabilities,
//!   where p is the causal model's; one is drawn by weight, and the step writes its tokens. `energy=ar`
//!   weighs the whole text, `coar` only the filled masks, each given all to its left. Only while the
//!   share of masks is at least 1 - `window`; outside, tokens are drawn as in the plain run.
//! Deviation: weights are a softmax of the log-weights: the released sampler has the opposite sign. The
//!   time is the share of masks left, which is what it is on average.
//! Left out: the learned (NCE) energy, which needs a network of its own.
//! Tag: EDLM

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tessera_core::dist::log_sum_exp;
use tessera_core::entry::{
    Claim, Exactness, Kind, Method, MethodConfig, MethodEntry, Needs, Paper, Place, Role, Settings,
    Site, defaults_of, read_as, resolve_as, schema_of,
};
use tessera_core::{Backbone, Evidence, Fill, Position, Result, TokenId, Unmask};

use crate::guide::{Guide, present};
use crate::retention::within;
use crate::unmask::{DENOISER, between};

/// What a candidate is weighed by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Energy {
    /// The probability of the whole text.
    #[default]
    Ar,
    /// That of the tokens at masks, each given all to its left (carry-over).
    Coar,
}

/// Settings of EDLM.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Edlm {
    /// Texts drawn a step. 1 (the plain draw, in law) to 256; the paper: 2 for speed, 8 for quality.
    pub candidates: usize,
    /// What a candidate is weighed by: `ar` or `coar`.
    pub energy: Energy,
    /// Share of the run in which tokens are drawn so, from its beginning. 0 (never: the plain run) to 1;
    /// the paper: 0.2 for speed, 1 for quality.
    pub window: f64,
    /// Divides the log-weights. 0.01 to 100; the paper: 1.
    pub temperature: f64,
}

impl Default for Edlm {
    fn default() -> Self {
        Self { candidates: 4, energy: Energy::Ar, window: 1.0, temperature: 1.0 }
    }
}

impl MethodConfig for Edlm {
    fn validate(&self) -> std::result::Result<(), String> {
        within("candidates", self.candidates, 1..=256)?;
        between("window", self.window, 0.0, 1.0)?;
        between("temperature", self.temperature, 0.01, 100.0)
    }
}

/// The registry's line.
pub static ENTRY: MethodEntry = MethodEntry {
    slug: "edlm",
    aliases: &["energy-diffusion"],
    name: "Energy-based diffusion",
    paper: Some(Paper {
        title: "Energy-Based Diffusion Language Models for Text Generation",
        authors: "Xu et al.",
        year: 2024,
        id: "arXiv:2410.21357",
    }),
    summary: "Draws several whole texts a step and keeps one by what a causal model thinks of it.",
    kind: Kind::Policy,
    places: &[Place { role: Role::Unmask, site: Site::Score }],
    exactness: Exactness::Lossy {
        what: "tokens come from the corrected law instead of the denoiser's",
    },
    needs: Needs { draft_model: true, ..DENOISER },
    claims: &[Claim {
        setting: "OpenWebText, 12 layers, matched quality, GPU",
        metric: "sampling speed",
        value: 1.3,
        unit: "x",
        place: "abstract",
    }],
    schema: schema_of::<Edlm>,
    defaults: defaults_of::<Edlm>,
    neutral: Some(|| Settings::from_iter([("window".to_owned(), json!(0.0))])),
    read: resolve_as::<Edlm>,
    build: |settings| {
        let config = read_as::<Edlm>("edlm", settings)?;
        Ok(Method::Unmask(Box::new(Resampled { config, guide: Guide::default() })))
    },
};

/// The policy.
#[derive(Debug)]
pub struct Resampled {
    config: Edlm,
    guide: Guide,
}

/// Log-weights as probabilities.
pub fn weights(log_weights: &[f64], temperature: f64) -> Vec<f64> {
    let top = log_weights.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let raw: Vec<f64> = log_weights.iter().map(|w| ((w - top) / temperature).exp()).collect();
    let sum: f64 = raw.iter().sum();
    raw.iter().map(|w| w / sum).collect()
}

/// A token of `law` with uniform number `u`.
fn token_of(law: &[f32], u: f64) -> TokenId {
    let sum: f64 = law.iter().map(|&p| f64::from(p)).sum();
    let mut left = u * sum;
    for (token, &p) in (0..).zip(law) {
        left -= f64::from(p);
        if left < 0.0 {
            return token;
        }
    }
    (0..).zip(law).filter(|(_, p)| **p > 0.0).last().map_or(0, |(token, _)| token)
}

impl Resampled {
    /// `ln p` of what the energy weighs of `text`, by the causal model.
    fn surprise(
        &mut self,
        guide: &dyn Backbone,
        text: &[TokenId],
        masked: &[Position],
        prompt: usize,
    ) -> Result<f64> {
        let first = match self.config.energy {
            Energy::Ar => prompt,
            Energy::Coar => masked.first().map_or(prompt, |&p| p as usize),
        };
        let whole = self.config.energy == Energy::Ar;
        let mut sum = 0.0;
        let from = first.max(1) - 1;
        self.guide.read(guide, &text[..text.len() - 1], from, &mut |row, logits| {
            let next = row + 1;
            if whole || masked.binary_search(&(next as Position)).is_ok() {
                sum += f64::from(logits[text[next] as usize]) - log_sum_exp(logits)?;
            }
            Ok(())
        })?;
        Ok(sum)
    }
}

impl Unmask for Resampled {
    fn score(&mut self, evidence: &Evidence<'_>, fills: &mut [Fill]) -> Result<()> {
        let share = evidence.canvas.masks() as f64 / evidence.length.max(1) as f64;
        if self.config.window == 0.0 || share < 1.0 - self.config.window {
            return Ok(());
        }
        let guide = present("edlm", evidence.guide)?;
        let prediction = evidence.prediction;
        let mut texts = Vec::with_capacity(self.config.candidates);
        let mut log_weights = Vec::with_capacity(self.config.candidates);
        for candidate in 0..self.config.candidates {
            let mut text = evidence.canvas.tokens().to_vec();
            let mut drawn = 0.0;
            for (i, &position) in prediction.positions.iter().enumerate() {
                let u = evidence.key(position, 1 + candidate as u64).uniform(0);
                let token = token_of(prediction.law(i), u);
                drawn += f64::from(prediction.law(i)[token as usize]).ln();
                text[position as usize] = token;
            }
            let prompt = evidence.canvas.prompt();
            let own = self.surprise(guide, &text, &prediction.positions, prompt)?;
            log_weights.push(own - drawn);
            texts.push(text);
        }
        let weights = weights(&log_weights, self.config.temperature);
        let mut left = evidence.key(0, 0).uniform(0);
        let chosen = weights.iter().position(|w| {
            left -= w;
            left < 0.0
        });
        let text = &texts[chosen.unwrap_or(texts.len() - 1)];
        for fill in fills {
            fill.token = text[fill.position as usize];
            if let Some(i) = prediction.find(fill.position) {
                fill.probability = prediction.law(i)[fill.token as usize];
                fill.score = f64::from(fill.probability);
            }
        }
        Ok(())
    }

    fn is_wide(&self) -> bool {
        true
    }

    fn guided(&self) -> (usize, usize) {
        (self.guide.passes, self.guide.rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_texts_get_the_weight() {
        let w = weights(&[-1.0, -1.0 + 3f64.ln()], 1.0);
        assert!((w[0] - 0.25).abs() < 1e-12 && (w[1] - 0.75).abs() < 1e-12);
        assert!(weights(&[-700.0, -2000.0], 1.0)[0] > 0.999);
        // A candidate drawn from the energy's own law has the same weight whatever it is.
        assert_eq!(weights(&[0.0; 4], 2.0), [0.25; 4]);
    }

    #[test]
    fn tokens_follow_their_law() {
        let law = [0.25, 0.0, 0.75];
        assert_eq!((token_of(&law, 0.1), token_of(&law, 0.26), token_of(&law, 0.9999)), (0, 2, 2));
        assert_eq!(token_of(&law, 1.0), 2);
    }
}

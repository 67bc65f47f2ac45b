//! Title: Energy-Based Diffusion Language Models for Text Generation
//! Authors: Xu et al.
//! Year: 2024
//! Id: arXiv:2410.21357
//! Implemented: ancestral sampling whose tokens come from one of `k` whole candidates, drawn from the
//!   product of the masks' distributions and resampled by softmax(-E / tau), while the time is in the
//!   window. Two energies of a causal model: `ar`, -ln of its probability of the whole answer over that
//!   of the proposal; and `coar`, where only masked places count. Energy and proposal are sums of
//!   logarithms, and low energy is good: their released sampler has the sign turned round.
//! Deviation: grid times at which nothing is filled cost no pass, so no candidate is kept for them.
//!   The run's temperature and truncations shape the proposal only; the weights undo them.
//! Left out: the learned energy (NCE), for want of one to test; the likelihood bound is an estimator in
//!   the tests.
//! Tag: EDLM

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tessera_core::dist::{Key, Sampler, log_softmax};
use tessera_core::entry::{
    Claim, Exactness, Kind, Method, MethodConfig, MethodEntry, Needs, Paper, Place, Role, Settings,
    Site, defaults_of, read_as, resolve_as, schema_of,
};
use tessera_core::{Backbone, Canvas, Error, Evidence, Fill, Position, Result, TokenId, Unmask};

use crate::retention::within;
use crate::second_model::SecondModel;
use crate::unmask::ancestral::{Ancestral, Reverse};
use crate::unmask::{DENOISER, between};

/// What a candidate costs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Energy {
    /// `ln mu - ln p` of the whole answer, `p` of the causal model.
    #[default]
    Ar,
    /// The same, over masked places only.
    Coar,
}

/// Settings of energy-based diffusion.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Edlm {
    /// What a candidate costs: `ar` or `coar`.
    pub energy: Energy,
    /// Candidates. 1 (ancestral sampling) to 256. Theirs: 2.
    pub k: usize,
    /// Share of the time, from its beginning, in which candidates are weighed. 0 (never) to 1. Theirs:
    /// 0.2 for speed, 1 for quality.
    pub window: f64,
    /// Temperature of the weights. 0.01 to 100; theirs: 1.
    pub tau: f64,
    /// Times of the grid, as for `ancestral`. 1 to 1048576; as many as there are masks if left out.
    pub steps: Option<usize>,
}

impl Default for Edlm {
    fn default() -> Self {
        Self { energy: Energy::Ar, k: 2, window: 1.0, tau: 1.0, steps: None }
    }
}

impl MethodConfig for Edlm {
    fn validate(&self) -> std::result::Result<(), String> {
        within("k", self.k, 1..=256)?;
        between("window", self.window, 0.0, 1.0)?;
        between("tau", self.tau, 0.01, 100.0)?;
        self.steps.map_or(Ok(()), |steps| within("steps", steps, 1..=1 << 20))
    }
}

const SLUG: &str = "edlm";

/// The registry's line.
pub static ENTRY: MethodEntry = MethodEntry {
    slug: SLUG,
    aliases: &["energy-based-diffusion"],
    name: "Energy-based diffusion",
    paper: Some(Paper {
        title: "Energy-Based Diffusion Language Models for Text Generation",
        authors: "Xu et al.",
        year: 2024,
        id: "arXiv:2410.21357",
    }),
    summary: "Ancestral sampling from whole candidates, weighed by a causal model.",
    kind: Kind::Policy,
    places: &[
        Place { role: Role::Unmask, site: Site::Score },
        Place { role: Role::Unmask, site: Site::Quota },
    ],
    exactness: Exactness::Lossy { what: "the law, towards the causal model's as k grows" },
    needs: Needs { draft_model: true, ..DENOISER },
    claims: &[
        Claim {
            setting: "OpenWebText, GPT-2-small scale, equal quality, k = 2, window 0.2",
            metric: "sampling speed-up",
            value: 1.3,
            unit: "x",
            place: "abstract",
        },
        Claim {
            setting: "OpenWebText, GPT-2-small scale, AR energy (23.83 without)",
            metric: "perplexity bound",
            value: 20.49,
            unit: "ppl",
            place: "main table",
        },
    ],
    schema: schema_of::<Edlm>,
    defaults: defaults_of::<Edlm>,
    neutral: None,
    read: resolve_as::<Edlm>,
    build: |settings: &Settings| {
        let config = read_as::<Edlm>(SLUG, settings)?;
        let reverse = Reverse::new(Ancestral { steps: config.steps });
        Ok(Method::Unmask(Box::new(Resampler {
            config,
            reverse,
            reader: SecondModel::default(),
            weighed: 0,
            effective: 0.0,
        })))
    },
};

/// The policy.
#[derive(Debug)]
pub struct Resampler {
    config: Edlm,
    reverse: Reverse,
    reader: SecondModel,
    /// Passes in which candidates were weighed.
    weighed: usize,
    /// Sum of their effective numbers of candidates.
    effective: f64,
}

/// Normalised weights, softmax of `-energy / tau`, and the effective number of candidates.
pub fn weights(energies: &[f64], tau: f64) -> (Vec<f64>, f64) {
    let least = energies.iter().copied().fold(f64::INFINITY, f64::min);
    let raw: Vec<f64> = energies.iter().map(|e| ((least - e) / tau).exp()).collect();
    let sum: f64 = raw.iter().sum();
    let all: Vec<f64> = raw.iter().map(|w| w / sum).collect();
    let squares: f64 = all.iter().map(|w| w * w).sum();
    (all, 1.0 / squares)
}

/// `-ln p` of each candidate by a causal model, up to a constant that all share. A candidate is the
/// answer's tokens from the first mask of `canvas` on.
///
/// # Errors
/// [`Error::Method`] if the model cannot read so much; whatever a pass reports.
pub fn surprise(
    reader: &mut SecondModel,
    model: &dyn Backbone,
    canvas: &Canvas,
    candidates: &[Vec<TokenId>],
    energy: Energy,
    vocab: usize,
) -> Result<Vec<f64>> {
    let fail = |what: &str| Error::Method { method: SLUG.to_owned(), what: what.to_owned() };
    let Some(first) = canvas.masked().next() else { return Ok(vec![0.0; candidates.len()]) };
    let length = canvas.len() - first as usize;
    let fits = reader.follow(model, &canvas.tokens()[..first as usize])?;
    if !fits || (reader.deepest(model) as usize) < length {
        return Err(fail("the causal model's context is shorter than the canvas"));
    }
    let counts = |i: usize| energy == Energy::Ar || canvas.is_masked(first + i as Position);
    let mut law = Vec::new();
    let mut nats = |logits: &[f32], token: TokenId| {
        law.clear();
        law.resize(logits.len(), 0.0);
        log_softmax(logits, &mut law)?;
        Ok::<f64, Error>(law.get(token as usize).map_or(f64::INFINITY, |&l| -f64::from(l)))
    };
    // The first token has the same row before it in every candidate.
    let head = reader.logits(0, vocab);
    let mut all = candidates.iter().map(|c| nats(head, c[0])).collect::<Result<Vec<f64>>>()?;
    let rows = length - 1;
    if rows == 0 {
        return Ok(all);
    }
    let twig = |(j, c): (usize, &Vec<TokenId>)| {
        let base = (j * rows) as u32;
        let own = c[..rows].iter().copied().zip(0u32..);
        own.map(move |(token, i)| (i.checked_sub(1).map(|up| base + up), token)).collect::<Vec<_>>()
    };
    let tree: Vec<(Option<u32>, TokenId)> = candidates.iter().enumerate().flat_map(twig).collect();
    reader.grow(model, &tree)?;
    for (j, candidate) in candidates.iter().enumerate() {
        for i in (1..length).filter(|&i| counts(i)) {
            all[j] += nats(reader.logits(j * rows + i - 1, vocab), candidate[i])?;
        }
    }
    Ok(all)
}

impl Resampler {
    /// Key of candidate `j`'s draw at a position.
    fn key(evidence: &Evidence<'_>, position: Position, j: usize) -> Key {
        // Apart from the grid times, which are the reverse process's own.
        evidence.key(position, 0xed1e_0000_0000 | j as u64)
    }

    /// Puts a candidate's tokens into the fills.
    fn resample(&mut self, evidence: &Evidence<'_>, fills: &mut [Fill]) -> Result<()> {
        let fail = |what: &str| Error::Method { method: SLUG.to_owned(), what: what.to_owned() };
        let guide = evidence
            .guide
            .ok_or_else(|| fail("needs a causal model with the same vocabulary (--draft-model)"))?;
        let Some(first) = evidence.canvas.masked().next() else { return Ok(()) };
        if fills.len() != evidence.canvas.masks() {
            return Err(fail("weighs whole answers, and a window does not show all masks"));
        }
        let mut sampler = Sampler::new(evidence.sampling)?;
        let tail = &evidence.canvas.tokens()[first as usize..];
        let mut candidates = vec![tail.to_vec(); self.config.k];
        let mut proposal = vec![0.0; self.config.k];
        let mut law = Vec::new();
        for fill in fills.iter() {
            let Some(i) = evidence.prediction.find(fill.position) else { continue };
            let logits = evidence.prediction.logits(i);
            sampler.distribution(logits, &[], &mut law)?;
            for j in 0..self.config.k {
                let token = sampler.draw(logits, &[], Self::key(evidence, fill.position, j))?;
                candidates[j][(fill.position - first) as usize] = token;
                let found = law.binary_search_by_key(&token, |&(id, _)| id);
                proposal[j] += found.map_or(f64::NEG_INFINITY, |at| law[at].1.ln());
            }
        }
        let (energy, vocab) = (self.config.energy, evidence.vocabulary.len());
        let nats = surprise(&mut self.reader, guide, evidence.canvas, &candidates, energy, vocab)?;
        let energies: Vec<f64> = nats.iter().zip(&proposal).map(|(n, mu)| n + mu).collect();
        let (weights, effective) = weights(&energies, self.config.tau);
        self.weighed += 1;
        self.effective += effective;
        let mut at = Self::key(evidence, 0, self.config.k).uniform(0);
        let taken = weights.iter().position(|w| {
            at -= w;
            at < 0.0
        });
        let taken = &candidates[taken.unwrap_or(self.config.k - 1)];
        for fill in fills {
            fill.token = taken[(fill.position - first) as usize];
            let law = evidence.prediction.find(fill.position).map(|i| evidence.prediction.law(i));
            fill.probability = law.and_then(|l| l.get(fill.token as usize)).copied().unwrap_or(0.0);
            fill.score = f64::from(fill.probability);
        }
        Ok(())
    }
}

impl Unmask for Resampler {
    fn score(&mut self, evidence: &Evidence<'_>, fills: &mut [Fill]) -> Result<()> {
        let time = self.reverse.time(evidence.length);
        // One candidate needs no weight, and the window begins at time 1.
        if self.config.k == 1 || self.config.window == 0.0 || time < 1.0 - self.config.window {
            return Ok(());
        }
        self.resample(evidence, fills)
    }

    fn quota(&mut self, evidence: &Evidence<'_>, fills: &[Fill]) -> Result<Option<Vec<usize>>> {
        self.reverse.quota(evidence, fills)
    }

    fn is_wide(&self) -> bool {
        true
    }

    fn counts(&self) -> Vec<(&'static str, f64)> {
        let mean = self.effective / self.weighed.max(1) as f64;
        vec![
            ("passes with weighed candidates", self.weighed as f64),
            ("effective candidates, on average", mean),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use tessera_testkit::Scripted;

    #[test]
    fn low_energy_is_good_and_equal_energies_weigh_the_same() {
        let (all, effective) = weights(&[2.5; 8], 1.0);
        assert!(all.iter().all(|w| (w - 0.125).abs() < 1e-12) && (effective - 8.0).abs() < 1e-9);
        let (all, _) = weights(&[0.0, 2f64.ln()], 1.0);
        assert!((all[0] - 2.0 / 3.0).abs() < 1e-12);
        let (all, _) = weights(&[0.0, 2f64.ln()], 0.5);
        assert!((all[0] - 0.8).abs() < 1e-12);
        let (all, effective) = weights(&[0.0, f64::INFINITY], 1.0);
        assert_eq!((all, effective), (vec![1.0, 0.0], 1.0));
    }

    #[test]
    fn a_candidate_is_read_as_a_text_of_its_own() {
        let model = Scripted::hashed(6, 64, 3, 4.0);
        let mut canvas = Canvas::new(&[1, 2], 4, 5);
        canvas.give(4, 0).unwrap();
        let candidates = vec![vec![1, 2, 0, 3], vec![4, 2, 0, 1]];
        let alone = |tokens: &[TokenId], places: &[usize]| -> f64 {
            let text = [&[1, 2], tokens].concat();
            let one = |&place: &usize| {
                let mut reader = SecondModel::default();
                assert!(reader.follow(&model, &text[..place]).unwrap());
                let mut law = vec![0.0; 6];
                log_softmax(reader.logits(0, 6), &mut law).unwrap();
                -f64::from(law[text[place] as usize])
            };
            places.iter().map(one).sum()
        };
        for (energy, places) in [(Energy::Ar, &[2, 3, 4, 5][..]), (Energy::Coar, &[2, 3, 5])] {
            let mut reader = SecondModel::default();
            let found = surprise(&mut reader, &model, &canvas, &candidates, energy, 6).unwrap();
            for (found, candidate) in found.iter().zip(&candidates) {
                assert!((found - alone(candidate, places)).abs() < 1e-5, "{energy:?}");
            }
        }
    }

    #[test]
    fn settings_are_checked() {
        let neutral = Settings::from_iter([("window".to_owned(), json!(1.5))]);
        let error = ENTRY.resolve(&neutral).unwrap_err().to_string();
        assert_eq!(error, "method `edlm`: window = 1.5: must be between 0 and 1");
    }
}

//! Title: Beyond Confidence: Adaptive and Coherent Decoding for Diffusion Language Models
//! Authors: Chen et al.
//! Year: 2025
//! Id: arXiv:2512.02044
//! Implemented: both forms. `released` is the procedure of the authors' code: if the best mask was among
//!   the best of the step before, the best masks of both steps that predict the same token are filled
//!   (the first of them, or under `dynamic` all). `soft` is the formula: the distributions of the last
//!   `history` steps are averaged, and the mask whose average has the least entropy is filled (under
//!   `dynamic` all below `eps`). That entropy is the mean entropy plus the mutual information of token
//!   and context, so tokens that change with the context wait.
//! Deviation: the buffer's late shrink in the code is left out, because its growth overwrites it at
//!   once. Agreement is judged by the most probable token, also where another one was drawn.
//! Left out: budgets of several tokens a step (their experiments have one).
//! Tag: CCD

use std::collections::{BTreeMap, VecDeque};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tessera_core::dist::argmax;
use tessera_core::entry::{
    Claim, Exactness, Kind, Method, MethodConfig, MethodEntry, Paper, Place, Role, Settings, Site,
    defaults_of, read_as, resolve_as, schema_of,
};
use tessera_core::unmask::entropy;
use tessera_core::{Evidence, Fill, Position, Result, TokenId, Unmask};

use crate::retention::within;
use crate::unmask::confidence::Certainty;
use crate::unmask::{DENOISER, between, surest};

/// How consistency over steps is judged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// Among the best, and the same most probable token, in two steps running.
    #[default]
    Released,
    /// Low entropy of the average over the last steps.
    Soft,
}

/// Settings of coherent contextual decoding.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Ccd {
    /// How consistency is judged: `released` or `soft`.
    pub form: Form,
    /// Whether all consistent masks are filled at once (CCD-DS), not only the first.
    pub dynamic: bool,
    /// Steps that are averaged under `soft`, this one included. 1 (no history) to 64; the paper: 3
    /// for Dream, 2 for LLaDA.
    pub history: usize,
    /// Masks remembered of a step. 1 to 1048576; under `released` it is grown to, from 1, by one a
    /// step. The paper: 4; the code: 5.
    pub buffer: usize,
    /// First steps that go by the score alone, under `released`. 0 to 1048576; the code: 5.
    pub warm_up: usize,
    /// Most entropy of an average that is filled under `soft` with `dynamic`, in nats. 0 to 1000; the
    /// paper does not say.
    pub eps: f64,
    /// How sure a fill is in one step: `entropy` (Dream), `probability` (LLaDA), `margin` or `random`.
    pub score: Certainty,
}

impl Default for Ccd {
    fn default() -> Self {
        Self {
            form: Form::Released,
            dynamic: true,
            history: 3,
            buffer: 5,
            warm_up: 5,
            eps: 0.1,
            score: Certainty::Entropy,
        }
    }
}

impl MethodConfig for Ccd {
    fn validate(&self) -> std::result::Result<(), String> {
        within("history", self.history, 1..=64)?;
        within("buffer", self.buffer, 1..=1 << 20)?;
        within("warm_up", self.warm_up, 0..=1 << 20)?;
        between("eps", self.eps, 0.0, 1000.0)
    }
}

/// The registry's line.
pub static ENTRY: MethodEntry = MethodEntry {
    slug: "ccd",
    aliases: &["coherent-contextual", "coherent-contextual-decoding"],
    name: "Coherent contextual decoding",
    paper: Some(Paper {
        title: "Beyond Confidence: Adaptive and Coherent Decoding for Diffusion Language Models",
        authors: "Chen et al.",
        year: 2025,
        id: "arXiv:2512.02044",
    }),
    summary: "Fills the masks of which the model has said the same for several steps.",
    kind: Kind::Policy,
    places: &[
        Place { role: Role::Unmask, site: Site::Score },
        Place { role: Role::Unmask, site: Site::Quota },
    ],
    exactness: Exactness::Lossy { what: "the order, and so the text" },
    needs: DENOISER,
    claims: &[
        Claim {
            setting: "Dream-7B, trip planning, 256 tokens, dynamic budget",
            metric: "speed-up",
            value: 3.48,
            unit: "x",
            place: "abstract",
        },
        Claim {
            setting: "Dream-7B, trip planning, 256 tokens, dynamic budget",
            metric: "passes",
            value: 75.2,
            unit: "of 256",
            place: "main table",
        },
        Claim {
            setting: "Dream-7B, trip planning, dynamic budget (15.10 without)",
            metric: "score",
            value: 19.01,
            unit: "%",
            place: "main table",
        },
    ],
    schema: schema_of::<Ccd>,
    defaults: defaults_of::<Ccd>,
    neutral: Some(|| {
        Settings::from_iter([
            ("score".to_owned(), json!("probability")),
            ("warm_up".to_owned(), json!(1 << 20)),
        ])
    }),
    read: resolve_as::<Ccd>,
    build: |settings| {
        let config = read_as::<Ccd>("ccd", settings)?;
        Ok(Method::Unmask(Box::new(Coherent::new(config))))
    },
};

/// Distributions by position.
type Laws = BTreeMap<Position, Vec<f32>>;

/// The policy.
#[derive(Debug, Clone)]
pub struct Coherent {
    config: Ccd,
    /// Under `released`: the best masks of the step before, without those that it filled.
    best: Vec<Position>,
    /// The most probable token of every mask in the step before.
    said: BTreeMap<Position, TokenId>,
    /// Under `soft`: the distributions of the best masks of the last steps, oldest first.
    laws: VecDeque<Laws>,
    /// Masks filled because they were consistent.
    consistent: usize,
}

impl Coherent {
    fn new(config: Ccd) -> Self {
        Self {
            config,
            best: Vec::new(),
            said: BTreeMap::new(),
            laws: VecDeque::new(),
            consistent: 0,
        }
    }

    /// The authors' code; `order` is not empty.
    fn released(&mut self, evidence: &Evidence<'_>, fills: &[Fill], order: &[usize]) -> Vec<usize> {
        let step = evidence.step as usize;
        let at = |i: usize| fills[i].position;
        let says = |position: Position| {
            let found = evidence.prediction.find(position);
            found.and_then(|i| argmax(evidence.prediction.logits(i)).ok()).map(|(token, _)| token)
        };
        let size = self.config.buffer.min(step + 1);
        let first = order[0];
        let last = step + 1 >= evidence.length;
        let plain = step < self.config.warm_up || last || !self.best.contains(&at(first));
        let mut chosen = vec![first];
        if !plain {
            let stands = |&i: &usize| {
                let agreed = self.said.get(&at(i)).copied();
                self.best.contains(&at(i)) && agreed.is_some() && agreed == says(at(i))
            };
            let kept: Vec<usize> = order.iter().copied().take(size).filter(stands).collect();
            if !kept.is_empty() {
                self.consistent += kept.len();
                chosen = kept;
            }
            chosen.truncate(if self.config.dynamic { usize::MAX } else { 1 });
        }
        let left = order.iter().copied().filter(|i| !chosen.contains(i)).take(size);
        self.best = left.map(at).collect();
        self.said = fills.iter().filter_map(|f| Some((f.position, says(f.position)?))).collect();
        chosen
    }

    /// The formula.
    fn soft(&mut self, evidence: &Evidence<'_>, fills: &[Fill], order: &[usize]) -> Vec<usize> {
        let at = |i: usize| fills[i].position;
        let law = |position: Position| {
            let found = evidence.prediction.find(position);
            found.map(|i| evidence.prediction.law(i).to_vec())
        };
        let best = &order[..order.len().min(self.config.buffer)];
        let now: Laws = best.iter().filter_map(|&i| Some((at(i), law(at(i))?))).collect();
        // What is no mask any more is forgotten.
        self.laws.iter_mut().for_each(|l| l.retain(|p, _| fills.iter().any(|f| f.position == *p)));
        self.laws.push_back(now);
        if self.laws.len() > self.config.history {
            self.laws.pop_front();
        }
        let full = self.laws.len() == self.config.history;
        let average = |&i: &usize| {
            let seen = self.laws.iter().map(|l| l.get(&at(i)).map(Vec::as_slice));
            let seen: Vec<&[f32]> = seen.collect::<Option<_>>()?;
            Some((entropy(&mean(&seen)), i))
        };
        let mut averages: Vec<(f64, usize)> = match full {
            true => best.iter().filter_map(average).collect(),
            false => Vec::new(),
        };
        averages.sort_by(|a, b| a.0.total_cmp(&b.0).then(at(a.1).cmp(&at(b.1))));
        let Some(&(_, first)) = averages.first() else { return vec![order[0]] };
        let low = averages.iter().filter(|(h, _)| self.config.dynamic && *h <= self.config.eps);
        let low: Vec<usize> = low.map(|&(_, i)| i).collect();
        let chosen = if low.is_empty() { vec![first] } else { low };
        self.consistent += chosen.len();
        chosen
    }
}

/// The average of distributions.
fn mean(laws: &[&[f32]]) -> Vec<f32> {
    let share = 1.0 / laws.len() as f32;
    let width = laws.first().map_or(0, |l| l.len());
    let sum = |v: usize| laws.iter().map(|l| l[v]).sum::<f32>();
    match laws {
        // Exactly itself.
        [one] => one.to_vec(),
        _ => (0..width).map(|v| share * sum(v)).collect(),
    }
}

impl Unmask for Coherent {
    fn score(&mut self, evidence: &Evidence<'_>, fills: &mut [Fill]) -> Result<()> {
        self.config.score.score(evidence, fills);
        Ok(())
    }

    fn quota(&mut self, evidence: &Evidence<'_>, fills: &[Fill]) -> Result<Option<Vec<usize>>> {
        let order = surest(evidence, fills);
        if order.is_empty() {
            return Ok(None);
        }
        Ok(Some(match self.config.form {
            Form::Released => self.released(evidence, fills, &order),
            Form::Soft => self.soft(evidence, fills, &order),
        }))
    }

    fn counts(&self) -> Vec<(&'static str, f64)> {
        vec![("tokens filled as consistent", self.consistent as f64)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scene::Scene;
    use tessera_core::dist::Key;

    /// A law of four tokens: `token` with probability `p`, the others share the rest.
    fn law(token: usize, p: f32) -> [f32; 4] {
        let mut law = [(1.0 - p) / 3.0; 4];
        law[token] = p;
        law
    }

    /// Positions 4, 7, 9, 12 of the worked example are masks 1 to 4 here.
    fn released(dynamic: bool, last_says: usize, four_is_first: bool) -> Vec<Position> {
        let config = Ccd { dynamic, buffer: 3, warm_up: 0, ..Ccd::default() };
        let mut policy = Coherent::new(config);
        policy.best = vec![2, 3, 4];
        policy.said = BTreeMap::from([(2, 0), (3, 1), (4, 2)]);
        let four = law(3, if four_is_first { 0.99 } else { 0.8 });
        let mut scene = Scene::new(&[&four, &law(0, 0.7), &law(1, 0.95), &law(last_says, 0.9)]);
        scene.step = 2;
        let mut fills = scene.fills();
        let evidence = scene.evidence();
        policy.score(&evidence, &mut fills).unwrap();
        let chosen = policy.quota(&evidence, &fills).unwrap().unwrap();
        chosen.iter().map(|&i| fills[i].position).collect()
    }

    #[test]
    fn the_worked_example() {
        // The intersection is {3, 4}; 4 says something else than before.
        assert_eq!(released(true, 0, false), [3]);
        assert_eq!(released(false, 0, false), [3]);
        // Had it said the same:
        assert_eq!(released(true, 2, false), [3, 4]);
        assert_eq!(released(false, 2, false), [3]);
        // Had a mask ranked first that was not among the best before: it alone.
        assert_eq!(released(true, 2, true), [1]);
    }

    #[test]
    fn what_was_filled_is_not_among_the_best_of_the_step_before() {
        let scene = Scene::new(&[&law(0, 0.9), &law(1, 0.8), &law(2, 0.7)]);
        let mut policy = Coherent::new(Ccd { buffer: 2, ..Ccd::default() });
        let mut fills = scene.fills();
        policy.score(&scene.evidence(), &mut fills).unwrap();
        assert_eq!(policy.quota(&scene.evidence(), &fills).unwrap(), Some(vec![0]));
        // The buffer is 1 in the first step.
        assert_eq!((policy.best.as_slice(), policy.said.len()), (&[2][..], 3));
    }

    #[test]
    fn the_average_prefers_what_does_not_change() {
        // The second mask is a little less certain now, and was the same before.
        let laws = [law(0, 0.9), law(1, 0.85)];
        let mut scene = Scene::new(&[&law(3, 0.9), &laws[1]]);
        let config = Ccd { form: Form::Soft, history: 2, dynamic: false, ..Ccd::default() };
        let mut policy = Coherent::new(config);
        let step = |policy: &mut Coherent, scene: &Scene| {
            let mut fills = scene.fills();
            policy.score(&scene.evidence(), &mut fills).unwrap();
            policy.quota(&scene.evidence(), &fills).unwrap().unwrap()
        };
        // Nothing to average with: the surest now.
        assert_eq!(step(&mut policy, &scene), [0]);
        scene.think(&[&laws[0], &laws[1]]);
        assert_eq!(step(&mut policy, &scene), [1]);
        assert_eq!(policy.consistent, 1);
        // All that are low enough.
        policy.config = Ccd { dynamic: true, eps: 0.7, ..policy.config };
        scene.think(&[&laws[0], &laws[1]]);
        assert_eq!(step(&mut policy, &scene), [0, 1]);
    }

    #[test]
    fn the_entropy_of_the_average_is_the_mean_entropy_and_the_mutual_information() {
        for seed in 0..50 {
            let draw = |k: u32| -> Vec<f32> {
                let weights: Vec<f32> =
                    (0..6).map(|v| Key::new(seed, k, 0).exponential(v) as f32).collect();
                let sum: f32 = weights.iter().sum();
                weights.iter().map(|w| w / sum).collect()
            };
            let laws: Vec<Vec<f32>> = (0..3).map(draw).collect();
            let slices: Vec<&[f32]> = laws.iter().map(Vec::as_slice).collect();
            let average = mean(&slices);
            let inside: f64 = laws.iter().map(|l| entropy(l)).sum::<f64>() / 3.0;
            let divergence = |l: &Vec<f32>| -> f64 {
                let one = |(p, q): (&f32, &f32)| f64::from(*p) * f64::from(p / q).ln();
                l.iter().zip(&average).map(one).sum()
            };
            let information = laws.iter().map(divergence).sum::<f64>() / 3.0;
            assert!(information >= 0.0);
            assert!((entropy(&average) - inside - information).abs() < 1e-5);
        }
    }
}

//! Title: Beyond Confidence: Adaptive and Coherent Decoding for Diffusion Language Models
//! Authors: Chen et al.
//! Year: 2025
//! Id: arXiv:2512.02044
//! Implemented: coherent contextual decoding. `form=soft` follows the formula: of the surest masks of the
//!   last `history` steps the one whose distribution, averaged over these steps, has the least entropy
//!   is filled, or, if `adaptive`, all with an entropy of at most `eps`. `form=released` follows the
//!   authors' code: a mask among the surest of this step and of the last one, with the same most
//!   probable token in both, is filled; if `adaptive`, all such.
//! Deviation: eps has no published value.
//! Left out: nothing of the procedure; the code's late shrinking of the buffer is overwritten there by its
//!   growth, so it is not here.
//! Tag: CCD

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tessera_core::dist::argmax;
use tessera_core::entry::{
    Claim, Exactness, Kind, Method, MethodConfig, MethodEntry, Paper, Place, Role, Settings, Site,
    defaults_of, read_as, resolve_as, schema_of,
};
use tessera_core::unmask::{entropy, ranked};
use tessera_core::{Evidence, Fill, Position, Result, TokenId, Unmask};

use crate::retention::within;
use crate::unmask::confidence::Certainty;
use crate::unmask::{DENOISER, between};

/// Which of the two procedures.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// The authors' code: the same token in two steps.
    #[default]
    Released,
    /// The paper's formula: distributions averaged over steps.
    Soft,
}

/// Settings of coherent contextual decoding.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Ccd {
    /// `released` or `soft`.
    pub form: Form,
    /// Whether all masks that pass are filled (CCD-DS), not one.
    pub adaptive: bool,
    /// Steps averaged over under `soft`, this one included. 1 (entropy decoding) to 64; the paper: 3 for
    /// Dream, 2 for LLaDA.
    pub history: usize,
    /// Most masks remembered of a step. 1 to 1024; the paper: 4, its code: 5.
    pub buffer: usize,
    /// First steps that fill the surest mask, whatever was before, under `released`. 0 to 1048576; the
    /// code: 5.
    pub warmup: usize,
    /// Most entropy, in nats, of what is filled together under `soft` with `adaptive`. 0 to 100.
    pub eps: f64,
}

impl Default for Ccd {
    fn default() -> Self {
        Self { form: Form::Released, adaptive: true, history: 2, buffer: 5, warmup: 5, eps: 0.2 }
    }
}

impl MethodConfig for Ccd {
    fn validate(&self) -> std::result::Result<(), String> {
        within("history", self.history, 1..=64)?;
        within("buffer", self.buffer, 1..=1024)?;
        within("warmup", self.warmup, 0..=1 << 20)?;
        between("eps", self.eps, 0.0, 100.0)
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
    summary: "Fills masks of which the model has thought the same for several steps.",
    kind: Kind::Policy,
    places: &[
        Place { role: Role::Unmask, site: Site::Score },
        Place { role: Role::Unmask, site: Site::Quota },
    ],
    exactness: Exactness::Lossy {
        what: "the order, and tokens of one step do not know of one another",
    },
    needs: DENOISER,
    claims: &[Claim {
        setting: "Dream-7B-Instruct, trip planning, passes 256 to 75",
        metric: "passes saved (CCD-DS)",
        value: 3.48,
        unit: "tokens/step",
        place: "abstract",
    }],
    schema: schema_of::<Ccd>,
    defaults: defaults_of::<Ccd>,
    neutral: None,
    read: resolve_as::<Ccd>,
    build: |settings: &Settings| {
        let config = read_as::<Ccd>("ccd", settings)?;
        Ok(Method::Unmask(Box::new(Coherent::new(config))))
    },
};

/// The policy.
#[derive(Debug, Clone)]
pub struct Coherent {
    config: Ccd,
    /// The surest masks of the step before, without those it filled.
    before: BTreeSet<Position>,
    /// The most probable token at every mask of the step before.
    thought: BTreeMap<Position, TokenId>,
    /// The distributions of the surest masks of the last steps, the newest first.
    laws: VecDeque<BTreeMap<Position, Vec<f32>>>,
}

impl Coherent {
    /// With these settings, without a past.
    pub fn new(config: Ccd) -> Self {
        Self { config, before: BTreeSet::new(), thought: BTreeMap::new(), laws: VecDeque::new() }
    }

    /// What is filled under `released`, of `order`, the open fills, the surest first.
    fn released(
        &mut self,
        evidence: &Evidence<'_>,
        fills: &[Fill],
        order: &[usize],
    ) -> Result<Vec<usize>> {
        let mut thought = BTreeMap::new();
        for (i, &position) in evidence.prediction.positions.iter().enumerate() {
            thought.insert(position, argmax(evidence.prediction.law(i))?.0);
        }
        // The buffer grows by one mask a step.
        let buffer = (evidence.step as usize + 1).min(self.config.buffer);
        let place = |i: usize| fills[i].position;
        let first = order[0];
        let mut chosen = vec![first];
        let warm = (evidence.step as usize) < self.config.warmup;
        if !warm && order.len() > 1 && self.before.contains(&place(first)) {
            let coherent: Vec<usize> = order
                .iter()
                .copied()
                .take(buffer)
                .filter(|&i| self.before.contains(&place(i)))
                .filter(|&i| self.thought.get(&place(i)) == thought.get(&place(i)))
                .collect();
            match coherent.first() {
                None => {}
                Some(_) if self.config.adaptive => chosen = coherent,
                Some(&one) => chosen = vec![one],
            }
        }
        let left = order.iter().copied().filter(|i| !chosen.contains(i)).take(buffer);
        self.before = left.map(place).collect();
        self.thought = thought;
        Ok(chosen)
    }

    /// What is filled under `soft`.
    fn soft(&mut self, evidence: &Evidence<'_>, fills: &[Fill], order: &[usize]) -> Vec<usize> {
        let prediction = evidence.prediction;
        let surest = order.iter().copied().take(self.config.buffer);
        let laws: BTreeMap<Position, Vec<f32>> = surest
            .clone()
            .filter_map(|i| {
                let position = fills[i].position;
                Some((position, prediction.law(prediction.find(position)?).to_vec()))
            })
            .collect();
        self.laws.push_front(laws);
        self.laws.truncate(self.config.history);
        // The entropy of the mean over the steps, of masks that were among the surest in all of them.
        let mean = |position: Position| -> Option<f64> {
            let past: Vec<&Vec<f32>> =
                self.laws.iter().map(|l| l.get(&position)).collect::<Option<_>>()?;
            let sum = |t: usize| past.iter().map(|law| law[t]).sum::<f32>() / past.len() as f32;
            Some(entropy(&(0..past[0].len()).map(sum).collect::<Vec<f32>>()))
        };
        let mut coherent: Vec<(f64, usize)> =
            surest.filter_map(|i| Some((mean(fills[i].position)?, i))).collect();
        coherent.sort_by(|a, b| {
            a.0.total_cmp(&b.0).then(fills[a.1].position.cmp(&fills[b.1].position))
        });
        let chosen: Vec<usize> = match (coherent.first(), self.config.adaptive) {
            (None, _) => vec![order[0]],
            (Some(&(_, best)), false) => vec![best],
            (Some(&(_, best)), true) => {
                let calm = coherent.iter().take_while(|(h, _)| *h <= self.config.eps);
                let calm: Vec<usize> = calm.map(|&(_, i)| i).collect();
                if calm.is_empty() { vec![best] } else { calm }
            }
        };
        for laws in &mut self.laws {
            chosen.iter().for_each(|&i| {
                laws.remove(&fills[i].position);
            });
        }
        chosen
    }
}

impl Unmask for Coherent {
    fn score(&mut self, evidence: &Evidence<'_>, fills: &mut [Fill]) -> Result<()> {
        Certainty::Entropy.score(evidence, fills);
        Ok(())
    }

    fn quota(&mut self, evidence: &Evidence<'_>, fills: &[Fill]) -> Result<Option<Vec<usize>>> {
        let mut order = ranked(fills);
        order.retain(|&i| evidence.is_open(fills[i].position));
        if order.is_empty() {
            return Ok(None);
        }
        match self.config.form {
            Form::Released => self.released(evidence, fills, &order).map(Some),
            Form::Soft => Ok(Some(self.soft(evidence, fills, &order))),
        }
    }
}

/// Settings under which the method is entropy decoding, one mask a step.
pub fn entropy_decoding() -> Vec<Settings> {
    let maps = [
        vec![("form", json!("soft")), ("history", json!(1)), ("adaptive", json!(false))],
        vec![("form", json!("released")), ("warmup", json!(1 << 20))],
        vec![("form", json!("released")), ("buffer", json!(1)), ("adaptive", json!(false))],
    ];
    let one = |map: Vec<(&str, serde_json::Value)>| {
        map.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()
    };
    maps.into_iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scene::Scene;

    /// A law with token `token` so sure that masks rank by `rank`, 0 the surest.
    fn law(token: usize, rank: usize) -> [f32; 4] {
        let p = 0.9 - 0.1 * rank as f32;
        let mut law = [(1.0 - p) / 3.0; 4];
        law[token] = p;
        law
    }

    /// Positions 1, 2, 3, 4 stand for 4, 7, 9, 12 of the example; they rank 9, 12, 4, 7, and the token at
    /// 12 has changed.
    #[test]
    fn the_example_of_four_masks() {
        let rows = [law(0, 2), law(1, 3), law(2, 0), law(3, 1)];
        let laws: Vec<&[f32]> = rows.iter().map(|r| &r[..]).collect();
        let mut scene = Scene::new(&laws);
        scene.step = 9;
        let config = Ccd { buffer: 3, ..Ccd::default() };
        let run = |adaptive: bool, at_12: u32| {
            let mut policy = Coherent::new(Ccd { adaptive, ..config.clone() });
            policy.before = [2, 3, 4].into();
            policy.thought = [(2, 1), (3, 2), (4, at_12)].into();
            let mut fills = scene.fills();
            policy.score(&scene.evidence(), &mut fills).unwrap();
            let mut chosen = policy.quota(&scene.evidence(), &fills).unwrap().unwrap();
            chosen.sort_unstable();
            chosen.iter().map(|&i| fills[i].position).collect::<Vec<_>>()
        };
        assert_eq!((run(true, 0), run(false, 0)), (vec![3], vec![3]));
        assert_eq!((run(true, 3), run(false, 3)), (vec![3, 4], vec![3]));
    }

    #[test]
    fn a_mask_that_was_not_among_the_surest_before_is_filled_alone() {
        let rows = [law(0, 0), law(1, 1)];
        let laws: Vec<&[f32]> = rows.iter().map(|r| &r[..]).collect();
        let mut scene = Scene::new(&laws);
        scene.step = 9;
        let mut policy = Coherent::new(Ccd::default());
        policy.before = [2].into();
        policy.thought = [(2, 1)].into();
        let mut fills = scene.fills();
        policy.score(&scene.evidence(), &mut fills).unwrap();
        assert_eq!(policy.quota(&scene.evidence(), &fills).unwrap(), Some(vec![0]));
    }

    #[test]
    fn the_entropy_of_a_mean_is_the_mean_entropy_and_the_information() {
        let laws = [[0.7f32, 0.2, 0.1], [0.1, 0.6, 0.3], [0.3, 0.3, 0.4]];
        let mean: Vec<f32> = (0..3).map(|t| laws.iter().map(|l| l[t]).sum::<f32>() / 3.0).collect();
        let divergence = |law: &[f32; 3]| -> f64 {
            law.iter().zip(&mean).map(|(&p, &m)| f64::from(p) * f64::from(p / m).ln()).sum()
        };
        let information = laws.iter().map(divergence).sum::<f64>() / 3.0;
        let average = laws.iter().map(|l| entropy(l)).sum::<f64>() / 3.0;
        assert!(information >= 0.0);
        assert!((entropy(&mean) - average - information).abs() < 1e-6);
    }

    #[test]
    fn the_average_over_steps_prefers_what_did_not_change() {
        // Mask 1 is surer now, and was undecided before; mask 2 has been the same.
        let config =
            Ccd { form: Form::Soft, adaptive: false, history: 2, buffer: 4, ..Ccd::default() };
        let mut policy = Coherent::new(config);
        let mut scene = Scene::new(&[&[0.5, 0.5], &[0.85, 0.15], &[0.5, 0.5]]);
        let mut fills = scene.fills();
        policy.score(&scene.evidence(), &mut fills).unwrap();
        // The third mask takes the step, so that the others stay.
        policy.laws.push_front([(1, vec![0.5, 0.5]), (2, vec![0.85, 0.15])].into_iter().collect());
        scene.canvas.fill(3, 0, 0).unwrap();
        scene.think(&[&[0.9, 0.1], &[0.85, 0.15]]);
        let mut fills = scene.fills();
        policy.score(&scene.evidence(), &mut fills).unwrap();
        assert_eq!(policy.quota(&scene.evidence(), &fills).unwrap(), Some(vec![1]));
    }
}

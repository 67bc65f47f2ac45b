//! Title: From Bits to Rounds: Parallel Decoding with Exploration for Diffusion Language Models
//! Authors: Fu et al.
//! Year: 2025
//! Id: arXiv:2511.21103
//! Implemented: explore-then-exploit in the paper's terms. Every fill that is sure enough is written, in
//!   later blocks too (exploitation); where fewer than `least` are, uncertain masks of the current block
//!   are written on purpose (exploration), chosen by confidence, entropy, entropy above a floor, or by
//!   what they would make sure: hypothetical fills looked at in one pass.
//! Deviation: the paper's score and thresholds were not available to us; the scores and defaults here are
//!   ours ("ETE-style"). End tokens wait until all before them is written, or they close the text early.
//! Left out: the authors' cache.
//! Tag: ETE

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::ops::Range;
use tessera_core::entry::{
    Exactness, Kind, Method, MethodConfig, MethodEntry, Needs, Paper, Place, Role, Settings, Site,
    defaults_of, read_as, resolve_as, schema_of,
};
use tessera_core::{Canvas, Commit, Evidence, Fill, Look, Prediction, Result, Unmask};

use crate::retention::within;
use crate::unmask::blocks::current;
use crate::unmask::{DENOISER, between};

/// Which uncertain mask is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Explore {
    /// The one with the highest confidence: what other decoders fall back to.
    Confidence,
    /// The one with the highest entropy.
    Entropy,
    /// The one with the highest entropy among those whose best token has a probability above `floor`.
    #[default]
    Floor,
    /// The one after which most masks are sure; ties by the lowest entropy left. Looks at `tried` canvases.
    Gain,
}

/// Settings of explore-then-exploit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Ete {
    /// Least confidence of a fill that is written at once. 0 to 2; above 1 one mask is written a step.
    pub tau: f64,
    /// Positions of a block. 1 to 1048576.
    pub block: usize,
    /// Later blocks in which sure fills are written too. 0 to 1048576.
    pub ahead: usize,
    /// Fewer sure fills than this lead to exploration. 1 to 1024.
    pub least: usize,
    /// Masks written on purpose. 1 to 64.
    pub explored: usize,
    /// Which: `confidence`, `entropy`, `floor` or `gain`.
    pub explore: Explore,
    /// Least probability of the best token under `floor`. 0 to 1.
    pub floor: f64,
    /// Canvases looked at under `gain`. 1 to 64.
    pub tried: usize,
    /// Least distance between masks that are explored together. 1 to 1024.
    pub apart: usize,
}

impl Default for Ete {
    fn default() -> Self {
        Self {
            tau: 0.9,
            block: 32,
            ahead: 1 << 20,
            least: 1,
            explored: 1,
            explore: Explore::Floor,
            floor: 0.3,
            tried: 4,
            apart: 4,
        }
    }
}

impl MethodConfig for Ete {
    fn validate(&self) -> std::result::Result<(), String> {
        between("tau", self.tau, 0.0, 2.0)?;
        within("block", self.block, 1..=1 << 20)?;
        within("ahead", self.ahead, 0..=1 << 20)?;
        within("least", self.least, 1..=1024)?;
        within("explored", self.explored, 1..=64)?;
        between("floor", self.floor, 0.0, 1.0)?;
        within("tried", self.tried, 1..=64)?;
        within("apart", self.apart, 1..=1024)
    }
}

/// The registry's line.
pub static ENTRY: MethodEntry = MethodEntry {
    slug: "ete",
    aliases: &["explore-then-exploit"],
    name: "Explore-then-exploit",
    paper: Some(Paper {
        title: "From Bits to Rounds: Parallel Decoding with Exploration for Diffusion Language Models",
        authors: "Fu et al.",
        year: 2025,
        id: "arXiv:2511.21103",
    }),
    summary: "Writes uncertain tokens on purpose, so that many others become certain.",
    kind: Kind::Policy,
    places: &[
        Place { role: Role::Unmask, site: Site::Region },
        Place { role: Role::Unmask, site: Site::Quota },
        Place { role: Role::Unmask, site: Site::Commit },
    ],
    exactness: Exactness::Lossy {
        what: "the order, and tokens of one step do not know of one another",
    },
    needs: Needs { looks: true, ..DENOISER },
    claims: &[],
    schema: schema_of::<Ete>,
    defaults: defaults_of::<Ete>,
    neutral: None,
    read: resolve_as::<Ete>,
    build: |settings: &Settings| {
        let config = read_as::<Ete>("ete", settings)?;
        Ok(Method::Unmask(Box::new(Explorer { config, tried: Vec::new() })))
    },
};

/// The policy.
#[derive(Debug, Clone)]
pub struct Explorer {
    config: Ete,
    /// Fills that are tried in this step, by index.
    tried: Vec<usize>,
}

impl Explorer {
    /// The fills that are sure enough, in the current block and those ahead.
    fn sure(&self, evidence: &Evidence<'_>, fills: &[Fill]) -> Vec<usize> {
        let reach = self.config.ahead.saturating_mul(self.config.block);
        let end = evidence.region.end.saturating_add(reach);
        let near = |f: &Fill| (f.position as usize) < end;
        let enough = |&i: &usize| near(&fills[i]) && fills[i].score >= self.config.tau;
        let sure: Vec<usize> = (0..fills.len()).filter(enough).collect();
        // An end closes the text: it waits until every mask before it is written in this step too.
        let settled = |&i: &usize| {
            let fill = fills[i];
            !evidence.vocabulary.is_end(fill.token)
                || evidence
                    .canvas
                    .masked()
                    .take_while(|&p| p < fill.position)
                    .all(|p| sure.iter().any(|&s| fills[s].position == p))
        };
        sure.iter().copied().filter(settled).collect()
    }

    /// Uncertain masks of the current block, the one to explore first at the beginning.
    fn uncertain(&self, evidence: &Evidence<'_>, fills: &[Fill], sure: &[usize]) -> Vec<usize> {
        let mut open: Vec<(f64, usize)> = (0..fills.len())
            .filter(|i| evidence.is_open(fills[*i].position) && !sure.contains(i))
            .map(|i| {
                let found = evidence.prediction.find(fills[i].position);
                let entropy = found.map_or(0.0, |at| evidence.prediction.entropy(at));
                let likely = f64::from(fills[i].probability) >= self.config.floor;
                let ends = evidence.vocabulary.is_end(fills[i].token);
                let value = match self.config.explore {
                    Explore::Confidence => fills[i].score,
                    Explore::Entropy | Explore::Gain => entropy,
                    Explore::Floor if likely => entropy,
                    // Below the floor the likeliest comes first, behind all others.
                    Explore::Floor => fills[i].score - 1e3,
                };
                // An end is the last thing to be explored.
                (if ends { value - 1e6 } else { value }, i)
            })
            .collect();
        open.sort_by(|a, b| {
            b.0.total_cmp(&a.0).then(fills[a.1].position.cmp(&fills[b.1].position))
        });
        open.into_iter().map(|(_, i)| i).collect()
    }

    /// The first `explored` of `order` that lie apart.
    fn spaced(&self, fills: &[Fill], order: &[usize]) -> Vec<usize> {
        let mut taken: Vec<usize> = Vec::new();
        for &i in order {
            let far = |&t: &usize| {
                fills[t].position.abs_diff(fills[i].position) as usize >= self.config.apart
            };
            if taken.len() < self.config.explored && taken.iter().all(far) {
                taken.push(i);
            }
        }
        taken
    }

    /// Masks that are sure, and the negative entropy of all.
    fn worth(&self, prediction: &Prediction) -> (usize, f64) {
        let (mut sure, mut order) = (0, 0.0);
        for i in 0..prediction.positions.len() {
            let top = prediction.law(i).iter().copied().fold(0.0, f32::max);
            sure += usize::from(f64::from(top) >= self.config.tau);
            order -= prediction.entropy(i);
        }
        (sure, order)
    }
}

impl Unmask for Explorer {
    fn region(&mut self, canvas: &Canvas) -> Option<Range<usize>> {
        current(canvas, self.config.block)
    }

    fn is_wide(&self) -> bool {
        self.config.ahead > 0
    }

    fn quota(&mut self, evidence: &Evidence<'_>, fills: &[Fill]) -> Result<Option<Vec<usize>>> {
        let mut chosen = self.sure(evidence, fills);
        self.tried.clear();
        if chosen.len() < self.config.least {
            let order = self.uncertain(evidence, fills, &chosen);
            if self.config.explore == Explore::Gain {
                self.tried = order.iter().copied().take(self.config.tried).collect();
            }
            chosen.extend(self.spaced(fills, &order));
        }
        Ok((!chosen.is_empty()).then_some(chosen))
    }

    fn commit(
        &mut self,
        evidence: &Evidence<'_>,
        fills: &[Fill],
        chosen: &[usize],
        look: &mut dyn Look,
    ) -> Result<Option<Commit>> {
        let tried = std::mem::take(&mut self.tried);
        if tried.len() < 2 || evidence.canvas.masks() < 3 {
            return Ok(None);
        }
        let sure: Vec<usize> =
            chosen.iter().copied().filter(|&i| fills[i].score >= self.config.tau).collect();
        let mut canvases = Vec::with_capacity(tried.len());
        for &one in &tried {
            let mut canvas = evidence.canvas.clone();
            for &i in sure.iter().chain(std::iter::once(&one)) {
                canvas.fill(fills[i].position, fills[i].token, evidence.step)?;
            }
            canvases.push(canvas);
        }
        let mut predictions = look.look(&canvases)?;
        let better = |a: &(usize, f64), b: &(usize, f64)| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1));
        let mut best = 0;
        for at in 1..predictions.len() {
            if better(&self.worth(&predictions[at]), &self.worth(&predictions[best])).is_gt() {
                best = at;
            }
        }
        let written = sure.iter().chain(std::iter::once(&tried[best]));
        // The pass saw the region only if nothing ahead counts; then its masks may be used up.
        let open = canvases[best].masked().any(|p| evidence.is_open(p));
        let next = (open && best < predictions.len()).then(|| predictions.swap_remove(best));
        Ok(Some(Commit { fills: written.map(|&i| fills[i]).collect(), remask: Vec::new(), next }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scene::Scene;

    fn chosen(config: Ete, scene: &Scene) -> Vec<usize> {
        let mut policy = Explorer { config, tried: Vec::new() };
        policy.quota(&scene.evidence(), &scene.fills()).unwrap().unwrap()
    }

    #[test]
    fn sure_fills_are_taken_ahead_and_uncertain_ones_in_the_block_only() {
        let mut scene = Scene::new(&[&[0.5, 0.5], &[0.8, 0.2], &[0.95, 0.05], &[0.5, 0.5]]);
        scene.region = 1..3;
        assert_eq!(chosen(Ete { block: 2, ..Ete::default() }, &scene), [2]);
        // Without looking ahead nothing is sure: the block's most uncertain mask is explored.
        let config = Ete { block: 2, ahead: 0, ..Ete::default() };
        assert_eq!(chosen(config.clone(), &scene), [0]);
        let by_confidence = Ete { explore: Explore::Confidence, ..config.clone() };
        assert_eq!(chosen(by_confidence, &scene), [1]);
        let high = Ete { floor: 0.6, ..config };
        assert_eq!(chosen(high, &scene), [1]);
        // One sure fill is not enough: two explored ones, as far as they lie apart.
        let more = Ete { least: 2, explored: 2, apart: 2, block: 4, ..Ete::default() };
        scene.region = 1..5;
        assert_eq!(chosen(more, &scene), [2, 0, 3]);
    }

    #[test]
    fn an_end_waits_until_all_before_it_is_written() {
        let end = [0.01, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.99];
        let open = [0.5, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0];
        let sure = [0.99, 0.01, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0];
        let scene = Scene::new(&[&open, &end]);
        assert_eq!(chosen(Ete::default(), &scene), [0]);
        let scene = Scene::new(&[&sure, &end]);
        assert_eq!(chosen(Ete::default(), &scene), [0, 1]);
    }
}

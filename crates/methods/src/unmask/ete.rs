//! Title: From Bits to Rounds: Parallel Decoding with Exploration for Diffusion Language Models
//! Authors: Fu et al.
//! Year: 2025
//! Id: arXiv:2511.21103
//! Implemented: exploit, every mask of the current block and of the blocks ahead whose fill passes a
//!   threshold is filled; explore, where fewer than `enough` pass, up to `count` masks of the current
//!   block are filled although they do not. Four ways to choose these: the surest (which is the usual
//!   fallback), the largest entropy, the largest entropy of those that are not hopeless, and the one
//!   after which the model is surest of the others, which is looked up. The bound `rounds >= nats /
//!   most nats of a round` is in the statistics of every run that fills masks.
//! Deviation: the paper's own score, thresholds and look-ahead were not to be had; these are a
//!   reconstruction from its abstract. An end token is filled only where no mask is left of it
//!   (`end_guard`): the tail of a canvas is what a model is surest of.
//! Left out: nothing that is known of the method; its caches are windows here.
//! Tag: ETE

use std::ops::Range;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tessera_core::entry::{
    Exactness, Kind, Method, MethodConfig, MethodEntry, Needs, Paper, Place, Role, Settings, Site,
    defaults_of, read_as, resolve_as, schema_of,
};
use tessera_core::{Canvas, Commit, Evidence, Fill, Look, Prediction, Result, Unmask};

use crate::retention::within;
use crate::unmask::blocks::current;
use crate::unmask::{DENOISER, between, surest};

/// Which uncertain masks are filled.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Explore {
    /// The surest below the threshold (e1): what threshold decoding does.
    #[serde(alias = "e1")]
    Confidence,
    /// The largest entropy (e2).
    #[serde(alias = "e2")]
    Entropy,
    /// The largest entropy of those whose fill has a probability of at least `floor` (e3).
    #[default]
    #[serde(alias = "e3")]
    Plausible,
    /// The one after which most masks pass the threshold, then the one that leaves the least entropy
    /// (e4): one pass over as many canvases as there are candidates.
    #[serde(alias = "e4")]
    Gain,
}

/// Settings of explore-then-exploit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Ete {
    /// Least confidence of an exploited fill. 0 to 2; above 1 nothing is exploited.
    pub tau: f64,
    /// Positions of a block. 1 to 1048576.
    pub block: usize,
    /// Blocks ahead of the current one that are exploited too. 0 to 1048576; all if left out.
    pub ahead: Option<usize>,
    /// Exploited fills that are enough, so that nothing is explored. 1 (explores only where nothing
    /// passes) to 1048576.
    pub enough: usize,
    /// Masks explored at once, at most. 1 to 1024.
    pub count: usize,
    /// Least distance between two masks explored at once. 1 to 1024 positions.
    pub spacing: usize,
    /// Which masks are explored: `confidence` (e1), `entropy` (e2), `plausible` (e3) or `gain` (e4).
    pub explore: Explore,
    /// Least probability of the fill under `plausible` and `gain`, if any fill has it. 0 to 1.
    pub floor: f64,
    /// Candidates that `gain` looks at, those of the largest entropy. 1 to 64.
    pub candidates: usize,
    /// Whether an end token waits until no mask is left of it.
    pub end_guard: bool,
}

impl Default for Ete {
    fn default() -> Self {
        Self {
            tau: 0.9,
            block: 32,
            ahead: None,
            enough: 1,
            count: 1,
            spacing: 2,
            explore: Explore::Plausible,
            floor: 0.3,
            candidates: 4,
            end_guard: true,
        }
    }
}

impl MethodConfig for Ete {
    fn validate(&self) -> std::result::Result<(), String> {
        between("tau", self.tau, 0.0, 2.0)?;
        between("floor", self.floor, 0.0, 1.0)?;
        within("block", self.block, 1..=1 << 20)?;
        within("ahead", self.ahead.unwrap_or(0), 0..=1 << 20)?;
        within("enough", self.enough, 1..=1 << 20)?;
        within("count", self.count, 1..=1024)?;
        within("spacing", self.spacing, 1..=1024)?;
        within("candidates", self.candidates, 1..=64)
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
    summary: "Fills all that is certain in any block and, where little is, an uncertain mask that \
              makes others certain.",
    kind: Kind::Policy,
    places: &[
        Place { role: Role::Unmask, site: Site::Region },
        Place { role: Role::Unmask, site: Site::Quota },
        Place { role: Role::Unmask, site: Site::Commit },
    ],
    exactness: Exactness::Lossy { what: "tokens filled in one step do not know of one another" },
    needs: Needs { looks: true, ..DENOISER },
    // The abstract has no numbers.
    claims: &[],
    schema: schema_of::<Ete>,
    defaults: defaults_of::<Ete>,
    neutral: Some(|| {
        Settings::from_iter([
            ("tau".to_owned(), json!(2.0)),
            ("block".to_owned(), json!(1 << 20)),
            ("explore".to_owned(), json!("confidence")),
            ("end_guard".to_owned(), json!(false)),
        ])
    }),
    read: resolve_as::<Ete>,
    build: |settings| {
        let config = read_as::<Ete>("ete", settings)?;
        Ok(Method::Unmask(Box::new(Explorer { config, exploited: 0, explored: 0, looks: 0 })))
    },
};

/// The policy.
#[derive(Debug, Clone)]
pub struct Explorer {
    config: Ete,
    exploited: usize,
    explored: usize,
    looks: usize,
}

/// What a step does: fills that pass, and uncertain ones in the order in which they are wanted.
struct Choice {
    exploited: Vec<usize>,
    uncertain: Vec<usize>,
}

impl Explorer {
    /// Whether a step goes beyond what is certain.
    fn explores(&self, choice: &Choice) -> bool {
        choice.exploited.len() < self.config.enough && !choice.uncertain.is_empty()
    }

    fn choose(&self, evidence: &Evidence<'_>, fills: &[Fill]) -> Choice {
        let config = &self.config;
        let order = surest(evidence, fills);
        let mut passing: Vec<usize> =
            order.iter().copied().filter(|&i| fills[i].score >= config.tau).collect();
        if config.end_guard {
            passing = guarded(evidence, fills, &passing);
        }
        let block = current(evidence.canvas, config.block).unwrap_or(evidence.region.clone());
        let leftmost = evidence.canvas.masked().next();
        let may_end = |fill: &Fill| {
            let ends = config.end_guard && evidence.vocabulary.is_end(fill.token);
            !ends || Some(fill.position) == leftmost
        };
        let uncertain = order.iter().copied().filter(|i| {
            let fill = &fills[*i];
            let here = block.contains(&(fill.position as usize));
            here && !passing.contains(i) && may_end(fill)
        });
        let uncertain = self.ordered(evidence, fills, uncertain.collect());
        // What passed in the order of certainty, as threshold decoding has it.
        let exploited = order.into_iter().filter(|i| passing.contains(i)).collect();
        Choice { exploited, uncertain }
    }

    /// Uncertain fills (the surest first) in the order of the setting.
    fn ordered(&self, evidence: &Evidence<'_>, fills: &[Fill], list: Vec<usize>) -> Vec<usize> {
        if self.config.explore == Explore::Confidence {
            return list;
        }
        let floor = self.config.floor;
        let plausible = |&i: &usize| f64::from(fills[i].probability) >= floor;
        let mut list = match self.config.explore != Explore::Entropy && list.iter().any(plausible) {
            true => list.into_iter().filter(plausible).collect(),
            false => list,
        };
        let entropy = |i: usize| {
            let found = evidence.prediction.find(fills[i].position);
            found.map_or(0.0, |at| evidence.prediction.entropy(at))
        };
        list.sort_by(|&a, &b| {
            let wider = entropy(b).total_cmp(&entropy(a));
            wider.then(fills[a].position.cmp(&fills[b].position))
        });
        list
    }

    /// The first of `list` that lie far enough from one another.
    fn spaced(&self, fills: &[Fill], list: &[usize]) -> Vec<usize> {
        let mut taken: Vec<usize> = Vec::new();
        for &i in list {
            let far = |&j: &usize| {
                fills[i].position.abs_diff(fills[j].position) as usize >= self.config.spacing
            };
            if taken.len() < self.config.count && taken.iter().all(far) {
                taken.push(i);
            }
        }
        taken
    }

    /// The canvas once `chosen` is written.
    fn after(evidence: &Evidence<'_>, fills: &[Fill], chosen: &[usize]) -> Result<Canvas> {
        let mut canvas = evidence.canvas.clone();
        for &i in chosen {
            canvas.fill(fills[i].position, fills[i].token, evidence.step)?;
        }
        Ok(canvas)
    }

    /// How much is certain of a canvas: masks that pass, and the entropy that is left.
    fn certainty(
        &self,
        canvas: &Canvas,
        prediction: &Prediction,
        look: &mut dyn Look,
    ) -> Result<(usize, f64)> {
        let fills = look.fills(canvas, prediction)?;
        let passing = fills.iter().filter(|f| f.score >= self.config.tau).count();
        Ok((passing, (0..fills.len()).map(|i| prediction.entropy(i)).sum()))
    }
}

/// Of the fills that pass, those that do not end the text left of a mask.
fn guarded(evidence: &Evidence<'_>, fills: &[Fill], passing: &[usize]) -> Vec<usize> {
    let mut list = passing.to_vec();
    list.sort_by_key(|&i| fills[i].position);
    let mut masked = evidence.canvas.masked().peekable();
    let mut kept = Vec::with_capacity(list.len());
    for i in list {
        // Masks left of this fill that stay masks stop the walk.
        while masked
            .next_if(|&p| kept.last().is_some_and(|&k: &usize| fills[k].position == p))
            .is_some()
        {}
        let clear = masked.peek() == Some(&fills[i].position);
        if clear || !evidence.vocabulary.is_end(fills[i].token) {
            kept.push(i);
        }
    }
    kept
}

impl Unmask for Explorer {
    fn region(&mut self, canvas: &Canvas) -> Option<Range<usize>> {
        let block = current(canvas, self.config.block)?;
        let end = match self.config.ahead {
            None => canvas.len(),
            Some(ahead) => canvas.len().min(block.end.saturating_add(ahead * self.config.block)),
        };
        Some(block.start..end)
    }

    fn quota(&mut self, evidence: &Evidence<'_>, fills: &[Fill]) -> Result<Option<Vec<usize>>> {
        let choice = self.choose(evidence, fills);
        let mut chosen = choice.exploited.clone();
        self.exploited += chosen.len();
        if self.explores(&choice) && (chosen.is_empty() || self.config.explore != Explore::Gain) {
            let explored = self.spaced(fills, &choice.uncertain);
            self.explored += explored.len();
            chosen.extend(explored);
        }
        if chosen.is_empty() {
            // A window shows ends only, with masks left of them that it does not show.
            chosen.extend(surest(evidence, fills).first());
        }
        Ok(Some(chosen))
    }

    /// Looks which uncertain fill helps most; nothing to decide for the other ways.
    fn commit(
        &mut self,
        evidence: &Evidence<'_>,
        fills: &[Fill],
        _: &[usize],
        look: &mut dyn Look,
    ) -> Result<Option<Commit>> {
        let mut choice = self.choose(evidence, fills);
        if self.config.explore != Explore::Gain || !self.explores(&choice) {
            return Ok(None);
        }
        choice.uncertain.truncate(self.config.candidates);
        let with = |&i: &usize| {
            let all: Vec<usize> = choice.exploited.iter().copied().chain([i]).collect();
            Self::after(evidence, fills, &all)
        };
        let canvases = choice.uncertain.iter().map(with).collect::<Result<Vec<_>>>()?;
        let mut predictions = look.look(&canvases)?;
        self.looks += canvases.len();
        let mut gains = Vec::with_capacity(canvases.len());
        for (canvas, prediction) in canvases.iter().zip(&predictions) {
            gains.push(self.certainty(canvas, prediction, look)?);
        }
        let mut order: Vec<usize> = (0..gains.len()).collect();
        order.sort_by(|&a, &b| gains[b].0.cmp(&gains[a].0).then(gains[a].1.total_cmp(&gains[b].1)));
        let by_gain: Vec<usize> = order.iter().map(|&at| choice.uncertain[at]).collect();
        let explored = self.spaced(fills, &by_gain);
        // The quota has already counted as many where nothing passed.
        if !choice.exploited.is_empty() {
            self.explored += explored.len();
        }
        // The canvas that was looked at is the next step's, unless that one sees other blocks.
        let seen = &canvases[order[0]];
        let same = explored.len() == 1 && self.region(seen).as_ref() == Some(evidence.region);
        let next = same.then(|| predictions.swap_remove(order[0]));
        let all = choice.exploited.iter().chain(&explored).map(|&i| fills[i]);
        Ok(Some(Commit { fills: all.collect(), remask: Vec::new(), next }))
    }

    fn counts(&self) -> Vec<(&'static str, f64)> {
        vec![
            ("tokens exploited", self.exploited as f64),
            ("tokens explored", self.explored as f64),
            ("canvases looked at", self.looks as f64),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scene::Scene;

    fn explorer(config: Ete) -> Explorer {
        Explorer { config, exploited: 0, explored: 0, looks: 0 }
    }

    fn positions(policy: &mut Explorer, scene: &Scene) -> Vec<u32> {
        let fills = scene.fills();
        let chosen = policy.quota(&scene.evidence(), &fills).unwrap().unwrap();
        chosen.iter().map(|&i| fills[i].position).collect()
    }

    // Masks at 1 to 4, of entropies 0.199, 0.693, 1.095 and 0.303.
    const LAWS: [&[f32]; 4] =
        [&[0.95, 0.05, 0.0], &[0.5, 0.5, 0.0], &[0.36, 0.34, 0.3], &[0.09, 0.91, 0.0]];

    #[test]
    fn what_passes_is_exploited_and_the_rest_is_explored_where_that_is_little() {
        let scene = Scene::new(&LAWS);
        let with =
            |explore, tau, enough, floor| Ete { explore, tau, enough, floor, ..Ete::default() };
        let made = |config| positions(&mut explorer(config), &scene);
        assert_eq!(made(with(Explore::Entropy, 0.9, 1, 0.3)), [1, 4]);
        assert_eq!(made(with(Explore::Entropy, 0.9, 3, 0.3)), [1, 4, 3]);
        assert_eq!(made(with(Explore::Plausible, 0.9, 3, 0.4)), [1, 4, 2]);
        assert_eq!(made(with(Explore::Confidence, 2.0, 1, 0.3)), [1]);
        // Two at once, three positions apart: 3 (the widest), not 2, not 4, not 1.
        let two = Ete { count: 2, spacing: 3, ..with(Explore::Entropy, 2.0, 1, 0.0) };
        assert_eq!(made(two.clone()), [3]);
        assert_eq!(made(Ete { spacing: 2, ..two }), [3, 1]);
    }

    #[test]
    fn blocks_ahead_are_exploited_and_only_the_current_one_is_explored() {
        let mut scene = Scene::new(&LAWS);
        let mut policy = explorer(Ete { block: 2, explore: Explore::Entropy, ..Ete::default() });
        scene.region = policy.region(&scene.canvas).unwrap();
        assert_eq!(scene.region, 1..5);
        policy.config.tau = 0.96;
        assert_eq!(positions(&mut policy, &scene), [2]);
        policy.config.tau = 0.9;
        assert_eq!(positions(&mut policy, &scene), [1, 4]);
        policy.config.ahead = Some(0);
        assert_eq!(policy.region(&scene.canvas), Some(1..3));
        assert_eq!((policy.exploited, policy.explored), (2, 1));
    }

    #[test]
    fn an_end_token_waits_for_the_masks_left_of_it() {
        let end: &[f32] = &[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0];
        let sure: &[f32] = &[1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0];
        let torn: &[f32] = &[0.5, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0];
        let mut policy = explorer(Ete::default());
        assert_eq!(positions(&mut policy, &Scene::new(&[sure, torn, end, end])), [1]);
        assert_eq!(positions(&mut policy, &Scene::new(&[sure, end, torn, end])), [1, 2]);
        // Nothing but ends: the leftmost one may.
        assert_eq!(positions(&mut policy, &Scene::new(&[torn, end, end])), [1]);
        policy.config.end_guard = false;
        assert_eq!(positions(&mut policy, &Scene::new(&[torn, end, end])), [2, 3]);
    }
}

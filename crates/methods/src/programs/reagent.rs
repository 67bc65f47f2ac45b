//! Title: ReAGent: Towards A Model-agnostic Feature Attribution Method for Generative Language Models
//! Authors: Zhixue Zhao, Boxuan Shan
//! Year: 2024
//! Id: arXiv:2402.00794
//! Implemented: the recursive attribution with all probes as branches of one tree pass, three sources of
//!   replacements, the stop test, and both faithfulness metrics (Soft-NS, Soft-NC) with random
//!   attribution and leave-one-out beside them.
//! Left out: replacements from a masked model (the paper's RoBERTa) and by part of speech (its code); a
//!   token's class by spelling stands for the latter. Rationale sets. Where it differs: only replaced
//!   positions move, by 4 atanh(delta), which is the same after the softmax (tested); the stop test
//!   takes the rank that the target has in the full context if that is above `top`, as it could
//!   never pass otherwise; without a probe that stops, all of them count, with a warning.
//! Tag: RA

pub mod faithful;
pub mod replace;
#[cfg(test)]
mod tests_of_probes;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tessera_core::dist::scalar::exp;
use tessera_core::dist::{Key, argmax, log_sum_exp};
use tessera_core::entry::{
    Claim, Exactness, Kind, Method, MethodConfig, MethodEntry, Needs, Paper, defaults_of, read_as,
    resolve_as, schema_of,
};
use tessera_core::{Backbone, Capabilities, Error, Result, TokenId, Vocabulary};

use crate::continuations::Continuations;
use replace::Replacer;

/// Where replacements come from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// Uniformly from the tokens of the same class: word, piece of a word, digits, white space, marks.
    #[default]
    Class,
    /// Uniformly from all text tokens.
    Vocabulary,
    /// Uniformly from the model's own most probable tokens at that position.
    Model,
}

/// What the importances start from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Start {
    /// Uniform noise between 0 and 1, as published.
    #[default]
    Noise,
    /// Zero: with an early stop nothing but what was observed is reported.
    Zeros,
}

/// The settings of `tessera explain`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ReAGent {
    /// Share of the positions that a step replaces; 0 to 1. Paper 0.3.
    pub rho: f64,
    /// Positions that the stop test leaves as they are; 1 or more. Published scripts 3, 5 and 8.
    pub keep: usize,
    /// At most this share of the positions stays as it is, but one does: in a short text `keep` would be
    /// all of it, and the stop test would always pass. Above 0, at most 1. Ours.
    pub keep_share: f64,
    /// The stop test passes if the target is among this many most probable tokens; 1 or more. Published 3.
    pub top: usize,
    /// Most steps of a probe; 0 to 100000. Published 3000 to 5000, on a GPU.
    pub max_steps: usize,
    /// Independent probes, of which the mean is reported; 1 to 256. Published 3 to 10.
    pub probes: usize,
    /// Where replacements come from: `class`, `vocabulary` or `model`.
    pub replace: Source,
    /// What the importances start from: `noise` (published) or `zeros`.
    pub start: Start,
    /// With `replace=model`: how many candidates a position has; 1 or more. Ours.
    pub candidates: usize,
    /// Equal seeds give equal results.
    pub seed: u64,
}

impl Default for ReAGent {
    fn default() -> Self {
        Self {
            rho: 0.3,
            keep: 5,
            keep_share: 0.25,
            top: 3,
            max_steps: 200,
            probes: 8,
            replace: Source::Class,
            start: Start::Noise,
            candidates: 10,
            seed: 0,
        }
    }
}

impl MethodConfig for ReAGent {
    fn validate(&self) -> std::result::Result<(), String> {
        if !(0.0..=1.0).contains(&self.rho) {
            return Err(format!("rho = {}: must be between 0 and 1", self.rho));
        }
        if !(self.keep_share > 0.0 && self.keep_share <= 1.0) {
            let value = self.keep_share;
            return Err(format!("keep_share = {value}: must be above 0 and at most 1"));
        }
        for (name, value, range) in [
            ("keep", self.keep, 1..=usize::MAX),
            ("top", self.top, 1..=usize::MAX),
            ("max_steps", self.max_steps, 0..=100_000),
            ("probes", self.probes, 1..=256),
            ("candidates", self.candidates, 1..=usize::MAX),
        ] {
            if !range.contains(&value) {
                let (low, high) = (range.start(), range.end());
                let range = match *high {
                    usize::MAX => format!("at least {low}"),
                    _ => format!("between {low} and {high}"),
                };
                return Err(format!("{name} = {value}: must be {range}"));
            }
        }
        Ok(())
    }
}

/// The registry's line.
pub static ENTRY: MethodEntry = MethodEntry {
    slug: "reagent",
    aliases: &["explain", "recursive-attribution"],
    name: "ReAGent",
    paper: Some(Paper {
        title: "ReAGent: Towards A Model-agnostic Feature Attribution Method for Generative Language Models",
        authors: "Zhao and Shan",
        year: 2024,
        id: "arXiv:2402.00794",
    }),
    summary: "Says which tokens of a prompt made the model choose the next one, by replacing parts of it and \
              watching the probability (`tessera explain`).",
    kind: Kind::Program,
    places: &[],
    exactness: Exactness::Lossy { what: "importances are estimates from random replacements" },
    needs: Needs {
        capabilities: Capabilities { masks: true, ..Needs::NONE.capabilities },
        ..Needs::NONE
    },
    // The abstract compares with seven methods on six models and prints no number.
    claims: &[Claim {
        setting: "six decoder-only models, token and sequence level, against seven attributions (stated in \
                  words: more faithful on average than all of them)",
        metric: "attributions beaten",
        value: 7.0,
        unit: "of 7",
        place: "abstract",
    }],
    schema: schema_of::<ReAGent>,
    defaults: defaults_of::<ReAGent>,
    neutral: None,
    read: resolve_as::<ReAGent>,
    // A program takes no part in a run.
    build: |settings| read_as::<ReAGent>("reagent", settings).map(|_| Method::Plain),
};

/// What one probe found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Probe {
    /// Importance of each explained position; they sum to 1.
    pub scores: Vec<f64>,
    /// Steps taken.
    pub steps: usize,
    /// Whether the stop test passed.
    pub stopped: bool,
}

/// Why the model chose a token.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Attribution {
    /// The token explained.
    pub target: TokenId,
    /// Its probability after the context.
    pub probability: f64,
    /// How many tokens are more probable.
    pub rank: usize,
    /// The `top` that the stop test used.
    pub top: usize,
    /// The positions explained.
    pub positions: Vec<usize>,
    /// Importance of each of them; they sum to 1.
    pub scores: Vec<f64>,
    /// What each probe found.
    pub probes: Vec<Probe>,
    /// Whether no probe stopped, so that all were averaged.
    pub none_stopped: bool,
    /// Passes of the model, and their rows.
    pub passes: usize,
    /// Rows of those passes.
    pub rows: usize,
}

/// The probability of `target` and how many tokens are more probable.
pub fn standing(logits: &[f32], target: TokenId) -> Result<(f64, usize)> {
    let Some(&own) = logits.get(target as usize) else {
        return Err(Error::setting("target", target, "a token of the model"));
    };
    let rank = logits.iter().filter(|l| **l > own).count();
    Ok((exp(f64::from(own) - log_sum_exp(logits)?), rank))
}

/// Explains why `target` (`None`: the most probable token) follows `context`, whose tokens at
/// `positions` may be replaced. `heard` is told after each step how many probes still run.
///
/// # Errors
/// No position, one outside the context, or a target that is no token; whatever a pass reports.
pub fn explain(
    backbone: &dyn Backbone,
    vocabulary: &dyn Vocabulary,
    settings: &ReAGent,
    context: &[TokenId],
    positions: &[usize],
    target: Option<TokenId>,
    heard: &mut dyn FnMut(usize, usize),
) -> Result<Attribution> {
    let numbers: Vec<u32> = (0..settings.probes as u32).collect();
    explain_probes(backbone, vocabulary, settings, context, positions, target, &numbers, heard)
}

/// [`explain`] with the probes of these numbers: a probe's result depends on its number alone.
///
/// # Errors
/// As [`explain`].
#[allow(clippy::too_many_arguments, reason = "what is explained, by what, and who hears of it")]
pub fn explain_probes(
    backbone: &dyn Backbone,
    vocabulary: &dyn Vocabulary,
    settings: &ReAGent,
    context: &[TokenId],
    positions: &[usize],
    target: Option<TokenId>,
    numbers: &[u32],
    heard: &mut dyn FnMut(usize, usize),
) -> Result<Attribution> {
    if positions.is_empty() || positions.iter().any(|&p| p >= context.len()) {
        return Err(Error::setting(
            "prompt",
            "no token",
            "at least one token that may be replaced",
        ));
    }
    let mut ask = Continuations::new(backbone)?;
    let (mut chosen, mut stand) = (0, (0.0, 0));
    ask.ask(&[context], &mut |_, logits| {
        chosen = target.map_or_else(|| argmax(logits).map(|a| a.0), Ok)?;
        stand = standing(logits, chosen)?;
        Ok(())
    })?;
    let (probability, rank) = stand;
    let top = settings.top.max(rank + 1);
    let replacer = Replacer::new(backbone, vocabulary, settings, context)?;
    let n = positions.len();
    let share = ((n as f64 * settings.keep_share) as usize).max(1);
    let keep = settings.keep.min(share);
    let mut s: Vec<Vec<f64>> = numbers
        .iter()
        .map(|&number| {
            let key = Key::new(settings.seed, number, 0).purpose(NOISE);
            let noise = settings.start == Start::Noise;
            (0..n as u32).map(|i| if noise { key.uniform(i) } else { 0.0 }).collect()
        })
        .collect();
    let mut steps = vec![0; numbers.len()];
    let mut stopped = vec![false; numbers.len()];
    for step in 0..settings.max_steps {
        let live: Vec<usize> = (0..numbers.len()).filter(|&m| !stopped[m]).collect();
        heard(step, live.len());
        if live.is_empty() {
            break;
        }
        let key =
            |m: usize, purpose| Key::new(settings.seed, numbers[m], step as u32).purpose(purpose);
        let replaced: Vec<Vec<bool>> = live
            .iter()
            .map(|&m| {
                let key = key(m, CHOICE);
                (0..n as u32).map(|i| key.uniform(i) < settings.rho).collect()
            })
            .collect();
        let text = |m: usize, purpose, change: &dyn Fn(usize) -> bool| -> Vec<TokenId> {
            let mut text = context.to_vec();
            for (i, &p) in positions.iter().enumerate().filter(|(i, _)| change(*i)) {
                debug_assert!(i < n);
                text[p] = replacer.draw(context, p, key(m, purpose));
            }
            text
        };
        let texts: Vec<Vec<TokenId>> = live
            .iter()
            .zip(&replaced)
            .map(|(&m, replaced)| text(m, PERTURB, &|i| replaced[i]))
            .collect();
        ask.ask(&texts, &mut |at, logits| {
            let delta = probability - standing(logits, chosen)?.0;
            update(&mut s[live[at]], &replaced[at], delta);
            Ok(())
        })?;
        let texts: Vec<Vec<TokenId>> = live
            .iter()
            .map(|&m| {
                let kept = best(&s[m], keep);
                text(m, STOP, &|i| !kept[i])
            })
            .collect();
        ask.ask(&texts, &mut |at, logits| {
            steps[live[at]] = step + 1;
            stopped[live[at]] = standing(logits, chosen)?.1 < top;
            Ok(())
        })?;
    }
    let probes: Vec<Probe> = (0..numbers.len())
        .map(|m| Probe { scores: softmax(&s[m]), steps: steps[m], stopped: stopped[m] })
        .collect();
    let none_stopped = !stopped.iter().any(|s| *s);
    let counted: Vec<&Probe> = probes.iter().filter(|p| p.stopped || none_stopped).collect();
    let mean = |i: usize| counted.iter().map(|p| p.scores[i]).sum::<f64>() / counted.len() as f64;
    Ok(Attribution {
        target: chosen,
        probability,
        rank,
        top,
        positions: positions.to_vec(),
        scores: (0..n).map(mean).collect(),
        none_stopped,
        passes: ask.passes(),
        rows: ask.rows(),
        probes,
    })
}

/// How much the probability of `target` falls when a position is left out of the text, for each.
///
/// # Errors
/// As [`explain`]; a context of one token.
pub fn leave_one_out(
    backbone: &dyn Backbone,
    context: &[TokenId],
    positions: &[usize],
    target: TokenId,
) -> Result<Vec<f64>> {
    let mut ask = Continuations::new(backbone)?;
    let mut falls = Vec::with_capacity(positions.len());
    let mut texts = vec![context.to_vec()];
    for &p in positions {
        let mut text = context.to_vec();
        text.remove(p);
        texts.push(text);
    }
    let mut whole = 0.0;
    ask.ask(&texts, &mut |at, logits| {
        let p = standing(logits, target)?.0;
        match at {
            0 => whole = p,
            _ => falls.push(whole - p),
        }
        Ok(())
    })?;
    Ok(falls)
}

const NOISE: u64 = 1;
const CHOICE: u64 = 2;
const PERTURB: u64 = 3;
const STOP: u64 = 4;

/// A probability that fell by `delta` speaks for what was replaced.
fn update(s: &mut [f64], replaced: &[bool], delta: f64) {
    let step = 4.0 * delta.clamp(-1.0 + 1e-6, 1.0 - 1e-6).atanh();
    for (s, _) in s.iter_mut().zip(replaced).filter(|(_, r)| **r) {
        *s += step;
    }
}

/// Which positions are among the `keep` most important ones; the earlier first among equals.
fn best(s: &[f64], keep: usize) -> Vec<bool> {
    let mut order: Vec<usize> = (0..s.len()).collect();
    order.sort_by(|&a, &b| s[b].total_cmp(&s[a]).then(a.cmp(&b)));
    let mut kept = vec![false; s.len()];
    order.into_iter().take(keep).for_each(|i| kept[i] = true);
    kept
}

/// Importances that sum to 1.
pub fn softmax(s: &[f64]) -> Vec<f64> {
    let top = s.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let parts: Vec<f64> = s.iter().map(|s| exp(s - top)).collect();
    let total: f64 = parts.iter().sum();
    parts.into_iter().map(|p| p / total).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tessera_core::entry::MethodCall;

    #[test]
    fn settings_are_checked_by_name() {
        for (text, name) in [
            ("explain:rho=1.5", "rho"),
            ("explain:keep=0", "keep"),
            ("explain:keep_share=0", "keep_share"),
            ("explain:top=0", "top"),
            ("explain:max_steps=100001", "max_steps"),
            ("explain:probes=0", "probes"),
            ("explain:candidates=0", "candidates"),
            ("explain:replace=roberta", "replace"),
        ] {
            let call = MethodCall::parse(crate::ENTRIES, text).unwrap();
            let error = ENTRY.resolve(&call.settings).unwrap_err().to_string();
            assert!(error.contains(name), "{text}: {error}");
        }
    }

    #[test]
    fn moving_the_replaced_alone_is_the_published_update_after_the_softmax() {
        for round in 0..200 {
            let key = Key::new(9, 0, round);
            let delta = 2.0 * key.uniform(99) - 1.0;
            let start: Vec<f64> = (0..7).map(|i| key.uniform(i)).collect();
            let replaced: Vec<bool> = (0..7).map(|i| key.uniform(i + 20) < 0.4).collect();
            let logit = |p: f64| (p / (1.0 - p)).ln();
            let published: Vec<f64> = start
                .iter()
                .zip(&replaced)
                .map(|(s, r)| s + logit(if *r { (delta + 1.0) / 2.0 } else { (1.0 - delta) / 2.0 }))
                .collect();
            let mut ours = start.clone();
            update(&mut ours, &replaced, delta);
            for (a, b) in softmax(&ours).iter().zip(softmax(&published)) {
                assert!((a - b).abs() < 1e-9, "{a} {b}");
            }
        }
    }

    #[test]
    fn certainty_does_not_blow_up() {
        let mut s = vec![0.0; 2];
        update(&mut s, &[true, false], 1.0);
        assert!(s[0].is_finite() && s[0] > 20.0 && s[1] == 0.0);
        assert_eq!(best(&[1.0, 3.0, 3.0, 0.0], 2), [false, true, true, false]);
    }
}

//! One request run once: its tokens, its counts, its times.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;

use serde::{Deserialize, Serialize};
use tessera_core::{Control, Event, FinishReason, Result, TokenId};
use tessera_engine::{CostCurve, Model, Request, Sequence, generate_in};

use crate::workload::Expected;

/// What decoding did, in numbers that no machine changes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Counts {
    /// Tokens committed by decoding passes (all but the first of each text).
    pub committed: usize,
    /// Decoding passes by their number of rows.
    pub passes: BTreeMap<usize, usize>,
    /// Guesses computed.
    pub guesses: usize,
    /// Guesses that became text.
    pub accepted: usize,
    /// By depth from 1: passes that guessed that deep.
    pub offered: Vec<usize>,
    /// By depth from 1: passes in which a guess of that depth became text.
    pub taken: Vec<usize>,
    /// Times a constraint judged a single token or an end.
    #[serde(default)]
    pub questions: u64,
    /// Times it judged the whole vocabulary at once.
    #[serde(default)]
    pub masks: u64,
    /// Tokens drawn: those committed by passes and the first of each text.
    #[serde(default)]
    pub drawn: usize,
    /// Cache rows that lay before the decoding passes, over layers and key heads.
    #[serde(default)]
    pub held: u64,
    /// Those of them that were read.
    #[serde(default)]
    pub read: u64,
}

impl Counts {
    /// Decoding passes.
    pub fn all_passes(&self) -> usize {
        self.passes.values().sum()
    }

    /// Tokens committed per pass; 1 for the plain run.
    pub fn per_pass(&self) -> f64 {
        ratio(self.committed as f64, self.all_passes() as f64)
    }

    /// Rows computed by all passes: token-forwards, the honest unit of work on a CPU.
    pub fn rows(&self) -> usize {
        self.passes.iter().map(|(&rows, &n)| rows * n).sum()
    }

    /// Guesses computed per pass.
    pub fn guesses_per_pass(&self) -> f64 {
        ratio(self.guesses as f64, self.all_passes() as f64)
    }

    /// Share of the cache's rows that decoding passes read, 0 to 1; 1 where it was not counted.
    pub fn read_share(&self) -> f64 {
        if self.held == 0 { 1.0 } else { self.read as f64 / self.held as f64 }
    }

    /// Share of the guesses that became text, 0 to 1; `None` without guesses.
    pub fn acceptance(&self) -> Option<f64> {
        (self.guesses > 0).then(|| self.accepted as f64 / self.guesses as f64)
    }

    /// Time of all passes by `curve`, in passes of one row.
    pub fn cost(&self, curve: &CostCurve) -> f64 {
        self.passes.iter().map(|(&rows, &n)| curve.cost(rows) * n as f64).sum()
    }

    /// Adds the counts of another run.
    pub fn add(&mut self, other: &Self) {
        self.committed += other.committed;
        self.guesses += other.guesses;
        self.accepted += other.accepted;
        self.questions += other.questions;
        self.masks += other.masks;
        self.drawn += other.drawn;
        self.held += other.held;
        self.read += other.read;
        for (&rows, &n) in &other.passes {
            *self.passes.entry(rows).or_default() += n;
        }
        for (mine, theirs) in [(&mut self.offered, &other.offered), (&mut self.taken, &other.taken)]
        {
            mine.resize(mine.len().max(theirs.len()), 0);
            mine.iter_mut().zip(theirs).for_each(|(a, b)| *a += b);
        }
    }

    fn hear(&mut self, event: &Event<'_>) {
        match *event {
            Event::Step { rows, committed } => {
                if rows > 0 {
                    *self.passes.entry(rows).or_default() += 1;
                }
                self.committed += committed;
            }
            Event::Judged { drafted, accepted, depth, .. } => {
                self.guesses += drafted;
                self.accepted += accepted;
                let deepest = self.offered.len().max(depth);
                self.offered.resize(deepest, 0);
                self.taken.resize(deepest, 0);
                self.offered[..depth].iter_mut().for_each(|n| *n += 1);
                self.taken[..accepted.min(depth)].iter_mut().for_each(|n| *n += 1);
            }
            _ => {}
        }
    }
}

/// `a / b`, 0 for nothing of nothing.
fn ratio(a: f64, b: f64) -> f64 {
    if b == 0.0 { 0.0 } else { a / b }
}

/// A request that was run.
#[derive(Debug, Clone, PartialEq)]
pub struct Trial {
    /// The tokens of choice 0.
    pub tokens: Vec<TokenId>,
    /// Why it ended.
    pub reason: FinishReason,
    /// What decoding did, over all choices.
    pub counts: Counts,
    /// Wall-clock time of the prompt.
    pub prefill_seconds: f64,
    /// Wall-clock time of decoding.
    pub decode_seconds: f64,
    /// Its part that was spent guessing.
    pub draft_seconds: f64,
    /// Share of the cache's rows that was evicted, 0 to 1.
    pub forgotten: f64,
    /// Bytes of the caches at the end.
    pub cache_bytes: usize,
    /// What the model thought of each token, if they were forced on it.
    pub logprobs: Vec<f64>,
}

impl Trial {
    /// Decoding time per committed token, in seconds; `None` if nothing was decoded.
    pub fn pace(&self) -> Option<f64> {
        let n = self.counts.committed;
        (n > 0 && self.decode_seconds > 0.0).then(|| self.decode_seconds / n as f64)
    }

    /// What speeds are ratios of, in seconds: the decoding time of the text where it has one right answer
    /// and room for more (a canvas that is done early is done), else [`Trial::pace`].
    pub fn duration(&self, expected: Option<&Expected>) -> Option<f64> {
        match expected.is_some_and(|e| e.whole) {
            true => (self.decode_seconds > 0.0).then_some(self.decode_seconds),
            false => self.pace(),
        }
    }
}

/// Runs `request` on `model`. Rows that `sequence` has of the prompt are reused, so a prompt
/// computed once serves several runs; a drafter's state lives as long as `sequence` is used with
/// the same recipe without another in between.
///
/// # Errors
/// A method that needs what the model lacks, and whatever the loop reports.
pub fn run(
    model: Model<'_>,
    sequence: &mut Sequence,
    request: &Request,
    cancel: &AtomicBool,
) -> Result<Trial> {
    request.recipe.fits(&offer(model))?;
    let mut counts = Counts::default();
    let mut listen = |event: Event<'_>| {
        counts.hear(&event);
        Control::Continue
    };
    let mut outcome = generate_in(model, sequence, request, &mut listen, cancel)?;
    let first = outcome.choices.swap_remove(0);
    let asked = outcome.stats.constraint.unwrap_or_default();
    (counts.questions, counts.masks) = (asked.evaluations, asked.masks);
    counts.drawn = outcome.stats.drawn_tokens;
    (counts.held, counts.read) = (outcome.stats.held_rows, outcome.stats.read_rows);
    Ok(Trial {
        tokens: first.tokens,
        reason: first.reason,
        counts,
        prefill_seconds: outcome.stats.prefill_seconds,
        decode_seconds: outcome.stats.decode_seconds,
        draft_seconds: outcome.stats.draft_seconds,
        forgotten: outcome.stats.forgotten(),
        cache_bytes: outcome.stats.cache_bytes,
        logprobs: first.logprobs,
    })
}

/// What methods can count on.
pub fn offer(model: Model<'_>) -> tessera_core::entry::Offer {
    tessera_core::entry::Needs {
        capabilities: model.backbone.capabilities(),
        draft_model: model.draft.is_some(),
        mask_token: model.filling.is_some(),
        any_subset: model.filling.is_some_and(|filling| filling.any_subset),
        // Whoever resolves a recipe hands it the measurements.
        calibration: true,
        ..tessera_core::entry::Needs::NONE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_become_counts() {
        let mut counts = Counts::default();
        // Two guesses in a chain, one right; a tree of four, two deep, none; a plain step.
        for event in [
            Event::Judged { choice: 0, drafted: 2, accepted: 1, depth: 2 },
            Event::Step { rows: 3, committed: 2 },
            Event::Judged { choice: 0, drafted: 4, accepted: 0, depth: 2 },
            Event::Step { rows: 5, committed: 1 },
            Event::Step { rows: 1, committed: 1 },
        ] {
            counts.hear(&event);
        }
        assert_eq!((counts.committed, counts.all_passes()), (4, 3));
        assert_eq!((&counts.offered[..], &counts.taken[..]), (&[2, 2][..], &[1, 0][..]));
        assert_eq!(counts.acceptance(), Some(1.0 / 6.0));
        let curve = CostCurve { points: vec![(1, 1.0), (5, 2.0)], draft: 0.0, draft_row: 0.0 };
        assert_eq!(counts.cost(&curve), 1.5 + 2.0 + 1.0);
        let mut twice = counts.clone();
        twice.add(&counts);
        assert_eq!((twice.guesses, twice.passes[&3], twice.offered[1]), (12, 2, 4));
        assert_eq!((Counts::default().per_pass(), Counts::default().acceptance()), (0.0, None));
    }
}

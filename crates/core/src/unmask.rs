//! Unmasking: what a denoising step fills, and which rows it computes for that.
//!
//! A canvas is filled in steps. Each computes logits of masked positions, draws a token for every one
//! ([`Fill`]), orders them, picks some, writes them. An [`Unmask`] policy takes some of these decisions
//! (its *seams*, the sites of its registry entry); the others stay the plain run's: the most confident
//! fill of the whole canvas, one a step. A [`Window`] policy decides beside it which rows are computed.
//!
//! Policies return plans; the loop checks and applies them.

use std::fmt::Debug;
use std::ops::Range;

use crate::backbone::{Backbone, Vocabulary};
use crate::canvas::Canvas;
use crate::dist::{Key, Sampling};
use crate::{Position, Result, TokenId};

/// The purpose of a policy's own draws ([`Key::purpose`]).
const UNMASK: u64 = 0x07a5_4000;

/// What a model thinks of the masked positions that a pass computed.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Prediction {
    /// The positions, ascending.
    pub positions: Vec<Position>,
    /// Tokens of the vocabulary.
    pub vocab: usize,
    /// Logits, `positions x vocab`; the mask token's is `-inf`.
    pub logits: Vec<f32>,
    /// Their softmax at temperature 1, nothing truncated: `positions x vocab`.
    pub probabilities: Vec<f32>,
}

impl Prediction {
    /// The logits of the `i`-th position.
    pub fn logits(&self, i: usize) -> &[f32] {
        &self.logits[i * self.vocab..(i + 1) * self.vocab]
    }

    /// The distribution at the `i`-th position.
    pub fn law(&self, i: usize) -> &[f32] {
        &self.probabilities[i * self.vocab..(i + 1) * self.vocab]
    }

    /// Where `position` stands in [`Prediction::positions`].
    pub fn find(&self, position: Position) -> Option<usize> {
        self.positions.binary_search(&position).ok()
    }

    /// The entropy of the `i`-th distribution, in nats.
    pub fn entropy(&self, i: usize) -> f64 {
        entropy(self.law(i))
    }
}

/// `-sum p ln p`, in nats; sums in index order.
pub fn entropy(law: &[f32]) -> f64 {
    law.iter().filter(|&&p| p > 0.0).map(|&p| -f64::from(p) * f64::from(p).ln()).sum()
}

/// A token that could be written.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fill {
    /// Where.
    pub position: Position,
    /// What.
    pub token: TokenId,
    /// The token's probability at temperature 1, nothing truncated.
    pub probability: f32,
    /// How soon it should be written; more is sooner. The plain run's is the probability.
    pub score: f64,
}

/// The indices of `fills`, the most certain first; of equal ones the leftmost.
pub fn ranked(fills: &[Fill]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..fills.len()).collect();
    order.sort_by(|&a, &b| {
        let by_score = fills[b].score.total_cmp(&fills[a].score);
        by_score.then(fills[a].position.cmp(&fills[b].position))
    });
    order
}

/// What every seam knows of a step.
#[derive(Clone, Copy)]
pub struct Evidence<'a> {
    /// The canvas before the step.
    pub canvas: &'a Canvas,
    /// Number of the step, from 0.
    pub step: u32,
    /// Masks of the canvas before the first step.
    pub length: usize,
    /// Positions that may be filled now ([`Unmask::region`]).
    pub region: &'a Range<usize>,
    /// What the model thinks; may cover positions outside the region.
    pub prediction: &'a Prediction,
    /// The request's seed.
    pub seed: u64,
    /// Index of the text among those of the request.
    pub choice: u32,
    /// How the request draws tokens.
    pub sampling: Sampling,
    /// Tokens as bytes.
    pub vocabulary: &'a dyn Vocabulary,
    /// A causal model with the same vocabulary, if the session has one.
    pub guide: Option<&'a dyn Backbone>,
}

impl Evidence<'_> {
    /// The key of the policy's own draws at `position`, which differ from step to step and are used
    /// for nothing else. `name` tells a policy's purposes apart.
    pub fn key(&self, position: Position, name: u64) -> Key {
        let key = Key::new(self.seed, self.choice, position);
        key.purpose(UNMASK ^ name).purpose(u64::from(self.step))
    }

    /// Whether `position` may be filled now.
    pub fn is_open(&self, position: Position) -> bool {
        self.region.contains(&(position as usize))
    }
}

/// What the canvas starts as.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Start {
    /// Tokens written before the first step, as [`crate::canvas::Origin::Prior`].
    pub prior: Vec<(Position, TokenId)>,
    /// Positions that stay masks but show a little of a token to the first pass.
    pub hints: Vec<Hint>,
    /// New number of masks, if the answer's length is known better than the request does; at most
    /// the request's.
    pub length: Option<usize>,
}

/// Part of a token's embedding, mixed into a mask's for one pass.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Hint {
    /// Where.
    pub position: Position,
    /// The token.
    pub token: TokenId,
    /// The token's share of the embedding, 0 to 1; the rest is the mask's.
    pub share: f32,
}

/// What a policy is asked before the first step.
pub struct InitContext<'a> {
    /// The canvas: prompt, template and masks.
    pub canvas: &'a Canvas,
    /// A guess of the answer that came with the request; empty without one.
    pub prior: &'a [TokenId],
    /// The request's seed.
    pub seed: u64,
    /// Index of the text among those of the request.
    pub choice: u32,
    /// Tokens as bytes.
    pub vocabulary: &'a dyn Vocabulary,
    /// A causal model with the same vocabulary, if the session has one.
    pub guide: Option<&'a dyn Backbone>,
}

impl InitContext<'_> {
    /// The key of the policy's own draws at `position`.
    pub fn key(&self, position: Position) -> Key {
        Key::new(self.seed, self.choice, position).purpose(UNMASK)
    }
}

/// Looks at canvases that are not (yet) the text's.
pub trait Look {
    /// What the model thinks of each canvas, all computed in one pass, at the masks of the step's region
    /// (more where the window computes more). Counts as one pass, and all its rows.
    ///
    /// # Errors
    /// Whatever the pass reports.
    fn look(&mut self, canvases: &[Canvas]) -> Result<Vec<Prediction>>;

    /// The fills of a prediction of `canvas`, drawn and scored as the loop does.
    ///
    /// # Errors
    /// Logits that are no distribution.
    fn fills(&mut self, canvas: &Canvas, prediction: &Prediction) -> Result<Vec<Fill>>;
}

/// What a step writes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Commit {
    /// Masks to fill; unique, at least one.
    pub fills: Vec<Fill>,
    /// Committed or guessed tokens, those of `fills` included, to mask again afterwards.
    pub remask: Vec<Position>,
    /// What the model thinks of the canvas as it is then, if the policy has looked at it already: the
    /// next step computes nothing.
    pub next: Option<Prediction>,
}

/// Whether a canvas goes on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum End {
    /// As long as there are masks.
    #[default]
    GoOn,
    /// It goes on, shorter: the first `len` tokens stay.
    Truncate {
        /// Tokens that stay, prompt included.
        len: usize,
    },
    /// It is done, masks or not.
    Done,
}

/// Takes decisions of a denoising step. One instance per text.
///
/// A policy is asked at the seams that its registry entry names; an answer of `None` leaves the
/// decision to the plain run.
pub trait Unmask: Send + Debug {
    /// [`crate::entry::Site::Init`]: what the canvas starts as.
    ///
    /// # Errors
    /// Whatever a pass of the guide reports.
    fn init(&mut self, context: &InitContext<'_>) -> Result<Start> {
        let _ = context;
        Ok(Start::default())
    }

    /// [`crate::entry::Site::Region`]: the positions that may be filled now; must hold a mask.
    fn region(&mut self, canvas: &Canvas) -> Option<Range<usize>> {
        let _ = canvas;
        None
    }

    /// [`crate::entry::Site::Score`]: rewrites the scores of the fills, and the tokens if it draws
    /// them in its own way.
    ///
    /// # Errors
    /// Whatever a pass of the guide reports.
    fn score(&mut self, evidence: &Evidence<'_>, fills: &mut [Fill]) -> Result<()> {
        let _ = (evidence, fills);
        Ok(())
    }

    /// [`crate::entry::Site::Quota`]: the fills (by index) to write, unique, at least one. Only fills
    /// that are open ([`Evidence::is_open`]), unless the entry also takes the region.
    ///
    /// # Errors
    /// Whatever a pass of the guide reports.
    fn quota(&mut self, evidence: &Evidence<'_>, fills: &[Fill]) -> Result<Option<Vec<usize>>> {
        let _ = (evidence, fills);
        Ok(None)
    }

    /// [`crate::entry::Site::Commit`]: what becomes of the chosen fills.
    ///
    /// # Errors
    /// Whatever a pass reports.
    fn commit(
        &mut self,
        evidence: &Evidence<'_>,
        fills: &[Fill],
        chosen: &[usize],
        look: &mut dyn Look,
    ) -> Result<Option<Commit>> {
        let _ = (evidence, fills, chosen, look);
        Ok(None)
    }

    /// [`crate::entry::Site::End`]: whether the canvas goes on, asked after every step.
    fn end(&mut self, canvas: &Canvas, step: u32, vocabulary: &dyn Vocabulary) -> End {
        let _ = (canvas, step, vocabulary);
        End::GoOn
    }

    /// Whether it goes by masks outside the region too, so that they are predicted.
    fn is_wide(&self) -> bool {
        false
    }

    /// What it has counted in this text, by name; told as [`crate::Event::Counted`] at its end.
    fn counts(&self) -> Vec<(&'static str, f64)> {
        Vec::new()
    }

    /// Whether its [`Commit`]s may mask again. Where nothing does, a text is finished as soon as all
    /// before its first end token is written.
    fn remasks(&self) -> bool {
        false
    }
}

/// What a window policy knows before a pass.
pub struct WindowView<'a> {
    /// The canvas.
    pub canvas: &'a Canvas,
    /// Number of the step, from 0.
    pub step: u32,
    /// Positions that may be filled in this step.
    pub region: &'a Range<usize>,
    /// Rows that the cache holds: positions `0..rows`; 0 before the first pass.
    pub rows: usize,
    /// Positions whose token has changed since their row was computed, ascending.
    pub stale: &'a [Position],
    /// How the model fills masks.
    pub filling: crate::canvas::Filling,
}

/// Which rows a pass computes and reads.
#[derive(Debug, Clone, PartialEq)]
pub enum WindowPlan {
    /// The cache is emptied and the first `len` positions are computed together; positions beyond are
    /// not seen. All rows are kept in the cache.
    Whole {
        /// Positions computed.
        len: usize,
    },
    /// Rows that the cache holds are computed again in place; they read each other and the cached ones.
    Part {
        /// Positions computed, ascending, unique. Predictions are of the masks that are computed
        /// together with their predicting row ([`crate::canvas::Filling::row_of`]).
        compute: Vec<Position>,
        /// The cached positions that are read besides, ascending, unique; `None` for all.
        keys: Option<Vec<Position>>,
    },
}

/// Decides which rows a denoising pass computes, and which cached ones it reads. One instance per
/// text.
pub trait Window: Send + Debug {
    /// The plan of the next pass.
    ///
    /// # Errors
    /// Settings that the model does not allow.
    fn plan(&mut self, view: &WindowView<'_>) -> Result<WindowPlan>;

    /// Hears what a step has written.
    fn committed(&mut self, canvas: &Canvas, fills: &[Fill]) {
        let _ = (canvas, fills);
    }

    /// Whether the policy takes the choice of fills of this step as well: `Some(n)` restricts the
    /// fills to the `n` leftmost masks of the region. Asked after [`Window::plan`].
    fn leftmost(&self) -> Option<usize> {
        None
    }

    /// Whether every row whose token has changed is computed again in the next pass. The loop holds
    /// the policy's plans to it.
    fn rewrites(&self) -> bool {
        true
    }

    /// The rows, ascending, that a pass over a canvas with other fills in the view's region computes
    /// while it reads all others as the cache holds them. `None` if what the cache holds depends on
    /// the canvases that were computed on the way: then nothing can be looked at ahead.
    fn ahead(&self, view: &WindowView<'_>) -> Option<Vec<Position>> {
        let _ = view;
        None
    }
}

//! Reduction of what is remembered: which cache rows stay, and which of them a pass reads.
//!
//! A [`Reduce`] policy acts at up to four places, each of which does nothing unless it is overridden:
//! inside the prompt's passes and inside the decoding passes (as [`Sites`]), once after the prompt,
//! and after every step, when it is settled which rows became text. It returns an [`Eviction`]; the
//! loop applies it. Because evictions follow the commitment, a guess that failed leaves no trace in
//! a policy, and nothing has to be undone.

use std::fmt::Debug;
use std::sync::Arc;

use crate::backbone::Vocabulary;
use crate::cache::CacheTable;
use crate::calibration::Calibration;
use crate::dist::Key;
use crate::draft::Lent;
use crate::pass::{HeadSum, Sites};
use crate::plan::KeepPlan;
use crate::{Position, Result, TokenId};

/// The purpose of a reduction's own draws ([`Key::purpose`]).
const REDUCE: u64 = 0x4ed0ce;

/// What becomes of a cache.
#[derive(Debug, Clone, PartialEq)]
pub struct Eviction {
    /// The rows that stay, per layer and key head.
    pub plan: KeepPlan,
    /// Whether the rows that stay take their rank as position, 0 upwards, and the text goes on behind
    /// them. Every head then has to keep equally many. The keys are held plain from then on.
    pub rerank: bool,
}

/// What a policy is asked once the prompt has been computed.
pub struct ReduceContext<'a> {
    /// The prompt.
    pub prompt: &'a [TokenId],
    /// The request's seed.
    pub seed: u64,
    /// The model with the cache of the whole prompt. A policy may run passes of its own, but leaves
    /// the cache as it was ([`crate::Write::Discard`]).
    pub target: Lent<'a>,
    /// Tokens as bytes.
    pub vocabulary: &'a dyn Vocabulary,
}

impl ReduceContext<'_> {
    /// The key of the policy's own draws, which nothing else uses.
    pub fn key(&self) -> Key {
        Key::new(self.seed, 0, self.prompt.len() as Position).purpose(REDUCE)
    }
}

/// The attention that the rows of a step gave to the rows of the cache.
///
/// Column `c` below `cached` is the row `c` of the cache as it was before the step (a head that held
/// fewer rows gave nothing to the columns behind them); column `cached + i` is the step's row `i`.
#[derive(Debug, Clone, Copy, Default)]
pub struct StepReceived<'a> {
    /// `rows x groups x columns` for every layer; empty unless [`Reduce::received`] asked for it.
    pub layers: &'a [Vec<f32>],
    /// Groups of heads that were summed apart.
    pub groups: usize,
    /// Rows of the longest head before the step.
    pub cached: usize,
    /// Columns: `cached` and the step's rows.
    pub columns: usize,
}

impl<'a> StepReceived<'a> {
    /// What the step's row `row` gave in `layer` by the heads of `group`, by column.
    pub fn of(&self, layer: usize, row: usize, group: usize) -> &'a [f32] {
        let at = (row * self.groups + group) * self.columns;
        &self.layers[layer][at..at + self.columns]
    }
}

/// A decoding step after its tokens were committed.
pub struct CommittedStep<'a> {
    /// The rows of the cache, those of the step included: they are the last ones of every head.
    pub table: &'a CacheTable,
    /// How many rows the step added.
    pub rows: usize,
    /// Prompt and text whose rows have been computed.
    pub tokens: &'a [TokenId],
    /// How many of them are the prompt.
    pub prompt: usize,
    /// The request's seed.
    pub seed: u64,
    /// Index of the text among those of the request.
    pub choice: u32,
    /// Attention received from the step's rows, if it was asked for.
    pub received: StepReceived<'a>,
}

impl CommittedStep<'_> {
    /// The key of the policy's own draws at this step, which nothing else uses.
    pub fn key(&self) -> Key {
        Key::new(self.seed, self.choice, self.tokens.len() as Position).purpose(REDUCE)
    }
}

/// Decides what of the cache is kept or read. One instance per sequence.
pub trait Reduce: Send + Debug {
    /// An independent copy, for another text that continues the same prompt.
    fn fork(&self) -> Box<dyn Reduce>;

    /// Hears what was measured of the model, before anything else, if the method's entry asks for it
    /// ([`crate::entry::Needs::calibration`]).
    ///
    /// # Errors
    /// Settings that the model's shape does not allow.
    fn calibrate(&mut self, calibration: &Arc<Calibration>) -> Result<()> {
        let _ = calibration;
        Ok(())
    }

    /// Rows of a pass over the prompt, for a policy that acts inside those passes; `None` leaves it
    /// to the request.
    fn chunk(&self) -> Option<usize> {
        None
    }

    /// The part it takes in the passes over the prompt. A cache made so is never taken for a plain
    /// one: a policy whose settings change nothing returns `None`.
    fn prefill_sites(&mut self) -> Option<&mut dyn Sites> {
        None
    }

    /// The part it takes in the decoding passes. `None` where its settings change nothing.
    fn decode_sites(&mut self) -> Option<&mut dyn Sites> {
        None
    }

    /// Decides what stays of the prompt, once it has been computed; `None` keeps everything.
    ///
    /// # Errors
    /// Whatever a pass reports.
    fn after_prefill(&mut self, context: &mut ReduceContext<'_>) -> Result<Option<Eviction>> {
        let _ = context;
        Ok(None)
    }

    /// Whether [`Reduce::committed`] needs the attention that the steps' rows give, and summed over
    /// which heads.
    fn received(&self) -> Option<HeadSum> {
        None
    }

    /// Decides what stays after a step; `None` keeps everything.
    ///
    /// # Errors
    /// Whatever the policy finds wrong.
    fn committed(&mut self, step: &CommittedStep<'_>) -> Result<Option<Eviction>> {
        let _ = step;
        Ok(None)
    }
}

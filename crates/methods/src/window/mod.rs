//! Policies that choose which rows a denoising pass computes; the others are read from the cache as they
//! were when they were computed last.
//!
//! Where nothing is written, keys and values of a row of the first layer depend on its token and position
//! only. In deeper layers they depend on every token, so a row that is not computed again knows less of
//! what has been written since: that is what these policies lose.

pub mod dual_cache;
pub mod freecache;
pub mod prefix_cache;
pub mod prompt_cache;
pub mod window_diffusion;

use std::ops::Range;

use tessera_core::Capabilities;
use tessera_core::entry::{Needs, Place, Role, Site};
use tessera_core::{Position, WindowView};

use crate::unmask::DENOISER;

/// The place of every policy here.
pub(crate) const PLACES: &[Place] = &[Place { role: Role::Reduce, site: Site::Window }];

/// What every policy here needs: rows that are computed again in place, beside a chosen set of others.
pub(crate) const REFRESHING: Needs = Needs {
    capabilities: Capabilities { writes: true, keys: true, ..DENOISER.capabilities },
    ..DENOISER
};

/// What every policy here says may change.
pub(crate) const STALE: &str =
    "rows that are not computed again know less of what has been written";

/// The rows `range`, from the one that predicts the first of them, and those that are stale; ascending.
pub(crate) fn rows(view: &WindowView<'_>, range: Range<usize>) -> Vec<Position> {
    let fresh = span(view, range);
    let behind = view.stale.iter().copied();
    joined(behind.filter(|&p| (p as usize) < view.rows).chain(fresh))
}

/// The rows `range`, from the one that predicts the first of them.
pub(crate) fn span(view: &WindowView<'_>, range: Range<usize>) -> Range<Position> {
    view.filling.row_of(range.start as Position)..range.end.min(view.rows) as Position
}

/// Ascending, each once.
pub(crate) fn joined(list: impl Iterator<Item = Position>) -> Vec<Position> {
    let mut list: Vec<Position> = list.collect();
    list.sort_unstable();
    list.dedup();
    list
}

/// A canvas and a cache without a model, for tests of policies.
#[cfg(test)]
pub(crate) struct Play {
    pub(crate) canvas: tessera_core::Canvas,
    pub(crate) region: Range<usize>,
    pub(crate) shift: bool,
    rows: usize,
    stale: Vec<Position>,
    step: u32,
}

#[cfg(test)]
impl Play {
    /// `prompt` tokens, then `length` masks, all of them open.
    pub(crate) fn new(prompt: usize, length: usize) -> Self {
        let canvas = tessera_core::Canvas::new(&vec![1; prompt], length, 99);
        let region = prompt..canvas.len();
        Self { canvas, region, shift: false, rows: 0, stale: Vec::new(), step: 0 }
    }

    /// The next plan, as if its pass had been made.
    pub(crate) fn plan(
        &mut self,
        window: &mut dyn tessera_core::Window,
    ) -> tessera_core::WindowPlan {
        let view = WindowView {
            canvas: &self.canvas,
            step: self.step,
            region: &self.region,
            rows: self.rows,
            stale: &self.stale,
            filling: tessera_core::Filling { mask: 99, shift: self.shift, any_subset: false },
        };
        let plan = window.plan(&view).unwrap();
        match &plan {
            tessera_core::WindowPlan::Whole { len } => {
                self.stale.clear();
                self.rows = *len;
            }
            tessera_core::WindowPlan::Part { compute, .. } => {
                self.stale.retain(|p| !compute.contains(p));
            }
        }
        self.step += 1;
        plan
    }

    /// The computed rows of the next plan, which must compute a part.
    pub(crate) fn part(&mut self, window: &mut dyn tessera_core::Window) -> Vec<Position> {
        match self.plan(window) {
            tessera_core::WindowPlan::Part { compute, .. } => compute,
            other => panic!("{other:?}"),
        }
    }

    /// Writes token 5 at `positions`.
    pub(crate) fn write(&mut self, window: &mut dyn tessera_core::Window, positions: &[Position]) {
        let fill = |&position: &Position| tessera_core::Fill {
            position,
            token: 5,
            probability: 1.0,
            score: 1.0,
        };
        let fills: Vec<_> = positions.iter().map(fill).collect();
        for &position in positions {
            self.canvas.fill(position, 5, self.step).unwrap();
        }
        self.stale.extend(positions);
        window.committed(&self.canvas, &fills);
    }
}

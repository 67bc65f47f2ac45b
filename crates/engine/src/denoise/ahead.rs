//! Looks at what a step might write.

use std::ops::Range;

use tessera_core::dist::Sampler;
use tessera_core::{Canvas, Fill, Look, Prediction, Result, Window};

use super::draw;
use super::sight::Sight;

/// What a policy looks through while it decides what becomes of a step's fills.
pub(super) struct Ahead<'t, 'a> {
    pub(super) sight: &'t mut Sight<'a>,
    pub(super) sampler: &'t mut Sampler,
    pub(super) region: &'t Range<usize>,
    /// Whether masks outside the region are shown too.
    pub(super) wide: bool,
    /// Seed and choice of the draws.
    pub(super) key: (u64, u32),
    pub(super) step: u32,
    pub(super) window: Option<&'t dyn Window>,
}

impl Look for Ahead<'_, '_> {
    fn look(&mut self, canvases: &[Canvas]) -> Result<Vec<Prediction>> {
        match self.window {
            None => self.sight.look(canvases, self.region, self.wide),
            Some(window) => {
                self.sight.look_through(canvases, self.region, self.wide, self.step, window)
            }
        }
    }

    fn fills(&mut self, _canvas: &Canvas, prediction: &Prediction) -> Result<Vec<Fill>> {
        draw(self.sampler, prediction, self.key)
    }
}

//! Skipping layers: which layers a decoding step runs.

use std::fmt::Debug;

use crate::Result;

/// Decides which layers a decoding step runs, for all sequences of a pass alike.
///
/// The layers of a step must contain those of every later step: what a layer skipped has no keys
/// there, so nothing later may read them.
pub trait LayerSchedule: Send + Debug {
    /// Fills `active` (empty) with the layers, ascending, of the decoding pass number `step` (from
    /// 0) of a model with `layers` layers. Leaving it empty runs all of them.
    ///
    /// # Errors
    /// [`crate::Error::Method`] for a schedule that does not fit the model.
    fn layers(&mut self, step: usize, layers: usize, active: &mut Vec<usize>) -> Result<()>;
}

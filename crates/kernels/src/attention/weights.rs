//! The probabilities themselves, for those who ask to see them.

use super::schedule::{AttendScratch, score_rows};
use super::{AttendInput, length};
use crate::error::Result;
use crate::{Pool, elementwise};

/// Computes the attention probabilities of every (row, head) over the cache rows into `out`,
/// `[rows][heads][layer.rows()]`; 0 where a key is not visible.
///
/// The scores are those of [`attend`](super::attend), bit for bit; the normalising sum runs over
/// cache rows and in one piece, so a probability may differ from the weight used there by
/// rounding. Allocates, and takes several times as long: meant for inspection.
///
/// Errors: as [`attend`](super::attend).
pub fn attention_weights(pool: &Pool, input: &AttendInput<'_>, out: &mut [f32]) -> Result<()> {
    input.check()?;
    let keys = input.layer.rows();
    length("attention probabilities", input.rows * input.heads * keys, out.len())?;
    out.fill(f32::NEG_INFINITY);
    score_rows(pool, input, &mut AttendScratch::new(), out, keys);
    if keys > 0 {
        for row in out.chunks_exact_mut(keys) {
            elementwise::softmax(pool, row);
        }
    }
    Ok(())
}

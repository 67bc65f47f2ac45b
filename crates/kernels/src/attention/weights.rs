//! The probabilities themselves, for those who ask to see them.

use super::schedule::{AttendScratch, Received, receive, score_rows};
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

/// Sums what [`attention_weights`] computes into `out`: over the query heads of a key/value head if
/// `together`, and unless `by_row` over all rows; `[rows or 1][heads or kv_heads][layer.rows()]`.
///
/// Needs memory for the probabilities of one unit of rows per thread and for `out`, however many rows
/// there are. Sums run in row order and do not depend on the number of threads.
///
/// Errors: as [`attend`](super::attend).
pub fn attention_received(
    pool: &Pool,
    input: &AttendInput<'_>,
    scratch: &mut AttendScratch,
    together: bool,
    by_row: bool,
    out: &mut [f32],
) -> Result<()> {
    input.check()?;
    let rows = if by_row { input.rows } else { 1 };
    let lines = if together { input.layer.kv_heads() } else { input.heads };
    length("attention received", rows * lines * input.layer.rows(), out.len())?;
    out.fill(0.0);
    if !out.is_empty() && input.rows > 0 {
        receive(pool, input, scratch, Received { together, by_row }, out);
    }
    Ok(())
}

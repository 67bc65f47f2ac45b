//! Attention over a half-precision cache for any mask, with one order of arithmetic.
//!
//! A query's visible keys are taken in slot order and folded in chunks of [`CHUNK`] slots. With
//! `s_j` the score of the key at slot `j`, a chunk gives
//!
//! ```text
//! m = max s_j      p_j = e^(s_j - m)      l = sum p_j      o = sum p_j v_j
//! ```
//!
//! where `l` is summed in 16 lanes by `slot mod 16` and then over the lanes in a fixed tree, and
//! each value of `o` is one chain of fused multiply-adds in slot order. Chunks are merged from
//! left to right by the usual rescaling; empty ones are skipped; the result is `o / l`, or zero
//! where a query sees nothing. A score is one chain of fused multiply-adds over the dimension.
//!
//! Where fewer than half of the slots between a chunk's first and last visible key are visible
//! (a sparse read set), the keys are computed side by side, gathered by number, and each weight is
//! then added to the lane that its slot names: the time is that of the visible keys, the bits are
//! those of the full chunk with the others masked.
//!
//! A table made by [`SpanTable::after`] orders keys by rank instead of position: chunks then hold
//! [`CHUNK`] *visible* keys, which is as fast as a sparse read gets and equals the masked full
//! read to rounding.
//!
//! So a query's result depends on its visible keys and their slots only: not on the other rows of
//! the call, on the cache rows that hold the keys, on the number of threads, nor (on processors
//! with fused multiply-add) on the instruction path.

mod micro;
mod rank;
mod schedule;
mod spans;
mod strewn;
mod tile;
mod weights;

#[cfg(test)]
mod tests;

pub use rank::{Pooling, RankInput, RankScratch, rank};
pub use schedule::AttendScratch;
pub use spans::{Span, SpanTable};
pub use weights::{attention_received, attention_weights};

use crate::error::{KernelError, Result};
use crate::{KvLayer, Pool};

/// Order slots folded as one chunk.
pub const CHUNK: usize = 512;

/// A score added to `q . k`: `data[query row * stride + cache row]`, the same for every head.
#[derive(Debug, Clone, Copy)]
pub struct Bias<'a> {
    /// The scores; minus infinity hides a key.
    pub data: &'a [f32],
    /// Values from one query row to the next; at least the rows of the cache.
    pub stride: usize,
}

/// One attention call: some query rows against one layer of the cache.
#[derive(Debug, Clone, Copy)]
pub struct AttendInput<'a> {
    /// Keys and values, those of this pass already written.
    pub layer: &'a KvLayer,
    /// Queries `[rows][heads][dim]`, rotary positions applied.
    pub q: &'a [f32],
    /// Number of query rows.
    pub rows: usize,
    /// Query heads, a multiple of the layer's key/value heads: head `h` reads key/value head
    /// `h / (heads / kv_heads)`.
    pub heads: usize,
    /// Factor of `q . k`, applied to the query; usually `1 / sqrt(dim)`.
    pub scale: f32,
    /// Limits scaled scores to `cap * tanh(score / cap)`, before the bias.
    pub softcap: Option<f32>,
    /// Additive scores.
    pub bias: Option<Bias<'a>>,
    /// The visible keys: a list per row, or per row and key/value head.
    pub spans: &'a SpanTable,
}

impl AttendInput<'_> {
    /// Query heads that share one key/value head.
    pub(crate) fn group(&self) -> usize {
        self.heads / self.layer.kv_heads()
    }

    /// The spans of a query row for a key/value head.
    pub(crate) fn list(&self, row: usize, head: usize) -> &[Span] {
        if self.spans.is_per_head() {
            self.spans.list(row * self.layer.kv_heads() + head)
        } else {
            self.spans.list(row)
        }
    }

    /// Checks every size and every span, so that the kernels may trust them.
    fn check(&self) -> Result<()> {
        let kv_heads = self.layer.kv_heads();
        if self.heads == 0 || !self.heads.is_multiple_of(kv_heads) {
            return Err(KernelError::Mismatch(
                "query heads are not a multiple of the key/value heads",
            ));
        }
        let values = self
            .rows
            .checked_mul(self.heads)
            .and_then(|n| n.checked_mul(self.layer.dim()))
            .ok_or(KernelError::Overflow("queries"))?;
        length("queries", values, self.q.len())?;
        let per_head = self.spans.is_per_head();
        let lists = if per_head { self.rows * kv_heads } else { self.rows };
        length("visible-key lists", lists, self.spans.lists())?;
        let shortest = (0..kv_heads).map(|h| self.layer.head_rows(h)).min().unwrap_or(0);
        self.spans.check(|list| {
            if per_head { self.layer.head_rows(list % kv_heads) } else { shortest }
        })?;
        let common = self.spans.common();
        if !common.is_empty() {
            length("lists of common keys", kv_heads, common.len())?;
            for (head, list) in common.iter().enumerate() {
                // A maximum instead of a search: it runs over all of them, but sixteen at a time.
                let last = list.iter().copied().max().map_or(0, |row| row as usize + 1);
                if last > self.layer.head_rows(head) {
                    return Err(KernelError::Mismatch("a common key lies past the cache rows"));
                }
            }
        }
        if let Some(cap) = self.softcap
            && !(cap > 0.0 && cap.is_finite())
        {
            return Err(KernelError::Mismatch("a soft cap must be positive and finite"));
        }
        if let Some(bias) = self.bias {
            let rows = self.layer.rows();
            if bias.stride < rows {
                return Err(KernelError::Mismatch("the bias is narrower than the cache"));
            }
            let need = self.rows.saturating_sub(1).saturating_mul(bias.stride) + rows;
            if self.rows > 0 && bias.data.len() < need {
                let got = bias.data.len();
                return Err(KernelError::Length { what: "bias", expected: need, got });
            }
        }
        Ok(())
    }
}

/// Computes attention into `out`, `[rows][heads][dim]`; see the module's page for the order.
///
/// Allocates nothing once `scratch` has grown to the sizes in use. A value that is infinite or
/// NaN in a cache row visible to *some* row of the call may make other rows NaN: absent keys
/// count with weight zero.
///
/// Errors: a length that does not fit, spans that are unsorted or reach past the cache.
pub fn attend(
    pool: &Pool,
    input: &AttendInput<'_>,
    scratch: &mut AttendScratch,
    out: &mut [f32],
) -> Result<()> {
    input.check()?;
    length("attention output", input.q.len(), out.len())?;
    schedule::run(pool, input, scratch, out);
    Ok(())
}

pub(crate) fn length(what: &'static str, expected: usize, got: usize) -> Result<()> {
    if expected == got { Ok(()) } else { Err(KernelError::Length { what, expected, got }) }
}

//! Internals shown to those who tap them, in the order in which they asked.

use tessera_core::{HeadSum, HiddenSite, Received, Result, Segment, SegmentReveal, Taps, Write};
use tessera_kernels::Pool;
use tessera_kernels::attention::{
    AttendInput, AttendScratch, attention_received, attention_weights,
};

use super::forward::Scratch;
use super::segment::State;
use super::store::kernel;

/// Rows still running, spread over all rows of the segment; dropped rows are zero.
pub(super) fn spread(values: &[f32], width: usize, active: &[u32], rows: usize) -> Vec<f32> {
    let mut out = vec![0.0; rows * width];
    for (from, &to) in values.chunks_exact(width).zip(active) {
        out[to as usize * width..(to as usize + 1) * width].copy_from_slice(from);
    }
    out
}

pub(super) fn tap_hidden(
    taps: Taps<'_>,
    site: HiddenSite,
    segments: &[Segment<'_>],
    s: &Scratch,
    hidden: usize,
    revealed: &mut [SegmentReveal],
) {
    // In the order asked for, whichever layer comes first.
    for (slot, _) in taps.hidden.iter().enumerate().filter(|(_, want)| **want == site) {
        for ((segment, state), out) in segments.iter().zip(&s.states).zip(revealed.iter_mut()) {
            let (at, n) = (state.offset, state.active.len());
            let block = spread(
                &s.x[at * hidden..(at + n) * hidden],
                hidden,
                &state.active,
                segment.positions.len(),
            );
            if out.hidden.len() <= slot {
                out.hidden.resize(taps.hidden.len(), Vec::new());
            }
            out.hidden[slot] = block;
        }
    }
}

/// Puts a layer's block at every place where the taps asked for that layer.
pub(super) fn reveal_layer(
    out: &mut Vec<Vec<f32>>,
    wanted: &[usize],
    layer: usize,
    block: impl Fn() -> Vec<f32>,
) {
    for (slot, _) in wanted.iter().enumerate().filter(|(_, l)| **l == layer) {
        if out.len() <= slot {
            out.resize(wanted.len(), Vec::new());
        }
        out[slot] = block();
    }
}

/// Attention probabilities with the columns that [`SegmentReveal::attention`] promises. `held` is
/// the number of cached rows of each key head, behind which the rows of the pass lie.
pub(super) fn attention_rows(
    pool: &Pool,
    input: &AttendInput<'_>,
    segment: &Segment<'_>,
    state: &State,
    held: &[usize],
) -> Result<Vec<f32>> {
    let stored = input.layer.rows();
    let rows = segment.positions.len();
    let columns = state.cached + rows;
    let mut by_row = vec![0.0; input.rows * input.heads * stored];
    attention_weights(pool, input, &mut by_row).map_err(kernel)?;
    let mut out = vec![0.0; rows * input.heads * columns];
    for (i, &a) in state.active.iter().enumerate() {
        for h in 0..input.heads {
            let from = &by_row[(i * input.heads + h) * stored..][..stored];
            let to = &mut out[(a as usize * input.heads + h) * columns..][..columns];
            add_columns(from, to, held[h * held.len() / input.heads], segment, state);
        }
    }
    Ok(out)
}

/// Attention received, in the layout that [`SegmentReveal::received`] promises; `held` as above.
pub(super) fn received(
    pool: &Pool,
    input: &AttendInput<'_>,
    scratch: &mut AttendScratch,
    wanted: Received<'_>,
    segment: &Segment<'_>,
    state: &State,
    held: &[usize],
) -> Result<Vec<f32>> {
    let (stored, kv_heads) = (input.layer.rows(), held.len());
    let columns = state.cached + segment.positions.len();
    let groups = wanted.heads.groups(input.heads, kv_heads);
    let together = wanted.heads != HeadSum::Query;
    let lines = if together { kv_heads } else { input.heads };
    let rows = |all: usize| if wanted.by_row { all } else { 1 };
    let mut sums = vec![0.0; rows(input.rows) * lines * stored];
    attention_received(pool, input, scratch, together, wanted.by_row, &mut sums).map_err(kernel)?;
    let mut out = vec![0.0; rows(segment.positions.len()) * groups * columns];
    for i in 0..rows(input.rows) {
        let row = if wanted.by_row { state.active[i] as usize } else { 0 };
        for line in 0..lines {
            let from = &sums[(i * lines + line) * stored..][..stored];
            let to = &mut out[(row * groups + line * groups / lines) * columns..][..columns];
            add_columns(from, to, held[line * kv_heads / lines], segment, state);
        }
    }
    Ok(out)
}

/// Adds a line of probabilities by cache row to a line by column.
fn add_columns(from: &[f32], to: &mut [f32], held: usize, segment: &Segment<'_>, state: &State) {
    let refreshed = match segment.write {
        Write::Rows(rows) => rows,
        Write::Append | Write::Discard => &[],
    };
    for (row, (to, from)) in to.iter_mut().zip(&from[..held]).enumerate() {
        // What a refreshed row receives goes to the column of the row that refreshes it.
        if refreshed.is_empty()
            || !state.active.iter().any(|&a| refreshed[a as usize] == row as u32)
        {
            *to += from;
        }
    }
    for (j, &b) in state.active.iter().enumerate() {
        let row = refreshed.get(b as usize).map_or(held + j, |&row| row as usize);
        if let Some(p) = from.get(row) {
            to[state.cached + b as usize] += p;
        }
    }
}

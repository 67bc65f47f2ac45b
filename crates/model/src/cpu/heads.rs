//! Attention of every query head among rows of its own: gathered into a small problem with one key
//! head per query head, attended to as usual, and put back.

use std::cell::RefCell;

use tessera_core::pass::Shares;
use tessera_core::{Error, Input, KeyForm, KvStore, Mask, Result, Row, Segment, Write};
use tessera_kernels::attention::{
    AttendInput, AttendScratch, SpanTable, attend, attention_received,
};
use tessera_kernels::{KvLayer, Pool};

use super::last::pick;
use super::store::{CpuStore, kernel};

/// The attention that the rows of a segment give, for a policy that asks.
pub(super) struct SharesOf<'a> {
    pub input: AttendInput<'a>,
    pub pool: &'a Pool,
    pub scratch: RefCell<&'a mut AttendScratch>,
}

impl Shares for SharesOf<'_> {
    fn of_last(&self, rows: usize) -> Result<Vec<f32>> {
        let all = &self.input;
        let rows = rows.min(all.rows);
        let first = all.rows - rows;
        let numbers: Vec<u32> = (first as u32..all.rows as u32).collect();
        let mut spans = SpanTable::new();
        pick(all.spans, &numbers, all.layer.kv_heads(), &mut spans);
        let width = all.heads * all.layer.dim();
        // A bias would have to be cut like the rows; passes with one are refused before.
        let last =
            AttendInput { q: &all.q[first * width..], rows, spans: &spans, bias: None, ..*all };
        let mut out = vec![0.0; all.heads * all.layer.rows()];
        let scratch = &mut self.scratch.borrow_mut();
        attention_received(self.pool, &last, scratch, false, false, &mut out).map_err(kernel)?;
        Ok(out)
    }
}

/// Whether every row of the segment reads all cached rows and those before it, by row number.
pub(super) fn plainly_causal(segment: &Segment<'_>, store: &CpuStore) -> bool {
    let table = store.table();
    let ascending = |positions: &[u32]| positions.windows(2).all(|w| w[0] < w[1]);
    matches!(segment.mask, Mask::Causal)
        && segment.keys.is_none()
        && segment.bias.is_empty()
        && matches!(segment.write, Write::Append | Write::Discard)
        && !matches!(segment.input, Input::Queries(_))
        && table.form() == KeyForm::Rotated
        && table.is_uniform()
        && ascending(segment.positions)
        && table.positions(0, 0).iter().max().is_none_or(|&p| p < segment.positions[0])
}

/// Computes the attention of `input`'s rows, each head among the rows that its list names (`cached`
/// ones first), into `out`.
pub(super) fn attend_among(
    pool: &Pool,
    input: &AttendInput<'_>,
    lists: &[Vec<Row>],
    cached: usize,
    scratch: &mut AttendScratch,
    out: &mut [f32],
) -> Result<()> {
    let (heads, dim, rows) = (input.heads, input.layer.dim(), input.rows);
    let old = |list: &[Row]| list.partition_point(|&r| (r as usize) < cached);
    let few = lists.first().map_or(0, |list| list.len() - old(list));
    for (h, list) in lists.iter().enumerate() {
        let sorted = list.windows(2).all(|w| w[0] < w[1]);
        if !sorted || list.last().is_some_and(|&r| r as usize >= cached + rows) {
            return Err(Error::plan(format!(
                "query head {h}: rows must be sorted, unique and below {}",
                cached + rows
            )));
        }
        if list.len() - old(list) != few {
            return Err(Error::plan(format!("query head {h}: not as many rows as the others")));
        }
    }
    if lists.len() != heads {
        return Err(Error::plan(format!("{} lists of rows for {heads} query heads", lists.len())));
    }
    let group = heads / input.layer.kv_heads();
    let mut layer = KvLayer::new(heads, dim).map_err(kernel)?;
    let mut q = vec![0.0; few * heads * dim];
    for (h, list) in lists.iter().enumerate() {
        layer.append_from(h, input.layer, h / group, list).map_err(kernel)?;
        for (i, &row) in list[old(list)..].iter().enumerate() {
            let from = ((row as usize - cached) * heads + h) * dim;
            q[(i * heads + h) * dim..][..dim].copy_from_slice(&input.q[from..from + dim]);
        }
    }
    let kept: Vec<u32> = lists.iter().map(|list| old(list) as u32).collect();
    let mut spans;
    if kept.windows(2).all(|w| w[0] == w[1]) {
        spans = SpanTable::new();
        spans.causal(kept.first().copied().unwrap_or(0), few as u32);
    } else {
        spans = SpanTable::per_head();
        for i in 0..few as u32 {
            kept.iter().for_each(|&kept| spans.push_range(0, kept + i + 1));
        }
    }
    let small =
        AttendInput { layer: &layer, q: &q, rows: few, spans: &spans, bias: None, ..*input };
    let mut attended = vec![0.0; q.len()];
    attend(pool, &small, scratch, &mut attended).map_err(kernel)?;
    out.fill(0.0);
    for (h, list) in lists.iter().enumerate() {
        for (i, &row) in list[old(list)..].iter().enumerate() {
            let to = ((row as usize - cached) * heads + h) * dim;
            out[to..to + dim].copy_from_slice(&attended[(i * heads + h) * dim..][..dim]);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tessera_kernels::attention::Span;

    #[test]
    fn a_small_problem_equals_the_whole_one_masked() {
        let (heads, kv_heads, dim, cached, rows) = (4, 2, 24, 30, 50);
        let mut state = 7u32;
        let mut noise = |n: usize| -> Vec<f32> {
            let mut next = || {
                state ^= state << 13;
                state ^= state >> 17;
                state ^= state << 5;
                (state >> 8) as f32 / (1 << 23) as f32 - 1.0
            };
            (0..n).map(|_| next()).collect()
        };
        let mut layer = KvLayer::new(kv_heads, dim).unwrap();
        let n = (cached + rows) * kv_heads * dim;
        layer.write_rows(0, &noise(n), &noise(n)).unwrap();
        let q = noise(rows * heads * dim);
        // As many rows of the pass for every head, but not as many cached ones.
        let lists: Vec<Vec<Row>> = (0..heads as u32)
            .map(|h| {
                (h..30).step_by(2 + h as usize).chain((30 + h..78).step_by(3).take(15)).collect()
            })
            .collect();
        let mut spans = SpanTable::new();
        spans.causal(cached as u32, rows as u32);
        let pool = Pool::new(2);
        let input = AttendInput {
            layer: &layer,
            q: &q,
            rows,
            heads,
            scale: 0.3,
            softcap: None,
            bias: None,
            spans: &spans,
        };
        let mut got = vec![f32::NAN; q.len()];
        let mut scratch = AttendScratch::new();
        attend_among(&pool, &input, &lists, cached, &mut scratch, &mut got).unwrap();
        for (h, list) in lists.iter().enumerate() {
            // The whole problem for this head: rows that are not listed are seen by nobody.
            let mut masked = SpanTable::new();
            for row in cached as u32..(cached + rows) as u32 {
                for &key in list.iter().filter(|&&key| key <= row) {
                    masked.push_span(Span { slot: key, row: key, len: 1 });
                }
                masked.end_list();
            }
            let mut want = vec![0.0; q.len()];
            attend(&pool, &AttendInput { spans: &masked, ..input }, &mut scratch, &mut want)
                .unwrap();
            for row in 0..rows {
                let at = (row * heads + h) * dim;
                let (got, want) = (&got[at..at + dim], &want[at..at + dim]);
                if list.contains(&((cached + row) as u32)) {
                    let near = got.iter().zip(want).all(|(g, w)| (g - w).abs() < 1e-6);
                    assert!(near, "head {h}, row {row}");
                } else {
                    assert!(got.iter().all(|&g| g.to_bits() == 0), "head {h}, row {row}");
                }
            }
        }
    }
}

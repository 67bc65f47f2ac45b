//! A chunk of which a query sees few keys: gathered and computed side by side, summed by slot.
//!
//! Strewn rows are no stream that a processor foresees, so keys and values are asked for by number
//! while others are being computed; without it, half of the time is spent waiting.
#![allow(unsafe_code)]

use super::CHUNK;
use super::micro::{Weighted, run_add_lanes, run_ask, run_cap, run_soften, run_weighted_strewn};
use super::tile::{Call, EMPTY, S_STRIDE, State, Unit, Worker};
use crate::KEY_BLOCK;

/// Key blocks turned and scored at a time: their widened values stay in the first-level cache.
const GROUP: usize = 4;
/// Rows of the next chunk whose keys are asked for while values are added.
const NEXT: usize = 128;

impl Call<'_> {
    /// Whether the rows of the unit see fewer than half of the slots that they range over.
    pub(super) fn is_strewn(&self, w: &Worker) -> bool {
        let (mut seen, mut range) = (0, 0);
        for row in 0..w.ends.len() {
            if let [first, .., last] = w.pieces(row) {
                seen += w.pieces(row).iter().map(|p| p.hi - p.lo).sum::<usize>();
                range += last.hi - first.lo;
            }
        }
        2 * seen < range
    }

    /// [`Call::chunk`] of the pieces that `w` lists.
    ///
    /// # Safety
    /// As for [`Call::chunk`]; `w.s` holds the scores of the unit's queries.
    pub(super) unsafe fn chunk_strewn(
        &self,
        w: &mut Worker,
        unit: &Unit,
        state: *mut State,
        o: *mut f32,
    ) {
        let mut row = 0;
        while row < unit.rows {
            // Rows that see the same keys share the work.
            let alike = |other: &usize| w.pieces(*other) == w.pieces(row);
            let end = (row + 1..unit.rows).find(|r| !alike(r)).unwrap_or(unit.rows);
            let first = row * self.group;
            // SAFETY: the rows' queries have their places from `first` on.
            unsafe {
                self.rows_strewn(w, unit, row, end, state.add(first), o.add(first * self.stride));
            }
            row = end;
        }
    }

    /// Rows `row..end` of the unit, which see the same keys.
    ///
    /// # Safety
    /// `state` and `o` hold their queries and nothing else uses them.
    unsafe fn rows_strewn(
        &self,
        w: &mut Worker,
        unit: &Unit,
        row: usize,
        end: usize,
        state: *mut State,
        o: *mut f32,
    ) {
        let (mut ids, mut slots) = (std::mem::take(&mut w.ids), std::mem::take(&mut w.slots));
        ids.clear();
        slots.clear();
        for p in w.pieces(row) {
            slots.extend(p.lo as u32..p.hi as u32);
            ids.extend(p.row as u32..(p.row + (p.hi - p.lo)) as u32);
        }
        // SAFETY: as promised; a chunk has at most `CHUNK` keys.
        unsafe { self.gather(w, unit, (row, end), &mut ids, Some(&slots), &[], state, o) };
        (w.ids, w.slots) = (ids, slots);
    }

    /// [`Call::chunk`] of a table that orders by rank: every row sees the common keys of the head,
    /// then its own.
    ///
    /// # Safety
    /// As for [`Call::chunk`]; `w.s` holds the scores of the unit's queries.
    pub(super) unsafe fn chunk_ranked(
        &self,
        w: &mut Worker,
        unit: &Unit,
        chunk: usize,
        state: *mut State,
        o: *mut f32,
    ) {
        let common = &self.input.spans.common()[unit.head];
        let (first, last) = (chunk * CHUNK, (chunk + 1) * CHUNK);
        let shared = &common[first.min(common.len())..last.min(common.len())];
        let next = &common[last.min(common.len())..(last + NEXT).min(common.len())];
        let mut ids = std::mem::take(&mut w.ids);
        let mut row = 0;
        while row < unit.rows {
            // Only the chunk where the common keys end differs from row to row.
            let end = if last <= common.len() { unit.rows } else { row + 1 };
            ids.clear();
            ids.extend_from_slice(shared);
            if last > common.len() {
                let own = self.input.list(unit.first + row, unit.head);
                let keys = own.iter().flat_map(|s| s.row..s.row + s.len);
                let skip = first.saturating_sub(common.len());
                ids.extend(keys.skip(skip).take(CHUNK - ids.len()));
            }
            let at = row * self.group;
            // SAFETY: the rows' queries have their places from `at` on; at most `CHUNK` keys.
            unsafe {
                let o = o.add(at * self.stride);
                self.gather(w, unit, (row, end), &mut ids, None, next, state.add(at), o);
            }
            row = end;
        }
        w.ids = ids;
    }

    /// The result of some rows of the unit over the keys that `ids` numbers, at `slots` of a
    /// chunk, or side by side from its start.
    ///
    /// # Safety
    /// `state` and `o` hold the rows' queries and nothing else uses them; there are at most
    /// [`CHUNK`] keys, rows of the head.
    #[allow(clippy::too_many_arguments)]
    unsafe fn gather(
        &self,
        w: &mut Worker,
        unit: &Unit,
        rows: (usize, usize),
        ids: &mut Vec<u32>,
        slots: Option<&[u32]>,
        next: &[u32],
        state: *mut State,
        o: *mut f32,
    ) {
        let queries = (rows.1 - rows.0) * self.group;
        let keys = ids.len();
        let blocks = keys.div_ceil(KEY_BLOCK);
        // SAFETY: as promised; the scores of a query hold a chunk.
        unsafe {
            std::slice::from_raw_parts_mut(o, queries * self.stride).fill(0.0);
            if keys == 0 {
                std::slice::from_raw_parts_mut(state, queries).fill(EMPTY);
                return;
            }
            self.score_strewn(w, unit, rows, ids);
            for query in 0..queries {
                let s = &mut w.s[query * S_STRIDE..][..CHUNK];
                if let Some(cap) = self.input.softcap {
                    run_cap(self.isa, s.as_mut_ptr(), blocks, cap);
                }
                if let Some(bias) = self.input.bias {
                    let at = (unit.first + rows.0 + query / self.group) * bias.stride;
                    for (s, &id) in s.iter_mut().zip(&ids[..keys]) {
                        *s += bias.data[at + id as usize];
                    }
                }
                s[keys..blocks * KEY_BLOCK].fill(f32::NEG_INFINITY);
                let mut result = run_soften(self.isa, s.as_mut_ptr(), blocks);
                if let Some(slots) = slots
                    && result.0 != f32::NEG_INFINITY
                {
                    let mut lanes = [0.0; 16];
                    for (p, slot) in s.iter().zip(slots) {
                        lanes[*slot as usize % 16] += p;
                    }
                    result.1 = run_add_lanes(self.isa, &lanes);
                }
                *state.add(query) = result;
            }
            let keys_of_head = self.input.layer.keys(unit.head).as_ptr();
            if self.input.layer.by_row() {
                run_ask(self.isa, keys_of_head, next.as_ptr(), next.len(), self.stride);
            }
            for i in 0..self.panels(queries) {
                let (a, b) = self.panel(queries, i);
                let job = Weighted {
                    p: w.s[a * S_STRIDE..].as_ptr(),
                    p_stride: S_STRIDE,
                    r: b - a,
                    v: self.input.layer.values(unit.head).as_ptr().cast(),
                    v_stride: self.stride,
                    rows: ids.as_ptr(),
                    n: keys,
                    o: o.add(a * self.stride),
                };
                run_weighted_strewn(self.isa, &job);
            }
        }
    }

    /// Scores of the queries of rows `rows.0..rows.1` with the keys that `ids` numbers, one after
    /// another from the start of each query's scores. Pads `ids` to whole blocks.
    fn score_strewn(&self, w: &mut Worker, unit: &Unit, rows: (usize, usize), ids: &mut Vec<u32>) {
        let keys = ids.len();
        let queries = (rows.1 - rows.0) * self.group;
        let whole = rows == (0, unit.rows);
        if !whole {
            self.pack_rows(unit, unit.first + rows.0, rows.1 - rows.0, &mut w.q_row);
        }
        let q = if whole { &w.q } else { &w.q_row };
        if self.input.layer.by_row() {
            let last = ids[keys - 1];
            ids.resize(keys.next_multiple_of(KEY_BLOCK), last);
            for (i, group) in ids.chunks(GROUP * KEY_BLOCK).enumerate() {
                let out = w.s.as_mut_ptr().wrapping_add(i * GROUP * KEY_BLOCK);
                let n = group.len() / KEY_BLOCK;
                let after = (i + 1) * GROUP * KEY_BLOCK;
                let next = &ids[after.min(ids.len())..(after + GROUP * KEY_BLOCK).min(ids.len())];
                // The keys of the next group, and the values of this one, which scores keep waiting.
                // SAFETY: the slices hold row numbers; the pool's path is available.
                unsafe {
                    let (keys, values) =
                        (self.input.layer.keys(unit.head), self.input.layer.values(unit.head));
                    run_ask(self.isa, keys.as_ptr(), next.as_ptr(), next.len(), self.stride);
                    run_ask(self.isa, values.as_ptr(), group.as_ptr(), group.len(), self.stride);
                }
                self.score_rows(unit, q, queries, group, n, out, S_STRIDE, &mut w.wide);
            }
            return;
        }
        // Keys lie in blocks: score those that hold a key, then pick.
        let mut blocks: Vec<u32> = Vec::new();
        for id in ids.iter() {
            let block = id / KEY_BLOCK as u32;
            if blocks.last() != Some(&block) {
                blocks.push(block);
            }
        }
        self.score_blocks(unit, q, queries, &blocks, &mut w.by_row, &mut w.wide);
        let stride = blocks.len() * KEY_BLOCK;
        for query in 0..queries {
            let from = &w.by_row[query * stride..(query + 1) * stride];
            let (mut at, mut block) = (0, ids[0] / KEY_BLOCK as u32);
            for (s, id) in w.s[query * S_STRIDE..].iter_mut().zip(ids.iter()) {
                if id / KEY_BLOCK as u32 != block {
                    (at, block) = (at + 1, id / KEY_BLOCK as u32);
                }
                *s = from[at * KEY_BLOCK + *id as usize % KEY_BLOCK];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{
        Noise, SHAPES, Shape, assert_bits, input, layer, masks, pool, reference, run_on,
    };
    use super::super::{AttendInput, Bias, SpanTable};
    use crate::{Isa, KvLayer};

    fn indexed(layer: &KvLayer) -> KvLayer {
        let mut indexed = layer.clone();
        let columns = |h: usize| (0..5).map(|c| (c * 3 + h as u16) % layer.dim() as u16).collect();
        indexed.index(&(0..layer.kv_heads()).map(columns).collect::<Vec<_>>()).unwrap();
        indexed
    }

    /// Each head's rows, about one in `one_in`, in ascending order.
    fn chosen(shape: Shape, rows: usize, keys: usize, one_in: usize) -> Vec<Vec<u32>> {
        let mut noise = Noise::new((keys + one_in) as u64);
        let mut list = || (0..keys as u32).filter(|_| noise.below(one_in) == 0).collect();
        (0..rows * shape.kv_heads).map(|_| list()).collect()
    }

    fn spans(lists: &[Vec<u32>]) -> SpanTable {
        let mut table = SpanTable::per_head();
        for list in lists {
            for &row in list {
                table.push_span(super::super::Span { slot: row, row, len: 1 });
            }
            table.end_list();
        }
        table
    }

    #[test]
    fn an_indexed_layer_attends_as_a_plain_one_for_every_mask() {
        for (i, shape) in SHAPES.into_iter().enumerate() {
            for (rows, keys) in [(1, 700), (3, 513), (17, 1030)] {
                if rows == 17 && i % 3 != 1 {
                    continue;
                }
                let plain = layer(shape, keys, 19);
                let indexed = indexed(&plain);
                let q = Noise::new(4).values(rows * shape.heads * shape.dim);
                for (name, spans) in masks(rows, keys, shape.kv_heads) {
                    for isa in Isa::available() {
                        if isa == Isa::Scalar && (i > 1 || rows > 1) && i != 5 {
                            continue;
                        }
                        let want = run_on(&pool(1, isa), &input(shape, &plain, &q, &spans));
                        let got = run_on(&pool(2, isa), &input(shape, &indexed, &q, &spans));
                        assert_bits(
                            &got,
                            &want,
                            &format!("{name}, {rows} rows, {keys} keys, {isa}"),
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn few_keys_equal_all_keys_with_the_others_masked() {
        for shape in [SHAPES[0], SHAPES[4], SHAPES[5], Shape { heads: 2, kv_heads: 1, dim: 7 }] {
            for (keys, one_in) in [(40, 3), (513, 8), (1600, 8), (1600, 90), (1100, 1200)] {
                let plain = layer(shape, keys, 5);
                let lists: Vec<Vec<u32>> = {
                    // One choice for all heads of a row, so that a bias can say the same.
                    let one = chosen(Shape { kv_heads: 1, ..shape }, 2, keys, one_in);
                    one.into_iter().flat_map(|l| vec![l; shape.kv_heads]).collect()
                };
                let sparse = spans(&lists);
                let mut all = SpanTable::new();
                all.bidirectional(2, keys as u32);
                let mut bias = vec![f32::NEG_INFINITY; 2 * keys];
                for row in 0..2 {
                    for &key in &lists[row * shape.kv_heads] {
                        bias[row * keys + key as usize] = 0.0;
                    }
                }
                let bias = Some(Bias { data: &bias, stride: keys });
                let q = Noise::new(6).values(2 * shape.heads * shape.dim);
                for softcap in [None, Some(3.0)] {
                    let masked = AttendInput { bias, softcap, ..input(shape, &plain, &q, &all) };
                    let want = run_on(&pool(1, Isa::best()), &masked);
                    for layer in [&plain, &indexed(&plain)] {
                        for isa in Isa::available() {
                            let few = AttendInput { softcap, ..input(shape, layer, &q, &sparse) };
                            let what = format!("{keys} keys, one in {one_in}, {isa}");
                            assert_bits(&run_on(&pool(2, isa), &few), &want, &what);
                            let biased = AttendInput { bias, ..few };
                            assert_bits(&run_on(&pool(1, isa), &biased), &want, &what);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn keys_by_rank_are_the_same_attention_to_rounding() {
        for (shape, rows) in [(SHAPES[1], 1), (SHAPES[0], 4), (SHAPES[5], 3), (SHAPES[4], 20)] {
            for (keys, one_in) in [(40, 2), (1100, 2), (1600, 8), (700, 900)] {
                let plain = layer(shape, keys, 15);
                let cached = keys - rows;
                let common = chosen(shape, 1, cached, one_in);
                // Each row sees itself and, like a tree, some of the rows before it.
                let own = |row: usize| {
                    (0..=row).filter(move |r| *r == row || (row - r).is_multiple_of(2))
                };
                let mut ranked = SpanTable::after(common.clone());
                let mut by_slot = SpanTable::per_head();
                for row in 0..rows {
                    let own: Vec<u32> = own(row).map(|r| (cached + r) as u32).collect();
                    own.iter().for_each(|&row| {
                        ranked.push_span(super::super::Span { slot: row, row, len: 1 })
                    });
                    ranked.end_list();
                    for list in &common {
                        for &row in list.iter().chain(&own) {
                            by_slot.push_span(super::super::Span { slot: row, row, len: 1 });
                        }
                        by_slot.end_list();
                    }
                }
                let q = Noise::new(6).values(rows * shape.heads * shape.dim);
                let want = reference(&input(shape, &plain, &q, &by_slot)).0;
                let first = run_on(&pool(1, Isa::best()), &input(shape, &plain, &q, &ranked));
                for (g, w) in first.iter().zip(&want) {
                    assert!((f64::from(*g) - w).abs() < 4e-6, "{g} {w}");
                }
                // Layout, threads, paths and company do not change a bit here either.
                let indexed = indexed(&plain);
                for isa in Isa::available() {
                    for threads in [1, 2, 3] {
                        let got = run_on(&pool(threads, isa), &input(shape, &indexed, &q, &ranked));
                        assert_bits(&got, &first, &format!("{isa}, {threads} threads"));
                    }
                }
                let width = shape.heads * shape.dim;
                for row in 0..rows {
                    let mut one = SpanTable::after(common.clone());
                    one.push_list(ranked.list(row));
                    let q = &q[row * width..(row + 1) * width];
                    let got = run_on(&pool(2, Isa::best()), &input(shape, &indexed, q, &one));
                    assert_bits(&got, &first[row * width..(row + 1) * width], "alone");
                }
            }
        }
        let layer = layer(SHAPES[4], 20, 1);
        for (common, row) in [(vec![vec![20], vec![]], 0), (vec![vec![]], 0), (vec![vec![]; 2], 20)]
        {
            let mut table = SpanTable::after(common);
            table.push_list(&[super::super::Span { slot: 0, row, len: 1 }]);
            let q = [0.0; 64];
            let call = input(SHAPES[4], &layer, &q, &table);
            let mut out = [0.0; 64];
            let mut scratch = super::super::AttendScratch::new();
            assert!(
                super::super::attend(&pool(1, Isa::best()), &call, &mut scratch, &mut out).is_err()
            );
        }
    }

    #[test]
    fn each_head_reads_its_own_rows() {
        let shape = SHAPES[1];
        for rows in [1, 5] {
            let indexed = indexed(&layer(shape, 1500, 8));
            let lists = chosen(shape, rows, 1500, 8);
            let (q, spans) = (Noise::new(2).values(rows * 14 * 64), spans(&lists));
            let call = input(shape, &indexed, &q, &spans);
            let got = run_on(&pool(2, Isa::best()), &call);
            for (g, w) in got.iter().zip(reference(&call).0) {
                assert!((f64::from(*g) - w).abs() < 4e-6, "{g} {w}");
            }
        }
    }
}

//! One chunk of one unit: the scores of its queries against the visible keys, their weights, and
//! the weighted values.
//!
//! Long because the three ways keys can lie (shared by the rows, apart, scattered) need each
//! other's invariants in view.
#![allow(unsafe_code)]

use super::micro::{
    PANEL, Scores, Weighted, run_cap, run_scores_f16, run_scores_f32, run_soften, run_turn,
    run_weighted_f16, run_weighted_f32, run_widen,
};
use super::{AttendInput, CHUNK};
use crate::aligned::AlignedBuffer;
use crate::{Isa, Pool};

/// From one query's scores to the next: a chunk and a line, so that panels do not collide in the
/// first-level cache.
pub(super) const S_STRIDE: usize = CHUNK + 16;
/// From this many queries on, keys and values are widened once for all panels.
const WIDEN_FROM: usize = 16;
/// Key blocks widened at a time.
const KEY_GROUP: usize = 4;
/// Values of the rows that are widened, or read for all their columns, at a time (32 KiB of f32);
/// at least 64 rows, or loading and storing the outputs costs too much.
const VALUE_GROUP: usize = 8192;
/// Runs of one slot-to-row offset that the rows of a unit may share before the rest of a chunk
/// is handled row by row.
pub(super) const MAX_SHARED: usize = 4;
/// Most key blocks scored for all rows of a unit where its rows disagree.
const UNION_BLOCKS: usize = 128;

/// 0, 1, 2, ...: block and row numbers of contiguous runs.
static COUNT: [u32; CHUNK + 16] = {
    let mut count = [0; CHUNK + 16];
    let mut i = 0;
    while i < count.len() {
        count[i] = i as u32;
        i += 1;
    }
    count
};

/// Maximum and sum of a query; a maximum of minus infinity means no keys.
pub(super) type State = (f32, f32);

pub(super) const EMPTY: State = (f32::NEG_INFINITY, 0.0);

/// One key/value head and the query rows `first..first + rows`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Unit {
    pub(super) head: usize,
    pub(super) first: usize,
    pub(super) rows: usize,
    /// First chunk that any of the rows sees.
    pub(super) chunk: usize,
    /// One past the last such chunk.
    pub(super) end: usize,
    /// Place of the unit's first partial result.
    pub(super) part: usize,
}

/// Visible keys of one row inside a chunk: slots `lo..hi` of the chunk, in rows from `row`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Piece {
    pub(super) lo: usize,
    pub(super) hi: usize,
    pub(super) row: usize,
}

impl Piece {
    fn offset(&self) -> isize {
        self.row as isize - self.lo as isize
    }

    /// The part of the piece from chunk slot `from` on.
    fn from(&self, from: usize) -> Option<Piece> {
        let lo = self.lo.max(from);
        (lo < self.hi).then(|| Piece { lo, hi: self.hi, row: self.row + (lo - self.lo) })
    }
}

/// Slots `lo..hi` of a chunk that every row of the unit finds in cache row `slot + offset`.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Segment {
    lo: usize,
    hi: usize,
    offset: isize,
}

/// What one thread works in.
#[derive(Debug, Default)]
pub(super) struct Worker {
    /// The unit whose queries are packed in `q`.
    pub(super) packed: Option<usize>,
    /// Panels `[dim][queries]`, scaled.
    pub(super) q: AlignedBuffer,
    /// The panels of a single row.
    pub(super) q_row: AlignedBuffer,
    /// Scores, then weights, by chunk slot.
    pub(super) s: AlignedBuffer,
    /// Scores by cache row, for rows that disagree.
    pub(super) by_row: AlignedBuffer,
    /// Probabilities of a unit's queries by cache row, for those who ask to see them.
    pub(super) probabilities: AlignedBuffer,
    /// Result of the chunk at hand.
    pub(super) o: AlignedBuffer,
    pub(super) state: Vec<State>,
    /// Result so far.
    pub(super) sum: AlignedBuffer,
    pub(super) sum_state: Vec<State>,
    /// Widened keys, then values.
    pub(super) wide: AlignedBuffer,
    pub(super) pieces: Vec<Piece>,
    pub(super) ends: Vec<usize>,
    pub(super) ids: Vec<u32>,
    /// Slots of the keys that `ids` numbers.
    pub(super) slots: Vec<u32>,
}

impl Worker {
    pub(super) fn bytes(&self) -> usize {
        let floats = [&self.q, &self.q_row, &self.s, &self.by_row, &self.o, &self.sum, &self.wide];
        floats.iter().map(|v| v.bytes()).sum::<usize>() + self.probabilities.bytes()
    }

    pub(super) fn pieces(&self, row: usize) -> &[Piece] {
        let start = if row == 0 { 0 } else { self.ends[row - 1] };
        &self.pieces[start..self.ends[row]]
    }
}

pub(super) fn at_least<T: Clone>(v: &mut Vec<T>, n: usize, zero: T) {
    if v.len() < n {
        v.resize(n, zero);
    }
}

/// The sizes of a call.
pub(super) struct Call<'a> {
    pub(super) input: &'a AttendInput<'a>,
    pub(super) isa: Isa,
    pub(super) group: usize,
    pub(super) dim: usize,
    pub(super) stride: usize,
}

impl<'a> Call<'a> {
    pub(super) fn new(pool: &Pool, input: &'a AttendInput<'a>) -> Call<'a> {
        Call {
            input,
            isa: pool.isa(),
            group: input.group(),
            dim: input.layer.dim(),
            stride: input.layer.stride(),
        }
    }

    /// Number of panels for `queries` queries: a panel fills the registers of the path.
    pub(super) fn panels(&self, queries: usize) -> usize {
        let most = match self.isa {
            Isa::Scalar => 1,
            Isa::Avx2 => 6,
            _ if queries <= PANEL => PANEL,
            _ => 6,
        };
        queries.div_ceil(most)
    }

    /// Queries `a..b` of panel `i`.
    pub(super) fn panel(&self, queries: usize, i: usize) -> (usize, usize) {
        let n = self.panels(queries);
        (i * queries / n, (i + 1) * queries / n)
    }

    /// Scales and packs the queries of a row range into panels.
    pub(super) fn pack_rows(
        &self,
        unit: &Unit,
        first: usize,
        rows: usize,
        packed: &mut AlignedBuffer,
    ) {
        let queries = rows * self.group;
        packed.at_least(queries * self.dim);
        for i in 0..self.panels(queries) {
            let (a, b) = self.panel(queries, i);
            let panel = &mut packed[a * self.dim..b * self.dim];
            for query in a..b {
                let row = first + query / self.group;
                let head = unit.head * self.group + query % self.group;
                let q = &self.input.q[(row * self.input.heads + head) * self.dim..][..self.dim];
                for (column, x) in panel.chunks_exact_mut(b - a).zip(q) {
                    column[query - a] = x * self.input.scale;
                }
            }
        }
    }

    pub(super) fn pack(&self, w: &mut Worker, index: usize, unit: &Unit) {
        if w.packed != Some(index) {
            self.pack_rows(unit, unit.first, unit.rows, &mut w.q);
            w.packed = Some(index);
        }
    }

    /// Computes one chunk of a unit whose queries are packed: its maxima and sums into `state`,
    /// its weighted values into `o`.
    ///
    /// # Safety
    /// `state` and `o` hold the unit's queries (`stride` values each in `o`), do not lie in
    /// memory that this moves, and no other thread uses them.
    pub(super) unsafe fn chunk(
        &self,
        w: &mut Worker,
        unit: &Unit,
        chunk: usize,
        state: *mut State,
        o: *mut f32,
    ) {
        let queries = unit.rows * self.group;
        w.s.at_least(queries * S_STRIDE);
        if !self.input.spans.common().is_empty() {
            // SAFETY: `state` and `o` as promised.
            unsafe { self.chunk_ranked(w, unit, chunk, state, o) };
            return;
        }
        self.collect(w, unit, chunk);
        if self.is_strewn(w) {
            // SAFETY: `state` and `o` as promised.
            unsafe { self.chunk_strewn(w, unit, state, o) };
            return;
        }
        let mut segments = [Segment::default(); MAX_SHARED];
        let (shared, apart) = self.score_collected(w, unit, &mut segments);
        // SAFETY: `state` and `o` as promised; every range lies inside a chunk.
        unsafe {
            for i in 0..self.panels(queries) {
                let (a, b) = self.panel(queries, i);
                let (lo, hi) = self.range(w, a, b);
                let (lo, hi) = (lo / 16 * 16, hi.next_multiple_of(16));
                for query in a..b {
                    self.complete(w, unit, query, lo, hi);
                    let scores = w.s[query * S_STRIDE..][lo..hi].as_mut_ptr();
                    *state.add(query) = run_soften(self.isa, scores, (hi - lo) / 16);
                }
            }
            std::slice::from_raw_parts_mut(o, queries * self.stride).fill(0.0);
            for segment in &segments[..shared] {
                self.add_segment(w, unit, segment, o);
            }
            if apart < CHUNK {
                self.add_apart(w, unit, apart, o);
            }
        }
    }

    /// Computes the scores of one chunk of a unit; returns how many shared segments there are and
    /// the chunk slot from which rows are handled one by one.
    pub(super) fn score(
        &self,
        w: &mut Worker,
        unit: &Unit,
        chunk: usize,
        segments: &mut [Segment; MAX_SHARED],
    ) -> (usize, usize) {
        w.s.at_least(unit.rows * self.group * S_STRIDE);
        self.collect(w, unit, chunk);
        self.score_collected(w, unit, segments)
    }

    /// [`Call::score`] of the pieces that `w` lists.
    fn score_collected(
        &self,
        w: &mut Worker,
        unit: &Unit,
        segments: &mut [Segment; MAX_SHARED],
    ) -> (usize, usize) {
        let (shared, apart) = share(w, unit.rows, segments);
        for segment in &segments[..shared] {
            self.score_segment(w, unit, segment);
        }
        if apart < CHUNK {
            self.score_apart(w, unit, apart);
        }
        (shared, apart)
    }

    /// Lists the pieces of every row of the unit in a chunk.
    fn collect(&self, w: &mut Worker, unit: &Unit, chunk: usize) {
        w.pieces.clear();
        w.ends.clear();
        let (begin, end) = (chunk * CHUNK, (chunk + 1) * CHUNK);
        for row in unit.first..unit.first + unit.rows {
            let spans = self.input.list(row, unit.head);
            let after = spans.partition_point(|s| s.slot as usize + s.len as usize <= begin);
            for s in spans[after..].iter().take_while(|s| (s.slot as usize) < end) {
                let slot = s.slot as usize;
                let lo = slot.max(begin);
                w.pieces.push(Piece {
                    lo: lo - begin,
                    hi: (slot + s.len as usize).min(end) - begin,
                    row: s.row as usize + (lo - slot),
                });
            }
            w.ends.push(w.pieces.len());
        }
    }

    /// The slots that queries `a..b` see: from the first to one past the last; 0, 0 if none.
    fn range(&self, w: &Worker, a: usize, b: usize) -> (usize, usize) {
        let (mut lo, mut hi) = (CHUNK, 0);
        for row in a / self.group..b.div_ceil(self.group) {
            if let [first, .., last] | [first @ last] = w.pieces(row) {
                lo = lo.min(first.lo);
                hi = hi.max(last.hi);
            }
        }
        if hi == 0 { (0, 0) } else { (lo, hi) }
    }

    /// Scores of all queries for a shared segment.
    fn score_segment(&self, w: &mut Worker, unit: &Unit, segment: &Segment) {
        let queries = unit.rows * self.group;
        let block = self.dim * 16;
        let keys = self.input.layer.keys(unit.head);
        let row = |slot: usize| slot.wrapping_add_signed(segment.offset);
        let first = row(segment.lo) / 16;
        let end = row(segment.hi).div_ceil(16);
        let by_row = self.input.layer.by_row();
        let widen = by_row || queries >= WIDEN_FROM;
        let step = if widen { KEY_GROUP } else { end - first };
        w.wide.at_least(if widen { KEY_GROUP * 16 * self.stride } else { 0 });
        for b in (first..end).step_by(step) {
            let n = step.min(end - b);
            let width = if by_row { 16 * self.stride } else { block };
            let k = keys[b * width..(b + n) * width].as_ptr();
            if by_row {
                // SAFETY: `16 n` rows of `stride` values; the buffer holds as many values.
                unsafe {
                    let (ids, to) = (COUNT.as_ptr(), w.wide.as_mut_ptr());
                    run_turn(self.isa, k, ids, n, self.stride, self.dim, to);
                }
            } else if widen {
                // SAFETY: `n dim` vectors of 16 on both sides; the pool's path is available.
                unsafe { run_widen(self.isa, k, w.wide.as_mut_ptr(), n * self.dim) };
            }
            for i in 0..self.panels(queries) {
                let (qa, qb) = self.panel(queries, i);
                let (lo, hi) = self.range(w, qa, qb);
                let (lo, hi) = (lo.max(segment.lo), hi.min(segment.hi));
                if lo >= hi {
                    continue;
                }
                let lo = row(lo).max(b * 16) - b * 16;
                let hi = row(hi).saturating_sub(b * 16).min(n * 16);
                if lo >= hi {
                    continue;
                }
                // Blocks before and after the panel's keys are not computed.
                let skip = lo / 16;
                let slot = ((b + skip) * 16).wrapping_add_signed(-segment.offset);
                let job = Scores {
                    q: w.q[qa * self.dim..].as_ptr(),
                    r: qb - qa,
                    dim: self.dim,
                    k: k.wrapping_add(skip * block),
                    blocks: COUNT.as_ptr(),
                    n: hi.div_ceil(16) - skip,
                    out: w.s.as_mut_ptr().wrapping_add(qa * S_STRIDE).wrapping_add(slot),
                    stride: S_STRIDE,
                    lo: lo - skip * 16,
                    hi: hi - skip * 16,
                };
                // SAFETY: the panel holds `r` queries; the blocks lie in the head's keys (spans
                // are checked against its rows) or in their widened copy; lanes `lo..hi` are
                // slots of this chunk.
                unsafe {
                    if widen {
                        let k = w.wide.as_ptr().add(skip * block);
                        run_scores_f32(self.isa, &with_keys(job, k));
                    } else {
                        run_scores_f16(self.isa, &job);
                    }
                }
            }
        }
    }

    /// Scores of the pieces from chunk slot `apart` on, where rows of the unit keep the same slot
    /// in different cache rows (the tail of a tree), or one row's keys are scattered.
    fn score_apart(&self, w: &mut Worker, unit: &Unit, apart: usize) {
        let tail = |p: &Piece| p.from(apart);
        let (mut first, mut last, mut keys) = (usize::MAX, 0, 0);
        for p in w.pieces.iter().filter_map(tail) {
            first = first.min(p.row);
            last = last.max(p.row + (p.hi - p.lo));
            keys += p.hi - p.lo;
        }
        let (first, end) = (first / 16, last.div_ceil(16));
        let blocks = end - first;
        let mut w_ids = std::mem::take(&mut w.ids);
        if blocks <= UNION_BLOCKS && blocks <= 2 * keys {
            // Few blocks: score all of them for all queries, then pick.
            let queries = unit.rows * self.group;
            let stride = blocks * 16;
            w_ids.clear();
            w_ids.extend(first as u32..end as u32);
            self.score_blocks(unit, &w.q, queries, &w_ids, &mut w.by_row, &mut w.wide);
            for row in 0..unit.rows {
                for query in row * self.group..(row + 1) * self.group {
                    let start = if row == 0 { 0 } else { w.ends[row - 1] };
                    for p in w.pieces[start..w.ends[row]].iter().filter_map(tail) {
                        let from = query * stride + (p.row - first * 16);
                        let to = query * S_STRIDE;
                        w.s[to + p.lo..to + p.hi]
                            .copy_from_slice(&w.by_row[from..from + (p.hi - p.lo)]);
                    }
                }
            }
        } else {
            for row in 0..unit.rows {
                let start = if row == 0 { 0 } else { w.ends[row - 1] };
                let pieces = &w.pieces[start..w.ends[row]];
                let rows = || {
                    pieces
                        .iter()
                        .filter_map(tail)
                        .flat_map(|p| (p.lo..p.hi).map(move |slot| (slot, p.row + (slot - p.lo))))
                };
                w_ids.clear();
                for (_, key) in rows() {
                    let block = (key / 16) as u32;
                    if w_ids.last() != Some(&block) {
                        w_ids.push(block);
                    }
                }
                self.pack_rows(unit, unit.first + row, 1, &mut w.q_row);
                self.score_blocks(unit, &w.q_row, self.group, &w_ids, &mut w.by_row, &mut w.wide);
                let stride = w_ids.len() * 16;
                let mut at = 0;
                for (slot, key) in rows() {
                    if w_ids[at] != (key / 16) as u32 {
                        at += 1;
                    }
                    for query in 0..self.group {
                        w.s[(row * self.group + query) * S_STRIDE + slot] =
                            w.by_row[query * stride + at * 16 + key % 16];
                    }
                }
            }
        }
        w.ids = w_ids;
    }

    /// Scores of packed queries against whole key blocks: `[queries][16 * blocks]`.
    pub(super) fn score_blocks(
        &self,
        unit: &Unit,
        q: &[f32],
        queries: usize,
        blocks: &[u32],
        out: &mut AlignedBuffer,
        wide: &mut AlignedBuffer,
    ) {
        let stride = blocks.len() * 16;
        out.at_least(queries * stride);
        if self.input.layer.by_row() {
            for (i, group) in blocks.chunks(KEY_GROUP).enumerate() {
                let mut ids = [0; KEY_GROUP * 16];
                for (id, lane) in ids.iter_mut().zip(0..) {
                    let block = group.get(lane / 16).copied().unwrap_or(0);
                    *id = block * 16 + (lane % 16) as u32;
                }
                let out = out[i * KEY_GROUP * 16..].as_mut_ptr();
                self.score_rows(unit, q, queries, &ids, group.len(), out, stride, wide);
            }
            return;
        }
        for i in 0..self.panels(queries) {
            let (a, b) = self.panel(queries, i);
            let job = Scores {
                q: q[a * self.dim..b * self.dim].as_ptr(),
                r: b - a,
                dim: self.dim,
                k: self.input.layer.keys(unit.head).as_ptr(),
                blocks: blocks.as_ptr(),
                n: blocks.len(),
                out: out[a * stride..b * stride].as_mut_ptr(),
                stride,
                lo: 0,
                hi: stride,
            };
            // SAFETY: the panel and the output are sized above; the blocks hold rows that the
            // checked spans name.
            unsafe { run_scores_f16(self.isa, &job) };
        }
    }

    /// Scores of packed queries against `16 n` rows of an indexed layer, any of them, into `out`,
    /// one query's `stride` after another's.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn score_rows(
        &self,
        unit: &Unit,
        q: &[f32],
        queries: usize,
        ids: &[u32],
        n: usize,
        out: *mut f32,
        stride: usize,
        wide: &mut AlignedBuffer,
    ) {
        wide.at_least(n * 16 * self.stride);
        let keys = self.input.layer.keys(unit.head).as_ptr();
        let k = wide.as_mut_ptr();
        // SAFETY: the ids are `16 n` rows of the head (spans are checked against its rows) or of
        // its padding to whole blocks, which is allocated; the buffer is sized above.
        unsafe { run_turn(self.isa, keys, ids[..16 * n].as_ptr(), n, self.stride, self.dim, k) };
        for i in 0..self.panels(queries) {
            let (a, b) = self.panel(queries, i);
            let job = Scores {
                q: q[a * self.dim..b * self.dim].as_ptr(),
                r: b - a,
                dim: self.dim,
                k: k.cast_const(),
                blocks: COUNT.as_ptr(),
                n,
                out: out.wrapping_add(a * stride),
                stride,
                lo: 0,
                hi: 16 * n,
            };
            // SAFETY: the panel holds `b - a` queries, the blocks were turned above, and the
            // caller's `out` holds `16 n` scores for each query.
            unsafe { run_scores_f32(self.isa, &job) };
        }
    }

    /// Completes the scores of a query in slots `lo..hi` (multiples of 16): cap, bias, and minus
    /// infinity where it sees nothing.
    pub(super) fn complete(&self, w: &mut Worker, unit: &Unit, query: usize, lo: usize, hi: usize) {
        let row = query / self.group;
        let s = &mut w.s[query * S_STRIDE..(query + 1) * S_STRIDE];
        let start = if row == 0 { 0 } else { w.ends[row - 1] };
        let pieces = &w.pieces[start..w.ends[row]];
        if let Some(cap) = self.input.softcap {
            // SAFETY: `lo..hi` lies inside the chunk; the pool's path is available.
            unsafe { run_cap(self.isa, s[lo..hi].as_mut_ptr(), (hi - lo) / 16, cap) };
        }
        if let Some(bias) = self.input.bias {
            let bias = &bias.data[(unit.first + row) * bias.stride..];
            for p in pieces {
                for (s, b) in s[p.lo..p.hi].iter_mut().zip(&bias[p.row..]) {
                    *s += b;
                }
            }
        }
        let mut at = lo;
        for p in pieces {
            s[at..p.lo].fill(f32::NEG_INFINITY);
            at = p.hi;
        }
        s[at..hi].fill(f32::NEG_INFINITY);
    }

    /// Adds the weighted values of a shared segment.
    ///
    /// # Safety
    /// As for [`Call::chunk`].
    unsafe fn add_segment(&self, w: &mut Worker, unit: &Unit, segment: &Segment, o: *mut f32) {
        let queries = unit.rows * self.group;
        let values = self.input.layer.values(unit.head);
        let widen = queries >= WIDEN_FROM;
        let step = (VALUE_GROUP / self.stride).clamp(64, CHUNK);
        w.wide.at_least(if widen { step * self.stride } else { 0 });
        for first in (segment.lo..segment.hi).step_by(step) {
            let end = (first + step).min(segment.hi);
            let row = first.wrapping_add_signed(segment.offset);
            let v = values[row * self.stride..(row + end - first) * self.stride].as_ptr();
            if widen {
                let n = (end - first) * self.stride / 16;
                // SAFETY: the buffer holds a group of rows; the pool's path is available.
                unsafe { run_widen(self.isa, v, w.wide.as_mut_ptr(), n) };
            }
            for i in 0..self.panels(queries) {
                let (qa, qb) = self.panel(queries, i);
                let (lo, hi) = self.range(w, qa, qb);
                let (lo, hi) = (lo.max(first), hi.min(end));
                if lo >= hi {
                    continue;
                }
                let skip = (lo - first) * self.stride;
                let job = Weighted {
                    p: w.s[qa * S_STRIDE + lo..].as_ptr(),
                    p_stride: S_STRIDE,
                    r: qb - qa,
                    v: v.wrapping_add(skip),
                    v_stride: self.stride,
                    rows: COUNT.as_ptr(),
                    n: hi - lo,
                    o: o.wrapping_add(qa * self.stride),
                };
                // SAFETY: the weights of slots `lo..hi` were computed in `chunk`; the rows lie in
                // the head's values or in their widened copy; `o` holds the unit's queries.
                unsafe {
                    if widen {
                        let v = w.wide.as_ptr().add(skip);
                        run_weighted_f32(self.isa, &with_values(job, v));
                    } else {
                        run_weighted_f16(self.isa, &job);
                    }
                }
            }
        }
    }

    /// Adds the weighted values of the pieces from chunk slot `apart` on, row by row.
    ///
    /// # Safety
    /// As for [`Call::chunk`].
    unsafe fn add_apart(&self, w: &mut Worker, unit: &Unit, apart: usize, o: *mut f32) {
        let values = self.input.layer.values(unit.head);
        let mut ids = std::mem::take(&mut w.ids);
        for row in 0..unit.rows {
            let mut from = 0;
            ids.clear();
            let mut pieces = w.pieces(row).iter().filter_map(|p| p.from(apart)).peekable();
            while let Some(p) = pieces.next() {
                if ids.is_empty() {
                    from = p.lo;
                }
                ids.extend(p.row as u32..(p.row + (p.hi - p.lo)) as u32);
                if pieces.peek().is_some_and(|next| next.lo == p.hi) {
                    continue;
                }
                for i in 0..self.panels(self.group) {
                    let (a, b) = self.panel(self.group, i);
                    let query = row * self.group + a;
                    let job = Weighted {
                        p: w.s[query * S_STRIDE + from..].as_ptr(),
                        p_stride: S_STRIDE,
                        r: b - a,
                        v: values.as_ptr(),
                        v_stride: self.stride,
                        rows: ids.as_ptr(),
                        n: ids.len(),
                        o: o.wrapping_add(query * self.stride),
                    };
                    // SAFETY: as in `add_segment`; the rows are those of checked spans.
                    unsafe { run_weighted_f16(self.isa, &job) };
                }
                ids.clear();
            }
        }
        w.ids = ids;
    }
}

fn with_keys(job: Scores<u16>, k: *const f32) -> Scores<f32> {
    let Scores { q, r, dim, blocks, n, out, stride, lo, hi, .. } = job;
    Scores { q, r, dim, k, blocks, n, out, stride, lo, hi }
}

fn with_values(job: Weighted<u16>, v: *const f32) -> Weighted<f32> {
    let Weighted { p, p_stride, r, v_stride, rows, n, o, .. } = job;
    Weighted { p, p_stride, r, v, v_stride, rows, n, o }
}

/// Finds the segments of a chunk in which all rows agree on where a slot is kept. Returns how
/// many there are and the chunk slot from which rows are handled one by one.
fn share(w: &Worker, rows: usize, segments: &mut [Segment; MAX_SHARED]) -> (usize, usize) {
    // One row gains nothing from several segments: lists serve it as well.
    let most = if rows == 1 { 1 } else { MAX_SHARED };
    let (mut count, mut at) = (0, 0);
    loop {
        let tails = || w.pieces.iter().filter_map(|p| p.from(at));
        let Some(first) = tails().min_by_key(|p| p.lo) else {
            return (count, CHUNK);
        };
        let offset = first.offset();
        let differs = tails().filter(|p| p.offset() != offset).map(|p| p.lo).min();
        let stop = differs.unwrap_or(CHUNK);
        if stop <= first.lo || count == most {
            return (count, first.lo);
        }
        let agreeing = tails().filter(|p| p.offset() == offset && p.lo < stop);
        let hi = agreeing.map(|p| p.hi.min(stop)).max().unwrap_or(first.hi);
        segments[count] = Segment { lo: first.lo, hi, offset };
        count += 1;
        at = hi;
    }
}

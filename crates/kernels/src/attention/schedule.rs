//! How an attention call is cut into units, spread over threads, and put together again.
//!
//! A unit is one key/value head and a few query rows: its keys and values are read once for all
//! of its queries. Units are streamed chunk by chunk where there are enough of them for the
//! threads; otherwise each (unit, chunk) is a part of its own and the partial results are merged
//! afterwards, by the same operations in the same order.
#![allow(unsafe_code)]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use super::micro::{PANEL, run_finish, run_fold};
use super::tile::{Call, EMPTY, MAX_SHARED, S_STRIDE, Segment, State, Unit, Worker, at_least};
use super::{AttendInput, CHUNK};
use crate::Pool;
use crate::aligned::AlignedBuffer;
use crate::disjoint::Disjoint;
use crate::elementwise::softmax;

/// Queries a unit aims at: enough to pay for widening keys and values, few enough that their
/// scores stay in the second-level cache.
const UNIT_QUERIES: usize = 96;
/// Memory that attention reuses from call to call; starts empty.
#[derive(Debug, Default)]
pub struct AttendScratch {
    units: Vec<Unit>,
    workers: Vec<Mutex<Worker>>,
    partial: AlignedBuffer,
    partial_state: Vec<State>,
}

impl AttendScratch {
    /// Scratch without memory yet.
    pub fn new() -> AttendScratch {
        AttendScratch::default()
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        let workers: usize = self
            .workers
            .iter()
            .map(|w| w.lock().unwrap_or_else(PoisonError::into_inner).bytes())
            .sum();
        workers + self.partial.bytes() + 8 * self.partial_state.capacity()
    }
}

/// Computes `input` (checked by the caller) into `out`.
pub(super) fn run(
    pool: &Pool,
    input: &AttendInput<'_>,
    scratch: &mut AttendScratch,
    out: &mut [f32],
) {
    let call = Call::new(pool, input);
    let threads = pool.threads();
    let unit_rows = cut(&call, threads, &mut scratch.units);
    let units = scratch.units.as_slice();
    let parts: usize = units.iter().map(|u| u.end - u.chunk).sum();
    let queries = unit_rows * call.group;
    // One unit per thread and chunk streams better than it splits.
    let even = !input.spans.common().is_empty() && units.len().is_multiple_of(threads);
    let split = threads > 1 && units.len() < 4 * threads && parts > units.len() && !even;
    if scratch.workers.len() < threads {
        scratch.workers.resize_with(threads, Mutex::default);
    }
    for worker in &mut scratch.workers {
        let worker = worker.get_mut().unwrap_or_else(PoisonError::into_inner);
        worker.packed = None;
    }
    let workers = scratch.workers.as_slice();
    let next = AtomicUsize::new(0);
    let out = Disjoint::new(out);
    if !split {
        pool.run(threads.min(units.len()), &|slot| {
            let mut worker = workers[slot].lock().unwrap_or_else(PoisonError::into_inner);
            loop {
                let i = next.fetch_add(1, Ordering::Relaxed);
                let Some(unit) = units.get(i) else { break };
                call.stream(&mut worker, i, unit, out);
            }
        });
        return;
    }
    scratch.partial.at_least(parts * queries * call.stride);
    at_least(&mut scratch.partial_state, parts * queries, EMPTY);
    let partial = Disjoint::new(&mut scratch.partial);
    let states = Disjoint::new(&mut scratch.partial_state);
    pool.run(threads.min(parts), &|slot| {
        let mut worker = workers[slot].lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let part = next.fetch_add(1, Ordering::Relaxed);
            let after = units.partition_point(|u| u.part <= part);
            let Some(i) = after.checked_sub(1).filter(|_| part < parts) else {
                break;
            };
            let unit = &units[i];
            let at = part * queries;
            call.pack(&mut worker, i, unit);
            // SAFETY: parts have disjoint places of `queries` results each.
            unsafe {
                call.chunk(
                    &mut worker,
                    unit,
                    unit.chunk + (part - unit.part),
                    states.at(at),
                    partial.at(at * call.stride),
                );
            }
        }
    });
    let merge = |i: usize| {
        let unit = &units[i];
        for query in 0..unit.rows * call.group {
            let at = |chunk: usize| (unit.part + chunk) * queries + query;
            let (mut total, mut total_at) = (EMPTY, 0);
            for chunk in 0..unit.end - unit.chunk {
                // SAFETY: every part has been computed, and each unit merges its own.
                unsafe {
                    let state = *states.at(at(chunk));
                    if state.0 == f32::NEG_INFINITY {
                        continue;
                    }
                    if total.0 == f32::NEG_INFINITY {
                        (total, total_at) = (state, at(chunk));
                        continue;
                    }
                    let o = partial.at(at(chunk) * call.stride);
                    let to = partial.at(total_at * call.stride);
                    run_fold(call.isa, &mut total, to, state, o, call.stride);
                }
            }
            // SAFETY: each (unit, query) has its own place in the output.
            unsafe { call.emit(unit, query, total, partial.at(total_at * call.stride), out) };
        }
    };
    // A hand-off costs about as much as merging this many values.
    if parts * queries * call.stride < 1 << 16 {
        (0..units.len()).for_each(merge);
    } else {
        pool.run(units.len(), &merge);
    }
}

/// Writes the complete scores of `input` (checked by the caller) to `out`,
/// `[rows][heads][keys]` by cache row; leaves the places of keys not seen as they are.
pub(super) fn score_rows(
    pool: &Pool,
    input: &AttendInput<'_>,
    scratch: &mut AttendScratch,
    out: &mut [f32],
    keys: usize,
) {
    let call = Call::new(pool, input);
    cut(&call, 1, &mut scratch.units);
    scratch.workers.resize_with(scratch.workers.len().max(1), Mutex::default);
    let w = scratch.workers[0].get_mut().unwrap_or_else(PoisonError::into_inner);
    w.packed = None;
    for (i, unit) in scratch.units.iter().enumerate() {
        call.pack(w, i, unit);
        for chunk in unit.chunk..unit.end {
            call.score(w, unit, chunk, &mut [Segment::default(); MAX_SHARED]);
            for query in 0..unit.rows * call.group {
                let row = query / call.group;
                call.complete(w, unit, query, 0, CHUNK);
                let head = unit.head * call.group + query % call.group;
                let to = ((unit.first + row) * input.heads + head) * keys;
                let scores = &w.s[query * S_STRIDE..][..CHUNK];
                for p in w.pieces(row) {
                    let n = p.hi - p.lo;
                    out[to + p.row..to + p.row + n].copy_from_slice(&scores[p.lo..p.hi]);
                }
            }
        }
    }
}

/// How received attention is summed; see [`super::attention_received`].
#[derive(Clone, Copy)]
pub(super) struct Received {
    /// Whether the query heads of a key/value head are summed.
    pub(super) together: bool,
    /// Whether rows stay apart.
    pub(super) by_row: bool,
}

/// Adds the probabilities of `input` (checked by the caller) to `out`, all zero:
/// `[rows or 1][heads or kv_heads][keys]` by cache row. One thread takes a key/value head, its rows in
/// order, so the sums do not depend on the threads.
pub(super) fn receive(
    pool: &Pool,
    input: &AttendInput<'_>,
    scratch: &mut AttendScratch,
    how: Received,
    out: &mut [f32],
) {
    let (call, keys) = (Call::new(pool, input), input.layer.rows());
    let kv_heads = input.layer.kv_heads();
    cut(&call, 1, &mut scratch.units);
    let threads = pool.threads();
    if scratch.workers.len() < threads {
        scratch.workers.resize_with(threads, Mutex::default);
    }
    for worker in &mut scratch.workers {
        let worker = worker.get_mut().unwrap_or_else(PoisonError::into_inner);
        worker.packed = None;
    }
    let (workers, units) = (scratch.workers.as_slice(), scratch.units.as_slice());
    let next = AtomicUsize::new(0);
    let lines = if how.together { kv_heads } else { input.heads };
    let out = Disjoint::new(out);
    pool.run(threads.min(kv_heads), &|slot| {
        let mut worker = workers[slot].lock().unwrap_or_else(PoisonError::into_inner);
        let w = &mut *worker;
        loop {
            let head = next.fetch_add(1, Ordering::Relaxed);
            if head >= kv_heads {
                break;
            }
            // Units lie last rows first.
            for (i, unit) in units.iter().enumerate().rev().filter(|(_, u)| u.head == head) {
                let queries = unit.rows * call.group;
                let mut probabilities = std::mem::take(&mut w.probabilities);
                probabilities.at_least(queries * keys);
                probabilities[..queries * keys].fill(f32::NEG_INFINITY);
                call.pack(w, i, unit);
                for chunk in unit.chunk..unit.end {
                    call.score(w, unit, chunk, &mut [Segment::default(); MAX_SHARED]);
                    for query in 0..queries {
                        call.complete(w, unit, query, 0, CHUNK);
                        let scores = &w.s[query * S_STRIDE..][..CHUNK];
                        for p in w.pieces(query / call.group) {
                            let to = query * keys + p.row;
                            probabilities[to..to + p.hi - p.lo]
                                .copy_from_slice(&scores[p.lo..p.hi]);
                        }
                    }
                }
                for query in 0..queries {
                    let line = &mut probabilities[query * keys..(query + 1) * keys];
                    softmax(pool, line);
                    let (row, member) = (unit.first + query / call.group, query % call.group);
                    let row = if how.by_row { row } else { 0 };
                    let at = if how.together { head } else { head * call.group + member };
                    // SAFETY: `out` has `keys` places for every such line, and those of a key/value
                    // head are this thread's.
                    let sum = unsafe {
                        std::slice::from_raw_parts_mut(out.at((row * lines + at) * keys), keys)
                    };
                    sum.iter_mut().zip(line).for_each(|(sum, p)| *sum += *p);
                }
                w.probabilities = probabilities;
            }
        }
    });
}

/// Cuts a call into units, the costliest (last rows) first; returns the rows of a full unit.
fn cut(call: &Call<'_>, threads: usize, units: &mut Vec<Unit>) -> usize {
    let kv_heads = call.input.layer.kv_heads();
    let rows = call.input.rows;
    let most = (UNIT_QUERIES / call.group).max(1);
    let mut unit_rows = rows.div_ceil(rows.div_ceil(most).max(1)).max(1);
    loop {
        units.clear();
        let mut part = 0;
        for tile in (0..rows.div_ceil(unit_rows)).rev() {
            let first = tile * unit_rows;
            for head in 0..kv_heads {
                let rows = unit_rows.min(rows - first);
                let (chunk, end) = call.chunks(head, first, rows);
                units.push(Unit { head, first, rows, chunk, end, part });
                part += end - chunk;
            }
        }
        // Too few parts for the threads: smaller units, if they can get smaller.
        if part >= 2 * threads || threads == 1 || unit_rows * call.group <= PANEL || unit_rows == 1
        {
            return unit_rows;
        }
        unit_rows = unit_rows.div_ceil(2);
    }
}

impl Call<'_> {
    /// The range of chunks that some row of a unit sees.
    fn chunks(&self, head: usize, first: usize, rows: usize) -> (usize, usize) {
        let common = self.input.spans.common();
        if !common.is_empty() {
            let own = |row| self.input.list(row, head).iter().map(|s| s.len as usize).sum();
            let most: usize = (first..first + rows).map(own).max().unwrap_or(0);
            return (0, (common[head].len() + most).div_ceil(CHUNK));
        }
        let (mut lo, mut hi) = (usize::MAX, 0);
        for row in first..first + rows {
            if let [a, .., b] | [a @ b] = self.input.list(row, head) {
                lo = lo.min(a.slot as usize / CHUNK);
                hi = hi.max((b.slot as usize + b.len as usize).div_ceil(CHUNK));
            }
        }
        if hi == 0 { (0, 0) } else { (lo, hi) }
    }

    /// Computes a unit chunk after chunk and writes its output.
    fn stream(&self, w: &mut Worker, index: usize, unit: &Unit, out: Disjoint<f32>) {
        self.pack(w, index, unit);
        let queries = unit.rows * self.group;
        let values = queries * self.stride;
        w.o.at_least(values);
        w.sum.at_least(values);
        at_least(&mut w.state, queries, EMPTY);
        at_least(&mut w.sum_state, queries, EMPTY);
        w.sum_state[..queries].fill(EMPTY);
        for chunk in unit.chunk..unit.end {
            let (state, o) = (w.state.as_mut_ptr(), w.o.as_mut_ptr());
            // SAFETY: both buffers hold `queries` results, and `chunk` leaves them in place.
            unsafe { self.chunk(w, unit, chunk, state, o) };
            if chunk == unit.chunk {
                std::mem::swap(&mut w.o, &mut w.sum);
                std::mem::swap(&mut w.state, &mut w.sum_state);
                continue;
            }
            for query in 0..queries {
                let (state, at) = (w.state[query], query * self.stride);
                if state.0 == f32::NEG_INFINITY {
                    continue;
                }
                let o = &w.o[at..at + self.stride];
                let sum = &mut w.sum[at..at + self.stride];
                let total = &mut w.sum_state[query];
                if total.0 == f32::NEG_INFINITY {
                    *total = state;
                    sum.copy_from_slice(o);
                } else {
                    // SAFETY: both slices hold `stride` values; the pool's path is available.
                    unsafe {
                        run_fold(self.isa, total, sum.as_mut_ptr(), state, o.as_ptr(), self.stride);
                    }
                }
            }
        }
        for query in 0..queries {
            let o = w.sum[query * self.stride..].as_ptr();
            // SAFETY: each (unit, query) has its own place in the output.
            unsafe { self.emit(unit, query, w.sum_state[query], o, out) };
        }
    }

    /// Writes the finished result of one query.
    ///
    /// # Safety
    /// `o` holds `dim` values if `state` is not empty; no other thread writes this query.
    unsafe fn emit(
        &self,
        unit: &Unit,
        query: usize,
        state: State,
        o: *const f32,
        out: Disjoint<f32>,
    ) {
        let row = unit.first + query / self.group;
        let head = unit.head * self.group + query % self.group;
        let to = out.at((row * self.input.heads + head) * self.dim);
        // SAFETY: the output holds `dim` values for every row and head.
        unsafe {
            if state.0 == f32::NEG_INFINITY {
                std::slice::from_raw_parts_mut(to, self.dim).fill(0.0);
            } else {
                run_finish(self.isa, o, state.1, to, self.dim);
            }
        }
    }
}

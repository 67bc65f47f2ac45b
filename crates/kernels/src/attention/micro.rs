//! The inner loops of attention: register tiles of scores and of weighted values, the exponential
//! of a row, and the merge of two partial results.
//!
//! Each result value is one fixed chain of operations (a score: fused multiply-adds over the
//! dimension; an output value: fused multiply-adds over the keys), so the shape of a tile, the
//! instruction path and the precision the operands are stored in never change a bit.
#![allow(unsafe_code)]

use crate::functions::{exp, exp_below, soft_cap};
use crate::lanes::{LANES, Lanes, entry};

/// Where a kernel reads keys or values from: the cache itself, or its exactly widened copy.
pub(super) trait Source: Copy {
    /// Whether it streams from the outer cache levels, so that asking ahead pays.
    const FAR: bool;
    /// Whether its rows are strewn over the cache, so that asking by number pays.
    const STREWN: bool = false;
    /// Sixteen consecutive values.
    unsafe fn load<L: Lanes>(p: *const Self) -> L;
}

impl Source for u16 {
    const FAR: bool = true;
    #[inline(always)]
    unsafe fn load<L: Lanes>(p: *const u16) -> L {
        // SAFETY: the caller's promise is the one `load_f16` asks for.
        unsafe { L::load_f16(p) }
    }
}

impl Source for f32 {
    const FAR: bool = false;
    #[inline(always)]
    unsafe fn load<L: Lanes>(p: *const f32) -> L {
        // SAFETY: the caller's promise is the one `load` asks for.
        unsafe { L::load(p) }
    }
}

/// A half-precision value of a row that does not follow the one before it.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct Strewn(u16);

impl Source for Strewn {
    const FAR: bool = false;
    const STREWN: bool = true;
    #[inline(always)]
    unsafe fn load<L: Lanes>(p: *const Strewn) -> L {
        // SAFETY: the caller's promise is the one `load_f16` asks for; the layouts are equal.
        unsafe { L::load_f16(p.cast()) }
    }
}

/// Strewn rows to ask for ahead of their use.
const ROWS_AHEAD: usize = 32;

/// Half-precision values to ask for ahead of a stream.
const AHEAD: usize = 1024;

/// Most queries of one panel.
pub(super) const PANEL: usize = 8;

/// Scores of `r` queries against `n` key blocks.
#[derive(Clone, Copy)]
pub(super) struct Scores<S> {
    /// Packed queries: `[dim][r]`, already scaled.
    pub q: *const f32,
    /// Queries, 1 to [`PANEL`].
    pub r: usize,
    /// Values per key.
    pub dim: usize,
    /// Key blocks, `[block][dim][16]`.
    pub k: *const S,
    /// Which blocks, `n` numbers.
    pub blocks: *const u32,
    /// How many.
    pub n: usize,
    /// Where lane 0 of the first block goes; may lie before the buffer if `lo` says so.
    pub out: *mut f32,
    /// From one query's scores to the next.
    pub stride: usize,
    /// First lane of the `16 n` to write.
    pub lo: usize,
    /// One past the last lane to write.
    pub hi: usize,
}

#[inline(always)]
unsafe fn scores<L: Lanes, S: Source>(job: &Scores<S>) {
    // SAFETY: the caller's promises about `job` and the features of `L` are passed on.
    unsafe {
        match job.r {
            1 => score_rows::<L, S, 1, 4>(job),
            2 if L::TILE_ROWS >= 2 => score_rows::<L, S, 2, 4>(job),
            3 if L::TILE_ROWS >= 3 => score_rows::<L, S, 3, 4>(job),
            4 if L::TILE_ROWS >= 4 => score_rows::<L, S, 4, 4>(job),
            5 if L::TILE_ROWS >= 5 => score_rows::<L, S, 5, 4>(job),
            6 if L::TILE_ROWS >= 6 => score_rows::<L, S, 6, 4>(job),
            7 if L::TILE_ROWS >= 7 => score_rows::<L, S, 7, 3>(job),
            8 if L::TILE_ROWS >= 8 => score_rows::<L, S, 8, 3>(job),
            _ => {}
        }
    }
}

#[inline(always)]
unsafe fn score_rows<L: Lanes, S: Source, const R: usize, const B: usize>(job: &Scores<S>) {
    let mut i = 0;
    // SAFETY: `i + B <= n` (or 2, or 1), so each tile stays inside the job.
    unsafe {
        if L::WIDE {
            while i + B <= job.n {
                score_tile::<L, S, R, B>(job, i);
                i += B;
            }
            if i + 2 <= job.n {
                score_tile::<L, S, R, 2>(job, i);
                i += 2;
            }
        }
        while i < job.n {
            score_tile::<L, S, R, 1>(job, i);
            i += 1;
        }
    }
}

/// The scores of `R` queries against blocks `i..i + B` of the job.
#[inline(always)]
unsafe fn score_tile<L: Lanes, S: Source, const R: usize, const B: usize>(
    job: &Scores<S>,
    i: usize,
) {
    // SAFETY: the job's pointers cover `r` queries of `dim` values and the named blocks of
    // `16 dim` values; only lanes `lo..hi` of the output are written.
    unsafe {
        let mut k = [job.k; B];
        for (b, k) in k.iter_mut().enumerate() {
            *k = job.k.add(*job.blocks.add(i + b) as usize * job.dim * LANES);
        }
        let mut acc = [[L::splat(0.0); B]; R];
        for d in 0..job.dim {
            let mut keys = [L::splat(0.0); B];
            for (keys, k) in keys.iter_mut().zip(&k) {
                if S::FAR {
                    // The same place in the next tile's blocks.
                    L::prefetch(k.wrapping_add((B * job.dim + d) * LANES).cast());
                }
                *keys = S::load::<L>(k.add(d * LANES));
            }
            for (r, acc) in acc.iter_mut().enumerate() {
                let q = L::splat(*job.q.add(d * R + r));
                for (acc, keys) in acc.iter_mut().zip(&keys) {
                    *acc = keys.fma(q, *acc);
                }
            }
        }
        let first = i * LANES;
        let out = job.out.wrapping_add(first);
        if job.lo <= first && first + B * LANES <= job.hi {
            for (r, acc) in acc.iter().enumerate() {
                for (b, acc) in acc.iter().enumerate() {
                    acc.store(out.add(r * job.stride + b * LANES));
                }
            }
            return;
        }
        for (r, acc) in acc.iter().enumerate() {
            for (b, acc) in acc.iter().enumerate() {
                let first = first + b * LANES;
                let lo = job.lo.saturating_sub(first).min(LANES);
                let hi = job.hi.saturating_sub(first).min(LANES);
                if lo < hi {
                    acc.store_range(out.wrapping_add(r * job.stride + b * LANES), lo, hi);
                }
            }
        }
    }
}

/// Adds the values of `n` keys, weighted, to the outputs of `r` queries.
#[derive(Clone, Copy)]
pub(super) struct Weighted<S> {
    /// Weights: `p[query * p_stride + key]`.
    pub p: *const f32,
    /// From one query's weights to the next.
    pub p_stride: usize,
    /// Queries, 1 to [`PANEL`].
    pub r: usize,
    /// Value rows.
    pub v: *const S,
    /// From one value row to the next: the dimension rounded up to 16.
    pub v_stride: usize,
    /// Which value rows, `n` numbers in slot order.
    pub rows: *const u32,
    /// How many keys.
    pub n: usize,
    /// Outputs, `v_stride` values per query.
    pub o: *mut f32,
}

#[inline(always)]
unsafe fn weighted<L: Lanes, S: Source>(job: &Weighted<S>) {
    // SAFETY: the caller's promises about `job` and the features of `L` are passed on.
    unsafe {
        match job.r {
            1 => weighted_rows::<L, S, 1, 4>(job),
            2 if L::TILE_ROWS >= 2 => weighted_rows::<L, S, 2, 4>(job),
            3 if L::TILE_ROWS >= 3 => weighted_rows::<L, S, 3, 4>(job),
            4 if L::TILE_ROWS >= 4 => weighted_rows::<L, S, 4, 4>(job),
            5 if L::TILE_ROWS >= 5 => weighted_rows::<L, S, 5, 4>(job),
            6 if L::TILE_ROWS >= 6 => weighted_rows::<L, S, 6, 4>(job),
            7 if L::TILE_ROWS >= 7 => weighted_rows::<L, S, 7, 2>(job),
            8 if L::TILE_ROWS >= 8 => weighted_rows::<L, S, 8, 2>(job),
            _ => {}
        }
    }
}

#[inline(always)]
unsafe fn weighted_rows<L: Lanes, S: Source, const R: usize, const W: usize>(job: &Weighted<S>) {
    let vectors = job.v_stride / LANES;
    let mut w = 0;
    // SAFETY: `w + W <= vectors` (or 1), so each tile stays inside a value row.
    unsafe {
        if L::WIDE || R == 1 {
            while w + W <= vectors {
                weighted_tile::<L, S, R, W>(job, w * LANES);
                w += W;
            }
        }
        while w < vectors {
            weighted_tile::<L, S, R, 1>(job, w * LANES);
            w += 1;
        }
    }
}

/// Output values `at..at + 16 W` of `R` queries.
#[inline(always)]
unsafe fn weighted_tile<L: Lanes, S: Source, const R: usize, const W: usize>(
    job: &Weighted<S>,
    at: usize,
) {
    // SAFETY: the job's pointers cover `r` outputs and weights of `n` keys, and the named value
    // rows of `v_stride >= at + 16 W` values.
    unsafe {
        let mut acc = [[L::splat(0.0); W]; R];
        for (r, acc) in acc.iter_mut().enumerate() {
            for (w, acc) in acc.iter_mut().enumerate() {
                *acc = L::load(job.o.add(r * job.v_stride + at + w * LANES));
            }
        }
        for i in 0..job.n {
            let row = job.v.add(*job.rows.add(i) as usize * job.v_stride + at);
            if S::STREWN && i + ROWS_AHEAD < job.n {
                let next = *job.rows.add(i + ROWS_AHEAD) as usize * job.v_stride + at;
                for line in (0..W).step_by(2) {
                    L::prefetch(job.v.wrapping_add(next + line * LANES).cast());
                }
            }
            let mut values = [L::splat(0.0); W];
            for (w, value) in values.iter_mut().enumerate() {
                if S::FAR && w % 2 == 0 {
                    let ahead = AHEAD.max(job.v_stride * 4);
                    L::prefetch(row.wrapping_add(ahead + w * LANES).cast());
                }
                *value = S::load::<L>(row.add(w * LANES));
            }
            for (r, acc) in acc.iter_mut().enumerate() {
                let p = L::splat(*job.p.add(r * job.p_stride + i));
                for (acc, values) in acc.iter_mut().zip(&values) {
                    *acc = values.fma(p, *acc);
                }
            }
        }
        for (r, acc) in acc.iter().enumerate() {
            for (w, acc) in acc.iter().enumerate() {
                acc.store(job.o.add(r * job.v_stride + at + w * LANES));
            }
        }
    }
}

/// Replaces `16 n` scores by `e^(score - max)`; returns the maximum and the sum, taken over
/// lanes first. All scores minus infinity (or NaN): the weights are 0 and the maximum is minus
/// infinity.
#[inline(always)]
unsafe fn soften<L: Lanes>(s: *mut f32, n: usize) -> (f32, f32) {
    // SAFETY: the caller promises `16 n` values at `s`.
    unsafe {
        let none = L::splat(f32::NEG_INFINITY);
        let (mut even, mut odd) = (none, none);
        let mut i = 0;
        while i + 2 <= n {
            even = L::load(s.add(i * LANES)).max(even);
            odd = L::load(s.add((i + 1) * LANES)).max(odd);
            i += 2;
        }
        if i < n {
            even = L::load(s.add(i * LANES)).max(even);
        }
        let max = even.max(odd).reduce_max();
        if max == f32::NEG_INFINITY {
            let zero = L::splat(0.0);
            for i in 0..n {
                zero.store(s.add(i * LANES));
            }
            return (max, 0.0);
        }
        let shift = L::splat(max);
        let mut sum = L::splat(0.0);
        for i in 0..n {
            let p = exp_below::<L>(L::load(s.add(i * LANES)).sub(shift));
            sum = sum.add(p);
            p.store(s.add(i * LANES));
        }
        (max, sum.reduce_add())
    }
}

/// Limits `16 n` scores softly: `cap * tanh(s / cap)`.
#[inline(always)]
unsafe fn cap_scores<L: Lanes>(s: *mut f32, n: usize, cap: f32) {
    // SAFETY: the caller promises `16 n` values at `s`.
    unsafe {
        for i in 0..n {
            let x = L::load(s.add(i * LANES));
            soft_cap::<L>(x, cap).store(s.add(i * LANES));
        }
    }
}

/// Folds a partial result `(m, l, o)` into the running one, which must be non-empty, as must the
/// partial one. `n` is the number of values in `o`, a multiple of 16.
#[inline(always)]
unsafe fn fold<L: Lanes>(
    big: &mut (f32, f32),
    big_o: *mut f32,
    small: (f32, f32),
    small_o: *const f32,
    n: usize,
) {
    // SAFETY: the caller promises `n` values at both pointers.
    unsafe {
        let m = if big.0 > small.0 { big.0 } else { small.0 };
        let a = exp::<L>(L::splat(big.0 - m));
        let b = exp::<L>(L::splat(small.0 - m));
        let l = L::splat(big.1).fma(a, L::splat(small.1).mul(b));
        *big = (m, l.first());
        for i in (0..n).step_by(LANES) {
            let o = L::load(small_o.add(i)).mul(b);
            L::load(big_o.add(i)).fma(a, o).store(big_o.add(i));
        }
    }
}

/// `out[i] = o[i] / l + 0`: the added zero makes the sign of zero independent of absent keys.
#[inline(always)]
unsafe fn finish<L: Lanes>(o: *const f32, l: f32, out: *mut f32, n: usize) {
    // SAFETY: the caller promises `n` values at both pointers.
    unsafe {
        let (l, zero) = (L::splat(l), L::splat(0.0));
        for i in (0..n).step_by(LANES) {
            let y = L::load_part(o.add(i), (n - i).min(LANES)).div(l).add(zero);
            y.store_range(out.add(i), 0, (n - i).min(LANES));
        }
    }
}

/// Widens `16 n` half-precision values.
#[inline(always)]
unsafe fn widen<L: Lanes>(from: *const u16, to: *mut f32, n: usize) {
    // SAFETY: the caller promises `16 n` values at both pointers.
    unsafe {
        for i in 0..n {
            L::prefetch(from.wrapping_add(i * LANES + AHEAD).cast());
            L::load_f16(from.add(i * LANES)).store(to.add(i * LANES));
        }
    }
}

/// Turns rows into key blocks: the values of the `16 n` rows that `ids` numbers, `stride` apart
/// and a multiple of 16, become `[block][dim][16]`. A block takes `16 dim` values and is written
/// up to `16 stride`: what is beyond belongs to the next block, or to nobody.
#[inline(always)]
unsafe fn turn<L: Lanes>(
    rows: *const u16,
    ids: *const u32,
    n: usize,
    stride: usize,
    dim: usize,
    out: *mut f32,
) {
    // SAFETY: the caller promises `16 n` row numbers, `stride` values in each of these rows, and
    // room for `n - 1` blocks of `16 dim` values and one of `16 stride`.
    unsafe {
        for block in 0..n {
            let ids = ids.add(block * LANES);
            let out = out.add(block * dim * LANES);
            for at in (0..stride).step_by(LANES) {
                let mut tile = [L::splat(0.0); LANES];
                for (i, row) in tile.iter_mut().enumerate() {
                    *row = L::load_f16(rows.add(*ids.add(i) as usize * stride + at));
                }
                for (d, column) in L::transpose(tile).into_iter().enumerate() {
                    column.store(out.add((at + d) * LANES));
                }
            }
        }
    }
}

/// Asks for the rows that `ids` numbers, `n` of them, `stride` values apart.
#[inline(always)]
unsafe fn ask<L: Lanes>(rows: *const u16, ids: *const u32, n: usize, stride: usize) {
    for i in 0..n {
        // SAFETY: the caller promises `n` row numbers; asking for an address never faults.
        let row = rows.wrapping_add(unsafe { *ids.add(i) } as usize * stride);
        for line in (0..stride).step_by(32) {
            L::prefetch(row.wrapping_add(line).cast());
        }
    }
}

/// Sixteen weights summed as [`soften`] sums a row of lanes.
#[inline(always)]
unsafe fn add_lanes<L: Lanes>(lanes: &[f32; LANES]) -> f32 {
    // SAFETY: the array holds sixteen values.
    unsafe { L::load(lanes.as_ptr()).reduce_add() }
}

#[inline(always)]
unsafe fn weighted_strewn<L: Lanes>(job: &Weighted<Strewn>) {
    // SAFETY: same contract.
    unsafe { weighted::<L, Strewn>(job) }
}

#[inline(always)]
unsafe fn scores_f16<L: Lanes>(job: &Scores<u16>) {
    // SAFETY: same contract.
    unsafe { scores::<L, u16>(job) }
}

#[inline(always)]
unsafe fn scores_f32<L: Lanes>(job: &Scores<f32>) {
    // SAFETY: same contract.
    unsafe { scores::<L, f32>(job) }
}

#[inline(always)]
unsafe fn weighted_f16<L: Lanes>(job: &Weighted<u16>) {
    // SAFETY: same contract.
    unsafe { weighted::<L, u16>(job) }
}

#[inline(always)]
unsafe fn weighted_f32<L: Lanes>(job: &Weighted<f32>) {
    // SAFETY: same contract.
    unsafe { weighted::<L, f32>(job) }
}

entry!(pub(super) fn run_scores_f16(job: &Scores<u16>) = scores_f16);
entry!(pub(super) fn run_scores_f32(job: &Scores<f32>) = scores_f32);
entry!(pub(super) fn run_weighted_f16(job: &Weighted<u16>) = weighted_f16);
entry!(pub(super) fn run_weighted_f32(job: &Weighted<f32>) = weighted_f32);
entry!(pub(super) fn run_soften(s: *mut f32, n: usize) -> (f32, f32) = soften);
entry!(pub(super) fn run_cap(s: *mut f32, n: usize, cap: f32) = cap_scores);
entry!(pub(super) fn run_fold(big: &mut (f32, f32), big_o: *mut f32, small: (f32, f32), small_o: *const f32, n: usize) = fold);
entry!(pub(super) fn run_finish(o: *const f32, l: f32, out: *mut f32, n: usize) = finish);
entry!(pub(super) fn run_widen(from: *const u16, to: *mut f32, n: usize) = widen);
entry!(pub(super) fn run_turn(rows: *const u16, ids: *const u32, n: usize, stride: usize, dim: usize, out: *mut f32) = turn);
entry!(pub(super) fn run_ask(rows: *const u16, ids: *const u32, n: usize, stride: usize) = ask);
entry!(pub(super) fn run_add_lanes(lanes: &[f32; LANES]) -> f32 = add_lanes);
entry!(pub(super) fn run_weighted_strewn(job: &Weighted<Strewn>) = weighted_strewn);

//! Which rows of an indexed layer come first: scores by a few columns of the keys, and the best of
//! them.
//!
//! A row's score for a query is one chain of fused multiply-adds over the layer's
//! [columns](crate::KvLayer::index), in their order. What the queries of a key/value head think of
//! a row is pooled; the `count` rows of largest pooled score are taken, the older of two equal
//! ones, and given in ascending order. A NaN counts as minus infinity, and zeros are equal.
//!
//! The selection narrows an interval of scores by halving until few scores are left in it, selects
//! exactly among these, and lists what is above the threshold: a dozen passes over scores that stay
//! in the second-level cache, none of which branches on a score.
//!
//! Long because scoring, selection and the tests of both against their definitions belong together.
#![allow(unsafe_code)]

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use super::length;
use super::micro::{PANEL, Scores, run_scores_f16};
use crate::aligned::AlignedBuffer;
use crate::disjoint::Disjoint;
use crate::error::{KernelError, Result};
use crate::lanes::{LANES, Lanes, entry};
use crate::{Isa, KEY_BLOCK, KvLayer, Pool};

/// How the queries that share a key/value head agree on one score of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// The score of the queries' sum.
    Sum,
    /// The largest of the queries' scores.
    Max,
}

/// A request for the best rows of every key/value head.
#[derive(Debug, Clone, Copy)]
pub struct RankInput<'a> {
    /// The layer; indexed.
    pub layer: &'a KvLayer,
    /// Queries `[rows][heads][dim]`.
    pub q: &'a [f32],
    /// Query heads, a multiple of the key/value heads.
    pub heads: usize,
    /// How scores are pooled over the rows and heads that share a key/value head.
    pub pooling: Pooling,
    /// Rows of each head that compete.
    pub among: &'a [Range<usize>],
    /// Rows wanted of each head.
    pub count: usize,
}

impl RankInput<'_> {
    fn check(&self) -> Result<usize> {
        let (layer, kv_heads) = (self.layer, self.layer.kv_heads());
        if self.heads == 0 || !self.heads.is_multiple_of(kv_heads) {
            return Err(KernelError::Mismatch(
                "query heads are not a multiple of the key/value heads",
            ));
        }
        let width = self.heads * layer.dim();
        let rows = self.q.len() / width;
        length("queries to rank by", rows.max(1) * width, self.q.len())?;
        length("numbers of rows to rank", kv_heads, self.among.len())?;
        for (head, among) in self.among.iter().enumerate() {
            if layer.columns(head).is_empty() {
                return Err(KernelError::Mismatch("rows are ranked in an indexed layer only"));
            }
            if among.start > among.end || among.end > layer.head_rows(head) {
                return Err(KernelError::Mismatch("more rows to rank than the head holds"));
            }
        }
        Ok(rows)
    }
}

/// Memory that ranking reuses from call to call; starts empty.
#[derive(Debug, Default)]
pub struct RankScratch {
    heads: Vec<Mutex<HeadScratch>>,
}

#[derive(Debug, Default)]
struct HeadScratch {
    /// Packed queries, panel after panel, `[column][queries]`.
    q: AlignedBuffer,
    /// Pooled scores by row.
    scores: AlignedBuffer,
    candidates: Vec<u32>,
    chosen: Vec<u32>,
}

/// Scores left in an interval that are selected from directly.
const FEW: usize = 96;

/// Rows scored at a time: the scores of a panel stay in the first-level cache.
const STRETCH: usize = 64;

/// 0, 1, 2, ...: block numbers.
static COUNT: [u32; STRETCH] = {
    let mut count = [0; STRETCH];
    let mut i = 0;
    while i < STRETCH {
        count[i] = i as u32;
        i += 1;
    }
    count
};

/// Puts the best rows of every key/value head into `chosen`, one list per head, ascending; all
/// that compete where they are not more than wanted.
///
/// Allocates nothing once scratch and lists have grown. Errors: sizes that do not fit, a layer
/// that is not indexed.
pub fn rank(
    pool: &Pool,
    input: &RankInput<'_>,
    scratch: &mut RankScratch,
    chosen: &mut [Vec<u32>],
) -> Result<()> {
    let rows = input.check()?;
    let kv_heads = input.layer.kv_heads();
    length("lists of chosen rows", kv_heads, chosen.len())?;
    if scratch.heads.len() < kv_heads {
        scratch.heads.resize_with(kv_heads, Mutex::default);
    }
    let isa = pool.isa();
    // Each head is a part, unless that would leave threads without work.
    let parts = if kv_heads.is_multiple_of(pool.threads()) { 1 } else { pool.threads() };
    let mut scores = Vec::with_capacity(kv_heads);
    for (head, scratch) in scratch.heads.iter_mut().enumerate().take(kv_heads) {
        let s = scratch.get_mut().unwrap_or_else(PoisonError::into_inner);
        s.scores.at_least(input.among[head].end.next_multiple_of(LANES));
        pack(input, head, rows, isa, &mut s.q);
        scores.push((Disjoint::new(&mut s.scores), s.q.as_ptr() as usize));
    }
    let score = |head: usize, part: usize| {
        let among = &input.among[head];
        let (skip, blocks) = (among.start / KEY_BLOCK, among.end.div_ceil(KEY_BLOCK));
        let share = |part: usize| skip + part * (blocks - skip) / parts;
        let (first, end) = (share(part), share(part + 1));
        let (out, q) = scores[head];
        // SAFETY: the queries were packed above; parts write disjoint blocks of the scores, which
        // hold all of them.
        unsafe { score_blocks(input, head, rows, isa, q as *const f32, first..end, out) };
    };
    let lists = &scratch.heads;
    let choose = |head: usize| {
        let mut s = lists[head].lock().unwrap_or_else(PoisonError::into_inner);
        s.select(isa, input.among[head].clone(), input.count);
    };
    if parts == 1 {
        pool.run(kv_heads, &|head| {
            score(head, 0);
            choose(head);
        });
    } else {
        pool.run(kv_heads * parts, &|i| score(i / parts, i % parts));
        pool.run(kv_heads, &choose);
    }
    for (to, from) in chosen.iter_mut().zip(&mut scratch.heads) {
        let from = from.get_mut().unwrap_or_else(PoisonError::into_inner);
        std::mem::swap(to, &mut from.chosen);
    }
    Ok(())
}

/// Queries of one panel of an instruction path.
fn panel(isa: Isa) -> usize {
    match isa {
        Isa::Scalar => 1,
        Isa::Avx2 => 6,
        Isa::Avx512Vnni | Isa::Amx => PANEL,
    }
}

/// Packs the ranked columns of a head's queries: panels of `[column][queries]`.
fn pack(input: &RankInput<'_>, head: usize, rows: usize, isa: Isa, to: &mut AlignedBuffer) {
    let (dim, columns) = (input.layer.dim(), input.layer.columns(head));
    let group = input.heads / input.layer.kv_heads();
    let value = |query: usize, column: u16| {
        let (row, head) = (query / group, head * group + query % group);
        input.q[(row * input.heads + head) * dim + column as usize]
    };
    let queries = rows * group;
    match input.pooling {
        Pooling::Sum => {
            to.at_least(columns.len());
            for (to, &column) in to.iter_mut().zip(columns) {
                *to = (0..queries).map(|query| value(query, column)).sum();
            }
        }
        Pooling::Max => {
            to.at_least(queries * columns.len());
            let most = panel(isa);
            for first in (0..queries).step_by(most) {
                let n = most.min(queries - first);
                let panel = &mut to[first * columns.len()..][..n * columns.len()];
                for (to, &column) in panel.chunks_exact_mut(n).zip(columns) {
                    for (to, query) in to.iter_mut().zip(first..) {
                        *to = value(query, column);
                    }
                }
            }
        }
    }
}

/// The pooled scores of some key blocks of a head.
///
/// # Safety
/// `q` holds what [`pack`] packs; `out` holds the scores of the blocks, and no other thread uses
/// them; the pool's path is available.
unsafe fn score_blocks(
    input: &RankInput<'_>,
    head: usize,
    rows: usize,
    isa: Isa,
    q: *const f32,
    blocks: Range<usize>,
    out: Disjoint<f32>,
) {
    let columns = input.layer.columns(head).len();
    let keys = input.layer.ranked(head);
    let queries = match input.pooling {
        Pooling::Sum => 1,
        Pooling::Max => rows * (input.heads / input.layer.kv_heads()),
    };
    let mut several = [[0.0f32; STRETCH * KEY_BLOCK]; PANEL];
    for first in blocks.clone().step_by(STRETCH) {
        let n = STRETCH.min(blocks.end - first);
        let to = out.at(first * KEY_BLOCK);
        for at in (0..queries).step_by(panel(isa)) {
            let r = panel(isa).min(queries - at);
            let direct = queries == 1;
            let job = Scores {
                q: q.wrapping_add(at * columns),
                r,
                dim: columns,
                k: keys[first * columns * KEY_BLOCK..(first + n) * columns * KEY_BLOCK].as_ptr(),
                blocks: COUNT.as_ptr(),
                n,
                out: if direct { to } else { several.as_mut_ptr().cast() },
                stride: STRETCH * KEY_BLOCK,
                lo: 0,
                hi: n * KEY_BLOCK,
            };
            // SAFETY: as promised; a panel of `r` queries and its `n` blocks of scores fit.
            unsafe {
                run_scores_f16(isa, &job);
                if !direct {
                    let from = several.as_ptr().cast();
                    run_pool_max(isa, from, STRETCH * KEY_BLOCK, r, at == 0, to, n);
                }
            }
        }
    }
}

/// Takes the largest of `r` rows of `16 n` scores, `stride` apart, and of `to` unless `fresh`.
#[inline(always)]
unsafe fn pool_max<L: Lanes>(
    from: *const f32,
    stride: usize,
    r: usize,
    fresh: bool,
    to: *mut f32,
    n: usize,
) {
    // SAFETY: the caller promises `r` rows of `16 n` values, and as many at `to`.
    unsafe {
        for i in 0..n {
            let at = i * LANES;
            let none = L::splat(f32::NEG_INFINITY);
            let mut best = if fresh { none } else { L::load(to.add(at)) };
            for row in 0..r {
                // In this order, a NaN loses.
                best = L::load(from.add(row * stride + at)).max(best);
            }
            best.store(to.add(at));
        }
    }
}

/// Makes NaN minus infinity and minus zero zero in `16 n` scores.
#[inline(always)]
unsafe fn clean<L: Lanes>(s: *mut f32, n: usize) {
    // SAFETY: the caller promises `16 n` values.
    unsafe {
        let none = L::splat(f32::NEG_INFINITY);
        for i in 0..n {
            let x = L::load(s.add(i * LANES)).max(none);
            x.add(L::splat(0.0)).store(s.add(i * LANES));
        }
    }
}

/// Lists the places, ascending, of `16 n` scores above `least`, and of the first `ties` ones equal
/// to it; returns how many.
#[inline(always)]
unsafe fn list<L: Lanes>(s: *const f32, n: usize, least: f32, ties: usize, to: *mut u32) -> usize {
    let (mut count, mut ties) = (0, ties);
    // SAFETY: the caller promises `16 n` values, and room for all that is listed
    // and fifteen more.
    unsafe {
        let least = L::splat(least);
        let (infinite, nothing) = (L::splat(f32::INFINITY), L::splat(f32::NEG_INFINITY));
        for i in 0..n {
            let x = L::load(s.add(i * LANES));
            let above = L::mask_lt(least, x);
            let mut mask = above;
            // A NaN is neither above nor equal: it marks what does not compete.
            let mut equal = L::mask_lt(x, infinite) | L::mask_lt(nothing, x);
            equal &= !(above | L::mask_lt(x, least));
            while equal != 0 && ties > 0 {
                mask |= equal & equal.wrapping_neg();
                equal &= equal - 1;
                ties -= 1;
            }
            L::write_places(mask, (i * LANES) as u32, to.add(count));
            count += mask.count_ones() as usize;
        }
    }
    count
}

/// How many of `16 n` scores are above `t`.
#[inline(always)]
unsafe fn count_above<L: Lanes>(s: *const f32, n: usize, t: f32) -> usize {
    // SAFETY: the caller promises `16 n` values.
    unsafe {
        // Counts of a lane stay far below 2^24, so sums of ones are exact.
        let (t, one, zero) = (L::splat(t), L::splat(1.0), L::splat(0.0));
        let mut sums = [zero; 4];
        let mut i = 0;
        while i + 4 <= n {
            for (j, sum) in sums.iter_mut().enumerate() {
                let x = L::load(s.add((i + j) * LANES));
                *sum = L::select_lt(t, x, one, zero).add(*sum);
            }
            i += 4;
        }
        while i < n {
            let x = L::load(s.add(i * LANES));
            sums[0] = L::select_lt(t, x, one, zero).add(sums[0]);
            i += 1;
        }
        let [a, b, c, d] = sums;
        a.add(b).add(c.add(d)).reduce_add() as usize
    }
}

/// The smallest and the largest of `16 n` scores; NaNs do not count.
#[inline(always)]
unsafe fn range<L: Lanes>(s: *const f32, n: usize) -> (f32, f32) {
    // SAFETY: the caller promises `16 n` values.
    unsafe {
        let zero = L::splat(0.0);
        let (mut low, mut high) = (L::splat(f32::NEG_INFINITY), L::splat(f32::NEG_INFINITY));
        for i in 0..n {
            let x = L::load(s.add(i * LANES));
            high = x.max(high);
            low = zero.sub(x).max(low);
        }
        (-low.reduce_max(), high.reduce_max())
    }
}

/// Writes the bits of those of `16 n` scores that are above `low` and at most `high`.
#[inline(always)]
unsafe fn between<L: Lanes>(s: *const f32, n: usize, low: f32, high: f32, to: *mut u32) {
    let mut count = 0;
    // SAFETY: the caller promises `16 n` values, and room for all that are written.
    unsafe {
        let (low, high) = (L::splat(low), L::splat(high));
        for i in 0..n {
            let x = L::load(s.add(i * LANES));
            let mut mask = L::mask_lt(low, x) & !L::mask_lt(high, x);
            while mask != 0 {
                let place = i * LANES + mask.trailing_zeros() as usize;
                to.add(count).write((*s.add(place)).to_bits());
                count += 1;
                mask &= mask - 1;
            }
        }
    }
}

entry!(fn run_count_above(s: *const f32, n: usize, t: f32) -> usize = count_above);
entry!(fn run_range(s: *const f32, n: usize) -> (f32, f32) = range);
entry!(fn run_between(s: *const f32, n: usize, low: f32, high: f32, to: *mut u32) = between);
entry!(fn run_pool_max(from: *const f32, stride: usize, r: usize, fresh: bool, to: *mut f32, n: usize) = pool_max);
entry!(fn run_clean(s: *mut f32, n: usize) = clean);
entry!(fn run_list(s: *const f32, n: usize, least: f32, ties: usize, to: *mut u32) -> usize = list);

/// A number that orders as the score does.
fn order(x: f32) -> u32 {
    let bits = x.to_bits();
    bits ^ (((bits as i32) >> 31) as u32 | 0x8000_0000)
}

/// The score that [`order`] made the number of.
fn score_of(order: u32) -> f32 {
    f32::from_bits(if order >> 31 == 1 { order & 0x7fff_ffff } else { !order })
}

impl HeadScratch {
    /// Lists the `count` best of the rows `among` in `chosen`.
    fn select(&mut self, isa: Isa, among: Range<usize>, count: usize) {
        self.chosen.clear();
        if count >= among.len() {
            self.chosen.extend(among.start as u32..among.end as u32);
            return;
        }
        if count == 0 {
            return;
        }
        let first = among.start / LANES * LANES;
        let s = &mut self.scores[first..among.end.next_multiple_of(LANES)];
        let (before, n) = (among.start - first, among.end - first);
        let blocks = s.len() / LANES;
        // SAFETY: `16 blocks` values; the pool's path is available.
        unsafe { run_clean(isa, s.as_mut_ptr(), blocks) };
        // What does not compete is neither above, below nor equal.
        s[..before].fill(f32::NAN);
        s[n..].fill(f32::NAN);
        let (least, ties) = threshold(isa, s, count, &mut self.candidates);
        self.chosen.resize(count + LANES, 0);
        // SAFETY: exactly `count` rows are above the threshold or among the ties counted.
        let listed =
            unsafe { run_list(isa, s.as_ptr(), blocks, least, ties, self.chosen.as_mut_ptr()) };
        self.chosen.truncate(listed);
        self.chosen.iter_mut().for_each(|row| *row += first as u32);
    }
}

/// The `count`-th largest of scores of which there are more (NaNs do not count), and how many
/// scores equal to it are among the `count` largest. Whole vectors of clean scores.
fn threshold(isa: Isa, s: &[f32], count: usize, candidates: &mut Vec<u32>) -> (f32, usize) {
    let blocks = s.len() / LANES;
    // SAFETY: `16 blocks` values; the pool's path is available.
    let above = |t: f32| unsafe { run_count_above(isa, s.as_ptr(), blocks, t) };
    // The score lies in `low < score <= high`; `over.0` and `over.1` scores lie above these.
    let (mut low, mut high) = (f32::NEG_INFINITY, f32::INFINITY);
    let mut over = (above(low), 0);
    if over.0 < count {
        return (low, count - over.0);
    }
    // SAFETY: as above.
    let (mut next, most) = unsafe { run_range(isa, s.as_ptr(), blocks) };
    if most < high {
        high = most;
    }
    // As many halvings as the bits of a score bring any interval down to one value; infinite ends
    // have no middle, and the scores between them are few or all.
    for _ in 0..64 {
        if over.0 - over.1 <= FEW || !(low < next && next < high) {
            break;
        }
        let n = above(next);
        if n >= count {
            (low, over.0) = (next, n);
        } else {
            (high, over.1) = (next, n);
        }
        next = low + (high - low) * 0.5;
    }
    candidates.resize(over.0 - over.1, 0);
    // SAFETY: as above; so many scores lie in the interval.
    unsafe { run_between(isa, s.as_ptr(), blocks, low, high, candidates.as_mut_ptr()) };
    candidates.iter_mut().for_each(|c| *c = order(f32::from_bits(*c)));
    let rank = count - over.1 - 1;
    let (_, &mut least, _) = candidates.select_nth_unstable_by(rank, |a, b| b.cmp(a));
    let higher = candidates.iter().filter(|&&c| c > least).count();
    (score_of(least), count - over.1 - higher)
}

#[cfg(test)]
mod tests {
    use super::super::tests::Noise;
    use super::*;
    use std::time::Duration;

    fn best(scores: &[f32], count: usize) -> Vec<u32> {
        let clean = |x: f32| if x.is_nan() { f32::NEG_INFINITY } else { x };
        let mut rows: Vec<u32> = (0..scores.len() as u32).collect();
        rows.sort_by(|&a, &b| {
            let (x, y) = (clean(scores[a as usize]), clean(scores[b as usize]));
            y.partial_cmp(&x).unwrap().then(a.cmp(&b))
        });
        rows.truncate(count);
        rows.sort_unstable();
        rows
    }

    #[test]
    fn the_best_are_chosen_and_of_equal_ones_the_older() {
        let mut noise = Noise::new(7);
        for n in [1, 2, 15, 16, 17, 100, 1000, 4099] {
            for kind in 0..5 {
                let mut scores: Vec<f32> = match kind {
                    0 => noise.values(n),
                    // Few values, so most places are decided by age.
                    1 => (0..n).map(|_| noise.below(4) as f32 - 2.0).collect(),
                    2 => vec![-3.5; n],
                    3 => (0..n).map(|_| f32::from_bits(noise.bits() as u32)).collect(),
                    _ => (0..n).map(|i| if i % 2 == 0 { 0.0 } else { -0.0 }).collect(),
                };
                if kind == 1 {
                    scores[n / 2] = f32::NAN;
                    scores[n - 1] = f32::NEG_INFINITY;
                }
                for count in [0, 1, 2, n / 8, n / 2, n - 1, n, n + 5] {
                    let expected = best(&scores, count);
                    for isa in Isa::available() {
                        let mut s = HeadScratch::default();
                        s.scores.at_least(n.next_multiple_of(LANES));
                        s.scores[..n].copy_from_slice(&scores);
                        s.select(isa, 0..n, count);
                        assert_eq!(s.chosen, expected, "kind {kind}, {count} of {n}, {isa}");
                        // The same behind some rows that do not compete.
                        for skip in [1, 16, 37] {
                            s.scores.at_least((n + skip).next_multiple_of(LANES));
                            s.scores[..skip].fill(1e9);
                            s.scores[skip..skip + n].copy_from_slice(&scores);
                            s.select(isa, skip..skip + n, count);
                            s.chosen.iter_mut().for_each(|row| *row -= skip as u32);
                            assert_eq!(s.chosen, expected, "kind {kind}, {count} of {n}, {skip}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn ranking_is_that_of_the_columns_on_every_path_and_number_of_threads() {
        let mut noise = Noise::new(3);
        for (heads, kv_heads, dim, columns) in
            [(14, 2, 64, 16), (9, 3, 64, 8), (4, 1, 256, 64), (11, 1, 20, 5), (2, 2, 32, 32)]
        {
            let rows = 1500 + noise.below(40);
            let mut layer = KvLayer::new(kv_heads, dim).unwrap();
            for row in 0..rows {
                let n = kv_heads * dim;
                layer.write(row, &noise.values(n), &noise.values(n)).unwrap();
            }
            let step = dim / columns;
            let lists: Vec<Vec<u16>> = (0..kv_heads)
                .map(|h| (0..columns).map(|c| ((c * step + h) % dim) as u16).collect())
                .collect();
            assert!(
                ask(&layer, &noise.values(heads * dim), heads, Pooling::Sum, 1, Isa::Scalar)
                    .is_err()
            );
            layer.index(&lists).unwrap();
            for queries in [1, 3] {
                let q = noise.values(queries * heads * dim);
                for pooling in [Pooling::Sum, Pooling::Max] {
                    let expected = naive(&layer, &q, heads, pooling);
                    for isa in Isa::available() {
                        for threads in [1, 2, 3] {
                            let got = ask(&layer, &q, heads, pooling, threads, isa).unwrap();
                            assert_eq!(got, expected, "{heads}/{kv_heads}/{dim} {isa} {threads}");
                        }
                    }
                }
            }
        }
    }

    fn ask(
        layer: &KvLayer,
        q: &[f32],
        heads: usize,
        pooling: Pooling,
        threads: usize,
        isa: Isa,
    ) -> Result<Vec<Vec<u32>>> {
        let pool = Pool::with_options(threads, isa, Duration::ZERO).unwrap();
        let among: Vec<_> = (0..layer.kv_heads()).map(|h| 0..layer.head_rows(h) - h).collect();
        let input = RankInput { layer, q, heads, pooling, among: &among, count: 190 };
        let mut chosen = vec![vec![9]; layer.kv_heads()];
        rank(&pool, &input, &mut RankScratch::default(), &mut chosen)?;
        Ok(chosen)
    }

    /// The definition, value by value.
    fn naive(layer: &KvLayer, q: &[f32], heads: usize, pooling: Pooling) -> Vec<Vec<u32>> {
        let (dim, group) = (layer.dim(), heads / layer.kv_heads());
        let of_head = |h: usize| -> Vec<u32> {
            let queries: Vec<Vec<f32>> = q
                .chunks(heads * dim)
                .flat_map(|row| row[h * group * dim..(h + 1) * group * dim].chunks(dim))
                .map(|q| layer.columns(h).iter().map(|&c| q[c as usize]).collect())
                .collect();
            let dot = |q: &[f32], k: &[f32]| {
                layer
                    .columns(h)
                    .iter()
                    .zip(q)
                    .fold(0.0f32, |s, (&c, q)| k[c as usize].mul_add(*q, s))
            };
            let sum: Vec<f32> =
                (0..layer.columns(h).len()).map(|c| queries.iter().map(|q| q[c]).sum()).collect();
            let score = |row: usize| {
                let (mut k, mut v) = (vec![0.0; dim], vec![0.0; dim]);
                layer.read_row(h, row, &mut k, &mut v).unwrap();
                match pooling {
                    Pooling::Sum => dot(&sum, &k),
                    Pooling::Max => {
                        queries.iter().map(|q| dot(q, &k)).fold(f32::NEG_INFINITY, f32::max)
                    }
                }
            };
            best(&(0..layer.head_rows(h) - h).map(score).collect::<Vec<_>>(), 190)
        };
        (0..layer.kv_heads()).map(of_head).collect()
    }
}

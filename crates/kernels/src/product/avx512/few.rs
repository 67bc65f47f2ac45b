//! Few rows: weights are unpacked in registers, one strip by up to eight rows at a time. One row
//! is bound by reading the weights, eight by arithmetic.
//!
//! A strip that needs unpacking goes this way for up to two groups of rows: unpacking it again
//! for the next tile is cheaper than writing it to memory and reading it back.
#![allow(unsafe_code)]

use std::arch::x86_64::*;
use std::ops::Range;

use super::formats::Format;
use super::{PLAIN, Rows, store};
use crate::isa::asks_ahead;
use crate::pack::strips::{BLOCK, VECTOR};
use crate::product::Job;
use crate::product::activations::Activations;

/// How far ahead of the codes in use the stream is asked for, where that helps.
const AHEAD: usize = 2048;
/// From this many rows on the arithmetic leaves gaps in the stream that no prefetcher of the
/// machine's own follows, so narrow codes are asked for in any case.
const SLOW: usize = 6;

/// # Safety
/// As `super::run`.
#[inline(always)]
pub(super) unsafe fn run<F: Format>(job: &Job<'_>, a: &Activations, strips: Range<usize>) {
    let asks = asks_ahead();
    for s in strips {
        let strip = job.weights.strip(s).as_ptr();
        let mut r = 0;
        while r < a.rows() {
            // SAFETY: rows `r .. r + n` lie in one group, as tiles of 8 do not straddle 16.
            unsafe {
                let n = (a.rows() - r).min(8);
                match n {
                    1 => tile_store::<F, 1>(job, a, s, strip, r, asks),
                    2 => tile_store::<F, 2>(job, a, s, strip, r, asks),
                    3 => tile_store::<F, 3>(job, a, s, strip, r, asks),
                    4 => tile_store::<F, 4>(job, a, s, strip, r, asks),
                    5 => tile_store::<F, 5>(job, a, s, strip, r, asks),
                    6 => tile_store::<F, 6>(job, a, s, strip, r, asks),
                    7 => tile_store::<F, 7>(job, a, s, strip, r, asks),
                    _ => tile_store::<F, 8>(job, a, s, strip, r, asks),
                }
                r += n;
            }
        }
    }
}

#[inline(always)]
unsafe fn tile_store<F: Format, const R: usize>(
    job: &Job<'_>,
    a: &Activations,
    s: usize,
    strip: *const u8,
    r: usize,
    asks: bool,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let rows = Rows::new(a, r, F::start(a.planes()), F::HALVES);
        let acc = tile::<F, R>(strip, rows, a.blocks(), asks || R >= SLOW && F::CODES < PLAIN);
        for (i, acc) in acc.into_iter().enumerate() {
            store(job, r + i, s, acc);
        }
    }
}

/// One strip by `R` rows, over all of k.
#[inline(always)]
unsafe fn tile<F: Format, const R: usize>(
    strip: *const u8,
    rows: Rows,
    blocks: usize,
    asks: bool,
) -> [__m512; R] {
    // SAFETY: the strip has `blocks` blocks and the rows that many activations; a prefetch may
    // point anywhere.
    unsafe {
        let mut acc = [_mm512_setzero_ps(); R];
        for b in 0..blocks {
            if asks {
                let ahead = F::codes_at(strip, b).wrapping_add(AHEAD);
                for line in 0..F::CODES / VECTOR + 1 {
                    _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(line * VECTOR).cast());
                }
            }
            let w = F::block(strip, b);
            let slot = b * rows.group;
            let q = rows.q.add(slot * BLOCK);
            let s = rows.s.add(slot);
            if F::HALVES {
                let start = rows.start.add(2 * slot);
                for h in 0..2 {
                    let mut sums: [__m512i; R] =
                        std::array::from_fn(|i| _mm512_set1_epi32(*start.add(2 * i + h)));
                    dot::<R>(&mut sums, &w.codes, 4 * h..4 * h + 4, q);
                    let d = if h == 0 { w.d } else { w.d_high };
                    for i in 0..R {
                        let ds = _mm512_mul_ps(d, _mm512_set1_ps(*s.add(i)));
                        acc[i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[i]), ds, acc[i]);
                    }
                }
            } else {
                let mut sums: [__m512i; R] = std::array::from_fn(|i| {
                    if F::MINIMUM {
                        _mm512_setzero_si512()
                    } else {
                        _mm512_set1_epi32(*rows.start.add(slot + i))
                    }
                });
                dot::<R>(&mut sums, &w.codes, 0..8, q);
                for i in 0..R {
                    let ds = _mm512_mul_ps(w.d, _mm512_set1_ps(*s.add(i)));
                    acc[i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[i]), ds, acc[i]);
                    if F::MINIMUM {
                        let sum = _mm512_set1_ps(*rows.sum.add(slot + i));
                        acc[i] = _mm512_fmadd_ps(w.m, sum, acc[i]);
                    }
                }
            }
        }
        acc
    }
}

/// Adds the groups of a block to the integer sums of `R` rows that lie 32 bytes apart.
#[inline(always)]
unsafe fn dot<const R: usize>(
    sums: &mut [__m512i; R],
    codes: &[__m512i; 8],
    groups: Range<usize>,
    q: *const i8,
) {
    for j in groups {
        for (i, sum) in sums.iter_mut().enumerate() {
            // SAFETY: row `i` has 32 codes at `q + 32 i`.
            unsafe {
                let x = q.add(i * BLOCK + 4 * j).cast::<i32>().read_unaligned();
                *sum = _mm512_dpbusd_epi32(*sum, codes[j], _mm512_set1_epi32(x));
            }
        }
    }
}

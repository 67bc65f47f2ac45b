//! Many rows: two strips at a time are unpacked to memory, a chunk of k at a time, and used for
//! all rows in tiles of two strips by four rows.
#![allow(unsafe_code)]

use std::arch::x86_64::*;
use std::cell::Cell;
use std::ops::Range;

use super::ahead::Ahead;
use super::formats::Format;
use super::{Rows, store};
use crate::pack::strips::{BLOCK, STRIP, VECTOR};
use crate::product::Job;
use crate::product::activations::Activations;

/// Most blocks unpacked at once: with two strips 23 KiB, which stay in the first-level cache
/// beside the activations of a tile.
const CHUNK: usize = 18;
/// Rows of a tile; a divisor of the rows of a group, so that no tile straddles two groups.
const ROWS: usize = 4;

/// A block of a strip in plain form, in memory.
#[repr(C, align(64))]
struct Plain {
    codes: [[u8; VECTOR]; 8],
    d: [f32; STRIP],
    /// The minimum, or the scale of the second half.
    other: [f32; STRIP],
}

/// Scratch of a thread, kept from product to product.
struct Scratch {
    /// Unpacked blocks, `[block][strip]`; only its capacity is used.
    plain: Vec<Plain>,
    /// Sums so far between chunks, `[row][strip][output]`.
    acc: Vec<f32>,
}

thread_local! {
    static SCRATCH: Cell<Option<Scratch>> = const { Cell::new(None) };
}

/// # Safety
/// As `super::run`.
#[inline(always)]
pub(super) unsafe fn run<F: Format>(job: &Job<'_>, a: &Activations, strips: Range<usize>) {
    let mut scratch = SCRATCH.take().unwrap_or(Scratch { plain: Vec::new(), acc: Vec::new() });
    scratch.plain.reserve(2 * CHUNK);
    if scratch.acc.len() < a.rows() * 2 * STRIP {
        scratch.acc.resize(a.rows() * 2 * STRIP, 0.0);
    }
    let mut s = strips.start;
    while s < strips.end {
        // SAFETY: the caller's promise; the scratch holds a chunk of two strips.
        unsafe {
            if s + 1 < strips.end {
                strips_by_rows::<F, 2>(job, a, s, &mut scratch);
            } else {
                strips_by_rows::<F, 1>(job, a, s, &mut scratch);
            }
        }
        s += 2;
    }
    SCRATCH.set(Some(scratch));
}

#[inline(always)]
unsafe fn strips_by_rows<F: Format, const S: usize>(
    job: &Job<'_>,
    a: &Activations,
    s: usize,
    scratch: &mut Scratch,
) {
    let blocks = a.blocks();
    let chunks = blocks.div_ceil(CHUNK).max(1);
    let chunk = blocks.div_ceil(chunks).max(1);
    let plain = scratch.plain.as_mut_ptr();
    let acc = scratch.acc.as_mut_ptr();
    for c in 0..chunks {
        let first = (c * chunk).min(blocks);
        let n = chunk.min(blocks - first);
        // SAFETY: `n` is at most CHUNK; strips and blocks are in range.
        unsafe {
            for t in 0..S {
                let strip = job.weights.strip(s + t).as_ptr();
                for b in 0..n {
                    unpack::<F>(strip, first + b, plain.add(b * S + t));
                }
            }
            let tiles = a.rows().div_ceil(ROWS);
            let mut ahead = Ahead::new::<F>(job, (s, S), first + n, chunk, tiles * n);
            let mut r = 0;
            while r < a.rows() {
                let rows = Rows::new(a, r, F::start(a.planes()), F::HALVES).at(first, F::HALVES);
                let step = Step { s, r, n, first: c == 0, last: c + 1 == chunks };
                let acc = acc.add(r * S * STRIP);
                let count = (a.rows() - r).min(ROWS);
                match count {
                    1 => tile::<F, S, 1>(job, plain, rows, acc, step, &mut ahead),
                    2 => tile::<F, S, 2>(job, plain, rows, acc, step, &mut ahead),
                    3 => tile::<F, S, 3>(job, plain, rows, acc, step, &mut ahead),
                    _ => tile::<F, S, 4>(job, plain, rows, acc, step, &mut ahead),
                }
                r += count;
            }
        }
    }
}

/// Where a tile stands.
#[derive(Clone, Copy)]
struct Step {
    /// First strip and first row.
    s: usize,
    r: usize,
    /// Blocks of this chunk.
    n: usize,
    /// Whether the chunk is the first or the last of k.
    first: bool,
    last: bool,
}

#[inline(always)]
unsafe fn unpack<F: Format>(strip: *const u8, b: usize, to: *mut Plain) {
    // SAFETY: the caller gives a block of the strip and room for it.
    unsafe {
        let w = F::block(strip, b);
        for (j, codes) in w.codes.into_iter().enumerate() {
            _mm512_store_si512((&raw mut (*to).codes[j]).cast(), codes);
        }
        _mm512_store_ps((&raw mut (*to).d).cast(), w.d);
        let other = if F::HALVES { w.d_high } else { w.m };
        _mm512_store_ps((&raw mut (*to).other).cast(), other);
    }
}

/// `S` strips by `R` rows, over the blocks of a chunk.
#[inline(always)]
unsafe fn tile<F: Format, const S: usize, const R: usize>(
    job: &Job<'_>,
    plain: *const Plain,
    rows: Rows,
    sums_so_far: *mut f32,
    step: Step,
    ahead: &mut Ahead,
) {
    // SAFETY: the caller gives `n * S` unpacked blocks, `R` rows from their first block on, and
    // room for `R * S` vectors of sums.
    unsafe {
        let mut acc = [[_mm512_setzero_ps(); S]; R];
        if !step.first {
            for (i, acc) in acc.as_flattened_mut().iter_mut().enumerate() {
                *acc = _mm512_loadu_ps(sums_so_far.add(i * STRIP));
            }
        }
        for b in 0..step.n {
            ahead.ask();
            let w: [*const Plain; S] = std::array::from_fn(|t| plain.add(b * S + t));
            let slot = b * rows.group;
            let q = rows.q.add(slot * BLOCK);
            let s = rows.s.add(slot);
            for h in 0..if F::HALVES { 2 } else { 1 } {
                let mut sums: [[__m512i; S]; R] = std::array::from_fn(|i| {
                    let start = if F::MINIMUM {
                        _mm512_setzero_si512()
                    } else if F::HALVES {
                        _mm512_set1_epi32(*rows.start.add(2 * (slot + i) + h))
                    } else {
                        _mm512_set1_epi32(*rows.start.add(slot + i))
                    };
                    [start; S]
                });
                let groups = if F::HALVES { 4 * h..4 * h + 4 } else { 0..8 };
                for j in groups {
                    let codes: [__m512i; S] = std::array::from_fn(|t| {
                        _mm512_load_si512((&raw const (*w[t]).codes[j]).cast())
                    });
                    for (i, sums) in sums.iter_mut().enumerate() {
                        let x = q.add(i * BLOCK + 4 * j).cast::<i32>().read_unaligned();
                        let x = _mm512_set1_epi32(x);
                        for (sum, codes) in sums.iter_mut().zip(codes) {
                            *sum = _mm512_dpbusd_epi32(*sum, codes, x);
                        }
                    }
                }
                let scales: [__m512; S] = std::array::from_fn(|t| {
                    let d = if h == 0 { &raw const (*w[t]).d } else { &raw const (*w[t]).other };
                    _mm512_load_ps(d.cast())
                });
                for (i, (acc, sums)) in acc.iter_mut().zip(sums).enumerate() {
                    let s = _mm512_set1_ps(*s.add(i));
                    for t in 0..S {
                        let ds = _mm512_mul_ps(scales[t], s);
                        acc[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[t]), ds, acc[t]);
                    }
                }
            }
            if F::MINIMUM {
                for (i, acc) in acc.iter_mut().enumerate() {
                    let sum = _mm512_set1_ps(*rows.sum.add(slot + i));
                    for (t, acc) in acc.iter_mut().enumerate() {
                        let m = _mm512_load_ps((&raw const (*w[t]).other).cast());
                        *acc = _mm512_fmadd_ps(m, sum, *acc);
                    }
                }
            }
        }
        for (i, acc) in acc.into_iter().enumerate() {
            for (t, acc) in acc.into_iter().enumerate() {
                if step.last {
                    store(job, step.r + i, step.s + t, acc);
                } else {
                    _mm512_storeu_ps(sums_so_far.add((i * S + t) * STRIP), acc);
                }
            }
        }
    }
}

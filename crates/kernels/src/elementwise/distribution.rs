//! Reductions over a row of scores: softmax, log-sum-exp, argmax.
//!
//! The sum of exponentials is taken in 16 lanes over blocks of 1024 values, the blocks' sums in
//! double precision: a vocabulary of 262,144 loses nothing to the length of the sum.
#![allow(unsafe_code)]

use super::{load, store};
use crate::Pool;
use crate::functions::exp;
use crate::lanes::{LANES, Lanes, entry};

/// Values summed in single precision.
const BLOCK: usize = 1024;

/// The largest value; minus infinity if there is none but NaN.
#[inline(always)]
unsafe fn largest<L: Lanes>(x: *const f32, n: usize) -> f32 {
    // SAFETY: the caller promises `n` values at `x`.
    unsafe {
        let mut max = [L::splat(f32::NEG_INFINITY); 4];
        let whole = n / (4 * LANES) * (4 * LANES);
        for i in (0..whole).step_by(4 * LANES) {
            for (j, max) in max.iter_mut().enumerate() {
                *max = L::load(x.add(i + j * LANES)).max(*max);
            }
        }
        let max = max[0].max(max[1]).max(max[2].max(max[3]));
        let mut max = max.reduce_max();
        for i in whole..n {
            let v = *x.add(i);
            max = if v > max { v } else { max };
        }
        max
    }
}

/// The sum of `e^(x - shift)`; writes the terms to `out` unless it is null.
#[inline(always)]
unsafe fn sum_exp<L: Lanes>(x: *const f32, n: usize, shift: f32, out: *mut f32) -> f64 {
    let mut total = 0.0;
    // SAFETY: the caller promises `n` values at `x`, and at `out` unless it is null.
    unsafe {
        let shift = L::splat(shift);
        for block in (0..n).step_by(BLOCK) {
            let end = n.min(block + BLOCK);
            let mut sum = L::splat(0.0);
            for i in (block..end).step_by(LANES) {
                let mut p = exp::<L>(load::<L>(x.add(i), end - i).sub(shift));
                if !out.is_null() {
                    store(p, out.add(i), end - i);
                }
                if end - i < LANES {
                    // Lanes past the end hold e^(0 - shift): read the terms back without them.
                    let mut tail = [0.0f32; LANES];
                    p.store_range(tail.as_mut_ptr(), 0, end - i);
                    p = L::load(tail.as_ptr());
                }
                sum = sum.add(p);
            }
            total += f64::from(sum.reduce_add());
        }
    }
    total
}

#[inline(always)]
unsafe fn times<L: Lanes>(x: *mut f32, n: usize, factor: f32) {
    // SAFETY: the caller promises `n` values at `x`.
    unsafe {
        let factor = L::splat(factor);
        for i in (0..n).step_by(LANES) {
            store(load::<L>(x.add(i), n - i).mul(factor), x.add(i), n - i);
        }
    }
}

entry!(fn run_largest(x: *const f32, n: usize) -> f32 = largest);
entry!(fn run_sum_exp(x: *const f32, n: usize, shift: f32, out: *mut f32) -> f64 = sum_exp);
entry!(fn run_times(x: *mut f32, n: usize, factor: f32) = times);

/// Replaces scores by their probabilities, `e^(x - max) / sum`.
///
/// Where there is no finite score (all minus infinity, or empty) the result is all zeros.
pub fn softmax(pool: &Pool, x: &mut [f32]) {
    let (isa, n) = (pool.isa(), x.len());
    // SAFETY: the slice holds `n` values; the pool's path is available.
    unsafe {
        let max = run_largest(isa, x.as_ptr(), n);
        if max == f32::NEG_INFINITY {
            x.fill(0.0);
            return;
        }
        let p = x.as_mut_ptr();
        let sum = run_sum_exp(isa, p, n, max, p);
        run_times(isa, p, n, (1.0 / sum) as f32);
    }
}

/// `ln(sum of e^x)`; minus infinity where there is no score above it.
pub fn log_sum_exp(pool: &Pool, x: &[f32]) -> f32 {
    let (isa, n) = (pool.isa(), x.len());
    // SAFETY: the slice holds `n` values and no terms are written; the pool's path is available.
    unsafe {
        let max = run_largest(isa, x.as_ptr(), n);
        if max == f32::NEG_INFINITY {
            return max;
        }
        let sum = run_sum_exp(isa, x.as_ptr(), n, max, std::ptr::null_mut());
        (f64::from(max) + sum.ln()) as f32
    }
}

/// Index of the largest value, the first of equals; NaN counts as smaller than anything. `None`
/// if there is no other value.
pub fn argmax(pool: &Pool, x: &[f32]) -> Option<usize> {
    let mut best: Option<(f32, usize)> = None;
    for (i, block) in x.chunks(BLOCK).enumerate() {
        // SAFETY: the chunk holds its values; the pool's path is available.
        let max = unsafe { run_largest(pool.isa(), block.as_ptr(), block.len()) };
        if best.is_none_or(|(b, _)| max > b) {
            // A block of nothing but NaN reports minus infinity without holding it.
            if max > f32::NEG_INFINITY || block.contains(&max) {
                best = Some((max, i * BLOCK));
            }
        }
    }
    let (max, start) = best?;
    x[start..].iter().position(|v| *v == max).map(|i| start + i)
}

//! Root-mean-square normalisation.
#![allow(unsafe_code)]

use super::{load, spread, store};
use crate::Pool;
use crate::disjoint::Disjoint;
use crate::error::{KernelError, Result};
use crate::lanes::{LANES, Lanes, entry};

/// Values a thread must get for a part of its own.
const GRAIN: usize = 1 << 14;

/// Norms `rows` rows of `n` values at `x` into `out`, which may be `x`.
#[inline(always)]
unsafe fn norm_rows<L: Lanes>(
    x: *const f32,
    w: *const f32,
    eps: f32,
    out: *mut f32,
    rows: usize,
    n: usize,
) {
    for row in 0..rows {
        // SAFETY: the caller promises `rows * n` values at `x` and `out`, and `n` at `w`.
        unsafe {
            let (x, out) = (x.add(row * n), out.add(row * n));
            // Two accumulators, by the parity of the group of 16, hide the latency of the sum.
            let mut sum = [L::splat(0.0); 2];
            for i in (0..n).step_by(2 * LANES) {
                let v = load::<L>(x.add(i), n - i);
                sum[0] = v.fma(v, sum[0]);
                if i + LANES < n {
                    let v = load::<L>(x.add(i + LANES), n - i - LANES);
                    sum[1] = v.fma(v, sum[1]);
                }
            }
            let mean = sum[0].add(sum[1]).reduce_add() / n as f32;
            let factor = L::splat(1.0 / (mean + eps).sqrt());
            for i in (0..n).step_by(LANES) {
                let v = load::<L>(x.add(i), n - i).mul(factor);
                store(v.mul(load::<L>(w.add(i), n - i)), out.add(i), n - i);
            }
        }
    }
}

entry!(fn run_norm(x: *const f32, w: *const f32, eps: f32, out: *mut f32, rows: usize, n: usize) = norm_rows);

/// `out = x / sqrt(mean(x^2) + eps) * w`, row by row: rows are as long as `w`
/// (Zhang and Sennrich, arXiv 1910.07467).
///
/// Errors: `x` is not a whole number of rows, or `out` has another length.
pub fn rms_norm(pool: &Pool, x: &[f32], w: &[f32], eps: f32, out: &mut [f32]) -> Result<()> {
    if x.len() != out.len() {
        return Err(KernelError::Length { what: "normed rows", expected: x.len(), got: out.len() });
    }
    let rows = whole_rows(x.len(), w.len())?;
    // Only read through this pointer.
    run(pool, x.as_ptr(), w, eps, out.as_mut_ptr(), rows);
    Ok(())
}

/// Like [`rms_norm`], replacing `x`. A norm per head is this with `w` as long as a head.
pub fn rms_norm_in_place(pool: &Pool, x: &mut [f32], w: &[f32], eps: f32) -> Result<()> {
    let rows = whole_rows(x.len(), w.len())?;
    let x = x.as_mut_ptr();
    run(pool, x, w, eps, x, rows);
    Ok(())
}

fn whole_rows(values: usize, n: usize) -> Result<usize> {
    if n == 0 || !values.is_multiple_of(n) {
        return Err(KernelError::Mismatch("values are not a whole number of rows of the weight"));
    }
    Ok(values / n)
}

/// `x` and `out` hold `rows` rows as long as `w`; they are the same or do not overlap.
fn run(pool: &Pool, x: *const f32, w: &[f32], eps: f32, out: *mut f32, rows: usize) {
    let (isa, n) = (pool.isa(), w.len());
    let (x, out) = (Disjoint::from_ptr(x.cast_mut()), Disjoint::from_ptr(out));
    spread(pool, rows, GRAIN.div_ceil(n), |range| {
        let (x, out) = (x.at(range.start * n), out.at(range.start * n));
        // SAFETY: row ranges are disjoint and inside both buffers; the pool's path is available.
        unsafe { run_norm(isa, x, w.as_ptr(), eps, out, range.len(), n) };
    });
}

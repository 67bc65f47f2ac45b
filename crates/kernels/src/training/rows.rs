//! Forward and backward of what works row by row: norm, SwiGLU, rotary positions, cross-entropy.
#![allow(unsafe_code)]

use super::length;
use crate::Pool;
use crate::disjoint::Disjoint;
use crate::error::{KernelError, Result};
use crate::functions::{exp, silu};
use crate::lanes::{LANES, Lanes, entry};

/// Values of one part of a loop over rows.
const PART: usize = 1 << 14;

/// Calls `f(first, rows)` for parts of `rows` rows of `n` values.
fn by_rows(pool: &Pool, rows: usize, n: usize, f: impl Fn(usize, usize) + Sync) {
    let each = (PART / n.max(1)).max(1);
    pool.run(rows.div_ceil(each), &|part| {
        let first = part * each;
        f(first, each.min(rows - first));
    });
}

/// `values` in rows of `n`, a multiple of 16.
fn rows_of(values: usize, n: usize) -> Result<usize> {
    if n == 0 || !n.is_multiple_of(LANES) || !values.is_multiple_of(n) {
        return Err(KernelError::Mismatch("rows must be whole, of a multiple of 16 values"));
    }
    Ok(values / n)
}

#[inline(always)]
unsafe fn norm_rows<L: Lanes>(
    x: *const f32,
    w: *const f32,
    eps: f32,
    y: *mut f32,
    factors: *mut f32,
    rows: usize,
    n: usize,
) {
    for row in 0..rows {
        // SAFETY: the caller promises `rows` rows at `x` and `y`, `rows` factors, `n` weights.
        unsafe {
            let (x, y) = (x.add(row * n), y.add(row * n));
            let mut sum = L::splat(0.0);
            for i in (0..n).step_by(LANES) {
                let v = L::load(x.add(i));
                sum = v.fma(v, sum);
            }
            let factor = 1.0 / (sum.reduce_add() / n as f32 + eps).sqrt();
            *factors.add(row) = factor;
            for i in (0..n).step_by(LANES) {
                let v = L::load(x.add(i)).mul(L::splat(factor));
                v.mul(L::load(w.add(i))).store(y.add(i));
            }
        }
    }
}

entry!(fn run_norm(x: *const f32, w: *const f32, eps: f32, y: *mut f32, factors: *mut f32, rows: usize, n: usize) = norm_rows);

/// `y = x * factor * w` by rows as long as `w`, with `factor = 1 / sqrt(mean(x^2) + eps)`, which is
/// kept for the backward pass.
///
/// Errors: lengths that do not fit, or rows of no multiple of 16.
pub fn norm(
    pool: &Pool,
    x: &[f32],
    w: &[f32],
    eps: f32,
    y: &mut [f32],
    factors: &mut [f32],
) -> Result<()> {
    let (n, rows) = (w.len(), rows_of(x.len(), w.len())?);
    length("normed rows", x.len(), y.len())?;
    length("factors", rows, factors.len())?;
    let (isa, y, factors) = (pool.isa(), Disjoint::new(y), Disjoint::new(factors));
    by_rows(pool, rows, n, |first, count| {
        let x = x[first * n..].as_ptr();
        // SAFETY: row ranges are disjoint and inside the buffers; the pool's path is available.
        unsafe {
            run_norm(isa, x, w.as_ptr(), eps, y.at(first * n), factors.at(first), count, n);
        }
    });
    Ok(())
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn norm_back<L: Lanes>(
    dy: *const f32,
    x: *const f32,
    w: *const f32,
    factors: *const f32,
    dx: *mut f32,
    rows: usize,
    n: usize,
) {
    for row in 0..rows {
        // SAFETY: as `norm_rows`.
        unsafe {
            let (dy, x, dx) = (dy.add(row * n), x.add(row * n), dx.add(row * n));
            let factor = *factors.add(row);
            let mut sum = L::splat(0.0);
            for i in (0..n).step_by(LANES) {
                let along = L::load(dy.add(i)).mul(L::load(w.add(i)));
                sum = along.fma(L::load(x.add(i)), sum);
            }
            let pull = L::splat(-sum.reduce_add() * factor * factor * factor / n as f32);
            for i in (0..n).step_by(LANES) {
                let along = L::load(dy.add(i)).mul(L::load(w.add(i))).mul(L::splat(factor));
                let back = L::load(x.add(i)).fma(pull, along);
                L::load(dx.add(i)).add(back).store(dx.add(i));
            }
        }
    }
}

entry!(fn run_norm_back(dy: *const f32, x: *const f32, w: *const f32, factors: *const f32, dx: *mut f32, rows: usize, n: usize) = norm_back);

/// Columns `0..16` of the gradient of the norm's weight.
#[inline(always)]
unsafe fn norm_weight<L: Lanes>(
    dy: *const f32,
    x: *const f32,
    factors: *const f32,
    dw: *mut f32,
    rows: usize,
    n: usize,
) {
    // SAFETY: the caller promises rows of `n` values, of which 16 begin at the pointers.
    unsafe {
        let mut sum = L::splat(0.0);
        for row in 0..rows {
            let scaled = L::load(x.add(row * n)).mul(L::splat(*factors.add(row)));
            sum = L::load(dy.add(row * n)).fma(scaled, sum);
        }
        L::load(dw).add(sum).store(dw);
    }
}

entry!(fn run_norm_weight(dy: *const f32, x: *const f32, factors: *const f32, dw: *mut f32, rows: usize, n: usize) = norm_weight);

/// Adds the gradients of [`norm`] for `dy` to `dx` and `dw`.
///
/// Errors: as [`norm`].
pub fn norm_backward(
    pool: &Pool,
    dy: &[f32],
    (x, w, factors): (&[f32], &[f32], &[f32]),
    dx: &mut [f32],
    dw: &mut [f32],
) -> Result<()> {
    let (n, rows) = (w.len(), rows_of(x.len(), w.len())?);
    length("gradients of normed rows", x.len(), dy.len())?;
    length("gradients of rows", x.len(), dx.len())?;
    length("gradients of a norm's weights", n, dw.len())?;
    length("factors", rows, factors.len())?;
    let (isa, dx, dw) = (pool.isa(), Disjoint::new(dx), Disjoint::new(dw));
    by_rows(pool, rows, n, |first, count| {
        let (dy, x, f) = (dy[first * n..].as_ptr(), x[first * n..].as_ptr(), &factors[first..]);
        // SAFETY: row ranges are disjoint and inside the buffers; the pool's path is available.
        unsafe { run_norm_back(isa, dy, x, w.as_ptr(), f.as_ptr(), dx.at(first * n), count, n) };
    });
    pool.run(n / LANES, &|part| {
        let at = part * LANES;
        if rows > 0 {
            let (dy, x) = (dy[at..].as_ptr(), x[at..].as_ptr());
            // SAFETY: columns are disjoint and inside the rows; the pool's path is available.
            unsafe { run_norm_weight(isa, dy, x, factors.as_ptr(), dw.at(at), rows, n) };
        }
    });
    Ok(())
}

#[inline(always)]
unsafe fn swiglu_rows<L: Lanes>(gu: *const f32, a: *mut f32, rows: usize, n: usize) {
    for row in 0..rows {
        for i in (0..n).step_by(LANES) {
            // SAFETY: the caller promises rows of `2 n` values at `gu` and of `n` at `a`.
            unsafe {
                let gu = gu.add(row * 2 * n + i);
                silu::<L>(L::load(gu)).mul(L::load(gu.add(n))).store(a.add(row * n + i));
            }
        }
    }
}

entry!(fn run_swiglu(gu: *const f32, a: *mut f32, rows: usize, n: usize) = swiglu_rows);

/// `a = silu(g) * u`, where a row of `gu` holds `n` values of g, then `n` of u.
///
/// Errors: lengths that do not fit, or `n` no multiple of 16.
pub fn swiglu(pool: &Pool, gu: &[f32], n: usize, a: &mut [f32]) -> Result<()> {
    let rows = rows_of(a.len(), n)?;
    length("gate and up rows", 2 * a.len(), gu.len())?;
    let (isa, a) = (pool.isa(), Disjoint::new(a));
    by_rows(pool, rows, n, |first, count| {
        // SAFETY: row ranges are disjoint and inside the buffers; the pool's path is available.
        unsafe { run_swiglu(isa, gu[first * 2 * n..].as_ptr(), a.at(first * n), count, n) };
    });
    Ok(())
}

#[inline(always)]
unsafe fn swiglu_back<L: Lanes>(da: *const f32, gu: *mut f32, rows: usize, n: usize) {
    for row in 0..rows {
        for i in (0..n).step_by(LANES) {
            // SAFETY: as `swiglu_rows`.
            unsafe {
                let gu = gu.add(row * 2 * n + i);
                let (g, u, da) = (L::load(gu), L::load(gu.add(n)), L::load(da.add(row * n + i)));
                let one = L::splat(1.0);
                let s = one.div(one.add(exp::<L>(L::splat(0.0).sub(g))));
                let value = g.mul(s);
                // s + g s (1 - s)
                let slope = value.mul(one.sub(s)).add(s);
                da.mul(u).mul(slope).store(gu);
                da.mul(value).store(gu.add(n));
            }
        }
    }
}

entry!(fn run_swiglu_back(da: *const f32, gu: *mut f32, rows: usize, n: usize) = swiglu_back);

/// Replaces `gu` by the gradients of [`swiglu`] for `da`.
///
/// Errors: as [`swiglu`].
pub fn swiglu_backward(pool: &Pool, da: &[f32], n: usize, gu: &mut [f32]) -> Result<()> {
    let rows = rows_of(da.len(), n)?;
    length("gate and up rows", 2 * da.len(), gu.len())?;
    let (isa, gu) = (pool.isa(), Disjoint::new(gu));
    by_rows(pool, rows, n, |first, count| {
        // SAFETY: row ranges are disjoint and inside the buffers; the pool's path is available.
        unsafe { run_swiglu_back(isa, da[first * n..].as_ptr(), gu.at(first * 2 * n), count, n) };
    });
    Ok(())
}

/// The turns of rotary encoding for positions `0..length`, pairs interleaved.
#[derive(Debug, Clone)]
pub struct Turns {
    /// `[position][head_dim]`: cosines, twice for each pair.
    cosines: Vec<f32>,
    /// `[position][head_dim]`: minus the sine, then the sine, for each pair.
    sines: Vec<f32>,
    length: usize,
    dim: usize,
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn turn_rows<L: Lanes>(
    x: *mut f32,
    stride: usize,
    heads: usize,
    dim: usize,
    cosines: *const f32,
    sines: *const f32,
    rows: usize,
    sign: f32,
) {
    for row in 0..rows {
        for head in 0..heads {
            for i in (0..dim).step_by(LANES) {
                // SAFETY: the caller promises `heads * dim` values in each row, and the tables.
                unsafe {
                    let x = x.add(row * stride + head * dim + i);
                    let (c, s) = (cosines.add(row * dim + i), sines.add(row * dim + i));
                    let v = L::load(x);
                    let across = v.swap_pairs().mul(L::load(s)).mul(L::splat(sign));
                    v.fma(L::load(c), across).store(x);
                }
            }
        }
    }
}

entry!(fn run_turn(x: *mut f32, stride: usize, heads: usize, dim: usize, cosines: *const f32, sines: *const f32, rows: usize, sign: f32) = turn_rows);

impl Turns {
    /// For heads of `dim` values (a multiple of 16) and positions below `length`.
    ///
    /// Errors: another `dim`.
    pub fn new(dim: usize, base: f32, length: usize) -> Result<Self> {
        rows_of(dim, dim)?;
        let (mut cosines, mut sines) = (Vec::new(), Vec::new());
        for position in 0..length {
            for pair in 0..dim / 2 {
                let angle = position as f64 * f64::from(base).powf(-2.0 * pair as f64 / dim as f64);
                let (sin, cos) = angle.sin_cos();
                cosines.extend([cos as f32; 2]);
                sines.extend([-sin as f32, sin as f32]);
            }
        }
        Ok(Self { cosines, sines, length, dim })
    }

    /// Turns the first `heads` heads of rows `stride` apart; row `i` is at position `i mod length`
    /// of its sequence. `back` turns the other way: the gradient.
    ///
    /// Errors: rows that are too short, or sequences that are not whole.
    pub fn apply(
        &self,
        pool: &Pool,
        x: &mut [f32],
        stride: usize,
        heads: usize,
        back: bool,
    ) -> Result<()> {
        if stride < heads * self.dim
            || stride == 0
            || self.length == 0
            || !x.len().is_multiple_of(stride * self.length)
        {
            return Err(KernelError::Mismatch("rows to turn are not whole sequences of heads"));
        }
        let (isa, dim, length) = (pool.isa(), self.dim, self.length);
        let sequences = x.len() / (stride * length);
        let (x, sign) = (Disjoint::new(x), if back { -1.0 } else { 1.0 });
        // Two parts a sequence, so that one sequence keeps two threads busy.
        pool.run(2 * sequences, &|part| {
            let (sequence, half) = (part / 2, part % 2);
            let (from, to) = (half * (length / 2), if half == 0 { length / 2 } else { length });
            let (c, s) = (&self.cosines[from * dim..], &self.sines[from * dim..]);
            let x = x.at((sequence * length + from) * stride);
            // SAFETY: parts are disjoint rows inside `x`; the tables hold every position.
            unsafe {
                run_turn(isa, x, stride, heads, dim, c.as_ptr(), s.as_ptr(), to - from, sign);
            }
        });
        Ok(())
    }
}

/// Turns one row of logits into its gradient; returns the loss, `-ln p(target)`.
#[inline(always)]
unsafe fn entropy_row<L: Lanes>(logits: *mut f32, n: usize, target: usize, weight: f32) -> f64 {
    // SAFETY: the caller promises `n` logits, a multiple of 16, and a target among them.
    unsafe {
        let mut top = L::splat(f32::NEG_INFINITY);
        for i in (0..n).step_by(LANES) {
            top = L::load(logits.add(i)).max(top);
        }
        let top = top.reduce_max();
        let own = *logits.add(target);
        let mut sum = L::splat(0.0);
        for i in (0..n).step_by(LANES) {
            let p = exp::<L>(L::load(logits.add(i)).sub(L::splat(top)));
            p.store(logits.add(i));
            sum = sum.add(p);
        }
        let sum = sum.reduce_add();
        let factor = L::splat(weight / sum);
        for i in (0..n).step_by(LANES) {
            L::load(logits.add(i)).mul(factor).store(logits.add(i));
        }
        *logits.add(target) -= weight;
        f64::from(sum).ln() + f64::from(top) - f64::from(own)
    }
}

entry!(fn run_entropy(logits: *mut f32, n: usize, target: usize, weight: f32) -> f64 = entropy_row);

/// Replaces rows of `n` logits by the gradient of `sum_i weights[i] * -ln p_i(targets[i])`, and
/// writes each row's unweighted `-ln p` to `losses`. Token `never`, if given, has no probability.
///
/// Errors: lengths that do not fit, `n` no multiple of 16, a target that is `never` or out of range.
pub fn cross_entropy(
    pool: &Pool,
    logits: &mut [f32],
    n: usize,
    (targets, weights): (&[u32], &[f32]),
    never: Option<u32>,
    losses: &mut [f64],
) -> Result<()> {
    let rows = rows_of(logits.len(), n)?;
    length("targets", rows, targets.len())?;
    length("weights", rows, weights.len())?;
    length("losses", rows, losses.len())?;
    if targets.iter().any(|&t| t as usize >= n || Some(t) == never) {
        return Err(KernelError::Mismatch("a target is no token that can be predicted"));
    }
    if never.is_some_and(|token| token as usize >= n) {
        return Err(KernelError::Mismatch("the forbidden token is not in the vocabulary"));
    }
    let (isa, logits, losses) = (pool.isa(), Disjoint::new(logits), Disjoint::new(losses));
    by_rows(pool, rows, n, |first, count| {
        for row in first..first + count {
            // SAFETY: rows are disjoint; tokens were checked; the pool's path is available.
            unsafe {
                let start = logits.at(row * n);
                if let Some(token) = never {
                    *start.add(token as usize) = f32::NEG_INFINITY;
                }
                *losses.at(row) = run_entropy(isa, start, n, targets[row] as usize, weights[row]);
            }
        }
    });
    Ok(())
}

/// `x += y`, value by value.
///
/// Errors: other lengths.
pub fn add_into(pool: &Pool, x: &mut [f32], y: &[f32]) -> Result<()> {
    crate::elementwise::add(pool, x, y)
}

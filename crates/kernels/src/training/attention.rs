//! Attention among the rows of short sequences, forward and backward.
//!
//! One part is one head of one sequence: its scores live in the thread's own scratch and are never
//! stored; the backward pass computes them again from the kept normalisers.
#![allow(unsafe_code)]

use std::cell::Cell;

use super::gemm::{Place, View, product_here};
use super::length;
use crate::Pool;
use crate::aligned::AlignedBuffer;
use crate::disjoint::Disjoint;
use crate::error::{KernelError, Result};
use crate::functions::exp;
use crate::isa::Isa;
use crate::lanes::{LANES, Lanes, entry};

thread_local! {
    /// Scores, and the gradients of scores.
    static SCORES: Cell<[AlignedBuffer; 2]> = Cell::new([AlignedBuffer::default(), AlignedBuffer::default()]);
}

/// Which rows of its sequence a row reads.
#[derive(Debug, Clone, Copy)]
pub enum Sight<'a> {
    /// All of them.
    Full,
    /// Itself and the earlier ones.
    Causal,
    /// `bits[row * length + column]`, the same for every sequence and head. Every row must read one.
    Bits(&'a [bool]),
}

/// The shape of an attention problem: `rows` holds whole sequences of `length` rows; a row of `qkv`
/// is the queries of all heads, then their keys, then their values.
#[derive(Debug, Clone, Copy)]
pub struct Heads<'a> {
    /// Rows of a sequence, a multiple of 16.
    pub length: usize,
    /// Heads.
    pub heads: usize,
    /// Values of a head.
    pub dim: usize,
    /// Who reads whom.
    pub sight: Sight<'a>,
}

impl Heads<'_> {
    fn width(&self) -> usize {
        self.heads * self.dim
    }

    /// The number of sequences.
    fn check(&self, qkv: usize, out: usize) -> Result<usize> {
        let per = self.length * self.width();
        if per == 0 || !self.length.is_multiple_of(LANES) || !out.is_multiple_of(per) {
            return Err(KernelError::Mismatch(
                "attention needs whole sequences of a multiple of 16 rows",
            ));
        }
        length("queries, keys and values", 3 * out, qkv)?;
        if let Sight::Bits(bits) = self.sight {
            length("visibility", self.length * self.length, bits.len())?;
        }
        Ok(out / per)
    }
}

/// Masks and scales a row of scores. Unseen ones become minus infinity.
#[inline(always)]
fn hide(row: &mut [f32], i: usize, sight: Sight<'_>) {
    match sight {
        Sight::Full => {}
        Sight::Causal => row[i + 1..].fill(f32::NEG_INFINITY),
        Sight::Bits(bits) => {
            let seen = &bits[i * row.len()..][..row.len()];
            for (score, &seen) in row.iter_mut().zip(seen) {
                if !seen {
                    *score = f32::NEG_INFINITY;
                }
            }
        }
    }
}

/// `p = e^(scale * (x - top)) / sum`; returns the normaliser, `scale * top + ln(sum)`.
#[inline(always)]
unsafe fn soft_row<L: Lanes>(x: *mut f32, n: usize, scale: f32) -> f32 {
    // SAFETY: the caller promises `n` values, a multiple of 16.
    unsafe {
        let mut top = L::splat(f32::NEG_INFINITY);
        for i in (0..n).step_by(LANES) {
            top = L::load(x.add(i)).max(top);
        }
        let top = top.reduce_max();
        let mut sum = L::splat(0.0);
        for i in (0..n).step_by(LANES) {
            let p = exp::<L>(L::load(x.add(i)).sub(L::splat(top)).mul(L::splat(scale)));
            p.store(x.add(i));
            sum = sum.add(p);
        }
        let sum = sum.reduce_add();
        let factor = L::splat(1.0 / sum);
        for i in (0..n).step_by(LANES) {
            L::load(x.add(i)).mul(factor).store(x.add(i));
        }
        scale * top + sum.ln()
    }
}

entry!(fn run_soft(x: *mut f32, n: usize, scale: f32) -> f32 = soft_row);

/// `p = e^(scale * x - normaliser)`.
#[inline(always)]
unsafe fn again_row<L: Lanes>(x: *mut f32, n: usize, scale: f32, normaliser: f32) {
    for i in (0..n).step_by(LANES) {
        // SAFETY: the caller promises `n` values, a multiple of 16.
        unsafe {
            let score = L::load(x.add(i)).fma(L::splat(scale), L::splat(-normaliser));
            exp::<L>(score).store(x.add(i));
        }
    }
}

entry!(fn run_again(x: *mut f32, n: usize, scale: f32, normaliser: f32) = again_row);

/// `ds = scale * p * (dp - along)`, into `dp`.
#[inline(always)]
unsafe fn back_row<L: Lanes>(p: *const f32, dp: *mut f32, n: usize, scale: f32, along: f32) {
    for i in (0..n).step_by(LANES) {
        // SAFETY: the caller promises `n` values, a multiple of 16.
        unsafe {
            let pull = L::load(dp.add(i)).sub(L::splat(along)).mul(L::splat(scale));
            L::load(p.add(i)).mul(pull).store(dp.add(i));
        }
    }
}

entry!(fn run_back(p: *const f32, dp: *mut f32, n: usize, scale: f32, along: f32) = back_row);

/// The parts of a row of `qkv`, from the first value of one head of one sequence.
struct Parts<'a> {
    q: View<'a>,
    k: View<'a>,
    v: View<'a>,
}

impl<'a> Parts<'a> {
    fn new(shape: &Heads<'_>, qkv: &'a [f32], sequence: usize, head: usize) -> Self {
        let (width, dim, rows) = (shape.width(), shape.dim, shape.length);
        let part = |which: usize| {
            let start = sequence * rows * 3 * width + which * width + head * dim;
            View::wide(&qkv[start..], rows, dim, 3 * width)
        };
        Self { q: part(0), k: part(1), v: part(2) }
    }
}

fn place(start: *mut f32, stride: usize, add: bool) -> Place {
    Place { start: Disjoint::from_ptr(start), stride, add }
}

/// Scores of one head into `scores`, then probabilities; `normaliser(i)` is kept or given.
unsafe fn probabilities(
    isa: Isa,
    shape: &Heads<'_>,
    parts: &Parts<'_>,
    scores: &mut [f32],
    normalisers: *mut f32,
    known: bool,
) {
    let (n, scale) = (shape.length, 1.0 / (shape.dim as f32).sqrt());
    // SAFETY: the caller promises checked views, `n * n` scores and `n` normalisers.
    unsafe {
        let to = place(scores.as_mut_ptr(), n, false);
        product_here(isa, parts.q, parts.k.transposed(), to);
        for (i, row) in scores[..n * n].chunks_exact_mut(n).enumerate() {
            hide(row, i, shape.sight);
            let kept = normalisers.add(i);
            match known {
                true => run_again(isa, row.as_mut_ptr(), n, scale, *kept),
                false => *kept = run_soft(isa, row.as_mut_ptr(), n, scale),
            }
        }
    }
}

/// `out = softmax(q k / sqrt(dim)) v` for every head of every sequence; `normalisers` (one for each
/// sequence, head and row) are kept for the backward pass.
///
/// Errors: lengths that do not fit the shape.
pub fn attention(
    pool: &Pool,
    shape: &Heads<'_>,
    qkv: &[f32],
    out: &mut [f32],
    normalisers: &mut [f32],
) -> Result<()> {
    let sequences = shape.check(qkv.len(), out.len())?;
    length("normalisers", sequences * shape.heads * shape.length, normalisers.len())?;
    let (isa, n, width) = (pool.isa(), shape.length, shape.width());
    let (out, normalisers) = (Disjoint::new(out), Disjoint::new(normalisers));
    pool.run(sequences * shape.heads, &|part| {
        let (sequence, head) = (part / shape.heads, part % shape.heads);
        let parts = Parts::new(shape, qkv, sequence, head);
        let [mut scores, spare] = SCORES.take();
        scores.at_least(n * n);
        // SAFETY: lengths were checked; each part writes the columns of its own head in the rows of
        // its own sequence, and its own normalisers.
        unsafe {
            probabilities(isa, shape, &parts, &mut scores, normalisers.at(part * n), false);
            let to = place(out.at(sequence * n * width + head * shape.dim), width, false);
            product_here(isa, View::new(&scores, n, n), parts.v, to);
        }
        SCORES.set([scores, spare]);
    });
    Ok(())
}

/// The gradients of [`attention`] for `dout` into `dqkv`, from its inputs and results.
///
/// Errors: lengths that do not fit the shape.
pub fn attention_backward(
    pool: &Pool,
    shape: &Heads<'_>,
    (qkv, out, normalisers): (&[f32], &[f32], &[f32]),
    dout: &[f32],
    dqkv: &mut [f32],
) -> Result<()> {
    let sequences = shape.check(qkv.len(), out.len())?;
    length("normalisers", sequences * shape.heads * shape.length, normalisers.len())?;
    length("gradients of attention", out.len(), dout.len())?;
    length("gradients of queries, keys and values", qkv.len(), dqkv.len())?;
    let (isa, n, width, dim) = (pool.isa(), shape.length, shape.width(), shape.dim);
    let scale = 1.0 / (dim as f32).sqrt();
    let dqkv = Disjoint::new(dqkv);
    pool.run(sequences * shape.heads, &|part| {
        let (sequence, head) = (part / shape.heads, part % shape.heads);
        let parts = Parts::new(shape, qkv, sequence, head);
        let at = sequence * n * width + head * dim;
        let dout_part = View::wide(&dout[at..], n, dim, width);
        let [mut p, mut dp] = SCORES.take();
        p.at_least(n * n);
        dp.at_least(n * n);
        // SAFETY: lengths were checked; each part writes the columns of its own head in the rows of
        // its own sequence. The normalisers are only read: they are known.
        unsafe {
            let kept = normalisers[part * n..].as_ptr().cast_mut();
            probabilities(isa, shape, &parts, &mut p, kept, true);
            let gradient = |which: usize| {
                let start = sequence * n * 3 * width + which * width + head * dim;
                place(dqkv.at(start), 3 * width, false)
            };
            product_here(isa, View::new(&p, n, n).transposed(), dout_part, gradient(2));
            let to = place(dp.as_mut_ptr(), n, false);
            product_here(isa, dout_part, parts.v.transposed(), to);
            for i in 0..n {
                let row = at + i * width;
                let along: f32 =
                    dout[row..row + dim].iter().zip(&out[row..row + dim]).map(|(a, b)| a * b).sum();
                run_back(isa, p[i * n..].as_ptr(), dp[i * n..].as_mut_ptr(), n, scale, along);
            }
            let ds = View::new(&dp, n, n);
            product_here(isa, ds, parts.k, gradient(0));
            product_here(isa, ds.transposed(), parts.q, gradient(1));
        }
        SCORES.set([p, dp]);
    });
    Ok(())
}

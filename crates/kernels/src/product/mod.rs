//! Batch-invariant matrix products.
//!
//! `y[r][o] = sum over k of x[r][k] * w[o][k]`.
//!
//! # The one sequence
//! With quantised activations and a packed matrix, for each row `r` and output `o`, blocks `b` of
//! 32 values in the order of k (halves of 16 in Q6_K, first half first):
//!
//! ```text
//! isum = sum of code * q - OFFSET * sum of q        (integers, exact)
//! acc  = fma(f32(isum), d * s, acc)                 (d * s rounded once)
//! acc  = fma(m, f32(sum of q) * s, acc)             (Q4_1 and Q4_K only)
//! ```
//!
//! from `acc = 0`, where `d` and `m` are the weight's effective scale and minimum (exact products
//! in Q4_K and Q6_K), `q` and `s` the activation's codes and scale. Then `y = acc`, plus the bias
//! if there is one; `out = y`, or `out + y` when accumulating. Every path (scalar, AVX2, AVX-512,
//! AMX) at every number of rows and threads performs exactly this, so results are equal bit for
//! bit and a row does not depend on its neighbours.
//!
//! With f32 activations, or a matrix that is not packed, weights are unpacked to f32 and the dot
//! product has 16 lanes: lane `l` takes the values `k = l mod 16` in order with fma, both operands
//! padded with zeros to a multiple of 16; then lanes `l` and `l + 8` are added, `l` and `l + 4`,
//! `l` and `l + 2`, `l` and `l + 1`. This too is equal on every path.
#![allow(unsafe_code)]

mod activations;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod float;
mod scalar;

#[cfg(test)]
mod tests;

use std::ops::Range;

pub use activations::Activations;

use crate::error::{KernelError, Result};
use crate::isa::Isa;
use crate::pack::Matrix;
use crate::pack::strips::STRIP;
use crate::pool::Pool;

/// One matrix of a fused product and where its result goes.
#[derive(Debug)]
pub struct Target<'a> {
    /// The weights; `cols` equal to the activations'.
    pub weights: &'a Matrix,
    /// Result rows, `stride` apart: `out[r * stride + o]`.
    pub out: &'a mut [f32],
    /// Distance of two result rows, at least `weights.rows()`.
    pub stride: usize,
    /// Added to every row; `weights.rows()` long.
    pub bias: Option<&'a [f32]>,
    /// Add to what `out` holds instead of overwriting it.
    pub accumulate: bool,
}

impl<'a> Target<'a> {
    /// A target with tight rows, no bias, overwriting.
    pub fn new(weights: &'a Matrix, out: &'a mut [f32]) -> Target<'a> {
        Target { stride: weights.rows(), weights, out, bias: None, accumulate: false }
    }

    /// Adds to `out` instead of overwriting it (a residual connection).
    pub fn accumulate(mut self) -> Target<'a> {
        self.accumulate = true;
        self
    }

    /// With a bias of `weights.rows()` values, if any.
    pub fn bias(mut self, bias: Option<&'a [f32]>) -> Target<'a> {
        self.bias = bias;
        self
    }

    /// With result rows `stride` apart.
    pub fn stride(mut self, stride: usize) -> Target<'a> {
        self.stride = stride;
        self
    }

    fn check(&self, a: &Activations) -> Result<()> {
        let n = self.weights.rows();
        if self.weights.cols() != a.cols() {
            return Err(KernelError::Length {
                what: "inputs of a product (k)",
                expected: self.weights.cols(),
                got: a.cols(),
            });
        }
        if self.stride < n {
            return Err(KernelError::Length {
                what: "stride of a product's result",
                expected: n,
                got: self.stride,
            });
        }
        let needed = match a.rows() {
            0 => Some(0),
            rows => (rows - 1).checked_mul(self.stride).and_then(|v| v.checked_add(n)),
        };
        let needed = needed.ok_or(KernelError::Overflow("the result of a product"))?;
        if self.out.len() < needed {
            return Err(KernelError::Length {
                what: "result of a product",
                expected: needed,
                got: self.out.len(),
            });
        }
        if let Some(bias) = self.bias
            && bias.len() != n
        {
            return Err(KernelError::Length { what: "bias", expected: n, got: bias.len() });
        }
        if !(a.is_float() || a.is_quantised() && self.weights.is_fast()) {
            return Err(KernelError::Mismatch(
                "this weight type needs f32 activations: use quantize_and_keep or set_f32",
            ));
        }
        Ok(())
    }
}

/// A checked target as the threads see it.
struct Job<'a> {
    weights: &'a Matrix,
    out: *mut f32,
    stride: usize,
    bias: Option<&'a [f32]>,
    accumulate: bool,
}

// SAFETY: `out` is written only in the columns of the strips a part owns, and parts are disjoint.
unsafe impl Sync for Job<'_> {}

impl Job<'_> {
    /// Finishes outputs `16 strip ..` of a row.
    ///
    /// # Safety
    /// `row` and `strip` are in range, and the calling part owns `strip`.
    unsafe fn store(&self, row: usize, strip: usize, acc: &[f32; STRIP]) {
        let first = strip * STRIP;
        let n = STRIP.min(self.weights.rows() - first);
        for (i, &acc) in acc.iter().enumerate().take(n) {
            let y = self.bias.map_or(acc, |bias| acc + bias[first + i]);
            // SAFETY: `Target::check` saw that the result holds this element.
            unsafe {
                let out = self.out.add(row * self.stride + first + i);
                *out = if self.accumulate { *out + y } else { y };
            }
        }
    }
}

/// Most targets fused into one hand-off; more take several.
const FUSED: usize = 8;
/// A part reads at least about this many bytes of weights (fewer with more rows) unless that
/// leaves a thread without one: a thread that begins a part starts a new stream, and the lines of
/// results at its edges are fought over.
const PART_BYTES: usize = 512 << 10;
/// A product that reads less than this, times its rows, is not worth a hand-off.
const ALONE_BYTES: usize = 32 << 10;
/// Up to this many rows a pass is bound by reading weights more than by arithmetic.
const READING_ROWS: usize = 8;
/// Most parts a thread: what one that loses its core leaves to the others.
const PARTS: usize = 8;

/// Passes of more rows than this use matrix tiles where there are any.
#[cfg(target_arch = "x86_64")]
const TILE_ROWS: usize = 8;

/// Whether the matrix tiles of this machine can be used; see `avx512::amx`.
pub(crate) fn has_tiles() -> bool {
    #[cfg(target_arch = "x86_64")]
    return avx512::amx::usable();
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Multiplies the activations with every target's weights, split among the pool's threads by
/// strips of 16 outputs in one hand-off.
///
/// A packed matrix takes the int8 form of the activations if it is there; everything else runs in
/// f32. Errors: shapes that do not fit, or a matrix that is not packed when the activations have
/// no f32 form; nothing is written then.
pub fn product(pool: &Pool, a: &Activations, targets: &mut [Target<'_>]) -> Result<()> {
    for target in targets.iter() {
        target.check(a)?;
    }
    if a.rows() == 0 {
        return Ok(());
    }
    for targets in targets.chunks_mut(FUSED) {
        run(pool, a, targets);
    }
    Ok(())
}

fn run(pool: &Pool, a: &Activations, targets: &mut [Target<'_>]) {
    let mut jobs: [Option<Job<'_>>; FUSED] = [const { None }; FUSED];
    let (mut strips, mut bytes) = (0, 0);
    for (job, target) in jobs.iter_mut().zip(targets) {
        strips += target.weights.strips();
        bytes += target.weights.bytes();
        *job = Some(Job {
            weights: target.weights,
            out: target.out.as_mut_ptr(),
            stride: target.stride,
            bias: target.bias,
            accumulate: target.accumulate,
        });
    }
    if strips == 0 {
        return;
    }
    let step = step(pool.threads(), strips, bytes, a.rows());
    let isa = pool.isa();
    pool.run(strips.div_ceil(step), &|part| {
        let range = part * step..strips.min((part + 1) * step);
        let mut first = 0;
        for job in jobs.iter().flatten() {
            let n = job.weights.strips();
            let mine = range.start.max(first)..range.end.min(first + n);
            if !mine.is_empty() {
                // SAFETY: targets are checked, and each strip belongs to exactly one part.
                unsafe { run_strips(isa, job, a, mine.start - first..mine.end - first) };
            }
            first += n;
        }
    });
}

/// Strips in a part: as many parts a thread as are worth it, at most [`PARTS`]; an even number,
/// as many rows go through two strips at a time.
fn step(threads: usize, strips: usize, bytes: usize, rows: usize) -> usize {
    if threads == 1 || bytes.saturating_mul(rows.min(16)) < ALONE_BYTES {
        return strips;
    }
    let work = bytes.saturating_mul(rows.div_ceil(READING_ROWS));
    let parts = (work / threads / PART_BYTES).clamp(1, PARTS);
    strips.div_ceil(parts * threads).next_multiple_of(2)
}

/// # Safety
/// The strips are in range and owned by the calling part; the machine has `isa`.
unsafe fn run_strips(isa: Isa, job: &Job<'_>, a: &Activations, strips: Range<usize>) {
    // SAFETY: the caller's promise.
    unsafe {
        if !(a.is_quantised() && job.weights.is_fast()) {
            return float::run(isa, job, a, strips);
        }
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Amx if a.rows() > TILE_ROWS => avx512::amx::run(job, a, strips),
            #[cfg(target_arch = "x86_64")]
            Isa::Amx | Isa::Avx512Vnni => avx512::run(job, a, strips),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => avx2::run(job, a, strips),
            _ => scalar::run(job, a, strips),
        }
    }
}

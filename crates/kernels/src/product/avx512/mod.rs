//! The integer product with AVX-512 VNNI.
//!
//! One `vpdpbusd` multiplies a code vector (16 outputs, 4 values of k each) with four activation
//! codes broadcast from memory. Weights are unpacked from their own bit width in registers, once
//! for all rows of a register tile.
#![allow(unsafe_code)]

mod ahead;
pub(super) mod amx;
mod few;
mod formats;
mod many;
mod tiles;

use std::arch::x86_64::*;
use std::ops::Range;

use super::Job;
use super::activations::{Activations, GROUP};
use crate::pack::WeightType;
use crate::pack::strips::{BLOCK, STRIP, VECTOR};
use formats::{Format, Q4_0, Q4_1, Q4K, Q5_0, Q6K, Q8_0};

/// # Safety
/// As [`super::run_strips`]; the machine has AVX-512 VNNI.
pub(super) unsafe fn run(job: &Job<'_>, a: &Activations, strips: Range<usize>) {
    // SAFETY: the caller's promise.
    unsafe {
        match job.weights.ty() {
            WeightType::Q8_0 => run_format_q8_0(job, a, strips),
            WeightType::Q5_0 => run_format_q5_0(job, a, strips),
            WeightType::Q4_0 => run_format_q4_0(job, a, strips),
            WeightType::Q4_1 => run_format_q4_1(job, a, strips),
            WeightType::Q4K => run_format_q4_k(job, a, strips),
            _ => run_format_q6_k(job, a, strips),
        }
    }
}

macro_rules! formats {
    ($($name:ident: $format:ty),*) => {$(
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,f16c,fma,avx2")]
        unsafe fn $name(job: &Job<'_>, a: &Activations, strips: Range<usize>) {
            // SAFETY: the caller's promise.
            unsafe { run_format::<$format>(job, a, strips) };
        }
    )*};
}

formats!(
    run_format_q8_0: Q8_0,
    run_format_q5_0: Q5_0,
    run_format_q4_0: Q4_0,
    run_format_q4_1: Q4_1,
    run_format_q4_k: Q4K,
    run_format_q6_k: Q6K
);

/// Passes of more rows than this go through two strips at a time: of codes that are bytes
/// already, and of codes that are unpacked.
const FEW: [usize; 2] = [8, 32];
/// Bytes of the codes of a block that need no unpacking.
const PLAIN: usize = 8 * VECTOR;

#[inline(always)]
unsafe fn run_format<F: Format>(job: &Job<'_>, a: &Activations, strips: Range<usize>) {
    // SAFETY: the caller's promise.
    unsafe {
        if a.rows() <= FEW[usize::from(F::CODES < PLAIN)] {
            few::run::<F>(job, a, strips);
        } else {
            many::run::<F>(job, a, strips);
        }
    }
}

/// The activations of a register tile: pointers to the tile's first row in block 0.
#[derive(Clone, Copy)]
struct Rows {
    q: *const i8,
    s: *const f32,
    sum: *const f32,
    start: *const i32,
    /// Rows of the group: the distance of two blocks.
    group: usize,
}

impl Rows {
    #[inline(always)]
    unsafe fn new(a: &Activations, r: usize, start: *const i32, halves: bool) -> Rows {
        let p = a.planes();
        let first = r / GROUP * GROUP;
        let slot = first * a.blocks() + (r - first);
        // SAFETY: `r` is a row of the activations.
        unsafe {
            Rows {
                q: p.q.as_ptr().add(slot * BLOCK),
                s: p.s.as_ptr().add(slot),
                sum: p.sum.as_ptr().add(slot),
                start: if start.is_null() {
                    start
                } else {
                    start.add(slot * if halves { 2 } else { 1 })
                },
                group: GROUP.min(a.rows() - first),
            }
        }
    }
}

impl Rows {
    /// The same rows from block `b` on.
    #[inline(always)]
    unsafe fn at(self, b: usize, halves: bool) -> Rows {
        let slot = b * self.group;
        // SAFETY: the caller gives a block of the activations.
        unsafe {
            Rows {
                q: self.q.add(slot * BLOCK),
                s: self.s.add(slot),
                sum: self.sum.add(slot),
                start: if self.start.is_null() {
                    self.start
                } else {
                    self.start.add(slot * if halves { 2 } else { 1 })
                },
                group: self.group,
            }
        }
    }
}

/// Finishes 16 outputs of a row: the vector twin of `Job::store`.
#[inline(always)]
unsafe fn store(job: &Job<'_>, row: usize, strip: usize, acc: __m512) {
    let first = strip * STRIP;
    let n = STRIP.min(job.weights.rows() - first);
    let mask = (0xffff_u32 >> (STRIP - n)) as u16;
    // SAFETY: masked to the outputs there are; `Target::check` saw that the result holds them.
    unsafe {
        let out = job.out.add(row * job.stride + first);
        let mut y = acc;
        if let Some(bias) = job.bias {
            y = _mm512_add_ps(y, _mm512_maskz_loadu_ps(mask, bias.as_ptr().add(first)));
        }
        if job.accumulate {
            y = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, out), y);
        }
        _mm512_mask_storeu_ps(out, mask, y);
    }
}

//! The integer product in plain Rust: the twin every vector path must equal bit for bit.
#![allow(unsafe_code)]

use std::ops::Range;

use super::Job;
use super::activations::{Activations, slot};
use crate::pack::WeightType;
use crate::pack::strips::{BLOCK, PlainBlock, STRIP, has_minimum, offset};

/// Rows unpacked weights are used for before they are unpacked again.
const ROWS: usize = 16;

/// # Safety
/// As [`super::run_strips`].
pub(super) unsafe fn run(job: &Job<'_>, a: &Activations, strips: Range<usize>) {
    let ty = job.weights.ty();
    let mut block = PlainBlock::ZERO;
    for s in strips {
        let strip = job.weights.strip(s);
        for first in (0..a.rows()).step_by(ROWS) {
            let rows = ROWS.min(a.rows() - first);
            let mut acc = [[0.0f32; STRIP]; ROWS];
            for b in 0..a.blocks() {
                block.read(ty, strip, b);
                for (r, acc) in acc[..rows].iter_mut().enumerate() {
                    step(ty, &block, a, slot(first + r, b, a.rows(), a.blocks()), acc);
                }
            }
            for (r, acc) in acc[..rows].iter().enumerate() {
                // SAFETY: the caller's promise.
                unsafe { job.store(first + r, s, acc) };
            }
        }
    }
}

/// Adds one block of one row to its accumulators: the sequence of the module above.
fn step(ty: WeightType, w: &PlainBlock, a: &Activations, at: usize, acc: &mut [f32; STRIP]) {
    let planes = a.planes();
    let q = &planes.q[at * BLOCK..][..BLOCK];
    let (s, sum) = (planes.s[at], planes.sum[at]);
    for (i, acc) in acc.iter_mut().enumerate() {
        let half = |h: usize| -> i32 {
            (16 * h..16 * (h + 1))
                .map(|k| {
                    let code = i32::from(w.codes[k / 4][4 * i + k % 4]) - i32::from(offset(ty));
                    code * i32::from(q[k])
                })
                .sum()
        };
        if ty == WeightType::Q6K {
            *acc = (half(0) as f32).mul_add(w.d[0][i] * s, *acc);
            *acc = (half(1) as f32).mul_add(w.d[1][i] * s, *acc);
        } else {
            *acc = ((half(0) + half(1)) as f32).mul_add(w.d[0][i] * s, *acc);
        }
        if has_minimum(ty) {
            *acc = w.m[i].mul_add(sum, *acc);
        }
    }
}

//! Asking memory for the next weights while tiles of many rows compute.
#![allow(unsafe_code)]

use std::arch::x86_64::*;

use super::formats::Format;
use crate::pack::strips::{BLOCK, VECTOR};
use crate::product::Job;

/// A few lines of the weights unpacked next are asked for with every block of the tiles in between.
pub(super) struct Ahead {
    /// Next line of the first strip, and how far the next strip is from it.
    at: *const u8,
    strip: usize,
    /// Strips side by side.
    width: usize,
    /// Lines left in each strip, and lines to ask for at a time.
    left: usize,
    step: usize,
}

impl Ahead {
    /// What follows before block `next` of the `width` strips from `s`: up to `chunk` blocks of
    /// the same strips, or of the strips after them when `next` is their end; spread over `steps`
    /// calls of [`ask`](Ahead::ask).
    #[inline(always)]
    pub(super) fn new<F: Format>(
        job: &Job<'_>,
        (s, width): (usize, usize),
        next: usize,
        chunk: usize,
        steps: usize,
    ) -> Ahead {
        let blocks = job.weights.cols() / BLOCK;
        let (s, from) = if next < blocks { (s, next) } else { (s + width, 0) };
        let strip = job.weights.strip(0);
        let first = strip.as_ptr().wrapping_add(s * strip.len());
        let (at, end) = (F::codes_at(first, from), F::codes_at(first, from + chunk));
        let left = if s < job.weights.strips() { (end as usize - at as usize) / VECTOR } else { 0 };
        Ahead {
            at: at.wrapping_sub(VECTOR),
            strip: strip.len(),
            width,
            left,
            step: left.div_ceil(steps.max(1)),
        }
    }

    #[inline(always)]
    pub(super) fn ask(&mut self) {
        for _ in 0..self.step.min(self.left) {
            for t in 0..self.width {
                let line = self.at.wrapping_add(t * self.strip);
                // SAFETY: a prefetch may point anywhere.
                unsafe { _mm_prefetch::<_MM_HINT_T1>(line.cast()) };
            }
            self.at = self.at.wrapping_add(VECTOR);
            self.left -= 1;
        }
    }
}

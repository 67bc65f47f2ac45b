//! AdamW (Loshchilov and Hutter, arXiv 1711.05101), with the running mean of the weights in the
//! same sweep over memory.
#![allow(unsafe_code)]

use super::length;
use crate::Pool;
use crate::disjoint::Disjoint;
use crate::error::Result;
use crate::lanes::{LANES, Lanes, entry};

/// Values of one part.
const PART: usize = 1 << 14;

/// The numbers of one step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    /// Step size, schedule included.
    pub rate: f32,
    /// Decay of the mean of gradients.
    pub beta1: f32,
    /// Decay of the mean of their squares.
    pub beta2: f32,
    /// Added to the root.
    pub epsilon: f32,
    /// Weights shrink by `rate * decay` of themselves.
    pub decay: f32,
    /// Steps made, this one included: at least 1.
    pub step: u64,
    /// Gradients are multiplied by this (clipping).
    pub scale: f32,
    /// Decay of the running mean of weights; 0 makes it a copy of the weights.
    pub average: f32,
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn update<L: Lanes>(
    w: *mut f32,
    g: *const f32,
    m: *mut f32,
    v: *mut f32,
    mean: *mut f32,
    n: usize,
    numbers: &[f32; 8],
) {
    // SAFETY: the caller promises `n` values at each pointer.
    unsafe {
        let [rate, beta1, beta2, epsilon, keep, scale, average, root] = *numbers;
        let one = |x: f32| L::splat(1.0 - x);
        for i in (0..n).step_by(LANES) {
            let left = (n - i).min(LANES);
            let load = |p: *const f32| {
                if left == LANES { L::load(p) } else { L::load_part(p, left) }
            };
            let grad = load(g.add(i)).mul(L::splat(scale));
            let first = load(m.add(i)).mul(L::splat(beta1)).add(grad.mul(one(beta1)));
            let second = load(v.add(i)).mul(L::splat(beta2)).add(grad.mul(grad).mul(one(beta2)));
            // The roots one by one: the lanes have no square root.
            let mut roots = [0.0f32; LANES];
            second.store(roots.as_mut_ptr());
            for x in &mut roots {
                *x = x.sqrt();
            }
            let below = L::load(roots.as_ptr()).mul(L::splat(root)).add(L::splat(epsilon));
            let moved =
                load(w.add(i)).mul(L::splat(keep)).sub(first.div(below).mul(L::splat(rate)));
            let slow = load(mean.add(i)).mul(L::splat(average)).add(moved.mul(one(average)));
            for (value, to) in [(first, m), (second, v), (moved, w), (slow, mean)] {
                value.store_range(to.add(i), 0, left);
            }
        }
    }
}

entry!(fn run_update(w: *mut f32, g: *const f32, m: *mut f32, v: *mut f32, mean: *mut f32, n: usize, numbers: &[f32; 8]) = update);

/// One step for weights `w` with gradients `g`, moments `m` and `v`, and the running mean `mean`.
///
/// Errors: buffers of other lengths than `w`.
pub fn adamw(
    pool: &Pool,
    step: &AdamW,
    w: &mut [f32],
    g: &[f32],
    [m, v, mean]: [&mut [f32]; 3],
) -> Result<()> {
    let n = w.len();
    for (what, got) in [
        ("gradients", g.len()),
        ("first moments", m.len()),
        ("second moments", v.len()),
        ("mean weights", mean.len()),
    ] {
        length(what, n, got)?;
    }
    let t = step.step.max(1) as i32;
    let first = 1.0 - f64::from(step.beta1).powi(t);
    let second = 1.0 - f64::from(step.beta2).powi(t);
    let numbers = [
        (f64::from(step.rate) / first) as f32,
        step.beta1,
        step.beta2,
        step.epsilon,
        1.0 - step.rate * step.decay,
        step.scale,
        step.average,
        (1.0 / second.sqrt()) as f32,
    ];
    let (isa, g) = (pool.isa(), g.as_ptr() as usize);
    let [w, m, v, mean] = [w, m, v, mean].map(Disjoint::new);
    pool.run(n.div_ceil(PART), &|part| {
        let at = part * PART;
        let g = (g as *const f32).wrapping_add(at);
        // SAFETY: parts are disjoint and inside all five buffers; the pool's path is available.
        unsafe {
            let here = PART.min(n - at);
            run_update(isa, w.at(at), g, m.at(at), v.at(at), mean.at(at), here, &numbers);
        }
    });
    Ok(())
}

/// The sum of squares, in f64, in an order that the length alone decides.
pub fn sum_of_squares(values: &[f32]) -> f64 {
    let part = |part: &[f32]| {
        let mut sums = [0.0f32; LANES];
        for chunk in part.chunks(LANES) {
            for (sum, x) in sums.iter_mut().zip(chunk) {
                *sum += x * x;
            }
        }
        sums.iter().map(|&x| f64::from(x)).sum::<f64>()
    };
    values.chunks(1 << 12).map(part).sum()
}

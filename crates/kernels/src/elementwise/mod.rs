//! Norms, rotary positions, activations and reductions over rows of `f32`.
//!
//! A row's result depends on that row alone, and every sum runs in 16 lanes (value `i` in lane
//! `i mod 16`) and then over the lanes in a fixed tree; so results are equal bit for bit at any
//! number of rows and threads and on every instruction path.
#![allow(unsafe_code)]

mod activation;
mod distribution;
mod norm;
mod rope;

#[cfg(test)]
mod tests;

pub use activation::{add, gelu_tanh_mul, scale, silu_mul, softcap};
pub use distribution::{argmax, log_sum_exp, softmax};
pub use norm::{rms_norm, rms_norm_in_place};
pub use rope::Rope;

use std::ops::Range;

use crate::Pool;
use crate::lanes::{LANES, Lanes};

/// The next up to sixteen of `n` values, others zero.
///
/// # Safety
/// `min(n, 16)` values are readable at `p`; the CPU has the features of `L`.
#[inline(always)]
unsafe fn load<L: Lanes>(p: *const f32, n: usize) -> L {
    // SAFETY: this function's contract.
    unsafe { if n >= LANES { L::load(p) } else { L::load_part(p, n) } }
}

/// Writes the first `min(n, 16)` lanes.
///
/// # Safety
/// They are writable at `p`.
#[inline(always)]
unsafe fn store<L: Lanes>(v: L, p: *mut f32, n: usize) {
    // SAFETY: this function's contract.
    unsafe { if n >= LANES { v.store(p) } else { v.store_range(p, 0, n) } }
}

/// Calls `f` on ranges that cover `0..items`, on several threads if every one of them gets at
/// least `grain` items (a hand-off costs a microsecond or two).
fn spread(pool: &Pool, items: usize, grain: usize, f: impl Fn(Range<usize>) + Sync) {
    let parts = (items / grain.max(1)).min(pool.threads() * 4);
    if parts < 2 || pool.threads() == 1 {
        f(0..items);
        return;
    }
    pool.run(parts, &|part| f(part * items / parts..(part + 1) * items / parts));
}

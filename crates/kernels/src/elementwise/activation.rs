//! Value-by-value functions.
#![allow(unsafe_code)]

use super::{load, spread, store};
use crate::Pool;
use crate::disjoint::Disjoint;
use crate::error::{KernelError, Result};
use crate::functions::{gelu_tanh, silu, soft_cap};
use crate::lanes::{LANES, Lanes, entry};

/// Values a thread must get for a part of its own: functions with an exponential, and others.
const GRAIN_EXP: usize = 4096;
const GRAIN: usize = 1 << 15;

macro_rules! over {
    ($(#[$meta:meta])* $kernel:ident, $entry:ident, |$x:ident, $y:ident, $c:ident| $value:expr) => {
        $(#[$meta])*
        #[inline(always)]
        unsafe fn $kernel<L: Lanes>(x: *mut f32, y: *const f32, n: usize, $c: f32) {
            for i in (0..n).step_by(LANES) {
                // SAFETY: the caller promises `n` values at `x`, and at `y` where it is used.
                unsafe {
                    let $x = load::<L>(x.add(i), n - i);
                    let $y = || load::<L>(y.add(i), n - i);
                    store($value, x.add(i), n - i);
                }
            }
        }
        entry!(fn $entry(x: *mut f32, y: *const f32, n: usize, c: f32) = $kernel);
    };
}

over!(silu_times, run_silu, |x, y, _c| silu::<L>(x).mul(y()));
over!(gelu_times, run_gelu, |x, y, _c| gelu_tanh::<L>(x).mul(y()));
over!(plus, run_plus, |x, y, _c| x.add(y()));
over!(times, run_times, |x, _y, c| x.mul(L::splat(c)));
over!(capped, run_capped, |x, _y, c| soft_cap::<L>(x, c));

type Entry = unsafe fn(crate::Isa, *mut f32, *const f32, usize, f32);

/// Runs `f` over `x`, with `y` (if given, as long as `x`) beside it.
fn apply(
    pool: &Pool,
    f: Entry,
    grain: usize,
    x: &mut [f32],
    y: Option<&[f32]>,
    c: f32,
) -> Result<()> {
    if let Some(y) = y
        && y.len() != x.len()
    {
        return Err(KernelError::Length {
            what: "second operand",
            expected: x.len(),
            got: y.len(),
        });
    }
    let (isa, n) = (pool.isa(), x.len());
    let x = Disjoint::new(x);
    spread(pool, n, grain, |range| {
        let y = y.map_or(std::ptr::null(), |y| y[range.start..].as_ptr());
        // SAFETY: ranges are disjoint and inside both slices; the pool's path is available.
        unsafe { f(isa, x.at(range.start), y, range.len(), c) };
    });
    Ok(())
}

/// `gate[i] = silu(gate[i]) * up[i]`, with `silu(x) = x / (1 + e^-x)`, within 4 units in the last
/// place of the exact value for gates above -87.
pub fn silu_mul(pool: &Pool, gate: &mut [f32], up: &[f32]) -> Result<()> {
    apply(pool, run_silu, GRAIN_EXP, gate, Some(up), 0.0)
}

/// `gate[i] = gelu(gate[i]) * up[i]`, GELU by its tanh approximation
/// (Hendrycks and Gimpel, arXiv 1606.08415).
pub fn gelu_tanh_mul(pool: &Pool, gate: &mut [f32], up: &[f32]) -> Result<()> {
    apply(pool, run_gelu, GRAIN_EXP, gate, Some(up), 0.0)
}

/// `x[i] += y[i]`.
pub fn add(pool: &Pool, x: &mut [f32], y: &[f32]) -> Result<()> {
    apply(pool, run_plus, GRAIN, x, Some(y), 0.0)
}

/// `x[i] *= factor`.
pub fn scale(pool: &Pool, x: &mut [f32], factor: f32) {
    // No second operand, so there is no length to disagree.
    let _ = apply(pool, run_times, GRAIN, x, None, factor);
}

/// `x[i] = cap * tanh(x[i] / cap)`, with an absolute error of about `2e-7 cap`.
///
/// Errors: `cap` is not positive and finite.
pub fn softcap(pool: &Pool, x: &mut [f32], cap: f32) -> Result<()> {
    if !(cap > 0.0 && cap.is_finite()) {
        return Err(KernelError::Mismatch("a soft cap must be positive and finite"));
    }
    apply(pool, run_capped, GRAIN_EXP, x, None, cap)
}

//! The exponential, the reciprocal, and what is made of them, over sixteen lanes.
//!
//! Built from exactly rounded operations in one order, so each is bit-equal on every path.
#![allow(unsafe_code)]

use crate::lanes::Lanes;

/// `e^x` in each lane, for x from -86.6 to 88.3 within 1.1 units in the last place (a test
/// sweeps that); below the range 0, above it infinity; a NaN stays NaN.
///
/// `x = n ln 2 + r` with `|r| <= ln 2 / 2`, then `1 + r + r^2 P(r)` with `P` of degree 4, whose
/// coefficients are a weighted minimax fit (3e-9 relative) computed for this crate.
#[inline(always)]
pub(crate) unsafe fn exp<L: Lanes>(x: L) -> L {
    // SAFETY: the caller promises the features of `L`.
    unsafe { L::select_lt(L::splat(88.3), x, L::splat(f32::INFINITY), exp_below::<L>(x)) }
}

/// [`exp`] for x up to 88.3.
#[inline(always)]
pub(crate) unsafe fn exp_below<L: Lanes>(x: L) -> L {
    // SAFETY: the caller promises the features of `L`.
    unsafe {
        // 1.5 * 2^23: adding it rounds to an integer that then sits in the low mantissa bits.
        let magic = L::splat(12_582_912.0);
        let t = x.fma(L::splat(std::f32::consts::LOG2_E), magic);
        let n = t.sub(magic);
        // ln 2 in two parts; the high one is short, so `n * hi` is exact.
        let r = n.fma(L::splat(-355.0 / 512.0), x);
        let r = n.fma(L::splat(2.121_944_4e-4), r);
        let p = L::splat(0.001_381_453_9);
        let p = p.fma(r, L::splat(0.008_368_745));
        let p = p.fma(r, L::splat(0.041_668_39));
        let p = p.fma(r, L::splat(0.166_665_21));
        let p = p.fma(r, L::splat(0.499_999_94));
        let p = p.mul(r).fma(r, r).add(L::splat(1.0));
        let y = p.mul(t.exp2_of_magic());
        L::select_lt(x, L::splat(-86.6), L::splat(0.0), y)
    }
}

/// `1 / y` for y from 1 to 6e37 within 1.5 units in the last place; a NaN stays NaN.
///
/// A guess by subtracting exponents (12 % off at most), one cubic and two quadratic Newton steps:
/// half the time of a vector division, and the same bits everywhere.
#[inline(always)]
unsafe fn reciprocal<L: Lanes>(y: L) -> L {
    // SAFETY: the caller promises the features of `L`.
    unsafe {
        let one = L::splat(1.0);
        let minus = L::splat(0.0).sub(y);
        let r = y.reciprocal_guess();
        let e = minus.fma(r, one);
        let r = e.fma(e, e).fma(r, r);
        let r = minus.fma(r, one).fma(r, r);
        minus.fma(r, one).fma(r, r)
    }
}

/// `1 / (1 + e^-x)`, with x below -87 taken as -87.
#[inline(always)]
unsafe fn sigmoid<L: Lanes>(x: L) -> L {
    // SAFETY: the caller promises the features of `L`.
    unsafe {
        let x = L::splat(-87.0).max(x);
        reciprocal::<L>(exp::<L>(L::splat(0.0).sub(x)).add(L::splat(1.0)))
    }
}

/// `x * sigmoid(x)`; below -87 it stays at its value there, -1e-36.
#[inline(always)]
pub(crate) unsafe fn silu<L: Lanes>(x: L) -> L {
    // SAFETY: the caller promises the features of `L`.
    unsafe {
        let x = L::splat(-87.0).max(x);
        x.mul(sigmoid::<L>(x))
    }
}

/// `x / 2 * (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`, written as x times a sigmoid.
#[inline(always)]
pub(crate) unsafe fn gelu_tanh<L: Lanes>(x: L) -> L {
    // SAFETY: the caller promises the features of `L`.
    unsafe {
        let cubic = x.mul(x).fma(L::splat(0.044_715), L::splat(1.0));
        // 2 sqrt(2 / pi)
        let z = x.mul(L::splat(1.595_769_2)).mul(cubic);
        x.mul(sigmoid::<L>(z))
    }
}

/// `cap * tanh(x / cap)`, with an absolute error of about `2e-7 cap`.
#[inline(always)]
pub(crate) unsafe fn soft_cap<L: Lanes>(x: L, cap: f32) -> L {
    // SAFETY: the caller promises the features of `L`.
    unsafe {
        let s = sigmoid::<L>(x.mul(L::splat(2.0 / cap)));
        s.fma(L::splat(2.0 * cap), L::splat(-cap))
    }
}

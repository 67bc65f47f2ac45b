//! Exponential and logarithm in plain `f64` arithmetic.
//!
//! A system's maths library may round differently from another's, or from itself on another CPU.
//! These two use only additions, multiplications and divisions in a fixed order, so a sum or a draw
//! is the same everywhere. Relative error below 1e-15; the loops vectorise.

use std::f64::consts::{LN_2, LOG2_E, SQRT_2};

/// ln 2 in two parts: the first has few enough bits that `k * LN2_HIGH` is exact for `|k| < 2048`.
const LN2_HIGH: f64 = 0.693_147_180_369_123_8;
const LN2_LOW: f64 = 1.908_214_929_270_587_7e-10;

/// Adding and subtracting it rounds a small `f64` to the nearest integer.
const ROUND: f64 = 6_755_399_441_055_744.0;

/// `e^x`. Below -708 the result is 0 (no subnormal numbers), above 709 infinity; NaN stays NaN.
#[inline]
pub fn exp(x: f64) -> f64 {
    let clamped = x.clamp(-708.0, 709.0);
    let shifted = clamped * LOG2_E + ROUND;
    let k = shifted - ROUND;
    let r = (clamped - k * LN2_HIGH) - k * LN2_LOW;
    // Taylor, |r| <= ln(2)/2: the first term left out is below 5e-18.
    let mut p = 1.0 / 6_227_020_800.0;
    p = p * r + 1.0 / 479_001_600.0;
    p = p * r + 1.0 / 39_916_800.0;
    p = p * r + 1.0 / 3_628_800.0;
    p = p * r + 1.0 / 362_880.0;
    p = p * r + 1.0 / 40_320.0;
    p = p * r + 1.0 / 5_040.0;
    p = p * r + 1.0 / 720.0;
    p = p * r + 1.0 / 120.0;
    p = p * r + 1.0 / 24.0;
    p = p * r + 1.0 / 6.0;
    p = p * r + 0.5;
    p = p * r + 1.0;
    p = p * r + 1.0;
    // The low bits of `shifted` are k: with the exponent's bias added and shifted up, 2^k. (A
    // conversion to an integer would keep the loop from vectorising.)
    let scale = f64::from_bits(shifted.to_bits().wrapping_add(1023) << 52);
    let value = p * scale;
    if x < -708.0 {
        0.0
    } else if x > 709.0 {
        f64::INFINITY
    } else {
        value
    }
}

/// Natural logarithm of a positive normal number; `-inf` for 0 and subnormal numbers, NaN for
/// negative ones.
#[inline]
pub fn ln(x: f64) -> f64 {
    if x.is_nan() || x < 0.0 {
        return f64::NAN;
    }
    if x < f64::MIN_POSITIVE {
        return f64::NEG_INFINITY;
    }
    if x == f64::INFINITY {
        return x;
    }
    let bits = x.to_bits();
    let mut exponent = ((bits >> 52) as i64 - 1023) as f64;
    let mut m = f64::from_bits((bits & 0x000f_ffff_ffff_ffff) | 0x3ff0_0000_0000_0000);
    if m > SQRT_2 {
        m *= 0.5;
        exponent += 1.0;
    }
    let s = (m - 1.0) / (m + 1.0);
    exponent * LN2_HIGH + (exponent * LN2_LOW + two_atanh(s))
}

/// `-ln(1 - v)` for `0 < v < 1`, exact to rounding for tiny `v` too.
#[inline]
pub fn neg_ln_1m(v: f64) -> f64 {
    if v < 0.25 { two_atanh(v / (2.0 - v)) } else { -ln(1.0 - v) }
}

/// `2 atanh(s)` for `|s| <= 0.172`, by its series up to `s^23`.
#[inline]
fn two_atanh(s: f64) -> f64 {
    let z = s * s;
    let mut p = 1.0 / 23.0;
    for odd in [21.0, 19.0, 17.0, 15.0, 13.0, 11.0, 9.0, 7.0, 5.0, 3.0] {
        p = p * z + 1.0 / odd;
    }
    2.0 * (s + s * z * p)
}

/// `n ln 2`, the bound that a number of leading zero bits puts on a Gumbel variable.
#[inline]
pub(super) fn times_ln2(n: u32) -> f64 {
    f64::from(n) * LN_2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_and_ln_are_accurate_and_inverse() {
        for i in -7000..7000 {
            let x = f64::from(i) * 0.1 + 0.0137;
            let want = x.exp();
            assert!((exp(x) / want - 1.0).abs() < 2e-15, "exp({x})");
            assert!((ln(want) - x).abs() <= 1e-13 + x.abs() * 4e-16, "ln(exp({x}))");
        }
        for i in 1..20_000 {
            let x = f64::from(i) * 0.0003;
            assert!((ln(x) - x.ln()).abs() < 1e-15 + x.ln().abs() * 1e-15, "ln({x})");
        }
    }

    #[test]
    fn edges() {
        assert_eq!((exp(0.0), exp(-1e9), exp(1e9)), (1.0, 0.0, f64::INFINITY));
        assert_eq!((exp(f64::NEG_INFINITY), ln(1.0), ln(0.0)), (0.0, 0.0, f64::NEG_INFINITY));
        assert!(exp(f64::NAN).is_nan() && ln(-1.0).is_nan() && ln(f64::NAN).is_nan());
        assert_eq!(ln(f64::INFINITY), f64::INFINITY);
    }

    #[test]
    fn the_complement_is_accurate_near_zero() {
        for v in [2f64.powi(-54), 1e-12, 1e-5, 0.1, 0.2499, 0.25, 0.5, 0.999, 1.0 - 2f64.powi(-53)]
        {
            let want = -(-v).ln_1p();
            assert!((neg_ln_1m(v) / want - 1.0).abs() < 4e-15, "{v}");
        }
    }
}

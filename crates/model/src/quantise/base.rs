//! The base quantiser: symmetric, uniform, scaled by the largest magnitude of a group.
//!
//! For a group of weights of one output row and `b` bits (card `finequant`, step 1):
//!
//! ```text
//! qmax = 2^(b-1) - 1      s = max|w| / qmax      q = round(w / s)      w' = s * q
//! ```
//!
//! Decided here, since files must be reproducible: **round half to even**; the code `-2^(b-1)` is not
//! used; a group of zeros has `s = 0` and codes 0; the scale is stored as f16, **rounded up**, and codes
//! are taken with the stored scale. Rounding up keeps `|w| / s <= qmax`, so nothing is clamped and
//! `|w - w'| <= s / 2` holds for the scale that the file has; and as f16 steps are at most 1/1024 of a
//! normal number, the largest weight still gets the code `qmax`.

use half::f16;

/// Bits of a code: 4 or 8.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Bits {
    /// Codes -7 to 7.
    Four,
    /// Codes -127 to 127.
    Eight,
}

impl Bits {
    /// The largest code.
    pub const fn qmax(self) -> i8 {
        match self {
            Self::Four => 7,
            Self::Eight => 127,
        }
    }

    /// The number of bits.
    pub const fn count(self) -> u32 {
        match self {
            Self::Four => 4,
            Self::Eight => 8,
        }
    }
}

/// Why a group cannot be quantised.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum GroupError {
    /// A weight is NaN or infinite.
    #[error("a weight that is not finite")]
    NotFinite,
    /// A weight so large that its group's scale is above every f16.
    #[error("a weight of magnitude {0}, whose scale is beyond 16-bit floats")]
    TooLarge(f32),
}

/// The largest magnitude of a group.
///
/// # Errors
/// [`GroupError::NotFinite`].
pub fn range(group: &[f32]) -> Result<f32, GroupError> {
    let largest = group.iter().fold(0.0f32, |m, w| m.max(w.abs()));
    // `max` passes NaN over, a sum does not.
    if largest.is_infinite() || group.iter().sum::<f32>().is_nan() {
        return Err(GroupError::NotFinite);
    }
    Ok(largest)
}

/// The smallest f16 that is at least `x`; `x` is not negative.
///
/// # Errors
/// [`GroupError::TooLarge`] beyond the largest f16.
pub fn f16_above(x: f32) -> Result<f16, GroupError> {
    let near = f16::from_f32(x);
    let up = if near.to_f32() < x { f16::from_bits(near.to_bits() + 1) } else { near };
    if up.is_finite() { Ok(up) } else { Err(GroupError::TooLarge(x)) }
}

/// The scale that a group of range `range` is stored with.
///
/// # Errors
/// [`GroupError::TooLarge`].
pub fn scale(range: f32, bits: Bits) -> Result<f16, GroupError> {
    f16_above(range / f32::from(bits.qmax()))
}

/// The code of a weight under a scale.
pub fn code(weight: f32, scale: f32, bits: Bits) -> i8 {
    if scale == 0.0 {
        return 0;
    }
    let limit = f32::from(bits.qmax());
    // Within -127 to 127.
    (weight / scale).round_ties_even().clamp(-limit, limit) as i8
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BOTH: [Bits; 2] = [Bits::Four, Bits::Eight];

    fn codes(group: &[f32], bits: Bits) -> (f32, Vec<i8>) {
        let s = scale(range(group).unwrap(), bits).unwrap().to_f32();
        (s, group.iter().map(|w| code(*w, s, bits)).collect())
    }

    #[test]
    fn a_group_by_hand() {
        // Range 7: scale 1. Halves go to the even neighbour.
        let (s, q) = codes(&[7.0, -7.0, 0.5, 1.5, -2.5, 0.0, 0.4], Bits::Four);
        assert_eq!((s, q), (1.0, vec![7, -7, 0, 2, -2, 0, 0]));
        assert_eq!(codes(&[0.0, -0.0], Bits::Four), (0.0, vec![0, 0]));
    }

    #[test]
    fn what_cannot_be_quantised_is_refused() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert_eq!(range(&[1.0, bad, 2.0]), Err(GroupError::NotFinite));
        }
        assert!(matches!(scale(1e6, Bits::Four), Err(GroupError::TooLarge(_))));
        assert!(scale(65504.0 * 7.0, Bits::Four).is_ok());
    }

    #[test]
    fn eight_bits_err_less_than_four() {
        let group: Vec<f32> = (0..64).map(|i| ((i * 37 % 101) as f32 - 50.0) / 9.0).collect();
        let error = |bits| {
            let (s, q) = codes(&group, bits);
            group.iter().zip(q).map(|(w, q)| (w - s * f32::from(q)).powi(2)).sum::<f32>()
        };
        assert!(error(Bits::Eight) * 50.0 < error(Bits::Four));
    }

    proptest! {
        /// Half a step at most; the largest maps to the largest code; signs and zeros are kept;
        /// quantising what comes out, with the scale kept, changes nothing.
        #[test]
        fn the_bound_the_ends_and_idempotence(
            group in prop::collection::vec(-1.0f32..1.0, 1..80),
            size in -6i32..12,
        ) {
            let group: Vec<f32> = group.iter().map(|w| w * 2f32.powi(size)).collect();
            for bits in BOTH {
                let (s, q) = codes(&group, bits);
                let most = range(&group).unwrap();
                for (w, q) in group.iter().zip(&q) {
                    let back = s * f32::from(*q);
                    prop_assert!((w - back).abs() <= s / 2.0 * (1.0 + 1e-6), "{} {} {}", w, back, s);
                    prop_assert!(f32::from(q.signum()) * w >= 0.0);
                    prop_assert_eq!(code(back, s, bits), *q);
                    // The smallest normal f16 bounds where the end is reached exactly.
                    if w.abs() == most && s > 6.2e-5 {
                        prop_assert_eq!(q.abs(), bits.qmax());
                    }
                }
            }
        }

        /// A power of two is exact in the scale too; any other factor may move a stored scale by a
        /// step of f16, so there the law is stated for scales in f32.
        #[test]
        fn codes_do_not_depend_on_the_unit(group in prop::collection::vec(-1.0f32..1.0, 1..80)) {
            for bits in BOTH {
                let large: Vec<f32> = group.iter().map(|w| w * 1024.0).collect();
                if range(&group).unwrap() > 0.02 {
                    prop_assert_eq!(codes(&group, bits).1, codes(&large, bits).1);
                }
                let exact = |group: &[f32]| -> Vec<i8> {
                    let s = range(group).unwrap() / f32::from(bits.qmax());
                    group.iter().map(|w| code(*w, s, bits)).collect()
                };
                let large: Vec<f32> = group.iter().map(|w| w * 1000.0).collect();
                let tie = |w: &f32| {
                    let at = w / (range(&group).unwrap() / f32::from(bits.qmax()));
                    ((at - at.floor()) - 0.5).abs() < 1e-4
                };
                if !group.iter().any(tie) {
                    prop_assert_eq!(exact(&group), exact(&large));
                }
            }
        }
    }
}

//! Rows of weights as Q4_K: blocks of 32 weights with a scale and a minimum of 6 bits each, eight of
//! which share the two f16 factors of those (144 bytes for 256 weights, 4.5 bits a weight).
//!
//! `w = d * scale * code - dmin * minimum`, codes 0 to 15, scales and minimums 0 to 63. A block's
//! (scale, minimum) is found by alternating: codes for a scale, then the scale and minimum of least
//! squared error for these codes, from several first scales; the best is kept. Then both are rounded to
//! 6 bits and the codes are chosen again with what is stored.

use half::f16;

use super::base::{self, GroupError};
use super::granularity::UNIT;

/// Weights of a super-block.
pub const SUPER: usize = 256;
/// Blocks of a super-block.
const BLOCKS: usize = SUPER / UNIT;
/// Largest code, and largest 6-bit scale.
const CODES: f32 = 15.0;
const LEVELS: f32 = 63.0;
/// First scales that are tried, in parts of the one that spans the whole range.
const STARTS: [f32; 6] = [0.75, 0.82, 0.88, 0.94, 1.0, 1.06];

/// The scale and the minimum (both at least 0) under which `block` loses least.
fn fit(block: &[f32; UNIT]) -> (f32, f32) {
    let least = block.iter().fold(0.0f32, |m, w| m.min(*w));
    let most = block.iter().fold(least, |m, w| m.max(*w));
    if most <= least {
        return (0.0, -least);
    }
    let loss = |scale: f32, minimum: f32| -> f32 {
        block.iter().map(|w| (scale * code(*w, scale, minimum) - minimum - w).powi(2)).sum()
    };
    let mut best = ((most - least) / CODES, -least);
    let mut lowest = loss(best.0, best.1);
    for start in STARTS {
        let (mut scale, mut minimum) = (start * (most - least) / CODES, -least);
        for _ in 0..4 {
            // Least squares for fixed codes: w = scale * code - minimum.
            let (mut n, mut c, mut cc, mut s, mut cs) = (0.0f32, 0.0f32, 0.0f32, 0.0f32, 0.0f32);
            for w in block {
                let k = code(*w, scale, minimum);
                (n, c, cc, s, cs) = (n + 1.0, c + k, cc + k * k, s + w, cs + k * w);
            }
            let det = n * cc - c * c;
            if det <= 0.0 {
                break;
            }
            scale = (n * cs - c * s) / det;
            minimum = (c * scale - s) / n;
            if minimum < 0.0 {
                // The format has no positive offset: the best line through zero.
                (scale, minimum) = (if cc > 0.0 { cs / cc } else { 0.0 }, 0.0);
            }
            if scale <= 0.0 {
                break;
            }
            let now = loss(scale, minimum);
            if now < lowest {
                (lowest, best) = (now, (scale, minimum));
            }
        }
    }
    best
}

fn code(w: f32, scale: f32, minimum: f32) -> f32 {
    if scale > 0.0 { ((w + minimum) / scale).round_ties_even().clamp(0.0, CODES) } else { 0.0 }
}

/// The f16 factor of eight 6-bit values, and the values.
fn levels(values: &[f32; BLOCKS]) -> Result<(f16, [u8; BLOCKS]), GroupError> {
    let most = values.iter().fold(0.0f32, |m, v| m.max(*v));
    let factor = f16::from_f32(most / LEVELS);
    if !factor.is_finite() {
        return Err(GroupError::TooLarge(most));
    }
    let inverse = if factor == f16::ZERO { 0.0 } else { 1.0 / factor.to_f32() };
    Ok((factor, values.map(|v| (v * inverse).round_ties_even().clamp(0.0, LEVELS) as u8)))
}

/// The twelve bytes of eight 6-bit scales and eight 6-bit minimums: blocks 0 to 3 lie in the low bits of
/// bytes 0 to 3 and 4 to 7; blocks 4 to 7 have their low halves in bytes 8 to 11 and their upper two
/// bits on top of the others.
fn pack_levels(scales: &[u8; BLOCKS], minimums: &[u8; BLOCKS]) -> [u8; 12] {
    std::array::from_fn(|i| match i {
        0..4 => scales[i] | (scales[i + 4] >> 4) << 6,
        4..8 => minimums[i - 4] | (minimums[i] >> 4) << 6,
        _ => scales[i - 4] & 15 | (minimums[i - 4] & 15) << 4,
    })
}

/// Appends a row as Q4_K; its length is a multiple of [`SUPER`].
///
/// # Errors
/// A weight that is not finite or too large.
pub fn q4_k(row: &[f32], out: &mut Vec<u8>) -> Result<(), GroupError> {
    for weights in row.as_chunks::<SUPER>().0 {
        base::range(weights)?;
        let blocks = weights.as_chunks::<UNIT>().0;
        let fits: [(f32, f32); BLOCKS] = std::array::from_fn(|i| fit(&blocks[i]));
        let (d, scales) = levels(&fits.map(|f| f.0))?;
        let (dmin, minimums) = levels(&fits.map(|f| f.1))?;
        out.extend(d.to_le_bytes());
        out.extend(dmin.to_le_bytes());
        out.extend(pack_levels(&scales, &minimums));
        let codes = |i: usize| -> [u8; UNIT] {
            let scale = d.to_f32() * f32::from(scales[i]);
            let minimum = dmin.to_f32() * f32::from(minimums[i]);
            blocks[i].map(|w| code(w, scale, minimum) as u8)
        };
        for pair in 0..BLOCKS / 2 {
            let (low, high) = (codes(2 * pair), codes(2 * pair + 1));
            out.extend(low.iter().zip(high).map(|(low, high)| low | high << 4));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tessera_kernels::{WeightType, dequantize};

    use super::*;
    use crate::quantise::blocks::q4_1;

    fn back(ty: WeightType, raw: &[u8], n: usize) -> Vec<f32> {
        let mut out = vec![0.0; n];
        dequantize(ty, raw, &mut out).unwrap();
        out
    }

    #[test]
    fn values_on_the_grid_come_back() {
        // Scales that are multiples of d, minimums of dmin: nothing is lost.
        let row: Vec<f32> = (0..SUPER)
            .map(|i| {
                let (block, k) = ((i / UNIT) as f32, (i % UNIT % 16) as f32);
                let scale = if block < 7.0 { block + 1.0 } else { LEVELS };
                0.5 * scale * k - 0.25 * if block == 3.0 { LEVELS } else { block }
            })
            .collect();
        let mut raw = Vec::new();
        q4_k(&row, &mut raw).unwrap();
        assert_eq!(raw.len(), 144);
        let largest = row.iter().fold(0.0f32, |m, w| m.max(w.abs()));
        for (w, v) in row.iter().zip(back(WeightType::Q4K, &raw, SUPER)) {
            assert!((w - v).abs() < 2e-3 * largest, "{w} became {v}");
        }
    }

    #[test]
    fn every_level_survives_packing() {
        for seed in 0..64u8 {
            let scales = std::array::from_fn(|i| (seed * 7 + i as u8 * 11) & 63);
            let minimums = std::array::from_fn(|i| (seed * 3 + i as u8 * 29) & 63);
            // d = dmin = 1 and codes 1 in the low, 0 in the high halves of each byte.
            let mut raw = vec![0, 0x3c, 0, 0x3c];
            raw.extend(pack_levels(&scales, &minimums));
            raw.extend([0x01; 128]);
            let values = back(WeightType::Q4K, &raw, SUPER);
            for (i, v) in values.chunks(UNIT).enumerate() {
                let code = if i % 2 == 0 { 1.0 } else { 0.0 };
                assert_eq!(v[0], code * f32::from(scales[i]) - f32::from(minimums[i]), "block {i}");
            }
        }
    }

    #[test]
    fn what_is_not_finite_is_refused_and_zeros_stay() {
        let mut raw = Vec::new();
        q4_k(&[0.0; SUPER], &mut raw).unwrap();
        assert_eq!(back(WeightType::Q4K, &raw, SUPER), [0.0; SUPER]);
        assert!(q4_k(&[f32::NAN; SUPER], &mut raw).is_err());
        assert!(q4_k(&[3e38; SUPER], &mut raw).is_err());
    }

    proptest! {
        /// On bell-shaped weights it loses no more than Q4_1, which spends half a bit more.
        #[test]
        fn it_is_about_as_near_as_q4_1(seed in prop::collection::vec(-1.0f32..1.0, 4 * SUPER)) {
            let row: Vec<f32> = seed.chunks(4).map(|c| c.iter().sum()).collect();
            let (mut k, mut one) = (Vec::new(), Vec::new());
            q4_k(&row, &mut k).unwrap();
            q4_1(&row, &mut one).unwrap();
            let loss = |ty, raw: &[u8]| -> f32 {
                back(ty, raw, SUPER).iter().zip(&row).map(|(v, w)| (v - w).powi(2)).sum()
            };
            prop_assert!(loss(WeightType::Q4K, &k) < 1.15 * loss(WeightType::Q4_1, &one));
        }
    }
}

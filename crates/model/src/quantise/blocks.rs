//! Rows of weights as the blocks of GGUF files: the standard schemes, and groups of one scale spread
//! over blocks of 32.
//!
//! | type | block of 32 | value |
//! |---|---|---|
//! | Q4_0 | d f16, 16 bytes of codes | `d * (code - 8)` |
//! | Q4_1 | d f16, m f16, 16 bytes of codes | `d * code + m` |
//! | Q8_0 | d f16, 32 signed bytes | `d * code` |
//!
//! Byte `k` of 4-bit codes holds value `k` in its low and value `k + 16` in its high half. A group of
//! int4 codes `-7 ..= 7` is exactly a run of Q4_0 blocks of equal `d` with `code + 8`; int8 codes are
//! Q8_0. The `q4_0` scheme itself follows the format's custom of mapping the weight of largest
//! magnitude, with its sign, to code 0 (that is `-8 d`). Scales are f16, rounded to nearest there, and
//! codes are rounded half to even with the stored scale.

use half::f16;

use super::base::{self, Bits, GroupError};
use super::granularity::UNIT;

/// Sixteen bytes of 32 codes from 0 to 15.
pub fn pack_nibbles(codes: &[u8; UNIT]) -> [u8; UNIT / 2] {
    std::array::from_fn(|k| (codes[k] & 15) | (codes[k + UNIT / 2] << 4))
}

/// The 32 codes of sixteen bytes.
pub fn unpack_nibbles(bytes: &[u8; UNIT / 2]) -> [u8; UNIT] {
    std::array::from_fn(|i| if i < UNIT / 2 { bytes[i] & 15 } else { bytes[i - UNIT / 2] >> 4 })
}

/// One group's codes as bytes, without the scale: a multiple of 32 weights.
fn group_codes(group: &[f32], scale: f32, bits: Bits, mut each: impl FnMut(&[u8])) {
    for block in group.as_chunks::<UNIT>().0 {
        let codes = block.map(|w| base::code(w, scale, bits));
        match bits {
            Bits::Four => each(&pack_nibbles(&codes.map(|q| (q + 8).cast_unsigned()))),
            Bits::Eight => each(&codes.map(i8::cast_unsigned)),
        }
    }
}

/// Appends a row in groups of `size` as Q4_0 or Q8_0 blocks, the scale of a group repeated in each.
///
/// # Errors
/// A weight that is not finite or too large.
pub fn grouped(row: &[f32], size: usize, bits: Bits, out: &mut Vec<u8>) -> Result<(), GroupError> {
    for group in row.chunks(size.max(UNIT)) {
        let s = base::scale(base::range(group)?, bits)?;
        group_codes(group, s.to_f32(), bits, |codes| {
            out.extend(s.to_le_bytes());
            out.extend(codes);
        });
    }
    Ok(())
}

/// Appends a row in groups of `size` with one scale each: all scales of the row, then all codes
/// (`docs/formats.md`).
///
/// # Errors
/// A weight that is not finite or too large.
pub fn compact(row: &[f32], size: usize, bits: Bits, out: &mut Vec<u8>) -> Result<(), GroupError> {
    let groups = || row.chunks(size.max(UNIT));
    let mut scales = Vec::with_capacity(row.len() / size.max(UNIT) + 1);
    for group in groups() {
        let s = base::scale(base::range(group)?, bits)?;
        out.extend(s.to_le_bytes());
        scales.push(s.to_f32());
    }
    for (group, s) in groups().zip(scales) {
        group_codes(group, s, bits, |codes| out.extend(codes));
    }
    Ok(())
}

/// Appends a row as Q4_0.
///
/// # Errors
/// A weight that is not finite or too large.
pub fn q4_0(row: &[f32], out: &mut Vec<u8>) -> Result<(), GroupError> {
    for block in row.as_chunks::<UNIT>().0 {
        base::range(block)?;
        let largest = block.iter().fold(0.0f32, |m, w| if w.abs() > m.abs() { *w } else { m });
        let d = near(largest / -8.0)?;
        let inverse = inverse(d);
        out.extend(d.to_le_bytes());
        out.extend(pack_nibbles(&block.map(|w| unsigned(w * inverse + 8.0, 15.0))));
    }
    Ok(())
}

/// Appends a row as Q4_1.
///
/// # Errors
/// A weight that is not finite or too large.
pub fn q4_1(row: &[f32], out: &mut Vec<u8>) -> Result<(), GroupError> {
    for block in row.as_chunks::<UNIT>().0 {
        base::range(block)?;
        let least = block.iter().fold(f32::INFINITY, |m, w| m.min(*w));
        let most = block.iter().fold(f32::NEG_INFINITY, |m, w| m.max(*w));
        let (d, m) = (near((most - least) / 15.0)?, near(least)?);
        let (inverse, least) = (inverse(d), m.to_f32());
        out.extend(d.to_le_bytes());
        out.extend(m.to_le_bytes());
        out.extend(pack_nibbles(&block.map(|w| unsigned((w - least) * inverse, 15.0))));
    }
    Ok(())
}

fn near(x: f32) -> Result<f16, GroupError> {
    let near = f16::from_f32(x);
    if near.is_finite() { Ok(near) } else { Err(GroupError::TooLarge(x.abs())) }
}

fn inverse(d: f16) -> f32 {
    if d == f16::ZERO { 0.0 } else { 1.0 / d.to_f32() }
}

/// The nearest whole number, halves to even, from 0 to `most`.
fn unsigned(x: f32, most: f32) -> u8 {
    x.round_ties_even().clamp(0.0, most) as u8
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tessera_kernels::{WeightType, dequantize};

    use super::*;

    fn back(ty: WeightType, raw: &[u8], n: usize) -> Vec<f32> {
        let mut out = vec![0.0; n];
        dequantize(ty, raw, &mut out).unwrap();
        out
    }

    #[test]
    fn every_byte_survives_packing() {
        for byte in 0..=255u8 {
            for at in 0..16 {
                let mut bytes = [0x5a; 16];
                bytes[at] = byte;
                assert_eq!(pack_nibbles(&unpack_nibbles(&bytes)), bytes);
            }
        }
        let codes: [u8; 32] = std::array::from_fn(|i| (i as u8 * 7) & 15);
        assert_eq!(unpack_nibbles(&pack_nibbles(&codes)), codes);
    }

    #[test]
    fn blocks_by_hand() {
        let mut row = [0.0f32; 32];
        (row[0], row[1], row[16]) = (-8.0, 3.5, 7.0);
        let mut out = Vec::new();
        q4_0(&row, &mut out).unwrap();
        // d = 1; -8 -> 0, 3.5 -> 12 (half to even), 7 -> 15, 0 -> 8.
        assert_eq!(out[..4], [0x00, 0x3c, 0xf0, 0x8c]);
        out.clear();
        q4_1(&row, &mut out).unwrap();
        // d = 1, m = -8.
        assert_eq!(out[..6], [0x00, 0x3c, 0x00, 0xc8, 0xf0, 0x8c]);
        out.clear();
        grouped(&row, 32, Bits::Four, &mut out).unwrap();
        // s is 8/7 rounded up to f16; -8 -> -7, which is code 1.
        let s = f16::from_le_bytes([out[0], out[1]]).to_f32();
        assert!((8.0 / 7.0..8.0 / 7.0 + 1e-3).contains(&s) && out[2] & 15 == 1, "{s} {out:?}");
    }

    proptest! {
        /// A group's blocks stand for exactly `scale * code`, whole groups and a shorter last one,
        /// and the compact form holds the same scales and codes.
        #[test]
        fn groups_are_standard_blocks(
            units in 1usize..9,
            group_units in 1usize..6,
            seed in prop::collection::vec(-4.0f32..4.0, 288),
        ) {
            let (n, size) = (32 * units, 32 * group_units);
            let row = &seed[..n];
            for (bits, ty) in [(Bits::Four, WeightType::Q4_0), (Bits::Eight, WeightType::Q8_0)] {
                let (mut raw, mut small) = (Vec::new(), Vec::new());
                grouped(row, size, bits, &mut raw).unwrap();
                compact(row, size, bits, &mut small).unwrap();
                prop_assert_eq!(raw.len(), ty.row_bytes(n).unwrap());
                prop_assert_eq!(small.len(), 2 * n.div_ceil(size) + n * bits.count() as usize / 8);
                let values = back(ty, &raw, n);
                for (group, values) in row.chunks(size).zip(values.chunks(size)) {
                    let s = base::scale(base::range(group).unwrap(), bits).unwrap().to_f32();
                    for (w, v) in group.iter().zip(values) {
                        prop_assert_eq!(*v, s * f32::from(base::code(*w, s, bits)));
                        prop_assert!((w - v).abs() <= s / 2.0 * (1.0 + 1e-6));
                    }
                }
            }
        }

        /// The standard schemes stay within a step, and a step of f16 rounding, of every weight.
        #[test]
        fn standard_schemes_are_near(row in prop::collection::vec(-4.0f32..4.0, 64)) {
            let mut raw = Vec::new();
            q4_0(&row, &mut raw).unwrap();
            for (w, v) in row.iter().zip(back(WeightType::Q4_0, &raw, 64)) {
                // The end opposite to the largest weight may be cut by one step.
                prop_assert!((w - v).abs() <= 4.0 / 8.0 * 1.01);
            }
            raw.clear();
            q4_1(&row, &mut raw).unwrap();
            for (w, v) in row.iter().zip(back(WeightType::Q4_1, &raw, 64)) {
                prop_assert!((w - v).abs() <= 8.0 / 15.0 / 2.0 + 0.01);
            }
        }
    }

    #[test]
    fn zeros_and_what_is_not_finite() {
        for encode in [q4_0, q4_1, |r: &[f32], o: &mut Vec<u8>| grouped(r, 64, Bits::Eight, o)] {
            let mut out = Vec::new();
            encode(&[0.0; 64], &mut out).unwrap();
            assert!(encode(&[f32::NAN; 64], &mut out).is_err());
            assert!(encode(&[3e38; 64], &mut out).is_err());
        }
        let mut out = Vec::new();
        q4_0(&[0.0; 32], &mut out).unwrap();
        assert_eq!(back(WeightType::Q4_0, &out, 32), [0.0; 32]);
    }
}

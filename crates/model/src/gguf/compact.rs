//! Tessera's compact tensor types: one scale a group of any multiple of 32 weights, where Q4_0 and Q8_0
//! have one every 32. `docs/formats.md` describes them; other engines refuse them by number.
//!
//! A reader sees such a tensor as Q4_0 or Q8_0: rows are expanded as they are read, which is exact.

use tessera_kernels::WeightType;

/// The upper half of every compact type number: far above the numbers of the ggml format.
const MARK: u32 = 0x4651_0000;
/// Set for 8-bit codes.
const EIGHT: u32 = 0x8000;
/// Values of a block of the expanded type.
const UNIT: usize = 32;

/// A compact type: codes of 4 or 8 bits, `group` weights a scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compact {
    eight: bool,
    units: u16,
}

impl Compact {
    /// The type of codes of 8 bits (or 4) with a scale for each `group` weights of a row; `None` unless
    /// `group` is a multiple of 32 from 32 to 1,048,544.
    pub fn new(eight: bool, group: usize) -> Option<Self> {
        let units = u16::try_from(group / UNIT).ok().filter(|units| (1..0x8000).contains(units));
        units.filter(|_| group.is_multiple_of(UNIT)).map(|units| Self { eight, units })
    }

    /// The type of a number in a tensor header, if it is one of these.
    pub fn from_number(number: u32) -> Option<Self> {
        let units = (number & 0x7fff) as u16;
        (number & 0xffff_0000 == MARK && units > 0)
            .then_some(Self { eight: number & EIGHT != 0, units })
    }

    /// Its number in a tensor header.
    pub fn number(self) -> u32 {
        MARK | if self.eight { EIGHT } else { 0 } | u32::from(self.units)
    }

    /// Weights that share a scale.
    pub fn group(self) -> usize {
        usize::from(self.units) * UNIT
    }

    /// `FQ4` or `FQ8`.
    pub fn name(self) -> &'static str {
        if self.eight { "FQ8" } else { "FQ4" }
    }

    /// The standard type that it expands to.
    pub fn expanded(self) -> WeightType {
        if self.eight { WeightType::Q8_0 } else { WeightType::Q4_0 }
    }

    /// Bytes of codes of a block of 32.
    fn codes(self) -> usize {
        if self.eight { UNIT } else { UNIT / 2 }
    }

    /// Bytes of a row of `cols` weights: a scale for each group, then the codes. `None` when `cols`
    /// is no multiple of 32, or the size overflows.
    pub fn row_bytes(self, cols: usize) -> Option<usize> {
        if !cols.is_multiple_of(UNIT) {
            return None;
        }
        let scales = cols.div_ceil(self.group()) * 2;
        (cols / UNIT).checked_mul(self.codes())?.checked_add(scales)
    }

    /// Appends the row of the standard type that these bytes of a row of `cols` weights stand for.
    pub(super) fn expand(self, row: &[u8], cols: usize, out: &mut Vec<u8>) {
        let (scales, codes) = row.split_at((cols.div_ceil(self.group()) * 2).min(row.len()));
        let per_group = usize::from(self.units) * self.codes();
        for (scale, codes) in scales.chunks_exact(2).zip(codes.chunks(per_group)) {
            for block in codes.chunks_exact(self.codes()) {
                out.extend(scale);
                out.extend(block);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_round_trip_and_lie_apart_from_the_formats_own() {
        for eight in [false, true] {
            for group in [32, 64, 160, 4096, 0x7fff * 32] {
                let ty = Compact::new(eight, group).unwrap();
                assert_eq!(Compact::from_number(ty.number()), Some(ty));
                assert_eq!(ty.group(), group);
                assert!(ty.number() > 1 << 16);
            }
        }
        assert!([0, 31, 48, 0x8000 * 32].iter().all(|g| Compact::new(false, *g).is_none()));
        assert!(
            [0, 2, 8, 39, 0x4651_0000, 0x4651_8000, u32::MAX]
                .iter()
                .all(|n| Compact::from_number(*n).is_none())
        );
    }

    #[test]
    fn a_row_takes_the_bits_that_the_arithmetic_says() {
        for (eight, group) in [(false, 64), (false, 128), (true, 1024)] {
            let ty = Compact::new(eight, group).unwrap();
            let bits = ty.row_bytes(1024).unwrap() as f64 * 8.0 / 1024.0;
            assert_eq!(bits, if eight { 8.0 } else { 4.0 } + 16.0 / group as f64);
        }
        let ty = Compact::new(false, 64).unwrap();
        assert_eq!(ty.row_bytes(96), Some(2 * 2 + 48));
        assert_eq!(ty.row_bytes(80), None);
        assert_eq!(
            ty.row_bytes(usize::MAX / 32 * 32),
            Some((usize::MAX / 64 + 1) * 2 + usize::MAX / 32 * 16)
        );
    }

    #[test]
    fn a_row_with_a_shorter_last_group_expands_by_hand() {
        let ty = Compact::new(false, 64).unwrap();
        let row: Vec<u8> = [1, 2, 3, 4].into_iter().chain(10..58).collect();
        let mut out = Vec::new();
        ty.expand(&row, 96, &mut out);
        let blocks: Vec<&[u8]> = out.chunks(18).collect();
        assert_eq!(blocks.len(), 3);
        assert_eq!(
            [&blocks[0][..3], &blocks[1][..3], &blocks[2][..3]],
            [[1, 2, 10], [1, 2, 26], [3, 4, 42]]
        );
        assert_eq!(blocks[2][17], 57);
    }
}

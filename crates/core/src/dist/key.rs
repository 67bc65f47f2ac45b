//! Keys: where the randomness of a draw comes from.

use super::scalar::neg_ln_1m;
use crate::{Position, TokenId};

/// Odd, near 2^64 / golden ratio: successive multiples spread evenly.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// The randomness of one draw. Two draws with equal keys and equal distributions are equal.
///
/// Each token id gets its own uniform number, by counting rather than by a running state: id `i`
/// reads element `i + 1` of the SplitMix64 sequence (Steele, Lea, Flood 2014) that starts at a mix
/// of the key's parts. So a number depends on nothing but the key and the id, in any order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key {
    start: u64,
}

impl Key {
    /// The key of the token at `position` of choice `choice` of a request with this seed.
    pub fn new(seed: u64, choice: u32, position: Position) -> Self {
        let mut start = mix(seed.wrapping_add(STEP));
        start = mix(start ^ u64::from(choice).wrapping_mul(0xd6e8_feb8_6659_fd93));
        start = mix(start.wrapping_add(u64::from(position).wrapping_mul(0xa076_1d64_78bd_642f)));
        Self { start }
    }

    /// A key for another purpose at the same place (`name` tells purposes apart): an acceptance
    /// test, say, that must not reuse the numbers of the draw.
    pub fn purpose(self, name: u64) -> Self {
        Self { start: mix(self.start ^ mix(name.wrapping_add(0x2545_f491_4f6c_dd1d))) }
    }

    /// 64 random bits for token `id`.
    #[inline]
    pub fn bits(self, id: TokenId) -> u64 {
        mix(self.start.wrapping_add((u64::from(id) + 1).wrapping_mul(STEP)))
    }

    /// A number in the open interval (0, 1) for token `id`, one of 2^52.
    #[inline]
    pub fn uniform(self, id: TokenId) -> f64 {
        open(self.bits(id))
    }

    /// A standard exponential number for token `id`: positive, at least 2^-53.
    #[inline]
    pub fn exponential(self, id: TokenId) -> f64 {
        neg_ln_1m(self.uniform(id))
    }
}

/// The middle of one of the 2^52 equal parts of (0, 1).
#[inline]
pub(super) fn open(bits: u64) -> f64 {
    ((bits >> 12) as f64 + 0.5) * (1.0 / 4_503_599_627_370_496.0)
}

/// SplitMix64's finaliser: a bijection in which every input bit reaches every output bit.
#[inline]
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dist::chi::{ERROR_LEVEL, independence, uniformity};

    #[test]
    fn every_part_of_the_key_matters() {
        let base = Key::new(1, 2, 3);
        for other in [Key::new(0, 2, 3), Key::new(1, 3, 3), Key::new(1, 2, 2), base.purpose(0)] {
            assert_ne!(base.bits(0), other.bits(0));
        }
        assert_eq!(base, Key::new(1, 2, 3));
        assert_ne!(base.purpose(0), base.purpose(1));
    }

    #[test]
    fn numbers_are_uniform_over_ids_positions_choices_and_seeds() {
        let axes: [fn(u32) -> u64; 4] = [
            |i| Key::new(7, 0, 11).bits(i),
            |i| Key::new(7, 0, i).bits(5),
            |i| Key::new(7, i, 11).bits(5),
            |i| Key::new(u64::from(i), 0, 11).bits(5),
        ];
        for axis in axes {
            for shift in [0, 30, 60] {
                let mut counts = [0u64; 16];
                (0..40_000).for_each(|i| counts[(axis(i) >> shift & 15) as usize] += 1);
                assert!(uniformity(&counts) > ERROR_LEVEL, "{counts:?}");
            }
        }
    }

    #[test]
    fn neighbouring_draws_are_independent() {
        let pairs: [fn(u32) -> (u64, u64); 3] = [
            |i| (Key::new(3, 0, i).bits(9), Key::new(3, 0, i + 1).bits(9)),
            |i| (Key::new(3, i, 4).bits(9), Key::new(3, i + 1, 4).bits(9)),
            |i| (Key::new(3, 0, 4).bits(i), Key::new(3, 0, 4).bits(i + 1)),
        ];
        for pair in pairs {
            let mut table = vec![0u64; 64];
            (0..40_000).for_each(|i| {
                let (a, b) = pair(2 * i);
                table[(a >> 61) as usize * 8 + (b >> 61) as usize] += 1;
            });
            assert!(independence(&table, 8) > ERROR_LEVEL, "{table:?}");
        }
    }

    #[test]
    fn uniforms_stay_inside_and_exponentials_are_positive() {
        assert_eq!(open(0), 2f64.powi(-53));
        assert!(open(u64::MAX) < 1.0);
        assert!(neg_ln_1m(open(0)) >= 2f64.powi(-53));
        assert!(neg_ln_1m(open(u64::MAX)).is_finite());
    }
}

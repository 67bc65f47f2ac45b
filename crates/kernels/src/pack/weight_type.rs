//! The weight types of GGUF files: names, numbers and block sizes.

use std::fmt;

use crate::error::{KernelError, Result};

/// How the values of a weight matrix are stored in a GGUF file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum WeightType {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
}

impl WeightType {
    /// Every type this crate reads.
    pub const ALL: [WeightType; 13] = [
        WeightType::F32,
        WeightType::F16,
        WeightType::BF16,
        WeightType::Q4_0,
        WeightType::Q4_1,
        WeightType::Q5_0,
        WeightType::Q5_1,
        WeightType::Q8_0,
        WeightType::Q2K,
        WeightType::Q3K,
        WeightType::Q4K,
        WeightType::Q5K,
        WeightType::Q6K,
    ];

    /// (name, ggml number, values in a block, bytes in a block).
    const fn facts(self) -> (&'static str, u32, usize, usize) {
        match self {
            WeightType::F32 => ("F32", 0, 1, 4),
            WeightType::F16 => ("F16", 1, 1, 2),
            WeightType::Q4_0 => ("Q4_0", 2, 32, 18),
            WeightType::Q4_1 => ("Q4_1", 3, 32, 20),
            WeightType::Q5_0 => ("Q5_0", 6, 32, 22),
            WeightType::Q5_1 => ("Q5_1", 7, 32, 24),
            WeightType::Q8_0 => ("Q8_0", 8, 32, 34),
            WeightType::Q2K => ("Q2_K", 10, 256, 84),
            WeightType::Q3K => ("Q3_K", 11, 256, 110),
            WeightType::Q4K => ("Q4_K", 12, 256, 144),
            WeightType::Q5K => ("Q5_K", 13, 256, 176),
            WeightType::Q6K => ("Q6_K", 14, 256, 210),
            WeightType::BF16 => ("BF16", 30, 1, 2),
        }
    }

    /// The type of a ggml type number, as a GGUF tensor header holds it.
    pub fn from_ggml(number: u32) -> Result<WeightType> {
        WeightType::ALL
            .into_iter()
            .find(|ty| ty.facts().1 == number)
            .ok_or(KernelError::UnknownType(number))
    }

    /// The ggml type number.
    pub const fn ggml(self) -> u32 {
        self.facts().1
    }

    /// The name as GGUF tools print it, such as `Q4_K`.
    pub const fn name(self) -> &'static str {
        self.facts().0
    }

    /// Values in a block: 1, 32 or 256.
    pub const fn block_len(self) -> usize {
        self.facts().2
    }

    /// Bytes of a block.
    pub const fn block_bytes(self) -> usize {
        self.facts().3
    }

    /// Bytes of a row of `cols` values. Errors: `cols` is not a multiple of the block length, or
    /// the size overflows.
    pub fn row_bytes(self, cols: usize) -> Result<usize> {
        if !cols.is_multiple_of(self.block_len()) {
            return Err(KernelError::Block { ty: self.name(), cols, block: self.block_len() });
        }
        (cols / self.block_len())
            .checked_mul(self.block_bytes())
            .ok_or(KernelError::Overflow("a row of weights"))
    }

    /// Bytes of `rows` rows of `cols` values; errors as [`WeightType::row_bytes`].
    pub fn matrix_bytes(self, rows: usize, cols: usize) -> Result<usize> {
        self.row_bytes(cols)?.checked_mul(rows).ok_or(KernelError::Overflow("a weight matrix"))
    }

    /// Whether products run on this type in its own bit width (the others are unpacked to f32
    /// strip by strip).
    pub const fn is_fast(self) -> bool {
        matches!(
            self,
            WeightType::Q4_0
                | WeightType::Q4_1
                | WeightType::Q5_0
                | WeightType::Q8_0
                | WeightType::Q4K
                | WeightType::Q6K
        )
    }
}

impl fmt::Display for WeightType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_round_trip_and_unknown_ones_are_refused() {
        for ty in WeightType::ALL {
            assert_eq!(WeightType::from_ggml(ty.ggml()), Ok(ty));
        }
        for number in [4, 5, 9, 15, 16, 29, 31, u32::MAX] {
            assert_eq!(WeightType::from_ggml(number), Err(KernelError::UnknownType(number)));
        }
    }

    #[test]
    fn sizes_are_checked() {
        assert_eq!(WeightType::Q4_1.row_bytes(576), Ok(18 * 20));
        assert_eq!(WeightType::Q6K.matrix_bytes(3, 512), Ok(3 * 2 * 210));
        assert!(WeightType::Q4K.row_bytes(128).is_err());
        assert!(WeightType::Q8_0.row_bytes(33).is_err());
        assert!(WeightType::F32.row_bytes(usize::MAX).is_err());
        assert!(WeightType::F16.matrix_bytes(usize::MAX, 2).is_err());
    }
}

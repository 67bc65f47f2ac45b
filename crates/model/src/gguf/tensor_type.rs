//! The tensor types a GGUF file may name, and the ones this engine computes with.

use crate::file_error::Fault;

/// Every tensor type that has a number in the ggml format.
///
/// The supported ones carry the size of a block: `block_len` values in `block_bytes` bytes.
/// The rest are known by name only, so that a refusal can say what the file holds.
#[allow(non_camel_case_types, missing_docs)] // the format's own names
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TensorType {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    Q4_2,
    Q4_3,
    Q8_1,
    Q8_K,
    IQ2_XXS,
    IQ2_XS,
    IQ3_XXS,
    IQ1_S,
    IQ4_NL,
    IQ3_S,
    IQ2_S,
    IQ4_XS,
    IQ1_M,
    I8,
    I16,
    I32,
    I64,
    F64,
    Q4_0_4_4,
    Q4_0_4_8,
    Q4_0_8_8,
    TQ1_0,
    TQ2_0,
    IQ4_NL_4_4,
    IQ4_NL_4_8,
    IQ4_NL_8_8,
    MXFP4,
    NVFP4,
}

use TensorType as T;

/// (type, number in a file, name, values per block, bytes per block); 0 values: not supported.
const TABLE: &[(TensorType, u32, &str, u32, u32)] = &[
    (T::F32, 0, "F32", 1, 4),
    (T::F16, 1, "F16", 1, 2),
    (T::BF16, 30, "BF16", 1, 2),
    (T::Q4_0, 2, "Q4_0", 32, 18),
    (T::Q4_1, 3, "Q4_1", 32, 20),
    (T::Q5_0, 6, "Q5_0", 32, 22),
    (T::Q5_1, 7, "Q5_1", 32, 24),
    (T::Q8_0, 8, "Q8_0", 32, 34),
    (T::Q2_K, 10, "Q2_K", 256, 84),
    (T::Q3_K, 11, "Q3_K", 256, 110),
    (T::Q4_K, 12, "Q4_K", 256, 144),
    (T::Q5_K, 13, "Q5_K", 256, 176),
    (T::Q6_K, 14, "Q6_K", 256, 210),
    (T::Q4_2, 4, "Q4_2", 0, 0),
    (T::Q4_3, 5, "Q4_3", 0, 0),
    (T::Q8_1, 9, "Q8_1", 0, 0),
    (T::Q8_K, 15, "Q8_K", 0, 0),
    (T::IQ2_XXS, 16, "IQ2_XXS", 0, 0),
    (T::IQ2_XS, 17, "IQ2_XS", 0, 0),
    (T::IQ3_XXS, 18, "IQ3_XXS", 0, 0),
    (T::IQ1_S, 19, "IQ1_S", 0, 0),
    (T::IQ4_NL, 20, "IQ4_NL", 0, 0),
    (T::IQ3_S, 21, "IQ3_S", 0, 0),
    (T::IQ2_S, 22, "IQ2_S", 0, 0),
    (T::IQ4_XS, 23, "IQ4_XS", 0, 0),
    (T::I8, 24, "I8", 0, 0),
    (T::I16, 25, "I16", 0, 0),
    (T::I32, 26, "I32", 0, 0),
    (T::I64, 27, "I64", 0, 0),
    (T::F64, 28, "F64", 0, 0),
    (T::IQ1_M, 29, "IQ1_M", 0, 0),
    (T::Q4_0_4_4, 31, "Q4_0_4_4", 0, 0),
    (T::Q4_0_4_8, 32, "Q4_0_4_8", 0, 0),
    (T::Q4_0_8_8, 33, "Q4_0_8_8", 0, 0),
    (T::TQ1_0, 34, "TQ1_0", 0, 0),
    (T::TQ2_0, 35, "TQ2_0", 0, 0),
    (T::IQ4_NL_4_4, 36, "IQ4_NL_4_4", 0, 0),
    (T::IQ4_NL_4_8, 37, "IQ4_NL_4_8", 0, 0),
    (T::IQ4_NL_8_8, 38, "IQ4_NL_8_8", 0, 0),
    (T::MXFP4, 39, "MXFP4", 0, 0),
    (T::NVFP4, 40, "NVFP4", 0, 0),
];

impl TensorType {
    /// The type with this number, if the format has one.
    pub fn from_id(id: u32) -> Option<Self> {
        TABLE.iter().find(|row| row.1 == id).map(|row| row.0)
    }

    fn row(self) -> &'static (TensorType, u32, &'static str, u32, u32) {
        // The table has a row per variant (tested), so the fallback is never taken.
        TABLE.iter().find(|row| row.0 == self).unwrap_or(&TABLE[0])
    }

    /// Its number in a file.
    pub fn id(self) -> u32 {
        self.row().1
    }

    /// Its name, as the format spells it.
    pub fn name(self) -> &'static str {
        self.row().2
    }

    /// Values and bytes of one block, when the engine can compute with this type.
    pub fn block(self) -> Option<(usize, usize)> {
        let (_, _, _, len, bytes) = *self.row();
        (len > 0).then_some((len as usize, bytes as usize))
    }

    /// Bytes of a row of `cols` values; `None` when the type is unsupported, the row is not a
    /// whole number of blocks, or the size does not fit.
    pub fn row_bytes(self, cols: usize) -> Option<usize> {
        let (len, bytes) = self.block()?;
        if !cols.is_multiple_of(len) {
            return None;
        }
        (cols / len).checked_mul(bytes)
    }

    /// Names of the types the engine computes with, for messages.
    pub fn supported() -> String {
        let names: Vec<_> = TABLE.iter().filter(|row| row.3 > 0).map(|row| row.2).collect();
        names.join(", ")
    }

    /// Refuses numbers the format does not have and types the engine does not compute with.
    pub(crate) fn parse(id: u32, field: impl Fn() -> String) -> Result<Self, Fault> {
        let Some(ty) = Self::from_id(id) else {
            return Err(Fault::malformed(field(), id, "the number of a known tensor type"));
        };
        if ty.block().is_none() {
            return Err(Fault::unsupported(field(), ty.name(), Self::supported()));
        }
        Ok(ty)
    }
}

impl std::fmt::Display for TensorType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_names_are_unique_and_every_number_up_to_the_last_is_known() {
        for (i, a) in TABLE.iter().enumerate() {
            assert_eq!(TensorType::from_id(a.1), Some(a.0));
            assert_eq!((a.0.id(), a.0.name()), (a.1, a.2));
            assert_eq!(format!("{:?}", a.0), a.2);
            for b in &TABLE[i + 1..] {
                assert!(a.0 != b.0 && a.1 != b.1 && a.2 != b.2, "{a:?} {b:?}");
            }
        }
        assert!((0..=40).all(|id| TensorType::from_id(id).is_some()));
        assert_eq!(TensorType::from_id(41), None);
        assert_eq!(TABLE.len(), TensorType::NVFP4 as usize + 1);
    }

    #[test]
    fn rows_are_whole_blocks() {
        assert_eq!(T::Q4_1.row_bytes(576), Some(576 / 32 * 20));
        assert_eq!(T::Q4_K.row_bytes(576), None);
        assert_eq!(T::Q6_K.row_bytes(512), Some(420));
        assert_eq!(T::F32.row_bytes(usize::MAX), None);
        assert_eq!(T::IQ4_NL.row_bytes(32), None);
    }

    #[test]
    fn an_unsupported_type_is_refused_by_name_with_the_list() {
        let fault = TensorType::parse(39, || "tensor \"x\": type".into()).unwrap_err();
        let line = fault.to_string();
        assert!(line.contains("MXFP4") && line.contains("Q4_K") && line.contains("tensor \"x\""));
        let fault = TensorType::parse(777, || "tensor \"x\": type".into()).unwrap_err();
        assert!(fault.to_string().contains("777"));
    }
}

//! The tensor types the ggml format numbers, so that a refusal can say what a file holds. Those the
//! engine computes with are [`WeightType`]s; block sizes live there.

use tessera_kernels::WeightType;

use crate::file_error::Fault;

/// Names by number, the types that were withdrawn included.
const NAMES: [&str; 41] = [
    "F32",
    "F16",
    "Q4_0",
    "Q4_1",
    "Q4_2",
    "Q4_3",
    "Q5_0",
    "Q5_1",
    "Q8_0",
    "Q8_1",
    "Q2_K",
    "Q3_K",
    "Q4_K",
    "Q5_K",
    "Q6_K",
    "Q8_K",
    "IQ2_XXS",
    "IQ2_XS",
    "IQ3_XXS",
    "IQ1_S",
    "IQ4_NL",
    "IQ3_S",
    "IQ2_S",
    "IQ4_XS",
    "I8",
    "I16",
    "I32",
    "I64",
    "F64",
    "IQ1_M",
    "BF16",
    "Q4_0_4_4",
    "Q4_0_4_8",
    "Q4_0_8_8",
    "TQ1_0",
    "TQ2_0",
    "IQ4_NL_4_4",
    "IQ4_NL_4_8",
    "IQ4_NL_8_8",
    "MXFP4",
    "NVFP4",
];

/// The name of a tensor type number, if the format has it.
pub fn tensor_type_name(number: u32) -> Option<&'static str> {
    NAMES.get(usize::try_from(number).ok()?).copied()
}

/// Names of the types the engine computes with, for messages.
fn supported_types() -> String {
    WeightType::ALL.map(WeightType::name).join(", ")
}

/// Refuses numbers the format does not have and types the engine does not compute with.
pub(crate) fn weight_type(number: u32, field: impl Fn() -> String) -> Result<WeightType, Fault> {
    let Some(name) = tensor_type_name(number) else {
        return Err(Fault::malformed(field(), number, "the number of a known tensor type"));
    };
    WeightType::from_ggml(number).map_err(|_| Fault::unsupported(field(), name, supported_types()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_agree_with_the_kernels() {
        for ty in WeightType::ALL {
            assert_eq!(tensor_type_name(ty.ggml()), Some(ty.name()));
            assert_eq!(weight_type(ty.ggml(), String::new).unwrap(), ty);
        }
        assert_eq!(tensor_type_name(41), None);
        assert_eq!(tensor_type_name(u32::MAX), None);
    }

    #[test]
    fn an_unsupported_type_is_refused_by_name_with_the_list() {
        let line = weight_type(39, || "tensor \"x\": type".into()).unwrap_err().to_string();
        assert!(line.contains("MXFP4") && line.contains("Q4_K") && line.contains("tensor \"x\""));
        let line = weight_type(777, || "tensor \"x\": type".into()).unwrap_err().to_string();
        assert!(line.contains("777"));
    }
}

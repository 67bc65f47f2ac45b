//! Title: FineQuant: Unlocking Efficiency with Fine-Grained Weight-Only Quantization for LLMs
//! Authors: Young Jin Kim, Rawn Henry, Raffy Fahim, Hany Hassan Awadalla
//! Year: 2023
//! Id: arXiv:2308.09723
//! Implemented: symmetric abs-max int4 and int8 codes with a scale for each group along the inputs, a
//!   group size chosen for each matrix from its weights alone, and products that expand codes in
//!   registers. The choice of the group (`alpha`, `guard`, `error_budget`) and of the bits (`max_error`)
//!   is our specification: the paper's printed rule was not at hand.
//! Left out: mixture-of-experts models, and fp16 activations (here they are int8 in blocks of 32).
//! Tag: FQ

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tessera_core::entry::{
    Claim, Exactness, Kind, Method, MethodConfig, MethodEntry, Needs, Paper, defaults_of, read_as,
    resolve_as, schema_of,
};

/// Bits of the codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Bits {
    /// 4 bits for every matrix.
    #[serde(rename = "4")]
    Four,
    /// 8 bits for every matrix.
    #[serde(rename = "8")]
    Eight,
    /// 4 bits, and 8 where the error is above `max_error`.
    Mixed,
}

/// The settings of `tessera quantize --scheme finequant`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct FineQuant {
    /// Halve the groups of a matrix while their range shrinks to at most this share of what it was; 0
    /// to 1. At 0 a row is one group, at 1 groups have the smallest size. Our specification; the
    /// paper's threshold was not at hand.
    pub alpha: f32,
    /// Smallest group in weights; a multiple of 32 from 32 to 65536. The paper's kernels are tuned for 64.
    pub min_group: u32,
    /// Halve while some group's range is above this many standard deviations; 0 (off), or 2 to 1000.
    /// Our specification.
    pub guard: f32,
    /// Halve while the relative error is above this many times that of the smallest groups; 0 (off), or
    /// 1 to 100. Our specification.
    pub error_budget: f32,
    /// Bits of the codes: `4`, `8` or `mixed`.
    pub bits: Bits,
    /// With mixed bits: a matrix takes 8 bits where even the smallest groups have a relative error above
    /// this; 0 to 1. Our specification.
    pub max_error: f32,
}

impl Default for FineQuant {
    fn default() -> Self {
        Self {
            alpha: 0.8,
            min_group: 64,
            guard: 9.0,
            error_budget: 1.1,
            bits: Bits::Mixed,
            max_error: 0.15,
        }
    }
}

impl MethodConfig for FineQuant {
    fn validate(&self) -> Result<(), String> {
        let range = |name: &str, value: f32, good: bool, range: &str| {
            if good { Ok(()) } else { Err(format!("{name} = {value}: must be {range}")) }
        };
        range("alpha", self.alpha, (0.0..=1.0).contains(&self.alpha), "between 0 and 1")?;
        if self.min_group == 0 || self.min_group > 65536 || !self.min_group.is_multiple_of(32) {
            let value = self.min_group;
            return Err(format!("min_group = {value}: must be a multiple of 32 from 32 to 65536"));
        }
        let guard = self.guard == 0.0 || (2.0..=1000.0).contains(&self.guard);
        range("guard", self.guard, guard, "0, or between 2 and 1000")?;
        let budget = self.error_budget;
        let good = budget == 0.0 || (1.0..=100.0).contains(&budget);
        range("error_budget", budget, good, "0, or between 1 and 100")?;
        range("max_error", self.max_error, (0.0..=1.0).contains(&self.max_error), "between 0 and 1")
    }
}

/// The registry's line.
pub static ENTRY: MethodEntry = MethodEntry {
    slug: "finequant",
    aliases: &["fine-grained-quantization"],
    name: "FineQuant",
    paper: Some(Paper {
        title: "FineQuant: Unlocking Efficiency with Fine-Grained Weight-Only Quantization for LLMs",
        authors: "Kim et al.",
        year: 2023,
        id: "arXiv:2308.09723",
    }),
    summary: "Stores weights in 4 or 8 bits with a scale for each group, whose size it chooses per matrix \
              (`tessera quantize`).",
    kind: Kind::Program,
    places: &[],
    exactness: Exactness::Lossy {
        what: "every weight moves by up to half a step of its group's scale",
    },
    needs: Needs::NONE,
    claims: &[Claim {
        setting: "OPT-175B and mixture-of-experts models, int4 against fp16, equal numbers of GPUs",
        metric: "throughput",
        value: 3.65,
        unit: "x",
        place: "abstract (up to)",
    }],
    schema: schema_of::<FineQuant>,
    defaults: defaults_of::<FineQuant>,
    neutral: None,
    read: resolve_as::<FineQuant>,
    // A program takes no part in a run.
    build: |settings| read_as::<FineQuant>("finequant", settings).map(|_| Method::Plain),
};

#[cfg(test)]
mod tests {
    use super::*;
    use tessera_core::entry::MethodCall;

    fn refused(text: &str) -> String {
        let call = MethodCall::parse(crate::ENTRIES, text).unwrap();
        ENTRY.resolve(&call.settings).unwrap_err().to_string()
    }

    #[test]
    fn settings_are_checked_by_name() {
        for (text, name) in [
            ("finequant:alpha=1.5", "alpha"),
            ("finequant:alpha=-0.1", "alpha"),
            ("finequant:min_group=48", "min_group"),
            ("finequant:min_group=0", "min_group"),
            ("finequant:guard=1", "guard"),
            ("finequant:error_budget=0.5", "error_budget"),
            ("finequant:max_error=2", "max_error"),
            ("finequant:bits=5", "bits"),
        ] {
            assert!(refused(text).contains(name), "{text}: {}", refused(text));
        }
        let wrong = MethodCall::parse(crate::ENTRIES, "finequant:alhpa=1").unwrap_err();
        assert!(wrong.to_string().contains("did you mean `alpha`"), "{wrong}");
    }

    #[test]
    fn the_limits_are_settings() {
        for text in ["finequant:alpha=0,guard=0,error_budget=0", "finequant:alpha=1,bits=8"] {
            let call = MethodCall::parse(crate::ENTRIES, text).unwrap();
            assert!(ENTRY.resolve(&call.settings).is_ok(), "{text}");
        }
    }
}

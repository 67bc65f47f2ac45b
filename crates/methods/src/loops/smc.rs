//! Title: Fast Controlled Generation from Language Models with Adaptive Weighted Rejection Sampling
//!   (sequential Monte Carlo; its use for constrained generation is also arXiv:2306.03081)
//! Authors: Lipkin et al.; Lew et al.
//! Year: 2025
//! Id: arXiv:2504.05410
//! Implemented: `particles` texts grow together in one pass a token; each token comes with a weight
//!   from the constraint's sampler, weights multiply, and when the effective number of texts falls
//!   below `threshold` of them, ancestors are drawn in proportion to the weights (systematic
//!   resampling) and every weight becomes the mean. A text at the bound on tokens is ended with the
//!   probability of its end. The text printed is drawn by weight; all texts, their weights and the
//!   estimate of the constraint's probability are in the JSON output.
//! Left out: a critic; twisted proposals. Systematic resampling where the paper's code is multinomial:
//!   as unbiased, with less noise.
//! Tag: SMC

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tessera_core::entry::{
    Exactness, Kind, Method, MethodConfig, MethodEntry, Needs, Paper, Particles, defaults_of,
    read_as, resolve_as, schema_of,
};

/// Settings of the particle loop.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Smc {
    /// Texts that grow together. 1 to 256; the paper: 5.
    pub particles: usize,
    /// Share of the texts below which their effective number leads to resampling. 0 (never) to 1; the
    /// paper: 0.5.
    pub threshold: f64,
}

impl Default for Smc {
    fn default() -> Self {
        Self { particles: 5, threshold: 0.5 }
    }
}

impl MethodConfig for Smc {
    fn validate(&self) -> Result<(), String> {
        if !(1..=256).contains(&self.particles) {
            return Err(format!("particles = {}: must be 1 to 256", self.particles));
        }
        if !(0.0..=1.0).contains(&self.threshold) {
            return Err(format!("threshold = {}: must be 0 to 1", self.threshold));
        }
        Ok(())
    }
}

/// The registry's line.
pub static ENTRY: MethodEntry = MethodEntry {
    slug: "smc",
    aliases: &["awrs-smc", "particles", "sequential-monte-carlo"],
    name: "Sequential Monte Carlo",
    paper: Some(Paper {
        title: "Fast Controlled Generation from Language Models with Adaptive Weighted Rejection \
                Sampling",
        authors: "Lipkin et al.",
        year: 2025,
        id: "arXiv:2504.05410",
    }),
    summary: "Grows several weighted texts under a constraint: whole texts have the model's law.",
    kind: Kind::Loop,
    places: &[],
    exactness: Exactness::Lossy {
        what: "the text's law comes near the model's, conditioned on the constraint, as particles grow",
    },
    needs: Needs::NONE,
    claims: &[],
    schema: schema_of::<Smc>,
    defaults: defaults_of::<Smc>,
    neutral: None,
    read: resolve_as::<Smc>,
    build: |settings| {
        let Smc { particles, threshold } = read_as::<Smc>("smc", settings)?;
        Ok(Method::Particles(Particles { count: particles, threshold }))
    },
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_out_of_range_are_refused_by_name() {
        let good = Smc::default();
        for (bad, name) in [
            (Smc { particles: 0, ..good.clone() }, "particles"),
            (Smc { particles: 257, ..good.clone() }, "particles"),
            (Smc { threshold: 1.1, ..good.clone() }, "threshold"),
            (Smc { threshold: f64::NAN, ..good.clone() }, "threshold"),
        ] {
            let error = bad.validate().unwrap_err();
            assert!(error.starts_with(name), "{error}");
        }
    }
}

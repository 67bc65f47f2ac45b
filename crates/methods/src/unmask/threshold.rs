//! Title: Fast-dLLM: Training-free Acceleration of Diffusion LLM by Enabling KV Cache and Parallel Decoding
//! Authors: Wu et al.
//! Year: 2025
//! Id: arXiv:2505.22618
//! Implemented: parallel decoding by a threshold on the confidence, and by their factor rule: the longest
//!   list of the surest fills whose n-th has a confidence of at least 1 - factor / (n + 1). The surest
//!   one is always filled. A third rule bounds the summed entropy (EB, Ben-Hamu et al. 2025).
//! Deviation: their loop fills one token too many where the last candidate fails the factor rule; this
//!   one does not.
//! Left out: their caches, which are windows here.
//! Tag: Fast-dLLM

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tessera_core::entry::{
    Claim, Exactness, Kind, Method, MethodConfig, MethodEntry, Paper, Place, Role, Settings, Site,
    defaults_of, read_as, resolve_as, schema_of,
};
use tessera_core::unmask::ranked;
use tessera_core::{Evidence, Fill, Result, Unmask};

use crate::unmask::{DENOISER, between};

/// Which fills are sure enough.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Rule {
    /// Those with a confidence of at least `tau`.
    #[default]
    Threshold,
    /// The n surest, as long as `(n + 1) (1 - confidence of the n-th) <= factor`.
    Factor,
    /// The n surest, as long as the entropies of all but the largest sum to at most `bound`.
    Entropy,
}

/// Settings of threshold decoding.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Threshold {
    /// Which fills are sure enough: `threshold`, `factor` or `entropy`.
    pub rule: Rule,
    /// Least confidence under `threshold`. 0 (everything at once) to 2; above 1 only the surest is
    /// filled, which is the plain run. The paper: 0.9.
    pub tau: f64,
    /// Slack under `factor`. 0 to 1000; the paper: 1.
    pub factor: f64,
    /// Most entropy under `entropy`, in nats. 0 to 1000.
    pub bound: f64,
}

impl Default for Threshold {
    fn default() -> Self {
        Self { rule: Rule::Threshold, tau: 0.9, factor: 1.0, bound: 0.1 }
    }
}

impl MethodConfig for Threshold {
    fn validate(&self) -> std::result::Result<(), String> {
        between("tau", self.tau, 0.0, 2.0)?;
        between("factor", self.factor, 0.0, 1000.0)?;
        between("bound", self.bound, 0.0, 1000.0)
    }
}

/// The registry's line.
pub static ENTRY: MethodEntry = MethodEntry {
    slug: "threshold",
    aliases: &["fast-dllm", "parallel-decoding"],
    name: "Threshold decoding",
    paper: Some(Paper {
        title: "Fast-dLLM: Training-free Acceleration of Diffusion LLM by Enabling KV Cache and \
                Parallel Decoding",
        authors: "Wu et al.",
        year: 2025,
        id: "arXiv:2505.22618",
    }),
    summary: "Fills every mask of which the model is sure enough, and always the surest one.",
    kind: Kind::Policy,
    places: &[Place { role: Role::Unmask, site: Site::Quota }],
    exactness: Exactness::Lossy { what: "tokens filled in one step do not know of one another" },
    needs: DENOISER,
    claims: &[Claim {
        setting: "LLaDA-8B, GPU, caches and parallel decoding together",
        metric: "throughput",
        value: 27.6,
        unit: "x",
        place: "abstract",
    }],
    schema: schema_of::<Threshold>,
    defaults: defaults_of::<Threshold>,
    neutral: Some(|| Settings::from_iter([("tau".to_owned(), json!(2.0))])),
    read: resolve_as::<Threshold>,
    build: |settings| {
        let config = read_as::<Threshold>("threshold", settings)?;
        Ok(Method::Unmask(Box::new(SureEnough { config })))
    },
};

/// The policy.
#[derive(Debug, Clone)]
pub struct SureEnough {
    config: Threshold,
}

impl SureEnough {
    /// How many of the fills, the surest first, are sure enough; `entropies` go with them.
    fn count(&self, confidences: &[f64], entropies: impl Fn(usize) -> f64) -> usize {
        let enough: Box<dyn FnMut(usize) -> bool> = match self.config.rule {
            Rule::Threshold => Box::new(|n| confidences[n] >= self.config.tau),
            Rule::Factor => {
                Box::new(|n| (n as f64 + 2.0) * (1.0 - confidences[n]) <= self.config.factor)
            }
            Rule::Entropy => {
                let (mut sum, mut largest) = (0.0, 0f64);
                Box::new(move |n| {
                    let entropy = entropies(n);
                    sum += entropy;
                    largest = largest.max(entropy);
                    sum - largest <= self.config.bound
                })
            }
        };
        (0..confidences.len()).map(enough).take_while(|&e| e).count().max(1)
    }
}

impl Unmask for SureEnough {
    fn quota(&mut self, evidence: &Evidence<'_>, fills: &[Fill]) -> Result<Option<Vec<usize>>> {
        let mut order = ranked(fills);
        order.retain(|&i| evidence.is_open(fills[i].position));
        let confidences: Vec<f64> = order.iter().map(|&i| fills[i].score).collect();
        let entropy = |n: usize| {
            let found = evidence.prediction.find(fills[order[n]].position);
            found.map_or(f64::INFINITY, |i| evidence.prediction.entropy(i))
        };
        let count = self.count(&confidences, entropy);
        order.truncate(count);
        Ok(Some(order))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(rule: Rule, confidences: &[f64]) -> usize {
        let config = Threshold { rule, bound: 0.35, ..Threshold::default() };
        SureEnough { config }.count(confidences, |n| [0.1, 0.2, 0.3, 0.4][n])
    }

    #[test]
    fn rules_by_hand() {
        assert_eq!(count(Rule::Threshold, &[0.95, 0.9, 0.89]), 2);
        // The surest one is always filled.
        assert_eq!(count(Rule::Threshold, &[0.3, 0.2]), 1);
        // (n + 1) (1 - c_n) for n = 1, 2, 3: 0.2, 0.6, 1.2.
        assert_eq!(count(Rule::Factor, &[0.9, 0.8, 0.7]), 2);
        // All but the largest: 0, 0.1, 0.3, 0.6.
        assert_eq!(count(Rule::Entropy, &[0.9, 0.8, 0.7, 0.6]), 3);
    }
}

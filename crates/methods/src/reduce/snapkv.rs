//! Title: SnapKV: LLM Knows What You are Looking for Before Generation
//! Authors: Li et al.
//! Year: 2024
//! Id: arXiv:2404.14469
//! Implemented: the last `window` tokens of the prompt look at what is before them once more; of every
//!   layer and key head the rows stay that received most attention, pooled over their neighbours, and
//!   the window. Query heads that share a key head are summed. Once, after the prompt.
//! Left out: nothing. The window's attention is computed again, in a pass of its own that leaves no
//!   trace, so that the prompt's passes stay what they are. At the ends pooling takes the mean of the
//!   rows that there are.
//! Tag: SnapKV

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tessera_core::entry::{
    Exactness, Kind, Method, MethodConfig, MethodEntry, Paper, Place, Role, Settings, Site,
    defaults_of, read_as, resolve_as, schema_of,
};
use tessera_core::{Eviction, HeadSum, Position, Reduce, ReduceContext, Result};

use crate::observation::{Onlookers, observe};
use crate::retention::{Budget, Pooling, WATCHES, evict, highest, within};

/// Settings of SnapKV.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SnapKv {
    /// Rows kept of the prompt per layer and key head, the window included. 1 to 16777216; without
    /// `ratio`, 1024 if left out. The paper: 1024 to 4096.
    pub budget: Option<usize>,
    /// Share of the prompt's rows that is evicted instead. 0 (the plain run) to below 1.
    pub ratio: Option<f64>,
    /// Last tokens of the prompt, which look and always stay. 1 to 512; the paper: 32.
    pub window: usize,
    /// How scores are pooled: `none`, `mean` or `max`. The paper's code offers the last two.
    pub pooling: Pooling,
    /// Rows pooled, odd. 1 to 63; the paper: 5 and 7.
    pub kernel: usize,
}

impl Default for SnapKv {
    fn default() -> Self {
        Self { budget: None, ratio: None, window: 32, pooling: Pooling::Mean, kernel: 7 }
    }
}

/// Rows kept if neither `budget` nor `ratio` is given.
const ROWS: usize = 1024;

impl MethodConfig for SnapKv {
    fn validate(&self) -> std::result::Result<(), String> {
        Budget::new(self.budget, self.ratio, ROWS)?;
        within("window", self.window, 1..=512)?;
        Pooling::check("kernel", self.kernel)
    }
}

/// The registry's line.
pub static ENTRY: MethodEntry = MethodEntry {
    slug: "snapkv",
    aliases: &["snap-kv"],
    name: "SnapKV",
    paper: Some(Paper {
        title: "SnapKV: LLM Knows What You are Looking for Before Generation",
        authors: "Li et al.",
        year: 2024,
        id: "arXiv:2404.14469",
    }),
    summary: "Keeps of the prompt what its last tokens attend to.",
    kind: Kind::Policy,
    places: &[Place { role: Role::Reduce, site: Site::AfterPrefill }],
    exactness: Exactness::Lossy { what: "every token after the first" },
    needs: WATCHES,
    claims: &[],
    schema: schema_of::<SnapKv>,
    defaults: defaults_of::<SnapKv>,
    neutral: Some(|| Settings::from_iter([("ratio".to_owned(), json!(0.0))])),
    read: resolve_as::<SnapKv>,
    build: |settings| {
        let config = read_as::<SnapKv>("snapkv", settings)?;
        Ok(Method::Reduce(Box::new(Snapshot::new(config)?)))
    },
};

/// The policy.
#[derive(Debug, Clone)]
pub struct Snapshot {
    config: SnapKv,
    budget: Budget,
}

impl Snapshot {
    /// With these settings.
    ///
    /// # Errors
    /// [`tessera_core::Error::Method`] for a budget out of range.
    pub fn new(config: SnapKv) -> Result<Self> {
        let budget = Budget::of_method("snapkv", config.budget, config.ratio, ROWS)?;
        Ok(Self { config, budget })
    }
}

impl Reduce for Snapshot {
    fn fork(&self) -> Box<dyn Reduce> {
        Box::new(self.clone())
    }

    fn after_prefill(&mut self, context: &mut ReduceContext<'_>) -> Result<Option<Eviction>> {
        let SnapKv { window, pooling, kernel, .. } = self.config;
        let held = context.target.cache.table().len();
        let Some(cap) = self.budget.of(held).filter(|&cap| cap < held) else { return Ok(None) };
        let prompt = context.prompt;
        let window = window.min(prompt.len());
        let first = context.target.position - window as Position;
        let rows = Onlookers {
            tokens: &prompt[prompt.len() - window..],
            position: first,
            below: first,
            linked: true,
        };
        let seen = observe(context, rows, HeadSum::Key)?;
        evict(context.target.cache.table(), false, |layer, head, held| {
            let before = held - window.min(held);
            let mut scores = pooling.apply(seen.cached(layer, head, before), kernel);
            scores.resize(held, 0.0);
            highest(&scores, cap, |row| row >= before)
        })
        .map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_out_of_range_are_refused_by_name() {
        let good = SnapKv::default();
        for (bad, name) in [
            (SnapKv { budget: Some(0), ..good.clone() }, "budget"),
            (SnapKv { ratio: Some(1.5), ..good.clone() }, "ratio"),
            (SnapKv { window: 0, ..good.clone() }, "window"),
            (SnapKv { kernel: 65, ..good.clone() }, "kernel"),
        ] {
            let error = bad.validate().unwrap_err();
            assert!(error.starts_with(name), "{error}");
        }
    }
}

//! Title: Efficient Streaming Language Models with Attention Sinks
//! Authors: Xiao et al.
//! Year: 2023
//! Id: arXiv:2309.17453
//! Implemented: the first `sinks` rows and the most recent ones are kept, `budget` in all, after the
//!   prompt and after every step; positions are re-ranked on request, as in the paper.
//! Left out: training with a sink token of its own; texts beyond the model's context, which the
//!   loop does not make.
//! Tag: sinks

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tessera_core::entry::{
    Exactness, Kind, Method, MethodConfig, MethodEntry, Needs, Paper, Place, Role, Settings, Site,
    defaults_of, read_as, resolve_as, schema_of,
};
use tessera_core::{CacheTable, CommittedStep, Eviction, Reduce, ReduceContext, Result, Row};

use crate::retention::{Budget, Cap, evict, within};

/// Settings of the sinks and the window.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Streaming {
    /// Rows kept, sinks included. 1 to 16777216; without `ratio`, 1024 if left out. The paper: 1024 to
    /// 4096.
    pub budget: Option<usize>,
    /// Share of the prompt's rows that is evicted instead: as many rows stay from then on. 0 (the
    /// plain run) to below 1.
    pub ratio: Option<f64>,
    /// First rows that always stay. 0 to 4096; the paper: 4.
    pub sinks: usize,
    /// Whether the rows that stay take their ranks as positions. The paper does; it matters for texts
    /// beyond the length that the model was trained for.
    pub rerank: bool,
}

impl Default for Streaming {
    fn default() -> Self {
        Self { budget: None, ratio: None, sinks: 4, rerank: false }
    }
}

impl MethodConfig for Streaming {
    fn validate(&self) -> std::result::Result<(), String> {
        Budget::new(self.budget, self.ratio, ROWS)?;
        within("sinks", self.sinks, 0..=4096)
    }
}

/// The registry's line.
pub static ENTRY: MethodEntry = MethodEntry {
    slug: "streaming",
    aliases: &["streaming-llm", "sinks"],
    name: "Sinks and window",
    paper: Some(Paper {
        title: "Efficient Streaming Language Models with Attention Sinks",
        authors: "Xiao et al.",
        year: 2023,
        id: "arXiv:2309.17453",
    }),
    summary: "Remembers the first few tokens and the most recent ones, nothing between.",
    kind: Kind::Policy,
    places: &[
        Place { role: Role::Reduce, site: Site::AfterPrefill },
        Place { role: Role::Reduce, site: Site::Decode },
    ],
    exactness: Exactness::Lossy { what: "every token after the first one that is forgotten" },
    needs: Needs::NONE,
    claims: &[],
    schema: schema_of::<Streaming>,
    defaults: defaults_of::<Streaming>,
    neutral: Some(|| Settings::from_iter([("ratio".to_owned(), json!(0.0))])),
    read: resolve_as::<Streaming>,
    build: |settings| {
        let config = read_as::<Streaming>("streaming", settings)?;
        Ok(Method::Reduce(Box::new(Window::new(config)?)))
    },
};

/// Rows kept if neither `budget` nor `ratio` is given.
const ROWS: usize = 1024;

/// The policy.
#[derive(Debug, Clone)]
pub struct Window {
    config: Streaming,
    cap: Cap,
}

impl Window {
    /// With these settings.
    ///
    /// # Errors
    /// [`tessera_core::Error::Method`] for a budget out of range.
    pub fn new(config: Streaming) -> Result<Self> {
        let budget = Budget::of_method("streaming", config.budget, config.ratio, ROWS)?;
        Ok(Self { config, cap: Cap::new(budget) })
    }

    /// What a cache keeps that exceeds the budget.
    fn trim(&self, table: &CacheTable) -> Result<Option<Eviction>> {
        let Some(cap) = self.cap.exceeded(table) else { return Ok(None) };
        let sinks = self.config.sinks.min(cap);
        evict(table, self.config.rerank, |_, _, held| match held > cap {
            true => (0..sinks).chain(held - (cap - sinks)..held).map(|row| row as Row).collect(),
            false => (0..held as Row).collect(),
        })
        .map(Some)
    }
}

impl Reduce for Window {
    fn fork(&self) -> Box<dyn Reduce> {
        Box::new(self.clone())
    }

    fn after_prefill(&mut self, context: &mut ReduceContext<'_>) -> Result<Option<Eviction>> {
        self.cap.set(context.target.cache.table().len());
        self.trim(context.target.cache.table())
    }

    fn committed(&mut self, step: &CommittedStep<'_>) -> Result<Option<Eviction>> {
        self.trim(step.table)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tessera_core::{Keep, KeyForm};

    fn window(budget: usize, sinks: usize) -> Window {
        let config = Streaming { budget: Some(budget), sinks, ..Streaming::default() };
        let mut window = Window::new(config).unwrap();
        window.cap.set(0);
        window
    }

    #[test]
    fn the_first_and_the_last_rows_stay() {
        let mut table = CacheTable::new(2, 1, KeyForm::Rotated);
        table.append(&[0, 1, 2, 3, 4, 5]);
        let kept = |budget, sinks| {
            let eviction = window(budget, sinks).trim(&table).unwrap();
            eviction.map(|e| e.plan.keep(1, 0).clone())
        };
        assert_eq!(kept(4, 2), Some(Keep::rows([0, 1, 4, 5])));
        assert_eq!(kept(3, 0), Some(Keep::rows([3, 4, 5])));
        // Sinks alone fill a budget that is smaller than they are.
        assert_eq!(kept(2, 4), Some(Keep::rows([0, 1])));
        assert_eq!((kept(6, 2), kept(7, 2)), (None, None));
    }

    #[test]
    fn settings_out_of_range_are_refused_by_name() {
        let good = Streaming::default();
        for (bad, name) in [
            (Streaming { budget: Some(0), ..good.clone() }, "budget"),
            (Streaming { ratio: Some(1.0), ..good.clone() }, "ratio"),
            (Streaming { budget: Some(9), ratio: Some(0.1), ..good.clone() }, "budget and ratio"),
            (Streaming { sinks: 5000, ..good.clone() }, "sinks"),
        ] {
            let error = bad.validate().unwrap_err();
            assert!(error.starts_with(name), "{error}");
        }
    }
}

//! Title: random eviction (the control of cache eviction)
//! Authors: none
//! Year: none
//! Id: none
//! Implemented: what any of the other policies keeps anyway (a few first rows, a window of recent
//!   ones), and of the rest as many as the budget allows, drawn at random: once after the prompt, or
//!   also at every step. What a policy gains over it at equal budget is owed to what it chooses.
//! Left out: nothing.
//! Tag: random

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tessera_core::dist::Key;
use tessera_core::entry::{
    Exactness, Kind, Method, MethodConfig, MethodEntry, Needs, Place, Role, Settings, Site,
    defaults_of, read_as, resolve_as, schema_of,
};
use tessera_core::{CacheTable, CommittedStep, Eviction, Reduce, ReduceContext, Result, TokenId};

use crate::retention::{Budget, Cap, evict, highest, within};

/// Settings of random eviction.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RandomEviction {
    /// Rows kept of the prompt (with `decode`: at any time). 1 to 16777216; without `ratio`, 1024 if
    /// left out.
    pub budget: Option<usize>,
    /// Share of the prompt's rows that is evicted instead. 0 (the plain run) to below 1.
    pub ratio: Option<f64>,
    /// First rows that always stay, as far as the budget goes. 0 to 4096.
    pub sinks: usize,
    /// Most recent rows that always stay, as far as the budget goes then. 0 to 65536.
    pub recent: usize,
    /// Whether every layer and head draws for itself.
    pub apart: bool,
    /// Whether the budget holds for the text too, one random row leaving for each one that comes.
    pub decode: bool,
}

impl Default for RandomEviction {
    fn default() -> Self {
        Self { budget: None, ratio: None, sinks: 4, recent: 8, apart: true, decode: false }
    }
}

/// Rows kept if neither `budget` nor `ratio` is given.
const ROWS: usize = 1024;

impl MethodConfig for RandomEviction {
    fn validate(&self) -> std::result::Result<(), String> {
        Budget::new(self.budget, self.ratio, ROWS)?;
        within("sinks", self.sinks, 0..=4096)?;
        within("recent", self.recent, 0..=65_536)
    }
}

/// The registry's line.
pub static ENTRY: MethodEntry = MethodEntry {
    slug: "random-eviction",
    aliases: &["random"],
    name: "Random eviction",
    paper: None,
    summary: "Forgets tokens at random: what a policy that chooses is compared with.",
    kind: Kind::Policy,
    places: &[
        Place { role: Role::Reduce, site: Site::AfterPrefill },
        Place { role: Role::Reduce, site: Site::Decode },
    ],
    exactness: Exactness::Lossy { what: "every token after the first one that is forgotten" },
    needs: Needs::NONE,
    claims: &[],
    schema: schema_of::<RandomEviction>,
    defaults: defaults_of::<RandomEviction>,
    neutral: Some(|| Settings::from_iter([("ratio".to_owned(), json!(0.0))])),
    read: resolve_as::<RandomEviction>,
    build: |settings| {
        let config = read_as::<RandomEviction>("random-eviction", settings)?;
        Ok(Method::Reduce(Box::new(Lottery::new(config)?)))
    },
};

/// The policy.
#[derive(Debug, Clone)]
pub struct Lottery {
    config: RandomEviction,
    cap: Cap,
}

impl Lottery {
    /// With these settings.
    ///
    /// # Errors
    /// [`tessera_core::Error::Method`] for a budget out of range.
    pub fn new(config: RandomEviction) -> Result<Self> {
        let budget = Budget::of_method("random-eviction", config.budget, config.ratio, ROWS)?;
        Ok(Self { config, cap: Cap::new(budget) })
    }

    fn draw(&self, table: &CacheTable, key: Key) -> Result<Option<Eviction>> {
        let Some(cap) = self.cap.exceeded(table) else { return Ok(None) };
        let RandomEviction { sinks, recent, apart, .. } = self.config;
        let sinks = sinks.min(cap);
        let recent = recent.min(cap - sinks);
        evict(table, false, |layer, head, held| {
            let place = if apart { (layer * table.kv_heads() + head) as u64 } else { 0 };
            let key = key.purpose(place);
            let lots: Vec<f32> = (0..held).map(|row| key.uniform(row as TokenId) as f32).collect();
            highest(&lots, cap, |row| row < sinks || row + recent >= held)
        })
        .map(Some)
    }
}

impl Reduce for Lottery {
    fn fork(&self) -> Box<dyn Reduce> {
        Box::new(self.clone())
    }

    fn after_prefill(&mut self, context: &mut ReduceContext<'_>) -> Result<Option<Eviction>> {
        let table = context.target.cache.table();
        self.cap.set(table.len());
        self.draw(table, context.key())
    }

    fn committed(&mut self, step: &CommittedStep<'_>) -> Result<Option<Eviction>> {
        if !self.config.decode {
            return Ok(None);
        }
        self.draw(step.table, step.key())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tessera_core::KeyForm;

    fn kept(config: RandomEviction, rows: u32, seed: u64) -> Vec<Vec<u32>> {
        let mut table = CacheTable::new(2, 2, KeyForm::Rotated);
        table.append(&(0..rows).collect::<Vec<_>>());
        let mut lottery = Lottery::new(config).unwrap();
        lottery.cap.set(table.len());
        let eviction = lottery.draw(&table, Key::new(seed, 0, 0)).unwrap().unwrap();
        eviction.plan.validate(&table).unwrap();
        let heads = [(0, 0), (0, 1), (1, 0), (1, 1)];
        heads.iter().map(|&(l, h)| eviction.plan.keep(l, h).rows.clone()).collect()
    }

    #[test]
    fn the_budget_is_met_at_random_and_the_ends_stay() {
        let config =
            RandomEviction { budget: Some(10), sinks: 2, recent: 3, ..RandomEviction::default() };
        let heads = kept(config.clone(), 50, 1);
        for rows in &heads {
            assert_eq!((rows.len(), &rows[..2], &rows[7..]), (10, &[0, 1][..], &[47, 48, 49][..]));
        }
        assert!(heads[0] != heads[1] && heads[0] != heads[2]);
        assert_ne!(heads, kept(config.clone(), 50, 2));
        let together = kept(RandomEviction { apart: false, ..config }, 50, 1);
        assert!(together.windows(2).all(|w| w[0] == w[1]));
    }

    #[test]
    fn every_row_between_the_ends_is_kept_equally_often() {
        let config =
            RandomEviction { ratio: Some(0.5), sinks: 0, recent: 0, ..RandomEviction::default() };
        let mut counts = [0u32; 20];
        for seed in 0..500 {
            for rows in kept(config.clone(), 20, seed) {
                rows.iter().for_each(|&row| counts[row as usize] += 1);
            }
        }
        // 2000 draws of 10 of 20: 1000 each, standard deviation 22.
        assert!(counts.iter().all(|n| n.abs_diff(1000) < 110), "{counts:?}");
    }

    #[test]
    fn settings_out_of_range_are_refused_by_name() {
        let good = RandomEviction::default();
        for (bad, name) in [
            (RandomEviction { budget: Some(0), ..good.clone() }, "budget"),
            (RandomEviction { ratio: Some(-1.0), ..good.clone() }, "ratio"),
            (RandomEviction { sinks: 5000, ..good.clone() }, "sinks"),
            (RandomEviction { recent: 70_000, ..good.clone() }, "recent"),
        ] {
            let error = bad.validate().unwrap_err();
            assert!(error.starts_with(name), "{error}");
        }
    }
}

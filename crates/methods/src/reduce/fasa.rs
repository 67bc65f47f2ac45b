//! Title: FASA: Frequency-aware Sparse Attention
//! Authors: Wang et al.
//! Year: 2026
//! Id: arXiv:2602.03152
//! Implemented: contextual agreement measured once per model, dominant rotary pairs per layer and key
//!   head, token importance by these pairs alone, exact attention over the best rows. Nothing is
//!   evicted: reads shrink, the cache does not (it grows by the copy of the dominant columns).
//! Left out: one set of rows for every query head. The query heads that share a key head agree on
//!   one set of pairs (the mean of their agreements) and one set of rows (`pooling`): reads are then
//!   per key head, which is what memory is read by. The variant that offloads the other columns and
//!   the values.
//! Decided here: at least 12 pairs by default, which is more than the paper's quarter where heads are
//!   narrow; the rows of the running pass are read besides the budget; several rows of a pass (a
//!   tree of guesses) share one choice, pooled over them; layers with a sliding window are left alone;
//!   sinks and a window of recent rows may be reserved within the budget, by default none are, as in
//!   the paper; below `from` rows everything is read.
//! Tag: FASA

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tessera_core::entry::{
    Claim, Exactness, Kind, Method, MethodConfig, MethodEntry, Needs, Paper, Place, Role, Settings,
    Site, defaults_of, read_as, resolve_as, schema_of,
};
use tessera_core::pass::{Pooling, ReadEvidence, Top};
use tessera_core::{
    Calibration, Capabilities, CommittedStep, Error, Eviction, Reduce, ReduceContext, Result, Row,
    Sites,
};

use crate::retention::{Budget, MOST_ROWS, within};

/// Settings of the selection.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Fasa {
    /// Cached rows that every key head reads, `N_fac`. 1 to 16777216; without `ratio`, 256 if left
    /// out, which is the paper's for long prompts (300 to 2500 for long chains of thought). A budget
    /// of the whole cache is the plain run.
    pub budget: Option<usize>,
    /// Share of the cached rows that is not read instead, at every step. 0 (the plain run) to below 1.
    pub ratio: Option<f64>,
    /// Rotary pairs that rows are ranked by, `N_tip`, of the `head_dim / 2` there are. If left out a
    /// quarter of them, the paper's 16 of 64, and at least 12 (or all): heads of 64 values were found
    /// to miss answers with 8.
    pub pairs: Option<usize>,
    /// How the query heads that share a key head agree on the score of a row: `sum` or `max`.
    pub pooling: Agree,
    /// First rows that are always read. 0 to 4096, within the budget; the paper: none.
    pub sinks: usize,
    /// Most recent cached rows that are always read. 0 to 65536, within the budget; the paper: none.
    pub window: usize,
    /// Cached rows from which on rows are chosen; everything is read before. Twice the rows read if
    /// left out.
    pub from: Option<usize>,
}

/// How query heads agree.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Agree {
    /// By the sum of their scores: one product for all of them.
    #[default]
    Sum,
    /// By the largest of their scores.
    Max,
}

impl Default for Fasa {
    fn default() -> Self {
        Self {
            budget: None,
            ratio: None,
            pairs: None,
            pooling: Agree::Sum,
            sinks: 0,
            window: 0,
            from: None,
        }
    }
}

impl MethodConfig for Fasa {
    fn validate(&self) -> std::result::Result<(), String> {
        let budget = Budget::new(self.budget, self.ratio, ROWS)?;
        within("sinks", self.sinks, 0..=4096)?;
        within("window", self.window, 0..=1 << 16)?;
        within("pairs", self.pairs.unwrap_or(1), 1..=1 << 15)?;
        within("from", self.from.unwrap_or(0), 0..=MOST_ROWS)?;
        if let Budget::Rows(rows) = budget
            && self.sinks + self.window >= rows
        {
            return Err(format!(
                "sinks = {} and window = {}: must leave rows of the budget of {rows} to choose",
                self.sinks, self.window
            ));
        }
        Ok(())
    }
}

/// The registry's line.
pub static ENTRY: MethodEntry = MethodEntry {
    slug: "fasa",
    aliases: &["frequency-aware-sparse-attention"],
    name: "FASA",
    paper: Some(Paper {
        title: "FASA: Frequency-aware Sparse Attention",
        authors: "Wang et al.",
        year: 2026,
        id: "arXiv:2602.03152",
    }),
    summary: "Reads only the cached tokens that a few rotary frequencies of the keys point to.",
    kind: Kind::Policy,
    places: &[Place { role: Role::Reduce, site: Site::Decode }],
    exactness: Exactness::Lossy { what: "every token after the first one decoded in a long text" },
    needs: Needs {
        capabilities: Capabilities { sites: true, taps: true, ..Needs::NONE.capabilities },
        calibration: true,
        ..Needs::NONE
    },
    claims: &[
        Claim {
            setting: "AIME24, a reasoning model, 18.9 % of the cache, one accelerator",
            metric: "decoding speed-up",
            value: 2.56,
            unit: "x",
            place: "abstract",
        },
        Claim {
            setting: "LongBench-V1, Llama-3.1-8B, 256 tokens and a quarter of the pairs",
            metric: "score relative to the full cache (48.2 of 48.7)",
            value: 99.0,
            unit: "%",
            place: "main table",
        },
    ],
    schema: schema_of::<Fasa>,
    defaults: defaults_of::<Fasa>,
    neutral: Some(|| Settings::from_iter([("ratio".to_owned(), json!(0.0))])),
    read: resolve_as::<Fasa>,
    build: |settings| {
        let config = read_as::<Fasa>("fasa", settings)?;
        Ok(Method::Reduce(Box::new(Selection::new(config)?)))
    },
};

/// Pairs that rank rows at least where their number is left out. Qwen2.5 0.5B, 8,192 tokens, an eighth
/// of the rows, needles of the seeds 100 to 109: 76 of 80 answers by 8 of its 32 pairs, 80 by 12 and by
/// 16 (plain: 80). The figures in the documents are of other seeds.
const FEWEST: usize = 12;

/// Rows read if neither `budget` nor `ratio` is given.
const ROWS: usize = 256;

fn fail(what: String) -> Error {
    Error::Method { method: "fasa".to_owned(), what }
}

/// The policy.
#[derive(Debug, Clone)]
pub struct Selection {
    config: Fasa,
    budget: Budget,
    /// By layer, the columns of every key head; empty where everything is read.
    columns: Vec<Vec<Vec<u16>>>,
    heads: usize,
    head_dim: usize,
    /// Rows of the cache before the next pass.
    cached: usize,
}

impl Selection {
    /// With these settings.
    ///
    /// # Errors
    /// [`Error::Method`] for a budget out of range.
    pub fn new(config: Fasa) -> Result<Self> {
        let budget = Budget::new(config.budget, config.ratio, ROWS).map_err(fail)?;
        Ok(Self { config, budget, columns: Vec::new(), heads: 0, head_dim: 0, cached: 0 })
    }

    /// Rows read of `cached`; `None` for all.
    fn rows(&self, cached: usize) -> Option<usize> {
        let rows = self.budget.of(cached)?;
        let from = self.config.from.unwrap_or(2 * rows);
        (rows < cached && cached >= from).then_some(rows)
    }
}

impl Reduce for Selection {
    fn fork(&self) -> Box<dyn Reduce> {
        Box::new(self.clone())
    }

    fn calibrate(&mut self, calibration: &Arc<Calibration>) -> Result<()> {
        let pairs = calibration.head_dim / 2;
        let count = self.config.pairs.unwrap_or((pairs / 4).max(FEWEST).min(pairs));
        if count > pairs {
            return Err(fail(format!("pairs = {count}: this model's heads have {pairs}")));
        }
        let of_layer = |layer: usize| match calibration.sliding[layer] {
            true => Vec::new(),
            false => {
                (0..calibration.kv_heads).map(|h| calibration.columns(layer, h, count)).collect()
            }
        };
        self.columns = (0..calibration.layers()).map(of_layer).collect();
        (self.heads, self.head_dim) = (calibration.heads, calibration.head_dim);
        Ok(())
    }

    fn decode_sites(&mut self) -> Option<&mut dyn Sites> {
        self.rows(self.cached).is_some().then_some(self as &mut dyn Sites)
    }

    fn after_prefill(&mut self, context: &mut ReduceContext<'_>) -> Result<Option<Eviction>> {
        self.cached = context.target.cache.table().len();
        Ok(None)
    }

    fn committed(&mut self, step: &CommittedStep<'_>) -> Result<Option<Eviction>> {
        self.cached = step.table.len();
        Ok(None)
    }
}

impl Sites for Selection {
    fn reads(&self, layer: usize) -> bool {
        self.columns.get(layer).is_none_or(|c| !c.is_empty())
    }

    fn columns(&self, _: usize, layer: usize) -> Option<&[Vec<u16>]> {
        self.columns.get(layer).filter(|c| !c.is_empty()).map(Vec::as_slice)
    }

    fn read(&mut self, evidence: &ReadEvidence<'_>) -> Result<Option<Vec<Vec<Row>>>> {
        let Some(columns) = self.columns.get(evidence.layer) else {
            let what = "needs a calibration of this model. Next: run `tessera calibrate`";
            return Err(fail(what.to_owned()));
        };
        let (cached, new) = (evidence.cached, evidence.positions.len());
        let Some(rows) = self.rows(cached) else { return Ok(None) };
        // Heads of different lengths (after an eviction by head) are read whole.
        if (0..columns.len()).any(|h| evidence.keys.rows(h) != cached + new) {
            return Ok(None);
        }
        let sinks = self.config.sinks.min(rows);
        let window = self.config.window.min(rows - sinks);
        let mut chosen = evidence.keys.top(&Top {
            queries: evidence.queries,
            heads: self.heads,
            head_dim: self.head_dim,
            columns,
            pooling: match self.config.pooling {
                Agree::Sum => Pooling::Sum,
                Agree::Max => Pooling::Max,
            },
            rows: sinks..cached - window,
            count: rows - sinks - window,
        })?;
        if sinks + window > 0 {
            for list in &mut chosen {
                list.splice(0..0, 0..sinks as Row);
                list.extend((cached - window) as Row..cached as Row);
            }
        }
        Ok(Some(chosen))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tessera_core::Pairing;
    use tessera_core::calibration::VERSION;
    use tessera_core::pass::KeyReader;

    /// One key head of four values, pairs (0, 2) and (1, 3); only pair 1 agrees.
    fn calibration() -> Arc<Calibration> {
        Arc::new(Calibration {
            version: VERSION,
            heads: 2,
            kv_heads: 1,
            head_dim: 4,
            pairing: Pairing::Halves,
            sliding: vec![false, true],
            agreement: vec![vec![0.1, 0.8]; 4],
            drift: vec![0.0; 2],
            rows: 1,
            steps: 1,
        })
    }

    fn selection(config: Fasa) -> Selection {
        config.validate().unwrap();
        let mut selection = Selection::new(config).unwrap();
        selection.calibrate(&calibration()).unwrap();
        selection
    }

    struct Keys(Vec<[f32; 4]>);

    impl KeyReader for Keys {
        fn rows(&self, _: usize) -> usize {
            self.0.len()
        }
        fn key(&self, _: usize, row: Row, out: &mut [f32]) {
            out.copy_from_slice(&self.0[row as usize]);
        }
    }

    fn read(selection: &mut Selection, keys: &Keys, queries: &[f32]) -> Option<Vec<Vec<Row>>> {
        let evidence = ReadEvidence {
            segment: 0,
            layer: 0,
            queries,
            positions: &[6],
            cached: keys.0.len() - 1,
            keys,
        };
        selection.read(&evidence).unwrap()
    }

    fn keys() -> Keys {
        // Pair 0 says row 0 and 1, pair 1 rows 2 and 4; the last row is the pass's own.
        Keys(vec![
            [9.0, 0.0, 0.0, 0.0],
            [8.0, 1.0, 0.0, 0.0],
            [0.0, 0.0, 0.0, 5.0],
            [0.0, 1.0, 0.0, 1.0],
            [0.0, 6.0, 0.0, 0.0],
            [0.0, 0.0, 0.0, 0.0],
            [0.0, 99.0, 0.0, 99.0],
        ])
    }

    #[test]
    fn rows_by_hand() {
        let config = Fasa { budget: Some(2), pairs: Some(1), from: Some(0), ..Fasa::default() };
        // Two heads that want row 4 (column 1) and row 2 (column 3).
        let queries = [1.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0];
        let run = |config: Fasa| read(&mut selection(config), &keys(), &queries);
        assert_eq!(run(config.clone()), Some(vec![vec![2, 4]]));
        let max = Fasa { pooling: Agree::Max, ..config.clone() };
        assert_eq!(run(max), Some(vec![vec![2, 4]]));
        // Reserved rows count: the best one of those between them is left.
        let reserved = Fasa { budget: Some(3), sinks: 1, window: 1, ..config.clone() };
        assert_eq!(run(reserved), Some(vec![vec![0, 4, 5]]));
        // Both pairs rank as the full product does.
        let all = Fasa { pairs: Some(2), ..config.clone() };
        assert_eq!(run(all), Some(vec![vec![0, 1]]));
        // Everything is read where the budget or the gate says so.
        for budget in [6, 7, 100] {
            assert_eq!(run(Fasa { budget: Some(budget), ..config.clone() }), None);
        }
        assert_eq!(run(Fasa { from: None, budget: Some(4), ..config.clone() }), None);
        assert_eq!(run(Fasa { ratio: Some(0.5), budget: None, ..config }).unwrap()[0].len(), 3);
    }

    #[test]
    fn layers_with_a_window_and_short_texts_are_left_alone() {
        let fasa = Fasa { budget: Some(2), pairs: Some(1), ..Fasa::default() };
        let mut selection = selection(fasa);
        assert!(selection.reads(0) && !selection.reads(1));
        assert!(Sites::columns(&selection, 0, 1).is_none());
        assert_eq!(Sites::columns(&selection, 0, 0), Some(&[vec![1u16, 3]][..]));
        for (cached, takes_part) in [(0, false), (3, false), (4, true), (900, true)] {
            selection.cached = cached;
            assert_eq!(selection.decode_sites().is_some(), takes_part, "{cached}");
        }
        let mut neutral = Selection::new(Fasa { ratio: Some(0.0), ..Fasa::default() }).unwrap();
        neutral.cached = 1 << 20;
        assert!(neutral.decode_sites().is_none());
    }

    #[test]
    fn a_quarter_of_the_pairs_ranks_and_at_least_twelve() {
        for (head_dim, pairs) in [(16, 8), (48, 12), (64, 12), (128, 16), (256, 32)] {
            let agreement = vec![vec![0.5; head_dim / 2]; 4];
            let of = Calibration { head_dim, agreement, ..(*calibration()).clone() };
            let mut selection = Selection::new(Fasa::default()).unwrap();
            selection.calibrate(&Arc::new(of)).unwrap();
            assert_eq!(selection.columns[0][0].len(), 2 * pairs, "{head_dim}");
        }
    }

    #[test]
    fn settings_out_of_range_are_refused_by_name() {
        let good = Fasa::default();
        for (bad, name) in [
            (Fasa { budget: Some(0), ..good.clone() }, "budget"),
            (Fasa { ratio: Some(1.0), ..good.clone() }, "ratio"),
            (Fasa { pairs: Some(0), ..good.clone() }, "pairs"),
            (Fasa { sinks: 5000, ..good.clone() }, "sinks"),
            (Fasa { sinks: 200, window: 56, ..good.clone() }, "sinks = 200 and window = 56"),
        ] {
            let error = bad.validate().unwrap_err();
            assert!(error.starts_with(name), "{error}");
        }
        let mut wide = Selection::new(Fasa { pairs: Some(3), ..good }).unwrap();
        assert!(wide.calibrate(&calibration()).unwrap_err().to_string().contains("pairs = 3"));
        let bare = Selection::new(Fasa { budget: Some(2), ..Fasa::default() }).unwrap().read(
            &ReadEvidence {
                segment: 0,
                layer: 0,
                queries: &[],
                positions: &[6],
                cached: 6,
                keys: &keys(),
            },
        );
        assert!(bare.unwrap_err().to_string().contains("calibrate"));
    }
}

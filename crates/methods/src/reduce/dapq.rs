//! Title: Where Matters More Than What: Decoding-aligned KV Cache Compression via Position-aware
//!   Pseudo Queries
//! Authors: Tian et al.
//! Year: 2026
//! Id: arXiv:2603.11564
//! Implemented: `queries` throw-away tokens at the positions that the text will take look at the
//!   prompt; of every layer and key head the rows stay that received most attention. Query heads that
//!   share a key head are summed. Once, after the prompt; the pseudo tokens leave no trace.
//! Left out: nothing of the method. Not verified against the paper, so settings: the content (half
//!   first, half last tokens of the prompt; control tokens are left out, as they draw attention of
//!   their own), pooling, rows that always stay, whether pseudo tokens read one another. They are
//!   part of the softmax; their columns are dropped afterwards.
//! Tag: DapQ

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tessera_core::entry::{
    Claim, Exactness, Kind, Method, MethodConfig, MethodEntry, Paper, Place, Role, Settings, Site,
    defaults_of, read_as, resolve_as, schema_of,
};
use tessera_core::{
    Eviction, HeadSum, Position, Reduce, ReduceContext, Result, TokenId, Vocabulary,
};

use crate::observation::{Onlookers, observe};
use crate::retention::{Budget, Pooling, WATCHES, evict, highest, within};

/// Settings of DapQ.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DapQ {
    /// Rows kept of the prompt per layer and key head. 1 to 16777216; without `ratio`, 256 if left out.
    /// The paper: 64 to 512.
    pub budget: Option<usize>,
    /// Share of the prompt's rows that is evicted instead. 0 (the plain run) to below 1.
    pub ratio: Option<f64>,
    /// Pseudo tokens. 1 to 512; the paper: 32.
    pub queries: usize,
    /// Positions by which the pseudo tokens come after the prompt's end. 0 (the paper) to 4096.
    pub shift: usize,
    /// Whether pseudo tokens read those before them, as the text's tokens will.
    pub linked: bool,
    /// How scores are pooled: `none`, `mean` or `max`.
    pub pooling: Pooling,
    /// Rows pooled, odd. 1 to 63.
    pub kernel: usize,
    /// First rows that always stay. 0 to 4096.
    pub sinks: usize,
    /// Last rows of the prompt that always stay. 0 to 4096.
    pub window: usize,
}

impl Default for DapQ {
    fn default() -> Self {
        Self {
            budget: None,
            ratio: None,
            queries: 32,
            shift: 0,
            linked: true,
            pooling: Pooling::None,
            kernel: 7,
            sinks: 0,
            window: 0,
        }
    }
}

/// Rows kept if neither `budget` nor `ratio` is given.
const ROWS: usize = 256;

impl MethodConfig for DapQ {
    fn validate(&self) -> std::result::Result<(), String> {
        Budget::new(self.budget, self.ratio, ROWS)?;
        within("queries", self.queries, 1..=512)?;
        within("shift", self.shift, 0..=4096)?;
        Pooling::check("kernel", self.kernel)?;
        within("sinks", self.sinks, 0..=4096)?;
        within("window", self.window, 0..=4096)
    }
}

/// The registry's line.
pub static ENTRY: MethodEntry = MethodEntry {
    slug: "dapq",
    aliases: &["pseudo-queries"],
    name: "DapQ",
    paper: Some(Paper {
        title: "Where Matters More Than What: Decoding-aligned KV Cache Compression via \
                Position-aware Pseudo Queries",
        authors: "Tian et al.",
        year: 2026,
        id: "arXiv:2603.11564",
    }),
    summary: "Keeps of the prompt what throw-away tokens at the text's own positions attend to.",
    kind: Kind::Policy,
    places: &[Place { role: Role::Reduce, site: Site::AfterPrefill }],
    exactness: Exactness::Lossy { what: "every token after the first" },
    needs: WATCHES,
    claims: &[
        Claim {
            setting: "Llama-3-8B-Instruct, needle in a haystack, 256 rows (about 3% of the cache)",
            metric: "needles found (all rows: 100, SnapKV: 90.97)",
            value: 99.46,
            unit: "%",
            place: "abstract",
        },
        Claim {
            setting: "Llama-3-8B-Instruct, LongBench, 256 rows",
            metric: "mean score (all rows: 48.39, SnapKV: 45.61)",
            value: 46.4,
            unit: "points",
            place: "main table, as third-party notes quote it",
        },
    ],
    schema: schema_of::<DapQ>,
    defaults: defaults_of::<DapQ>,
    neutral: Some(|| Settings::from_iter([("ratio".to_owned(), json!(0.0))])),
    read: resolve_as::<DapQ>,
    build: |settings| {
        let config = read_as::<DapQ>("dapq", settings)?;
        Ok(Method::Reduce(Box::new(PseudoQueries::new(config)?)))
    },
};

/// The policy.
#[derive(Debug, Clone)]
pub struct PseudoQueries {
    config: DapQ,
    budget: Budget,
}

impl PseudoQueries {
    /// With these settings.
    ///
    /// # Errors
    /// [`tessera_core::Error::Method`] for a budget out of range.
    pub fn new(config: DapQ) -> Result<Self> {
        let budget = Budget::of_method("dapq", config.budget, config.ratio, ROWS)?;
        Ok(Self { config, budget })
    }
}

/// `count` tokens without content of their own: the first half and the last of the prompt's, from
/// its beginning again where there are too few.
fn pseudo(prompt: &[TokenId], vocabulary: &dyn Vocabulary, count: usize) -> Vec<TokenId> {
    let mut words: Vec<TokenId> =
        prompt.iter().copied().filter(|&token| !vocabulary.is_control(token)).collect();
    if words.is_empty() {
        words.extend_from_slice(prompt);
    }
    let tail = words.len() - words.len().min(count / 2);
    let head = words.iter().copied().cycle().take(count - (words.len() - tail));
    head.chain(words[tail..].iter().copied()).collect()
}

impl Reduce for PseudoQueries {
    fn fork(&self) -> Box<dyn Reduce> {
        Box::new(self.clone())
    }

    fn after_prefill(&mut self, context: &mut ReduceContext<'_>) -> Result<Option<Eviction>> {
        let DapQ { queries, shift, linked, pooling, kernel, sinks, window, .. } = self.config;
        let held = context.target.cache.table().len();
        let Some(cap) = self.budget.of(held).filter(|&cap| cap < held) else { return Ok(None) };
        let sinks = sinks.min(cap);
        let window = window.min(cap - sinks);
        let tokens = pseudo(context.prompt, context.vocabulary, queries);
        let position = context.target.position;
        let rows = Onlookers {
            tokens: &tokens,
            position: position + shift as Position,
            below: position,
            linked,
        };
        let seen = observe(context, rows, HeadSum::Key)?;
        evict(context.target.cache.table(), false, |layer, head, held| {
            let scores = pooling.apply(seen.cached(layer, head, held), kernel);
            highest(&scores, cap, |row| row < sinks || row + window >= held)
        })
        .map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Token 0 is the only control token.
    struct Letters;

    impl Vocabulary for Letters {
        fn len(&self) -> usize {
            10
        }
        fn bytes(&self, _: TokenId) -> &[u8] {
            b"x"
        }
        fn is_control(&self, token: TokenId) -> bool {
            token == 0
        }
        fn is_end(&self, token: TokenId) -> bool {
            token == 0
        }
        fn encode(&self, _: &str) -> Vec<TokenId> {
            Vec::new()
        }
    }

    #[test]
    fn pseudo_tokens_are_the_first_and_the_last_words_of_the_prompt() {
        let prompt = [0, 1, 2, 3, 4, 5, 6, 0];
        assert_eq!(pseudo(&prompt, &Letters, 4), [1, 2, 5, 6]);
        assert_eq!(pseudo(&prompt, &Letters, 5), [1, 2, 3, 5, 6]);
        assert_eq!(pseudo(&prompt, &Letters, 1), [1]);
        assert_eq!(pseudo(&[3, 4, 0], &Letters, 8), [3, 4, 3, 4, 3, 4, 3, 4]);
        assert_eq!(pseudo(&[0, 0], &Letters, 3), [0, 0, 0]);
    }

    #[test]
    fn settings_out_of_range_are_refused_by_name() {
        let good = DapQ::default();
        for (bad, name) in [
            (DapQ { budget: Some(0), ..good.clone() }, "budget"),
            (DapQ { ratio: Some(1.5), ..good.clone() }, "ratio"),
            (DapQ { queries: 0, ..good.clone() }, "queries"),
            (DapQ { shift: 5000, ..good.clone() }, "shift"),
            (DapQ { kernel: 4, ..good.clone() }, "kernel"),
            (DapQ { sinks: 5000, ..good.clone() }, "sinks"),
            (DapQ { window: 5000, ..good.clone() }, "window"),
        ] {
            let error = bad.validate().unwrap_err();
            assert!(error.starts_with(name), "{error}");
        }
    }
}

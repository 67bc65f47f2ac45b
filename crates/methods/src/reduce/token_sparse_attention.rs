//! Title: Token Sparse Attention: Efficient Long-Context Inference with Interleaved Token Selection
//! Authors: Jo et al.
//! Year: 2026
//! Id: arXiv:2602.03216
//! Implemented: sparse layers by the drift of their hidden states; per query head, the tokens that
//!   the last rows of the prompt attend to most, as many for every head as the mass `tau` of the
//!   heads' mean leaves; causal attention among these, zero elsewhere; the cache stays whole.
//! Left out: block-sparse kernels inside the small problem; recurrence over a batch of prompts, which
//!   are computed one by one.
//! Decided here: the prompt is computed in passes of up to `chunk` rows, in one if it fits, so that
//!   "the last queries" are those of the prompt. In a longer prompt every pass selects among its own
//!   rows by its own last queries and reads all cached ones. Keys are ordered by rank. Layers with a
//!   sliding window are excluded. `tau` is the mass that is taken away, although the paper calls it
//!   coverage: larger is sparser.
//! Tag: TSA

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tessera_core::entry::{
    Claim, Exactness, Kind, Method, MethodConfig, MethodEntry, Needs, Paper, Place, Role, Settings,
    Site, defaults_of, read_as, resolve_as, schema_of,
};
use tessera_core::pass::HeadEvidence;
use tessera_core::{Calibration, Capabilities, Error, Reduce, Result, Row, Sites};

use crate::retention::{highest, within};

/// Settings of the selection.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TokenSparseAttention {
    /// Share of the attention mass that may be dropped. 0 (the plain run) to below 1. The authors'
    /// code: 0.005 for Llama, 0.008 for Mistral-Nemo.
    pub tau: f64,
    /// Last rows whose queries score the others, and which always take part. 1 to 4096; the authors'
    /// code: 128.
    pub window: usize,
    /// Width over which scores are averaged along the prompt, odd. 1 to 63; the authors' code: 7.
    pub pool: usize,
    /// Tokens before the window that always stay. 1 to 1048576; the authors' code: 1024. Shorter
    /// prompts are computed as usual.
    pub min_tokens: usize,
    /// Share of the layers, those of least drift, that select. 0 to 1; the paper: 0.5.
    pub delta: f64,
    /// The layers that select (from 0), instead of those that `delta` picks.
    pub layers: Option<Vec<usize>>,
    /// Most rows of a pass over the prompt, which bounds memory. 64 to 131072.
    pub chunk: usize,
}

impl Default for TokenSparseAttention {
    fn default() -> Self {
        Self {
            tau: 0.005,
            window: 128,
            pool: 7,
            min_tokens: 1024,
            delta: 0.5,
            layers: None,
            chunk: 16_384,
        }
    }
}

impl MethodConfig for TokenSparseAttention {
    fn validate(&self) -> std::result::Result<(), String> {
        if !(0.0..1.0).contains(&self.tau) {
            return Err(format!("tau = {}: must be 0 to below 1", self.tau));
        }
        if !(0.0..=1.0).contains(&self.delta) {
            return Err(format!("delta = {}: must be 0 to 1", self.delta));
        }
        if self.pool.is_multiple_of(2) {
            return Err(format!("pool = {}: must be odd", self.pool));
        }
        within("pool", self.pool, 1..=63)?;
        within("window", self.window, 1..=4096)?;
        within("min_tokens", self.min_tokens, 1..=1 << 20)?;
        within("chunk", self.chunk, 64..=1 << 17)?;
        let layers = self.layers.as_deref().unwrap_or_default();
        if layers.windows(2).any(|w| w[0] >= w[1]) {
            return Err(format!("layers = {layers:?}: must be ascending"));
        }
        Ok(())
    }
}

/// The registry's line.
pub static ENTRY: MethodEntry = MethodEntry {
    slug: "token-sparse-attention",
    aliases: &["tsa"],
    name: "Token Sparse Attention",
    paper: Some(Paper {
        title: "Token Sparse Attention: Efficient Long-Context Inference with Interleaved Token \
                Selection",
        authors: "Jo et al.",
        year: 2026,
        id: "arXiv:2602.03216",
    }),
    summary: "Reads a long prompt with some layers attending among each head's own important tokens.",
    kind: Kind::Policy,
    places: &[Place { role: Role::Reduce, site: Site::Prefill }],
    exactness: Exactness::Lossy { what: "every token after a long prompt" },
    needs: Needs {
        capabilities: Capabilities {
            sites: true,
            taps: true,
            head_rows: true,
            ..Needs::NONE.capabilities
        },
        calibration: true,
        ..Needs::NONE
    },
    claims: &[Claim {
        setting: "RULER at 128K, Llama-3.1-8B, on top of a sparse kernel, one accelerator",
        metric: "attention speed-up at less than 1 % loss of accuracy",
        value: 3.23,
        unit: "x",
        place: "abstract",
    }],
    schema: schema_of::<TokenSparseAttention>,
    defaults: defaults_of::<TokenSparseAttention>,
    neutral: Some(|| Settings::from_iter([("tau".to_owned(), json!(0.0))])),
    read: resolve_as::<TokenSparseAttention>,
    build: |settings| {
        let config = read_as::<TokenSparseAttention>("token-sparse-attention", settings)?;
        Ok(Method::Reduce(Box::new(Tokens::new(config))))
    },
};

fn fail(what: String) -> Error {
    Error::Method { method: "token-sparse-attention".to_owned(), what }
}

/// The policy.
#[derive(Debug, Clone)]
pub struct Tokens {
    config: TokenSparseAttention,
    /// The layers that select, ascending; `None` until the model is known.
    layers: Option<Vec<usize>>,
}

impl Tokens {
    /// With these settings.
    pub fn new(config: TokenSparseAttention) -> Self {
        Self { config, layers: None }
    }

    /// Whether no pass over any prompt is changed.
    fn is_idle(&self) -> bool {
        let c = &self.config;
        c.tau == 0.0
            || c.chunk <= c.min_tokens + c.window
            || self.layers.as_ref().is_some_and(Vec::is_empty)
    }

    /// The rows of every head among `n` of which the last queries gave `shares`, `heads x n`; `None`
    /// where all take part.
    fn select(&self, shares: &[f32], n: usize) -> Option<Vec<Vec<Row>>> {
        let c = &self.config;
        if c.tau == 0.0 || n <= c.min_tokens + c.window {
            return None;
        }
        let prefix = n - c.window;
        let scores: Vec<Vec<f32>> = shares
            .chunks_exact(n)
            .map(|share| {
                let mean: Vec<f32> = share[..prefix].iter().map(|s| s / c.window as f32).collect();
                smooth(&mean, c.pool)
            })
            .collect();
        let dropped = budget(&scores, c.tau)?;
        let keep = c.min_tokens.max(prefix.saturating_sub(dropped));
        (keep < prefix).then(|| {
            let of_head = |s: &Vec<f32>| {
                let mut rows = highest(s, keep, |_| false);
                rows.extend(prefix as Row..n as Row);
                rows
            };
            scores.iter().map(of_head).collect()
        })
    }
}

/// Averages over `width` neighbours; what lies outside counts as zero.
fn smooth(scores: &[f32], width: usize) -> Vec<f32> {
    let half = width / 2;
    (0..scores.len())
        .map(|i| {
            let near = &scores[i.saturating_sub(half)..(i + half + 1).min(scores.len())];
            near.iter().sum::<f32>() / width as f32
        })
        .collect()
}

/// How many tokens the heads' mean score lets go: those of the low tail whose mass stays below `tau`,
/// and the one where it is reached. `None` if the tail is empty.
fn budget(scores: &[Vec<f32>], tau: f64) -> Option<usize> {
    let n = scores.first()?.len();
    let mut mean: Vec<f64> =
        (0..n).map(|j| scores.iter().map(|s| f64::from(s[j])).sum::<f64>()).collect();
    let total: f64 = mean.iter().sum();
    mean.sort_by(f64::total_cmp);
    let mut mass = 0.0;
    let low = mean.iter().take_while(|&&m| {
        mass += m / total;
        mass < tau
    });
    match low.count() {
        0 => None,
        n => Some(n + 1),
    }
}

impl Reduce for Tokens {
    fn fork(&self) -> Box<dyn Reduce> {
        Box::new(self.clone())
    }

    fn calibrate(&mut self, calibration: &Arc<Calibration>) -> Result<()> {
        let all = calibration.layers();
        let mut layers = match &self.config.layers {
            Some(layers) => layers.clone(),
            None => calibration.calm(self.config.delta),
        };
        if let Some(bad) = layers.iter().find(|&&l| l >= all) {
            return Err(fail(format!("layers: {bad} of a model of {all}")));
        }
        layers.retain(|&l| !calibration.sliding[l]);
        self.layers = Some(layers);
        Ok(())
    }

    fn chunk(&self) -> Option<usize> {
        (!self.is_idle()).then_some(self.config.chunk)
    }

    fn prefill_sites(&mut self) -> Option<&mut dyn Sites> {
        (!self.is_idle()).then_some(self as &mut dyn Sites)
    }
}

impl Sites for Tokens {
    fn attends(&self, layer: usize) -> bool {
        self.layers.as_ref().is_none_or(|l| l.binary_search(&layer).is_ok())
    }

    fn attend(&mut self, evidence: &HeadEvidence<'_>) -> Result<Option<Vec<Vec<Row>>>> {
        if self.layers.is_none() {
            let what = "needs a calibration of this model. Next: run `tessera calibrate`";
            return Err(fail(what.to_owned()));
        }
        let (n, cached) = (evidence.positions.len(), evidence.cached);
        if n <= self.config.min_tokens + self.config.window {
            return Ok(None);
        }
        let shares = evidence.shares.of_last(self.config.window)?;
        let own: Vec<f32> =
            shares.chunks_exact(cached + n).flat_map(|s| &s[cached..]).copied().collect();
        Ok(self.select(&own, n).map(|lists| {
            let all = |own: Vec<Row>| {
                let own = own.into_iter().map(|row| row + cached as Row);
                (0..cached as Row).chain(own).collect()
            };
            lists.into_iter().map(all).collect()
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small(tau: f64) -> Tokens {
        let config = TokenSparseAttention {
            tau,
            window: 2,
            pool: 1,
            min_tokens: 2,
            ..TokenSparseAttention::default()
        };
        config.validate().unwrap();
        Tokens::new(config)
    }

    /// Two heads over six tokens before a window of two.
    const SHARES: [f32; 16] = [
        0.1, 0.4, 0.0, 0.2, 0.3, 0.2, 0.4, 0.4, //
        0.3, 0.0, 0.2, 0.0, 0.1, 0.6, 0.4, 0.4,
    ];

    #[test]
    fn a_selection_by_hand() {
        // Means 0.4, 0.4, 0.2, 0.2, 0.4, 0.8 of 2.4: sorted and summed 1/12, 1/6, 1/3, 1/2, 2/3, 1.
        // 0.1 lets one go and the one where it is reached: four of six stay, by each head's own score.
        let rows = small(0.1).select(&SHARES, 8).unwrap();
        assert_eq!(rows, [vec![1, 3, 4, 5, 6, 7], vec![0, 2, 4, 5, 6, 7]]);
        // At least `min_tokens` stay; below the first token's mass nothing goes.
        assert_eq!(small(0.9).select(&SHARES, 8).unwrap()[0], [1, 4, 6, 7]);
        assert_eq!(small(0.08).select(&SHARES, 8), None);
        assert_eq!(small(0.0).select(&SHARES, 8), None);
        assert_eq!(small(0.9).select(&SHARES[..8], 4), None);
    }

    #[test]
    fn larger_tau_keeps_fewer_and_the_window_always() {
        let shares: Vec<f32> = (0..2 * 40).map(|i| ((i * 7919) % 101) as f32 / 101.0).collect();
        let mut last = 40;
        for tau in [0.001, 0.01, 0.05, 0.2, 0.5, 0.99] {
            let Some(rows) = small(tau).select(&shares, 40) else { continue };
            for list in &rows {
                assert!(list.windows(2).all(|w| w[0] < w[1]) && list.len() == rows[0].len());
                assert!(list.ends_with(&[38, 39]) && list.len() >= 4);
            }
            assert!(rows[0].len() <= last, "{tau}");
            last = rows[0].len();
        }
        assert_eq!(last, 4);
    }

    #[test]
    fn settings_that_change_nothing_take_no_part() {
        assert!(small(0.1).prefill_sites().is_some() && small(0.1).chunk().is_some());
        let mut neutral = small(0.0);
        assert!(neutral.prefill_sites().is_none() && neutral.chunk().is_none());
        let mut patient = small(0.1);
        patient.config.min_tokens = patient.config.chunk;
        assert!(patient.prefill_sites().is_none());
        let mut nowhere = small(0.1);
        nowhere.layers = Some(Vec::new());
        assert!(nowhere.prefill_sites().is_none());
    }

    #[test]
    fn smoothing_pads_with_zero() {
        let near = |width| smooth(&[3.0, 0.0, 6.0], width);
        assert_eq!((near(1), near(3)), (vec![3.0, 0.0, 6.0], vec![1.0, 3.0, 2.0]));
    }

    #[test]
    fn settings_out_of_range_are_refused_by_name() {
        let good = TokenSparseAttention::default();
        for (bad, name) in [
            (TokenSparseAttention { tau: 1.0, ..good.clone() }, "tau"),
            (TokenSparseAttention { delta: 1.5, ..good.clone() }, "delta"),
            (TokenSparseAttention { pool: 4, ..good.clone() }, "pool"),
            (TokenSparseAttention { window: 0, ..good.clone() }, "window"),
            (TokenSparseAttention { min_tokens: 0, ..good.clone() }, "min_tokens"),
            (TokenSparseAttention { layers: Some(vec![3, 3]), ..good.clone() }, "layers"),
            (TokenSparseAttention { chunk: 1, ..good }, "chunk"),
        ] {
            let error = bad.validate().unwrap_err();
            assert!(error.starts_with(name), "{error}");
        }
    }
}

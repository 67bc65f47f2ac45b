//! Measures a model once, for the policies that read [`Calibration`]s.
//!
//! A built-in text is computed, then a few tokens are decoded as usual. What is taken down: for every
//! layer, query head and rotary pair, how far the pair alone ranks the keys as the full score does
//! (FASA's contextual agreement), and how far every layer moves the residual stream (the drift by
//! which Token Sparse Attention chooses its layers).

use tessera_core::calibration::VERSION;
use tessera_core::{
    Backbone, CacheOptions, Calibration, HiddenSite, Input, Pairing, Pass, Position, Result,
    Reveal, RowsOut, Segment, Taps, TokenId, Vocabulary, Write,
};

/// The text that models are measured on: a chapter of prose in the public domain, which
/// `bench/fidelity` describes.
pub const TEXT: &str = include_str!("../../../bench/fidelity/prose.txt");

/// Rows of a pass over the text.
const CHUNK: usize = 256;

/// How much is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Most rows of the text.
    pub rows: usize,
    /// Tokens decoded after it.
    pub steps: usize,
    /// Keys compared, `K`. FASA: 256; averages hardly depend on it. A quarter of the keys at most.
    pub keys: usize,
}

impl Default for Extent {
    fn default() -> Self {
        Self { rows: 1536, steps: 32, keys: 256 }
    }
}

/// Measures a model on [`TEXT`].
///
/// # Errors
/// As [`measure`].
pub fn measure_on_text(
    backbone: &dyn Backbone,
    vocabulary: &dyn Vocabulary,
) -> Result<Calibration> {
    let extent = Extent::default();
    let room = backbone.spec().context.saturating_sub(extent.steps);
    let mut tokens = vocabulary.encode(TEXT);
    tokens.truncate(extent.rows.min(room).max(1));
    measure(backbone, &tokens, extent)
}

/// Measures a model on `tokens` and what it says after them.
///
/// # Errors
/// Whatever a pass reports.
pub fn measure(backbone: &dyn Backbone, tokens: &[TokenId], extent: Extent) -> Result<Calibration> {
    let spec = backbone.spec();
    let layers: Vec<usize> = (0..spec.layers).collect();
    let mut sites = vec![HiddenSite::Embedding];
    sites.extend(layers.iter().map(|&l| HiddenSite::After(l)));
    let room = tokens.len() + extent.steps;
    let mut cache =
        backbone.new_cache(CacheOptions { capacity: room, ..CacheOptions::default() })?;
    let mut reveal = Reveal::new();
    let mut keys: Vec<Vec<f32>> = vec![Vec::new(); spec.layers];
    let (mut drift, mut rows) = (vec![0.0f64; spec.layers], 0usize);
    let mut sums = vec![vec![0.0f64; spec.head_dim / 2]; spec.layers * spec.heads];
    let mut next = tokens.to_vec();
    let (mut done, mut steps) = (0, 0);
    while done < room && !next.is_empty() {
        let decoding = done >= tokens.len();
        let n = next.len().min(CHUNK);
        let positions: Vec<Position> = (done as Position..).take(n).collect();
        let mut segments = [Segment {
            input: Input::Tokens(&next[..n]),
            rows_out: RowsOut::Last,
            write: Write::Append,
            ..Segment::causal(&[], &positions, &mut *cache)
        }];
        let mut pass = Pass::new(&mut segments);
        pass.taps = Taps {
            hidden: if decoding { &[] } else { &sites },
            queries: if decoding { &layers } else { &[] },
            keys: &layers,
            ..Taps::default()
        };
        backbone.forward(&mut pass, &mut reveal)?;
        let shown = &reveal.segments[0];
        for (all, new) in keys.iter_mut().zip(&shown.keys) {
            all.extend_from_slice(new);
        }
        if decoding {
            for (layer, query) in shown.queries.iter().enumerate() {
                let of_layer = &mut sums[layer * spec.heads..(layer + 1) * spec.heads];
                let shape = Shape {
                    heads: spec.heads,
                    kv_heads: spec.kv_heads,
                    dim: spec.head_dim,
                    pairing: backbone.pairing(),
                };
                agreement(query, &keys[layer], shape, extent.keys, of_layer);
            }
            steps += 1;
        } else {
            for (l, moved) in drift.iter_mut().enumerate() {
                *moved += drift_of(&shown.hidden[l], &shown.hidden[l + 1], spec.hidden);
            }
            rows += n;
        }
        next.drain(..n);
        done += n;
        if next.is_empty() {
            let logits = reveal.logits(0, 0);
            let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]));
            next.extend(best.map(|t| t as TokenId));
        }
    }
    let mean = |sum: f64, n: usize| (sum / n.max(1) as f64 * 1e5).round() as f32 / 1e5;
    Ok(Calibration {
        version: VERSION,
        heads: spec.heads,
        kv_heads: spec.kv_heads,
        head_dim: spec.head_dim,
        pairing: backbone.pairing(),
        sliding: layers.iter().map(|&l| backbone.window(l).is_some()).collect(),
        agreement: sums
            .iter()
            .map(|head| head.iter().map(|&sum| mean(sum, steps)).collect())
            .collect(),
        drift: drift.iter().map(|&sum| mean(sum, rows)).collect(),
        rows,
        steps,
    })
}

/// The sum over rows of `|after - before| / |before|`.
fn drift_of(before: &[f32], after: &[f32], hidden: usize) -> f64 {
    let length = |x: &mut dyn Iterator<Item = f32>| -> f64 {
        x.map(|v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt()
    };
    before
        .chunks_exact(hidden)
        .zip(after.chunks_exact(hidden))
        .map(|(b, a)| {
            let moved = length(&mut b.iter().zip(a).map(|(b, a)| a - b));
            moved / (length(&mut b.iter().copied()) + 1e-8)
        })
        .sum()
}

#[derive(Clone, Copy)]
struct Shape {
    heads: usize,
    kv_heads: usize,
    dim: usize,
    pairing: Pairing,
}

/// Adds the agreement of every pair of every head, for one query row over `keys`,
/// `rows x kv_heads x dim`, to `sums`.
fn agreement(query: &[f32], keys: &[f32], shape: Shape, most: usize, sums: &mut [Vec<f64>]) {
    let Shape { heads, kv_heads, dim, pairing } = shape;
    let width = kv_heads * dim;
    let rows = keys.len() / width;
    let count = most.min(rows.div_ceil(4));
    let mut full = vec![0.0f32; rows];
    let mut partial = vec![vec![0.0f32; rows]; dim / 2];
    for (head, sums) in sums.iter_mut().enumerate() {
        let q = &query[head * dim..(head + 1) * dim];
        let at = head / (heads / kv_heads) * dim;
        for (row, key) in keys.chunks_exact(width).enumerate() {
            let key = &key[at..at + dim];
            let mut sum = 0.0;
            for (pair, partial) in partial.iter_mut().enumerate() {
                let [a, b] = pairing.columns(pair, dim);
                let score = q[a] * key[a] + q[b] * key[b];
                partial[row] = score;
                sum += score;
            }
            full[row] = sum;
        }
        let best = top(&full, count);
        for (sum, partial) in sums.iter_mut().zip(&partial) {
            let found = top(partial, count);
            let both = best.iter().zip(&found).filter(|(a, b)| **a && **b).count();
            *sum += both as f64 / count as f64;
        }
    }
}

/// Marks the `count` largest scores, the older of equals.
fn top(scores: &[f32], count: usize) -> Vec<bool> {
    let mut order: Vec<u32> = (0..scores.len() as u32).collect();
    if count < order.len() {
        let rank =
            |a: &u32, b: &u32| scores[*b as usize].total_cmp(&scores[*a as usize]).then(a.cmp(b));
        order.select_nth_unstable_by(count, rank);
    }
    let mut marked = vec![false; scores.len()];
    order.iter().take(count).for_each(|&row| marked[row as usize] = true);
    marked
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape = Shape { heads: 2, kv_heads: 1, dim: 4, pairing: Pairing::Halves };

    #[test]
    fn a_pair_that_decides_the_score_agrees_and_a_constant_one_does_not() {
        // Pair 0 is columns 0 and 2, pair 1 columns 1 and 3. The query looks at pair 0 only.
        let keys: Vec<f32> = (0..16).flat_map(|r| [r as f32, -(r as f32), 0.5, 1.0]).collect();
        let query = [1.0, 0.0, 0.25, 0.0, 0.0, -3.0, 0.0, 1.0];
        let mut sums = vec![vec![0.0; 2]; 2];
        agreement(&query, &keys, SHAPE, 256, &mut sums);
        // 4 of 16 keys are compared. The best are the last four; all scores of pair 1 are equal,
        // so it finds the first four. The second head's score is pair 1 alone.
        assert_eq!(sums, [[1.0, 0.0], [0.0, 1.0]]);
    }

    #[test]
    fn drift_is_relative_to_what_came_in() {
        let (before, after) = ([3.0, 4.0, 0.0, 2.0], [3.0, 9.0, 2.0, 2.0]);
        assert!((drift_of(&before, &after, 2) - 2.0).abs() < 1e-6);
        let scaled = |x: [f32; 4]| x.map(|v| v * 8.0);
        let same = drift_of(&scaled(before), &scaled(after), 2);
        assert!((same - 2.0).abs() < 1e-6);
    }
}

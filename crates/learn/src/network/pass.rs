//! Forward and backward passes over whole sequences.

use std::ops::Range;
use std::sync::Arc;

use tessera_kernels::Pool;
use tessera_kernels::training::{
    Gemm, Heads, Sight, Turns, View, add_into, attention, attention_backward, cross_entropy, norm,
    norm_backward, swiglu, swiglu_backward,
};

use super::{EPSILON, ROPE_BASE, Shape};
use crate::{Error, Result};

/// Rows of logits that exist at a time: they stay in the cache.
const HEAD_ROWS: usize = 128;

/// Who reads whom in a sequence; the same for all sequences of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum See {
    /// Every row reads every row.
    Full,
    /// A row reads itself and the earlier ones.
    Causal,
    /// `bits[row * context + column]`.
    Bits(Vec<bool>),
    /// Two rows a position: those of the content, then as many again at the same positions.
    /// `bits[row * 2 * context + column]`.
    Streams(Vec<bool>),
}

impl See {
    fn sight(&self) -> Sight<'_> {
        match self {
            Self::Full => Sight::Full,
            Self::Causal => Sight::Causal,
            Self::Bits(bits) | Self::Streams(bits) => Sight::Bits(bits),
        }
    }

    /// Rows of a sequence.
    fn rows(&self, context: usize) -> usize {
        match self {
            Self::Streams(_) => 2 * context,
            _ => context,
        }
    }
}

/// A token that a row is to predict.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Target {
    /// The row, counted over the batch.
    pub row: u32,
    /// The token.
    pub token: u32,
    /// Its weight in the loss.
    pub weight: f32,
}

/// What a pass works on.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// Whole sequences of the shape's context (twice that for two streams), one after another.
    pub tokens: Vec<u32>,
    /// Who reads whom.
    pub see: See,
    /// What is predicted.
    pub targets: Vec<Target>,
}

/// Places of a layer's tensors among the weights.
#[derive(Debug, Clone)]
struct Places {
    norm1: Range<usize>,
    qkv: Range<usize>,
    out: Range<usize>,
    norm2: Range<usize>,
    gate_up: Range<usize>,
    down: Range<usize>,
}

/// What the forward pass of a layer leaves for the backward pass.
#[derive(Debug, Default)]
struct Kept {
    /// Residual stream at the entrance, and between the two blocks.
    entered: Vec<f32>,
    middle: Vec<f32>,
    normed1: Vec<f32>,
    normed2: Vec<f32>,
    factors1: Vec<f32>,
    factors2: Vec<f32>,
    /// Queries and keys turned, values.
    qkv: Vec<f32>,
    normalisers: Vec<f32>,
    attended: Vec<f32>,
    gate_up: Vec<f32>,
    gated: Vec<f32>,
}

/// A model's passes with the memory that they need, reused from step to step.
pub struct Network {
    shape: Shape,
    pool: Arc<Pool>,
    gemm: Gemm,
    turns: Turns,
    layers: Vec<Places>,
    embedding: Range<usize>,
    last_norm: Range<usize>,
    kept: Vec<Kept>,
    /// Residual stream behind the last layer, or its gradient.
    stream: Vec<f32>,
    never: Option<u32>,
}

impl Network {
    /// For weights of this shape; token `never`, if given, is never predicted.
    ///
    /// # Errors
    /// Sizes that do not fit one another.
    pub fn new(shape: Shape, pool: Arc<Pool>, never: Option<u32>) -> Result<Self> {
        shape.validate()?;
        let tensors = shape.tensors();
        let of = |first: usize, last: usize| tensors[first].start..tensors[last].range().end;
        let layers = (0..shape.layers)
            .map(|layer| {
                let at = 1 + 9 * layer;
                Places {
                    norm1: of(at, at),
                    qkv: of(at + 1, at + 3),
                    out: of(at + 4, at + 4),
                    norm2: of(at + 5, at + 5),
                    gate_up: of(at + 6, at + 7),
                    down: of(at + 8, at + 8),
                }
            })
            .collect();
        let turns = Turns::new(shape.head_dim(), ROPE_BASE, shape.context).map_err(wrong)?;
        Ok(Self {
            shape,
            pool,
            gemm: Gemm::new(),
            turns,
            layers,
            embedding: of(0, 0),
            last_norm: of(tensors.len() - 1, tensors.len() - 1),
            kept: (0..shape.layers).map(|_| Kept::default()).collect(),
            stream: Vec::new(),
            never,
        })
    }

    /// The sizes.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// The loss of every target, `-ln p`, unweighted; adds the gradient of their weighted sum to
    /// `gradient` if there is one.
    ///
    /// # Errors
    /// Weights, tokens or targets that do not fit the shape.
    pub fn losses(
        &mut self,
        weights: &[f32],
        batch: &Batch,
        gradient: Option<&mut [f32]>,
    ) -> Result<Vec<f64>> {
        self.check(weights, batch)?;
        if gradient.as_ref().is_some_and(|g| g.len() != weights.len()) {
            return Err(Error::setting("the gradient has another length than the weights"));
        }
        self.forward(weights, batch)?;
        let (losses, gradient) = self.head(weights, batch, gradient)?;
        if let Some(gradient) = gradient {
            self.backward(weights, batch, gradient)?;
        }
        Ok(losses)
    }

    /// The logits of `rows`, the forbidden token's included.
    ///
    /// # Errors
    /// As [`Network::losses`].
    pub fn logits(&mut self, weights: &[f32], batch: &Batch, rows: &[u32]) -> Result<Vec<f32>> {
        self.check(weights, batch)?;
        self.forward(weights, batch)?;
        let (normed, _, _) = self.normed(weights, rows)?;
        let (d, v) = (self.shape.hidden, self.shape.vocab);
        let mut logits = vec![0.0; rows.len() * v];
        let table = View::new(&weights[self.embedding.clone()], v, d);
        let rows = View::new(&normed, rows.len(), d);
        self.gemm.run(&self.pool, rows, table.transposed(), &mut logits, false).map_err(wrong)?;
        Ok(logits)
    }

    fn check(&self, weights: &[f32], batch: &Batch) -> Result<()> {
        let (shape, rows) = (&self.shape, batch.tokens.len());
        let wrong = if weights.len() != shape.weights() {
            "other weights than the shape has"
        } else if rows == 0 || !rows.is_multiple_of(batch.see.rows(shape.context)) {
            "sequences that are not whole"
        } else if batch.tokens.iter().any(|&t| t as usize >= shape.vocab) {
            "a token that is not in the vocabulary"
        } else if batch.targets.iter().any(|t| t.row as usize >= rows) {
            "a target outside the sequences"
        } else {
            return Ok(());
        };
        Err(Error::setting(format!("a pass was given {wrong}")))
    }

    fn heads<'a>(shape: &Shape, see: &'a See) -> Heads<'a> {
        let (length, heads, dim) = (see.rows(shape.context), shape.heads, shape.head_dim());
        Heads { length, heads, dim, sight: see.sight() }
    }

    fn forward(&mut self, weights: &[f32], batch: &Batch) -> Result<()> {
        let Shape { hidden: d, ffn: f, heads, vocab, .. } = self.shape;
        let (pool, rows) = (&*self.pool, batch.tokens.len());
        let shape = Self::heads(&self.shape, &batch.see);
        let table = &weights[self.embedding.clone()];
        self.stream.clear();
        for &token in &batch.tokens {
            self.stream.extend_from_slice(&table[token as usize * d..][..d]);
        }
        debug_assert_eq!(table.len(), vocab * d);
        let run = |gemm: &mut Gemm,
                   x: &[f32],
                   w: &Range<usize>,
                   k: usize,
                   n: usize,
                   y: &mut [f32],
                   add| {
            let w = View::new(&weights[w.clone()], n, k).transposed();
            gemm.run(pool, View::new(x, rows, k), w, y, add)
        };
        for (at, kept) in self.layers.iter().zip(&mut self.kept) {
            let x = &mut self.stream;
            for (buffer, size) in [
                (&mut kept.normed1, rows * d),
                (&mut kept.normed2, rows * d),
                (&mut kept.factors1, rows),
                (&mut kept.factors2, rows),
                (&mut kept.qkv, rows * 3 * d),
                (&mut kept.normalisers, rows * heads),
                (&mut kept.attended, rows * d),
                (&mut kept.gate_up, rows * 2 * f),
                (&mut kept.gated, rows * f),
            ] {
                buffer.resize(size, 0.0);
            }
            kept.entered.clone_from(x);
            let w = &weights[at.norm1.clone()];
            norm(pool, x, w, EPSILON, &mut kept.normed1, &mut kept.factors1).map_err(wrong)?;
            run(&mut self.gemm, &kept.normed1, &at.qkv, d, 3 * d, &mut kept.qkv, false)
                .map_err(wrong)?;
            // Queries and keys lie next to each other: twice the heads.
            self.turns.apply(pool, &mut kept.qkv, 3 * d, 2 * heads, false).map_err(wrong)?;
            attention(pool, &shape, &kept.qkv, &mut kept.attended, &mut kept.normalisers)
                .map_err(wrong)?;
            run(&mut self.gemm, &kept.attended, &at.out, d, d, x, true).map_err(wrong)?;
            kept.middle.clone_from(x);
            let w = &weights[at.norm2.clone()];
            norm(pool, x, w, EPSILON, &mut kept.normed2, &mut kept.factors2).map_err(wrong)?;
            run(&mut self.gemm, &kept.normed2, &at.gate_up, d, 2 * f, &mut kept.gate_up, false)
                .map_err(wrong)?;
            swiglu(pool, &kept.gate_up, f, &mut kept.gated).map_err(wrong)?;
            run(&mut self.gemm, &kept.gated, &at.down, f, d, x, true).map_err(wrong)?;
        }
        Ok(())
    }

    /// The last norm of `rows`: what enters it, what comes out, its factors.
    #[allow(clippy::type_complexity)]
    fn normed(&self, weights: &[f32], rows: &[u32]) -> Result<(Vec<f32>, Vec<f32>, Vec<f32>)> {
        let d = self.shape.hidden;
        let mut x = Vec::with_capacity(rows.len() * d);
        rows.iter().for_each(|&r| x.extend_from_slice(&self.stream[r as usize * d..][..d]));
        let (mut y, mut factors) = (vec![0.0; x.len()], vec![0.0; rows.len()]);
        let w = &weights[self.last_norm.clone()];
        norm(&self.pool, &x, w, EPSILON, &mut y, &mut factors).map_err(wrong)?;
        Ok((y, x, factors))
    }

    /// The losses; with a gradient, `stream` becomes the gradient of the residual stream.
    fn head<'g>(
        &mut self,
        weights: &[f32],
        batch: &Batch,
        mut gradient: Option<&'g mut [f32]>,
    ) -> Result<(Vec<f64>, Option<&'g mut [f32]>)> {
        let (d, v) = (self.shape.hidden, self.shape.vocab);
        let rows: Vec<u32> = batch.targets.iter().map(|t| t.row).collect();
        let tokens: Vec<u32> = batch.targets.iter().map(|t| t.token).collect();
        let shares: Vec<f32> = batch.targets.iter().map(|t| t.weight).collect();
        let (normed, entered, factors) = self.normed(weights, &rows)?;
        let table = View::new(&weights[self.embedding.clone()], v, d);
        let mut losses = vec![0.0; rows.len()];
        let mut back = vec![0.0; if gradient.is_some() { normed.len() } else { 0 }];
        let mut logits = Vec::new();
        for first in (0..rows.len()).step_by(HEAD_ROWS) {
            let range = first..rows.len().min(first + HEAD_ROWS);
            let n = range.len();
            let x = View::new(&normed[range.start * d..range.end * d], n, d);
            logits.resize(n * v, 0.0);
            let pool = &*self.pool;
            self.gemm.run(pool, x, table.transposed(), &mut logits, false).map_err(wrong)?;
            let wanted = (&tokens[range.clone()], &shares[range.clone()]);
            cross_entropy(pool, &mut logits, v, wanted, self.never, &mut losses[range.clone()])
                .map_err(wrong)?;
            if let Some(gradient) = gradient.as_deref_mut() {
                let slopes = View::new(&logits, n, v);
                let to = &mut back[range.start * d..range.end * d];
                self.gemm.run(pool, slopes, table, to, false).map_err(wrong)?;
                let to = &mut gradient[self.embedding.clone()];
                self.gemm.run(pool, slopes.transposed(), x, to, true).map_err(wrong)?;
            }
        }
        if let Some(gradient) = gradient.as_deref_mut() {
            let mut dx = vec![0.0; entered.len()];
            let w = &weights[self.last_norm.clone()];
            let dw = &mut gradient[self.last_norm.clone()];
            norm_backward(&self.pool, &back, (&entered, w, &factors), &mut dx, dw)
                .map_err(wrong)?;
            self.stream.fill(0.0);
            for (row, dx) in rows.iter().zip(dx.chunks_exact(d)) {
                let to = &mut self.stream[*row as usize * d..][..d];
                to.iter_mut().zip(dx).for_each(|(to, dx)| *to += dx);
            }
        }
        Ok((losses, gradient))
    }

    /// From the gradient of the residual stream behind the last layer to that of every weight.
    fn backward(&mut self, weights: &[f32], batch: &Batch, gradient: &mut [f32]) -> Result<()> {
        let Shape { hidden: d, ffn: f, heads, .. } = self.shape;
        let (pool, rows) = (&*self.pool, batch.tokens.len());
        let shape = Self::heads(&self.shape, &batch.see);
        let gemm = &mut self.gemm;
        let dx = &mut self.stream;
        // y = x w^T with w of n rows: dx = dy w and dw += dy^T x.
        let mut back = |w: &Range<usize>,
                        dy: &[f32],
                        x: &[f32],
                        n: usize,
                        k: usize,
                        to: &mut Vec<f32>,
                        g: &mut [f32]| {
            to.resize(rows * k, 0.0);
            let slopes = View::new(dy, rows, n);
            gemm.run(pool, slopes, View::new(&weights[w.clone()], n, k), to, false)?;
            gemm.run(pool, slopes.transposed(), View::new(x, rows, k), &mut g[w.clone()], true)
        };
        let (mut wide, mut narrow) = (Vec::new(), Vec::new());
        let mut dqkv = vec![0.0; rows * 3 * d];
        for (at, kept) in self.layers.iter().zip(&mut self.kept).rev() {
            back(&at.down, dx, &kept.gated, d, f, &mut wide, gradient).map_err(wrong)?;
            swiglu_backward(pool, &wide, f, &mut kept.gate_up).map_err(wrong)?;
            back(&at.gate_up, &kept.gate_up, &kept.normed2, 2 * f, d, &mut narrow, gradient)
                .map_err(wrong)?;
            let inputs = (&kept.middle[..], &weights[at.norm2.clone()], &kept.factors2[..]);
            let dw = &mut gradient[at.norm2.clone()];
            norm_backward(pool, &narrow, inputs, dx, dw).map_err(wrong)?;
            back(&at.out, dx, &kept.attended, d, d, &mut narrow, gradient).map_err(wrong)?;
            let inputs = (&kept.qkv[..], &kept.attended[..], &kept.normalisers[..]);
            attention_backward(pool, &shape, inputs, &narrow, &mut dqkv).map_err(wrong)?;
            self.turns.apply(pool, &mut dqkv, 3 * d, 2 * heads, true).map_err(wrong)?;
            back(&at.qkv, &dqkv, &kept.normed1, 3 * d, d, &mut narrow, gradient).map_err(wrong)?;
            let inputs = (&kept.entered[..], &weights[at.norm1.clone()], &kept.factors1[..]);
            let dw = &mut gradient[at.norm1.clone()];
            norm_backward(pool, &narrow, inputs, dx, dw).map_err(wrong)?;
        }
        let table = &mut gradient[self.embedding.clone()];
        for (token, dx) in batch.tokens.iter().zip(dx.chunks_exact(d)) {
            add_into(pool, &mut table[*token as usize * d..][..d], dx).map_err(wrong)?;
        }
        Ok(())
    }
}

/// Sizes are checked before a kernel sees them, so its error is a mistake of this file.
fn wrong(error: tessera_kernels::KernelError) -> Error {
    Error::Training { what: format!("training pass: {error}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape = Shape { vocab: 64, hidden: 32, layers: 2, heads: 2, ffn: 64, context: 16 };

    fn batch(see: See) -> Batch {
        let tokens: Vec<u32> = (0..32).map(|i| (i * 7 + i * i) % 64).collect();
        let targets = [(3, 5, 0.5), (9, 60, 1.0), (17, 1, 0.25), (31, 9, 2.0)];
        let targets = targets.map(|(row, token, weight)| Target { row, token, weight }).to_vec();
        Batch { tokens, see, targets }
    }

    /// Weights large enough that every part matters.
    fn weights() -> Vec<f32> {
        let mut weights = SHAPE.fresh(3);
        weights[..64 * 32].iter_mut().for_each(|w| *w *= 20.0);
        weights
    }

    fn weighted(losses: &[f64], batch: &Batch) -> f64 {
        losses.iter().zip(&batch.targets).map(|(l, t)| l * f64::from(t.weight)).sum()
    }

    #[test]
    fn gradients_are_those_of_finite_differences_in_every_tensor() {
        let bits: Vec<bool> = (0..256).map(|i| i % 17 == 0 || i % 3 == 0).collect();
        let streams: Vec<bool> = (0..1024).map(|i| i % 33 == 0 || i % 5 == 0).collect();
        for see in [See::Full, See::Causal, See::Bits(bits), See::Streams(streams)] {
            let mut network = Network::new(SHAPE, Arc::new(Pool::new(2)), Some(63)).unwrap();
            let (weights, batch) = (weights(), batch(see));
            let mut gradient = vec![0.0; weights.len()];
            network.losses(&weights, &batch, Some(&mut gradient)).unwrap();
            for tensor in SHAPE.tensors() {
                // Along a random direction within the tensor.
                let mut stream = tessera_model::toy::Stream::new(tensor.start as u64 + 1);
                let direction: Vec<f32> = tensor.range().map(|_| stream.normal()).collect();
                let mut value = |step: f32| {
                    let mut moved = weights.clone();
                    let part = &mut moved[tensor.range()];
                    part.iter_mut().zip(&direction).for_each(|(w, d)| *w += step * d);
                    weighted(&network.losses(&moved, &batch, None).unwrap(), &batch)
                };
                let mut central = |h: f32| (value(h) - value(-h)) / (2.0 * f64::from(h));
                // A norm's weights are 1, others about 0.1; smaller steps drown in f32.
                let h = if tensor.is_vector() { 5e-2 } else { 1e-2 };
                let by_differences = (4.0 * central(h / 2.0) - central(h)) / 3.0;
                let by_gradient: f64 = gradient[tensor.range()]
                    .iter()
                    .zip(&direction)
                    .map(|(g, d)| f64::from(*g) * f64::from(*d))
                    .sum();
                let size = by_differences.abs() + by_gradient.abs();
                let error = (by_differences - by_gradient).abs() / size.max(0.2);
                assert!(error < 5e-3, "{}: {by_differences} {by_gradient}", tensor.name);
            }
        }
    }

    #[test]
    fn an_untrained_model_predicts_every_token_alike_but_the_forbidden_one() {
        let mut network = Network::new(SHAPE, Arc::new(Pool::new(1)), Some(63)).unwrap();
        for loss in network.losses(&SHAPE.fresh(1), &batch(See::Full), None).unwrap() {
            assert!((loss - 63f64.ln()).abs() < 0.3, "{loss}");
        }
        let mut asks = batch(See::Full);
        asks.targets[0].token = 63;
        assert!(network.losses(&SHAPE.fresh(1), &asks, None).is_err());
    }

    #[test]
    fn threads_change_nothing_and_causal_rows_do_not_see_later_ones() {
        let run = |threads: usize, batch: &Batch| {
            let mut network = Network::new(SHAPE, Arc::new(Pool::new(threads)), None).unwrap();
            let mut gradient = vec![0.0; SHAPE.weights()];
            let losses = network.losses(&weights(), batch, Some(&mut gradient)).unwrap();
            (losses, gradient)
        };
        for see in [See::Full, See::Causal] {
            assert_eq!(run(1, &batch(see.clone())), run(3, &batch(see)));
        }
        let mut network = Network::new(SHAPE, Arc::new(Pool::new(1)), None).unwrap();
        for (see, same) in [(See::Causal, true), (See::Full, false)] {
            let mut batch = batch(see);
            let before = network.logits(&weights(), &batch, &[4]).unwrap();
            batch.tokens[9] += 1;
            assert_eq!(network.logits(&weights(), &batch, &[4]).unwrap() == before, same);
        }
    }
}

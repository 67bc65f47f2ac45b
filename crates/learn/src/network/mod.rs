//! The model that is trained: a small transformer of the llama family, with a forward and a
//! backward pass of its own.
//!
//! Written out by hand instead of recorded on a graph: there is one architecture here and it does not change
//! from step to step, so a graph would add allocations and serial element-wise passes and take nothing
//! away. Each part is fused and threaded (`tessera_kernels::training`), and the whole is held to finite
//! differences and to the cpu backbone's logits by tests.
//!
//! Pre-norm (RMS), rotary positions with interleaved pairs, SwiGLU, no biases, the head tied to the
//! embedding table: exactly what GGUF files of `llama` and `llada` describe.

mod pass;

use serde::{Deserialize, Serialize};
use tessera_model::toy::Stream;

use crate::{Error, Result};

pub use pass::{Batch, Network, See, Target};

/// Epsilon of the norms.
pub const EPSILON: f32 = 1e-5;
/// Base of the rotary frequencies.
pub const ROPE_BASE: f32 = 10_000.0;

/// Sizes of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shape {
    /// Tokens, a multiple of 16. Filled in from the vocabulary.
    #[serde(default)]
    pub vocab: usize,
    /// Width of the residual stream, a multiple of 32.
    pub hidden: usize,
    /// Layers.
    pub layers: usize,
    /// Heads; `hidden / heads` is a multiple of 16.
    pub heads: usize,
    /// Width of the feed-forward block, a multiple of 32.
    pub ffn: usize,
    /// Tokens of a row, a multiple of 16.
    pub context: usize,
}

/// A tensor's place among the weights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    /// Its name in a GGUF file.
    pub name: String,
    /// Rows; 1 for a vector.
    pub rows: usize,
    /// Values of a row.
    pub cols: usize,
    /// Its first value.
    pub start: usize,
}

impl Tensor {
    /// Where its values lie.
    pub fn range(&self) -> std::ops::Range<usize> {
        self.start..self.start + self.rows * self.cols
    }

    /// Whether it is a norm's weight.
    pub fn is_vector(&self) -> bool {
        self.rows == 1
    }
}

impl Shape {
    /// Checks that sizes fit one another.
    ///
    /// # Errors
    /// [`Error::Setting`] naming the first that does not.
    pub fn validate(&self) -> Result<()> {
        let whole = |n: usize, of: usize| n > 0 && n.is_multiple_of(of);
        let checks = [
            ("vocab", self.vocab, whole(self.vocab, 16), "a multiple of 16"),
            ("hidden", self.hidden, whole(self.hidden, 32), "a multiple of 32"),
            ("layers", self.layers, (1..=64).contains(&self.layers), "1 to 64"),
            (
                "heads",
                self.heads,
                self.heads > 0 && whole(self.hidden, 16 * self.heads),
                "such that hidden / heads is a multiple of 16",
            ),
            ("ffn", self.ffn, whole(self.ffn, 32), "a multiple of 32"),
            ("context", self.context, whole(self.context, 16), "a multiple of 16"),
        ];
        match checks.iter().find(|(_, _, good, _)| !good) {
            Some((name, value, _, range)) => {
                Err(Error::setting(format!("model.{name} = {value}: must be {range}")))
            }
            None => Ok(()),
        }
    }

    /// Width of a head.
    pub fn head_dim(&self) -> usize {
        self.hidden / self.heads
    }

    /// All tensors in order. Queries, keys and values lie one after another, and so do gate and up:
    /// each group is one matrix to the passes.
    pub fn tensors(&self) -> Vec<Tensor> {
        let mut all = Vec::new();
        let mut start = 0;
        let mut add = |name: String, rows: usize, cols: usize| {
            all.push(Tensor { name, rows, cols, start });
            start += rows * cols;
        };
        let (d, f) = (self.hidden, self.ffn);
        add("token_embd.weight".into(), self.vocab, d);
        for layer in 0..self.layers {
            for (part, rows, cols) in [
                ("attn_norm", 1, d),
                ("attn_q", d, d),
                ("attn_k", d, d),
                ("attn_v", d, d),
                ("attn_output", d, d),
                ("ffn_norm", 1, d),
                ("ffn_gate", f, d),
                ("ffn_up", f, d),
                ("ffn_down", d, f),
            ] {
                add(format!("blk.{layer}.{part}.weight"), rows, cols);
            }
        }
        add("output_norm.weight".into(), 1, d);
        all
    }

    /// Number of weights.
    pub fn weights(&self) -> usize {
        self.tensors().last().map_or(0, |last| last.range().end)
    }

    /// Fresh weights: norms 1, matrices nearly normal with a deviation of `0.6 / sqrt(cols)`, less
    /// where they write to the residual stream, and small embeddings, so that the untrained model
    /// predicts every token alike.
    pub fn fresh(&self, seed: u64) -> Vec<f32> {
        let mut weights = Vec::with_capacity(self.weights());
        let mut stream = Stream::new(seed);
        let residual = 1.0 / ((2 * self.layers) as f32).sqrt();
        for tensor in self.tensors() {
            let deviation = match tensor.name.as_str() {
                "token_embd.weight" => 0.02,
                name if name.contains("attn_output") || name.contains("ffn_down") => {
                    0.6 * residual / (tensor.cols as f32).sqrt()
                }
                _ => 0.6 / (tensor.cols as f32).sqrt(),
            };
            let vector = tensor.is_vector();
            let value = || if vector { 1.0 } else { deviation * stream.normal() };
            weights.extend(std::iter::repeat_with(value).take(tensor.rows * tensor.cols));
        }
        weights
    }

    /// Floating-point operations of a forward and a backward pass over `rows` rows, of which `heads` are predicted,
    /// counted from the products alone.
    pub fn operations(&self, rows: usize, predicted: usize) -> f64 {
        let (d, f) = (self.hidden as f64, self.ffn as f64);
        let layer = 4.0 * d * d + 3.0 * d * f;
        // Scores and sums forward; the scores again and four products backward.
        let attention = 7.0 * 2.0 * self.context as f64 * d;
        let body = rows as f64 * self.layers as f64 * (6.0 * layer + attention);
        body + 6.0 * predicted as f64 * d * self.vocab as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape = Shape { vocab: 64, hidden: 32, layers: 2, heads: 2, ffn: 64, context: 16 };

    #[test]
    fn tensors_fill_the_weights_without_gaps() {
        let mut end = 0;
        for tensor in SHAPE.tensors() {
            assert_eq!(tensor.start, end);
            end = tensor.range().end;
        }
        assert_eq!(end, SHAPE.weights());
        let fresh = SHAPE.fresh(1);
        assert_eq!(fresh.len(), end);
        assert_eq!(fresh, SHAPE.fresh(1));
        assert_ne!(fresh, SHAPE.fresh(2));
    }

    #[test]
    fn sizes_that_do_not_fit_are_refused_by_name() {
        for (bad, name) in [
            (Shape { vocab: 65, ..SHAPE }, "vocab"),
            (Shape { hidden: 40, ..SHAPE }, "hidden"),
            (Shape { heads: 3, ..SHAPE }, "heads"),
            (Shape { ffn: 0, ..SHAPE }, "ffn"),
            (Shape { context: 17, ..SHAPE }, "context"),
        ] {
            let text = bad.validate().unwrap_err().to_string();
            assert!(text.contains(&format!("model.{name} = ")), "{text}");
        }
        SHAPE.validate().unwrap();
    }
}

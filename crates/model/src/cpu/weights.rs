//! Weights of the cpu backbone: packed matrices and f32 vectors, by layer.

use tessera_kernels::Matrix;

/// A projection with its optional bias.
pub(super) struct Linear {
    pub w: Matrix,
    pub bias: Option<Vec<f32>>,
}

/// One decoder layer.
pub(super) struct Layer {
    pub attn_norm: Vec<f32>,
    pub q: Linear,
    pub k: Linear,
    pub v: Linear,
    pub q_norm: Option<Vec<f32>>,
    pub k_norm: Option<Vec<f32>>,
    pub o: Linear,
    pub post_attention_norm: Option<Vec<f32>>,
    pub ffn_norm: Vec<f32>,
    pub gate: Linear,
    pub up: Linear,
    pub down: Linear,
    pub post_ffw_norm: Option<Vec<f32>>,
}

/// All weights of a model.
pub(super) struct Weights {
    pub embedding: Matrix,
    pub layers: Vec<Layer>,
    pub output_norm: Vec<f32>,
    /// `None` where the head is the embedding table.
    pub head: Option<Matrix>,
}

impl Weights {
    /// The matrix of the head.
    pub fn head(&self) -> &Matrix {
        self.head.as_ref().unwrap_or(&self.embedding)
    }

    fn matrices(&self) -> impl Iterator<Item = &Matrix> {
        let layers = self.layers.iter().flat_map(|l| {
            [&l.q, &l.k, &l.v, &l.o, &l.gate, &l.up, &l.down].into_iter().map(|x| &x.w)
        });
        layers.chain([&self.embedding]).chain(&self.head)
    }

    /// Bytes of all matrices.
    pub fn bytes(&self) -> usize {
        self.matrices().map(Matrix::bytes).sum()
    }

    /// Bytes that one decoded token reads: every layer and the head, not the table of embeddings.
    pub fn bytes_per_token(&self) -> usize {
        self.bytes() - if self.head.is_some() { self.embedding.bytes() } else { 0 }
    }

    /// Names of the weight types that take the generic (slower) path, each once.
    pub fn generic_types(&self) -> Vec<&'static str> {
        let mut names: Vec<_> =
            self.matrices().filter(|m| !m.is_fast()).map(|m| m.ty().name()).collect();
        names.sort_unstable();
        names.dedup();
        names
    }
}

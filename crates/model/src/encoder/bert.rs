//! BERT (Devlin et al. 2018), the encoder alone: rows that all read one another, LayerNorm after each sum,
//! learnt positions, a feed-forward block with GELU by the error function.
//!
//! F32 throughout, by the products and the attention that training uses.

use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use tessera_kernels::training::{Gemm, Heads, Sight, View, attention};
use tessera_kernels::{KernelError, Pool};

use super::files::CONFIG;
use crate::file_error::{Fault, printable, quoted};

/// What attention takes sequences in multiples of.
const LANES: usize = 16;

/// The numbers that fix a BERT.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Shape {
    pub(super) layers: usize,
    pub(super) hidden: usize,
    pub(super) ffn: usize,
    pub(super) heads: usize,
    pub(super) positions: usize,
    pub(super) vocab: usize,
    pub(super) eps: f32,
}

impl Shape {
    pub(super) fn read(config: &Value) -> Result<Self, Fault> {
        let field = |name: &str| format!("{CONFIG}: {name}");
        let told = |value: &Value| printable(&value.to_string(), 60);
        for (name, wanted, needed) in [
            ("model_type", "bert", true),
            ("hidden_act", "gelu", true),
            ("position_embedding_type", "absolute", false),
        ] {
            match config.get(name) {
                None if needed => {
                    return Err(Fault::missing(
                        field(name),
                        "give an encoder of architecture bert",
                    ));
                }
                Some(value) if value.as_str() != Some(wanted) => {
                    return Err(Fault::unsupported(field(name), told(value), wanted));
                }
                _ => {}
            }
        }
        let number = |name: &str, most: usize| match config.get(name) {
            None => Err(Fault::missing(field(name), "fetch it again")),
            Some(value) => {
                value.as_u64().map(|n| n as usize).filter(|n| (1..=most).contains(n)).ok_or_else(
                    || Fault::malformed(field(name), told(value), format!("1 to {most}")),
                )
            }
        };
        let shape = Self {
            layers: number("num_hidden_layers", 128)?,
            hidden: number("hidden_size", 1 << 14)?,
            ffn: number("intermediate_size", 1 << 16)?,
            heads: number("num_attention_heads", 256)?,
            positions: number("max_position_embeddings", 1 << 16)?,
            vocab: number("vocab_size", 1 << 20)?,
            eps: config.get("layer_norm_eps").and_then(Value::as_f64).unwrap_or(1e-12) as f32,
        };
        if !shape.hidden.is_multiple_of(shape.heads) {
            let (name, found) = (field("num_attention_heads"), shape.heads);
            return Err(Fault::malformed(name, found, format!("a divisor of {}", shape.hidden)));
        }
        Ok(shape)
    }
}

/// A projection: `y = x wᵀ + b`.
struct Linear {
    weight: Vec<f32>,
    bias: Vec<f32>,
}

impl Linear {
    /// `out = x wᵀ + b` for all rows of `x`.
    fn run(
        &self,
        pool: &Pool,
        gemm: &mut Gemm,
        x: &[f32],
        out: &mut Vec<f32>,
    ) -> Result<(), KernelError> {
        let width = self.bias.len();
        let inner = self.weight.len() / width;
        let rows = x.len() / inner;
        out.clear();
        for _ in 0..rows {
            out.extend_from_slice(&self.bias);
        }
        let weight = View::new(&self.weight, width, inner).transposed();
        gemm.run(pool, View::new(x, rows, inner), weight, out, true)
    }
}

/// `(x - mean) / sqrt(variance + eps) * weight + bias` by rows.
struct LayerNorm {
    weight: Vec<f32>,
    bias: Vec<f32>,
    eps: f32,
}

impl LayerNorm {
    fn run(&self, x: &mut [f32]) {
        let n = self.weight.len();
        for row in x.chunks_exact_mut(n) {
            let mean = (row.iter().map(|v| f64::from(*v)).sum::<f64>() / n as f64) as f32;
            let spread = row.iter().map(|v| f64::from(v - mean).powi(2)).sum::<f64>() / n as f64;
            let factor = 1.0 / (spread as f32 + self.eps).sqrt();
            for ((v, w), b) in row.iter_mut().zip(&self.weight).zip(&self.bias) {
                *v = (*v - mean) * factor * w + b;
            }
        }
    }
}

struct Layer {
    /// Queries, keys and values in one projection.
    qkv: Linear,
    output: Linear,
    attention_norm: LayerNorm,
    up: Linear,
    down: Linear,
    output_norm: LayerNorm,
}

/// Weights, and the buffers of a pass.
pub(super) struct Bert {
    shape: Shape,
    words: Vec<f32>,
    positions: Vec<f32>,
    /// What each row's position is added to: the type of a text that stands alone.
    kind: Vec<f32>,
    norm: LayerNorm,
    layers: Vec<Layer>,
    gemm: Gemm,
    x: Vec<f32>,
    wide: Vec<f32>,
    made: Vec<f32>,
    padded: Vec<f32>,
    attended: Vec<f32>,
    normalisers: Vec<f32>,
}

/// The tensors of a file, read by name and shape.
struct Tensors<'a> {
    file: SafeTensors<'a>,
    /// What names begin with: files of BERT with a head say `bert.`.
    begin: &'static str,
}

impl Tensors<'_> {
    fn floats(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, Fault> {
        let name = format!("{}{name}", self.begin);
        let field = || format!("tensor {}", quoted(&name));
        let Ok(tensor) = self.file.tensor(&name) else {
            return Err(Fault::missing(field(), "fetch the model again, or give another"));
        };
        if tensor.dtype() != Dtype::F32 {
            let found = format!("{:?}", tensor.dtype());
            return Err(Fault::unsupported(format!("{}: type", field()), found, "F32"));
        }
        if tensor.shape() != shape {
            let found = format!("{:?}", tensor.shape());
            return Err(Fault::malformed(
                format!("{}: shape", field()),
                found,
                format!("{shape:?}"),
            ));
        }
        let (floats, _) = tensor.data().as_chunks::<4>();
        Ok(floats.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
    }

    fn linear(&self, name: &str, out: usize, inner: usize) -> Result<Linear, Fault> {
        Ok(Linear {
            weight: self.floats(&format!("{name}.weight"), &[out, inner])?,
            bias: self.floats(&format!("{name}.bias"), &[out])?,
        })
    }

    fn norm(&self, name: &str, shape: &Shape) -> Result<LayerNorm, Fault> {
        Ok(LayerNorm {
            weight: self.floats(&format!("{name}.weight"), &[shape.hidden])?,
            bias: self.floats(&format!("{name}.bias"), &[shape.hidden])?,
            eps: shape.eps,
        })
    }

    fn layer(&self, l: usize, shape: &Shape) -> Result<Layer, Fault> {
        let at = |name: &str| format!("encoder.layer.{l}.{name}");
        let (hidden, ffn) = (shape.hidden, shape.ffn);
        let mut qkv = self.linear(&at("attention.self.query"), hidden, hidden)?;
        for name in ["attention.self.key", "attention.self.value"] {
            let more = self.linear(&at(name), hidden, hidden)?;
            qkv.weight.extend(more.weight);
            qkv.bias.extend(more.bias);
        }
        Ok(Layer {
            qkv,
            output: self.linear(&at("attention.output.dense"), hidden, hidden)?,
            attention_norm: self.norm(&at("attention.output.LayerNorm"), shape)?,
            up: self.linear(&at("intermediate.dense"), ffn, hidden)?,
            down: self.linear(&at("output.dense"), hidden, ffn)?,
            output_norm: self.norm(&at("output.LayerNorm"), shape)?,
        })
    }
}

impl Bert {
    /// Reads the weights of a safetensors file.
    pub(super) fn read(bytes: &[u8], shape: &Shape) -> Result<Self, Fault> {
        let file = SafeTensors::deserialize(bytes).map_err(|error| {
            let what = printable(&error.to_string(), 200);
            let found = format_args!("not readable ({what})").to_string();
            Fault::malformed(super::WEIGHTS, found, "a safetensors file")
        })?;
        let words = "embeddings.word_embeddings.weight";
        let begin = if file.tensor(words).is_ok() { "" } else { "bert." };
        let tensors = Tensors { file, begin };
        let hidden = shape.hidden;
        // How many types there are is of no use here: a text that stands alone has the first.
        let kinds = "embeddings.token_type_embeddings.weight";
        let kind_rows = tensors.file.tensor(&format!("{begin}{kinds}"));
        let kind_rows = kind_rows.ok().and_then(|t| t.shape().first().copied()).unwrap_or(2);
        let mut kind = tensors.floats(kinds, &[kind_rows, hidden])?;
        kind.truncate(hidden);
        if kind.is_empty() {
            return Err(Fault::malformed(format!("tensor {kinds}"), "empty", "at least a row"));
        }
        Ok(Self {
            words: tensors.floats(words, &[shape.vocab, hidden])?,
            positions: tensors
                .floats("embeddings.position_embeddings.weight", &[shape.positions, hidden])?,
            kind,
            norm: tensors.norm("embeddings.LayerNorm", shape)?,
            layers: (0..shape.layers).map(|l| tensors.layer(l, shape)).collect::<Result<_, _>>()?,
            gemm: Gemm::new(),
            shape: shape.clone(),
            x: Vec::new(),
            wide: Vec::new(),
            made: Vec::new(),
            padded: Vec::new(),
            attended: Vec::new(),
            normalisers: Vec::new(),
        })
    }

    /// The last rows of texts, one after the other. Errors: an empty text, or a token that is not known.
    pub(super) fn run(&mut self, pool: &Pool, texts: &[Vec<u32>]) -> Result<&[f32], String> {
        let hidden = self.shape.hidden;
        self.x.clear();
        for text in texts {
            if text.is_empty() || text.len() > self.shape.positions {
                return Err(format!("a text has {} tokens", text.len()));
            }
            for (place, &token) in text.iter().enumerate() {
                let token = token as usize;
                if token >= self.shape.vocab {
                    return Err(format!("token {token} is not one of {}", self.shape.vocab));
                }
                let word = &self.words[token * hidden..][..hidden];
                let position = &self.positions[place * hidden..][..hidden];
                let sum = word.iter().zip(position).zip(&self.kind).map(|((w, p), k)| w + p + k);
                self.x.extend(sum);
            }
        }
        self.norm.run(&mut self.x);
        for l in 0..self.layers.len() {
            self.layer(pool, l, texts).map_err(|error| error.to_string())?;
        }
        Ok(&self.x)
    }

    fn layer(&mut self, pool: &Pool, l: usize, texts: &[Vec<u32>]) -> Result<(), KernelError> {
        let layer = &self.layers[l];
        layer.qkv.run(pool, &mut self.gemm, &self.x, &mut self.wide)?;
        let hidden = self.shape.hidden;
        self.attended.clear();
        let mut at = 0;
        for text in texts {
            // Rows beyond the text are there for the kernel's sake, and no row reads them.
            let (rows, length) = (text.len(), text.len().next_multiple_of(LANES));
            let bits: Vec<bool> = (0..length * length).map(|i| i % length < rows).collect();
            self.padded.clear();
            self.padded.extend_from_slice(&self.wide[at * 3 * hidden..(at + rows) * 3 * hidden]);
            self.padded.resize(length * 3 * hidden, 0.0);
            self.made.resize(length * hidden, 0.0);
            self.normalisers.resize(self.shape.heads * length, 0.0);
            let (heads, dim) = (self.shape.heads, hidden / self.shape.heads);
            let heads = Heads { length, heads, dim, sight: Sight::Bits(&bits) };
            let (made, kept) = (&mut self.made, &mut self.normalisers);
            attention(pool, &heads, &self.padded, made, kept)?;
            self.attended.extend_from_slice(&self.made[..rows * hidden]);
            at += rows;
        }
        layer.output.run(pool, &mut self.gemm, &self.attended, &mut self.made)?;
        add(&mut self.x, &self.made);
        layer.attention_norm.run(&mut self.x);
        layer.up.run(pool, &mut self.gemm, &self.x, &mut self.wide)?;
        self.wide.iter_mut().for_each(|v| *v = gelu(*v));
        layer.down.run(pool, &mut self.gemm, &self.wide, &mut self.made)?;
        add(&mut self.x, &self.made);
        layer.output_norm.run(&mut self.x);
        Ok(())
    }
}

fn add(x: &mut [f32], y: &[f32]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

/// `x / 2 (1 + erf(x / sqrt(2)))`.
fn gelu(x: f32) -> f32 {
    0.5 * x * (1.0 + libm::erff(x * std::f32::consts::FRAC_1_SQRT_2))
}

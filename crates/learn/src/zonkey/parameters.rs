//! Weights by name, their optimiser, and the file that both live in.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::backprop::GradStore;
use candle_core::{Tensor, Var};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use tessera_model::toy::Stream;

use super::DEVICE;
use crate::files::write_whole;
use crate::{Error, Result};

/// Names under which the two moments of a weight are stored.
const MOMENTS: [&str; 2] = ["first.", "second."];
/// Largest norm of a gradient.
const CLIP: f64 = 1.0;

/// A weight with the moments of its gradient.
#[derive(Debug)]
struct Weight {
    value: Var,
    first: Tensor,
    second: Tensor,
    decays: bool,
}

/// Weights by name.
#[derive(Debug)]
pub struct Parameters {
    weights: BTreeMap<String, Weight>,
    /// Weights that a file gave and nobody has asked for yet.
    stored: BTreeMap<String, Tensor>,
    stream: Stream,
}

impl Parameters {
    /// None yet; fresh ones are drawn by `seed`.
    pub fn new(seed: u64) -> Self {
        Self { weights: BTreeMap::new(), stored: BTreeMap::new(), stream: Stream::new(seed) }
    }

    /// Reads a file of [`Parameters::save`]; returns its notes, too.
    ///
    /// # Errors
    /// A file that cannot be read or is none of these.
    pub fn load(path: &Path) -> Result<(Self, BTreeMap<String, String>)> {
        let bytes = std::fs::read(path).map_err(Error::io(path))?;
        let wrong = |e: &dyn std::fmt::Display| {
            Error::file(path, format!("is no model of zonkey: {e}. Next: `tessera zonkey train`"))
        };
        let (_, head) = SafeTensors::read_metadata(&bytes).map_err(|e| wrong(&e))?;
        let notes = head.metadata().clone().unwrap_or_default().into_iter().collect();
        let file = SafeTensors::deserialize(&bytes).map_err(|e| wrong(&e))?;
        let mut all = Self::new(0);
        for (name, view) in file.tensors() {
            if view.dtype() != Dtype::F32 {
                return Err(wrong(&"a tensor that is not f32"));
            }
            let chunks = view.data().chunks_exact(4);
            let values: Vec<f32> =
                chunks.map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
            if values.iter().any(|v| !v.is_finite()) {
                return Err(wrong(&"a value that is no number"));
            }
            all.stored.insert(name, Tensor::from_vec(values, view.shape(), &DEVICE)?);
        }
        Ok((all, notes))
    }

    /// Writes weights, moments and `notes`; whole or not at all.
    ///
    /// # Errors
    /// What the disk reports.
    pub fn save(&self, path: &Path, notes: &BTreeMap<String, String>) -> Result<()> {
        let mut blobs: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
        for (name, weight) in &self.weights {
            let [first, second] = MOMENTS.map(|m| format!("{m}{name}"));
            let parts = [
                (name.clone(), weight.value.as_tensor()),
                (first, &weight.first),
                (second, &weight.second),
            ];
            for (name, tensor) in parts {
                let values = tensor.flatten_all()?.to_vec1::<f32>()?;
                let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
                blobs.push((name, tensor.dims().to_vec(), bytes));
            }
        }
        let mut views = Vec::with_capacity(blobs.len());
        for (name, shape, bytes) in &blobs {
            let view = TensorView::new(Dtype::F32, shape.clone(), bytes)
                .map_err(|e| Error::file(path, e.to_string()))?;
            views.push((name.clone(), view));
        }
        let notes = notes.clone().into_iter().collect();
        let bytes = safetensors::serialize(views, Some(notes))
            .map_err(|e| Error::file(path, e.to_string()))?;
        write_whole(path, &bytes)
    }

    fn take(
        &mut self,
        name: &str,
        shape: &[usize],
        decays: bool,
        fresh: impl FnMut(&mut Stream) -> f32,
    ) -> Result<Tensor> {
        let mut fresh = fresh;
        let count: usize = shape.iter().product();
        let drawn: Vec<f32> = (0..count).map(|_| fresh(&mut self.stream)).collect();
        let mut stored = |name: &str| match self.stored.remove(name) {
            Some(tensor) if tensor.dims() != shape => {
                let (is, wanted) = (tensor.dims(), shape);
                let what = format!("zonkey: {name} has the shape {is:?}, not {wanted:?}");
                Err(Error::Training { what })
            }
            other => Ok(other),
        };
        let value = stored(name)?;
        let [first, second] =
            [stored(&format!("first.{name}"))?, stored(&format!("second.{name}"))?];
        let value = match value {
            Some(value) => value,
            None => Tensor::from_vec(drawn, shape, &DEVICE)?,
        };
        let zeros = || Tensor::zeros(shape, candle_core::DType::F32, &DEVICE);
        let first = first.map_or_else(zeros, Ok)?;
        let second = second.map_or_else(zeros, Ok)?;
        let value = Var::from_tensor(&value)?;
        let tensor = value.as_tensor().clone();
        self.weights.insert(name.to_owned(), Weight { value, first, second, decays });
        Ok(tensor)
    }

    /// A matrix `[rows, cols]`, normal with a deviation of `scale / sqrt(cols)`.
    ///
    /// # Errors
    /// A stored one of another shape.
    pub fn matrix(&mut self, name: &str, rows: usize, cols: usize, scale: f32) -> Result<Tensor> {
        let deviation = scale / (cols as f32).sqrt();
        self.take(name, &[rows, cols], true, |stream| deviation * stream.normal())
    }

    /// A vector of one value.
    ///
    /// # Errors
    /// As [`Parameters::matrix`].
    pub fn vector(&mut self, name: &str, length: usize, value: f32) -> Result<Tensor> {
        self.take(name, &[length], false, |_| value)
    }

    /// Number of weights.
    pub fn count(&self) -> usize {
        self.weights.values().map(|w| w.value.elem_count()).sum()
    }

    /// One step of AdamW (Loshchilov and Hutter, 2019) with clipping; `step` counts from 1. Returns the
    /// gradient's norm before clipping.
    ///
    /// # Errors
    /// None beyond a mistake of this file.
    pub fn step(&mut self, gradients: &GradStore, rate: f64, step: u64) -> Result<f64> {
        let (beta1, beta2, decay) = (0.9, 0.98, 0.01);
        let mut squares = 0.0;
        for weight in self.weights.values() {
            if let Some(gradient) = gradients.get(&weight.value) {
                squares += f64::from(gradient.sqr()?.sum_all()?.to_scalar::<f32>()?);
            }
        }
        let norm = squares.sqrt();
        let scale = (CLIP / norm.max(1e-12)).min(1.0);
        let [first, second] = [beta1, beta2].map(|b: f64| 1.0 - b.powf(step as f64));
        for weight in self.weights.values_mut() {
            let Some(gradient) = gradients.get(&weight.value) else { continue };
            let gradient = (gradient * scale)?;
            weight.first = ((&weight.first * beta1)? + (&gradient * (1.0 - beta1))?)?.detach();
            weight.second =
                ((&weight.second * beta2)? + (gradient.sqr()? * (1.0 - beta2))?)?.detach();
            let root = ((&weight.second / second)?.sqrt()? + 1e-8)?;
            let change = ((&weight.first / first)? / root)?;
            let kept = if weight.decays { 1.0 - rate * decay } else { 1.0 };
            let value = ((weight.value.as_tensor() * kept)? - (change * rate)?)?;
            weight.value.set(&value)?;
        }
        Ok(norm)
    }
}

/// `x w^T` for `w` of `[out, in]` and `x` of any number of leading dimensions.
pub(crate) fn linear(x: &Tensor, w: &Tensor) -> candle_core::Result<Tensor> {
    let mut shape = x.dims().to_vec();
    let (out, inner) = w.dims2()?;
    let rows = x.elem_count() / inner;
    let y = x.contiguous()?.reshape((rows, inner))?.matmul(&w.t()?)?;
    if let Some(last) = shape.last_mut() {
        *last = out;
    }
    y.reshape(shape)
}

/// Root-mean-square norm with a weight.
pub(crate) fn norm(x: &Tensor, w: &Tensor) -> candle_core::Result<Tensor> {
    let last = x.dims().len() - 1;
    let size = (x.sqr()?.mean_keepdim(last)? + 1e-6)?.sqrt()?;
    x.broadcast_div(&size)?.broadcast_mul(w)
}

/// `1 / (1 + exp(-x))`, as a hyperbolic tangent: its gradient is a number for every `x`.
pub(crate) fn sigmoid(x: &Tensor) -> candle_core::Result<Tensor> {
    ((x * 0.5)?.tanh()? + 1.0)? * 0.5
}

/// Softmax over the last dimension.
pub(crate) fn softmax(x: &Tensor) -> candle_core::Result<Tensor> {
    let last = x.dims().len() - 1;
    let most = x.max_keepdim(last)?.detach();
    let e = x.broadcast_sub(&most)?.exp()?;
    e.broadcast_div(&e.sum_keepdim(last)?)
}

/// Values of neighbours side by side, `kernel` of them around each place: `[.., n, d]` to
/// `[.., n, kernel * d]`, with zeros outside. A convolution is a [`linear`] map of it.
pub(crate) fn neighbours(x: &Tensor, kernel: usize) -> candle_core::Result<Tensor> {
    let (along, last) = (x.dims().len() - 2, x.dims().len() - 1);
    let n = x.dim(along)?;
    let padded = x.pad_with_zeros(along, kernel / 2, kernel / 2)?;
    let shifted: Vec<Tensor> =
        (0..kernel).map(|k| padded.narrow(along, k, n)).collect::<candle_core::Result<_>>()?;
    Tensor::cat(&shifted, last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sigmoid_has_a_gradient_everywhere() {
        let x = Var::new(&[-200f32, -1.0, 0.0, 3.0, 200.0], &DEVICE).unwrap();
        let y = sigmoid(x.as_tensor()).unwrap();
        let gradients = y.sum_all().unwrap().backward().unwrap();
        let gradient = gradients.get(&x).unwrap().to_vec1::<f32>().unwrap();
        for ((x, y), g) in
            x.to_vec1::<f32>().unwrap().iter().zip(y.to_vec1::<f32>().unwrap()).zip(gradient)
        {
            let wanted = 1.0 / (1.0 + (-f64::from(*x)).exp());
            assert!((f64::from(y) - wanted).abs() < 1e-6, "{x}: {y}");
            assert!((f64::from(g) - wanted * (1.0 - wanted)).abs() < 1e-6, "{x}: {g}");
        }
    }

    #[test]
    fn a_file_that_is_none_is_refused() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("z");
        for bytes in [&b""[..], b"nothing", &[8, 0, 0, 0, 0, 0, 0, 0, b'{']] {
            std::fs::write(&path, bytes).unwrap();
            let error = Parameters::load(&path).unwrap_err().to_string();
            assert!(error.contains("is no model of zonkey"), "{error}");
        }
    }
}

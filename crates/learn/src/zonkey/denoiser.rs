//! From a noisy vector back to characters: a small causal decoder unrolls them one after another, each from
//! its own output before it (no character is ever drawn meanwhile), and layers that read both ways refine
//! them; a head says of each how likely it still belongs to the segment.

use candle_core::{DType, Tensor};

use super::attention::{Layer, Memory};
use super::parameters::{Parameters, linear, norm, sigmoid};
use super::{DEVICE, Settings, on_sphere};
use crate::Result;

/// Layers of the causal decoder.
const UNROLLED: usize = 2;
/// Probabilities of an end stay this far away from 0 and 1.
const EDGE: f64 = 1e-4;

/// The denoiser's weights.
#[derive(Debug)]
pub struct Denoiser {
    longest: usize,
    vectors: usize,
    clean: Tensor,
    noisy: Tensor,
    unrolled: Vec<Layer>,
    layers: Vec<Layer>,
    norm: Tensor,
    head: Tensor,
}

/// What a vector unfolds to.
#[derive(Debug, Clone)]
pub struct Unfolded {
    /// Characters as vectors on the sphere: `[S, L, d]`.
    pub vectors: Tensor,
    /// Logarithms of existence: `[S, L]`, 0 for the first.
    pub existence: Tensor,
}

impl Denoiser {
    /// The denoiser of a model.
    ///
    /// # Errors
    /// Stored weights of another shape.
    pub fn new(settings: &Settings, from: &mut Parameters) -> Result<Self> {
        let d = settings.width;
        let mut stack = |part: &str, count: usize| {
            let layer = |i| Layer::new(&format!("denoiser.{part}{i}"), d, settings.heads, from);
            (0..count).map(layer).collect::<Result<Vec<Layer>>>()
        };
        let (unrolled, layers) = (stack("causal", UNROLLED)?, stack("", settings.layers)?);
        Ok(Self {
            longest: settings.longest,
            vectors: settings.vectors,
            clean: from.matrix("denoiser.clean", 1, d, 1.0)?,
            noisy: from.matrix("denoiser.noisy", 1, d, 1.0)?,
            unrolled,
            layers,
            norm: from.vector("denoiser.norm", d, 1.0)?,
            head: from.matrix("denoiser.head", 1, d, 0.5)?,
        })
    }

    /// Logarithms of existence from what is said of each vector `[S, L, d]`: the first exists, and each
    /// later one if none up to it begins another segment.
    fn existence(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let (s, n, _) = x.dims3()?;
        let z = linear(&norm(x, &self.norm)?, &self.head)?.reshape((s, n))?;
        // Like the splitter's: two in `longest` begin one where nothing is learnt.
        let share = 2.0 / self.longest as f64;
        let begins = sigmoid(&(z + (share / (1.0 - share)).ln())?)?.clamp(EDGE, 1.0 - EDGE)?;
        let mut first = vec![1f32; n];
        first[0] = 0.0;
        let first = Tensor::new(&first[..], &DEVICE)?;
        (1.0 - begins)?.log()?.broadcast_mul(&first)?.cumsum(1)
    }

    /// Vectors `[S, C * d]`, noisy with strength `t` (one a row), to characters.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn unfold(&self, z: &Tensor, t: &Tensor) -> candle_core::Result<Unfolded> {
        let (s, wide) = z.dims2()?;
        let (c, d) = (self.vectors, wide / self.vectors);
        let t = t.reshape((s, 1, 1))?;
        let [clean, noisy] = [&self.clean, &self.noisy].map(|v| v.reshape((1, 1, d)));
        let time = ((1.0 - &t)?.broadcast_mul(&clean?)? + t.broadcast_mul(&noisy?)?)?;
        let prompt = z.reshape((s, c, d))?.broadcast_add(&time)?;
        let prompt = Tensor::cat(&[&time, &prompt], 1)?;
        let mut memories = vec![Memory::default(); self.unrolled.len()];
        let mut step = |row: &Tensor| {
            let layers = self.unrolled.iter().zip(&mut memories);
            layers.into_iter().try_fold(row.clone(), |x, (layer, m)| layer.unroll(&x, m))
        };
        let mut last = prompt.narrow(1, 0, 1)?;
        for i in 0..=c {
            last = step(&prompt.narrow(1, i, 1)?)?;
        }
        // What the prompt's last row has become is fed first.
        let mut rows = Vec::with_capacity(self.longest);
        for _ in 0..self.longest {
            last = step(&last)?;
            rows.push(last.clone());
        }
        let rows = Tensor::cat(&rows, 1)?;
        let first = self.existence(&rows)?;
        let sure = Tensor::zeros((s, c + 1), DType::F32, &DEVICE)?;
        let existence = Tensor::cat(&[&sure, &first], 1)?;
        let mut x = Tensor::cat(&[&prompt, &rows], 1)?;
        for layer in &self.layers {
            x = layer.probable(&x, &existence)?;
        }
        let x = x.narrow(1, c + 1, self.longest)?.contiguous()?;
        let existence = self.existence(&x)?;
        Ok(Unfolded { vectors: on_sphere(&x)?, existence })
    }
}

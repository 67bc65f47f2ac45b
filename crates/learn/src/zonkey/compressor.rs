//! From a segment's characters to one vector: learned vectors are put before them, read them, and what
//! they have become, laid end to end, is the segment.

use candle_core::{DType, Tensor};

use super::attention::Layer;
use super::parameters::{Parameters, linear, neighbours};
use super::{DEVICE, Settings, on_sphere};
use crate::Result;

/// Characters that the convolution before the layers sees.
const KERNEL: usize = 3;

/// The compressor's weights.
#[derive(Debug)]
pub struct Compressor {
    convolution: Tensor,
    vectors: Tensor,
    layers: Vec<Layer>,
}

impl Compressor {
    /// The compressor of a model.
    ///
    /// # Errors
    /// Stored weights of another shape.
    pub fn new(settings: &Settings, from: &mut Parameters) -> Result<Self> {
        let d = settings.width;
        let layer = |i| Layer::new(&format!("compressor.{i}"), d, settings.heads, from);
        let layers = (0..settings.layers).map(layer).collect::<Result<_>>()?;
        Ok(Self {
            convolution: from.matrix("compressor.conv", d, KERNEL * d, 0.5)?,
            vectors: from.matrix("compressor.vectors", settings.vectors, d, (d as f32).sqrt())?,
            layers,
        })
    }

    /// Segments `[S, L, d]` with logarithms of existence `[S, L]` to vectors `[S, C * d]` on the sphere.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn compress(&self, x: &Tensor, existence: &Tensor) -> candle_core::Result<Tensor> {
        let (s, _, d) = x.dims3()?;
        let c = self.vectors.dim(0)?;
        let x = (x + linear(&neighbours(x, KERNEL)?, &self.convolution)?)?;
        let before = self.vectors.unsqueeze(0)?.broadcast_as((s, c, d))?.contiguous()?;
        let mut x = Tensor::cat(&[&before, &x], 1)?;
        let sure = Tensor::zeros((s, c), DType::F32, &DEVICE)?;
        let existence = Tensor::cat(&[&sure, existence], 1)?;
        for layer in &self.layers {
            x = layer.probable(&x, &existence)?;
        }
        let own = (x.narrow(1, 0, c)? - before)?;
        on_sphere(&own.reshape((s, c * d))?)
    }
}

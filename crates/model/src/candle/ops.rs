//! The few tensor operations of a decoder layer, each from candle's differentiable primitives.

use candle_core::{D, DType, Device, Result, Tensor};

use crate::arch::Pairing;

/// `x * weight / rms(x)` over the last dimension.
pub(super) fn rms_norm(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    let mean = x.sqr()?.mean_keepdim(D::Minus1)?;
    x.broadcast_div(&(mean + f64::from(eps))?.sqrt()?)?.broadcast_mul(weight)
}

/// `x W^T + b` with `W` of `n x k`.
pub(super) fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let y = x.matmul(&weight.t()?)?;
    match bias {
        Some(bias) => y.broadcast_add(bias),
        None => Ok(y),
    }
}

/// `cap * tanh(x / cap)`.
pub(super) fn soft_cap(x: Tensor, cap: Option<f32>) -> Result<Tensor> {
    match cap {
        Some(cap) => (x / f64::from(cap))?.tanh()? * f64::from(cap),
        None => Ok(x),
    }
}

/// Softmax over the last dimension; all inputs must be finite.
pub(super) fn softmax(x: &Tensor) -> Result<Tensor> {
    // The maximum cancels, so no gradient has to flow through it.
    let e = x.broadcast_sub(&x.max_keepdim(D::Minus1)?.detach())?.exp()?;
    e.broadcast_div(&e.sum_keepdim(D::Minus1)?)
}

/// Rounds to half precision and back.
pub(super) fn round_half(x: &Tensor) -> Result<Tensor> {
    x.to_dtype(DType::F16)?.to_dtype(DType::F32)
}

/// The rotary encoding of one layer.
#[derive(Debug, Clone)]
pub(super) struct Rope {
    /// Radians a position, one per pair.
    steps: Vec<f64>,
    pairing: Pairing,
}

impl Rope {
    pub(super) fn new(
        base: f32,
        head_dim: usize,
        factors: Option<&[f32]>,
        pairing: Pairing,
    ) -> Self {
        let step = |i: usize| {
            let plain = f64::from(base).powf(-2.0 * i as f64 / head_dim as f64);
            plain / factors.and_then(|f| f.get(i)).map_or(1.0, |f| f64::from(*f))
        };
        Self { steps: (0..head_dim / 2).map(step).collect(), pairing }
    }

    /// Turns `x` (`rows x heads x head_dim`) by each row's position.
    pub(super) fn apply(
        &self,
        x: &Tensor,
        positions: impl ExactSizeIterator<Item = u32>,
        device: &Device,
    ) -> Result<Tensor> {
        self.turn(x, positions.map(f64::from), device)
    }

    /// Turns `x` back: what [`Rope::apply`] with the same positions undoes.
    pub(super) fn undo(&self, x: &Tensor, positions: &[u32], device: &Device) -> Result<Tensor> {
        self.turn(x, positions.iter().map(|&p| -f64::from(p)), device)
    }

    fn turn(
        &self,
        x: &Tensor,
        positions: impl ExactSizeIterator<Item = f64>,
        device: &Device,
    ) -> Result<Tensor> {
        let (rows, half) = (positions.len(), self.steps.len());
        let mut cos = Vec::with_capacity(rows * half);
        let mut sin = Vec::with_capacity(rows * half);
        for p in positions {
            for step in &self.steps {
                // In f64: an f32 angle is off by 1e-4 already at position 4,000.
                let (s, c) = (p * step).sin_cos();
                cos.push(c as f32);
                sin.push(s as f32);
            }
        }
        let cos = Tensor::from_vec(cos, (rows, 1, half), device)?;
        let sin = Tensor::from_vec(sin, (rows, 1, half), device)?;
        let (_, heads, width) = x.dims3()?;
        let (a, b) = match self.pairing {
            Pairing::Halves => (x.narrow(2, 0, half)?, x.narrow(2, half, half)?),
            Pairing::Interleaved => {
                let pairs = x.reshape((rows, heads, half, 2))?;
                (pairs.narrow(3, 0, 1)?.squeeze(3)?, pairs.narrow(3, 1, 1)?.squeeze(3)?)
            }
        };
        let first = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
        let second = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
        match self.pairing {
            Pairing::Halves => Tensor::cat(&[first, second], 2),
            Pairing::Interleaved => {
                Tensor::stack(&[first, second], 3)?.reshape((rows, heads, width))
            }
        }
    }
}

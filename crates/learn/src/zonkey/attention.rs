//! Probabilistic attention: a later key counts only with the probability that it exists, given that the
//! query exists. Logit(q, k) = q.k / sqrt(dh) + (ln e_k - ln e_q if k > q, else 0).

use candle_core::{DType, Tensor};

use super::DEVICE;
use super::parameters::{Parameters, linear, norm, sigmoid, softmax};
use crate::Result;

/// The logarithm of an existence of 0.
pub const NEVER: f64 = -1e9;

/// Pairs of places with `k > q`: `[n, n]` of zeros and ones.
fn later(n: usize) -> candle_core::Result<Tensor> {
    let bits: Vec<f32> = (0..n * n).map(|i| f32::from(i % n > i / n)).collect();
    Tensor::from_vec(bits, (n, n), &DEVICE)
}

/// The bias of every pair from logarithms of existence `[S, n]`: `[S, 1, n, n]`.
///
/// # Errors
/// Another number of dimensions.
pub fn bias(existence: &Tensor) -> candle_core::Result<Tensor> {
    let n = existence.dim(1)?;
    let (keys, queries) = (existence.unsqueeze(1)?, existence.unsqueeze(2)?);
    keys.broadcast_sub(&queries)?.broadcast_mul(&later(n)?)?.unsqueeze(1)
}

/// A bias that hides later keys: `[1, 1, n, n]`.
///
/// # Errors
/// None.
pub fn causal(n: usize) -> candle_core::Result<Tensor> {
    (later(n)? * NEVER)?.reshape((1, 1, n, n))
}

/// A bias that hides keys further away than `reach`: `[1, 1, n, n]`.
///
/// # Errors
/// None.
pub fn near(n: usize, reach: usize) -> candle_core::Result<Tensor> {
    let far = |i: usize| (i % n).abs_diff(i / n) > reach;
    let values: Vec<f32> = (0..n * n).map(|i| if far(i) { NEVER as f32 } else { 0.0 }).collect();
    Tensor::from_vec(values, (1, 1, n, n), &DEVICE)
}

/// 1 where the logarithm of existence is above [`NEVER`]: `[S, n, 1]`.
fn alive(existence: &Tensor) -> candle_core::Result<Tensor> {
    existence.ge(NEVER / 2.0)?.to_dtype(DType::F32)?.unsqueeze(2)
}

/// Sines and cosines of places: `[n, d]`.
fn places(first: usize, n: usize, d: usize) -> candle_core::Result<Tensor> {
    let value = |i: usize| {
        let (place, at) = ((first + i / d) as f64, i % d);
        let angle = place / 1000f64.powf((at / 2 * 2) as f64 / d as f64);
        (if at % 2 == 0 { angle.sin() } else { angle.cos() }) as f32
    };
    Tensor::from_vec((0..n * d).map(value).collect::<Vec<f32>>(), (n, d), &DEVICE)
}

/// A transformer layer: attention with a sigmoid gate a head, and a gated feed-forward block.
#[derive(Debug)]
pub struct Layer {
    heads: usize,
    norm1: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    gate: Tensor,
    norm2: Tensor,
    up: Tensor,
    gated: Tensor,
    down: Tensor,
}

/// Keys and values of the rows so far, of a layer that unrolls.
#[derive(Debug, Default, Clone)]
pub struct Memory {
    rows: Option<(Tensor, Tensor)>,
}

impl Layer {
    /// The layer called `name`, of width `d`.
    ///
    /// # Errors
    /// Stored weights of another shape.
    pub fn new(name: &str, d: usize, heads: usize, from: &mut Parameters) -> Result<Self> {
        let mut matrix = |part: &str, rows, cols, scale| {
            from.matrix(&format!("{name}.{part}"), rows, cols, scale)
        };
        let [q, k, v] = [matrix("q", d, d, 0.7)?, matrix("k", d, d, 0.7)?, matrix("v", d, d, 0.7)?];
        let (out, gate) = (matrix("out", d, d, 0.3)?, matrix("gate", heads, d, 0.1)?);
        let (up, gated) = (matrix("up", 2 * d, d, 0.7)?, matrix("gated", 2 * d, d, 0.7)?);
        let down = matrix("down", d, 2 * d, 0.3)?;
        let norm1 = from.vector(&format!("{name}.norm1"), d, 1.0)?;
        let norm2 = from.vector(&format!("{name}.norm2"), d, 1.0)?;
        Ok(Self { heads, norm1, q, k, v, out, gate, norm2, up, gated, down })
    }

    /// `[S, n, d]` to `[S, heads, n, d / heads]`.
    fn split(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let (s, n, d) = x.dims3()?;
        x.reshape((s, n, self.heads, d / self.heads))?.transpose(1, 2)?.contiguous()
    }

    /// Rows `[S, n, d]` that read one another under `bias`, and the rows of `memory` before them, which
    /// grows by them.
    fn mixed(
        &self,
        x: &Tensor,
        bias: Option<&Tensor>,
        memory: &mut Memory,
    ) -> candle_core::Result<Tensor> {
        let (s, n, d) = x.dims3()?;
        let h = norm(x, &self.norm1)?;
        let before = memory.rows.as_ref().map_or(Ok(0), |(k, _)| k.dim(2))?;
        let places = places(before, n, d)?;
        let q = self.split(&linear(&h, &self.q)?.broadcast_add(&places)?)?;
        let mut k = self.split(&linear(&h, &self.k)?.broadcast_add(&places)?)?;
        let mut v = self.split(&linear(&h, &self.v)?)?;
        if let Some((old_k, old_v)) = &memory.rows {
            k = Tensor::cat(&[old_k, &k], 2)?;
            v = Tensor::cat(&[old_v, &v], 2)?;
        }
        memory.rows = Some((k.clone(), v.clone()));
        let mut logits =
            (q.matmul(&k.transpose(2, 3)?.contiguous()?)? / ((d / self.heads) as f64).sqrt())?;
        if let Some(bias) = bias {
            logits = logits.broadcast_add(bias)?;
        }
        let y = softmax(&logits)?.matmul(&v.contiguous()?)?;
        let gates = sigmoid(&linear(&h, &self.gate)?)?.transpose(1, 2)?.unsqueeze(3)?;
        let y = y.broadcast_mul(&gates)?.transpose(1, 2)?.contiguous()?.reshape((s, n, d))?;
        linear(&y, &self.out)
    }

    fn fed(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let h = norm(x, &self.norm2)?;
        let gate = linear(&h, &self.gated)?;
        let gate = (&gate * sigmoid(&gate)?)?;
        linear(&(gate * linear(&h, &self.up)?)?, &self.down)
    }

    /// Rows `[S, n, d]` under a bias of [`causal`] or [`near`].
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn forward(&self, x: &Tensor, bias: &Tensor) -> candle_core::Result<Tensor> {
        let x = (x + self.mixed(x, Some(bias), &mut Memory::default())?)?;
        &x + self.fed(&x)?
    }

    /// Rows `[S, n, d]` that exist with the logarithms `existence` of `[S, n]`; rows that never do become
    /// zero.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn probable(&self, x: &Tensor, existence: &Tensor) -> candle_core::Result<Tensor> {
        self.forward(x, &bias(existence)?)?.broadcast_mul(&alive(existence)?)
    }

    /// One more row `[S, 1, d]` behind those of `memory`.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn unroll(&self, x: &Tensor, memory: &mut Memory) -> candle_core::Result<Tensor> {
        let x = (x + self.mixed(x, None, memory)?)?;
        &x + self.fed(&x)?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer() -> Layer {
        Layer::new("toy", 16, 2, &mut Parameters::new(5)).unwrap()
    }

    fn rows(s: usize, n: usize) -> Tensor {
        let mut stream = tessera_model::toy::Stream::new(9);
        let values: Vec<f32> = (0..s * n * 16).map(|_| stream.normal()).collect();
        Tensor::from_vec(values, (s, n, 16), &DEVICE).unwrap()
    }

    fn values(x: &Tensor) -> Vec<f32> {
        x.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn rows_that_all_exist_read_one_another() {
        let (layer, x) = (layer(), rows(2, 7));
        let sure = Tensor::zeros((2, 7), DType::F32, &DEVICE).unwrap();
        let plain = layer.forward(&x, &near(7, 7).unwrap()).unwrap();
        assert_eq!(values(&layer.probable(&x, &sure).unwrap()), values(&plain));
    }

    #[test]
    fn rows_that_never_exist_are_as_good_as_cut_off() {
        let (layer, x) = (layer(), rows(2, 7));
        let never = NEVER as f32;
        let row = [0.0, 0.0, 0.0, 0.0, never, never, never];
        let existence = Tensor::new(&[row, row], &DEVICE).unwrap();
        let found = layer.probable(&x, &existence).unwrap();
        let short = Tensor::zeros((2, 4), DType::F32, &DEVICE).unwrap();
        let cut = layer.probable(&x.narrow(1, 0, 4).unwrap(), &short).unwrap();
        let kept = found.narrow(1, 0, 4).unwrap();
        let close = values(&kept).iter().zip(values(&cut)).all(|(a, b)| (a - b).abs() < 1e-5);
        assert!(close);
        assert!(values(&found.narrow(1, 4, 3).unwrap()).iter().all(|&v| v == 0.0));
    }

    #[test]
    fn the_bias_of_the_worked_example() {
        // e = (1, .8, .4, .36): key 3 from position 1 has ln(.36 / .8), key 1 from position 3 nothing.
        let e = Tensor::new(&[[1f32, 0.8, 0.4, 0.36]], &DEVICE).unwrap().log().unwrap();
        let all = bias(&e).unwrap().reshape((4, 4)).unwrap().to_vec2::<f32>().unwrap();
        assert!((all[1][3] + 0.7985).abs() < 1e-3);
        assert_eq!((all[3][1], all[2][2]), (0.0, 0.0));
    }

    #[test]
    fn unrolling_is_the_causal_pass() {
        let (layer, x) = (layer(), rows(2, 5));
        let whole = layer.forward(&x, &causal(5).unwrap()).unwrap();
        let mut memory = Memory::default();
        for i in 0..5 {
            let row = layer.unroll(&x.narrow(1, i, 1).unwrap(), &mut memory).unwrap();
            let wanted = whole.narrow(1, i, 1).unwrap();
            assert!(values(&row).iter().zip(values(&wanted)).all(|(a, b)| (a - b).abs() < 1e-5));
        }
    }
}

//! Stand-in.
#![allow(missing_docs, clippy::all)]
use tessera_kernels::{KernelError, Pool};
type R<T> = Result<T, KernelError>;
pub fn rms_norm(_p: &Pool, x: &[f32], w: &[f32], eps: f32, out: &mut [f32]) -> R<()> {
    out.copy_from_slice(x);
    rms_norm_in_place(_p, out, w, eps)
}
pub fn rms_norm_in_place(_p: &Pool, x: &mut [f32], w: &[f32], eps: f32) -> R<()> {
    for r in x.chunks_exact_mut(w.len()) {
        let s: f32 = r.iter().map(|v| v * v).sum();
        let i = 1.0 / (s / w.len() as f32 + eps).sqrt();
        for (v, w) in r.iter_mut().zip(w) {
            *v = *v * i * w;
        }
    }
    Ok(())
}
pub fn add(_p: &Pool, x: &mut [f32], y: &[f32]) -> R<()> {
    for (a, b) in x.iter_mut().zip(y) {
        *a += b;
    }
    Ok(())
}
pub fn silu_mul(_p: &Pool, x: &mut [f32], y: &[f32]) -> R<()> {
    for (a, b) in x.iter_mut().zip(y) {
        *a = *a / (1.0 + (-*a).exp()) * b;
    }
    Ok(())
}
pub fn gelu_tanh_mul(_p: &Pool, x: &mut [f32], y: &[f32]) -> R<()> {
    for (a, b) in x.iter_mut().zip(y) {
        let t = 0.797_884_6 * (*a + 0.044715 * *a * *a * *a);
        *a = 0.5 * *a * (1.0 + t.tanh()) * b;
    }
    Ok(())
}
pub fn softcap(_p: &Pool, x: &mut [f32], cap: f32) -> R<()> {
    for a in x.iter_mut() {
        *a = cap * (*a / cap).tanh();
    }
    Ok(())
}
pub struct Rope {
    inv: Vec<f64>,
    inter: bool,
}
impl Rope {
    pub fn new(dim: usize, base: f32, factors: Option<&[f32]>, inter: bool) -> R<Rope> {
        let inv = (0..dim / 2)
            .map(|i| {
                (base as f64).powf(-2.0 * i as f64 / dim as f64)
                    / factors.map_or(1.0, |f| f[i] as f64)
            })
            .collect();
        Ok(Rope { inv, inter })
    }
    pub fn apply(&self, _p: &Pool, x: &mut [f32], heads: usize, dim: usize, pos: &[u32]) -> R<()> {
        for (row, &p) in x.chunks_exact_mut(heads * dim).zip(pos) {
            for h in row.chunks_exact_mut(dim) {
                for i in 0..dim / 2 {
                    let (s, c) = (p as f64 * self.inv[i]).sin_cos();
                    let (a, b) = if self.inter { (2 * i, 2 * i + 1) } else { (i, i + dim / 2) };
                    let (u, v) = (h[a], h[b]);
                    h[a] = u * c as f32 - v * s as f32;
                    h[b] = u * s as f32 + v * c as f32;
                }
            }
        }
        Ok(())
    }
}

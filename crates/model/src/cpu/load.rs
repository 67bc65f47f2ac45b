//! Packs a model's weights for the kernels, tensor by tensor.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use tessera_kernels::elementwise::Rope;
use tessera_kernels::{Matrix, Pool, WeightType};

use super::weights::{Layer, Linear, Weights};
use super::{Arithmetic, CpuBackbone};
use crate::arch::{Blueprint, Pairing};
use crate::source::{LoadError, TensorSource};

/// How a model is put on the CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Threads of every pass, the caller included; 0 takes all cores.
    pub threads: usize,
    /// What products compute with.
    pub arithmetic: Arithmetic,
}

impl Default for Options {
    fn default() -> Self {
        Self { threads: 0, arithmetic: Arithmetic::Int8 }
    }
}

impl CpuBackbone {
    /// Packs the weights of `source` as `blueprint` names them. `progress` is told the bytes
    /// packed so far, from any thread.
    ///
    /// # Errors
    /// [`LoadError`] for a tensor that is missing, has another shape or cannot be read.
    pub fn load(
        blueprint: Blueprint,
        source: &dyn TensorSource,
        options: Options,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<Self, LoadError> {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        let threads = if options.threads == 0 { cores() } else { options.threads };
        Self::load_on(Arc::new(Pool::new(threads)), blueprint, source, options.arithmetic, progress)
    }

    /// [`CpuBackbone::load`] on the threads of another model. Two models that take turns, as a
    /// draft model and its target do, then never have idle workers spinning beside busy ones.
    ///
    /// # Errors
    /// As [`CpuBackbone::load`].
    pub fn load_on(
        pool: Arc<Pool>,
        blueprint: Blueprint,
        source: &dyn TensorSource,
        arithmetic: Arithmetic,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<Self, LoadError> {
        let weights =
            Loader { source, b: &blueprint, pool: &pool, progress, done: AtomicU64::new(0) }
                .weights()?;
        let mut bases: Vec<f32> = Vec::new();
        let mut rope_of_layer = Vec::new();
        for layer in &blueprint.layers {
            let known = bases.iter().position(|b| b.to_bits() == layer.rope_base.to_bits());
            rope_of_layer.push(known.unwrap_or(bases.len()));
            if known.is_none() {
                bases.push(layer.rope_base);
            }
        }
        let dim = blueprint.spec.head_dim;
        let factors = blueprint.rope_factors.as_deref();
        let ropes = bases
            .iter()
            .map(|&base| Rope::new(dim, base, factors, blueprint.pairing == Pairing::Interleaved))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| LoadError::tensor("rope_freqs", e.to_string()))?;
        Ok(Self {
            mixed: !weights.generic_types().is_empty(),
            blueprint,
            weights,
            ropes,
            rope_of_layer,
            arithmetic,
            pool,
            scratch: Mutex::default(),
        })
    }
}

struct Loader<'a> {
    source: &'a dyn TensorSource,
    b: &'a Blueprint,
    pool: &'a Pool,
    progress: &'a (dyn Fn(u64) + Sync),
    done: AtomicU64,
}

impl Loader<'_> {
    fn weights(&self) -> Result<Weights, LoadError> {
        let (b, spec) = (self.b, &self.b.spec);
        // Layers are independent: the threads of the pool pack them side by side. One raw tensor
        // per thread is in memory at a time.
        let slots: Vec<Mutex<Option<Result<Layer, LoadError>>>> =
            (0..spec.layers).map(|_| Mutex::new(None)).collect();
        self.pool.run(spec.layers, &|l| {
            let layer = self.layer(l);
            if let Ok(mut slot) = slots[l].lock() {
                *slot = Some(layer);
            }
        });
        let mut layers = Vec::with_capacity(spec.layers);
        for slot in slots {
            match slot.into_inner() {
                Ok(Some(layer)) => layers.push(layer?),
                Ok(None) | Err(_) => {
                    return Err(LoadError::tensor("blk", "a layer was not packed"));
                }
            }
        }
        let mut raw = Vec::new();
        let head = if b.tied {
            None
        } else {
            Some(self.matrix("output.weight", spec.vocab, spec.hidden, &mut raw)?)
        };
        Ok(Weights {
            embedding: self.matrix("token_embd.weight", spec.vocab, spec.hidden, &mut raw)?,
            layers,
            output_norm: self.vector("output_norm.weight", spec.hidden, &mut raw)?,
            head,
        })
    }

    fn layer(&self, l: usize) -> Result<Layer, LoadError> {
        let (b, spec) = (self.b, &self.b.spec);
        let (qw, kw) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
        let raw = &mut Vec::new();
        let name = |part: &str| format!("blk.{l}.{part}.weight");
        let norm = |part: &str, wanted: bool, width: usize, raw: &mut Vec<u8>| {
            wanted.then(|| self.vector(&name(part), width, raw)).transpose()
        };
        let linear = |part: &str, n_out: usize, k: usize, biased: bool, raw: &mut Vec<u8>| {
            let bias = format!("blk.{l}.{part}.bias");
            Ok::<_, LoadError>(Linear {
                w: self.matrix(&name(part), n_out, k, raw)?,
                bias: biased.then(|| self.vector(&bias, n_out, raw)).transpose()?,
            })
        };
        Ok(Layer {
            attn_norm: self.vector(&name("attn_norm"), spec.hidden, raw)?,
            q: linear("attn_q", qw, spec.hidden, b.qkv_bias, raw)?,
            k: linear("attn_k", kw, spec.hidden, b.qkv_bias, raw)?,
            v: linear("attn_v", kw, spec.hidden, b.qkv_bias, raw)?,
            q_norm: norm("attn_q_norm", b.qk_norm, spec.head_dim, raw)?,
            k_norm: norm("attn_k_norm", b.qk_norm, spec.head_dim, raw)?,
            o: linear("attn_output", spec.hidden, qw, false, raw)?,
            post_attention_norm: norm("post_attention_norm", b.post_norms, spec.hidden, raw)?,
            ffn_norm: self.vector(&name("ffn_norm"), spec.hidden, raw)?,
            gate: linear("ffn_gate", b.ffn, spec.hidden, false, raw)?,
            up: linear("ffn_up", b.ffn, spec.hidden, false, raw)?,
            down: linear("ffn_down", spec.hidden, b.ffn, false, raw)?,
            post_ffw_norm: norm("post_ffw_norm", b.post_norms, spec.hidden, raw)?,
        })
    }

    fn matrix(
        &self,
        name: &str,
        n_out: usize,
        k: usize,
        raw: &mut Vec<u8>,
    ) -> Result<Matrix, LoadError> {
        let ty = self.fetch(name, &[n_out, k], raw)?;
        Matrix::pack(ty, raw, n_out, k).map_err(|e| LoadError::tensor(name, e.to_string()))
    }

    fn vector(&self, name: &str, n: usize, raw: &mut Vec<u8>) -> Result<Vec<f32>, LoadError> {
        let ty = self.fetch(name, &[n], raw)?;
        let mut out = vec![0.0; n];
        tessera_kernels::dequantize(ty, raw, &mut out)
            .map_err(|e| LoadError::tensor(name, e.to_string()))?;
        Ok(out)
    }

    fn fetch(
        &self,
        name: &str,
        shape: &[usize],
        raw: &mut Vec<u8>,
    ) -> Result<WeightType, LoadError> {
        let (ty, found) = self.source.read(name, raw)?;
        if found != shape {
            return Err(LoadError::tensor(
                name,
                format!("has shape {found:?}, expected {shape:?}"),
            ));
        }
        let bytes = raw.len() as u64;
        (self.progress)(self.done.fetch_add(bytes, Ordering::Relaxed) + bytes);
        Ok(ty)
    }
}

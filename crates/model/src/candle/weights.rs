//! A blueprint's tensors on a candle device, dequantised to `f32`.

use candle_core::{Device, Tensor, Var};
use tessera_kernels::dequantize;

use super::ops::Rope;
use crate::arch::Blueprint;
use crate::source::{LoadError, TensorSource};

pub(super) struct Linear {
    /// `n x k`.
    pub weight: Tensor,
    pub bias: Option<Tensor>,
}

pub(super) struct Layer {
    pub attn_norm: Tensor,
    pub q: Linear,
    pub k: Linear,
    pub v: Linear,
    pub output: Linear,
    /// Norms of q and k.
    pub qk_norm: Option<(Tensor, Tensor)>,
    pub ffn_norm: Tensor,
    pub gate: Linear,
    pub up: Linear,
    pub down: Linear,
    /// Norms after attention and feed-forward.
    pub post_norms: Option<(Tensor, Tensor)>,
    pub rope: Rope,
    pub window: Option<u32>,
}

pub(super) struct Weights {
    pub embedding: Tensor,
    pub layers: Vec<Layer>,
    pub norm: Tensor,
    /// `None` when the head is the embedding table.
    pub head: Option<Tensor>,
    /// The tensors as variables, if they were asked for as such.
    pub vars: Vec<(String, Var)>,
}

struct Loader<'a, S: ?Sized> {
    source: &'a S,
    device: &'a Device,
    train: bool,
    vars: Vec<(String, Var)>,
    /// The tensor being read, as stored.
    bytes: Vec<u8>,
}

impl<S: TensorSource + ?Sized> Loader<'_, S> {
    fn get(&mut self, name: String, shape: &[usize]) -> Result<Tensor, LoadError> {
        let (ty, found) = self.source.read(&name, &mut self.bytes)?;
        if found != shape {
            let what = format!("its shape is {found:?}, the architecture needs {shape:?}");
            return Err(LoadError::tensor(name, what));
        }
        let mut values = vec![0f32; shape.iter().product()];
        dequantize(ty, &self.bytes, &mut values)
            .map_err(|e| LoadError::tensor(&name, e.to_string()))?;
        let on_device = || -> candle_core::Result<(Tensor, Option<Var>)> {
            let tensor = Tensor::from_vec(values, shape, self.device)?;
            if !self.train {
                return Ok((tensor, None));
            }
            let var = Var::from_tensor(&tensor)?;
            Ok((var.as_tensor().clone(), Some(var)))
        };
        let (tensor, var) = on_device().map_err(|e| LoadError::tensor(&name, e.to_string()))?;
        self.vars.extend(var.map(|var| (name, var)));
        Ok(tensor)
    }

    fn linear(&mut self, name: &str, n: usize, k: usize, bias: bool) -> Result<Linear, LoadError> {
        let weight = self.get(format!("{name}.weight"), &[n, k])?;
        let bias = if bias { Some(self.get(format!("{name}.bias"), &[n])?) } else { None };
        Ok(Linear { weight, bias })
    }

    fn pair(&mut self, a: String, b: String, n: usize) -> Result<(Tensor, Tensor), LoadError> {
        Ok((self.get(a, &[n])?, self.get(b, &[n])?))
    }
}

impl Weights {
    pub(super) fn load<S: TensorSource + ?Sized>(
        blueprint: &Blueprint,
        source: &S,
        device: &Device,
        train: bool,
    ) -> Result<Self, LoadError> {
        check(blueprint)?;
        let spec = &blueprint.spec;
        let (hidden, d) = (spec.hidden, spec.head_dim);
        let (q, kv) = (spec.heads * d, spec.kv_heads * d);
        let bias = blueprint.qkv_bias;
        let mut load = Loader { source, device, train, vars: Vec::new(), bytes: Vec::new() };
        let embedding = load.get("token_embd.weight".into(), &[spec.vocab, hidden])?;
        let mut layers = Vec::with_capacity(spec.layers);
        for (i, plan) in blueprint.layers.iter().enumerate() {
            let name = |part: &str| format!("blk.{i}.{part}");
            let qk_norm = if blueprint.qk_norm {
                Some(load.pair(name("attn_q_norm.weight"), name("attn_k_norm.weight"), d)?)
            } else {
                None
            };
            let post_norms = if blueprint.post_norms {
                let after = name("post_attention_norm.weight");
                Some(load.pair(after, name("post_ffw_norm.weight"), hidden)?)
            } else {
                None
            };
            // Models that stretch their context stretch the layers that see all of it.
            let factors = blueprint.rope_factors.as_deref().filter(|_| plan.window.is_none());
            layers.push(Layer {
                attn_norm: load.get(name("attn_norm.weight"), &[hidden])?,
                q: load.linear(&name("attn_q"), q, hidden, bias)?,
                k: load.linear(&name("attn_k"), kv, hidden, bias)?,
                v: load.linear(&name("attn_v"), kv, hidden, bias)?,
                output: load.linear(&name("attn_output"), hidden, q, false)?,
                qk_norm,
                ffn_norm: load.get(name("ffn_norm.weight"), &[hidden])?,
                gate: load.linear(&name("ffn_gate"), blueprint.ffn, hidden, false)?,
                up: load.linear(&name("ffn_up"), blueprint.ffn, hidden, false)?,
                down: load.linear(&name("ffn_down"), hidden, blueprint.ffn, false)?,
                post_norms,
                rope: Rope::new(plan.rope_base, d, factors, blueprint.pairing),
                window: plan.window,
            });
        }
        let norm = load.get("output_norm.weight".into(), &[hidden])?;
        let head = if blueprint.tied {
            None
        } else {
            Some(load.get("output.weight".into(), &[spec.vocab, hidden])?)
        };
        Ok(Self { embedding, layers, norm, head, vars: load.vars })
    }
}

fn check(blueprint: &Blueprint) -> Result<(), LoadError> {
    let spec = &blueprint.spec;
    let wrong = if blueprint.layers.len() != spec.layers {
        format!("{} layer plans for {} layers", blueprint.layers.len(), spec.layers)
    } else if spec.kv_heads == 0 || !spec.heads.is_multiple_of(spec.kv_heads) {
        format!("{} heads cannot share {} key heads", spec.heads, spec.kv_heads)
    } else if spec.head_dim == 0 || !spec.head_dim.is_multiple_of(2) {
        format!("a head width of {} has no pairs to turn", spec.head_dim)
    } else if let Some(f) = &blueprint.rope_factors
        && f.len() != spec.head_dim / 2
    {
        format!("{} rotary factors for {} pairs", f.len(), spec.head_dim / 2)
    } else {
        return Ok(());
    };
    Err(LoadError::tensor("token_embd.weight", format!("the blueprint has {wrong}")))
}

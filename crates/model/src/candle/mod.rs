//! The second backbone: [`Blueprint`]s on candle, in `f32`, differentiable.
//!
//! It runs the same passes as the cpu backbone from dequantised weights, so it is what parity
//! tests compare with, what fidelity is judged against, and what training differentiates through.
//! On the CPU it uses candle's own products; with the cargo features `cuda` and `metal` the same
//! code runs on those devices (no test here covers them).
//!
//! What the pass leaves open is settled here as follows:
//! - Rows without a key to read (query-only rows over an empty cache, say) attend to nothing: the
//!   output of attention is zero for them.
//! - Rows that [`tessera_core::Sites::keep`] drops are zeros in later taps, cannot be asked for
//!   logits, and are not written in later layers: appended, the cache holds them only in the layers
//!   they reached; refreshed, they keep their old content in the others, where it is read.
//! - A layer that does not run holds zeros for appended rows and the old content of refreshed ones;
//!   its taps are empty.
//! - A row that [`tessera_core::Sites::read`] names but [`tessera_core::Segment::keys`] does not
//!   is not read.
//! - Soft caps bend scores before the bias is added.

mod attend;
mod ops;
mod run;
mod sight;
mod store;
mod stream;
mod weights;

use candle_core::{Device, Tensor, Var};
use tessera_core::{
    Backbone, CacheOptions, Capabilities, Error, KvStore, ModelSpec, Pass, Result, Reveal,
    SegmentReveal,
};

pub use store::CandleStore;

use crate::arch::Blueprint;
use crate::source::{LoadError, TensorSource};
use weights::Weights;

const NAME: &str = "candle";

/// What stops a pass: candle's own error, or one of the contract's.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
    #[error(transparent)]
    Core(#[from] Error),
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Core(error) => error,
            Failure::Candle(error) => Self::Backbone {
                backbone: NAME.into(),
                // The alternate form adds a stack trace where one was captured.
                what: error.to_string().lines().next().unwrap_or_default().to_owned(),
            },
        }
    }
}

/// Threads of candle's products on the CPU: `RAYON_NUM_THREADS`, or all cores.
pub fn threads() -> usize {
    candle_core::utils::get_num_threads()
}

/// How a [`CandleBackbone`] is made.
#[derive(Debug, Clone)]
pub struct CandleOptions {
    /// Where tensors live.
    pub device: Device,
    /// Whether keys and values are rounded to half precision before any use, as the cpu backbone
    /// stores them. `false` is plain `f32` throughout: the reference for fidelity.
    pub kv_f16: bool,
    /// Whether weights are variables, so that gradients reach them.
    pub train: bool,
}

impl Default for CandleOptions {
    fn default() -> Self {
        Self { device: Device::Cpu, kv_f16: true, train: false }
    }
}

/// A blueprint with weights, executed by candle.
pub struct CandleBackbone {
    blueprint: Blueprint,
    weights: Weights,
    options: CandleOptions,
}

/// What a pass shows, as tensors that are still part of the graph.
pub struct PassTensors {
    /// Per segment, `rows x vocab`; `None` if the segment wanted no logits.
    pub logits: Vec<Option<Tensor>>,
    /// Per segment, one `rows x hidden` tensor per hidden site of the taps.
    pub hidden: Vec<Vec<Tensor>>,
    /// Per segment, the other taps; its `hidden` is empty.
    taps: Vec<SegmentReveal>,
}

impl CandleBackbone {
    /// Loads the tensors that `blueprint` names.
    ///
    /// # Errors
    /// [`LoadError`] naming a tensor that is missing or has another shape.
    pub fn from_weights<S: TensorSource + ?Sized>(
        blueprint: Blueprint,
        source: &S,
        options: CandleOptions,
    ) -> Result<Self, LoadError> {
        let weights = Weights::load(&blueprint, source, &options.device, options.train)?;
        Ok(Self { blueprint, weights, options })
    }

    /// A model with seeded random weights, for toys and for training from nothing.
    ///
    /// # Errors
    /// [`LoadError`] for a blueprint that contradicts itself.
    pub fn random(
        blueprint: Blueprint,
        seed: u64,
        options: CandleOptions,
    ) -> Result<Self, LoadError> {
        let weights = crate::toy::weights(&blueprint, seed);
        Self::from_weights(blueprint, &weights, options)
    }

    /// The blueprint it executes.
    pub fn blueprint(&self) -> &Blueprint {
        &self.blueprint
    }

    /// Weight bytes read for one token.
    pub fn bytes_per_token(&self) -> usize {
        let (spec, ffn) = (&self.blueprint.spec, self.blueprint.ffn);
        let (q, kv) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
        let layer = spec.hidden * (2 * q + 2 * kv + 3 * ffn);
        (spec.layers * layer + spec.vocab * spec.hidden) * size_of::<f32>()
    }

    /// The weights as variables, by GGUF name; empty unless made with [`CandleOptions::train`].
    pub fn vars(&self) -> &[(String, Var)] {
        &self.weights.vars
    }

    /// Runs a pass and returns tensors instead of numbers: the logits' gradients reach the weights
    /// if these are variables. Caches are written as by [`Backbone::forward`], cut off from the
    /// graph.
    ///
    /// # Errors
    /// As [`Backbone::forward`].
    pub fn forward_tensors(&self, pass: &mut Pass<'_, '_>) -> Result<PassTensors> {
        Ok(run::run(self, pass)?)
    }
}

impl Backbone for CandleBackbone {
    fn name(&self) -> &str {
        NAME
    }

    fn spec(&self) -> &ModelSpec {
        &self.blueprint.spec
    }

    fn pairing(&self) -> tessera_core::Pairing {
        self.blueprint.pairing
    }

    fn window(&self, layer: usize) -> Option<u32> {
        self.blueprint.layers.get(layer).and_then(|l| l.window)
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            embeddings: true,
            masks: true,
            bias: true,
            keys: true,
            writes: true,
            layers: true,
            taps: true,
            sites: true,
            condition: false, // no architecture here takes one
            head_rows: false,
            plain_keys: true,
            gradients: true,
        }
    }

    fn new_cache(&self, options: CacheOptions) -> Result<Box<dyn KvStore>> {
        let spec = &self.blueprint.spec;
        Ok(Box::new(CandleStore::new(
            spec.layers,
            spec.kv_heads,
            spec.head_dim,
            options.form,
            self.options.kv_f16,
            self.options.device.clone(),
        )))
    }

    fn unrotate(&self, cache: &mut dyn KvStore) -> Result<()> {
        let Some(store) = cache.as_any_mut().downcast_mut::<CandleStore>() else {
            return Err(Error::cache("made by another backbone"));
        };
        Ok(store.unrotate(|layer| &self.weights.layers[layer].rope)?)
    }

    fn forward(&self, pass: &mut Pass<'_, '_>, reveal: &mut Reveal) -> Result<()> {
        let tapped = !pass.taps.is_empty();
        let (shown, writes) = run::compute(self, pass)?;
        // Everything that can fail comes before the caches change.
        let mut logits = Vec::with_capacity(shown.logits.len());
        for of_segment in &shown.logits {
            logits.push(match of_segment {
                Some(tensor) => run::numbers(tensor)?,
                None => Vec::new(),
            });
        }
        let mut taps = shown.taps;
        for (reveal, hidden) in taps.iter_mut().zip(&shown.hidden) {
            reveal.hidden = hidden.iter().map(run::numbers).collect::<Result<_, _>>()?;
        }
        run::install(pass, writes);
        let vocab = self.blueprint.spec.vocab;
        let mut out = reveal.prepare(vocab, logits.iter().map(|l| l.len() / vocab));
        for rows in &logits {
            let (head, tail) = std::mem::take(&mut out).split_at_mut(rows.len());
            head.copy_from_slice(rows);
            out = tail;
        }
        if tapped {
            reveal.segments = taps;
        }
        Ok(())
    }
}

//! The cpu backbone: own kernels, inference only.
//!
//! Executes a [`Blueprint`] with packed weights. Activations are quantised to int8 in blocks of 32
//! on entering a product ([`Arithmetic::Int8`]), or stay f32 for comparisons with other backbones.

mod check;
mod forward;
mod heads;
mod last;
mod load;
mod reveal;
mod rows;
mod segment;
mod store;
mod weights;

use std::sync::{Arc, Mutex, PoisonError};

use tessera_core::{
    Backbone, CacheOptions, Capabilities, Error, KeyForm, KvStore, ModelSpec, Pass, Result, Reveal,
};
use tessera_kernels::Pool;
use tessera_kernels::elementwise::Rope;

use crate::arch::Blueprint;
use forward::Scratch;
pub use load::Options;
pub use store::CpuStore;
use weights::Weights;

/// The backbone's name.
pub const NAME: &str = "cpu";

/// What products compute with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Arithmetic {
    /// Activations in int8 blocks of 32: fast, and the same on every instruction path.
    #[default]
    Int8,
    /// Activations in f32 against dequantised weights: slow, for comparison.
    F32,
}

/// A model on the CPU.
pub struct CpuBackbone {
    blueprint: Blueprint,
    weights: Weights,
    /// One rotary encoding per distinct base, and which of them each layer takes.
    ropes: Vec<Rope>,
    rope_of_layer: Vec<usize>,
    arithmetic: Arithmetic,
    /// Whether some matrix takes the generic path and so needs activations in f32 too.
    mixed: bool,
    pool: Arc<Pool>,
    scratch: Mutex<Scratch>,
}

impl CpuBackbone {
    /// The architecture's blueprint.
    pub fn blueprint(&self) -> &Blueprint {
        &self.blueprint
    }

    /// Threads that take part in a pass, the caller included.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// The threads, to load a second model on ([`CpuBackbone::load_on`]).
    pub fn pool(&self) -> Arc<Pool> {
        Arc::clone(&self.pool)
    }

    /// Name of the instruction path in use.
    pub fn isa(&self) -> &'static str {
        self.pool.isa().name()
    }

    /// Bytes of the packed weights.
    pub fn weight_bytes(&self) -> usize {
        self.weights.bytes()
    }

    /// Weight bytes that one decoded token reads.
    pub fn bytes_per_token(&self) -> usize {
        self.weights.bytes_per_token()
    }

    /// Weight types of this model that take the generic, slower path.
    pub fn generic_types(&self) -> Vec<&'static str> {
        self.weights.generic_types()
    }

    fn rope(&self, layer: usize) -> &Rope {
        &self.ropes[self.rope_of_layer[layer]]
    }

    fn store(&self, form: KeyForm, capacity: usize) -> Result<CpuStore> {
        let spec = &self.blueprint.spec;
        CpuStore::new(spec.layers, spec.kv_heads, spec.head_dim, form, capacity)
    }

    fn unsupported(&self, missing: &str) -> Error {
        Error::Unsupported { backbone: NAME.to_owned(), missing: missing.to_owned() }
    }
}

impl Backbone for CpuBackbone {
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
            condition: false,
            head_rows: true,
            plain_keys: true,
            gradients: false,
        }
    }

    fn new_cache(&self, options: CacheOptions) -> Result<Box<dyn KvStore>> {
        Ok(Box::new(self.store(options.form, options.capacity)?))
    }

    fn unrotate(&self, cache: &mut dyn KvStore) -> Result<()> {
        self.turn_back(cache)
    }

    fn forward(&self, pass: &mut Pass<'_, '_>, reveal: &mut Reveal) -> Result<()> {
        // A pass that panicked leaves only buffers behind, which the next pass overwrites.
        let mut scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        self.run(pass, reveal, &mut scratch)
    }
}

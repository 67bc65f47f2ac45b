//! A causal model beside the one that fills masks, with a count of what policies ask of it.

use std::sync::atomic::{AtomicUsize, Ordering};

use tessera_core::{
    Backbone, CacheOptions, Capabilities, KvStore, ModelSpec, Pairing, Pass, Result, Reveal,
};

/// Counts the passes and rows of a backbone.
pub(super) struct Guide<'a> {
    model: &'a dyn Backbone,
    passes: AtomicUsize,
    rows: AtomicUsize,
}

impl<'a> Guide<'a> {
    pub(super) fn new(model: &'a dyn Backbone) -> Self {
        Self { model, passes: AtomicUsize::new(0), rows: AtomicUsize::new(0) }
    }

    /// Passes and rows so far.
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.passes.load(Ordering::Relaxed), self.rows.load(Ordering::Relaxed))
    }
}

impl Backbone for Guide<'_> {
    fn name(&self) -> &str {
        self.model.name()
    }

    fn spec(&self) -> &ModelSpec {
        self.model.spec()
    }

    fn pairing(&self) -> Pairing {
        self.model.pairing()
    }

    fn window(&self, layer: usize) -> Option<u32> {
        self.model.window(layer)
    }

    fn capabilities(&self) -> Capabilities {
        self.model.capabilities()
    }

    fn new_cache(&self, options: CacheOptions) -> Result<Box<dyn KvStore>> {
        self.model.new_cache(options)
    }

    fn unrotate(&self, cache: &mut dyn KvStore) -> Result<()> {
        self.model.unrotate(cache)
    }

    fn forward(&self, pass: &mut Pass<'_, '_>, reveal: &mut Reveal) -> Result<()> {
        let rows = pass.segments.iter().map(|s| s.positions.len()).sum();
        self.passes.fetch_add(1, Ordering::Relaxed);
        self.rows.fetch_add(rows, Ordering::Relaxed);
        self.model.forward(pass, reveal)
    }
}

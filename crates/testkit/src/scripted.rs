//! A backbone without a model: the logits of a row are a given function of the tokens it sees.
//!
//! It takes every mask, keeps true caches (rows with positions, rollback, fork, compaction) and
//! counts its passes, so a loop or a policy is tested exactly and at once.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tessera_core::cache::CacheTable;
use tessera_core::dist::Key;
use tessera_core::visible::{Reading, Visible, check_segment};
use tessera_core::{
    Backbone, CacheOptions, Capabilities, Checkpoint, Error, Input, KeepPlan, KeyForm, KvStore,
    ModelSpec, Pass, Position, Result, Reveal, Row, Segment, TokenId, Write,
};

/// The tokens that a row sees, itself included, in position order.
pub type Seen<'a> = &'a [(Position, TokenId)];

type Law = dyn Fn(Seen<'_>, &mut [f32]) + Send + Sync;

/// A backbone whose logits are a function of what a row sees.
pub struct Scripted {
    spec: ModelSpec,
    law: Arc<Law>,
    passes: AtomicUsize,
    rows: AtomicUsize,
}

impl Scripted {
    /// `law` fills a row of `vocab` logits (all 0 before) from the tokens that the row sees.
    pub fn new(
        vocab: usize,
        context: usize,
        law: impl Fn(Seen<'_>, &mut [f32]) + Send + Sync + 'static,
    ) -> Self {
        let spec = ModelSpec {
            arch: "scripted".to_owned(),
            layers: 1,
            hidden: 1,
            heads: 1,
            kv_heads: 1,
            head_dim: 1,
            vocab,
            context,
        };
        Self { spec, law: Arc::new(law), passes: AtomicUsize::new(0), rows: AtomicUsize::new(0) }
    }

    /// Says `text`, whatever it sees: the token at position `p` is followed by `text[p]`, so a
    /// prompt of `n` tokens is followed by `text[n - 1..]`, and then by `end` for ever.
    pub fn saying(vocab: usize, context: usize, text: Vec<TokenId>, end: TokenId) -> Self {
        Self::new(vocab, context, move |seen, logits| {
            let at = seen.last().map_or(0, |&(p, _)| p as usize);
            logits[text.get(at).copied().unwrap_or(end) as usize] = 10.0;
        })
    }

    /// Random logits between 0 and `spread` that depend on every token seen and its position.
    pub fn hashed(vocab: usize, context: usize, seed: u64, spread: f32) -> Self {
        Self::new(vocab, context, move |seen, logits| {
            let mut key = Key::new(seed, 0, 0);
            for &(position, token) in seen {
                key = key.purpose(u64::from(position) << 32 | u64::from(token));
            }
            for (id, logit) in (0..).zip(logits) {
                *logit = spread * key.uniform(id) as f32;
            }
        })
    }

    /// The same as a model of `layers` layers: a pass that skips some of them makes other logits.
    #[must_use]
    pub fn with_layers(mut self, layers: usize) -> Self {
        self.spec.layers = layers;
        self
    }

    /// Passes so far.
    pub fn passes(&self) -> usize {
        self.passes.load(Ordering::Relaxed)
    }

    /// Rows computed so far.
    pub fn rows(&self) -> usize {
        self.rows.load(Ordering::Relaxed)
    }

    fn run(&self, segment: &Segment<'_>, skipped: usize, out: &mut [f32]) -> Result<()> {
        let Input::Tokens(tokens) = segment.input else {
            return Err(self.lacks("embeddings as input"));
        };
        if matches!(segment.write, Write::Rows(_)) || segment.keys.is_some() {
            return Err(self.lacks("cache rows written in place, explicit read sets"));
        }
        let store = match &segment.cache {
            Some(cache) => Some(own(cache.as_any())?),
            None => None,
        };
        let cached = store.map_or(0, |s| s.tokens.len());
        check_segment(segment, cached, 1, self.spec.vocab)?;
        let empty = CacheTable::new(1, 1, Default::default());
        let table = store.map_or(&empty, |s| &s.table);
        let reading = Reading {
            cached: table.positions(0, 0),
            plain: table.is_plain(),
            keys: None,
            window: None,
        };
        let mut visible = Visible::new();
        visible.fill(segment, reading);
        let mut seen = Vec::new();
        for i in 0..segment.rows_out.count(tokens.len()) {
            let row = segment.rows_out.get(i, tokens.len());
            seen.clear();
            for span in visible.row(row) {
                for r in (span.row as usize)..(span.row + span.len) as usize {
                    seen.push(match store {
                        Some(s) if r < cached => (table.positions(0, 0)[r], s.tokens[r]),
                        _ => (segment.positions[r - cached], tokens[r - cached]),
                    });
                }
            }
            let logits = &mut out[i * self.spec.vocab..(i + 1) * self.spec.vocab];
            logits.fill(0.0);
            (self.law)(&seen, logits);
            if skipped > 0 {
                let key = Key::new(skipped as u64, 0, segment.positions[row]);
                let noise = |id| skipped as f32 * key.uniform(id) as f32;
                (0..).zip(logits).for_each(|(id, logit)| *logit += noise(id));
            }
        }
        Ok(())
    }

    fn lacks(&self, what: &str) -> Error {
        Error::Unsupported { backbone: self.name().to_owned(), missing: what.to_owned() }
    }
}

impl Backbone for Scripted {
    fn name(&self) -> &str {
        "scripted"
    }

    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { masks: true, layers: true, ..Capabilities::default() }
    }

    fn new_cache(&self, options: CacheOptions) -> Result<Box<dyn KvStore>> {
        Ok(Box::new(Store { table: CacheTable::new(1, 1, options.form), tokens: Vec::new() }))
    }

    fn unrotate(&self, cache: &mut dyn KvStore) -> Result<()> {
        let store = cache.as_any_mut().downcast_mut::<Store>().ok_or_else(foreign)?;
        store.table.set_form(KeyForm::Plain);
        Ok(())
    }

    fn forward(&self, pass: &mut Pass<'_, '_>, reveal: &mut Reveal) -> Result<()> {
        if !pass.taps.is_empty() || pass.sites.is_some() {
            return Err(self.lacks("taps, reduction sites"));
        }
        let counts: Vec<usize> =
            pass.segments.iter().map(|s| s.rows_out.count(s.positions.len())).collect();
        let skipped = (0..self.spec.layers).filter(|&l| !pass.layers.runs(l)).count();
        let mut logits = reveal.prepare(self.spec.vocab, counts.iter().copied());
        for (segment, count) in pass.segments.iter().zip(&counts) {
            let (own, rest) = logits.split_at_mut(count * self.spec.vocab);
            self.run(segment, skipped, own)?;
            logits = rest;
        }
        for segment in pass.segments.iter_mut() {
            self.rows.fetch_add(segment.positions.len(), Ordering::Relaxed);
            if let (Write::Append, Input::Tokens(tokens), Some(cache)) =
                (segment.write, segment.input, &mut segment.cache)
            {
                let store = cache.as_any_mut().downcast_mut::<Store>().ok_or_else(foreign)?;
                store.table.append(segment.positions);
                store.tokens.extend_from_slice(tokens);
            }
        }
        self.passes.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// The cache: the tokens of the rows.
#[derive(Debug, Clone)]
struct Store {
    table: CacheTable,
    tokens: Vec<TokenId>,
}

fn foreign() -> Error {
    Error::cache("made by another backbone")
}

fn own(cache: &dyn Any) -> Result<&Store> {
    cache.downcast_ref::<Store>().ok_or_else(foreign)
}

impl KvStore for Store {
    fn table(&self) -> &CacheTable {
        &self.table
    }

    fn rollback(&mut self, count: usize) -> Result<()> {
        self.table.pop(count)?;
        self.tokens.truncate(self.tokens.len() - count);
        Ok(())
    }

    fn keep_last(&mut self, count: usize, kept: &[Row]) -> Result<()> {
        self.table.keep_last(count, kept)?;
        let last = self.tokens.split_off(self.tokens.len() - count);
        self.tokens.extend(kept.iter().map(|&r| last[r as usize]));
        Ok(())
    }

    fn compact(&mut self, plan: &KeepPlan) -> Result<()> {
        self.table.compact(plan)?;
        self.tokens = plan.keep(0, 0).rows.iter().map(|&r| self.tokens[r as usize]).collect();
        Ok(())
    }

    fn reposition(&mut self, positions: &[Position]) -> Result<()> {
        self.table.reposition(positions)
    }

    fn rerank(&mut self) -> Result<()> {
        self.table.rerank()
    }

    fn fork(&self) -> Result<Box<dyn KvStore>> {
        Ok(Box::new(self.clone()))
    }

    fn restore(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        *self = own(checkpoint.store.as_any())?.clone();
        Ok(())
    }

    fn read(&self, _layer: usize, _head: usize, row: Row, _values: bool) -> Result<Vec<f32>> {
        match self.tokens.get(row as usize) {
            Some(&token) => Ok(vec![token as f32]),
            None => Err(Error::cache(format!("row {row} does not exist"))),
        }
    }

    fn bytes(&self) -> usize {
        self.tokens.capacity() * size_of::<TokenId>()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}

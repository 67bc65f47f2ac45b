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
    Backbone, CacheOptions, Capabilities, Checkpoint, Error, Input, KeepPlan, KeyForm, KeySet,
    KvStore, ModelSpec, Pass, Position, Received, Result, Reveal, Row, Segment, SegmentReveal,
    Taps, TokenId, Write,
};

/// The tokens that a row sees, itself included, in position order.
pub type Seen<'a> = &'a [(Position, TokenId)];

type Law = dyn Fn(Position, Seen<'_>, &mut [f32]) + Send + Sync;

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
        Self::placed(vocab, context, move |_, seen, logits| law(seen, logits))
    }

    /// `law` knows the position of the row as well, which need not be the last that it sees.
    pub fn placed(
        vocab: usize,
        context: usize,
        law: impl Fn(Position, Seen<'_>, &mut [f32]) + Send + Sync + 'static,
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

    /// The same as a model of `heads` query heads over `kv_heads` key heads: logits depend on what
    /// each of them sees, where that differs.
    #[must_use]
    pub fn with_heads(mut self, heads: usize, kv_heads: usize) -> Self {
        (self.spec.heads, self.spec.kv_heads) = (heads, kv_heads);
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

    fn run(
        &self,
        segment: &Segment<'_>,
        skipped: usize,
        out: &mut [f32],
        wanted: Received<'_>,
    ) -> Result<Vec<Vec<f32>>> {
        let Input::Tokens(tokens) = segment.input else {
            return Err(self.lacks("embeddings as input"));
        };
        let store = match &segment.cache {
            Some(cache) => Some(own(cache.as_any())?),
            None => None,
        };
        check_segment(segment, store.map_or(0, |s| s.table.len()), 1, self.spec.vocab)?;
        let empty = self.empty(KeyForm::default());
        let sight = Sight::new(segment, store.unwrap_or(&empty), self.spec.kv_heads);
        let (mut seen, mut other) = (Vec::new(), Vec::new());
        for i in 0..segment.rows_out.count(tokens.len()) {
            let row = segment.rows_out.get(i, tokens.len());
            sight.seen(0, row, &mut seen);
            let logits = &mut out[i * self.spec.vocab..(i + 1) * self.spec.vocab];
            logits.fill(0.0);
            (self.law)(segment.positions[row], &seen, logits);
            let (mut key, mut alike) = (Key::new(77, 0, 0), true);
            for head in 1..sight.lists {
                sight.seen(head, row, &mut other);
                alike &= other == seen;
                for &(position, token) in &other {
                    key = key.purpose(u64::from(position) << 32 | u64::from(token));
                }
                key = key.purpose(head as u64);
            }
            if !alike {
                // Heads that see other rows than the first have a say of their own.
                (0..)
                    .zip(&mut *logits)
                    .for_each(|(id, logit)| *logit += 2.0 * key.uniform(id) as f32);
            }
            if skipped > 0 {
                let key = Key::new(skipped as u64, 0, segment.positions[row]);
                let noise = |id| skipped as f32 * key.uniform(id) as f32;
                (0..).zip(logits).for_each(|(id, logit)| *logit += noise(id));
            }
        }
        Ok(self.received(&sight, tokens.len(), wanted))
    }

    /// Attention without a model: a random share of every key that a row sees, by layer, query head,
    /// row and key.
    fn received(&self, sight: &Sight<'_, '_>, rows: usize, wanted: Received<'_>) -> Vec<Vec<f32>> {
        let (heads, kv_heads) = (self.spec.heads, self.spec.kv_heads);
        let groups = wanted.heads.groups(heads, kv_heads);
        let columns = sight.store.table.len() + rows;
        let mut blocks = Vec::with_capacity(wanted.layers.len());
        for &layer in wanted.layers {
            let mut block = vec![0f32; if wanted.by_row { rows } else { 1 } * groups * columns];
            for (row, head) in (0..rows).flat_map(|row| (0..heads).map(move |h| (row, h))) {
                let list = layer * kv_heads + head * kv_heads / heads;
                let seen = sight.columns(list, row);
                let (position, token) = sight.own(row);
                let query = Key::new(u64::from(token), (layer * heads + head) as u32, position);
                let weight = |&(_, (at, key)): &(usize, (Position, TokenId))| {
                    (3.0 * query.purpose(u64::from(at)).uniform(key)).exp() as f32
                };
                let sum: f32 = seen.iter().map(weight).sum();
                let line = if wanted.by_row { row } else { 0 } * groups + head * groups / heads;
                for one in &seen {
                    block[line * columns + one.0] += weight(one) / sum;
                }
            }
            blocks.push(block);
        }
        blocks
    }

    fn empty(&self, form: KeyForm) -> Store {
        let (layers, kv_heads) = (self.spec.layers, self.spec.kv_heads);
        Store {
            table: CacheTable::new(layers, kv_heads, form),
            tokens: vec![Vec::new(); layers * kv_heads],
        }
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
        Capabilities {
            masks: true,
            keys: true,
            layers: true,
            writes: true,
            ..Capabilities::default()
        }
    }

    fn new_cache(&self, options: CacheOptions) -> Result<Box<dyn KvStore>> {
        Ok(Box::new(self.empty(options.form)))
    }

    fn unrotate(&self, cache: &mut dyn KvStore) -> Result<()> {
        let store = cache.as_any_mut().downcast_mut::<Store>().ok_or_else(foreign)?;
        store.table.set_form(KeyForm::Plain);
        Ok(())
    }

    fn forward(&self, pass: &mut Pass<'_, '_>, reveal: &mut Reveal) -> Result<()> {
        let wanted = pass.taps.received;
        let others = Taps { received: Received::default(), ..pass.taps };
        if !others.is_empty() || pass.sites.is_some() {
            return Err(self.lacks("taps of internals that it does not have, reduction sites"));
        }
        let counts: Vec<usize> =
            pass.segments.iter().map(|s| s.rows_out.count(s.positions.len())).collect();
        let skipped = (0..self.spec.layers).filter(|&l| !pass.layers.runs(l)).count();
        let mut logits = reveal.prepare(self.spec.vocab, counts.iter().copied());
        let mut shown = Vec::new();
        for (segment, count) in pass.segments.iter().zip(&counts) {
            let (own, rest) = logits.split_at_mut(count * self.spec.vocab);
            let received = self.run(segment, skipped, own, wanted)?;
            shown.push(SegmentReveal { received, ..SegmentReveal::default() });
            logits = rest;
        }
        if !wanted.layers.is_empty() {
            reveal.segments = shown;
        }
        for segment in pass.segments.iter_mut() {
            self.rows.fetch_add(segment.positions.len(), Ordering::Relaxed);
            let (Input::Tokens(tokens), Some(cache)) = (segment.input, &mut segment.cache) else {
                continue;
            };
            let store = cache.as_any_mut().downcast_mut::<Store>().ok_or_else(foreign)?;
            match segment.write {
                Write::Append => {
                    store.table.append(segment.positions);
                    store.tokens.iter_mut().for_each(|list| list.extend_from_slice(tokens));
                }
                Write::Rows(rows) => {
                    for list in &mut store.tokens {
                        rows.iter().zip(tokens).for_each(|(&r, &t)| list[r as usize] = t);
                    }
                }
                Write::Discard => {}
            }
        }
        self.passes.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// What the rows of a segment see, for every head whose sight may differ.
struct Sight<'a, 's> {
    segment: &'a Segment<'s>,
    store: &'a Store,
    kv_heads: usize,
    /// One for all, or one per (layer, key head).
    heads: Vec<Visible>,
    /// (Layer, key head)s that may see something else than the first one.
    lists: usize,
}

impl<'a, 's> Sight<'a, 's> {
    fn new(segment: &'a Segment<'s>, store: &'a Store, kv_heads: usize) -> Self {
        let apart = matches!(segment.keys, Some(KeySet::PerHead(_)));
        let shared = store.table.is_uniform() && !apart;
        let alike = shared && store.tokens.windows(2).all(|w| w[0] == w[1]);
        let lists = if alike { 1 } else { store.tokens.len() };
        let look = |list: usize| {
            let mut visible = Visible::new();
            let keys = match segment.keys {
                None => None,
                Some(KeySet::Rows(rows)) => Some(rows),
                Some(KeySet::PerHead(lists)) => Some(lists[list].as_slice()),
            };
            let cached = store.table.positions(list / kv_heads, list % kv_heads);
            let plain = store.table.is_plain();
            visible.fill(segment, Reading { cached, plain, keys, window: None });
            visible
        };
        let heads = (0..if shared { 1 } else { lists }).map(look).collect();
        Self { segment, store, kv_heads, heads, lists }
    }

    /// Position and token of a row of the segment.
    fn own(&self, row: usize) -> (Position, TokenId) {
        let token = match self.segment.input {
            Input::Tokens(tokens) => tokens[row],
            Input::Embeddings(_) | Input::Queries(_) => 0,
        };
        (self.segment.positions[row], token)
    }

    /// The columns of received attention that a row sees in a (layer, key head), and what is there.
    fn columns(&self, list: usize, row: usize) -> Vec<(usize, (Position, TokenId))> {
        let held = self.store.table.positions(list / self.kv_heads, list % self.kv_heads);
        let longest = self.store.table.len();
        let spans = self.heads[list.min(self.heads.len() - 1)].row(row);
        let rows = spans.iter().flat_map(|s| s.row as usize..(s.row + s.len) as usize);
        rows.map(|r| match held.get(r) {
            Some(&position) => (r, (position, self.store.tokens[list][r])),
            None => (longest + r - held.len(), self.own(r - held.len())),
        })
        .collect()
    }

    fn seen(&self, list: usize, row: usize, seen: &mut Vec<(Position, TokenId)>) {
        seen.clear();
        seen.extend(self.columns(list, row).into_iter().map(|(_, what)| what));
    }
}

/// The cache: the tokens of the rows of every head.
#[derive(Debug, Clone)]
struct Store {
    table: CacheTable,
    tokens: Vec<Vec<TokenId>>,
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
        self.tokens.iter_mut().for_each(|list| list.truncate(list.len() - count));
        Ok(())
    }

    fn keep_last(&mut self, count: usize, kept: &[Row]) -> Result<()> {
        self.table.keep_last(count, kept)?;
        for list in &mut self.tokens {
            let last = list.split_off(list.len() - count);
            list.extend(kept.iter().map(|&r| last[r as usize]));
        }
        Ok(())
    }

    fn compact(&mut self, plan: &KeepPlan) -> Result<()> {
        self.table.compact(plan)?;
        let kv_heads = self.table.kv_heads();
        for (i, list) in self.tokens.iter_mut().enumerate() {
            let keep = plan.keep(i / kv_heads, i % kv_heads);
            *list = keep.rows.iter().map(|&r| list[r as usize]).collect();
        }
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

    fn read(&self, layer: usize, head: usize, row: Row, _values: bool) -> Result<Vec<f32>> {
        let list = self.tokens.get(layer * self.table.kv_heads() + head);
        match list.and_then(|list| list.get(row as usize)) {
            Some(&token) => Ok(vec![token as f32]),
            None => Err(Error::cache(format!("row {row} does not exist"))),
        }
    }

    fn bytes(&self) -> usize {
        self.tokens.iter().map(|list| list.len() * size_of::<TokenId>()).sum()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}

//! An independent reference: the same passes, one number at a time in `f64`.
//!
//! Nothing here is shared with the backbones except the contract's own types and the cache table:
//! visibility is written out from the words of the documentation, not taken from
//! `tessera_core::Visible`.
//!
//! Long because it is a whole model, written a second time and to be read from top to bottom.

use std::any::Any;
use std::collections::HashMap;

use half::f16;
use tessera_core::pass::{KeyReader, ReadEvidence, RowEvidence};
use tessera_core::visible::check_segment;
use tessera_core::{
    Backbone, CacheOptions, CacheTable, Capabilities, Checkpoint, Error, HiddenSite, Input, Keep,
    KeepPlan, KeyForm, KeySet, KvStore, Mask, ModelSpec, Pass, Position, Result, Reveal, Row,
    Segment, SegmentReveal, Write,
};
use tessera_model::arch::{Activation, Blueprint, Pairing};
use tessera_model::toy::ToyWeights;

pub struct Naive {
    blueprint: Blueprint,
    weights: HashMap<String, Vec<f64>>,
    half: bool,
}

type Entry = (Vec<f64>, Vec<f64>);

#[derive(Clone)]
pub struct NaiveStore {
    table: CacheTable,
    half: bool,
    /// Key and value per row, per (layer, key head).
    heads: Vec<Vec<Entry>>,
}

/// A row of a segment on its way through the layers.
struct Walker {
    x: Vec<f64>,
    alive: bool,
}

/// What a layer computed for one row: queries per head, stored keys and values per key head.
struct Heads {
    q: Vec<Vec<f64>>,
    k: Vec<Vec<f64>>,
    v: Vec<Vec<f64>>,
}

fn round(half: bool, x: &[f64]) -> Vec<f64> {
    // Rounded as a 32-bit machine would: first to f32, then to f16.
    let one = |&x: &f64| if half { f64::from(f16::from_f32(x as f32)) } else { x };
    x.iter().map(one).collect()
}

impl Naive {
    pub fn new(blueprint: &Blueprint, weights: &ToyWeights, half: bool) -> Self {
        let wide = |v: &[f32]| v.iter().map(|&x| f64::from(x)).collect();
        let weights = weights.iter().map(|(name, (_, v))| (name.clone(), wide(v))).collect();
        Self { blueprint: blueprint.clone(), weights, half }
    }

    fn tensor(&self, name: &str) -> &[f64] {
        self.weights.get(name).unwrap_or_else(|| panic!("no tensor {name}"))
    }

    /// `W x + b`, where `W` holds one row of `x.len()` values per output.
    fn product(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let w = self.tensor(&format!("{name}.weight"));
        let mut y: Vec<f64> = w.chunks_exact(x.len()).map(|row| dot(row, x)).collect();
        if let Some(bias) = self.weights.get(&format!("{name}.bias")) {
            y.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
        }
        y
    }

    fn norm(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let mean = dot(x, x) / x.len() as f64;
        let scale = 1.0 / (mean + f64::from(self.blueprint.norm_eps)).sqrt();
        x.iter().zip(self.tensor(name)).map(|(x, w)| x * scale * w).collect()
    }

    fn rope(&self, layer: usize, x: &[f64], position: Position) -> Vec<f64> {
        let (d, base) = (x.len(), f64::from(self.blueprint.layers[layer].rope_base));
        let mut y = vec![0.0; d];
        for i in 0..d / 2 {
            let mut angle = f64::from(position) * base.powf(-2.0 * i as f64 / d as f64);
            if let Some(factors) = &self.blueprint.rope_factors
                && self.blueprint.layers[layer].window.is_none()
            {
                angle /= f64::from(factors[i]);
            }
            let (a, b) = match self.blueprint.pairing {
                Pairing::Interleaved => (2 * i, 2 * i + 1),
                Pairing::Halves => (i, i + d / 2),
            };
            y[a] = x[a] * angle.cos() - x[b] * angle.sin();
            y[b] = x[a] * angle.sin() + x[b] * angle.cos();
        }
        y
    }

    fn heads(&self, layer: usize, x: &[f64], position: Position, form: KeyForm) -> Heads {
        let d = self.blueprint.spec.head_dim;
        let name = |part: &str| format!("blk.{layer}.{part}");
        let h = self.norm(&name("attn_norm.weight"), x);
        let split = |part: &str, norm: Option<&str>| -> Vec<Vec<f64>> {
            let all = self.product(&name(part), &h);
            all.chunks_exact(d)
                .map(|head| match norm {
                    Some(norm) => self.norm(&name(norm), head),
                    None => head.to_vec(),
                })
                .collect()
        };
        let normed = self.blueprint.qk_norm;
        let q = split("attn_q", normed.then_some("attn_q_norm.weight"));
        let k = split("attn_k", normed.then_some("attn_k_norm.weight"));
        let turn = |list: &[Vec<f64>]| -> Vec<Vec<f64>> {
            list.iter().map(|x| self.rope(layer, x, position)).collect()
        };
        let rounded = |list: Vec<Vec<f64>>| -> Vec<Vec<f64>> {
            list.iter().map(|x| round(self.half, x)).collect()
        };
        Heads {
            q: turn(&q),
            k: rounded(if form == KeyForm::Plain { k } else { turn(&k) }),
            v: rounded(split("attn_v", None)),
        }
    }

    /// The rest of a layer, after what the row read.
    fn finish(&self, layer: usize, x: &[f64], read: &[f64]) -> Vec<f64> {
        let b = &self.blueprint;
        let name = |part: &str| format!("blk.{layer}.{part}");
        let mut o = self.product(&name("attn_output"), read);
        if b.post_norms {
            o = self.norm(&name("post_attention_norm.weight"), &o);
        }
        let x: Vec<f64> = x.iter().zip(&o).map(|(a, b)| a + b).collect();
        let h = self.norm(&name("ffn_norm.weight"), &x);
        let gate = self.product(&name("ffn_gate"), &h);
        let up = self.product(&name("ffn_up"), &h);
        let act = |x: f64| match b.activation {
            Activation::Silu => x / (1.0 + (-x).exp()),
            Activation::GeluTanh => {
                let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
                0.5 * x * (1.0 + inner.tanh())
            }
        };
        let both: Vec<f64> = gate.iter().zip(&up).map(|(g, u)| act(*g) * u).collect();
        let mut o = self.product(&name("ffn_down"), &both);
        if b.post_norms {
            o = self.norm(&name("post_ffw_norm.weight"), &o);
        }
        x.iter().zip(&o).map(|(a, b)| a + b).collect()
    }

    fn embed(&self, segment: &Segment<'_>, row: usize) -> Vec<f64> {
        let hidden = self.blueprint.spec.hidden;
        match segment.input {
            Input::Tokens(tokens) => {
                let at = tokens[row] as usize * hidden;
                let scale = f64::from(self.blueprint.embedding_scale);
                let table = &self.tensor("token_embd.weight")[at..at + hidden];
                table.iter().map(|x| x * scale).collect()
            }
            Input::Embeddings(e) | Input::Queries(e) => {
                e[row * hidden..(row + 1) * hidden].iter().map(|&x| f64::from(x)).collect()
            }
        }
    }

    fn logits(&self, x: &[f64]) -> Vec<f32> {
        let h = self.norm("output_norm.weight", x);
        let head = if self.blueprint.tied { "token_embd" } else { "output" };
        let cap = |x: f64| match self.blueprint.logit_softcap {
            Some(cap) => f64::from(cap) * (x / f64::from(cap)).tanh(),
            None => x,
        };
        self.product(head, &h).into_iter().map(|x| cap(x) as f32).collect()
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// A key as a query sees it.
enum Key {
    /// A row of the cache.
    Cached(usize),
    /// A row of the segment.
    Own(usize),
}

/// Whether row `i` may read `key` by the segment's mask, the sliding window and the read sets.
#[allow(clippy::too_many_arguments)]
fn reads(
    segment: &Segment<'_>,
    cached: &[Position],
    longest: usize,
    window: Option<u32>,
    sets: [Option<&[Row]>; 2],
    alive: &[usize],
    i: usize,
    key: &Key,
) -> bool {
    let mine = segment.positions[i];
    let theirs = match key {
        Key::Cached(r) => cached[*r],
        Key::Own(j) => segment.positions[*j],
    };
    if window.is_some_and(|w| mine.abs_diff(theirs) >= w) {
        return false;
    }
    match key {
        Key::Cached(r) => {
            if sets.iter().flatten().any(|set| !set.contains(&(*r as Row))) {
                return false;
            }
            // Refreshed rows are read as the pass writes them, not as they were.
            if let Write::Rows(rows) = segment.write
                && alive.iter().any(|&j| rows[j] == *r as Row)
            {
                return false;
            }
            match segment.mask {
                Mask::Causal => theirs <= mine,
                Mask::Explicit { bits, columns } => bits[i * columns + r],
                _ => true,
            }
        }
        Key::Own(j) => {
            if matches!(segment.input, Input::Queries(_)) {
                return false;
            }
            match segment.mask {
                Mask::Causal => i == *j || theirs < mine,
                Mask::Bidirectional => true,
                Mask::Tree { parent } => {
                    let mut at = Some(i as u32);
                    while let Some(row) = at {
                        if row as usize == *j {
                            return true;
                        }
                        at = parent[row as usize];
                    }
                    false
                }
                Mask::Block { block } => block[*j] <= block[i],
                Mask::Explicit { bits, columns } => bits[i * columns + longest + j],
            }
        }
    }
}

struct Keys(Vec<Vec<Vec<f64>>>);

impl KeyReader for Keys {
    fn rows(&self, head: usize) -> usize {
        self.0[head].len()
    }
    fn key(&self, head: usize, row: Row, out: &mut [f32]) {
        let key = &self.0[head][row as usize];
        out.iter_mut().zip(key).for_each(|(o, k)| *o = *k as f32);
    }
}

impl Naive {
    /// One segment; returns logits, taps, and the cache as it is afterwards.
    fn segment(
        &self,
        number: usize,
        segment: &Segment<'_>,
        pass: &mut Other<'_, '_>,
    ) -> Result<(Vec<f32>, SegmentReveal, NaiveStore)> {
        let spec = &self.blueprint.spec;
        let (d, group) = (spec.head_dim, spec.heads / spec.kv_heads);
        let blank = NaiveStore::new(spec, CacheOptions::default(), self.half);
        let before = match segment.cache.as_deref() {
            Some(cache) => cache.as_any().downcast_ref::<NaiveStore>().expect("a naive cache"),
            None => &blank,
        };
        let (table, form) = (&before.table, before.table.form());
        let longest = table.len();
        check_segment(segment, longest, spec.hidden, spec.vocab)?;
        let rows = segment.positions.len();
        let own = !matches!(segment.input, Input::Queries(_));
        let mut after = before.clone();
        if let (true, Write::Rows(list)) = (own, segment.write) {
            for (&row, &position) in list.iter().zip(segment.positions) {
                after.table.set_position(row, position)?;
            }
        }
        // Per layer, the rows that reach it.
        let mut reached = Vec::new();
        let mut walkers: Vec<Walker> =
            (0..rows).map(|i| Walker { x: self.embed(segment, i), alive: true }).collect();
        let mut shown = SegmentReveal {
            hidden: vec![Vec::new(); pass.taps.hidden.len()],
            attention: vec![Vec::new(); pass.taps.attention.len()],
            keys: vec![Vec::new(); pass.taps.keys.len()],
            queries: vec![Vec::new(); pass.taps.queries.len()],
            received: Vec::new(),
        };
        let hidden = |shown: &mut SegmentReveal, walkers: &[Walker], at: HiddenSite| {
            for (slot, _) in pass.taps.hidden.iter().enumerate().filter(|(_, s)| **s == at) {
                let state = |w: &Walker| match at {
                    _ if !w.alive => vec![0.0; w.x.len()],
                    HiddenSite::Final => self.norm("output_norm.weight", &w.x),
                    _ => w.x.clone(),
                };
                shown.hidden[slot] = walkers.iter().flat_map(state).map(|x| x as f32).collect();
            }
        };
        hidden(&mut shown, &walkers, HiddenSite::Embedding);

        let append = own && segment.write == Write::Append;
        for layer in 0..spec.layers {
            let alive: Vec<usize> = (0..rows).filter(|&i| walkers[i].alive).collect();
            reached.push(alive.clone());
            if !pass.layers.runs(layer) {
                hidden(&mut shown, &walkers, HiddenSite::After(layer));
                for list in &mut after.heads[layer * spec.kv_heads..(layer + 1) * spec.kv_heads] {
                    let zeros = || (vec![0.0; d], vec![0.0; d]);
                    list.extend(alive.iter().filter(|_| append).map(|_| zeros()));
                }
                continue;
            }
            let made: HashMap<usize, Heads> = alive
                .iter()
                .map(|&i| (i, self.heads(layer, &walkers[i].x, segment.positions[i], form)))
                .collect();
            for queries in [true, false] {
                let (list, tap, heads) = if queries {
                    (&mut shown.queries, pass.taps.queries, spec.heads)
                } else {
                    (&mut shown.keys, pass.taps.keys, spec.kv_heads)
                };
                for (slot, _) in tap.iter().enumerate().filter(|(_, l)| **l == layer) {
                    list[slot] = (0..if alive.is_empty() { 0 } else { rows })
                        .flat_map(|i| match made.get(&i) {
                            None => vec![0.0; heads * d],
                            Some(h) if queries => h.q.concat(),
                            Some(h) if form == KeyForm::Rotated => h.k.concat(),
                            Some(h) => {
                                let p = segment.positions[i];
                                h.k.iter().flat_map(|k| self.rope(layer, k, p)).collect()
                            }
                        })
                        .map(|x| x as f32)
                        .collect();
                }
            }
            let mut chosen = None;
            if let Some(sites) = pass.sites.as_deref_mut().filter(|s| s.reads(layer)) {
                let queries: Vec<f32> =
                    alive.iter().flat_map(|i| made[i].q.concat()).map(|x| x as f32).collect();
                let positions: Vec<Position> =
                    alive.iter().map(|&i| segment.positions[i]).collect();
                let keys = (0..spec.kv_heads).map(|head| {
                    let held = &before.heads[layer * spec.kv_heads + head];
                    let mut keys: Vec<Vec<f64>> = held.iter().map(|e| e.0.clone()).collect();
                    for &i in alive.iter().filter(|_| own) {
                        let key = made[&i].k[head].clone();
                        match segment.write {
                            Write::Rows(list) => keys[list[i] as usize] = key,
                            _ => keys.push(key),
                        }
                    }
                    keys
                });
                chosen = sites.read(&ReadEvidence {
                    segment: number,
                    layer,
                    queries: &queries,
                    positions: &positions,
                    cached: longest,
                    keys: &Keys(keys.collect()),
                })?;
            }

            let columns = longest + rows;
            let tapped = if alive.is_empty() { 0 } else { rows };
            let mut attention = vec![0f32; tapped * spec.heads * columns];
            let mut read: HashMap<usize, Vec<f64>> = HashMap::new();
            for &i in &alive {
                let mut all = Vec::new();
                for head in 0..spec.heads {
                    let kv = head / group;
                    let cached = table.positions(layer, kv);
                    let held = &before.heads[layer * spec.kv_heads + kv];
                    let set = match segment.keys {
                        None => None,
                        Some(KeySet::Rows(list)) => Some(list),
                        Some(KeySet::PerHead(lists)) => {
                            Some(lists[layer * spec.kv_heads + kv].as_slice())
                        }
                    };
                    let sets = [set, chosen.as_ref().map(|lists| lists[kv].as_slice())];
                    let window = self.blueprint.layers[layer].window;
                    let candidates = (0..cached.len())
                        .map(Key::Cached)
                        .chain(alive.iter().map(|&j| Key::Own(j)));
                    let mut scored: Vec<(usize, f64, &[f64])> = Vec::new();
                    for key in candidates {
                        if !reads(segment, cached, longest, window, sets, &alive, i, &key) {
                            continue;
                        }
                        let (column, position, (k, v)) = match key {
                            Key::Cached(r) => (r, cached[r], (&held[r].0, &held[r].1)),
                            Key::Own(j) => {
                                let h = &made[&j];
                                (longest + j, segment.positions[j], (&h.k[kv], &h.v[kv]))
                            }
                        };
                        let turned;
                        let k = if form == KeyForm::Plain {
                            turned = self.rope(layer, k, position);
                            &turned
                        } else {
                            k
                        };
                        let mut score =
                            dot(&made[&i].q[head], k) * f64::from(self.blueprint.attention_scale);
                        if let Some(cap) = self.blueprint.attention_softcap {
                            score = f64::from(cap) * (score / f64::from(cap)).tanh();
                        }
                        if !segment.bias.is_empty() {
                            score += f64::from(segment.bias[i * columns + column]);
                        }
                        // A bias of minus infinity hides the key, even if it is the only one.
                        if score > f64::NEG_INFINITY {
                            scored.push((column, score, v));
                        }
                    }
                    let top = scored.iter().map(|s| s.1).fold(f64::NEG_INFINITY, f64::max);
                    let sum: f64 = scored.iter().map(|s| (s.1 - top).exp()).sum();
                    let mut out = vec![0.0; d];
                    for (column, score, v) in scored {
                        let p = (score - top).exp() / sum;
                        out.iter_mut().zip(v).for_each(|(o, v)| *o += p * v);
                        attention[(i * spec.heads + head) * columns + column] = p as f32;
                    }
                    all.extend(out);
                }
                read.insert(i, all);
            }
            for (slot, _) in pass.taps.attention.iter().enumerate().filter(|(_, l)| **l == layer) {
                shown.attention[slot].clone_from(&attention);
            }
            for &i in &alive {
                walkers[i].x = self.finish(layer, &walkers[i].x, &read[&i]);
            }
            hidden(&mut shown, &walkers, HiddenSite::After(layer));

            for &i in alive.iter().filter(|_| own) {
                for kv in 0..spec.kv_heads {
                    let entry = (made[&i].k[kv].clone(), made[&i].v[kv].clone());
                    let list = &mut after.heads[layer * spec.kv_heads + kv];
                    match segment.write {
                        Write::Append => list.push(entry),
                        Write::Rows(to) => list[to[i] as usize] = entry,
                        Write::Discard => {}
                    }
                }
            }
            if let Some(sites) = pass.sites.as_deref_mut().filter(|s| s.keeps(layer))
                && !alive.is_empty()
            {
                let hidden: Vec<f32> =
                    alive.iter().flat_map(|&i| &walkers[i].x).map(|&x| x as f32).collect();
                let positions: Vec<Position> =
                    alive.iter().map(|&i| segment.positions[i]).collect();
                let evidence =
                    RowEvidence { segment: number, layer, hidden: &hidden, positions: &positions };
                if let Some(kept) = sites.keep(&evidence)? {
                    for (at, &i) in alive.iter().enumerate() {
                        walkers[i].alive = kept.contains(&(at as u32));
                    }
                }
            }
        }
        hidden(&mut shown, &walkers, HiddenSite::Final);
        let mut logits = Vec::new();
        for i in (0..segment.rows_out.count(rows)).map(|i| segment.rows_out.get(i, rows)) {
            if !walkers[i].alive {
                return Err(Error::pass("a dropped row has no logits"));
            }
            logits.extend(self.logits(&walkers[i].x));
        }
        if append {
            after.table = grown(table, segment.positions, &reached);
        }
        Ok((logits, shown, after))
    }
}

/// The parts of a pass besides its segments.
struct Other<'a, 's> {
    layers: tessera_core::Layers<'a>,
    taps: tessera_core::Taps<'a>,
    sites: Option<&'s mut dyn tessera_core::Sites>,
}

impl Backbone for Naive {
    fn name(&self) -> &str {
        "naive"
    }

    fn spec(&self) -> &ModelSpec {
        &self.blueprint.spec
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
            head_rows: false,
            plain_keys: true,
            gradients: false,
        }
    }

    fn new_cache(&self, options: CacheOptions) -> Result<Box<dyn KvStore>> {
        Ok(Box::new(NaiveStore::new(&self.blueprint.spec, options, self.half)))
    }

    fn forward(&self, pass: &mut Pass<'_, '_>, reveal: &mut Reveal) -> Result<()> {
        let mut done = Vec::new();
        let mut other = Other { layers: pass.layers, taps: pass.taps, sites: None };
        if let Some(sites) = &mut pass.sites {
            other.sites = Some(&mut **sites);
        }
        for (number, segment) in pass.segments.iter().enumerate() {
            done.push(self.segment(number, segment, &mut other)?);
        }
        let vocab = self.blueprint.spec.vocab;
        let all: Vec<f32> = done.iter().flat_map(|d| d.0.iter().copied()).collect();
        reveal.prepare(vocab, done.iter().map(|d| d.0.len() / vocab)).copy_from_slice(&all);
        let tapped = !pass.taps.is_empty();
        for (segment, (_, shown, after)) in pass.segments.iter_mut().zip(done) {
            if tapped {
                reveal.segments.push(shown);
            }
            if let Some(cache) = segment.cache.as_deref_mut() {
                *cache.as_any_mut().downcast_mut::<NaiveStore>().expect("a naive cache") = after;
            }
        }
        Ok(())
    }
}

impl NaiveStore {
    fn new(spec: &ModelSpec, options: CacheOptions, half: bool) -> Self {
        Self {
            table: CacheTable::new(spec.layers, spec.kv_heads, options.form),
            half,
            heads: vec![Vec::new(); spec.layers * spec.kv_heads],
        }
    }
}

/// A table with new rows: in each layer those that reached it.
fn grown(table: &CacheTable, positions: &[Position], reached: &[Vec<usize>]) -> CacheTable {
    let (layers, heads) = (table.layers(), table.kv_heads());
    let mut grown = table.clone();
    grown.append(positions);
    if reached.iter().any(|rows| rows.len() < positions.len()) {
        let keep = |at: usize| {
            let held = table.positions(at / heads, at % heads).len();
            let new = reached[at / heads].iter().map(|&i| held + i);
            Keep::rows((0..held).chain(new).map(|row| row as Row))
        };
        let keeps = (0..layers * heads).map(keep).collect();
        grown.compact(&KeepPlan::per_head(layers, heads, keeps).unwrap()).unwrap();
    }
    grown
}

impl KvStore for NaiveStore {
    fn table(&self) -> &CacheTable {
        &self.table
    }

    fn rollback(&mut self, count: usize) -> Result<()> {
        self.table.pop(count)?;
        self.heads.iter_mut().for_each(|list| list.truncate(list.len() - count));
        Ok(())
    }

    fn compact(&mut self, plan: &KeepPlan) -> Result<()> {
        let kv = self.table.kv_heads();
        self.table.compact(plan)?;
        for (at, list) in self.heads.iter_mut().enumerate() {
            let keep = plan.keep(at / kv, at % kv);
            let old = list.clone();
            for merge in &keep.merges {
                let d = old[merge.into as usize].0.len();
                let mut sum = (vec![0.0; d], vec![0.0; d]);
                for (row, weight) in &merge.parts {
                    for c in 0..d {
                        sum.0[c] += f64::from(*weight) * old[*row as usize].0[c];
                        sum.1[c] += f64::from(*weight) * old[*row as usize].1[c];
                    }
                }
                list[merge.into as usize] = (round(self.half, &sum.0), round(self.half, &sum.1));
            }
            *list = keep.rows.iter().map(|&row| list[row as usize].clone()).collect();
        }
        Ok(())
    }

    fn reposition(&mut self, positions: &[Position]) -> Result<()> {
        self.table.reposition(positions)
    }

    fn fork(&self) -> Result<Box<dyn KvStore>> {
        Ok(Box::new(self.clone()))
    }

    fn restore(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        let saved = checkpoint.store.as_any().downcast_ref::<Self>();
        *self = saved.ok_or_else(|| Error::cache("another backbone"))?.clone();
        Ok(())
    }

    fn read(&self, layer: usize, head: usize, row: Row, values: bool) -> Result<Vec<f32>> {
        let list = &self.heads[layer * self.table.kv_heads() + head];
        let (k, v) = list.get(row as usize).ok_or_else(|| Error::cache(format!("no row {row}")))?;
        Ok(if values { v } else { k }.iter().map(|&x| x as f32).collect())
    }

    fn bytes(&self) -> usize {
        0
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}

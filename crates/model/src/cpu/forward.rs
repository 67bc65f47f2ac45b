//! One pass through the cpu backbone.
//!
//! The rows of all segments share every product; attention runs per segment. What a row computes
//! depends on the row, its visible keys and nothing else, so a pass may be cut or joined freely.

use super::elementwise;
use tessera_core::pass::{KeyReader, ReadEvidence, RowEvidence};
use tessera_core::visible::{Reading, check_segment};
use tessera_core::{
    Error, HiddenSite, Input, KeyForm, KeySet, KvStore, Layers, Mask, Pass, Position, Result,
    Reveal, Row, RowsOut, Segment, SegmentReveal, Taps, Visible, Write,
};
use tessera_kernels::attention::{AttendInput, AttendScratch, Bias, SpanTable, attend};
use tessera_kernels::{Activations, KvLayer, Target, product};

use super::store::{CpuStore, kernel};
use super::weights::{Layer, Linear};
use super::{Arithmetic, CpuBackbone};
use crate::arch::Activation;

/// Buffers reused from pass to pass.
#[derive(Default)]
pub(super) struct Scratch {
    x: Vec<f32>,
    h: Vec<f32>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    attended: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
    activations: Activations,
    attend: AttendScratch,
    visible: Visible,
    states: Vec<State>,
    positions: Vec<Position>,
}

/// What a segment needs while the layers run.
#[derive(Default)]
struct State {
    /// First of its rows among all rows of the pass.
    offset: usize,
    /// Its rows still running, as indices into the segment.
    active: Vec<u32>,
    /// Cached rows of the longest head before the pass.
    cached: usize,
    /// Whether one table of spans serves all layers with the same window.
    shared: bool,
    /// Span tables by window.
    spans: Vec<(Option<u32>, SpanTable)>,
    /// From which layer on which rows ran, once rows have been dropped.
    dropped: Vec<(usize, Vec<u32>)>,
    /// Score biases by cache row, empty without.
    bias: Vec<f32>,
    bias_columns: usize,
}

impl State {
    /// Positions appended to each layer, if rows were dropped on the way.
    fn by_layer(&self, positions: &[Position], layers: usize) -> Option<Vec<Vec<Position>>> {
        if self.dropped.is_empty() {
            return None;
        }
        let ran = |l: usize| self.dropped.iter().rev().find(|(from, _)| *from <= l);
        Some(
            (0..layers)
                .map(|l| match ran(l) {
                    None => positions.to_vec(),
                    Some((_, rows)) => rows.iter().map(|&r| positions[r as usize]).collect(),
                })
                .collect(),
        )
    }
}

impl CpuBackbone {
    pub(super) fn run(
        &self,
        pass: &mut Pass<'_, '_>,
        reveal: &mut Reveal,
        scratch: &mut Scratch,
    ) -> Result<()> {
        self.check(pass)?;
        // Segments without a cache run on one of their own that is dropped afterwards.
        let mut own: Vec<Option<CpuStore>> = Vec::new();
        let mut backups: Vec<Option<CpuStore>> = Vec::new();
        for segment in pass.segments.iter_mut() {
            own.push(match segment.cache {
                Some(_) => None,
                None => Some(self.store(KeyForm::Rotated, segment.positions.len())?),
            });
            // Only a policy's answer can fail a pass that has been checked; refreshed rows
            // cannot be told from older ones afterwards, so they are saved.
            let risky = pass.sites.is_some() && matches!(segment.write, Write::Rows(_));
            backups.push(match &segment.cache {
                Some(cache) if risky => {
                    cache.as_any().downcast_ref::<CpuStore>().map(CpuStore::clone)
                }
                _ => None,
            });
        }
        let done = self.layers(pass, &mut own, reveal, scratch);
        for (segment, backup) in pass.segments.iter_mut().zip(backups) {
            let Some(store) = segment.cache.as_mut().and_then(|c| c.as_any_mut().downcast_mut())
            else {
                continue;
            };
            match backup {
                Some(saved) if done.is_err() => *store = saved,
                _ => CpuStore::trim(store),
            }
        }
        done
    }

    fn check(&self, pass: &Pass<'_, '_>) -> Result<()> {
        if pass.segments.is_empty() {
            return Err(Error::pass("segments: a pass needs at least one"));
        }
        let spec = &self.blueprint.spec;
        for (i, segment) in pass.segments.iter().enumerate() {
            let mut cached = 0;
            if let Some(cache) = &segment.cache {
                let Some(store) = cache.as_any().downcast_ref::<CpuStore>() else {
                    return Err(Error::pass(format!(
                        "segment {i}: the cache was made by another backbone"
                    )));
                };
                if store.layers.len() != spec.layers || store.table().kv_heads() != spec.kv_heads {
                    return Err(Error::pass(format!(
                        "segment {i}: the cache was made for another model"
                    )));
                }
                cached = store.table().len();
                if !store.table().is_uniform()
                    && (!segment.bias.is_empty()
                        || matches!(segment.mask, Mask::Explicit { .. })
                        || matches!(segment.write, Write::Rows(_)))
                {
                    return Err(Error::pass(format!(
                        "segment {i}: bias, explicit masks and refreshed rows need a cache whose \
                         heads all hold the same rows"
                    )));
                }
            }
            check_segment(segment, cached, spec.hidden, spec.vocab)
                .map_err(|e| in_segment(e, i))?;
            if let Some(KeySet::PerHead(heads)) = segment.keys
                && heads.len() != spec.layers * spec.kv_heads
            {
                return Err(Error::pass(format!(
                    "segment {i}: keys: {} lists for {} layers of {} heads",
                    heads.len(),
                    spec.layers,
                    spec.kv_heads
                )));
            }
            if segment.condition.is_some() {
                return Err(self.unsupported("conditions"));
            }
        }
        let last = match pass.layers {
            Layers::All => None,
            Layers::First(n) => n.checked_sub(1),
            Layers::Only(list) => {
                if list.windows(2).any(|w| w[0] >= w[1]) {
                    return Err(Error::pass("layers: must be strictly ascending"));
                }
                list.last().copied()
            }
        };
        let tapped = pass.taps.attention.iter().chain(pass.taps.keys).chain(pass.taps.queries);
        let hidden = pass.taps.hidden.iter().filter_map(|s| match s {
            HiddenSite::After(l) => Some(l),
            HiddenSite::Embedding | HiddenSite::Final => None,
        });
        match last.iter().chain(tapped).chain(hidden).find(|&&l| l >= spec.layers) {
            Some(l) => Err(Error::pass(format!("layer {l} of a model of {}", spec.layers))),
            None => Ok(()),
        }
    }

    fn layers(
        &self,
        pass: &mut Pass<'_, '_>,
        own: &mut [Option<CpuStore>],
        reveal: &mut Reveal,
        s: &mut Scratch,
    ) -> Result<()> {
        let spec = &self.blueprint.spec;
        let hidden = spec.hidden;
        let logits_rows: Vec<usize> =
            pass.segments.iter().map(|g| g.rows_out.count(g.positions.len())).collect();
        reveal.prepare(spec.vocab, logits_rows);
        if !pass.taps.is_empty() {
            reveal.segments.resize(pass.segments.len(), SegmentReveal::default());
        }

        self.embed(pass, own, s)?;
        tap_hidden(
            pass.taps,
            HiddenSite::Embedding,
            pass.segments,
            s,
            hidden,
            &mut reveal.segments,
        );
        for (l, layer) in self.weights.layers.iter().enumerate() {
            if pass.layers.runs(l) {
                self.attention(l, layer, pass, own, s, &mut reveal.segments)?;
                self.feed_forward(layer, s)?;
                if pass.sites.is_some() {
                    self.keep(l, pass, s)?;
                }
            } else {
                blank(l, pass.segments, own, s)?;
            }
            tap_hidden(
                pass.taps,
                HiddenSite::After(l),
                pass.segments,
                s,
                hidden,
                &mut reveal.segments,
            );
        }
        self.head(pass, s, reveal)?;
        for (i, segment) in pass.segments.iter_mut().enumerate() {
            let Some(store) = segment.cache.as_mut().and_then(|c| c.as_any_mut().downcast_mut())
            else {
                continue;
            };
            let store: &mut CpuStore = store;
            match segment.write {
                _ if matches!(segment.input, Input::Queries(_)) => {}
                Write::Append => {
                    let by_layer = s.states[i].by_layer(segment.positions, spec.layers);
                    store.commit(segment.positions, by_layer.as_deref())?;
                }
                Write::Rows(rows) => {
                    for (&row, &p) in rows.iter().zip(segment.positions) {
                        store.refresh(row, p)?;
                    }
                }
                Write::Discard => {}
            }
        }
        Ok(())
    }

    fn embed(&self, pass: &Pass<'_, '_>, own: &[Option<CpuStore>], s: &mut Scratch) -> Result<()> {
        let hidden = self.blueprint.spec.hidden;
        let total: usize = pass.segments.iter().map(|g| g.positions.len()).sum();
        s.x.resize(total * hidden, 0.0);
        s.positions.clear();
        s.states.resize_with(pass.segments.len().max(s.states.len()), State::default);
        let mut offset = 0;
        for (i, segment) in pass.segments.iter().enumerate() {
            let rows = segment.positions.len();
            let out = &mut s.x[offset * hidden..(offset + rows) * hidden];
            match segment.input {
                Input::Tokens(tokens) => {
                    for (row, &t) in out.chunks_exact_mut(hidden).zip(tokens) {
                        self.weights.embedding.row(t as usize, row).map_err(kernel)?;
                    }
                    if self.blueprint.embedding_scale != 1.0 {
                        out.iter_mut().for_each(|v| *v *= self.blueprint.embedding_scale);
                    }
                }
                Input::Embeddings(e) | Input::Queries(e) => out.copy_from_slice(e),
            }
            s.positions.extend_from_slice(segment.positions);
            let store = store_of(segment, &own[i]);
            let state = &mut s.states[i];
            state.offset = offset;
            state.active.clear();
            state.active.extend(0..rows as u32);
            state.cached = store.table().len();
            state.dropped.clear();
            state.spans.iter_mut().for_each(|(_, table)| table.clear());
            state.shared = store.table().is_uniform()
                && !matches!(segment.keys, Some(KeySet::PerHead(_)))
                && pass.sites.is_none();
            remap_bias(segment, state);
            offset += rows;
        }
        Ok(())
    }

    fn attention(
        &self,
        l: usize,
        layer: &Layer,
        pass: &mut Pass<'_, '_>,
        own: &mut [Option<CpuStore>],
        s: &mut Scratch,
        revealed: &mut [SegmentReveal],
    ) -> Result<()> {
        let b = &self.blueprint;
        let (hidden, dim) = (b.spec.hidden, b.spec.head_dim);
        let (qw, kw) = (b.spec.heads * dim, b.spec.kv_heads * dim);
        let rows = s.positions.len();
        let pool = &self.pool;

        s.h.resize(rows * hidden, 0.0);
        elementwise::rms_norm(pool, &s.x, &layer.attn_norm, b.norm_eps, &mut s.h)
            .map_err(kernel)?;
        self.enter(&mut s.activations, &s.h, rows, hidden);
        s.q.resize(rows * qw, 0.0);
        s.k.resize(rows * kw, 0.0);
        s.v.resize(rows * kw, 0.0);
        product(
            pool,
            &s.activations,
            &mut [
                target(&layer.q, &mut s.q, false),
                target(&layer.k, &mut s.k, false),
                target(&layer.v, &mut s.v, false),
            ],
        )
        .map_err(kernel)?;
        if let Some(w) = &layer.q_norm {
            elementwise::rms_norm_in_place(pool, &mut s.q, w, b.norm_eps).map_err(kernel)?;
        }
        if let Some(w) = &layer.k_norm {
            elementwise::rms_norm_in_place(pool, &mut s.k, w, b.norm_eps).map_err(kernel)?;
        }
        let rope = self.rope(l);
        rope.apply(pool, &mut s.q, b.spec.heads, dim, &s.positions).map_err(kernel)?;
        // Keys of a plain cache are stored as they are and turned when they are read.
        s.attended.resize(rows * qw, 0.0);

        for (i, segment) in pass.segments.iter_mut().enumerate() {
            let state = &mut s.states[i];
            let n = state.active.len();
            let at = state.offset;
            if n == 0 {
                continue;
            }
            let k = &mut s.k[at * kw..(at + n) * kw];
            let v = &s.v[at * kw..(at + n) * kw];
            let q = &s.q[at * qw..(at + n) * qw];
            let positions = &s.positions[at..at + n];
            let mut rotated = None;
            let plain_form = store_of(segment, &own[i]).table().form() == KeyForm::Plain;
            if plain_form {
                let mut turned = k.to_vec();
                rope.apply(pool, &mut turned, b.spec.kv_heads, dim, positions).map_err(kernel)?;
                rotated = Some(turned);
            } else {
                rope.apply(pool, k, b.spec.kv_heads, dim, positions).map_err(kernel)?;
            }
            if let Some(out) = revealed.get_mut(i) {
                let full = segment.positions.len();
                reveal_layer(&mut out.queries, pass.taps.queries, l, || {
                    spread(q, qw, &state.active, full)
                });
                let k = rotated.as_deref().unwrap_or(k);
                reveal_layer(&mut out.keys, pass.taps.keys, l, || {
                    spread(k, kw, &state.active, full)
                });
            }

            let queries_only = matches!(segment.input, Input::Queries(_));
            let write = segment.write;
            let store = store_of_mut(segment, &mut own[i]);
            if !queries_only {
                write_rows(&mut store.layers[l], write, &state.active, k, v)?;
            }
            let store = store_of(segment, &own[i]);
            let turned_layer = if plain_form {
                Some(self.turn(l, store, segment, state, positions)?)
            } else {
                None
            };
            let kv = turned_layer.as_ref().unwrap_or(&store.layers[l]);

            let chosen = match pass.sites.as_deref_mut() {
                Some(sites) if sites.reads(l) => sites.read(&ReadEvidence {
                    segment: i,
                    layer: l,
                    queries: q,
                    positions,
                    keys: &Keys(kv),
                })?,
                _ => None,
            };
            if let Some(lists) = &chosen {
                check_read_set(lists, store, l, b.spec.kv_heads)?;
            }
            let window = b.layers[l].window;
            let spans = span_table(state, &mut s.visible, segment, store, l, window, &chosen);
            let input = AttendInput {
                layer: kv,
                q,
                rows: n,
                heads: b.spec.heads,
                scale: b.attention_scale,
                softcap: b.attention_softcap,
                bias: (!state.bias.is_empty())
                    .then_some(Bias { data: &state.bias, stride: state.bias_columns }),
                spans: &state.spans[spans].1,
            };
            attend(pool, &input, &mut s.attend, &mut s.attended[at * qw..(at + n) * qw])
                .map_err(kernel)?;
            if let Some(out) = revealed.get_mut(i)
                && pass.taps.attention.contains(&l)
            {
                let weights = attention_rows(pool, &input, segment, state)?;
                reveal_layer(&mut out.attention, pass.taps.attention, l, || weights.clone());
            }
        }

        self.enter(&mut s.activations, &s.attended, rows, qw);
        self.residual(&layer.o, layer.post_attention_norm.as_deref(), s)
    }

    /// Adds a projection of the activations to the residual stream, normed first if asked.
    fn residual(&self, linear: &Linear, norm: Option<&[f32]>, s: &mut Scratch) -> Result<()> {
        let pool = &self.pool;
        match norm {
            None => product(pool, &s.activations, &mut [target(linear, &mut s.x, true)]),
            Some(w) => {
                s.h.resize(s.x.len(), 0.0);
                product(pool, &s.activations, &mut [target(linear, &mut s.h, false)])
                    .and_then(|()| {
                        elementwise::rms_norm_in_place(pool, &mut s.h, w, self.blueprint.norm_eps)
                    })
                    .and_then(|()| elementwise::add(pool, &mut s.x, &s.h))
            }
        }
        .map_err(kernel)
    }

    fn feed_forward(&self, layer: &Layer, s: &mut Scratch) -> Result<()> {
        let b = &self.blueprint;
        let (hidden, rows) = (b.spec.hidden, s.positions.len());
        s.h.resize(rows * hidden, 0.0);
        elementwise::rms_norm(&self.pool, &s.x, &layer.ffn_norm, b.norm_eps, &mut s.h)
            .map_err(kernel)?;
        self.enter(&mut s.activations, &s.h, rows, hidden);
        s.gate.resize(rows * b.ffn, 0.0);
        s.up.resize(rows * b.ffn, 0.0);
        product(
            &self.pool,
            &s.activations,
            &mut [target(&layer.gate, &mut s.gate, false), target(&layer.up, &mut s.up, false)],
        )
        .map_err(kernel)?;
        match b.activation {
            Activation::Silu => elementwise::silu_mul(&self.pool, &mut s.gate, &s.up),
            Activation::GeluTanh => elementwise::gelu_tanh_mul(&self.pool, &mut s.gate, &s.up),
        }
        .map_err(kernel)?;
        self.enter(&mut s.activations, &s.gate, rows, b.ffn);
        self.residual(&layer.down, layer.post_ffw_norm.as_deref(), s)
    }

    /// Rows of activations as the products take them.
    fn enter(&self, activations: &mut Activations, x: &[f32], rows: usize, width: usize) {
        match self.arithmetic {
            Arithmetic::Int8 if self.mixed => {
                activations.quantize_and_keep(&self.pool, x, rows, width);
            }
            Arithmetic::Int8 => activations.quantize(&self.pool, x, rows, width),
            Arithmetic::F32 => activations.set_f32(x, rows, width),
        }
    }

    fn head(&self, pass: &Pass<'_, '_>, s: &mut Scratch, reveal: &mut Reveal) -> Result<()> {
        let b = &self.blueprint;
        let hidden = b.spec.hidden;
        let eps = b.norm_eps;
        if pass.taps.hidden.contains(&HiddenSite::Final) {
            s.h.resize(s.x.len(), 0.0);
            elementwise::rms_norm(&self.pool, &s.x, &self.weights.output_norm, eps, &mut s.h)
                .map_err(kernel)?;
            std::mem::swap(&mut s.h, &mut s.x);
            tap_hidden(
                pass.taps,
                HiddenSite::Final,
                pass.segments,
                s,
                hidden,
                &mut reveal.segments,
            );
            std::mem::swap(&mut s.h, &mut s.x);
        }
        // Gather the wanted rows to the front of `q`, which is free by now.
        s.q.clear();
        for (segment, state) in pass.segments.iter().zip(&s.states) {
            let rows = segment.positions.len();
            for i in 0..segment.rows_out.count(rows) {
                let row = segment.rows_out.get(i, rows);
                let Ok(at) = state.active.binary_search(&(row as u32)) else {
                    return Err(Error::pass(format!(
                        "rows_out: row {row} was dropped at a reduction site"
                    )));
                };
                let at = (state.offset + at) * hidden;
                s.q.extend_from_slice(&s.x[at..at + hidden]);
            }
        }
        let rows = s.q.len() / hidden;
        if rows == 0 {
            return Ok(());
        }
        elementwise::rms_norm_in_place(&self.pool, &mut s.q, &self.weights.output_norm, eps)
            .map_err(kernel)?;
        self.enter(&mut s.activations, &s.q, rows, hidden);
        let logits = &mut *reveal.all_logits_mut();
        product(&self.pool, &s.activations, &mut [Target::new(self.weights.head(), logits)])
            .map_err(kernel)?;
        if let Some(cap) = b.logit_softcap {
            elementwise::softcap(&self.pool, logits, cap).map_err(kernel)?;
        }
        Ok(())
    }

    /// Asks the policy which rows go on, and drops the others.
    fn keep(&self, l: usize, pass: &mut Pass<'_, '_>, s: &mut Scratch) -> Result<()> {
        let hidden = self.blueprint.spec.hidden;
        let Some(sites) = pass.sites.as_deref_mut() else { return Ok(()) };
        if !sites.keeps(l) {
            return Ok(());
        }
        let mut total = 0;
        for (i, segment) in pass.segments.iter().enumerate() {
            let state = &mut s.states[i];
            let (at, n) = (state.offset, state.active.len());
            let kept = sites.keep(&RowEvidence {
                segment: i,
                layer: l,
                hidden: &s.x[at * hidden..(at + n) * hidden],
                positions: &s.positions[at..at + n],
            })?;
            let kept = match kept {
                Some(rows) => {
                    let sorted = rows.windows(2).all(|w| w[0] < w[1]);
                    if !sorted || rows.last().is_some_and(|&r| r as usize >= n) {
                        return Err(Error::plan(format!(
                            "layer {l}: rows to keep must be sorted, unique and below {n}"
                        )));
                    }
                    if rows.len() < n && !segment.bias.is_empty() {
                        return Err(self.unsupported("dropping rows of a segment with a bias"));
                    }
                    if rows.len() < n && matches!(segment.mask, Mask::Tree { .. }) {
                        return Err(self.unsupported("dropping rows of a tree"));
                    }
                    rows
                }
                None => (0..n as u32).collect(),
            };
            state.offset = total;
            for (to, &from) in kept.iter().enumerate() {
                let (to, from) = (total + to, at + from as usize);
                s.x.copy_within(from * hidden..(from + 1) * hidden, to * hidden);
                s.positions[to] = s.positions[from];
            }
            if kept.len() < n {
                state.active = kept.iter().map(|&r| state.active[r as usize]).collect();
                state.dropped.push((l + 1, state.active.clone()));
            }
            total += kept.len();
        }
        s.x.truncate(total * hidden);
        s.positions.truncate(total);
        Ok(())
    }

    /// A copy of a plain layer with its keys turned to their positions.
    fn turn(
        &self,
        l: usize,
        store: &CpuStore,
        segment: &Segment<'_>,
        state: &State,
        positions: &[Position],
    ) -> Result<KvLayer> {
        let spec = &self.blueprint.spec;
        let from = &store.layers[l];
        let mut to = KvLayer::new(spec.kv_heads, spec.head_dim).map_err(kernel)?;
        to.reserve(from.rows()).map_err(kernel)?;
        let (mut k, mut v) = (vec![0.0; spec.head_dim], vec![0.0; spec.head_dim]);
        for h in 0..spec.kv_heads {
            let mut at = store.table().positions(l, h).to_vec();
            match segment.write {
                _ if matches!(segment.input, Input::Queries(_)) => {}
                Write::Rows(rows) => {
                    for &a in &state.active {
                        at[rows[a as usize] as usize] = segment.positions[a as usize];
                    }
                }
                Write::Append | Write::Discard => at.extend_from_slice(positions),
            }
            for (row, &p) in at.iter().enumerate() {
                from.read_row(h, row, &mut k, &mut v).map_err(kernel)?;
                self.rope(l).apply(&self.pool, &mut k, 1, spec.head_dim, &[p]).map_err(kernel)?;
                to.write_head(h, row, &k, &v).map_err(kernel)?;
            }
        }
        Ok(to)
    }
}

/// The keys of a layer, for a policy that chooses what to read.
struct Keys<'a>(&'a KvLayer);

impl KeyReader for Keys<'_> {
    fn rows(&self, head: usize) -> usize {
        self.0.head_rows(head)
    }

    fn key(&self, head: usize, row: Row, out: &mut [f32]) {
        let mut value = vec![0.0; out.len()];
        // Rows outside the layer leave `out` as it is; the trait has no error to give.
        let _ = self.0.read_row(head, row as usize, out, &mut value);
    }
}

fn in_segment(error: Error, i: usize) -> Error {
    match error {
        Error::Pass { what } => Error::Pass { what: format!("segment {i}: {what}") },
        other => other,
    }
}

fn target<'a>(linear: &'a Linear, out: &'a mut [f32], accumulate: bool) -> Target<'a> {
    let target = Target::new(&linear.w, out).bias(linear.bias.as_deref());
    if accumulate { target.accumulate() } else { target }
}

fn store_of<'a>(segment: &'a Segment<'_>, own: &'a Option<CpuStore>) -> &'a CpuStore {
    let given = segment.cache.as_ref().and_then(|c| c.as_any().downcast_ref());
    match (given, own) {
        (Some(store), _) | (None, Some(store)) => store,
        (None, None) => unreachable!("check() saw the type; a missing cache has a stand-in"),
    }
}

fn store_of_mut<'a>(
    segment: &'a mut Segment<'_>,
    own: &'a mut Option<CpuStore>,
) -> &'a mut CpuStore {
    let given = segment.cache.as_mut().and_then(|c| c.as_any_mut().downcast_mut());
    match (given, own) {
        (Some(store), _) | (None, Some(store)) => store,
        (None, None) => unreachable!("check() saw the type; a missing cache has a stand-in"),
    }
}

/// Writes the keys and values of the rows still running.
fn write_rows(
    kv: &mut KvLayer,
    write: Write<'_>,
    active: &[u32],
    k: &[f32],
    v: &[f32],
) -> Result<()> {
    let (heads, dim) = (kv.kv_heads(), kv.dim());
    let width = heads * dim;
    let first = kv.head_rows(0);
    match write {
        Write::Rows(rows) => {
            for (i, &a) in active.iter().enumerate() {
                let (k, v) = (&k[i * width..(i + 1) * width], &v[i * width..(i + 1) * width]);
                kv.write(rows[a as usize] as usize, k, v).map_err(kernel)?;
            }
            Ok(())
        }
        Write::Append | Write::Discard if (1..heads).all(|h| kv.head_rows(h) == first) => {
            kv.write_rows(first, k, v).map_err(kernel)
        }
        Write::Append | Write::Discard => {
            for h in 0..heads {
                let from = kv.head_rows(h);
                for i in 0..active.len() {
                    let at = i * width + h * dim;
                    kv.write_head(h, from + i, &k[at..at + dim], &v[at..at + dim])
                        .map_err(kernel)?;
                }
            }
            Ok(())
        }
    }
}

/// Keeps the rows of a skipped layer aligned with the table: they hold zeros.
fn blank(
    l: usize,
    segments: &mut [Segment<'_>],
    own: &mut [Option<CpuStore>],
    s: &Scratch,
) -> Result<()> {
    for (i, segment) in segments.iter_mut().enumerate() {
        if segment.write != Write::Append || matches!(segment.input, Input::Queries(_)) {
            continue;
        }
        let active = &s.states[i].active;
        let store = store_of_mut(segment, &mut own[i]);
        let kv = &mut store.layers[l];
        let zeros = vec![0.0; active.len() * kv.kv_heads() * kv.dim()];
        write_rows(kv, Write::Append, active, &zeros, &zeros)?;
    }
    Ok(())
}

/// Moves the bias of refreshed rows to the cache rows they are written to.
fn remap_bias(segment: &Segment<'_>, state: &mut State) {
    state.bias.clear();
    if segment.bias.is_empty() {
        return;
    }
    let rows = segment.positions.len();
    let columns = state.cached + rows;
    state.bias.extend_from_slice(segment.bias);
    state.bias_columns = columns;
    if let Write::Rows(to) = segment.write {
        for row in state.bias.chunks_exact_mut(columns) {
            for (j, &r) in to.iter().enumerate() {
                row[r as usize] = row[state.cached + j];
            }
        }
    }
}

fn check_read_set(lists: &[Vec<Row>], store: &CpuStore, l: usize, kv_heads: usize) -> Result<()> {
    if lists.len() != kv_heads {
        return Err(Error::plan(format!(
            "layer {l}: {} read sets for {kv_heads} key heads",
            lists.len()
        )));
    }
    for (h, rows) in lists.iter().enumerate() {
        let held = store.table().positions(l, h).len();
        let sorted = rows.windows(2).all(|w| w[0] < w[1]);
        if !sorted || rows.last().is_some_and(|&r| r as usize >= held) {
            return Err(Error::plan(format!(
                "layer {l}, head {h}: rows to read must be sorted, unique and below {held}"
            )));
        }
    }
    Ok(())
}

/// The index in `state.spans` of the table for this layer, built if it is not there yet.
fn span_table(
    state: &mut State,
    visible: &mut Visible,
    segment: &Segment<'_>,
    store: &CpuStore,
    l: usize,
    window: Option<u32>,
    chosen: &Option<Vec<Vec<Row>>>,
) -> usize {
    let known = state.spans.iter().position(|(w, t)| *w == window && t.lists() > 0);
    if state.shared
        && let Some(i) = known
    {
        return i;
    }
    let at = known.or_else(|| state.spans.iter().position(|(_, t)| t.lists() == 0));
    let at = at.unwrap_or_else(|| {
        state.spans.push((window, SpanTable::new()));
        state.spans.len() - 1
    });
    let table = store.table();
    let part = Part::new(segment, state);
    let part = part.view(segment);
    let whole = match segment.keys {
        Some(KeySet::Rows(rows)) => Some(rows),
        Some(KeySet::PerHead(_)) | None => None,
    };
    let per_head = matches!(segment.keys, Some(KeySet::PerHead(_)));
    let (slot, out) = &mut state.spans[at];
    *slot = window;
    if table.is_uniform() && chosen.is_none() && !per_head {
        let cached = table.positions(l, 0);
        visible.fill(&part, Reading { cached, plain: table.is_plain(), keys: whole, window });
        if out.is_per_head() {
            *out = SpanTable::new();
        }
        out.clear();
        for row in 0..visible.rows() {
            push(out, visible, row);
        }
        return at;
    }
    let kv_heads = table.kv_heads();
    let mut heads = Vec::with_capacity(kv_heads);
    for h in 0..kv_heads {
        let keys = match (chosen, segment.keys) {
            (Some(lists), _) => Some(lists[h].as_slice()),
            (None, Some(KeySet::PerHead(lists))) => Some(lists[l * kv_heads + h].as_slice()),
            (None, _) => whole,
        };
        let cached = table.positions(l, h);
        let mut v = Visible::new();
        v.fill(&part, Reading { cached, plain: table.is_plain(), keys, window });
        heads.push(v);
    }
    *out = SpanTable::per_head();
    for row in 0..part.positions.len() {
        for v in &heads {
            push(out, v, row);
        }
    }
    at
}

fn push(out: &mut SpanTable, visible: &Visible, row: usize) {
    for s in visible.row(row) {
        out.push_span(tessera_kernels::attention::Span { slot: s.slot, row: s.row, len: s.len });
    }
    out.end_list();
}

/// A segment reduced to the rows that still run.
struct Part {
    /// `None` while all rows run.
    rows: Option<Rows>,
}

struct Rows {
    positions: Vec<Position>,
    block: Vec<u32>,
    bits: Vec<bool>,
    columns: usize,
    write: Vec<Row>,
}

impl Part {
    fn new(segment: &Segment<'_>, state: &State) -> Self {
        if state.dropped.is_empty() {
            return Self { rows: None };
        }
        let active = &state.active;
        let pick = |from: &[u32]| active.iter().map(|&a| from[a as usize]).collect();
        let mut rows = Rows {
            positions: pick(segment.positions),
            block: Vec::new(),
            bits: Vec::new(),
            columns: state.cached + active.len(),
            write: Vec::new(),
        };
        match segment.mask {
            Mask::Block { block } => rows.block = pick(block),
            Mask::Explicit { bits, columns } => {
                for &a in active {
                    let row = &bits[a as usize * columns..(a as usize + 1) * columns];
                    rows.bits.extend_from_slice(&row[..state.cached]);
                    rows.bits.extend(active.iter().map(|&j| row[state.cached + j as usize]));
                }
            }
            // Rows of a tree are never dropped: see `keep`.
            Mask::Causal | Mask::Bidirectional | Mask::Tree { .. } => {}
        }
        if let Write::Rows(to) = segment.write {
            rows.write = pick(to);
        }
        Self { rows: Some(rows) }
    }

    fn view<'a>(&'a self, whole: &'a Segment<'_>) -> Segment<'a> {
        let input = match whole.input {
            Input::Queries(_) => Input::Queries(&[]),
            Input::Tokens(_) | Input::Embeddings(_) => Input::Embeddings(&[]),
        };
        let mut part = Segment {
            input,
            positions: whole.positions,
            mask: whole.mask,
            keys: None,
            bias: &[],
            write: whole.write,
            rows_out: RowsOut::None,
            condition: None,
            cache: None,
        };
        if let Some(rows) = &self.rows {
            part.positions = &rows.positions;
            part.mask = match whole.mask {
                Mask::Block { .. } => Mask::Block { block: &rows.block },
                Mask::Explicit { .. } => Mask::Explicit { bits: &rows.bits, columns: rows.columns },
                other => other,
            };
            if matches!(whole.write, Write::Rows(_)) {
                part.write = Write::Rows(&rows.write);
            }
        }
        part
    }
}

/// Rows still running, spread over all rows of the segment; dropped rows are zero.
fn spread(values: &[f32], width: usize, active: &[u32], rows: usize) -> Vec<f32> {
    let mut out = vec![0.0; rows * width];
    for (from, &to) in values.chunks_exact(width).zip(active) {
        out[to as usize * width..(to as usize + 1) * width].copy_from_slice(from);
    }
    out
}

fn tap_hidden(
    taps: Taps<'_>,
    site: HiddenSite,
    segments: &[Segment<'_>],
    s: &Scratch,
    hidden: usize,
    revealed: &mut [SegmentReveal],
) {
    // In the order asked for, whichever layer comes first.
    for (slot, _) in taps.hidden.iter().enumerate().filter(|(_, want)| **want == site) {
        for ((segment, state), out) in segments.iter().zip(&s.states).zip(revealed.iter_mut()) {
            let (at, n) = (state.offset, state.active.len());
            let block = spread(
                &s.x[at * hidden..(at + n) * hidden],
                hidden,
                &state.active,
                segment.positions.len(),
            );
            if out.hidden.len() <= slot {
                out.hidden.resize(taps.hidden.len(), Vec::new());
            }
            out.hidden[slot] = block;
        }
    }
}

/// Puts a layer's block at every place where the taps asked for that layer.
fn reveal_layer(
    out: &mut Vec<Vec<f32>>,
    wanted: &[usize],
    layer: usize,
    block: impl Fn() -> Vec<f32>,
) {
    for (slot, _) in wanted.iter().enumerate().filter(|(_, l)| **l == layer) {
        if out.len() <= slot {
            out.resize(wanted.len(), Vec::new());
        }
        out[slot] = block();
    }
}

/// Attention probabilities with the columns that [`SegmentReveal::attention`] promises.
fn attention_rows(
    pool: &tessera_kernels::Pool,
    input: &AttendInput<'_>,
    segment: &Segment<'_>,
    state: &State,
) -> Result<Vec<f32>> {
    let stored = input.layer.rows();
    let rows = segment.positions.len();
    let columns = state.cached + rows;
    let mut by_row = vec![0.0; input.rows * input.heads * stored];
    let _ = (pool, &mut by_row); //XX
    let mut out = vec![0.0; rows * input.heads * columns];
    for (i, &a) in state.active.iter().enumerate() {
        for h in 0..input.heads {
            let from = &by_row[(i * input.heads + h) * stored..][..stored];
            let to = &mut out[(a as usize * input.heads + h) * columns..][..columns];
            let cached = state.cached.min(stored);
            to[..cached].copy_from_slice(&from[..cached]);
            for (j, &b) in state.active.iter().enumerate() {
                let column = state.cached + b as usize;
                match segment.write {
                    Write::Rows(w) => {
                        let row = w[b as usize] as usize;
                        to[column] = std::mem::take(&mut to[row]);
                    }
                    Write::Append | Write::Discard => {
                        if let Some(&p) = from.get(state.cached + j) {
                            to[column] = p;
                        }
                    }
                }
            }
        }
    }
    Ok(out)
}

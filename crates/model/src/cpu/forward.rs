//! One pass through the cpu backbone.
//!
//! The rows of all segments share every product; attention runs per segment. What a row computes
//! depends on the row, its visible keys and nothing else, so a pass may be cut or joined freely.
//!
//! Long because the order of a layer is read in one piece.

use std::cell::RefCell;

use tessera_core::pass::{HeadEvidence, ReadEvidence};
use tessera_core::{
    Error, HiddenSite, Input, KeyForm, KeySet, KvStore, Pass, Position, Result, Reveal,
    SegmentReveal, Visible, Write,
};
use tessera_kernels::attention::{
    AttendInput, AttendScratch, Bias, RankScratch, SpanTable, attend,
};
use tessera_kernels::elementwise;
use tessera_kernels::{Activations, KvLayer, Target, product};

use super::check::check_read_set;
use super::heads::{SharesOf, attend_among, plainly_causal};
use super::last::{narrow, pick};
use super::reveal::{attention_rows, received, reveal_layer, spread, tap_hidden};
use super::rows::{Keys, blank, store_of, store_of_mut, write_rows};
use super::segment::{State, few_rows, remap_bias, span_table};
use super::store::{CpuStore, kernel};
use super::weights::{Layer, Linear};
use super::{Arithmetic, CpuBackbone};
use crate::arch::Activation;

/// Buffers reused from pass to pass.
#[derive(Default)]
pub(super) struct Scratch {
    pub x: Vec<f32>,
    pub h: Vec<f32>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    attended: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
    activations: Activations,
    attend: AttendScratch,
    rank: RankScratch,
    visible: Visible,
    /// Spans of the rows that go on where the last layer drops some.
    picked: SpanTable,
    /// A layer of a plain cache with its keys turned.
    turned: Option<KvLayer>,
    pub states: Vec<State>,
    pub positions: Vec<Position>,
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
                Some(cache) if risky => cache.as_any().downcast_ref::<CpuStore>().cloned(),
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
            // After the tap: a row that leaves here did come through the layer.
            if pass.sites.is_some() && pass.layers.runs(l) {
                self.keep(l, pass, s)?;
            }
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
            state.behind = None;
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
        s.k.resize(rows * kw, 0.0);
        s.v.resize(rows * kw, 0.0);
        let narrows = self.narrows(l, pass, own);
        let (k, v) = (target(&layer.k, &mut s.k, false), target(&layer.v, &mut s.v, false));
        if narrows {
            product(pool, &s.activations, &mut [k, v])
        } else {
            s.q.resize(rows * qw, 0.0);
            product(pool, &s.activations, &mut [target(&layer.q, &mut s.q, false), k, v])
        }
        .map_err(kernel)?;
        if let Some(w) = &layer.k_norm {
            elementwise::rms_norm_in_place(pool, &mut s.k, w, b.norm_eps).map_err(kernel)?;
        }
        self.write_keys(l, pass, own, s, revealed)?;
        if narrows {
            narrow(pass, hidden, s);
            if s.positions.is_empty() {
                return Ok(());
            }
            let rows = s.positions.len();
            self.enter(&mut s.activations, &s.h, rows, hidden);
            s.q.resize(rows * qw, 0.0);
            product(pool, &s.activations, &mut [target(&layer.q, &mut s.q, false)])
                .map_err(kernel)?;
        }
        if let Some(w) = &layer.q_norm {
            elementwise::rms_norm_in_place(pool, &mut s.q, w, b.norm_eps).map_err(kernel)?;
        }
        self.rope(l).apply(pool, &mut s.q, b.spec.heads, dim, &s.positions).map_err(kernel)?;
        let rows = s.positions.len();
        s.attended.resize(rows * qw, 0.0);

        for (i, segment) in pass.segments.iter_mut().enumerate() {
            let state = &mut s.states[i];
            let n = state.active.len();
            let at = state.offset;
            if n == 0 {
                continue;
            }
            let q = &s.q[at * qw..(at + n) * qw];
            let positions = &s.positions[at..at + n];
            if let Some(out) = revealed.get_mut(i) {
                let full = segment.positions.len();
                reveal_layer(&mut out.queries, pass.taps.queries, l, || {
                    spread(q, qw, &state.active, full)
                });
            }
            // Rows that are going to be ranked lie ready for it, from the first time on.
            let columns = pass.sites.as_deref().and_then(|sites| sites.columns(i, l));
            if let Some(columns) = columns {
                let store = store_of_mut(segment, &mut own[i]);
                if store.table().form() == KeyForm::Rotated {
                    store.layers[l].index(columns).map_err(kernel)?;
                }
            }
            let store = store_of(segment, &own[i]);
            // Keys of a plain cache are stored as they are and turned when they are read.
            let kv = if store.table().form() == KeyForm::Plain {
                let turned = match &mut s.turned {
                    Some(turned) => turned,
                    none => none.insert(KvLayer::new(b.spec.kv_heads, dim).map_err(kernel)?),
                };
                self.turn(l, store, segment, state, positions, turned)?;
                &*turned
            } else {
                &store.layers[l]
            };

            let mut chosen = match pass.sites.as_deref_mut() {
                Some(sites) if sites.reads(l) => sites.read(&ReadEvidence {
                    segment: i,
                    layer: l,
                    queries: q,
                    positions,
                    cached: store.table().len(),
                    keys: &Keys {
                        stored: &store.layers[l],
                        layer: kv,
                        pool,
                        rank: RefCell::new(&mut s.rank),
                    },
                })?,
                _ => None,
            };
            if let Some(lists) = &chosen {
                check_read_set(lists, store, l, b.spec.kv_heads)?;
                let held = |h: usize| store.table().positions(l, h).len();
                if lists.iter().enumerate().all(|(h, rows)| rows.len() == held(h)) {
                    chosen = None;
                }
            }
            let window = b.layers[l].window;
            let few = match chosen.take_if(|_| pass.taps.is_empty() && window.is_none()) {
                Some(lists) => few_rows(state, &mut s.visible, segment, store, l, lists),
                None => Err(chosen),
            };
            let few_table;
            let mut spans = match few {
                Ok(table) => {
                    few_table = table;
                    &few_table
                }
                Err(chosen) => {
                    let at = span_table(state, &mut s.visible, segment, store, l, window, &chosen);
                    &state.spans[at].1
                }
            };
            if narrows {
                pick(spans, &state.active, b.spec.kv_heads, &mut s.picked);
                spans = &s.picked;
            }
            let input = AttendInput {
                layer: kv,
                q,
                rows: n,
                heads: b.spec.heads,
                scale: b.attention_scale,
                softcap: b.attention_softcap,
                bias: (!state.bias.is_empty())
                    .then_some(Bias { data: &state.bias, stride: state.bias_columns }),
                spans,
            };
            let out = &mut s.attended[at * qw..(at + n) * qw];
            if let Some(sites) = pass.sites.as_deref_mut()
                && sites.attends(l)
            {
                let lists = sites.attend(&HeadEvidence {
                    segment: i,
                    layer: l,
                    heads: b.spec.heads,
                    cached: store.table().len(),
                    positions,
                    shares: &SharesOf { input, pool, scratch: RefCell::new(&mut s.attend) },
                })?;
                if let Some(lists) = lists {
                    if !(plainly_causal(segment, store) && pass.taps.is_empty() && window.is_none())
                    {
                        return Err(self.unsupported("rows by query head in such a pass"));
                    }
                    attend_among(pool, &input, &lists, store.table().len(), &mut s.attend, out)?;
                    continue;
                }
            }
            attend(pool, &input, &mut s.attend, out).map_err(kernel)?;
            let shown = (pass.taps.attention.contains(&l), pass.taps.received.layers.contains(&l));
            if shown == (false, false) {
                continue;
            }
            let held: Vec<usize> =
                (0..b.spec.kv_heads).map(|h| store.table().positions(l, h).len()).collect();
            if let Some(out) = revealed.get_mut(i)
                && shown.1
            {
                let wanted = pass.taps.received;
                let sums = received(pool, &input, &mut s.attend, wanted, segment, state, &held)?;
                reveal_layer(&mut out.received, wanted.layers, l, || sums.clone());
            }
            if let Some(out) = revealed.get_mut(i)
                && shown.0
            {
                let weights = attention_rows(pool, &input, segment, state, &held)?;
                reveal_layer(&mut out.attention, pass.taps.attention, l, || weights.clone());
            }
        }

        self.enter(&mut s.activations, &s.attended, rows, qw);
        self.residual(&layer.o, layer.post_attention_norm.as_deref(), s)
    }

    /// Turns the keys of all rows and writes them, with their values, to the caches.
    fn write_keys(
        &self,
        l: usize,
        pass: &mut Pass<'_, '_>,
        own: &mut [Option<CpuStore>],
        s: &mut Scratch,
        revealed: &mut [SegmentReveal],
    ) -> Result<()> {
        let spec = &self.blueprint.spec;
        let (dim, kw) = (spec.head_dim, spec.kv_heads * spec.head_dim);
        let rope = self.rope(l);
        for (i, segment) in pass.segments.iter_mut().enumerate() {
            let state = &s.states[i];
            let (at, n) = (state.offset, state.active.len());
            if n == 0 {
                continue;
            }
            let k = &mut s.k[at * kw..(at + n) * kw];
            let v = &s.v[at * kw..(at + n) * kw];
            let positions = &s.positions[at..at + n];
            let mut rotated = None;
            if store_of(segment, &own[i]).table().form() == KeyForm::Plain {
                let mut turned = k.to_vec();
                rope.apply(&self.pool, &mut turned, spec.kv_heads, dim, positions)
                    .map_err(kernel)?;
                rotated = Some(turned);
            } else {
                rope.apply(&self.pool, k, spec.kv_heads, dim, positions).map_err(kernel)?;
            }
            if let Some(out) = revealed.get_mut(i) {
                let shown = rotated.as_deref().unwrap_or(k);
                reveal_layer(&mut out.keys, pass.taps.keys, l, || {
                    spread(shown, kw, &state.active, segment.positions.len())
                });
            }
            if !matches!(segment.input, Input::Queries(_)) {
                let write = segment.write;
                let store = store_of_mut(segment, &mut own[i]);
                write_rows(&mut store.layers[l], write, &state.active, k, v)?;
            }
        }
        Ok(())
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
        if rows == 0 {
            return Ok(());
        }
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
}

fn target<'a>(linear: &'a Linear, out: &'a mut [f32], accumulate: bool) -> Target<'a> {
    let target = Target::new(&linear.w, out).bias(linear.bias.as_deref());
    if accumulate { target.accumulate() } else { target }
}

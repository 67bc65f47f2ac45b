//! Rows of keys and values on their way into a cache, and rows that stop on the way.

use std::cell::RefCell;

use tessera_core::pass::{KeyReader, RowEvidence, Top};
use tessera_core::{
    Error, Input, KeyForm, KvStore, Mask, Pass, Position, Result, Row, Segment, Write,
};
use tessera_kernels::attention::{Pooling, RankInput, RankScratch, rank};
use tessera_kernels::{KvLayer, Pool};

use super::CpuBackbone;
use super::forward::Scratch;
use super::segment::State;
use super::store::{CpuStore, kernel};

impl CpuBackbone {
    /// Asks the policy which rows go on, and drops the others.
    pub(super) fn keep(&self, l: usize, pass: &mut Pass<'_, '_>, s: &mut Scratch) -> Result<()> {
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

    /// Turns the keys of a rotated cache back, in place.
    pub(super) fn turn_back(&self, cache: &mut dyn KvStore) -> Result<()> {
        let dim = self.blueprint.spec.head_dim;
        let Some(store) = cache.as_any_mut().downcast_mut::<CpuStore>() else {
            return Err(Error::cache("made by another backbone"));
        };
        if store.table().form() == KeyForm::Plain {
            return Ok(());
        }
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        for l in 0..store.layers.len() {
            for h in 0..store.table().kv_heads() {
                let positions = store.table().positions(l, h).to_vec();
                let layer = &mut store.layers[l];
                keys.resize(positions.len() * dim, 0.0);
                values.resize(positions.len() * dim, 0.0);
                let rows = keys.chunks_exact_mut(dim).zip(values.chunks_exact_mut(dim));
                for (row, (k, v)) in rows.enumerate() {
                    layer.read_row(h, row, k, v).map_err(kernel)?;
                }
                self.rope(l).undo(&self.pool, &mut keys, 1, dim, &positions).map_err(kernel)?;
                let rows = keys.chunks_exact(dim).zip(values.chunks_exact(dim));
                for (row, (k, v)) in rows.enumerate() {
                    layer.write_head(h, row, k, v).map_err(kernel)?;
                }
            }
        }
        store.set_plain();
        Ok(())
    }

    /// Makes `to` a plain layer with its keys turned to their positions, those of the pass included.
    pub(super) fn turn(
        &self,
        l: usize,
        store: &CpuStore,
        segment: &Segment<'_>,
        state: &State,
        positions: &[Position],
        to: &mut KvLayer,
    ) -> Result<()> {
        let table = store.table();
        let place = |h: usize| {
            let mut at = table.positions(l, h).to_vec();
            match segment.write {
                _ if matches!(segment.input, Input::Queries(_)) => {}
                Write::Rows(rows) => {
                    for &a in &state.active {
                        at[rows[a as usize] as usize] = segment.positions[a as usize];
                    }
                }
                Write::Append | Write::Discard => at.extend_from_slice(positions),
            }
            at
        };
        let kv_heads = table.kv_heads();
        let lists: Vec<Vec<Position>> = match table.is_uniform() {
            true => vec![place(0)],
            false => (0..kv_heads).map(place).collect(),
        };
        let heads: Vec<&[Position]> =
            (0..kv_heads).map(|h| lists[h.min(lists.len() - 1)].as_slice()).collect();
        store.layers[l].turn_into(&self.pool, self.rope(l), &heads, to).map_err(kernel)
    }
}

/// The keys of a layer, for a policy that chooses what to read.
pub(super) struct Keys<'a> {
    /// As they are stored.
    pub stored: &'a KvLayer,
    /// Turned to their positions.
    pub layer: &'a KvLayer,
    pub pool: &'a Pool,
    pub rank: RefCell<&'a mut RankScratch>,
}

impl KeyReader for Keys<'_> {
    fn rows(&self, head: usize) -> usize {
        self.layer.head_rows(head)
    }

    fn top(&self, ask: &Top<'_>) -> Result<Vec<Vec<Row>>> {
        ask.check()?;
        // Keys that were turned for this pass only are not worth laying out.
        let turned;
        let layer = if self.layer.is_indexed_by(ask.columns) {
            self.layer
        } else {
            let mut copy = self.layer.clone();
            copy.index(ask.columns).map_err(kernel)?;
            turned = copy;
            &turned
        };
        let rows: Vec<_> = (0..layer.kv_heads())
            .map(|h| ask.rows.start.min(layer.head_rows(h))..ask.rows.end.min(layer.head_rows(h)))
            .collect();
        let input = RankInput {
            layer,
            q: ask.queries,
            heads: ask.heads,
            pooling: match ask.pooling {
                tessera_core::pass::Pooling::Sum => Pooling::Sum,
                tessera_core::pass::Pooling::Max => Pooling::Max,
            },
            among: &rows,
            count: ask.count,
        };
        let mut chosen = vec![Vec::new(); rows.len()];
        rank(self.pool, &input, &mut self.rank.borrow_mut(), &mut chosen).map_err(kernel)?;
        Ok(chosen)
    }

    fn key(&self, head: usize, row: Row, out: &mut [f32]) {
        let mut value = vec![0.0; out.len()];
        // Rows outside the layer leave `out` as it is; the trait has no error to give.
        let _ = self.stored.read_row(head, row as usize, out, &mut value);
    }
}

pub(super) fn store_of<'a>(segment: &'a Segment<'_>, own: &'a Option<CpuStore>) -> &'a CpuStore {
    let given = segment.cache.as_ref().and_then(|c| c.as_any().downcast_ref());
    match (given, own) {
        (Some(store), _) | (None, Some(store)) => store,
        (None, None) => unreachable!("check() saw the type; a missing cache has a stand-in"),
    }
}

pub(super) fn store_of_mut<'a>(
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
pub(super) fn write_rows(
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
pub(super) fn blank(
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

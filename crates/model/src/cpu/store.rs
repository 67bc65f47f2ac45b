//! The bytes of a cache of the cpu backbone: one [`KvLayer`] per layer beside the common table.

use std::any::Any;

use tessera_core::{
    CacheTable, Checkpoint, Error, KeepPlan, KeyForm, KvStore, Position, Result, Row,
};
use tessera_kernels::{KernelError, KvLayer};

/// Rows that a large compaction leaves room for, at most a quarter of those that it freed.
const ROOM: usize = 64;

/// Unused rows, beyond half of those in use, that a small compaction leaves to be filled again.
const SPARE: usize = 16;

/// Keys and values of one sequence, rounded to f16 when written.
#[derive(Clone)]
pub struct CpuStore {
    table: CacheTable,
    pub(super) layers: Vec<KvLayer>,
}

pub(super) fn kernel(error: KernelError) -> Error {
    Error::Backbone { backbone: super::NAME.to_owned(), what: error.to_string() }
}

impl CpuStore {
    pub(super) fn new(
        layers: usize,
        kv_heads: usize,
        head_dim: usize,
        form: KeyForm,
        capacity: usize,
    ) -> Result<Self> {
        let mut store = Self {
            table: CacheTable::new(layers, kv_heads, form),
            layers: (0..layers)
                .map(|_| KvLayer::new(kv_heads, head_dim))
                .collect::<Result<_, _>>()
                .map_err(kernel)?,
        };
        store.reserve(capacity)?;
        Ok(store)
    }

    fn reserve(&mut self, rows: usize) -> Result<()> {
        self.layers.iter_mut().try_for_each(|l| l.reserve(rows)).map_err(kernel)
    }

    /// Records rows whose keys and values the layers already hold behind their older rows.
    /// `by_layer` is given when rows were dropped on the way.
    pub(super) fn commit(
        &mut self,
        positions: &[Position],
        by_layer: Option<&[Vec<Position>]>,
    ) -> Result<()> {
        match by_layer {
            None => self.table.append(positions),
            Some(lists) => self.table.append_by_layer(lists)?,
        }
        Ok(())
    }

    /// Records that the keys have been turned back.
    pub(super) fn set_plain(&mut self) {
        self.table.set_form(KeyForm::Plain);
    }

    /// Records that `row` now holds `position`.
    pub(super) fn refresh(&mut self, row: Row, position: Position) -> Result<()> {
        self.table.set_position(row, position)
    }

    /// Drops rows that layers hold beyond the table: a pass that failed or whose rows are
    /// discarded.
    pub(super) fn trim(&mut self) {
        let table = &self.table;
        for (l, layer) in self.layers.iter_mut().enumerate() {
            for h in 0..table.kv_heads() {
                // The head exists: the layers were made with the table's shape.
                let _ = layer.truncate_head(h, table.positions(l, h).len());
            }
        }
    }

    fn compact_head(&mut self, layer: usize, head: usize, plan: &KeepPlan) -> Result<()> {
        let kv = &mut self.layers[layer];
        let keep = plan.keep(layer, head);
        let dim = kv.dim();
        let (mut k, mut v) = (vec![0.0; dim], vec![0.0; dim]);
        // All sums are taken from the rows as they were, before any is written.
        let mut merged = Vec::with_capacity(keep.merges.len());
        for merge in &keep.merges {
            let (mut ks, mut vs) = (vec![0.0f32; dim], vec![0.0f32; dim]);
            for &(row, weight) in &merge.parts {
                kv.read_row(head, row as usize, &mut k, &mut v).map_err(kernel)?;
                for d in 0..dim {
                    ks[d] += weight * k[d];
                    vs[d] += weight * v[d];
                }
            }
            merged.push((merge.into as usize, ks, vs));
        }
        for (into, ks, vs) in merged {
            kv.write_head(head, into, &ks, &vs).map_err(kernel)?;
        }
        kv.keep_rows(head, &keep.rows).map_err(kernel)
    }
}

impl KvStore for CpuStore {
    fn table(&self) -> &CacheTable {
        &self.table
    }

    fn rollback(&mut self, count: usize) -> Result<()> {
        self.table.pop(count)?;
        self.trim();
        Ok(())
    }

    fn keep_last(&mut self, count: usize, kept: &[Row]) -> Result<()> {
        let mut table = self.table.clone();
        table.keep_last(count, kept)?;
        for (l, layer) in self.layers.iter_mut().enumerate() {
            for h in 0..table.kv_heads() {
                let first = self.table.positions(l, h).len() - count;
                // Rows only move down and in order, so none is overwritten before it has moved.
                for (to, &from) in kept.iter().enumerate() {
                    if to != from as usize {
                        let from = first + from as usize;
                        layer.copy_row(h, from, first + to).map_err(kernel)?;
                    }
                }
            }
        }
        self.table = table;
        self.trim();
        Ok(())
    }

    fn compact(&mut self, plan: &KeepPlan) -> Result<()> {
        plan.validate(&self.table)?;
        for layer in 0..self.layers.len() {
            let held = self.layers[layer].rows();
            for head in 0..self.table.kv_heads() {
                self.compact_head(layer, head, plan)?;
            }
            // A policy that evicts a row a step would copy everything each time if none was spared.
            let (rows, capacity) = (self.layers[layer].rows(), self.layers[layer].capacity());
            if 8 * (held - rows) >= held || capacity > rows + rows / 2 + SPARE {
                self.layers[layer].shrink_to(rows);
                // Room for the next rows, or the first of them doubles what was given back.
                let room = ROOM.min((capacity - rows) / 4);
                self.layers[layer].reserve(rows + room).map_err(kernel)?;
            }
        }
        self.table.compact(plan)
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
        let Some(saved) = checkpoint.store.as_any().downcast_ref::<Self>() else {
            return Err(Error::cache("the checkpoint was made by another backbone"));
        };
        let shape = |s: &Self| (s.table.layers(), s.table.kv_heads(), s.table.form());
        if shape(saved) != shape(self) {
            return Err(Error::cache("the checkpoint was made for another model"));
        }
        self.clone_from(saved);
        Ok(())
    }

    fn read(&self, layer: usize, head: usize, row: Row, values: bool) -> Result<Vec<f32>> {
        let Some(kv) = self.layers.get(layer) else {
            return Err(Error::cache(format!("layer {layer} of {}", self.layers.len())));
        };
        let (mut k, mut v) = (vec![0.0; kv.dim()], vec![0.0; kv.dim()]);
        kv.read_row(head, row as usize, &mut k, &mut v).map_err(kernel)?;
        Ok(if values { v } else { k })
    }

    fn bytes(&self) -> usize {
        self.layers.iter().map(KvLayer::bytes).sum()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}

//! Keys and values as candle tensors.
//!
//! Tensors are immutable and shared, so a fork or a checkpoint copies nothing: whoever writes next
//! makes new tensors of its own.

use std::any::Any;

use candle_core::{DType, Device, Tensor};
use tessera_core::{
    CacheTable, Checkpoint, Error, Keep, KeepPlan, KeyForm, KvStore, Position, Row, Write,
};

use super::Failure;
use super::ops::{Rope, round_half};

/// The cache of one sequence on the candle backbone.
#[derive(Clone)]
pub struct CandleStore {
    table: CacheTable,
    head_dim: usize,
    half: bool,
    device: Device,
    /// One per (layer, key head), layer-major.
    heads: Vec<Head>,
}

/// Keys and values of one head, each `rows x head_dim`; `None` when there are no rows.
pub(super) type Head = Option<(Tensor, Tensor)>;

/// What a layer computed for the rows of a segment, `active x kv_heads x head_dim` each, already
/// rounded to the cache's precision and in its key form.
pub(super) struct Fresh {
    pub keys: Tensor,
    pub values: Tensor,
}

/// One layer's part in what a segment writes.
#[derive(Default)]
pub(super) struct LayerRows {
    /// The rows of the segment that reached the layer, ascending.
    pub active: Vec<u32>,
    /// What it computed for them; `None` if it did not run.
    pub fresh: Option<Fresh>,
}

impl Fresh {
    /// Keys and values of head `head`, `active x head_dim`.
    pub(super) fn head(&self, head: usize) -> candle_core::Result<(Tensor, Tensor)> {
        let one = |x: &Tensor| x.narrow(1, head, 1)?.squeeze(1)?.contiguous();
        Ok((one(&self.keys)?, one(&self.values)?))
    }
}

/// What a cache will hold after a pass, ready to be put in place without any way to fail.
pub(super) struct Prepared {
    heads: Vec<Head>,
    table: CacheTable,
}

impl CandleStore {
    pub(super) fn new(
        layers: usize,
        kv_heads: usize,
        head_dim: usize,
        form: KeyForm,
        half: bool,
        device: Device,
    ) -> Self {
        Self {
            table: CacheTable::new(layers, kv_heads, form),
            head_dim,
            half,
            device,
            heads: vec![None; layers * kv_heads],
        }
    }

    /// Whether `other` is for the same model on the same device; key forms may differ.
    pub(super) fn like(&self, other: &Self) -> bool {
        let shape = |s: &Self| (s.table.layers(), s.table.kv_heads(), s.head_dim, s.half);
        shape(self) == shape(other) && self.device.same_device(&other.device)
    }

    pub(super) fn head(&self, layer: usize, head: usize) -> &Head {
        &self.heads[layer * self.table.kv_heads() + head]
    }

    /// Turns the keys of a rotated cache back by the rotary encoding of each layer.
    pub(super) fn unrotate<'a>(&mut self, rope: impl Fn(usize) -> &'a Rope) -> Result<(), Failure> {
        if self.table.form() == KeyForm::Plain {
            return Ok(());
        }
        let kv_heads = self.table.kv_heads();
        let mut heads = Vec::with_capacity(self.heads.len());
        for (at, held) in self.heads.iter().enumerate() {
            let (layer, head) = (at / kv_heads, at % kv_heads);
            let Some((k, v)) = held else {
                heads.push(None);
                continue;
            };
            let positions = self.table.positions(layer, head);
            let mut turned =
                rope(layer).undo(&k.unsqueeze(1)?, positions, &self.device)?.squeeze(1)?;
            if self.half {
                turned = round_half(&turned)?;
            }
            heads.push(Some((turned, v.clone())));
        }
        self.heads = heads;
        self.table.set_form(KeyForm::Plain);
        Ok(())
    }

    /// Works out what `write` makes of the rows a pass computed.
    pub(super) fn prepare(
        &self,
        write: Write<'_>,
        positions: &[Position],
        made: &[LayerRows],
    ) -> Result<Prepared, Failure> {
        let table = match write {
            Write::Append => self.appended_table(positions, made)?,
            Write::Rows(rows) => {
                let mut table = self.table.clone();
                for (&row, &position) in rows.iter().zip(positions) {
                    table.set_position(row, position)?;
                }
                table
            }
            Write::Discard => self.table.clone(),
        };
        let mut heads = Vec::with_capacity(self.heads.len());
        for (at, held) in self.heads.iter().enumerate() {
            let (layer, head) = (at / self.table.kv_heads(), at % self.table.kv_heads());
            heads.push(match write {
                Write::Append => self.appended(held, &made[layer], head)?,
                Write::Rows(rows) => self.refreshed(held, &made[layer], head, rows)?,
                Write::Discard => held.clone(),
            });
        }
        Ok(Prepared { heads, table })
    }

    /// Puts in place what [`Self::prepare`] worked out.
    pub(super) fn install(&mut self, prepared: Prepared) {
        self.heads = prepared.heads;
        self.table = prepared.table;
    }

    /// The table with the new rows: in each layer, those that reached it.
    fn appended_table(
        &self,
        positions: &[Position],
        made: &[LayerRows],
    ) -> Result<CacheTable, Failure> {
        let mut table = self.table.clone();
        table.append(positions);
        if made.iter().all(|layer| layer.active.len() == positions.len()) {
            return Ok(table);
        }
        let (layers, kv_heads) = (table.layers(), table.kv_heads());
        let keeps = (0..layers).flat_map(|l| (0..kv_heads).map(move |h| (l, h))).map(|(l, h)| {
            let held = self.table.positions(l, h).len() as Row;
            Keep::rows((0..held).chain(made[l].active.iter().map(|&row| held + row)))
        });
        table.compact(&KeepPlan::per_head(layers, kv_heads, keeps.collect())?)?;
        Ok(table)
    }

    /// A layer that did not run holds zeros for the rows that would have reached it.
    fn appended(&self, held: &Head, made: &LayerRows, head: usize) -> Result<Head, Failure> {
        let rows = made.active.len();
        if rows == 0 {
            return Ok(held.clone());
        }
        let (k, v) = match &made.fresh {
            Some(fresh) => fresh.head(head)?,
            None => {
                let zeros = Tensor::zeros((rows, self.head_dim), DType::F32, &self.device)?;
                (zeros.clone(), zeros)
            }
        };
        let join = |old: &Tensor, new: &Tensor| Tensor::cat(&[old, &new.detach()], 0);
        Ok(Some(match held {
            None => (k.detach(), v.detach()),
            Some((hk, hv)) => (join(hk, &k)?, join(hv, &v)?),
        }))
    }

    /// Rows that a layer did not compute keep what they hold.
    fn refreshed(
        &self,
        held: &Head,
        made: &LayerRows,
        head: usize,
        rows: &[Row],
    ) -> Result<Head, Failure> {
        let (Some((hk, hv)), Some(fresh)) = (held, &made.fresh) else {
            return Ok(held.clone());
        };
        let n = hk.dim(0)?;
        let mut from: Vec<u32> = (0..n as u32).collect();
        for (i, &row) in made.active.iter().enumerate() {
            from[rows[row as usize] as usize] = (n + i) as u32;
        }
        let from = Tensor::new(from, &self.device)?;
        let (k, v) = fresh.head(head)?;
        let pick = |old: &Tensor, new: Tensor| {
            Tensor::cat(&[old, &new.detach()], 0)?.index_select(&from, 0)
        };
        Ok(Some((pick(hk, k)?, pick(hv, v)?)))
    }

    fn keep_head(&self, held: &Head, keep: &Keep) -> Result<Head, Failure> {
        let Some((k, v)) = held else { return Ok(None) };
        if keep.rows.is_empty() {
            return Ok(None);
        }
        let rows = Tensor::new(keep.rows.as_slice(), &self.device)?;
        let one = |x: &Tensor| -> Result<Tensor, Failure> {
            let mut kept = x.index_select(&rows, 0)?;
            for merge in &keep.merges {
                let Ok(slot) = keep.rows.binary_search(&merge.into) else { continue };
                // Every merge reads the rows as they were before the plan.
                let parts: Vec<Row> = merge.parts.iter().map(|p| p.0).collect();
                let weights: Vec<f32> = merge.parts.iter().map(|p| p.1).collect();
                let mut sum = if parts.is_empty() {
                    Tensor::zeros((1, self.head_dim), x.dtype(), &self.device)?
                } else {
                    let weights = Tensor::from_vec(weights, (1, parts.len()), &self.device)?;
                    weights.matmul(&x.index_select(&Tensor::new(parts, &self.device)?, 0)?)?
                };
                if self.half {
                    sum = round_half(&sum)?;
                }
                kept = kept.slice_scatter(&sum, 0, slot)?;
            }
            Ok(kept)
        };
        Ok(Some((one(k)?, one(v)?)))
    }
}

impl KvStore for CandleStore {
    fn table(&self) -> &CacheTable {
        &self.table
    }

    fn rollback(&mut self, count: usize) -> tessera_core::Result<()> {
        let mut table = self.table.clone();
        table.pop(count)?;
        let cut = |held: &Head| -> Result<Head, Failure> {
            let Some((k, v)) = held else { return Ok(None) };
            let left = k.dim(0)? - count;
            if left == 0 {
                return Ok(None);
            }
            Ok(Some((k.narrow(0, 0, left)?, v.narrow(0, 0, left)?)))
        };
        self.heads = self.heads.iter().map(cut).collect::<Result<_, Failure>>()?;
        self.table = table;
        Ok(())
    }

    fn compact(&mut self, plan: &KeepPlan) -> tessera_core::Result<()> {
        let mut table = self.table.clone();
        table.compact(plan)?;
        let mut heads = Vec::with_capacity(self.heads.len());
        for (at, held) in self.heads.iter().enumerate() {
            let kv = self.table.kv_heads();
            heads.push(self.keep_head(held, plan.keep(at / kv, at % kv))?);
        }
        self.heads = heads;
        self.table = table;
        Ok(())
    }

    fn reposition(&mut self, positions: &[Position]) -> tessera_core::Result<()> {
        self.table.reposition(positions)
    }

    fn rerank(&mut self) -> tessera_core::Result<()> {
        self.table.rerank()
    }

    fn fork(&self) -> tessera_core::Result<Box<dyn KvStore>> {
        Ok(Box::new(self.clone()))
    }

    fn restore(&mut self, checkpoint: &Checkpoint) -> tessera_core::Result<()> {
        let saved = checkpoint
            .store
            .as_any()
            .downcast_ref::<Self>()
            .filter(|saved| saved.like(self) && saved.table.form() == self.table.form());
        match saved {
            Some(saved) => {
                *self = saved.clone();
                Ok(())
            }
            None => Err(Error::Cache {
                what: "the checkpoint is of another backbone or another shape".into(),
            }),
        }
    }

    fn read(
        &self,
        layer: usize,
        head: usize,
        row: Row,
        values: bool,
    ) -> tessera_core::Result<Vec<f32>> {
        let known = layer < self.table.layers()
            && head < self.table.kv_heads()
            && (row as usize) < self.table.positions(layer, head).len();
        let held = if known { self.head(layer, head).as_ref() } else { None };
        let Some((k, v)) = held else {
            return Err(Error::Cache {
                what: format!("layer {layer}, head {head} has no row {row} to read"),
            });
        };
        let read = |x: &Tensor| x.get(row as usize)?.to_vec1::<f32>();
        Ok(read(if values { v } else { k }).map_err(Failure::from)?)
    }

    fn bytes(&self) -> usize {
        let size = |x: &Tensor| x.elem_count() * x.dtype().size_in_bytes();
        self.heads.iter().flatten().map(|(k, v)| size(k) + size(v)).sum()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}

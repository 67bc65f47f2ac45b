//! The table of a cache: which rows there are and which positions they hold.
//!
//! The bytes belong to the backbone ([`crate::KvStore`]); this table is the part that every
//! backbone shares, so that rollback, forks and compaction mean the same everywhere.

use crate::plan::KeepPlan;
use crate::{Error, Position, Result, Row};

/// How keys are held.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum KeyForm {
    /// After rotary encoding: fast; a row stays at the position it was written with.
    #[default]
    Rotated,
    /// Before rotary encoding: encoded when read, so that positions may be re-ranked.
    Plain,
}

/// Rows with explicit positions. Normally every layer and head holds the same rows; after a
/// head-wise plan each (layer, key head) has its own list and its own true length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheTable {
    layers: usize,
    kv_heads: usize,
    form: KeyForm,
    /// One list (shared by all heads), or `layers * kv_heads` lists.
    lists: Vec<Vec<Position>>,
}

impl CacheTable {
    /// An empty table for `layers` layers of `kv_heads` key heads.
    pub fn new(layers: usize, kv_heads: usize, form: KeyForm) -> Self {
        Self { layers, kv_heads, form, lists: vec![Vec::new()] }
    }

    /// Number of layers.
    pub fn layers(&self) -> usize {
        self.layers
    }

    /// Number of key heads a layer.
    pub fn kv_heads(&self) -> usize {
        self.kv_heads
    }

    /// How keys are held.
    pub fn form(&self) -> KeyForm {
        self.form
    }

    /// Whether all layers and heads hold the same rows.
    pub fn is_uniform(&self) -> bool {
        self.lists.len() == 1
    }

    /// The positions of the rows of one head, by row.
    pub fn positions(&self, layer: usize, head: usize) -> &[Position] {
        if self.is_uniform() { &self.lists[0] } else { &self.lists[layer * self.kv_heads + head] }
    }

    /// Number of rows of the longest head.
    pub fn len(&self) -> usize {
        self.lists.iter().map(Vec::len).max().unwrap_or(0)
    }

    /// Whether no head holds a row.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Rows held, summed over layers and heads.
    pub fn total_rows(&self) -> usize {
        if self.is_uniform() {
            self.lists[0].len() * self.layers * self.kv_heads
        } else {
            self.lists.iter().map(Vec::len).sum()
        }
    }

    /// One past the largest position held; 0 when empty. Where the next token goes.
    pub fn next_position(&self) -> Position {
        self.lists.iter().flatten().max().map_or(0, |p| p + 1)
    }

    /// Whether row `i` of every head holds position `i`: nothing was evicted, moved or merged.
    pub fn is_plain(&self) -> bool {
        self.is_uniform() && self.lists[0].iter().enumerate().all(|(i, &p)| i == p as usize)
    }

    /// Appends rows at `positions` to every head.
    pub fn append(&mut self, positions: &[Position]) {
        for list in &mut self.lists {
            list.extend_from_slice(positions);
        }
    }

    /// Appends rows whose number differs from layer to layer, because rows were dropped on the
    /// way: `positions[layer]` go to every head of that layer.
    ///
    /// # Errors
    /// [`Error::Cache`] unless there is one list per layer.
    pub fn append_by_layer(&mut self, positions: &[Vec<Position>]) -> Result<()> {
        if positions.len() != self.layers {
            return Err(Error::cache(format!(
                "rows for {} layers, the cache has {}",
                positions.len(),
                self.layers
            )));
        }
        self.lists = (0..self.layers)
            .flat_map(|l| (0..self.kv_heads).map(move |h| (l, h)))
            .map(|(l, h)| [self.positions(l, h), &positions[l]].concat())
            .collect();
        Ok(())
    }

    /// Drops the last `count` rows of every head (a rollback).
    ///
    /// # Errors
    /// [`Error::Cache`] if a head holds fewer; then nothing has changed.
    pub fn pop(&mut self, count: usize) -> Result<()> {
        if let Some(short) = self.lists.iter().map(Vec::len).find(|&n| n < count) {
            return Err(Error::cache(format!(
                "rollback of {count} rows, but a head holds only {short}"
            )));
        }
        for list in &mut self.lists {
            list.truncate(list.len() - count);
        }
        Ok(())
    }

    /// Of the last `count` rows of every head keeps those that `kept` numbers (from 0, ascending).
    ///
    /// # Errors
    /// [`Error::Cache`] if a head holds fewer rows or `kept` is not such a list; then nothing has
    /// changed.
    pub fn keep_last(&mut self, count: usize, kept: &[Row]) -> Result<()> {
        let ascending = kept.windows(2).all(|w| w[0] < w[1]);
        if !ascending || kept.last().is_some_and(|&last| last as usize >= count) {
            return Err(Error::cache(format!("{kept:?} are not some of the last {count} rows")));
        }
        if let Some(short) = self.lists.iter().map(Vec::len).find(|&n| n < count) {
            return Err(Error::cache(format!("the last {count} rows of a head with {short}")));
        }
        for list in &mut self.lists {
            let first = list.len() - count;
            for (to, &from) in kept.iter().enumerate() {
                list[first + to] = list[first + from as usize];
            }
            list.truncate(first + kept.len());
        }
        Ok(())
    }

    /// Gives new positions to the rows of every head of a uniform table.
    ///
    /// # Errors
    /// [`Error::Cache`] if the keys are stored rotated, the table is head-wise, or the number of
    /// positions is not the number of rows.
    pub fn reposition(&mut self, positions: &[Position]) -> Result<()> {
        if self.form == KeyForm::Rotated {
            return Err(Error::cache(
                "positions of rotated keys cannot change; make the cache with KeyForm::Plain",
            ));
        }
        if !self.is_uniform() || positions.len() != self.lists[0].len() {
            return Err(Error::cache(format!(
                "{} new positions for {} rows",
                positions.len(),
                self.len()
            )));
        }
        self.lists[0].copy_from_slice(positions);
        Ok(())
    }

    /// Gives the rows of every head their rank as position, 0 upwards. The table is uniform afterwards.
    ///
    /// # Errors
    /// [`Error::Cache`] if the keys are stored rotated or the heads hold different numbers of rows.
    pub fn rerank(&mut self) -> Result<()> {
        if self.form == KeyForm::Rotated {
            return Err(Error::cache("positions of rotated keys cannot change"));
        }
        let rows = self.len();
        if let Some(short) = self.lists.iter().map(Vec::len).find(|&n| n != rows) {
            return Err(Error::cache(format!(
                "ranks as positions: one head holds {rows} rows, another {short}"
            )));
        }
        self.lists = vec![(0..rows as Position).collect()];
        Ok(())
    }

    /// Records that the keys are held in another form from now on.
    pub fn set_form(&mut self, form: KeyForm) {
        self.form = form;
    }

    /// Overwrites the position of row `row` in every head (a refresh in place).
    ///
    /// # Errors
    /// [`Error::Cache`] if a head has no such row.
    pub fn set_position(&mut self, row: Row, position: Position) -> Result<()> {
        for list in &mut self.lists {
            let held = list.len();
            match list.get_mut(row as usize) {
                Some(p) => *p = position,
                None => {
                    return Err(Error::cache(format!("row {row} does not exist ({held} rows)")));
                }
            }
        }
        Ok(())
    }

    /// Keeps the rows of `plan` and renumbers them from 0. The plan must be valid for this table
    /// ([`KeepPlan::validate`]).
    ///
    /// # Errors
    /// [`Error::Plan`] if it is not; then nothing has changed.
    pub fn compact(&mut self, plan: &KeepPlan) -> Result<()> {
        plan.validate(self)?;
        let pick = |list: &[Position], rows: &[Row]| -> Vec<Position> {
            rows.iter().map(|&r| list[r as usize]).collect()
        };
        self.lists = if plan.is_uniform() && self.is_uniform() {
            vec![pick(&self.lists[0], &plan.keep(0, 0).rows)]
        } else {
            (0..self.layers)
                .flat_map(|l| (0..self.kv_heads).map(move |h| (l, h)))
                .map(|(l, h)| pick(self.positions(l, h), &plan.keep(l, h).rows))
                .collect()
        };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Keep;

    fn table(n: u32) -> CacheTable {
        let mut t = CacheTable::new(2, 3, KeyForm::Rotated);
        t.append(&(0..n).collect::<Vec<_>>());
        t
    }

    #[test]
    fn rollback_undoes_append_and_refuses_more_than_there_is() {
        let mut t = table(5);
        let before = t.clone();
        t.append(&[5, 6]);
        assert_eq!(t.next_position(), 7);
        t.pop(2).unwrap();
        assert_eq!(t, before);
        assert!(t.pop(6).is_err());
        assert_eq!(t, before);
    }

    #[test]
    fn the_last_rows_are_kept_by_number() {
        let mut t = table(3);
        t.append(&[3, 4, 4, 5, 5]);
        for bad in [(5, vec![1, 1]), (5, vec![2, 1]), (5, vec![5]), (9, vec![0])] {
            let before = t.clone();
            assert!(t.keep_last(bad.0, &bad.1).is_err());
            assert_eq!(t, before);
        }
        t.keep_last(5, &[0, 2, 4]).unwrap();
        assert_eq!(t.positions(1, 1), &[0, 1, 2, 3, 4, 5]);
        t.keep_last(2, &[]).unwrap();
        assert_eq!(t.len(), 4);
    }

    #[test]
    fn compaction_keeps_positions_and_leaves_holes() {
        let mut t = table(6);
        t.compact(&KeepPlan::uniform(2, 3, Keep::rows([0, 4, 5]))).unwrap();
        assert_eq!(t.positions(1, 2), &[0, 4, 5]);
        assert_eq!((t.len(), t.next_position(), t.is_plain()), (3, 6, false));
    }

    #[test]
    fn head_wise_compaction_gives_each_head_its_own_length() {
        let mut t = table(4);
        let heads = (0..6).map(|i| Keep::rows(0..(i % 3 + 1))).collect();
        t.compact(&KeepPlan::per_head(2, 3, heads).unwrap()).unwrap();
        assert_eq!((t.positions(0, 0).len(), t.positions(1, 2).len()), (1, 3));
        assert_eq!((t.len(), t.total_rows()), (3, 12));
        t.append(&[4]);
        assert_eq!(t.positions(0, 0), &[0, 4]);
        t.pop(1).unwrap();
        assert_eq!(t.positions(0, 0), &[0]);
    }

    #[test]
    fn rotated_keys_refuse_new_positions() {
        assert!(table(2).reposition(&[0, 1]).is_err());
        let mut plain = CacheTable::new(1, 1, KeyForm::Plain);
        plain.append(&[3, 9]);
        plain.reposition(&[0, 1]).unwrap();
        assert_eq!(plain.positions(0, 0), &[0, 1]);
    }

    #[test]
    fn ranks_make_a_table_plain_again_if_the_heads_are_equally_long() {
        let mut t = table(4);
        let keep = |rows: [u32; 2]| Keep::rows(rows);
        let heads = (0..6).map(|i| keep([i % 3, 3])).collect();
        t.compact(&KeepPlan::per_head(2, 3, heads).unwrap()).unwrap();
        assert!(t.rerank().is_err());
        t.set_form(KeyForm::Plain);
        t.rerank().unwrap();
        assert_eq!((t.is_plain(), t.len(), t.next_position()), (true, 2, 2));
        let heads = (0..6).map(|i| Keep::rows(0..i % 2)).collect();
        t.compact(&KeepPlan::per_head(2, 3, heads).unwrap()).unwrap();
        assert!(t.rerank().is_err());
    }
}

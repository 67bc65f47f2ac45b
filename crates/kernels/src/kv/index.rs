//! The layout of a layer whose rows are read a few at a time.

use half::f16;

use super::{HalfBuffer, Head, KEY_BLOCK, KvLayer, lane_at};
use crate::error::{KernelError, Result};

impl Head {
    /// Copies the ranked columns of a row that is being written.
    pub(super) fn index_row(&mut self, row: usize, key: &[f16]) {
        let at = lane_at(row, self.columns.len());
        let lanes = self.index.as_mut_slice().iter_mut().skip(at).step_by(KEY_BLOCK);
        for (to, &column) in lanes.zip(&self.columns) {
            *to = key[column as usize].to_bits();
        }
    }

    pub(super) fn copy_index(&mut self, from: usize, to: usize) {
        let n = self.columns.len();
        let (from, to) = (lane_at(from, n), lane_at(to, n));
        let index = self.index.as_mut_slice();
        for j in 0..n {
            index[to + j * KEY_BLOCK] = index[from + j * KEY_BLOCK];
        }
    }
}

impl KvLayer {
    /// Lays keys out by row, with the values that `columns` names (one list per head, in this
    /// order) beside them. Nothing that can be read changes; appending goes on as before.
    ///
    /// Cheap where the layer is so already; copies the keys otherwise. Errors: not one list per
    /// head, a column past the dimension or named twice, or no memory (then nothing has changed).
    pub fn index(&mut self, columns: &[Vec<u16>]) -> Result<()> {
        if self.is_indexed_by(columns) {
            return Ok(());
        }
        if columns.len() != self.heads.len() {
            return Err(KernelError::Mismatch("an index needs one list of columns per head"));
        }
        for list in columns {
            let mut seen = vec![false; self.dim];
            let fresh = |&c: &u16| {
                seen.get_mut(c as usize).is_some_and(|seen| !std::mem::replace(seen, true))
            };
            if list.is_empty() || !list.iter().all(fresh) {
                return Err(KernelError::Mismatch(
                    "the columns of an index must be different values of a key, and at least one",
                ));
            }
        }
        let capacity = self.capacity().next_multiple_of(KEY_BLOCK);
        let mut made = Vec::with_capacity(columns.len());
        for (head, list) in self.heads.iter().zip(columns) {
            let room = capacity.max(head.rows.next_multiple_of(KEY_BLOCK));
            let (mut keys, mut index) = (HalfBuffer::default(), HalfBuffer::default());
            if !self.by_row {
                keys.grow(room * self.stride)?;
                self.turn_keys(head, keys.as_mut_slice());
            }
            index.grow(room * list.len())?;
            made.push((keys, index));
        }
        for ((head, list), (keys, index)) in self.heads.iter_mut().zip(columns).zip(made) {
            if !self.by_row {
                head.keys = keys;
            }
            head.index = index;
            head.columns.clone_from(list);
            let (keys, to) = (head.keys.as_slice(), head.index.as_mut_slice());
            for row in 0..head.rows {
                let at = lane_at(row, list.len());
                for (j, &column) in list.iter().enumerate() {
                    to[at + j * KEY_BLOCK] = keys[row * self.stride + column as usize];
                }
            }
        }
        self.by_row = true;
        Ok(())
    }

    /// Goes back to the layout of a layer that is not indexed. Errors: no memory.
    pub fn drop_index(&mut self) -> Result<()> {
        if !self.by_row {
            return Ok(());
        }
        let width = self.dim * KEY_BLOCK;
        for head in &mut self.heads {
            let rows = head.rows.next_multiple_of(KEY_BLOCK);
            let mut keys = HalfBuffer::default();
            keys.grow(rows * self.dim)?;
            let (from, to) = (head.keys.as_slice(), keys.as_mut_slice());
            for row in 0..head.rows {
                let at = row / KEY_BLOCK * width + row % KEY_BLOCK;
                for d in 0..self.dim {
                    to[at + d * KEY_BLOCK] = from[row * self.stride + d];
                }
            }
            head.keys = keys;
            head.index = HalfBuffer::default();
            head.columns = Vec::new();
        }
        self.by_row = false;
        Ok(())
    }

    /// Whether [`KvLayer::index`] was called with these columns last.
    pub fn is_indexed_by(&self, columns: &[Vec<u16>]) -> bool {
        self.by_row
            && self.heads.len() == columns.len()
            && self.heads.iter().zip(columns).all(|(head, list)| head.columns == *list)
    }

    /// The columns that a head's rows are ranked by; empty for a layer that is not indexed, and
    /// for a head that does not exist.
    pub fn columns(&self, head: usize) -> &[u16] {
        self.heads.get(head).map_or(&[], |h| &h.columns)
    }

    /// Writes a head's transposed keys to `to` row by row.
    fn turn_keys(&self, head: &Head, to: &mut [u16]) {
        let from = head.keys.as_slice();
        for (block, rows) in (0..head.rows).step_by(KEY_BLOCK).enumerate() {
            let lanes = KEY_BLOCK.min(head.rows - rows);
            for d in 0..self.dim {
                let from = &from[(block * self.dim + d) * KEY_BLOCK..][..lanes];
                for (lane, &bits) in from.iter().enumerate() {
                    to[(rows + lane) * self.stride + d] = bits;
                }
            }
        }
    }

    /// Whether keys lie row by row, [`KvLayer::stride`] values apart.
    pub(crate) fn by_row(&self) -> bool {
        self.by_row
    }

    /// The ranked columns of a head, `[block][column][16]`.
    pub(crate) fn ranked(&self, head: usize) -> &[u16] {
        self.heads[head].index.as_slice()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(heads: usize, dim: usize, rows: usize) -> KvLayer {
        let mut layer = KvLayer::new(heads, dim).unwrap();
        fill(&mut layer, 0, rows);
        layer
    }

    fn fill(layer: &mut KvLayer, first: usize, rows: usize) {
        let n = layer.kv_heads() * layer.dim();
        for r in first..first + rows {
            let k: Vec<f32> = (0..n).map(|i| ((r * 131 + i * 37) % 255) as f32 - 128.0).collect();
            let v: Vec<f32> = k.iter().map(|x| -x).collect();
            layer.write(r, &k, &v).unwrap();
        }
    }

    fn read(layer: &KvLayer, head: usize, row: usize) -> (Vec<f32>, Vec<f32>) {
        let (mut k, mut v) = (vec![0.0; layer.dim()], vec![0.0; layer.dim()]);
        layer.read_row(head, row, &mut k, &mut v).unwrap();
        (k, v)
    }

    /// Every row of both reads the same, and the index holds the columns of its layer's keys.
    fn same(indexed: &KvLayer, plain: &KvLayer) {
        for head in 0..plain.kv_heads() {
            assert_eq!(indexed.head_rows(head), plain.head_rows(head));
            let columns = indexed.columns(head);
            for row in 0..plain.head_rows(head) {
                let (k, v) = read(plain, head, row);
                assert_eq!(read(indexed, head, row), (k.clone(), v), "head {head} row {row}");
                for (j, &column) in columns.iter().enumerate() {
                    let bits = indexed.ranked(head)[lane_at(row, columns.len()) + j * KEY_BLOCK];
                    assert_eq!(crate::lanes::widen(bits), k[column as usize], "row {row}");
                }
            }
        }
    }

    #[test]
    fn an_index_changes_nothing_that_can_be_read() {
        for (dim, columns) in [(64, vec![3, 35, 0, 32]), (20, vec![19]), (7, (0..7).collect())] {
            let mut plain = layer(2, dim, 77);
            let mut indexed = plain.clone();
            let lists = vec![columns.clone(), columns.iter().rev().copied().collect()];
            indexed.index(&lists).unwrap();
            assert!(indexed.is_indexed_by(&lists));
            same(&indexed, &plain);
            // Rows appended, overwritten, moved, dropped and compacted afterwards.
            for layer in [&mut plain, &mut indexed] {
                fill(layer, 77, 60);
                fill(layer, 5, 3);
                layer.copy_row(1, 20, 4).unwrap();
                layer.truncate_head(0, 99).unwrap();
            }
            same(&indexed, &plain);
            for layer in [&mut plain, &mut indexed] {
                layer.shrink_to(40);
                fill(layer, 40, 30);
            }
            same(&indexed, &plain);
            // Another choice of columns.
            indexed.index(&[vec![1], vec![2, 0]]).unwrap();
            same(&indexed, &plain);
            same(&indexed.clone(), &plain);
            indexed.drop_index().unwrap();
            same(&indexed, &plain);
            fill(&mut indexed, 70, 5);
            fill(&mut plain, 70, 5);
            same(&indexed, &plain);
        }
    }

    #[test]
    fn the_memory_of_an_index_is_that_of_its_columns() {
        let mut layer = layer(2, 64, 0);
        layer.reserve(1024).unwrap();
        let plain = layer.bytes();
        layer.index(&[(0..16).collect(), (0..16).collect()]).unwrap();
        assert_eq!((layer.bytes() - plain, layer.capacity()), (2 * 1024 * 16 * 2, 1024));
    }

    #[test]
    fn impossible_columns_are_refused() {
        let mut layer = layer(2, 8, 20);
        for bad in
            [vec![vec![1]], vec![vec![1], vec![]], vec![vec![8], vec![0]], vec![vec![1, 1]; 2]]
        {
            assert!(layer.index(&bad).is_err(), "{bad:?}");
        }
        assert!(layer.columns(0).is_empty() && !layer.by_row());
    }
}

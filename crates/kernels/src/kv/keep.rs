//! Keeping some rows of a head in bulk: what a compaction does to thousands of rows at once.

use super::{KEY_BLOCK, KvLayer, lane_at};
use crate::error::{KernelError, Result};

impl KvLayer {
    /// Keeps the rows of a head that `rows` lists, ascending, and renumbers them from 0. Keeps the
    /// memory of the others.
    ///
    /// Errors: no such head, or `rows` is not ascending or names a row that does not exist; then
    /// nothing has changed.
    pub fn keep_rows(&mut self, head: usize, rows: &[u32]) -> Result<()> {
        self.known(head)?;
        let held = self.heads[head].rows;
        let ascending = rows.windows(2).all(|w| w[0] < w[1]);
        if !ascending || rows.last().is_some_and(|&last| last as usize >= held) {
            return Err(KernelError::Mismatch("rows to keep must be ascending and exist"));
        }
        if self.by_row {
            for (to, &from) in rows.iter().enumerate().filter(|(to, from)| *to != **from as usize) {
                self.copy_row(head, from as usize, to)?;
            }
            self.heads[head].rows = rows.len();
            return Ok(());
        }
        // What lies before the first gap stays where it is.
        let fixed = (0..rows.len()).take_while(|&i| rows[i] as usize == i).count();
        let (dim, stride) = (self.dim, self.stride);
        let h = &mut self.heads[head];
        h.rows = rows.len();
        let keys = h.keys.as_mut_slice();
        let block = dim * KEY_BLOCK;
        let mut kept = vec![0u16; block];
        // A row comes from its own place or from behind it, so no block is overwritten before all
        // rows that come from it have been read.
        for b in fixed / KEY_BLOCK..rows.len().div_ceil(KEY_BLOCK) {
            let from = &rows[b * KEY_BLOCK..rows.len().min((b + 1) * KEY_BLOCK)];
            let mut places = [0usize; KEY_BLOCK];
            for (place, &row) in places.iter_mut().zip(from) {
                *place = row as usize / KEY_BLOCK * block + row as usize % KEY_BLOCK;
            }
            for (d, lanes) in kept.chunks_exact_mut(KEY_BLOCK).enumerate() {
                for (lane, place) in lanes.iter_mut().zip(&places[..from.len()]) {
                    *lane = keys[place + d * KEY_BLOCK];
                }
            }
            keys[b * block..(b + 1) * block].copy_from_slice(&kept);
        }
        let values = h.values.as_mut_slice();
        let mut to = fixed;
        while to < rows.len() {
            let first = rows[to] as usize;
            let run = (to..rows.len()).take_while(|&i| rows[i] as usize == first + i - to).count();
            values.copy_within(first * stride..(first + run) * stride, to * stride);
            to += run;
        }
        Ok(())
    }
}

impl KvLayer {
    /// Appends rows of a head of another layer, bit for bit, to a head of this one.
    ///
    /// Errors: no such head or row, another dimension, no memory, or an indexed layer to append to.
    pub fn append_from(
        &mut self,
        head: usize,
        from: &KvLayer,
        from_head: usize,
        rows: &[u32],
    ) -> Result<()> {
        self.known(head)?;
        from.known(from_head)?;
        let held = from.heads[from_head].rows;
        if self.by_row || self.dim != from.dim || rows.iter().any(|&r| r as usize >= held) {
            return Err(KernelError::Mismatch("rows to append, or the layer they come from"));
        }
        let first = self.heads[head].rows;
        self.reserve_head(head, first + rows.len())?;
        let (dim, stride) = (self.dim, self.stride);
        let (to, source) = (&mut self.heads[head], &from.heads[from_head]);
        let (keys, values) = (to.keys.as_mut_slice(), to.values.as_mut_slice());
        for (to, &row) in (first..).zip(rows) {
            let row = row as usize;
            let (at, step) = from.key_at(row);
            let place = lane_at(to, dim);
            for d in 0..dim {
                keys[place + d * KEY_BLOCK] = source.keys.as_slice()[at + d * step];
            }
            values[to * stride..(to + 1) * stride]
                .copy_from_slice(&source.values.as_slice()[row * stride..(row + 1) * stride]);
        }
        to.rows = first + rows.len();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn appended_rows_are_those_of_the_other_layer() {
        for dim in [1, 20, 64] {
            let (from, mut to) = (filled(2, dim, 70), filled(3, dim, 5));
            let mut indexed = from.clone();
            indexed.index(&[vec![0], vec![0]]).unwrap();
            let rows = [3, 4, 40, 69, 3];
            to.append_from(2, &from, 1, &rows[..3]).unwrap();
            to.append_from(2, &indexed, 1, &rows[3..]).unwrap();
            assert_eq!((to.head_rows(2), to.head_rows(0)), (10, 5));
            let read = |layer: &KvLayer, head, row| {
                let (mut k, mut v) = (vec![0.0; dim], vec![0.0; dim]);
                layer.read_row(head, row, &mut k, &mut v).unwrap();
                (k, v)
            };
            for (i, &row) in rows.iter().enumerate() {
                assert_eq!(read(&to, 2, 5 + i), read(&from, 1, row as usize));
            }
            assert!(to.append_from(0, &from, 1, &[70]).is_err());
            assert!(to.append_from(3, &from, 1, &[0]).is_err());
            assert!(indexed.append_from(0, &from, 1, &[0]).is_err());
        }
    }

    fn filled(heads: usize, dim: usize, rows: usize) -> KvLayer {
        let mut layer = KvLayer::new(heads, dim).unwrap();
        for row in 0..rows {
            let value = |i: usize| ((row * 37 + i * 11) % 199) as f32 / 8.0;
            let k: Vec<f32> = (0..heads * dim).map(value).collect();
            let v: Vec<f32> = k.iter().map(|x| -x - 1.0).collect();
            layer.write(row, &k, &v).unwrap();
        }
        layer
    }

    #[test]
    fn kept_rows_are_those_copied_one_by_one() {
        let lists: [Vec<u32>; 6] = [
            (0..70).collect(),
            (0..70).filter(|&r| r != 21).collect(),
            (0..70).filter(|&r| r % 3 == 1).collect(),
            vec![69],
            vec![],
            (5..64).collect(),
        ];
        for dim in [1, 20, 64] {
            for rows in &lists {
                let (mut bulk, mut slow) = (filled(2, dim, 70), filled(2, dim, 70));
                if rows.len() % 2 == 0 {
                    bulk.index(&[vec![0], vec![dim as u16 - 1]]).unwrap();
                }
                bulk.keep_rows(1, rows).unwrap();
                for (to, &from) in rows.iter().enumerate() {
                    slow.copy_row(1, from as usize, to).unwrap();
                }
                slow.truncate_head(1, rows.len()).unwrap();
                assert_eq!((bulk.head_rows(0), bulk.head_rows(1)), (70, rows.len()));
                for head in 0..2 {
                    for row in 0..bulk.head_rows(head) {
                        let read = |layer: &KvLayer| {
                            let (mut k, mut v) = (vec![0.0; dim], vec![0.0; dim]);
                            layer.read_row(head, row, &mut k, &mut v).unwrap();
                            (k, v)
                        };
                        assert_eq!(read(&bulk), read(&slow), "dim {dim}, {rows:?}");
                    }
                }
            }
        }
        let mut layer = filled(1, 4, 5);
        for bad in [&[1, 1][..], &[2, 1], &[5]] {
            assert!(layer.keep_rows(0, bad).is_err());
        }
        assert!(layer.keep_rows(1, &[]).is_err());
        assert_eq!(layer.rows(), 5);
    }
}

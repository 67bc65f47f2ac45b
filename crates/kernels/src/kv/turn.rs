//! A copy of a layer with its keys turned to their positions: what attention reads of a cache whose
//! keys are held before rotary encoding.
#![allow(unsafe_code)]

use half::f16;
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};

use super::{F16_MAX, KEY_BLOCK, KvLayer};
use crate::Pool;
use crate::disjoint::Disjoint;
use crate::elementwise::Rope;
use crate::error::{KernelError, Result};

impl KvLayer {
    /// Makes `to` this layer with every key turned to its position, rounded once more; `positions`
    /// holds a list per head, as long as the head. `to` keeps its memory from call to call.
    ///
    /// Errors: lists that do not fit, another shape, a head shorter than the rotary dimension, no
    /// memory.
    pub fn turn_into(
        &self,
        pool: &Pool,
        rope: &Rope,
        positions: &[&[u32]],
        to: &mut KvLayer,
    ) -> Result<()> {
        let fits = positions.len() == self.heads.len()
            && positions.iter().zip(&self.heads).all(|(list, head)| list.len() == head.rows);
        if !fits || (to.dim, to.heads.len()) != (self.dim, self.heads.len()) {
            return Err(KernelError::Mismatch("positions to turn to, or the layer they turn into"));
        }
        if self.dim < rope.dim() {
            return Err(KernelError::Mismatch("a head is shorter than its rotary dimension"));
        }
        if self.by_row {
            // An index is of rotated keys: whoever turned these back is not going to rank them.
            let mut plain = self.clone();
            plain.drop_index()?;
            return plain.turn_into(pool, rope, positions, to);
        }
        if to.by_row {
            *to = KvLayer::new(to.heads.len(), to.dim)?;
        }
        for head in 0..self.heads.len() {
            to.reserve_head(head, self.heads[head].rows)?;
            to.heads[head].rows = self.heads[head].rows;
        }
        let largest = positions.iter().flat_map(|list| list.iter()).max();
        rope.prepare_blocks(largest.map_or(0, |&p| p as usize + 1));
        // A head's blocks, one after the other.
        let blocks: Vec<(usize, usize)> = (0..self.heads.len())
            .flat_map(|h| (0..self.heads[h].rows.div_ceil(KEY_BLOCK)).map(move |b| (h, b)))
            .collect();
        let (dim, block) = (self.dim, self.dim * KEY_BLOCK);
        let places: Vec<(Disjoint<u16>, Disjoint<u16>)> = to
            .heads
            .iter_mut()
            .map(|h| (Disjoint::new(h.keys.as_mut_slice()), Disjoint::new(h.values.as_mut_slice())))
            .collect();
        let parts = (blocks.len() / 8).clamp(1, 4 * pool.threads());
        pool.run(parts, &|part| {
            let mut wide = vec![0f32; block];
            let mut turns = vec![0f32; rope.dim() * KEY_BLOCK];
            for &(h, b) in &blocks[part * blocks.len() / parts..(part + 1) * blocks.len() / parts] {
                let rows = b * KEY_BLOCK..positions[h].len().min((b + 1) * KEY_BLOCK);
                // SAFETY: `to` holds as many rows as this layer, in whole blocks; every block of a
                // head is one part's.
                let (keys, values) = unsafe {
                    let values = rows.len() * self.stride;
                    (
                        std::slice::from_raw_parts_mut(places[h].0.at(b * block), block),
                        std::slice::from_raw_parts_mut(
                            places[h].1.at(rows.start * self.stride),
                            values,
                        ),
                    )
                };
                let from = &self.heads[h];
                let held = rows.start * self.stride..rows.end * self.stride;
                values.copy_from_slice(&from.values.as_slice()[held]);
                let held = &from.keys.as_slice()[b * block..(b + 1) * block];
                held.reinterpret_cast::<f16>().convert_to_f32_slice(&mut wide);
                rope.turn_block(pool.isa(), &mut wide, dim, &positions[h][rows], &mut turns);
                wide.iter_mut().for_each(|x| *x = x.clamp(-F16_MAX, F16_MAX));
                keys.reinterpret_cast_mut::<f16>().convert_from_f32_slice(&wide);
            }
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::Isa;

    /// Row by row, as a cache would be written that is rotated from the beginning.
    fn slow(from: &KvLayer, pool: &Pool, rope: &Rope, positions: &[&[u32]]) -> KvLayer {
        let mut to = KvLayer::new(from.kv_heads(), from.dim()).unwrap();
        let (mut k, mut v) = (vec![0.0; from.dim()], vec![0.0; from.dim()]);
        for (head, list) in positions.iter().enumerate() {
            for (row, &p) in list.iter().enumerate() {
                from.read_row(head, row, &mut k, &mut v).unwrap();
                rope.apply(pool, &mut k, 1, from.dim(), &[p]).unwrap();
                to.write_head(head, row, &k, &v).unwrap();
            }
        }
        to
    }

    #[test]
    fn turning_in_blocks_equals_turning_row_by_row() {
        for (dim, rotary, interleaved) in [(64, 64, false), (64, 64, true), (48, 20, false)] {
            let rope = Rope::new(rotary, 10_000.0, None, interleaved).unwrap();
            let mut layer = KvLayer::new(2, dim).unwrap();
            for row in 0..150 {
                let value = |i: usize| ((row * 131 + i * 37) % 255) as f32 / 16.0 - 8.0;
                let k: Vec<f32> = (0..2 * dim).map(value).collect();
                layer.write(row, &k, &k).unwrap();
            }
            layer.truncate_head(1, 33).unwrap();
            let first: Vec<u32> = (0..150).collect();
            let second: Vec<u32> = (0..33).map(|i| i * i * 70).collect();
            let positions = [first.as_slice(), second.as_slice()];
            let mut indexed = layer.clone();
            indexed.index(&[vec![1, 2], vec![0, 3]]).unwrap();
            for isa in Isa::available() {
                let mut to = KvLayer::new(2, dim).unwrap();
                for threads in [1, 2] {
                    let pool = Pool::with_options(threads, isa, Duration::ZERO).unwrap();
                    let want = slow(&layer, &pool, &rope, &positions);
                    let from = if threads == 1 { &indexed } else { &layer };
                    from.turn_into(&pool, &rope, &positions, &mut to).unwrap();
                    let read = |layer: &KvLayer, head, row| {
                        let (mut k, mut v) = (vec![0.0; dim], vec![0.0; dim]);
                        layer.read_row(head, row, &mut k, &mut v).unwrap();
                        (k, v)
                    };
                    for (head, list) in positions.iter().enumerate() {
                        assert_eq!(to.head_rows(head), list.len());
                        for row in 0..list.len() {
                            assert_eq!(read(&to, head, row), read(&want, head, row), "{isa} {row}");
                        }
                    }
                }
            }
            let mut small = KvLayer::new(2, dim - 1).unwrap();
            let pool = Pool::new(1);
            assert!(layer.turn_into(&pool, &rope, &positions, &mut small).is_err());
            assert!(layer.turn_into(&pool, &rope, &positions[..1], &mut small).is_err());
        }
    }
}

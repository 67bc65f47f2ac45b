//! Keys and values of one layer, in half precision.
//!
//! Keys lie transposed in blocks of 16 rows, `[head][block][dim][16]`, so a kernel computes the
//! scores of 16 keys at once without sums across lanes; values lie row by row,
//! `[head][row][stride]`, with `stride` the dimension rounded up to 16 and the rest zero.
//! A value is rounded to half precision (nearest, ties to even; beyond +-65504 it saturates) when
//! it is written, before anything reads it: what a pass attends to in its own rows is what later
//! passes will find.
//!
//! Reading one key of that layout touches the 16 keys of its block, so a layer whose rows are read
//! a few at a time is *indexed* instead ([`KvLayer::index`]): keys lie row by row, like values, and
//! the columns that rows are ranked by lie beside them, transposed, `[head][block][column][16]`.
//! A reader of whole blocks turns such keys as it goes; what it computes is the same, bit for bit.
//!
//! Rows are storage, not positions: which row holds which position is the caller's table. Heads
//! may differ in their number of rows.
//!
//! Long because a row is placed, copied and read back in one file, whatever the layout.
#![allow(unsafe_code)]

mod index;
mod keep;
mod turn;

use half::f16;
use half::slice::HalfFloatSliceExt;

use crate::error::{KernelError, Result};

/// Rows of a key block.
pub const KEY_BLOCK: usize = 16;

/// Most rows that a growing head makes room for at once: memory that may stay unused.
const MOST_SPARE: usize = 1024;

/// Largest finite half-precision value.
const F16_MAX: f32 = 65_504.0;

/// One cache line of half-precision bits; the unit of allocation, so that buffers are aligned.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u16; 32]);

const LINE: usize = 32;

/// A growing, 64-byte aligned buffer of half-precision bits.
#[derive(Clone, Default)]
struct HalfBuffer(Vec<Line>);

impl HalfBuffer {
    fn as_slice(&self) -> &[u16] {
        // SAFETY: `Line` is exactly 32 `u16` without padding, all of them initialised.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), self.0.len() * LINE) }
    }

    fn as_mut_slice(&mut self) -> &mut [u16] {
        // SAFETY: as above, and the borrow is unique.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), self.0.len() * LINE) }
    }

    /// Makes it hold `values`, new ones zero. Allocates no more than asked.
    fn grow(&mut self, values: usize) -> Result<()> {
        let lines = values.div_ceil(LINE);
        let more = lines.saturating_sub(self.0.len());
        self.0
            .try_reserve_exact(more)
            .map_err(|_| KernelError::OutOfMemory(more * size_of::<Line>()))?;
        self.0.resize(lines.max(self.0.len()), Line([0; LINE]));
        Ok(())
    }

    fn shrink(&mut self, values: usize) {
        self.0.truncate(values.div_ceil(LINE));
        self.0.shrink_to_fit();
    }

    fn bytes(&self) -> usize {
        self.0.capacity() * size_of::<Line>()
    }
}

#[derive(Clone, Default)]
struct Head {
    rows: usize,
    keys: HalfBuffer,
    values: HalfBuffer,
    /// The values of a key that rows are ranked by; empty unless the layer is indexed.
    columns: Vec<u16>,
    /// Their copy, `[block][column][16]`.
    index: HalfBuffer,
}

/// Keys and values of one layer; see the module's page for the layout.
#[derive(Clone)]
pub struct KvLayer {
    dim: usize,
    stride: usize,
    heads: Vec<Head>,
    /// Whether keys lie row by row: the layer is indexed.
    by_row: bool,
    /// One row in half precision, before it is scattered over its key block.
    row: Vec<f16>,
}

impl std::fmt::Debug for KvLayer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KvLayer")
            .field("kv_heads", &self.heads.len())
            .field("dim", &self.dim)
            .field("rows", &self.heads.iter().map(|h| h.rows).collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}

impl KvLayer {
    /// An empty layer of `kv_heads` heads with `dim` values per key and per value.
    ///
    /// Errors: either is zero, or above 65536.
    pub fn new(kv_heads: usize, dim: usize) -> Result<KvLayer> {
        if kv_heads == 0 || dim == 0 || kv_heads > 1 << 16 || dim > 1 << 16 {
            return Err(KernelError::Mismatch(
                "a key/value layer needs 1..=65536 heads of 1..=65536 values",
            ));
        }
        Ok(KvLayer {
            dim,
            stride: dim.next_multiple_of(16),
            heads: vec![Head::default(); kv_heads],
            by_row: false,
            row: vec![f16::ZERO; dim],
        })
    }

    /// Number of key/value heads.
    pub fn kv_heads(&self) -> usize {
        self.heads.len()
    }

    /// Values per key and per value.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Rows of the longest head.
    pub fn rows(&self) -> usize {
        self.heads.iter().map(|h| h.rows).max().unwrap_or(0)
    }

    /// Rows of one head; 0 for a head that does not exist.
    pub fn head_rows(&self, head: usize) -> usize {
        self.heads.get(head).map_or(0, |h| h.rows)
    }

    /// Rows that every head can hold without another allocation.
    pub fn capacity(&self) -> usize {
        (0..self.heads.len()).map(|head| self.room(head)).min().unwrap_or(0)
    }

    /// Rows that a head can hold without another allocation.
    fn room(&self, head: usize) -> usize {
        let h = &self.heads[head];
        let keys = h.keys.as_slice().len() / (self.key_width() * KEY_BLOCK) * KEY_BLOCK;
        let room = keys.min(h.values.as_slice().len() / self.stride);
        match h.columns.len() {
            0 => room,
            n => room.min(h.index.as_slice().len() / (n * KEY_BLOCK) * KEY_BLOCK),
        }
    }

    /// Values that a key takes up.
    fn key_width(&self) -> usize {
        if self.by_row { self.stride } else { self.dim }
    }

    /// Bytes allocated for keys, values and the index.
    pub fn bytes(&self) -> usize {
        self.heads.iter().map(|h| h.keys.bytes() + h.values.bytes() + h.index.bytes()).sum()
    }

    /// Makes room for `rows` rows in every head, exactly (rounded up to a key block).
    ///
    /// Writing beyond the capacity grows by half of it, at most by 1024 rows, so this is only needed to avoid copies
    /// or overshoot. Errors: the system refuses the memory.
    pub fn reserve(&mut self, rows: usize) -> Result<()> {
        (0..self.heads.len()).try_for_each(|head| self.reserve_head(head, rows))
    }

    fn reserve_head(&mut self, head: usize, rows: usize) -> Result<()> {
        const TOO_LONG: KernelError = KernelError::Overflow("key/value rows");
        let blocks = rows.div_ceil(KEY_BLOCK);
        let padded = blocks.checked_mul(KEY_BLOCK).ok_or(TOO_LONG)?;
        let keys = padded.checked_mul(self.key_width()).ok_or(TOO_LONG)?;
        let values = padded.checked_mul(self.stride).ok_or(TOO_LONG)?;
        let head = &mut self.heads[head];
        let index = padded.checked_mul(head.columns.len()).ok_or(TOO_LONG)?;
        head.keys.grow(keys)?;
        head.index.grow(index)?;
        head.values.grow(values)
    }

    /// Makes `row` of `head` exist, growing geometrically.
    fn ensure(&mut self, head: usize, row: usize) -> Result<()> {
        let h = &self.heads[head];
        if row < h.rows {
            return Ok(());
        }
        let room = self.room(head);
        if row >= room {
            let rows = row.checked_add(1).ok_or(KernelError::Overflow("key/value rows"))?;
            self.reserve_head(head, rows.max(room + (room / 2).min(MOST_SPARE)).max(64))?;
        }
        self.heads[head].rows = row + 1;
        Ok(())
    }

    /// Writes one row of every head: `k` and `v` are `[kv_heads][dim]`.
    ///
    /// A row past the end extends the heads; rows skipped that way read as zero (or as what they
    /// held before [`KvLayer::truncate`]). Errors: a wrong length, or no memory.
    pub fn write(&mut self, row: usize, k: &[f32], v: &[f32]) -> Result<()> {
        let n = self.heads.len() * self.dim;
        expect("keys of a row", n, k.len())?;
        expect("values of a row", n, v.len())?;
        for (head, (k, v)) in k.chunks_exact(self.dim).zip(v.chunks_exact(self.dim)).enumerate() {
            self.put(head, row, k, v)?;
        }
        Ok(())
    }

    /// Writes the consecutive rows `row..`, as many as `k` and `v`, `[rows][kv_heads][dim]`, hold.
    pub fn write_rows(&mut self, row: usize, k: &[f32], v: &[f32]) -> Result<()> {
        let n = self.heads.len() * self.dim;
        expect("values of rows", k.len(), v.len())?;
        if !k.len().is_multiple_of(n) {
            return Err(KernelError::Mismatch("keys are not a whole number of rows"));
        }
        for (i, (k, v)) in k.chunks_exact(n).zip(v.chunks_exact(n)).enumerate() {
            self.write(row + i, k, v)?;
        }
        Ok(())
    }

    /// Writes one row of one head: `k` and `v` hold `dim` values.
    pub fn write_head(&mut self, head: usize, row: usize, k: &[f32], v: &[f32]) -> Result<()> {
        self.known(head)?;
        expect("keys of a head", self.dim, k.len())?;
        expect("values of a head", self.dim, v.len())?;
        self.put(head, row, k, v)
    }

    fn put(&mut self, head: usize, row: usize, k: &[f32], v: &[f32]) -> Result<()> {
        self.ensure(head, row)?;
        let (at, step) = self.key_at(row);
        let h = &mut self.heads[head];
        round(k, &mut self.row);
        let lanes = h.keys.as_mut_slice()[at..].iter_mut().step_by(step);
        for (to, from) in lanes.zip(&self.row) {
            *to = from.to_bits();
        }
        h.index_row(row, &self.row);
        round(v, &mut self.row);
        let at = row * self.stride;
        for (to, from) in h.values.as_mut_slice()[at..].iter_mut().zip(&self.row) {
            *to = from.to_bits();
        }
        Ok(())
    }

    /// Copies a row of a head to another row of the same head, bit for bit.
    pub fn copy_row(&mut self, head: usize, from: usize, to: usize) -> Result<()> {
        self.existing(head, from)?;
        self.ensure(head, to)?;
        let ((key, step), (new, _)) = (self.key_at(from), self.key_at(to));
        let h = &mut self.heads[head];
        let keys = h.keys.as_mut_slice();
        for d in 0..self.dim {
            keys[new + d * step] = keys[key + d * step];
        }
        h.copy_index(from, to);
        let start = from * self.stride;
        h.values.as_mut_slice().copy_within(start..start + self.stride, to * self.stride);
        Ok(())
    }

    /// Reads a row of a head back: key into `k`, value into `v`, `dim` values each.
    pub fn read_row(&self, head: usize, row: usize, k: &mut [f32], v: &mut [f32]) -> Result<()> {
        self.existing(head, row)?;
        expect("key to read", self.dim, k.len())?;
        expect("value to read", self.dim, v.len())?;
        let h = &self.heads[head];
        let (at, step) = self.key_at(row);
        let lanes = h.keys.as_slice()[at..].iter().step_by(step);
        for (to, from) in k.iter_mut().zip(lanes) {
            *to = crate::lanes::widen(*from);
        }
        for (to, from) in v.iter_mut().zip(&h.values.as_slice()[row * self.stride..]) {
            *to = crate::lanes::widen(*from);
        }
        Ok(())
    }

    /// Forgets the rows from `rows` on in every head; keeps the memory for the next ones.
    pub fn truncate(&mut self, rows: usize) {
        for h in &mut self.heads {
            h.rows = h.rows.min(rows);
        }
    }

    /// Forgets the rows of one head from `rows` on; keeps the memory.
    pub fn truncate_head(&mut self, head: usize, rows: usize) -> Result<()> {
        self.known(head)?;
        self.heads[head].rows = self.heads[head].rows.min(rows);
        Ok(())
    }

    /// Forgets the rows from `rows` on in every head and gives back all memory that the rows
    /// left do not need.
    pub fn shrink_to(&mut self, rows: usize) {
        let width = self.key_width();
        for h in &mut self.heads {
            h.rows = h.rows.min(rows);
            let padded = h.rows.next_multiple_of(KEY_BLOCK);
            h.keys.shrink(padded * width);
            h.index.shrink(padded * h.columns.len());
            h.values.shrink(padded * self.stride);
        }
    }

    /// Where a key's first value is, and how far apart its values are.
    fn key_at(&self, row: usize) -> (usize, usize) {
        if self.by_row { (row * self.stride, 1) } else { (lane_at(row, self.dim), KEY_BLOCK) }
    }

    /// Start of a head's keys, for the attention kernels.
    pub(crate) fn keys(&self, head: usize) -> &[u16] {
        self.heads[head].keys.as_slice()
    }

    /// Start of a head's values, for the attention kernels.
    pub(crate) fn values(&self, head: usize) -> &[u16] {
        self.heads[head].values.as_slice()
    }

    /// Values from one value row to the next.
    pub(crate) fn stride(&self) -> usize {
        self.stride
    }

    fn known(&self, head: usize) -> Result<()> {
        if head < self.heads.len() {
            Ok(())
        } else {
            Err(KernelError::Mismatch("no such key/value head"))
        }
    }

    fn existing(&self, head: usize, row: usize) -> Result<()> {
        self.known(head)?;
        if row < self.heads[head].rows {
            Ok(())
        } else {
            Err(KernelError::Mismatch("no such key/value row"))
        }
    }
}

/// Where row `row` of blocks of `width` columns begins.
fn lane_at(row: usize, width: usize) -> usize {
    row / KEY_BLOCK * width * KEY_BLOCK + row % KEY_BLOCK
}

fn expect(what: &'static str, expected: usize, got: usize) -> Result<()> {
    if expected == got { Ok(()) } else { Err(KernelError::Length { what, expected, got }) }
}

/// Rounds to half precision, saturating; a NaN stays one.
fn round(from: &[f32], to: &mut [f16]) {
    let mut clamped = [0.0f32; 64];
    for (from, to) in from.chunks(64).zip(to.chunks_mut(64)) {
        for (c, x) in clamped.iter_mut().zip(from) {
            *c = x.clamp(-F16_MAX, F16_MAX);
        }
        to.convert_from_f32_slice(&clamped[..from.len()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(seed: usize, n: usize) -> (Vec<f32>, Vec<f32>) {
        let value = |i: usize| ((seed * 131 + i * 37) % 255) as f32 / 16.0 - 8.0;
        ((0..n).map(value).collect(), (0..n).map(|i| -value(i + 1)).collect())
    }

    fn read(layer: &KvLayer, head: usize, row: usize) -> (Vec<f32>, Vec<f32>) {
        let (mut k, mut v) = (vec![0.0; layer.dim()], vec![0.0; layer.dim()]);
        layer.read_row(head, row, &mut k, &mut v).unwrap();
        (k, v)
    }

    #[test]
    fn what_is_written_is_read_back() {
        for dim in [1, 7, 20, 64, 65] {
            let mut layer = KvLayer::new(3, dim).unwrap();
            for r in 0..150 {
                let (k, v) = row(r, 3 * dim);
                layer.write(r, &k, &v).unwrap();
            }
            let (k, v) = row(999, dim);
            layer.write_head(1, 77, &k, &v).unwrap();
            layer.copy_row(2, 20, 149).unwrap();
            for r in 0..150 {
                for head in 0..3 {
                    let (k, v) = match (head, r) {
                        (1, 77) => row(999, dim),
                        _ => {
                            let from = if (head, r) == (2, 149) { 20 } else { r };
                            let (k, v) = row(from, 3 * dim);
                            let at = head * dim..(head + 1) * dim;
                            (k[at.clone()].to_vec(), v[at].to_vec())
                        }
                    };
                    assert_eq!(read(&layer, head, r), (k, v), "head {head} row {r} dim {dim}");
                }
            }
            assert_eq!(layer.rows(), 150);
            let copy = layer.clone();
            layer.write_head(0, 3, &row(1, dim).0, &row(2, dim).1).unwrap();
            let old = row(3, 3 * dim).0[..dim].to_vec();
            assert_eq!(read(&copy, 0, 3).0, old, "a clone is apart");
        }
    }

    #[test]
    fn rows_at_once_equal_rows_one_by_one() {
        let (heads, dim) = (2, 24);
        let (mut a, mut b) = (KvLayer::new(heads, dim).unwrap(), KvLayer::new(heads, dim).unwrap());
        let (k, v) = row(5, heads * dim * 83);
        a.write_rows(9, &k, &v).unwrap();
        for i in 0..83 {
            let at = i * heads * dim..(i + 1) * heads * dim;
            b.write(9 + i, &k[at.clone()], &v[at]).unwrap();
        }
        for head in 0..heads {
            assert_eq!(a.head_rows(head), 92);
            for r in 0..92 {
                assert_eq!(read(&a, head, r), read(&b, head, r));
            }
            assert_eq!(
                read(&a, head, 4),
                (vec![0.0; dim], vec![0.0; dim]),
                "skipped rows are zero"
            );
        }
        assert!(a.write_rows(0, &k[1..], &v[1..]).is_err());
        assert!(a.write_rows(0, &k, &v[1..]).is_err());
    }

    #[test]
    fn values_round_to_the_nearest_half_and_saturate() {
        let mut layer = KvLayer::new(1, 6).unwrap();
        let x = [1.0 + 1.0 / 2048.0, 1.0 + 3.0 / 2048.0, 1e9, f32::NEG_INFINITY, f32::NAN, 6e-8];
        layer.write(0, &x, &x).unwrap();
        let (k, v) = read(&layer, 0, 0);
        for y in [k, v] {
            // Ties go to the even neighbour; the smallest subnormal is 2^-24.
            assert_eq!(y[..4], [1.0, 1.0 + 2.0 / 1024.0, 65_504.0, -65_504.0]);
            assert!(y[4].is_nan());
            assert_eq!(y[5], (-24f32).exp2());
        }
    }

    #[test]
    fn memory_grows_in_proportion_and_is_given_back() {
        let (heads, dim) = (2, 64);
        let per_row = heads * dim * 2 * 2;
        let mut layer = KvLayer::new(heads, dim).unwrap();
        assert_eq!(layer.bytes(), 0);
        layer.reserve(1000).unwrap();
        assert_eq!((layer.capacity(), layer.rows()), (1008, 0));
        assert_eq!(layer.bytes(), 1008 * per_row);
        let (k, v) = row(1, heads * dim);
        let mut moves = 0;
        for r in 0..5000 {
            let before = layer.bytes();
            layer.write(r, &k, &v).unwrap();
            moves += usize::from(layer.bytes() != before);
        }
        assert!(moves <= 5, "{moves} times");
        layer.truncate(40);
        assert_eq!(layer.rows(), 40);
        assert!(layer.bytes() >= 5000 * per_row);
        layer.shrink_to(33);
        assert_eq!((layer.rows(), layer.bytes()), (33, 48 * per_row));
        assert_eq!(read(&layer, 1, 32).0, k[dim..]);
        layer.write(48, &k, &v).unwrap();
        assert_eq!(read(&layer, 1, 48).1, v[dim..]);
        layer.truncate_head(1, 5).unwrap();
        assert_eq!((layer.head_rows(0), layer.head_rows(1), layer.rows()), (49, 5, 49));
    }

    #[test]
    fn impossible_rows_are_refused() {
        assert!(KvLayer::new(0, 4).is_err());
        assert!(KvLayer::new(4, 0).is_err());
        let mut layer = KvLayer::new(1, 4).unwrap();
        assert!(layer.write(0, &[0.0; 3], &[0.0; 4]).is_err());
        assert!(layer.write_head(1, 0, &[0.0; 4], &[0.0; 4]).is_err());
        assert!(layer.write_head(0, usize::MAX, &[0.0; 4], &[0.0; 4]).is_err());
        assert!(layer.copy_row(0, 0, 1).is_err());
        assert!(layer.read_row(0, 0, &mut [0.0; 4], &mut [0.0; 4]).is_err());
        assert!(layer.truncate_head(1, 0).is_err());
    }
}

//! The left operand of a product: rows of activations, as int8 blocks, as f32, or both.
//!
//! Quantised form, for each block of 32 values of a row: `scale = amax / 127`,
//! `q = round_half_even(x * (127 / amax))`. A block whose largest magnitude is below `1e-30` is
//! all zero with scale zero; one with an infinity or NaN has scale NaN, so that every product
//! with it is NaN.
//!
//! Rows are kept in groups of 16; within a group of `g` rows the order is `[block][row][32]`, so
//! the rows of a register tile lie side by side and a group is a stack of AMX tiles. The scales
//! and the integer starts (`-OFFSET * sum of q`, what makes unsigned codes signed) have the order
//! `[group][block][row]`.
#![allow(unsafe_code)]

use std::ops::Range;

use crate::isa::Isa;
use crate::pack::strips::BLOCK;
use crate::pool::Pool;

/// Rows of a group.
pub(crate) const GROUP: usize = 16;
/// Lanes of a float dot product; float rows are padded to it with zeros.
pub(crate) const LANES: usize = 16;
/// Below this largest magnitude a block counts as zero.
const TINY: f32 = 1e-30;

/// Rows of activations in the form products take; keeps its buffers from pass to pass.
#[derive(Debug, Default)]
pub struct Activations {
    rows: usize,
    cols: usize,
    quantised: bool,
    float: bool,
    ints: Planes,
    /// Float rows, each `float_stride` long.
    floats: Vec<f32>,
}

/// The planes of the quantised form.
#[derive(Debug, Default)]
pub(crate) struct Planes {
    pub q: Vec<i8>,
    /// Scale.
    pub s: Vec<f32>,
    /// Scale times the sum of the codes: what a minimum is multiplied with.
    pub sum: Vec<f32>,
    /// `-128 * sum`.
    pub n128: Vec<i32>,
    /// `-8 * sum`.
    pub n8: Vec<i32>,
    /// `-16 * sum`.
    pub n16: Vec<i32>,
    /// `-32 * sum` of each half of 16, side by side.
    pub n32: Vec<i32>,
}

impl Activations {
    /// An empty set without buffers.
    pub fn new() -> Activations {
        Activations::default()
    }

    /// Rows held.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Values in a row.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Whether the int8 form is there.
    pub fn is_quantised(&self) -> bool {
        self.quantised
    }

    /// Whether the f32 form is there.
    pub fn is_float(&self) -> bool {
        self.float
    }

    /// Takes `rows` rows of `cols` values (row-major, tight) and quantises them; the f32 form is
    /// dropped. Only matrices that are [`fast`](crate::Matrix::is_fast) can follow. Values beyond
    /// the shape are ignored, missing ones count as zero, and so does the rest of a last block.
    pub fn quantize(&mut self, pool: &Pool, x: &[f32], rows: usize, cols: usize) {
        self.quantize_with(pool.isa(), Some(pool), x, rows, cols);
    }

    /// [`quantize`](Activations::quantize) in plain Rust on the calling thread.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn quantize_inline(&mut self, x: &[f32], rows: usize, cols: usize) {
        self.quantize_with(Isa::Scalar, None, x, rows, cols);
    }

    fn quantize_with(
        &mut self,
        isa: Isa,
        pool: Option<&Pool>,
        x: &[f32],
        rows: usize,
        cols: usize,
    ) {
        self.reshape(rows, cols);
        self.quantised = true;
        self.float = false;
        let blocks = cols.div_ceil(BLOCK);
        self.ints.resize(rows * blocks);
        let planes = PlanePointers::new(&mut self.ints);
        let fill = |range: Range<usize>| {
            for r in range {
                let row = row_of(x, r, cols);
                // SAFETY: the planes hold `rows * blocks` blocks; rows are disjoint in them.
                unsafe { quantize_row(isa, &planes, row, r, rows, blocks) };
            }
        };
        let Some(pool) = pool.filter(|pool| rows >= 4 && pool.threads() > 1) else {
            return fill(0..rows);
        };
        // About four parts a thread, whole rows.
        let step = rows.div_ceil(4 * pool.threads()).max(2);
        pool.run(rows.div_ceil(step), &|part| {
            fill(part * step..rows.min((part + 1) * step));
        });
    }

    /// Takes `rows` rows of `cols` f32 values as they are ("f32-activation mode": every product
    /// with them unpacks its weights to f32). The int8 form is dropped.
    pub fn set_f32(&mut self, x: &[f32], rows: usize, cols: usize) {
        self.reshape(rows, cols);
        self.quantised = false;
        self.keep_f32(x);
    }

    /// [`quantize`](Activations::quantize) that keeps the f32 form too, for targets of which some
    /// are packed and some are not.
    pub fn quantize_and_keep(&mut self, pool: &Pool, x: &[f32], rows: usize, cols: usize) {
        self.quantize(pool, x, rows, cols);
        self.keep_f32(x);
    }

    fn reshape(&mut self, rows: usize, cols: usize) {
        self.rows = rows;
        self.cols = cols;
    }

    fn keep_f32(&mut self, x: &[f32]) {
        self.float = true;
        let stride = self.float_stride();
        self.floats.resize(self.rows * stride, 0.0);
        if stride > 0 {
            for (r, out) in self.floats.chunks_exact_mut(stride).enumerate() {
                let row = row_of(x, r, self.cols);
                out[..row.len()].copy_from_slice(row);
                out[row.len()..].fill(0.0);
            }
        }
    }

    /// Distance of two float rows.
    pub(crate) fn float_stride(&self) -> usize {
        self.cols.next_multiple_of(LANES)
    }

    /// Float row `r`, padded with zeros.
    pub(crate) fn float_row(&self, r: usize) -> &[f32] {
        let stride = self.float_stride();
        &self.floats[r * stride..][..stride]
    }

    /// The quantised planes.
    pub(crate) fn planes(&self) -> &Planes {
        &self.ints
    }

    /// Blocks in a row.
    pub(crate) fn blocks(&self) -> usize {
        self.cols.div_ceil(BLOCK)
    }
}

impl Planes {
    fn resize(&mut self, n: usize) {
        self.q.resize(n * BLOCK, 0);
        self.s.resize(n, 0.0);
        self.sum.resize(n, 0.0);
        self.n128.resize(n, 0);
        self.n8.resize(n, 0);
        self.n16.resize(n, 0);
        self.n32.resize(2 * n, 0);
    }
}

/// Where block `b` of row `r` lies in the planes (times 32 for `q`, times 2 for `n32`).
pub(crate) fn slot(r: usize, b: usize, rows: usize, blocks: usize) -> usize {
    let first = r / GROUP * GROUP;
    let in_group = GROUP.min(rows - first);
    first * blocks + b * in_group + (r - first)
}

fn row_of(x: &[f32], r: usize, cols: usize) -> &[f32] {
    let start = (r * cols).min(x.len());
    &x[start..(start + cols).min(x.len())]
}

/// The planes as pointers, so that threads can fill disjoint rows.
struct PlanePointers {
    q: *mut i8,
    s: *mut f32,
    sum: *mut f32,
    n128: *mut i32,
    n8: *mut i32,
    n16: *mut i32,
    n32: *mut i32,
}

// SAFETY: used to write disjoint slots while the planes are borrowed mutably.
unsafe impl Sync for PlanePointers {}

impl PlanePointers {
    fn new(p: &mut Planes) -> PlanePointers {
        PlanePointers {
            q: p.q.as_mut_ptr(),
            s: p.s.as_mut_ptr(),
            sum: p.sum.as_mut_ptr(),
            n128: p.n128.as_mut_ptr(),
            n8: p.n8.as_mut_ptr(),
            n16: p.n16.as_mut_ptr(),
            n32: p.n32.as_mut_ptr(),
        }
    }
}

/// Quantises row `r`. The operations have one meaning on every path (no fused one among them), so
/// all give the same bits.
///
/// # Safety
/// The planes hold `rows * blocks` blocks, and nobody else touches those of row `r`.
unsafe fn quantize_row(
    isa: Isa,
    planes: &PlanePointers,
    x: &[f32],
    r: usize,
    rows: usize,
    blocks: usize,
) {
    // SAFETY: the caller's promise; a path is chosen only when the machine has it.
    unsafe {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Amx | Isa::Avx512Vnni => quantize_row_avx512(planes, x, r, rows, blocks),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => quantize_row_avx2(planes, x, r, rows, blocks),
            _ => quantize_row_body(planes, x, r, rows, blocks, quantize_block),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn quantize_row_avx512(p: &PlanePointers, x: &[f32], r: usize, rows: usize, blocks: usize) {
    // SAFETY: the caller's promise; this function has the features the block needs.
    unsafe { quantize_row_body(p, x, r, rows, blocks, |x| quantize_block_avx512(x)) };
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn quantize_row_avx2(p: &PlanePointers, x: &[f32], r: usize, rows: usize, blocks: usize) {
    // SAFETY: the caller's promise.
    unsafe { quantize_row_body(p, x, r, rows, blocks, quantize_block) };
}

#[inline(always)]
unsafe fn quantize_row_body(
    p: &PlanePointers,
    x: &[f32],
    r: usize,
    rows: usize,
    blocks: usize,
    quantize: impl Fn(&[f32; BLOCK]) -> Quantised,
) {
    let mut tail;
    let first = slot(r, 0, rows, blocks);
    let step = GROUP.min(rows - r / GROUP * GROUP);
    for b in 0..blocks {
        let rest = x.get(b * BLOCK..).unwrap_or(&[]);
        let block: &[f32; BLOCK] = match rest.first_chunk() {
            Some(block) => block,
            None => {
                tail = [0.0; BLOCK];
                tail[..rest.len()].copy_from_slice(rest);
                &tail
            }
        };
        let Quantised { q, s, low, high } = quantize(block);
        let sum = low + high;
        let at = first + b * step;
        // SAFETY: `at` is below `rows * blocks`, and this row's slots are ours.
        unsafe {
            p.q.add(at * BLOCK).cast::<[i8; BLOCK]>().write_unaligned(q);
            p.s.add(at).write(s);
            // |sum| is at most 32 * 127, exact in f32.
            p.sum.add(at).write(sum as f32 * s);
            p.n128.add(at).write(-128 * sum);
            p.n8.add(at).write(-8 * sum);
            p.n16.add(at).write(-16 * sum);
            p.n32.add(2 * at).write(-32 * low);
            p.n32.add(2 * at + 1).write(-32 * high);
        }
    }
}

/// A quantised block: codes, scale, and the sums of its halves' codes.
#[derive(Debug, PartialEq)]
struct Quantised {
    q: [i8; BLOCK],
    s: f32,
    low: i32,
    high: i32,
}

impl Quantised {
    fn zero(s: f32) -> Quantised {
        Quantised { q: [0; BLOCK], s, low: 0, high: 0 }
    }
}

/// The vector twin of [`quantize_block`].
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn quantize_block_avx512(x: &[f32; BLOCK]) -> Quantised {
    use std::arch::x86_64::*;

    // SAFETY: the array holds two vectors.
    let (a, b) = unsafe { (_mm512_loadu_ps(x.as_ptr()), _mm512_loadu_ps(x.as_ptr().add(16))) };
    let magnitude = _mm512_set1_epi32(0x7fff_ffff);
    let bits = |v| _mm512_and_si512(_mm512_castps_si512(v), magnitude);
    let amax = f32::from_bits(_mm512_reduce_max_epu32(_mm512_max_epu32(bits(a), bits(b))));
    if !amax.is_finite() {
        return Quantised::zero(f32::NAN);
    }
    if amax < TINY {
        return Quantised::zero(0.0);
    }
    let inverse = _mm512_set1_ps(127.0 / amax);
    // Conversion rounds half to even, the default mode that Rust code may rely on.
    let a = _mm512_cvtps_epi32(_mm512_mul_ps(a, inverse));
    let b = _mm512_cvtps_epi32(_mm512_mul_ps(b, inverse));
    let mut q = [0i8; BLOCK];
    // SAFETY: the array holds two runs of 16 codes.
    unsafe {
        _mm_storeu_si128(q.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(a));
        _mm_storeu_si128(q.as_mut_ptr().add(16).cast(), _mm512_cvtepi32_epi8(b));
    }
    let (low, high) = (_mm512_reduce_add_epi32(a), _mm512_reduce_add_epi32(b));
    Quantised { q, s: amax / 127.0, low, high }
}

/// One block.
#[inline(always)]
fn quantize_block(x: &[f32; BLOCK]) -> Quantised {
    // Magnitudes of floats compare as integers, NaN above everything.
    let mut top = 0u32;
    for v in x {
        top = top.max(v.to_bits() & 0x7fff_ffff);
    }
    let amax = f32::from_bits(top);
    if !amax.is_finite() {
        return Quantised::zero(f32::NAN);
    }
    if amax < TINY {
        return Quantised::zero(0.0);
    }
    let inverse = 127.0 / amax;
    let mut q = [0i8; BLOCK];
    for (q, v) in q.iter_mut().zip(x) {
        // Adding 1.5 * 2^23 rounds half to even at the integers and leaves them in the low bits.
        let rounded = v * inverse + 12_582_912.0;
        *q = (rounded.to_bits() as i32).wrapping_sub(0x4b40_0000) as i8;
    }
    let half = |h: usize| q[16 * h..16 * (h + 1)].iter().map(|&q| i32::from(q)).sum();
    Quantised { q, s: amax / 127.0, low: half(0), high: half(1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_by_hand() {
        let mut x = [0.0f32; BLOCK];
        // 127 / amax is 2, so half integers appear: they go to the even neighbour.
        x[..8].copy_from_slice(&[63.5, -63.5, 0.25, 0.75, 1.25, -0.25, -0.75, 10.0]);
        let Quantised { q, s, low, high } = quantize_block(&x);
        // 127 - 127 + 2 + 2 - 2 + 20.
        assert_eq!((low, high), (22, 0));
        assert_eq!(&q[..9], &[127, -127, 0, 2, 2, 0, -2, 20, 0]);
        assert_eq!(s, 0.5);
    }

    #[test]
    fn extreme_blocks() {
        let with = |v: f32| {
            let mut x = [0.5f32; BLOCK];
            x[3] = v;
            quantize_block(&x)
        };
        assert!(with(f32::NAN).s.is_nan());
        assert!(with(f32::NEG_INFINITY).s.is_nan());
        assert_eq!(quantize_block(&[1e-31; BLOCK]), Quantised::zero(0.0));
        assert_eq!(quantize_block(&[-f32::MAX; BLOCK]).q, [-127; BLOCK]);
        assert_eq!(quantize_block(&[2e-30; BLOCK]).q, [127; BLOCK]);
    }

    #[test]
    fn every_path_and_thread_count_quantises_alike() {
        let (rows, cols) = (21, 200);
        let mut x: Vec<f32> =
            (0..rows * cols).map(|i| ((i * 7919) % 1009) as f32 / 50.0 - 10.0).collect();
        // Ties, a block of zeros, tiny and huge ones, and one that is not finite (NaN scales do
        // not compare equal, so that row's scale is compared by its bits below).
        for (k, x) in x[..32].iter_mut().enumerate() {
            *x = k as f32 / 4.0 - 3.75;
        }
        x[31] = 63.5;
        x[32..64].fill(0.0);
        x[64..96].fill(3e-31);
        x[96..128].fill(f32::MAX);
        x[130] = f32::INFINITY;
        let mut want = Activations::new();
        want.quantize(
            &Pool::with_options(1, Isa::Scalar, Default::default()).unwrap(),
            &x,
            rows,
            cols,
        );
        for isa in Isa::available() {
            for threads in [1, 2, 3] {
                let pool = Pool::with_options(threads, isa, Default::default()).unwrap();
                let mut got = Activations::new();
                got.quantize(&pool, &x, rows, cols);
                assert_eq!(got.ints.q, want.ints.q);
                let bits = |v: &[f32]| v.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                assert_eq!(bits(&got.ints.s), bits(&want.ints.s));
                assert_eq!(bits(&got.ints.sum), bits(&want.ints.sum));
                assert_eq!(got.ints.n128, want.ints.n128);
                assert_eq!(got.ints.n8, want.ints.n8);
                assert_eq!(got.ints.n16, want.ints.n16);
                assert_eq!(got.ints.n32, want.ints.n32);
            }
        }
        // Row 20 is the fifth of the second group, which has 5 rows.
        let (blocks, at) = (7, 16 * 7 + 6 * 5 + 4);
        assert_eq!(slot(20, 6, rows, blocks), at);
        let sum: i32 = want.ints.q[at * 32..][..32].iter().map(|&q| i32::from(q)).sum();
        assert_eq!(want.ints.n8[at], -8 * sum);
        assert_eq!(want.ints.n16[at], -16 * sum);
        assert_eq!(want.ints.n32[2 * at] + want.ints.n32[2 * at + 1], -32 * sum);
    }
}

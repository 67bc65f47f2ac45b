//! `C = A B` or `C += A B` in f32, for operands of any strides.
//!
//! Both operands are packed into panels, `k` in slices of [`SLICE`] so that a panel of B stays in the
//! first cache and a block of A in the second; a tile of 12 x 32 sums lives in registers (6 x 16
//! without AVX-512). An element is summed over `k` in ascending order within a slice, slice after
//! slice, whoever computes it.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::hint::black_box;
use std::time::{Duration, Instant};

use super::length;
use crate::Pool;
use crate::aligned::AlignedBuffer;
use crate::disjoint::Disjoint;
use crate::error::{KernelError, Result};
use crate::isa::Isa;
use crate::lanes::{LANES, Lanes, entry};

/// Depth of a panel.
const SLICE: usize = 256;
/// Rows of a block of A, a whole number of tiles on every path.
const BLOCK: usize = 48;

thread_local! {
    /// Packed block of A, kept from product to product.
    static BLOCK_OF_A: Cell<AlignedBuffer> = Cell::new(AlignedBuffer::default());
    /// Packed B of products made inside a part of a parallel loop.
    static SMALL_B: Cell<AlignedBuffer> = Cell::new(AlignedBuffer::default());
}

/// An operand: element `(i, j)` is `data[i * row + j * col]`, and one of both strides is 1.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row: usize,
    col: usize,
}

impl<'a> View<'a> {
    /// A matrix stored row after row, without gaps.
    pub fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        Self::wide(data, rows, cols, cols)
    }

    /// A matrix whose rows begin `stride` values apart.
    pub fn wide(data: &'a [f32], rows: usize, cols: usize, stride: usize) -> Self {
        Self { data, rows, cols, row: stride, col: 1 }
    }

    /// The same values with rows and columns exchanged.
    #[must_use]
    pub fn transposed(self) -> Self {
        let Self { data, rows, cols, row, col } = self;
        Self { data, rows: cols, cols: rows, row: col, col: row }
    }

    /// Errors when the data is too short for the shape.
    fn check(&self) -> Result<()> {
        if self.rows == 0 || self.cols == 0 {
            return Ok(());
        }
        let last = (self.rows - 1) * self.row + (self.cols - 1) * self.col + 1;
        match last <= self.data.len() {
            true => Ok(()),
            false => length("matrix operand", last, self.data.len()),
        }
    }
}

/// Where a product goes: rows of `n` values, `stride` apart.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) start: Disjoint<f32>,
    pub(super) stride: usize,
    /// Whether the product is added to what is there.
    pub(super) add: bool,
}

/// Rows and columns of the register tile of a path.
const fn tile_shape<L: Lanes>() -> (usize, usize) {
    if L::WIDE { (12, 2 * LANES) } else { (6, LANES) }
}

fn shape_of(isa: Isa) -> (usize, usize) {
    match isa {
        Isa::Amx | Isa::Avx512Vnni => (12, 2 * LANES),
        _ => (6, LANES),
    }
}

/// Packs columns `first ..` of `k x n` values, where `(p, j)` is `src[p * row + j * col]`, into
/// panels of `width`: `[panel][p][width]`, padded with zeros. `dst` has room for one more line.
#[inline(always)]
unsafe fn pack<L: Lanes>(
    src: *const f32,
    row: usize,
    col: usize,
    k: usize,
    n: usize,
    width: usize,
    dst: *mut f32,
) {
    for (panel, first) in (0..n).step_by(width).enumerate() {
        let here = width.min(n - first);
        // SAFETY: the caller promises the source's elements and room for whole panels and a line.
        unsafe {
            let dst = dst.add(panel * k * width);
            if col == 1 {
                for p in 0..k {
                    let (src, dst) = (src.add(p * row + first), dst.add(p * width));
                    for j in (0..width).step_by(LANES) {
                        let have = here.saturating_sub(j).min(LANES);
                        let v = if have == LANES {
                            L::load(src.add(j))
                        } else {
                            L::load_part(src.add(j.min(here)), have)
                        };
                        // What a narrow panel writes too much is overwritten by its next line.
                        v.store(dst.add(j));
                    }
                }
            } else {
                for p in (0..k).step_by(LANES) {
                    let depth = LANES.min(k - p);
                    for j in (0..width).step_by(LANES) {
                        let mut lines = [L::splat(0.0); LANES];
                        for (i, line) in lines.iter_mut().enumerate() {
                            if j + i < here && i < width {
                                let src = src.add((first + j + i) * col + p * row);
                                *line = if depth == LANES {
                                    L::load(src)
                                } else {
                                    L::load_part(src, depth)
                                };
                            }
                        }
                        let lines = L::transpose(lines);
                        for (i, line) in lines.iter().enumerate().take(depth) {
                            line.store(dst.add((p + i) * width + j));
                        }
                    }
                }
            }
        }
    }
}

entry!(fn run_pack(src: *const f32, row: usize, col: usize, k: usize, n: usize, width: usize, dst: *mut f32) = pack);

/// One register tile: `R` rows by `V` lanes of columns, of which `rows` and `cols` are written.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn tile<L: Lanes, const R: usize, const V: usize>(
    k: usize,
    a: *const f32,
    b: *const f32,
    c: *mut f32,
    stride: usize,
    rows: usize,
    cols: usize,
    add: bool,
) {
    // SAFETY: the caller promises packed panels of depth `k` and the place in C.
    unsafe {
        let mut sums = [[L::splat(0.0); V]; R];
        let (mut a, mut b) = (a, b);
        for _ in 0..k {
            let mut right = [L::splat(0.0); V];
            for (v, right) in right.iter_mut().enumerate() {
                *right = L::load(b.add(v * LANES));
            }
            for (r, sums) in sums.iter_mut().enumerate() {
                let left = L::splat(*a.add(r));
                for (sum, right) in sums.iter_mut().zip(right) {
                    *sum = left.fma(right, *sum);
                }
            }
            a = a.add(R);
            b = b.add(V * LANES);
        }
        for (r, sums) in sums.into_iter().enumerate() {
            if r >= rows {
                break;
            }
            for (v, sum) in sums.into_iter().enumerate() {
                let have = cols.saturating_sub(v * LANES).min(LANES);
                if have == 0 {
                    break;
                }
                let c = c.add(r * stride + v * LANES);
                if have == LANES {
                    let sum = if add { L::load(c).add(sum) } else { sum };
                    sum.store(c);
                } else {
                    let sum = if add { L::load_part(c, have).add(sum) } else { sum };
                    sum.store_range(c, 0, have);
                }
            }
        }
    }
}

/// A packed block of A times all panels of B.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn block<L: Lanes>(
    k: usize,
    a: *const f32,
    m: usize,
    b: *const f32,
    n: usize,
    c: *mut f32,
    stride: usize,
    add: bool,
) {
    let (height, width) = tile_shape::<L>();
    for (panel, j) in (0..n).step_by(width).enumerate() {
        for (strip, i) in (0..m).step_by(height).enumerate() {
            // SAFETY: the caller promises panels for all of `m` and `n`, and C.
            unsafe {
                let (a, b) = (a.add(strip * k * height), b.add(panel * k * width));
                let (c, rows, cols) = (c.add(i * stride + j), height.min(m - i), width.min(n - j));
                if L::WIDE {
                    tile::<L, 12, 2>(k, a, b, c, stride, rows, cols, add);
                } else {
                    tile::<L, 6, 1>(k, a, b, c, stride, rows, cols, add);
                }
            }
        }
    }
}

entry!(fn run_block(k: usize, a: *const f32, m: usize, b: *const f32, n: usize, c: *mut f32, stride: usize, add: bool) = block);

/// Values of the packed panels of `n` columns and depth `k`.
fn packed(n: usize, k: usize, width: usize) -> usize {
    n.div_ceil(width) * width * k + 2 * LANES
}

/// Packs rows `i ..` of A at slice `p ..` and multiplies them.
///
/// # Safety
/// `a` is checked, `b` holds the packed slice, nobody else touches the rows of C.
#[allow(clippy::too_many_arguments)]
unsafe fn rows_of(
    isa: Isa,
    a: &View<'_>,
    (i, m): (usize, usize),
    (p, k): (usize, usize),
    b: *const f32,
    n: usize,
    c: Place,
    scratch: &mut AlignedBuffer,
) {
    let (height, _) = shape_of(isa);
    scratch.at_least(packed(m, k, height));
    let add = c.add || p > 0;
    // SAFETY: the block lies inside `a`, the scratch holds its panels; C is the caller's promise.
    unsafe {
        let src = a.data.as_ptr().add(i * a.row + p * a.col);
        // A's panels run down its rows: the packed "columns" are rows of A.
        run_pack(isa, src, a.col, a.row, k, m, height, scratch.as_mut_ptr());
        run_block(isa, k, scratch.as_ptr(), m, b, n, c.start.at(i * c.stride), c.stride, add);
    }
}

/// A product made by the calling thread alone, inside a part of a parallel loop.
///
/// # Safety
/// Both views are checked and their inner extents equal; nobody else touches the place.
pub(super) unsafe fn product_here(isa: Isa, a: View<'_>, b: View<'_>, c: Place) {
    let (_, width) = shape_of(isa);
    let (mut left, mut right) = (BLOCK_OF_A.take(), SMALL_B.take());
    for p in (0..a.cols).step_by(SLICE) {
        let k = SLICE.min(a.cols - p);
        right.at_least(packed(b.cols, k, width));
        // SAFETY: the slice lies inside `b`, the buffer holds its panels; C is the caller's promise.
        unsafe {
            let src = b.data.as_ptr().add(p * b.row);
            run_pack(isa, src, b.row, b.col, k, b.cols, width, right.as_mut_ptr());
            for i in (0..a.rows).step_by(BLOCK) {
                let m = BLOCK.min(a.rows - i);
                rows_of(isa, &a, (i, m), (p, k), right.as_ptr(), b.cols, c, &mut left);
            }
        }
    }
    BLOCK_OF_A.set(left);
    SMALL_B.set(right);
}

/// Makes products; keeps the memory of the packed operand.
#[derive(Debug, Default)]
pub struct Gemm {
    packed: AlignedBuffer,
}

impl Gemm {
    /// Without memory yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// `c = a b`, or `c += a b` if `add`; `c` is stored row after row.
    ///
    /// Errors: shapes that do not fit one another or their data.
    pub fn run(
        &mut self,
        pool: &Pool,
        a: View<'_>,
        b: View<'_>,
        c: &mut [f32],
        add: bool,
    ) -> Result<()> {
        a.check()?;
        b.check()?;
        if a.cols != b.rows {
            return Err(KernelError::Mismatch("the factors of a product have other inner extents"));
        }
        length("product", a.rows * b.cols, c.len())?;
        if a.cols == 0 && !add {
            c.fill(0.0);
        }
        let (isa, n) = (pool.isa(), b.cols);
        let (_, width) = shape_of(isa);
        let c = Place { start: Disjoint::new(c), stride: n, add };
        for p in (0..a.cols).step_by(SLICE) {
            let k = SLICE.min(a.cols - p);
            self.packed.at_least(packed(n, k, width));
            let panels = n.div_ceil(width);
            let out = Disjoint::new(&mut self.packed[..]);
            // A panel a part would leave narrow stores of one part in the panel of the next.
            let parts = panels.div_ceil(8);
            pool.run(parts, &|part| {
                let first = part * 8;
                let cols = (8 * width).min(n - first * width);
                // SAFETY: the panels of a part lie inside `b` and the buffer. Panels of B are whole
                // lines wide, so a part writes nothing beyond its own.
                unsafe {
                    let src = b.data.as_ptr().add(p * b.row + first * width * b.col);
                    run_pack(isa, src, b.row, b.col, k, cols, width, out.at(first * width * k));
                }
            });
            let b = out;
            let blocks = a.rows.div_ceil(BLOCK);
            pool.run(blocks, &|part| {
                let i = part * BLOCK;
                let m = BLOCK.min(a.rows - i);
                let mut scratch = BLOCK_OF_A.take();
                // SAFETY: the views are checked, B is packed, and blocks of rows are disjoint.
                unsafe { rows_of(isa, &a, (i, m), (p, k), b.at(0), n, c, &mut scratch) };
                BLOCK_OF_A.set(scratch);
            });
        }
        Ok(())
    }
}

/// Independent sums that keep every FMA unit busy; returns something that depends on all of them.
#[inline(always)]
unsafe fn busy<L: Lanes>(rounds: usize, x: f32) -> f32 {
    const SUMS: usize = 12;
    // SAFETY: the caller promises the features of `L`.
    unsafe {
        let (factor, mut sums) = (L::splat(x), [L::splat(x); SUMS]);
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = factor.fma(*sum, factor);
            }
        }
        sums.into_iter().fold(L::splat(0.0), L::add).reduce_add()
    }
}

entry!(fn run_busy(rounds: usize, x: f32) -> f32 = busy);

/// Floating-point operations a second that fused multiply-adds reach on the pool's threads, from
/// registers: what no product can exceed. Takes about a tenth of a second.
pub fn peak(pool: &Pool) -> f64 {
    const ROUNDS: usize = 20_000;
    let (isa, threads) = (pool.isa(), pool.threads());
    let per_part = (ROUNDS * 12 * 2 * LANES) as f64;
    let mut best = 0.0f64;
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(100) {
        let begun = Instant::now();
        let parts = threads * 8;
        pool.run(parts, &|_| {
            // SAFETY: the pool's path is available.
            black_box(unsafe { run_busy(isa, ROUNDS, black_box(0.5)) });
        });
        best = best.max(per_part * parts as f64 / begun.elapsed().as_secs_f64());
    }
    best
}

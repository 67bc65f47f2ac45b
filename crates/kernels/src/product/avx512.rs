//! The integer product with AVX-512 VNNI.
//!
//! One `vpdpbusd` multiplies a code vector (16 outputs, 4 values of k each) with four activation
//! codes broadcast from memory. Weights are unpacked from their own bit width in registers, once
//! for all rows of a register tile.
#![allow(unsafe_code)]

use std::arch::x86_64::*;
use std::ops::Range;

use super::Job;
use super::activations::{Activations, GROUP, Planes};
use crate::pack::WeightType;
use crate::pack::strips::{
    BLOCK, Q4_1_BLOCK, Q4_K_HEAD, Q4_K_SUPER, Q5_0_PAIR, Q6_K_HEAD, Q6_K_SUPER, Q8_0_PAIR, STRIP,
    VECTOR,
};

/// How far ahead of the codes in use the stream is asked for.
const AHEAD: usize = 2048;

/// A block of a strip in registers: code vectors, both scales, minimum.
#[derive(Clone, Copy)]
struct Block {
    codes: [__m512i; 8],
    d: __m512,
    d_high: __m512,
    m: __m512,
}

/// What distinguishes the packed types inside the kernel.
trait Format {
    /// Whether there is a minimum.
    const MINIMUM: bool;
    /// Whether each half of 16 values has its own scale.
    const HALVES: bool;
    /// Bytes of codes of a block.
    const CODES: usize;
    /// Where integer sums start for the rows at `planes`' slots; null for zero.
    fn start(planes: &Planes) -> *const i32;
    /// Address of the codes of block `b`.
    unsafe fn codes_at(strip: *const u8, b: usize) -> *const u8;
    /// Unpacks block `b`.
    unsafe fn block(strip: *const u8, b: usize) -> Block;
}

/// # Safety
/// As [`super::run_strips`]; the machine has AVX-512 VNNI.
pub(super) unsafe fn run(job: &Job<'_>, a: &Activations, strips: Range<usize>) {
    // SAFETY: the caller's promise.
    unsafe {
        match job.weights.ty() {
            WeightType::Q8_0 => run_format_q8_0(job, a, strips),
            WeightType::Q5_0 => run_format_q5_0(job, a, strips),
            WeightType::Q4_1 => run_format_q4_1(job, a, strips),
            WeightType::Q4K => run_format_q4_k(job, a, strips),
            _ => run_format_q6_k(job, a, strips),
        }
    }
}

macro_rules! formats {
    ($($name:ident: $format:ty),*) => {$(
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,f16c,fma,avx2")]
        unsafe fn $name(job: &Job<'_>, a: &Activations, strips: Range<usize>) {
            // SAFETY: the caller's promise.
            unsafe { run_format::<$format>(job, a, strips) };
        }
    )*};
}

formats!(
    run_format_q8_0: Q8_0,
    run_format_q5_0: Q5_0,
    run_format_q4_1: Q4_1,
    run_format_q4_k: Q4K,
    run_format_q6_k: Q6K
);

#[inline(always)]
unsafe fn run_format<F: Format>(job: &Job<'_>, a: &Activations, strips: Range<usize>) {
    for s in strips {
        let strip = job.weights.strip(s).as_ptr();
        let mut r = 0;
        while r < a.rows() {
            // SAFETY: rows `r .. r + n` lie in one group, as tiles of 8 do not straddle 16.
            unsafe {
                let n = (a.rows() - r).min(8);
                match n {
                    1 => tile_store::<F, 1>(job, a, s, strip, r),
                    2 => tile_store::<F, 2>(job, a, s, strip, r),
                    3 => tile_store::<F, 3>(job, a, s, strip, r),
                    4 => tile_store::<F, 4>(job, a, s, strip, r),
                    5 => tile_store::<F, 5>(job, a, s, strip, r),
                    6 => tile_store::<F, 6>(job, a, s, strip, r),
                    7 => tile_store::<F, 7>(job, a, s, strip, r),
                    _ => tile_store::<F, 8>(job, a, s, strip, r),
                }
                r += n;
            }
        }
    }
}

/// The activations of a register tile: pointers to the tile's first row in block 0.
#[derive(Clone, Copy)]
struct Rows {
    q: *const i8,
    s: *const f32,
    sum: *const f32,
    start: *const i32,
    /// Rows of the group: the distance of two blocks.
    group: usize,
}

impl Rows {
    #[inline(always)]
    unsafe fn new(a: &Activations, r: usize, start: *const i32, halves: bool) -> Rows {
        let p = a.planes();
        let first = r / GROUP * GROUP;
        let slot = first * a.blocks() + (r - first);
        // SAFETY: `r` is a row of the activations.
        unsafe {
            Rows {
                q: p.q.as_ptr().add(slot * BLOCK),
                s: p.s.as_ptr().add(slot),
                sum: p.sum.as_ptr().add(slot),
                start: if start.is_null() {
                    start
                } else {
                    start.add(slot * if halves { 2 } else { 1 })
                },
                group: GROUP.min(a.rows() - first),
            }
        }
    }
}

#[inline(always)]
unsafe fn tile_store<F: Format, const R: usize>(
    job: &Job<'_>,
    a: &Activations,
    s: usize,
    strip: *const u8,
    r: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let rows = Rows::new(a, r, F::start(a.planes()), F::HALVES);
        let acc = tile::<F, R>(strip, rows, a.blocks());
        for (i, acc) in acc.into_iter().enumerate() {
            store(job, r + i, s, acc);
        }
    }
}

/// Finishes 16 outputs of a row: the vector twin of `Job::store`.
#[inline(always)]
unsafe fn store(job: &Job<'_>, row: usize, strip: usize, acc: __m512) {
    let first = strip * STRIP;
    let n = STRIP.min(job.weights.rows() - first);
    let mask = (0xffff_u32 >> (STRIP - n)) as u16;
    // SAFETY: masked to the outputs there are; `Target::check` saw that the result holds them.
    unsafe {
        let out = job.out.add(row * job.stride + first);
        let mut y = acc;
        if let Some(bias) = job.bias {
            y = _mm512_add_ps(y, _mm512_maskz_loadu_ps(mask, bias.as_ptr().add(first)));
        }
        if job.accumulate {
            y = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, out), y);
        }
        _mm512_mask_storeu_ps(out, mask, y);
    }
}

/// One strip by `R` rows, over all of k.
#[inline(always)]
unsafe fn tile<F: Format, const R: usize>(
    strip: *const u8,
    rows: Rows,
    blocks: usize,
) -> [__m512; R] {
    // SAFETY: the strip has `blocks` blocks and the rows that many activations; a prefetch may
    // point anywhere.
    unsafe {
        let mut acc = [_mm512_setzero_ps(); R];
        for b in 0..blocks {
            if R <= 4 {
                let ahead = F::codes_at(strip, b).wrapping_add(AHEAD);
                for line in 0..F::CODES / VECTOR + 1 {
                    _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(line * VECTOR).cast());
                }
            }
            let w = F::block(strip, b);
            let slot = b * rows.group;
            let q = rows.q.add(slot * BLOCK);
            let s = rows.s.add(slot);
            if F::HALVES {
                let start = rows.start.add(2 * slot);
                for h in 0..2 {
                    let mut sums: [__m512i; R] =
                        std::array::from_fn(|i| _mm512_set1_epi32(*start.add(2 * i + h)));
                    dot::<R>(&mut sums, &w.codes, 4 * h..4 * h + 4, q);
                    let d = if h == 0 { w.d } else { w.d_high };
                    for i in 0..R {
                        let ds = _mm512_mul_ps(d, _mm512_set1_ps(*s.add(i)));
                        acc[i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[i]), ds, acc[i]);
                    }
                }
            } else {
                let mut sums: [__m512i; R] = std::array::from_fn(|i| {
                    if F::MINIMUM {
                        _mm512_setzero_si512()
                    } else {
                        _mm512_set1_epi32(*rows.start.add(slot + i))
                    }
                });
                dot::<R>(&mut sums, &w.codes, 0..8, q);
                for i in 0..R {
                    let ds = _mm512_mul_ps(w.d, _mm512_set1_ps(*s.add(i)));
                    acc[i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[i]), ds, acc[i]);
                    if F::MINIMUM {
                        let sum = _mm512_set1_ps(*rows.sum.add(slot + i));
                        acc[i] = _mm512_fmadd_ps(w.m, sum, acc[i]);
                    }
                }
            }
        }
        acc
    }
}

/// Adds the groups of a block to the integer sums of `R` rows that lie 32 bytes apart.
#[inline(always)]
unsafe fn dot<const R: usize>(
    sums: &mut [__m512i; R],
    codes: &[__m512i; 8],
    groups: Range<usize>,
    q: *const i8,
) {
    for j in groups {
        for (i, sum) in sums.iter_mut().enumerate() {
            // SAFETY: row `i` has 32 codes at `q + 32 i`.
            unsafe {
                let x = q.add(i * BLOCK + 4 * j).cast::<i32>().read_unaligned();
                *sum = _mm512_dpbusd_epi32(*sum, codes[j], _mm512_set1_epi32(x));
            }
        }
    }
}

/// Sixteen f16 as f32.
#[inline(always)]
unsafe fn halves(at: *const u8) -> __m512 {
    // SAFETY: the caller gives 32 readable bytes.
    unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(at.cast())) }
}

#[inline(always)]
unsafe fn line(at: *const u8, n: usize) -> __m512i {
    // SAFETY: the caller gives at least `n + 1` lines, aligned as every slab.
    unsafe { _mm512_load_si512(at.add(n * VECTOR).cast()) }
}

/// The eight code vectors of four nibble vectors.
#[inline(always)]
unsafe fn nibbles(at: *const u8) -> [__m512i; 8] {
    // SAFETY: the caller gives four lines.
    unsafe {
        let low = _mm512_set1_epi8(15);
        std::array::from_fn(|j| {
            let v = line(at, j % 4);
            let v = if j < 4 { v } else { _mm512_srli_epi16::<4>(v) };
            _mm512_and_si512(v, low)
        })
    }
}

/// `a | (b & c)`.
const OR_AND: i32 = 0xf8;

struct Q8_0;

impl Format for Q8_0 {
    const MINIMUM: bool = false;
    const HALVES: bool = false;
    const CODES: usize = 8 * VECTOR;

    #[inline(always)]
    fn start(planes: &Planes) -> *const i32 {
        planes.n128.as_ptr()
    }

    #[inline(always)]
    unsafe fn codes_at(strip: *const u8, b: usize) -> *const u8 {
        strip.wrapping_add(b / 2 * Q8_0_PAIR + VECTOR + b % 2 * 8 * VECTOR)
    }

    #[inline(always)]
    unsafe fn block(strip: *const u8, b: usize) -> Block {
        // SAFETY: `b` is a block of the strip.
        unsafe {
            let codes = Self::codes_at(strip, b);
            let d = halves(strip.add(b / 2 * Q8_0_PAIR + b % 2 * 32));
            Block { codes: std::array::from_fn(|j| line(codes, j)), d, d_high: d, m: d }
        }
    }
}

struct Q5_0;

impl Format for Q5_0 {
    const MINIMUM: bool = false;
    const HALVES: bool = false;
    const CODES: usize = 5 * VECTOR;

    #[inline(always)]
    fn start(planes: &Planes) -> *const i32 {
        planes.n16.as_ptr()
    }

    #[inline(always)]
    unsafe fn codes_at(strip: *const u8, b: usize) -> *const u8 {
        strip.wrapping_add(b / 2 * Q5_0_PAIR + VECTOR + b % 2 * 5 * VECTOR)
    }

    #[inline(always)]
    unsafe fn block(strip: *const u8, b: usize) -> Block {
        // SAFETY: `b` is a block of the strip.
        unsafe {
            let at = Self::codes_at(strip, b);
            let d = halves(strip.add(b / 2 * Q5_0_PAIR + b % 2 * 32));
            let mut codes = nibbles(at);
            let fifth = line(at, 4);
            let bit = _mm512_set1_epi8(16);
            // Bit j moves to bit 4; 16-bit shifts are fine as only that bit is kept.
            let at_four = [
                _mm512_slli_epi16::<4>(fifth),
                _mm512_slli_epi16::<3>(fifth),
                _mm512_slli_epi16::<2>(fifth),
                _mm512_slli_epi16::<1>(fifth),
                fifth,
                _mm512_srli_epi16::<1>(fifth),
                _mm512_srli_epi16::<2>(fifth),
                _mm512_srli_epi16::<3>(fifth),
            ];
            for (code, high) in codes.iter_mut().zip(at_four) {
                *code = _mm512_ternarylogic_epi32::<OR_AND>(*code, high, bit);
            }
            Block { codes, d, d_high: d, m: d }
        }
    }
}

struct Q4_1;

impl Format for Q4_1 {
    const MINIMUM: bool = true;
    const HALVES: bool = false;
    const CODES: usize = 4 * VECTOR;

    #[inline(always)]
    fn start(_: &Planes) -> *const i32 {
        std::ptr::null()
    }

    #[inline(always)]
    unsafe fn codes_at(strip: *const u8, b: usize) -> *const u8 {
        strip.wrapping_add(b * Q4_1_BLOCK + VECTOR)
    }

    #[inline(always)]
    unsafe fn block(strip: *const u8, b: usize) -> Block {
        // SAFETY: `b` is a block of the strip.
        unsafe {
            let at = strip.add(b * Q4_1_BLOCK);
            let d = halves(at);
            Block { codes: nibbles(at.add(VECTOR)), d, d_high: d, m: halves(at.add(32)) }
        }
    }
}

struct Q4K;

impl Format for Q4K {
    const MINIMUM: bool = true;
    const HALVES: bool = false;
    const CODES: usize = 4 * VECTOR;

    #[inline(always)]
    fn start(_: &Planes) -> *const i32 {
        std::ptr::null()
    }

    #[inline(always)]
    unsafe fn codes_at(strip: *const u8, b: usize) -> *const u8 {
        strip.wrapping_add(b / 8 * Q4_K_SUPER + Q4_K_HEAD + b % 8 * 4 * VECTOR)
    }

    #[inline(always)]
    unsafe fn block(strip: *const u8, b: usize) -> Block {
        // SAFETY: `b` is a block of the strip.
        unsafe {
            let head = strip.add(b / 8 * Q4_K_SUPER);
            let scales = head.add(VECTOR + 32 * (b % 8));
            let widen = |at: *const u8| {
                _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(at.cast())))
            };
            let d = _mm512_mul_ps(halves(head), widen(scales));
            let m = _mm512_mul_ps(halves(head.add(32)), widen(scales.add(STRIP)));
            let m = _mm512_sub_ps(_mm512_set1_ps(-0.0), m);
            Block { codes: nibbles(Self::codes_at(strip, b)), d, d_high: d, m }
        }
    }
}

struct Q6K;

impl Format for Q6K {
    const MINIMUM: bool = false;
    const HALVES: bool = true;
    const CODES: usize = 6 * VECTOR;

    #[inline(always)]
    fn start(planes: &Planes) -> *const i32 {
        planes.n32.as_ptr()
    }

    #[inline(always)]
    unsafe fn codes_at(strip: *const u8, b: usize) -> *const u8 {
        strip.wrapping_add(b / 8 * Q6_K_SUPER + Q6_K_HEAD + b % 8 * 6 * VECTOR)
    }

    #[inline(always)]
    unsafe fn block(strip: *const u8, b: usize) -> Block {
        // SAFETY: `b` is a block of the strip.
        unsafe {
            let head = strip.add(b / 8 * Q6_K_SUPER);
            let scales = head.add(VECTOR + 2 * STRIP * (b % 8));
            let at = Self::codes_at(strip, b);
            let all = halves(head);
            let widen = |at: *const u8| {
                _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(at.cast())))
            };
            let mut codes = nibbles(at);
            let bits = _mm512_set1_epi8(0x30);
            for h in 0..2 {
                let high = line(at, 4 + h);
                let at_four = [
                    _mm512_slli_epi16::<4>(high),
                    _mm512_slli_epi16::<2>(high),
                    high,
                    _mm512_srli_epi16::<2>(high),
                ];
                for (i, high) in at_four.into_iter().enumerate() {
                    let code = &mut codes[4 * h + i];
                    *code = _mm512_ternarylogic_epi32::<OR_AND>(*code, high, bits);
                }
            }
            let d = _mm512_mul_ps(all, widen(scales));
            let d_high = _mm512_mul_ps(all, widen(scales.add(STRIP)));
            Block { codes, d, d_high, m: d }
        }
    }
}

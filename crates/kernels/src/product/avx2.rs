//! The integer product with AVX2 (and FMA, F16C): eight outputs a register.
//!
//! `vpmaddubsw` adds pairs of unsigned by signed products in 16 bits and saturates, so a sum of
//! several groups may stay in 16 bits only as long as it fits: eight groups of 4-bit codes
//! (8 * 2 * 15 * 127 = 30,480), four of 5-bit codes (31,496), two of 6-bit codes (32,004). Codes
//! of 8 bits are made signed first, and their sign moved to the activation: then one group is at
//! most 2 * 128 * 127 = 32,512. So every sum is exact, as in the other paths.
#![allow(unsafe_code)]

use std::arch::x86_64::*;
use std::ops::Range;

use super::Job;
use super::activations::{Activations, Planes, slot};
use crate::pack::WeightType;
use crate::pack::strips::{
    BLOCK, Q4_0_PAIR, Q4_1_BLOCK, Q4_K_SUPER, Q5_0_PAIR, Q6_K_SUPER, Q8_0_PAIR, STRIP, VECTOR,
    codes_at,
};

/// How far ahead of the codes in use the stream is asked for.
const AHEAD: usize = 2048;
/// Most rows of a register tile.
const ROWS: usize = 4;

/// Half a block of a strip (8 outputs) in registers.
#[derive(Clone, Copy)]
struct Half {
    codes: [__m256i; 8],
    d: __m256,
    d_high: __m256,
    m: __m256,
}

/// What distinguishes the packed types inside the kernel.
trait Format {
    const TYPE: WeightType;
    /// Whether there is a minimum.
    const MINIMUM: bool;
    /// Whether each half of 16 values has its own scale.
    const HALVES: bool;
    /// Whether codes unpack to signed bytes.
    const SIGNED: bool;
    /// Groups whose sum fits 16 bits.
    const GROUPS: usize;
    /// Where integer sums start; null for zero.
    fn start(planes: &Planes) -> *const i32;
    /// Unpacks outputs `8 h ..` of block `b`.
    unsafe fn half(strip: *const u8, b: usize, h: usize) -> Half;
}

/// # Safety
/// As [`super::run_strips`]; the machine has AVX2, FMA and F16C.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn run(job: &Job<'_>, a: &Activations, strips: Range<usize>) {
    // SAFETY: the caller's promise.
    unsafe {
        match job.weights.ty() {
            WeightType::Q8_0 => run_format::<Q8_0>(job, a, strips),
            WeightType::Q5_0 => run_format::<Q5_0>(job, a, strips),
            WeightType::Q4_0 => run_format::<Q4_0>(job, a, strips),
            WeightType::Q4_1 => run_format::<Q4_1>(job, a, strips),
            WeightType::Q4K => run_format::<Q4K>(job, a, strips),
            _ => run_format::<Q6K>(job, a, strips),
        }
    }
}

#[inline(always)]
unsafe fn run_format<F: Format>(job: &Job<'_>, a: &Activations, strips: Range<usize>) {
    for s in strips {
        let strip = job.weights.strip(s).as_ptr();
        let mut r = 0;
        while r < a.rows() {
            // Tiles of four do not straddle groups of 16 rows.
            let n = (a.rows() - r).min(ROWS);
            let mut out = [[0.0f32; STRIP]; ROWS];
            // SAFETY: strip and rows are in range.
            unsafe {
                match n {
                    1 => tile::<F, 1, 2>(strip, a, r, 0, &mut out),
                    2 => tile::<F, 2, 2>(strip, a, r, 0, &mut out),
                    3 => {
                        tile::<F, 3, 1>(strip, a, r, 0, &mut out);
                        tile::<F, 3, 1>(strip, a, r, 1, &mut out);
                    }
                    _ => {
                        tile::<F, 4, 1>(strip, a, r, 0, &mut out);
                        tile::<F, 4, 1>(strip, a, r, 1, &mut out);
                    }
                }
                for (i, out) in out[..n].iter().enumerate() {
                    job.store(r + i, s, out);
                }
            }
            r += n;
        }
    }
}

/// `R` rows by `H` halves of a strip from half `first`, over all of k.
#[inline(always)]
unsafe fn tile<F: Format, const R: usize, const H: usize>(
    strip: *const u8,
    a: &Activations,
    r: usize,
    first: usize,
    out: &mut [[f32; STRIP]; ROWS],
) {
    let p = a.planes();
    // SAFETY: the caller gives a strip and rows in range; a prefetch may point anywhere.
    unsafe {
        let mut acc = [[_mm256_setzero_ps(); H]; R];
        let ones = _mm256_set1_epi16(1);
        let base = slot(r, 0, a.rows(), a.blocks());
        let group = slot(r, 1, a.rows(), a.blocks()) - base;
        for b in 0..a.blocks() {
            let at = codes_at(F::TYPE, b);
            if first == 0 {
                for line in 0..(codes_at(F::TYPE, 1) - codes_at(F::TYPE, 0)) / VECTOR {
                    _mm_prefetch::<_MM_HINT_T0>(
                        strip.wrapping_add(at + AHEAD + line * VECTOR).cast(),
                    );
                }
            }
            let at = base + b * group;
            let q = p.q.as_ptr().add(at * BLOCK);
            for t in 0..H {
                let w = F::half(strip, b, first + t);
                for (i, acc) in acc.iter_mut().enumerate() {
                    let x = q.add(i * BLOCK);
                    let scale = _mm256_set1_ps(*p.s.as_ptr().add(at + i));
                    let start = |n: usize| {
                        let start = F::start(p);
                        if start.is_null() {
                            _mm256_setzero_si256()
                        } else {
                            _mm256_set1_epi32(*start.add(n))
                        }
                    };
                    if F::HALVES {
                        let low = dot::<F>(&w.codes, 0..4, x, start(2 * (at + i)), ones);
                        let ds = _mm256_mul_ps(w.d, scale);
                        acc[t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(low), ds, acc[t]);
                        let high = dot::<F>(&w.codes, 4..8, x, start(2 * (at + i) + 1), ones);
                        let ds = _mm256_mul_ps(w.d_high, scale);
                        acc[t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(high), ds, acc[t]);
                    } else {
                        let sum = dot::<F>(&w.codes, 0..8, x, start(at + i), ones);
                        let ds = _mm256_mul_ps(w.d, scale);
                        acc[t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), ds, acc[t]);
                    }
                    if F::MINIMUM {
                        let sum = _mm256_set1_ps(*p.sum.as_ptr().add(at + i));
                        acc[t] = _mm256_fmadd_ps(w.m, sum, acc[t]);
                    }
                }
            }
        }
        for (out, acc) in out.iter_mut().zip(acc) {
            for (t, acc) in acc.into_iter().enumerate() {
                _mm256_storeu_ps(out.as_mut_ptr().add(8 * (first + t)), acc);
            }
        }
    }
}

/// Adds some groups of a block to the integer sums of one row.
#[inline(always)]
unsafe fn dot<F: Format>(
    codes: &[__m256i; 8],
    groups: Range<usize>,
    x: *const i8,
    mut sum: __m256i,
    ones: __m256i,
) -> __m256i {
    let mut j = groups.start;
    while j < groups.end {
        // SAFETY: used inside `run` only; the row has 32 codes.
        unsafe {
            let end = (j + F::GROUPS).min(groups.end);
            let mut short = pairs::<F>(codes[j], x.add(4 * j));
            j += 1;
            while j < end {
                short = _mm256_add_epi16(short, pairs::<F>(codes[j], x.add(4 * j)));
                j += 1;
            }
            sum = _mm256_add_epi32(sum, _mm256_madd_epi16(short, ones));
        }
    }
    sum
}

/// 16-bit sums of two products each, of a code vector and four activations.
#[inline(always)]
unsafe fn pairs<F: Format>(codes: __m256i, x: *const i8) -> __m256i {
    // SAFETY: used inside `run` only; four codes at `x`.
    unsafe {
        let x = _mm256_set1_epi32(x.cast::<i32>().read_unaligned());
        if F::SIGNED {
            _mm256_maddubs_epi16(_mm256_abs_epi8(codes), _mm256_sign_epi8(x, codes))
        } else {
            _mm256_maddubs_epi16(codes, x)
        }
    }
}

/// Eight f16 as f32.
#[inline(always)]
unsafe fn halves(at: *const u8) -> __m256 {
    // SAFETY: the caller gives 16 readable bytes.
    unsafe { _mm256_cvtph_ps(_mm_loadu_si128(at.cast())) }
}

/// Half `h` of line `n`.
#[inline(always)]
unsafe fn line(at: *const u8, n: usize, h: usize) -> __m256i {
    // SAFETY: the caller gives at least `n + 1` lines, aligned as every slab.
    unsafe { _mm256_load_si256(at.add(n * VECTOR + 32 * h).cast()) }
}

#[inline(always)]
unsafe fn nibbles(at: *const u8, h: usize) -> [__m256i; 8] {
    // SAFETY: the caller gives four lines.
    unsafe {
        let low = _mm256_set1_epi8(15);
        std::array::from_fn(|j| {
            let v = line(at, j % 4, h);
            let v = if j < 4 { v } else { _mm256_srli_epi16::<4>(v) };
            _mm256_and_si256(v, low)
        })
    }
}

/// Ors the bits of `high` that `mask` keeps into a code.
#[inline(always)]
unsafe fn merge(code: &mut __m256i, high: __m256i, mask: __m256i) {
    // SAFETY: used inside `run` only.
    unsafe { *code = _mm256_or_si256(*code, _mm256_and_si256(high, mask)) };
}

struct Q8_0;

impl Format for Q8_0 {
    const TYPE: WeightType = WeightType::Q8_0;
    const MINIMUM: bool = false;
    const HALVES: bool = false;
    const SIGNED: bool = true;
    const GROUPS: usize = 1;

    fn start(_: &Planes) -> *const i32 {
        std::ptr::null()
    }

    #[inline(always)]
    unsafe fn half(strip: *const u8, b: usize, h: usize) -> Half {
        // SAFETY: `b` is a block of the strip.
        unsafe {
            let at = strip.add(codes_at(Self::TYPE, b));
            let d = halves(strip.add(b / 2 * Q8_0_PAIR + b % 2 * 32 + 16 * h));
            let sign = _mm256_set1_epi8(-128);
            let codes = std::array::from_fn(|j| _mm256_xor_si256(line(at, j, h), sign));
            Half { codes, d, d_high: d, m: d }
        }
    }
}

struct Q5_0;

impl Format for Q5_0 {
    const TYPE: WeightType = WeightType::Q5_0;
    const MINIMUM: bool = false;
    const HALVES: bool = false;
    const SIGNED: bool = false;
    const GROUPS: usize = 4;

    fn start(planes: &Planes) -> *const i32 {
        planes.n16.as_ptr()
    }

    #[inline(always)]
    unsafe fn half(strip: *const u8, b: usize, h: usize) -> Half {
        // SAFETY: `b` is a block of the strip.
        unsafe {
            let at = strip.add(codes_at(Self::TYPE, b));
            let d = halves(strip.add(b / 2 * Q5_0_PAIR + b % 2 * 32 + 16 * h));
            let mut codes = nibbles(at, h);
            let fifth = line(at, 4, h);
            let bit = _mm256_set1_epi8(16);
            merge(&mut codes[0], _mm256_slli_epi16::<4>(fifth), bit);
            merge(&mut codes[1], _mm256_slli_epi16::<3>(fifth), bit);
            merge(&mut codes[2], _mm256_slli_epi16::<2>(fifth), bit);
            merge(&mut codes[3], _mm256_slli_epi16::<1>(fifth), bit);
            merge(&mut codes[4], fifth, bit);
            merge(&mut codes[5], _mm256_srli_epi16::<1>(fifth), bit);
            merge(&mut codes[6], _mm256_srli_epi16::<2>(fifth), bit);
            merge(&mut codes[7], _mm256_srli_epi16::<3>(fifth), bit);
            Half { codes, d, d_high: d, m: d }
        }
    }
}

struct Q4_0;

impl Format for Q4_0 {
    const TYPE: WeightType = WeightType::Q4_0;
    const MINIMUM: bool = false;
    const HALVES: bool = false;
    const SIGNED: bool = false;
    const GROUPS: usize = 8;

    fn start(planes: &Planes) -> *const i32 {
        planes.n8.as_ptr()
    }

    #[inline(always)]
    unsafe fn half(strip: *const u8, b: usize, h: usize) -> Half {
        // SAFETY: `b` is a block of the strip.
        unsafe {
            let d = halves(strip.add(b / 2 * Q4_0_PAIR + b % 2 * 32 + 16 * h));
            Half { codes: nibbles(strip.add(codes_at(Self::TYPE, b)), h), d, d_high: d, m: d }
        }
    }
}

struct Q4_1;

impl Format for Q4_1 {
    const TYPE: WeightType = WeightType::Q4_1;
    const MINIMUM: bool = true;
    const HALVES: bool = false;
    const SIGNED: bool = false;
    const GROUPS: usize = 8;

    fn start(_: &Planes) -> *const i32 {
        std::ptr::null()
    }

    #[inline(always)]
    unsafe fn half(strip: *const u8, b: usize, h: usize) -> Half {
        // SAFETY: `b` is a block of the strip.
        unsafe {
            let at = strip.add(b * Q4_1_BLOCK);
            let d = halves(at.add(16 * h));
            let m = halves(at.add(32 + 16 * h));
            Half { codes: nibbles(at.add(VECTOR), h), d, d_high: d, m }
        }
    }
}

struct Q4K;

impl Format for Q4K {
    const TYPE: WeightType = WeightType::Q4K;
    const MINIMUM: bool = true;
    const HALVES: bool = false;
    const SIGNED: bool = false;
    const GROUPS: usize = 8;

    fn start(_: &Planes) -> *const i32 {
        std::ptr::null()
    }

    #[inline(always)]
    unsafe fn half(strip: *const u8, b: usize, h: usize) -> Half {
        // SAFETY: `b` is a block of the strip.
        unsafe {
            let head = strip.add(b / 8 * Q4_K_SUPER);
            let scales = head.add(VECTOR + 32 * (b % 8) + 8 * h);
            let widen = |at: *const u8| {
                _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(at.cast())))
            };
            let d = _mm256_mul_ps(halves(head.add(16 * h)), widen(scales));
            let m = _mm256_mul_ps(halves(head.add(32 + 16 * h)), widen(scales.add(STRIP)));
            let m = _mm256_sub_ps(_mm256_set1_ps(-0.0), m);
            Half { codes: nibbles(strip.add(codes_at(Self::TYPE, b)), h), d, d_high: d, m }
        }
    }
}

struct Q6K;

impl Format for Q6K {
    const TYPE: WeightType = WeightType::Q6K;
    const MINIMUM: bool = false;
    const HALVES: bool = true;
    const SIGNED: bool = false;
    const GROUPS: usize = 2;

    fn start(planes: &Planes) -> *const i32 {
        planes.n32.as_ptr()
    }

    #[inline(always)]
    unsafe fn half(strip: *const u8, b: usize, h: usize) -> Half {
        // SAFETY: `b` is a block of the strip.
        unsafe {
            let head = strip.add(b / 8 * Q6_K_SUPER);
            let scales = head.add(VECTOR + 2 * STRIP * (b % 8) + 8 * h);
            let at = strip.add(codes_at(Self::TYPE, b));
            let all = halves(head.add(16 * h));
            let widen = |at: *const u8| {
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(at.cast())))
            };
            let mut codes = nibbles(at, h);
            let bits = _mm256_set1_epi8(0x30);
            for n in 0..2 {
                let high = line(at, 4 + n, h);
                merge(&mut codes[4 * n], _mm256_slli_epi16::<4>(high), bits);
                merge(&mut codes[4 * n + 1], _mm256_slli_epi16::<2>(high), bits);
                merge(&mut codes[4 * n + 2], high, bits);
                merge(&mut codes[4 * n + 3], _mm256_srli_epi16::<2>(high), bits);
            }
            let d = _mm256_mul_ps(all, widen(scales));
            let d_high = _mm256_mul_ps(all, widen(scales.add(STRIP)));
            Half { codes, d, d_high, m: d }
        }
    }
}

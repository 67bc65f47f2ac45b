//! The packed types as the AVX-512 kernels see them: where a block lies and how it unpacks.
#![allow(unsafe_code)]

use std::arch::x86_64::*;

use crate::pack::strips::{
    Q4_0_PAIR, Q4_1_BLOCK, Q4_K_HEAD, Q4_K_SUPER, Q5_0_PAIR, Q6_K_HEAD, Q6_K_SUPER, Q8_0_PAIR,
    STRIP, VECTOR,
};
use crate::product::activations::Planes;

/// A block of a strip in registers: code vectors, both scales, minimum.
#[derive(Clone, Copy)]
pub(super) struct Block {
    pub codes: [__m512i; 8],
    pub d: __m512,
    pub d_high: __m512,
    pub m: __m512,
}

/// What distinguishes the packed types inside the kernel.
pub(super) trait Format {
    /// Whether there is a minimum.
    const MINIMUM: bool;
    /// Whether each half of 16 values has its own scale.
    const HALVES: bool;
    /// What the codes are above their signed value, as a byte.
    const OFFSET: i8;
    /// Bytes of codes of a block.
    const CODES: usize;
    /// Where integer sums start for the rows at `planes`' slots; null for zero.
    fn start(planes: &Planes) -> *const i32;
    /// Address of the codes of block `b`.
    fn codes_at(strip: *const u8, b: usize) -> *const u8;
    /// Unpacks block `b`.
    unsafe fn block(strip: *const u8, b: usize) -> Block;
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

pub(super) struct Q8_0;

impl Format for Q8_0 {
    const MINIMUM: bool = false;
    const HALVES: bool = false;
    const OFFSET: i8 = -128;
    const CODES: usize = 8 * VECTOR;

    #[inline(always)]
    fn start(planes: &Planes) -> *const i32 {
        planes.n128.as_ptr()
    }

    #[inline(always)]
    fn codes_at(strip: *const u8, b: usize) -> *const u8 {
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

pub(super) struct Q5_0;

impl Format for Q5_0 {
    const MINIMUM: bool = false;
    const HALVES: bool = false;
    const OFFSET: i8 = 16;
    const CODES: usize = 5 * VECTOR;

    #[inline(always)]
    fn start(planes: &Planes) -> *const i32 {
        planes.n16.as_ptr()
    }

    #[inline(always)]
    fn codes_at(strip: *const u8, b: usize) -> *const u8 {
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

pub(super) struct Q4_0;

impl Format for Q4_0 {
    const MINIMUM: bool = false;
    const HALVES: bool = false;
    const OFFSET: i8 = 8;
    const CODES: usize = 4 * VECTOR;

    #[inline(always)]
    fn start(planes: &Planes) -> *const i32 {
        planes.n8.as_ptr()
    }

    #[inline(always)]
    fn codes_at(strip: *const u8, b: usize) -> *const u8 {
        strip.wrapping_add(b / 2 * Q4_0_PAIR + VECTOR + b % 2 * 4 * VECTOR)
    }

    #[inline(always)]
    unsafe fn block(strip: *const u8, b: usize) -> Block {
        // SAFETY: `b` is a block of the strip.
        unsafe {
            let d = halves(strip.add(b / 2 * Q4_0_PAIR + b % 2 * 32));
            Block { codes: nibbles(Self::codes_at(strip, b)), d, d_high: d, m: d }
        }
    }
}

pub(super) struct Q4_1;

impl Format for Q4_1 {
    const MINIMUM: bool = true;
    const HALVES: bool = false;
    const OFFSET: i8 = 0;
    const CODES: usize = 4 * VECTOR;

    #[inline(always)]
    fn start(_: &Planes) -> *const i32 {
        std::ptr::null()
    }

    #[inline(always)]
    fn codes_at(strip: *const u8, b: usize) -> *const u8 {
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

pub(super) struct Q4K;

impl Format for Q4K {
    const MINIMUM: bool = true;
    const HALVES: bool = false;
    const OFFSET: i8 = 0;
    const CODES: usize = 4 * VECTOR;

    #[inline(always)]
    fn start(_: &Planes) -> *const i32 {
        std::ptr::null()
    }

    #[inline(always)]
    fn codes_at(strip: *const u8, b: usize) -> *const u8 {
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

pub(super) struct Q6K;

impl Format for Q6K {
    const MINIMUM: bool = false;
    const HALVES: bool = true;
    const OFFSET: i8 = 32;
    const CODES: usize = 6 * VECTOR;

    #[inline(always)]
    fn start(planes: &Planes) -> *const i32 {
        planes.n32.as_ptr()
    }

    #[inline(always)]
    fn codes_at(strip: *const u8, b: usize) -> *const u8 {
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

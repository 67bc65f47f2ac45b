//! The packed layout of the fast types.
//!
//! A *strip* is 16 consecutive output rows. A *block* is 32 consecutive values of k. Inside a
//! block, group `j` (of 8) is the values `4 j .. 4 j + 4`; its *code vector* is 64 bytes: row `i`
//! of the strip has its four codes at bytes `4 i .. 4 i + 4`. That is what one `vpdpbusd` (or one
//! row of an AMX tile) takes. Codes are unsigned; a weight is `d * (code - OFFSET)` or
//! `d * code + m`. Everything of a strip lies in the order in which a product reads it, in whole
//! 64-byte lines:
//!
//! | type | stream of a strip | OFFSET |
//! |---|---|---|
//! | Q8_0 | for two blocks: d of the first (16 f16), d of the second, 8 + 8 vectors | 128 |
//! | Q4_0 | for two blocks: d, d, then per block 4 nibble vectors | 8 |
//! | Q5_0 | for two blocks: d, d, then per block 4 nibble vectors and 1 vector of fifth bits | 16 |
//! | Q4_1 | per block: d (16 f16), m (16 f16), 4 nibble vectors | - |
//! | Q4_K | per 256: d, dmin (16 f16 each), 8 x (16 scales, 16 minimums) u8, 8 x 4 nibble vectors | - |
//! | Q6_K | per 256: d (16 f16), 32 unused bytes, 16 x 16 i8 scales, 8 x (4 nibble vectors, 2 vectors of high bits) | 32 |
//!
//! An odd number of blocks ends with a pair whose second half is missing (its d are zero).
//! A nibble vector `p` holds group `p` in its low and group `p + 4` in its high nibbles. Bit `j`
//! of the vector of fifth bits belongs to group `j`. High-bit vector `h` holds groups `4 h + i` in
//! bits `2 i`.

use super::WeightType;
use super::dequantize::{half_at, scale_min};
use crate::error::{KernelError, Result};

/// Output rows of a strip.
pub(crate) const STRIP: usize = 16;
/// Values of k in a block.
pub(crate) const BLOCK: usize = 32;
/// Bytes of a code vector.
pub(crate) const VECTOR: usize = 64;

/// Bytes of two Q8_0 blocks of a strip.
pub(crate) const Q8_0_PAIR: usize = VECTOR + 2 * 8 * VECTOR;
/// Bytes of two Q4_0 blocks of a strip.
pub(crate) const Q4_0_PAIR: usize = VECTOR + 2 * 4 * VECTOR;
/// Bytes of two Q5_0 blocks of a strip.
pub(crate) const Q5_0_PAIR: usize = VECTOR + 2 * 5 * VECTOR;
/// Bytes of a Q4_1 block of a strip.
pub(crate) const Q4_1_BLOCK: usize = VECTOR + 4 * VECTOR;
/// Bytes of the scales before the codes of a Q4_K super-block of a strip.
pub(crate) const Q4_K_HEAD: usize = VECTOR + 8 * 32;
/// Bytes of a Q4_K super-block of a strip.
pub(crate) const Q4_K_SUPER: usize = Q4_K_HEAD + 8 * 4 * VECTOR;
/// Bytes of the scales before the codes of a Q6_K super-block of a strip.
pub(crate) const Q6_K_HEAD: usize = VECTOR + 16 * STRIP;
/// Bytes of a Q6_K super-block of a strip.
pub(crate) const Q6_K_SUPER: usize = Q6_K_HEAD + 8 * 6 * VECTOR;

/// What is subtracted from a code before its scale applies.
pub(crate) const fn offset(ty: WeightType) -> u8 {
    match ty {
        WeightType::Q8_0 => 128,
        WeightType::Q4_0 => 8,
        WeightType::Q5_0 => 16,
        WeightType::Q6K => 32,
        _ => 0,
    }
}

/// Bytes of a strip of `cols` values a row; `cols` is a multiple of the block length.
pub(crate) fn strip_bytes(ty: WeightType, cols: usize) -> Result<usize> {
    let blocks = cols / BLOCK;
    let (units, bytes, rest) = match ty {
        WeightType::Q8_0 => (blocks / 2, Q8_0_PAIR, (blocks % 2) * 9 * VECTOR),
        WeightType::Q4_0 => (blocks / 2, Q4_0_PAIR, (blocks % 2) * 5 * VECTOR),
        WeightType::Q5_0 => (blocks / 2, Q5_0_PAIR, (blocks % 2) * 6 * VECTOR),
        WeightType::Q4_1 => (blocks, Q4_1_BLOCK, 0),
        WeightType::Q4K => (blocks / 8, Q4_K_SUPER, 0),
        WeightType::Q6K => (blocks / 8, Q6_K_SUPER, 0),
        _ => {
            return Err(KernelError::Mismatch("this weight type is not packed into strips"));
        }
    };
    units
        .checked_mul(bytes)
        .and_then(|n| n.checked_add(rest))
        .ok_or(KernelError::Overflow("a strip of weights"))
}

/// Bytes of two blocks of a type that shares a line of scales between them.
const fn pair_bytes(ty: WeightType) -> usize {
    match ty {
        WeightType::Q8_0 => Q8_0_PAIR,
        WeightType::Q5_0 => Q5_0_PAIR,
        _ => Q4_0_PAIR,
    }
}

/// Where the codes of block `b` begin in a strip.
pub(crate) const fn codes_at(ty: WeightType, b: usize) -> usize {
    match ty {
        WeightType::Q8_0 => b / 2 * Q8_0_PAIR + VECTOR + b % 2 * 8 * VECTOR,
        WeightType::Q4_0 => b / 2 * Q4_0_PAIR + VECTOR + b % 2 * 4 * VECTOR,
        WeightType::Q5_0 => b / 2 * Q5_0_PAIR + VECTOR + b % 2 * 5 * VECTOR,
        WeightType::Q4_1 => b * Q4_1_BLOCK + VECTOR,
        WeightType::Q4K => b / 8 * Q4_K_SUPER + Q4_K_HEAD + b % 8 * 4 * VECTOR,
        _ => b / 8 * Q6_K_SUPER + Q6_K_HEAD + b % 8 * 6 * VECTOR,
    }
}

/// Writes row `i` of a strip from its GGUF bytes. The strip begins zeroed.
pub(super) fn pack_row(ty: WeightType, raw: &[u8], i: usize, strip: &mut [u8]) {
    let blocks_of = ty.block_len() / BLOCK;
    for (n, raw) in raw.chunks_exact(ty.block_bytes()).enumerate() {
        match ty {
            WeightType::Q8_0 | WeightType::Q5_0 | WeightType::Q4_0 => {
                let at = n / 2 * pair_bytes(ty) + n % 2 * 32 + 2 * i;
                strip[at..at + 2].copy_from_slice(&raw[..2]);
            }
            WeightType::Q4_1 => {
                let at = n * Q4_1_BLOCK + 2 * i;
                strip[at..at + 2].copy_from_slice(&raw[..2]);
                strip[at + 32..at + 34].copy_from_slice(&raw[2..4]);
            }
            WeightType::Q4K => {
                let at = n * Q4_K_SUPER;
                strip[at + 2 * i..at + 2 * i + 2].copy_from_slice(&raw[..2]);
                strip[at + 32 + 2 * i..at + 34 + 2 * i].copy_from_slice(&raw[2..4]);
                for j in 0..8 {
                    let (sc, mn) = scale_min(&raw[4..16], j);
                    strip[at + VECTOR + 32 * j + i] = sc;
                    strip[at + VECTOR + 32 * j + STRIP + i] = mn;
                }
            }
            _ => {
                let at = n * Q6_K_SUPER;
                strip[at + 2 * i..at + 2 * i + 2].copy_from_slice(&raw[208..210]);
                for j in 0..16 {
                    strip[at + VECTOR + STRIP * j + i] = raw[192 + j];
                }
            }
        }
        for b in 0..blocks_of {
            let at = codes_at(ty, n * blocks_of + b);
            pack_codes(ty, raw, b, i, &mut strip[at..]);
        }
    }
}

/// Four bytes of `b` from `at`, the first in the low bits.
fn word(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
}

/// The low four bits of each byte.
const LOW: u32 = 0x0f0f_0f0f;
/// The low two bits of each byte.
const PAIR: u32 = 0x0303_0303;

/// Writes the codes of row `i` in 32-block `b` of a GGUF block to the code lines of that block,
/// four values at a time.
fn pack_codes(ty: WeightType, raw: &[u8], b: usize, i: usize, lines: &mut [u8]) {
    let mut put = |line: usize, word: u32| {
        let at = line * VECTOR + 4 * i;
        lines[at..at + 4].copy_from_slice(&word.to_le_bytes());
    };
    match ty {
        WeightType::Q8_0 => {
            for j in 0..8 {
                put(j, word(raw, 2 + 4 * j) ^ 0x8080_8080);
            }
        }
        // Byte `k` of these GGUF blocks holds values `k` and `k + 16`, as a nibble vector does.
        WeightType::Q4_0 | WeightType::Q4_1 => {
            let from = if ty == WeightType::Q4_0 { 2 } else { 4 };
            for p in 0..4 {
                put(p, word(raw, from + 4 * p));
            }
        }
        WeightType::Q5_0 => {
            for p in 0..4 {
                put(p, word(raw, 6 + 4 * p));
            }
            let fifth = word(raw, 2);
            put(4, u32::from_le_bytes([0, 1, 2, 3].map(|t| every_fourth(fifth >> t))));
        }
        WeightType::Q4K => {
            let from = 16 + 32 * (b / 2);
            let code = |k: usize| (word(raw, from + k) >> (4 * (b % 2))) & LOW;
            for p in 0..4 {
                put(p, code(4 * p) | (code(16 + 4 * p) << 4));
            }
        }
        _ => {
            let (h, j) = (b / 4, b % 4);
            let low = |k: usize| (word(raw, 64 * h + 32 * (j % 2) + k) >> (4 * (j / 2))) & LOW;
            let high = |k: usize| (word(raw, 128 + 32 * h + k) >> (2 * j)) & PAIR;
            for p in 0..4 {
                put(p, low(4 * p) | (low(16 + 4 * p) << 4));
            }
            for half in 0..2 {
                let at = 16 * half;
                put(
                    4 + half,
                    high(at) | (high(at + 4) << 2) | (high(at + 8) << 4) | (high(at + 12) << 6),
                );
            }
        }
    }
}

/// Bits 0, 4, 8 .. 28 of `x`, as a byte.
fn every_fourth(x: u32) -> u8 {
    let x = x & 0x1111_1111;
    let x = (x | (x >> 3)) & PAIR;
    let x = (x | (x >> 6)) & 0x000f_000f;
    ((x | (x >> 12)) & 0xff) as u8
}

/// One block of a strip in plain form: what every integer kernel works on.
#[derive(Debug, Clone)]
pub(crate) struct PlainBlock {
    /// Code vectors of the 8 groups: `[group][4 * row + value]`.
    pub codes: [[u8; VECTOR]; 8],
    /// Scales of the values 0..16 and 16..32, for each row (equal but in Q6_K).
    pub d: [[f32; STRIP]; 2],
    /// What is added to `d * code`, for each row; zero for types with an offset.
    pub m: [f32; STRIP],
}

impl PlainBlock {
    pub(crate) const ZERO: PlainBlock =
        PlainBlock { codes: [[0; VECTOR]; 8], d: [[0.0; STRIP]; 2], m: [0.0; STRIP] };

    /// Reads block `b` of a strip.
    pub(crate) fn read(&mut self, ty: WeightType, strip: &[u8], b: usize) {
        let lines = &strip[codes_at(ty, b)..];
        for (j, codes) in self.codes.iter_mut().enumerate() {
            for (byte, code) in codes.iter_mut().enumerate() {
                *code = code_at(ty, lines, j, byte);
            }
        }
        for i in 0..STRIP {
            (self.d[0][i], self.d[1][i], self.m[i]) = scales(ty, strip, b, i);
        }
    }
}

/// The code at `byte` of group `j`'s vector, from the code lines of a block.
fn code_at(ty: WeightType, lines: &[u8], j: usize, byte: usize) -> u8 {
    let line = |n: usize| lines[n * VECTOR + byte];
    let nibble = || (line(j % 4) >> (4 * (j / 4))) & 15;
    match ty {
        WeightType::Q8_0 => line(j),
        WeightType::Q5_0 => nibble() | (((line(4) >> j) & 1) << 4),
        WeightType::Q6K => nibble() | (((line(4 + j / 4) >> (2 * (j % 4))) & 3) << 4),
        _ => nibble(),
    }
}

/// The 32 weights of row `i` in block `b` of a strip.
pub(super) fn unpack_row(ty: WeightType, strip: &[u8], b: usize, i: usize, out: &mut [f32]) {
    let lines = &strip[codes_at(ty, b)..];
    let (d0, d1, m) = scales(ty, strip, b, i);
    for (k, y) in out.iter_mut().enumerate() {
        let code = f32::from(code_at(ty, lines, k / 4, 4 * i + k % 4));
        let d = if k < BLOCK / 2 { d0 } else { d1 };
        *y = if has_minimum(ty) { d * code + m } else { d * (code - f32::from(offset(ty))) };
    }
}

/// Whether weights of the type are `d * code + m`.
pub(crate) const fn has_minimum(ty: WeightType) -> bool {
    matches!(ty, WeightType::Q4_1 | WeightType::Q4K)
}

/// The two scales and the minimum of row `i` in block `b`; the products are exact in f32.
fn scales(ty: WeightType, strip: &[u8], b: usize, i: usize) -> (f32, f32, f32) {
    match ty {
        WeightType::Q8_0 | WeightType::Q5_0 | WeightType::Q4_0 => {
            let d = half_at(strip, b / 2 * pair_bytes(ty) + b % 2 * 32 + 2 * i);
            (d, d, 0.0)
        }
        WeightType::Q4_1 => {
            let at = b * Q4_1_BLOCK + 2 * i;
            let d = half_at(strip, at);
            (d, d, half_at(strip, at + 32))
        }
        WeightType::Q4K => {
            let head = &strip[b / 8 * Q4_K_SUPER..];
            let at = VECTOR + 32 * (b % 8) + i;
            let d = half_at(head, 2 * i) * f32::from(head[at]);
            (d, d, -(half_at(head, 32 + 2 * i) * f32::from(head[at + STRIP])))
        }
        _ => {
            let head = &strip[b / 8 * Q6_K_SUPER..];
            let at = VECTOR + 2 * STRIP * (b % 8) + i;
            let d = half_at(head, 2 * i);
            let scale = |at: usize| d * f32::from(head[at].cast_signed());
            (scale(at), scale(at + STRIP), 0.0)
        }
    }
}

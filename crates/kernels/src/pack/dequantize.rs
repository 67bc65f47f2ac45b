//! What each GGUF weight type means: its blocks turned into f32, in safe scalar code.
//!
//! This is the definition the packed kernels are tested against. In every type a scale times a
//! code is exact in f32 (at most 11 + 8 + 5 significant bits), so a value carries at most the one
//! rounding of adding its minimum, and the order of the factors does not matter.

use half::{bf16, f16};

use super::WeightType;
use crate::error::{KernelError, Result};

/// Unpacks whole blocks of `ty` from `raw` into `out`.
///
/// Errors: `out.len()` is not a multiple of the block length, or `raw` is not exactly the bytes
/// of `out.len()` values.
pub fn dequantize(ty: WeightType, raw: &[u8], out: &mut [f32]) -> Result<()> {
    let expected = ty.row_bytes(out.len())?;
    if raw.len() != expected {
        return Err(KernelError::Length { what: "raw weights (bytes)", expected, got: raw.len() });
    }
    let blocks = raw.chunks_exact(ty.block_bytes()).zip(out.chunks_exact_mut(ty.block_len()));
    match ty {
        WeightType::F32 => {
            blocks.for_each(|(b, y)| y[0] = f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
        }
        WeightType::F16 => blocks.for_each(|(b, y)| y[0] = half_at(b, 0)),
        WeightType::BF16 => {
            blocks.for_each(|(b, y)| y[0] = bf16::from_le_bytes([b[0], b[1]]).to_f32());
        }
        WeightType::Q4_0 => blocks.for_each(|(b, y)| q4_0(b, y)),
        WeightType::Q4_1 => blocks.for_each(|(b, y)| q4_1(b, y)),
        WeightType::Q5_0 => blocks.for_each(|(b, y)| q5_0(b, y)),
        WeightType::Q5_1 => blocks.for_each(|(b, y)| q5_1(b, y)),
        WeightType::Q8_0 => blocks.for_each(|(b, y)| q8_0(b, y)),
        WeightType::Q2K => blocks.for_each(|(b, y)| q2_k(b, y)),
        WeightType::Q3K => blocks.for_each(|(b, y)| q3_k(b, y)),
        WeightType::Q4K => blocks.for_each(|(b, y)| q4_k(b, y)),
        WeightType::Q5K => blocks.for_each(|(b, y)| q5_k(b, y)),
        WeightType::Q6K => blocks.for_each(|(b, y)| q6_k(b, y)),
    }
    Ok(())
}

/// The f16 at byte `at`, as f32.
pub(super) fn half_at(b: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([b[at], b[at + 1]]).to_f32()
}

/// The 4-bit code of value `i` of 32, where a byte holds values `i` and `i + 16`.
fn nibble(qs: &[u8], i: usize) -> u8 {
    if i < 16 { qs[i] & 15 } else { qs[i - 16] >> 4 }
}

/// The fifth bit of value `i` of 32, from a little-endian u32 at `qh`.
fn fifth(qh: &[u8], i: usize) -> u8 {
    ((qh[i / 8] >> (i % 8)) & 1) << 4
}

fn q4_0(b: &[u8], y: &mut [f32]) {
    let d = half_at(b, 0);
    for (i, y) in y.iter_mut().enumerate() {
        *y = d * (f32::from(nibble(&b[2..], i)) - 8.0);
    }
}

fn q4_1(b: &[u8], y: &mut [f32]) {
    let (d, m) = (half_at(b, 0), half_at(b, 2));
    for (i, y) in y.iter_mut().enumerate() {
        *y = d * f32::from(nibble(&b[4..], i)) + m;
    }
}

fn q5_0(b: &[u8], y: &mut [f32]) {
    let d = half_at(b, 0);
    for (i, y) in y.iter_mut().enumerate() {
        *y = d * (f32::from(nibble(&b[6..], i) | fifth(&b[2..], i)) - 16.0);
    }
}

fn q5_1(b: &[u8], y: &mut [f32]) {
    let (d, m) = (half_at(b, 0), half_at(b, 2));
    for (i, y) in y.iter_mut().enumerate() {
        *y = d * f32::from(nibble(&b[8..], i) | fifth(&b[4..], i)) + m;
    }
}

fn q8_0(b: &[u8], y: &mut [f32]) {
    let d = half_at(b, 0);
    for (y, &q) in y.iter_mut().zip(&b[2..]) {
        *y = d * f32::from(q.cast_signed());
    }
}

/// Q2_K: 16 scale bytes (scale low, minimum high nibble), 64 bytes of 2-bit codes, d, dmin.
/// Value `128 h + 32 j + l` has its code in bits `2 j` of byte `32 h + l`.
fn q2_k(b: &[u8], y: &mut [f32]) {
    let (d, dmin) = (half_at(b, 80), half_at(b, 82));
    for (i, y) in y.iter_mut().enumerate() {
        let (h, j, l) = (i / 128, i / 32 % 4, i % 32);
        let sc = b[i / 16];
        let q = (b[16 + 32 * h + l] >> (2 * j)) & 3;
        *y = d * f32::from(sc & 15) * f32::from(q) - dmin * f32::from(sc >> 4);
    }
}

/// Q3_K: 32 bytes of high bits, 64 bytes of 2-bit codes, 12 bytes of 16 6-bit scales, d. A clear
/// high bit subtracts 4; bit `4 h + j` of byte `l` belongs to value `128 h + 32 j + l`.
fn q3_k(b: &[u8], y: &mut [f32]) {
    let d = half_at(b, 108);
    let scales = &b[96..108];
    for (i, y) in y.iter_mut().enumerate() {
        let (h, j, l, s) = (i / 128, i / 32 % 4, i % 32, i / 16);
        let low = if s < 8 { scales[s] & 15 } else { scales[s - 8] >> 4 };
        let high = (scales[8 + s % 4] >> (2 * (s / 4))) & 3;
        let sc = f32::from(low | (high << 4)) - 32.0;
        let q = f32::from((b[32 + 32 * h + l] >> (2 * j)) & 3);
        let q = if (b[l] >> (4 * h + j)) & 1 == 1 { q } else { q - 4.0 };
        *y = d * sc * q;
    }
}

/// The 6-bit (scale, minimum) of 32-block `j` of 8 in the 12 scale bytes of Q4_K and Q5_K.
pub(super) fn scale_min(s: &[u8], j: usize) -> (u8, u8) {
    if j < 4 {
        (s[j] & 63, s[j + 4] & 63)
    } else {
        ((s[j + 4] & 15) | ((s[j - 4] >> 6) << 4), (s[j + 4] >> 4) | ((s[j] >> 6) << 4))
    }
}

/// The 4-bit code of value `i` of 256 in the 128 code bytes of Q4_K and Q5_K.
fn nibble_k(qs: &[u8], i: usize) -> u8 {
    let byte = qs[32 * (i / 64) + i % 32];
    if i % 64 < 32 { byte & 15 } else { byte >> 4 }
}

/// Q4_K: d, dmin, 12 scale bytes, 128 bytes of 4-bit codes.
fn q4_k(b: &[u8], y: &mut [f32]) {
    let (d, dmin) = (half_at(b, 0), half_at(b, 2));
    for (i, y) in y.iter_mut().enumerate() {
        let (sc, mn) = scale_min(&b[4..16], i / 32);
        *y = d * f32::from(sc) * f32::from(nibble_k(&b[16..], i)) - dmin * f32::from(mn);
    }
}

/// Q5_K: d, dmin, 12 scale bytes, 32 bytes of fifth bits (bit `j` of byte `l` is value
/// `32 j + l`), 128 bytes of 4-bit codes.
fn q5_k(b: &[u8], y: &mut [f32]) {
    let (d, dmin) = (half_at(b, 0), half_at(b, 2));
    for (i, y) in y.iter_mut().enumerate() {
        let (sc, mn) = scale_min(&b[4..16], i / 32);
        let q = nibble_k(&b[48..], i) | (((b[16 + i % 32] >> (i / 32)) & 1) << 4);
        *y = d * f32::from(sc) * f32::from(q) - dmin * f32::from(mn);
    }
}

/// The 6-bit code of value `i` of 256 in a Q6_K block (128 bytes of low, 64 of high bits).
fn code_q6_k(b: &[u8], i: usize) -> u8 {
    let (h, j, l) = (i / 128, i / 32 % 4, i % 32);
    let low = b[64 * h + 32 * (j % 2) + l];
    let low = if j < 2 { low & 15 } else { low >> 4 };
    low | (((b[128 + 32 * h + l] >> (2 * j)) & 3) << 4)
}

/// Q6_K: 128 bytes of low 4 bits, 64 of high 2 bits, 16 i8 scales (one for 16 values), d.
fn q6_k(b: &[u8], y: &mut [f32]) {
    let d = half_at(b, 208);
    for (i, y) in y.iter_mut().enumerate() {
        let sc = f32::from(b[192 + i / 16].cast_signed());
        *y = d * sc * (f32::from(code_q6_k(b, i)) - 32.0);
    }
}

use super::*;

/// Deterministic bytes.
fn noise(n: usize, mut seed: u64) -> Vec<u8> {
    (0..n)
        .map(|_| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            (seed >> 32) as u8
        })
        .collect()
}

/// Random GGUF bytes of a matrix, with finite scales.
pub(crate) fn random_raw(ty: WeightType, rows: usize, cols: usize, seed: u64) -> Vec<u8> {
    let mut raw = noise(ty.matrix_bytes(rows, cols).unwrap(), seed);
    let f16_at: &[usize] = match ty {
        WeightType::F32 => {
            for v in raw.chunks_exact_mut(4) {
                let x = f32::from(v[0]) / 64.0 - 2.0 + f32::from(v[1]) / 9000.0;
                v.copy_from_slice(&x.to_le_bytes());
            }
            return raw;
        }
        WeightType::BF16 => {
            for v in raw.chunks_exact_mut(2) {
                v[1] = (v[1] & 0x80) | 0x3e;
            }
            return raw;
        }
        WeightType::F16 | WeightType::Q4_0 | WeightType::Q5_0 | WeightType::Q8_0 => &[0],
        WeightType::Q4_1 | WeightType::Q5_1 | WeightType::Q4K | WeightType::Q5K => &[0, 2],
        WeightType::Q2K => &[80, 82],
        WeightType::Q3K => &[108],
        WeightType::Q6K => &[208],
    };
    for block in raw.chunks_exact_mut(ty.block_bytes()) {
        for &at in f16_at {
            // Magnitudes from 2^-7 to 2^-4, either sign.
            block[at + 1] = (block[at + 1] & 0x8f) | 0x20;
        }
    }
    raw
}

fn unpack(ty: WeightType, raw: &[u8], n: usize) -> Vec<f32> {
    let mut out = vec![f32::NAN; n];
    dequantize(ty, raw, &mut out).unwrap();
    out
}

/// f16 bits of 0.5, 2 and -3.
const HALF: [u8; 2] = 0x3800u16.to_le_bytes();
const TWO: [u8; 2] = 0x4000u16.to_le_bytes();
const MINUS_THREE: [u8; 2] = 0xc200u16.to_le_bytes();

#[test]
fn floats_by_hand() {
    assert_eq!(unpack(WeightType::F32, &1.25f32.to_le_bytes(), 1), [1.25]);
    assert_eq!(unpack(WeightType::F16, &[HALF, MINUS_THREE].concat(), 2), [0.5, -3.0]);
    // 0x3fc0 is 1.5 in bf16; the smallest f16 subnormal is 2^-24.
    assert_eq!(unpack(WeightType::BF16, &0x3fc0u16.to_le_bytes(), 1), [1.5]);
    assert_eq!(unpack(WeightType::F16, &[1, 0], 1), [2f32.powi(-24)]);
}

#[test]
fn legacy_blocks_by_hand() {
    // Byte 0 = 0xf1: value 0 has code 1, value 16 code 15. Byte 15 = 0x80: values 15 and 31.
    let mut qs = [0u8; 16];
    qs[0] = 0xf1;
    qs[15] = 0x80;
    let y = unpack(WeightType::Q4_0, &[&HALF[..], &qs].concat(), 32);
    assert_eq!([y[0], y[16], y[15], y[31], y[1]], [-3.5, 3.5, -4.0, 0.0, -4.0]);

    let y = unpack(WeightType::Q4_1, &[&HALF[..], &MINUS_THREE, &qs].concat(), 32);
    assert_eq!([y[0], y[16], y[15], y[31]], [-2.5, 4.5, -3.0, 1.0]);

    // Fifth bits of values 0, 15 and 31.
    let qh = ((1u32 << 31) | (1 << 15) | 1).to_le_bytes();
    let y = unpack(WeightType::Q5_0, &[&HALF[..], &qh, &qs].concat(), 32);
    assert_eq!([y[0], y[16], y[15], y[31], y[1]], [0.5, -0.5, 0.0, 4.0, -8.0]);

    let y = unpack(WeightType::Q5_1, &[&HALF[..], &TWO, &qh, &qs].concat(), 32);
    assert_eq!([y[0], y[16], y[15], y[31], y[1]], [10.5, 9.5, 10.0, 14.0, 2.0]);

    let mut q8 = [0u8; 32];
    q8[0] = 127;
    q8[1] = 0x80;
    q8[31] = 0xff;
    let y = unpack(WeightType::Q8_0, &[&HALF[..], &q8].concat(), 32);
    assert_eq!([y[0], y[1], y[2], y[31]], [63.5, -64.0, 0.0, -0.5]);
}

#[test]
fn q2_k_by_hand() {
    let mut b = vec![0u8; 84];
    // Sub-block 9 (values 144..160): scale 3, minimum 5. Value 150 is h 1, j 0, l 22.
    b[9] = 0x53;
    b[16 + 32 + 22] = 0b10;
    // Value 127 is h 0, j 3, l 31, sub-block 7: scale 1, minimum 0, code 3.
    b[7] = 1;
    b[16 + 31] = 0b1100_0000;
    b[80..82].copy_from_slice(&HALF);
    b[82..84].copy_from_slice(&TWO);
    let y = unpack(WeightType::Q2K, &b, 256);
    assert_eq!([y[150], y[144], y[127], y[126]], [0.5 * 3.0 * 2.0 - 10.0, -10.0, 1.5, 0.0]);
}

#[test]
fn q3_k_by_hand() {
    let mut b = vec![0u8; 110];
    // Sub-block 13: low four bits in the high nibble of byte 5, high two in bits 6..8 of byte 9.
    b[96 + 5] = 0x70;
    b[96 + 9] = 0b1000_0000;
    // Scale = 7 + (2 << 4) - 32 = 7. Value 208 is sub-block 13: h 1, j 2, l 16.
    b[32 + 32 + 16] = 0b11 << 4;
    b[16] = 1 << 6;
    // Value 209 has code 1 and no high bit: 1 - 4.
    b[32 + 32 + 17] = 0b01 << 4;
    b[108..110].copy_from_slice(&HALF);
    let y = unpack(WeightType::Q3K, &b, 256);
    assert_eq!([y[208], y[209], y[210]], [0.5 * 7.0 * 3.0, -10.5, -14.0]);
    // Sub-block 0: scale -32, code 0, high bit clear: 0.5 * -32 * -4.
    assert_eq!(y[0], 64.0);
}

#[test]
fn q4_k_and_q5_k_by_hand() {
    // Scale bytes: block 1 has scale 9, minimum 2; block 6 has scale 0x2b, minimum 0x1c.
    let mut s = [0u8; 12];
    s[1] = 9;
    s[5] = 2;
    s[2] = 0b1000_0000; // high bits of block 6's scale: 2
    s[6] = 0b0100_0000; // high bits of block 6's minimum: 1
    s[10] = 0xcb; // low nibbles: scale 11, minimum 12
    let mut qs = [0u8; 128];
    qs[3] = 0xa0; // block 1, value 35: code 10
    qs[96 + 4] = 0x07; // block 6, value 196: code 7
    let y = unpack(WeightType::Q4K, &[&HALF[..], &TWO, &s, &qs].concat(), 256);
    assert_eq!(y[35], 0.5 * 9.0 * 10.0 - 2.0 * 2.0);
    assert_eq!(y[36], -4.0);
    assert_eq!(y[196], 0.5 * 43.0 * 7.0 - 2.0 * 28.0);
    assert_eq!(y[0], 0.0);
    let mut qh = [0u8; 32];
    qh[3] = 1 << 1;
    qh[4] = 1 << 6;
    let y = unpack(WeightType::Q5K, &[&HALF[..], &TWO, &s, &qh, &qs].concat(), 256);
    assert_eq!(y[35], 0.5 * 9.0 * 26.0 - 4.0);
    assert_eq!(y[196], 0.5 * 43.0 * 23.0 - 56.0);
}

#[test]
fn q6_k_by_hand() {
    let mut b = vec![0u8; 210];
    // Value 128 + 96 + 20: h 1, j 3, l 20: high nibble of byte 64 + 32 + 20, bits 6..8.
    b[64 + 32 + 20] = 0x90;
    b[128 + 32 + 20] = 0b0100_0000;
    b[192 + 15] = 0xfe; // scale -2 of sub-block 15 (values 240..256)
    b[208..210].copy_from_slice(&HALF);
    let y = unpack(WeightType::Q6K, &b, 256);
    assert_eq!(y[244], 0.5 * -2.0 * (25.0 - 32.0));
    assert_eq!(y[243], 32.0);
    assert_eq!(y[0], 0.0);
}

#[test]
fn a_packed_row_is_the_dequantised_row() {
    let pool = Pool::new(2);
    for ty in WeightType::ALL {
        for (rows, blocks) in [(1, 1), (16, 2), (35, 3), (3, 0), (0, 2)] {
            let cols = blocks * ty.block_len();
            let raw = random_raw(ty, rows, cols, 7 + rows as u64);
            let matrix = Matrix::pack_on(&pool, ty, &raw, rows, cols).unwrap();
            assert_eq!((matrix.rows(), matrix.cols(), matrix.ty()), (rows, cols, ty));
            assert_eq!(matrix.is_fast(), ty.is_fast());
            let row_bytes = ty.row_bytes(cols).unwrap();
            for o in 0..rows {
                let want = unpack(ty, &raw[o * row_bytes..][..row_bytes], cols);
                let mut got = vec![0.0; cols];
                matrix.row(o, &mut got).unwrap();
                let bits = |v: &[f32]| v.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                assert_eq!(bits(&got), bits(&want), "{ty} row {o} of {rows}");
            }
        }
    }
}

#[test]
fn packing_keeps_the_bit_width() {
    let bits = |ty: WeightType| {
        let raw = random_raw(ty, 64, 2048, 1);
        let matrix = Matrix::pack(ty, &raw, 64, 2048).unwrap();
        matrix.bytes() as f64 / raw.len() as f64
    };
    for ty in WeightType::ALL {
        assert!((1.0..=1.03).contains(&bits(ty)), "{ty}: {}", bits(ty));
    }
}

#[test]
fn wrong_sizes_are_errors() {
    for ty in WeightType::ALL {
        let cols = 2 * ty.block_len();
        let raw = random_raw(ty, 2, cols, 3);
        assert!(Matrix::pack(ty, &raw[1..], 2, cols).is_err());
        assert!(Matrix::pack(ty, &raw, 3, cols).is_err());
        assert!(Matrix::pack(ty, &raw, usize::MAX, cols).is_err());
        assert!(Matrix::pack(ty, &raw, 2, usize::MAX / 256 * 256).is_err());
        if ty.block_len() > 1 {
            assert!(Matrix::pack(ty, &raw, 2, cols - 1).is_err());
        }
        assert!(dequantize(ty, &raw, &mut vec![0.0; cols]).is_err());
        let matrix = Matrix::pack(ty, &raw, 2, cols).unwrap();
        assert!(matrix.row(2, &mut vec![0.0; cols]).is_err());
        assert!(matrix.row(0, &mut vec![0.0; cols + 1]).is_err());
    }
    assert!(Matrix::from_f32(vec![0.0; 5], 2, 3).is_err());
    assert!(Matrix::from_f32(Vec::new(), usize::MAX, 2).is_err());
}

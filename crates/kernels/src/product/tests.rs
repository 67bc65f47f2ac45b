use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::pack::tests::random_raw;
use crate::pack::{WeightType, dequantize};

fn pool(threads: usize, isa: Isa) -> Pool {
    Pool::with_options(threads, isa, Duration::from_micros(10)).unwrap()
}

/// Activations with blocks of different size, some zero.
fn inputs(rows: usize, cols: usize) -> Vec<f32> {
    (0..rows * cols)
        .map(|i| {
            let (r, k) = (i / cols, i % cols);
            let v = ((i * 2_654_435_761) % 4093) as f32 / 2046.0 - 1.0;
            if (r + k / 32).is_multiple_of(11) { 0.0 } else { v * (1.0 + (k / 32) as f32) }
        })
        .collect()
}

fn multiply(pool: &Pool, a: &Activations, w: &Matrix) -> Vec<u32> {
    let mut out = vec![f32::NAN; a.rows() * w.rows()];
    product(pool, a, &mut [Target::new(w, &mut out)]).unwrap();
    out.iter().map(|v| v.to_bits()).collect()
}

/// The cases every path is compared on: type, outputs, inputs.
fn shapes(ty: WeightType) -> Vec<(usize, usize)> {
    if ty.block_len() == 256 {
        vec![(16, 256), (37, 768)]
    } else {
        vec![(16, 32), (37, 96), (50, 576)]
    }
}

#[test]
fn every_path_row_count_and_thread_count_gives_the_same_bits() {
    for ty in WeightType::ALL {
        for (n, k) in shapes(ty) {
            let w = Matrix::pack(ty, &random_raw(ty, n, k, 11), n, k).unwrap();
            let x = inputs(64, k);
            let reference = pool(1, Isa::Scalar);
            let mut a = Activations::new();
            for float in [false, true] {
                if !float && !ty.is_fast() {
                    continue;
                }
                // One row at a time in plain Rust.
                let mut want = Vec::new();
                for row in x.chunks_exact(k) {
                    if float {
                        a.set_f32(row, 1, k);
                    } else {
                        a.quantize(&reference, row, 1, k);
                    }
                    want.extend(multiply(&reference, &a, &w));
                }
                for isa in Isa::available() {
                    for threads in [1, 2, 3] {
                        let pool = pool(threads, isa);
                        let rows: &[usize] = if threads == 1 {
                            &[1, 2, 3, 5, 6, 7, 8, 9, 16, 17, 30, 33, 34, 35, 64]
                        } else {
                            &[1, 3, 8, 17, 64]
                        };
                        for &rows in rows {
                            if float {
                                a.set_f32(&x, rows, k);
                            } else {
                                a.quantize(&pool, &x, rows, k);
                            }
                            let got = multiply(&pool, &a, &w);
                            assert!(
                                got == want[..rows * n],
                                "{ty} {n}x{k} {isa} {threads} threads {rows} rows float {float}"
                            );
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn results_are_near_the_exact_product() {
    for ty in WeightType::ALL {
        let (n, k) = (20, 512);
        let raw = random_raw(ty, n, k, 5);
        let w = Matrix::pack(ty, &raw, n, k).unwrap();
        let mut values = vec![0.0f32; n * k];
        dequantize(ty, &raw, &mut values).unwrap();
        let x = inputs(3, k);
        let pool = pool(1, Isa::best());
        let mut a = Activations::new();
        for float in [false, true] {
            if float || !ty.is_fast() {
                a.set_f32(&x, 3, k);
            } else {
                a.quantize(&pool, &x, 3, k);
            }
            let got = multiply(&pool, &a, &w);
            for r in 0..3 {
                for o in 0..n {
                    let (mut want, mut bound) = (0.0f64, 1e-3f64);
                    for b in 0..k / 32 {
                        let x = &x[r * k + 32 * b..][..32];
                        let w = &values[o * k + 32 * b..][..32];
                        let amax = x.iter().fold(0.0f32, |m, v| m.max(v.abs()));
                        for (x, w) in x.iter().zip(w) {
                            want += f64::from(*x) * f64::from(*w);
                            // Half a step of the activation's grid, and f32 rounding.
                            let step = if a.is_float() { 0.0 } else { f64::from(amax) / 254.0 };
                            bound += f64::from(w.abs()) * (step + 1e-5 * f64::from(x.abs()));
                        }
                    }
                    let got = f64::from(f32::from_bits(got[r * n + o]));
                    assert!((got - want).abs() <= bound, "{ty} {got} {want} {bound}");
                }
            }
        }
    }
}

#[test]
fn extreme_codes_do_not_saturate() {
    // Codes at either end of their range, activations at full scale of one sign.
    for ty in WeightType::ALL.into_iter().filter(|ty| ty.is_fast()) {
        for (fill, sign) in [(0xff, 127.0), (0xff, -127.0), (0x80, 127.0), (0, -127.0)] {
            let (n, k) = (16, 256);
            let mut raw = vec![fill; ty.matrix_bytes(n, k).unwrap()];
            let scales: &[usize] = match ty {
                WeightType::Q4_1 | WeightType::Q4K => &[0, 2],
                WeightType::Q6K => &[208],
                _ => &[0],
            };
            for block in raw.chunks_exact_mut(ty.block_bytes()) {
                for &at in scales {
                    block[at..at + 2].copy_from_slice(&0x3c00u16.to_le_bytes());
                }
            }
            let w = Matrix::pack(ty, &raw, n, k).unwrap();
            let mut row = vec![0.0; k];
            w.row(0, &mut row).unwrap();
            // Every term is an integer and the sum stays below 2^24 in f32.
            let want = row.iter().map(|w| w * sign).sum::<f32>();
            for isa in Isa::available() {
                let pool = pool(1, isa);
                let mut a = Activations::new();
                a.quantize(&pool, &vec![sign; k], 1, k);
                let got = multiply(&pool, &a, &w);
                assert!(
                    got.iter().all(|&v| f32::from_bits(v) == want),
                    "{ty} {isa} {fill} {sign}: {} {want}",
                    f32::from_bits(got[0])
                );
            }
        }
    }
}

#[test]
fn fused_targets_bias_stride_and_accumulation() {
    let k = 96;
    let types = [WeightType::Q4_1, WeightType::Q4_0, WeightType::Q8_0];
    let rows = [40, 17, 33];
    let matrices: Vec<Matrix> = types
        .iter()
        .zip(rows)
        .map(|(&ty, n)| Matrix::pack(ty, &random_raw(ty, n, k, 3), n, k).unwrap())
        .collect();
    let x = inputs(5, k);
    for isa in Isa::available() {
        let pool = pool(2, isa);
        let mut a = Activations::new();
        a.quantize_and_keep(&pool, &x, 5, k);
        let plain: Vec<Vec<u32>> = matrices.iter().map(|w| multiply(&pool, &a, w)).collect();
        let bias: Vec<f32> = (0..40).map(|i| i as f32 / 7.0).collect();
        let mut outs: Vec<Vec<f32>> = rows.iter().map(|n| vec![0.25; 5 * (n + 3)]).collect();
        let mut targets: Vec<Target<'_>> = matrices
            .iter()
            .zip(&mut outs)
            .map(|(w, out)| {
                let n = w.rows();
                let target = Target::new(w, out).stride(n + 3).bias(Some(&bias[..n]));
                if n == 17 { target } else { target.accumulate() }
            })
            .collect();
        product(&pool, &a, &mut targets).unwrap();
        for ((n, plain), out) in rows.into_iter().zip(plain).zip(outs) {
            for r in 0..5 {
                for o in 0..n + 3 {
                    let got = out[r * (n + 3) + o];
                    let want = if o >= n {
                        0.25
                    } else {
                        let y = f32::from_bits(plain[r * n + o]) + bias[o];
                        if n == 17 { y } else { 0.25 + y }
                    };
                    assert_eq!(got.to_bits(), want.to_bits(), "{isa} {n} {r} {o}");
                }
            }
        }
    }
}

#[test]
fn an_activation_that_is_not_finite_gives_nan_in_its_row_only() {
    let (n, k) = (16, 64);
    let w = Matrix::pack(WeightType::Q4_1, &random_raw(WeightType::Q4_1, n, k, 1), n, k).unwrap();
    let mut x = inputs(2, k);
    x[k + 40] = f32::INFINITY;
    for isa in Isa::available() {
        let pool = pool(1, isa);
        let mut a = Activations::new();
        a.quantize(&pool, &x, 2, k);
        let got: Vec<f32> = multiply(&pool, &a, &w).into_iter().map(f32::from_bits).collect();
        assert!(got[..n].iter().all(|v| v.is_finite()));
        assert!(got[n..].iter().all(|v| v.is_nan()));
    }
}

#[test]
fn shapes_that_do_not_fit_are_errors() {
    let pool = pool(1, Isa::Scalar);
    let ty = WeightType::Q8_0;
    let w = Matrix::pack(ty, &random_raw(ty, 4, 64, 1), 4, 64).unwrap();
    let generic = Matrix::from_f32(vec![1.0; 4 * 64], 4, 64).unwrap();
    let x = inputs(2, 64);
    let mut a = Activations::new();
    let mut out = vec![0.0; 8];
    assert!(product(&pool, &a, &mut [Target::new(&w, &mut out)]).is_err());
    a.quantize(&pool, &x, 2, 64);
    assert!(product(&pool, &a, &mut [Target::new(&w, &mut out)]).is_ok());
    assert!(product(&pool, &a, &mut [Target::new(&w, &mut out[..7])]).is_err());
    assert!(product(&pool, &a, &mut [Target::new(&w, &mut out).stride(3)]).is_err());
    assert!(product(&pool, &a, &mut [Target::new(&w, &mut out).stride(usize::MAX)]).is_err());
    assert!(product(&pool, &a, &mut [Target::new(&w, &mut out).bias(Some(&[0.0; 3]))]).is_err());
    assert!(product(&pool, &a, &mut [Target::new(&generic, &mut out)]).is_err());
    a.quantize(&pool, &x, 2, 32);
    assert!(product(&pool, &a, &mut [Target::new(&w, &mut out)]).is_err());
    a.quantize(&pool, &[], 0, 64);
    assert!(product(&pool, &a, &mut [Target::new(&w, &mut [])]).is_ok());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Any shape, split and order of rows: the best path's rows are the scalar twin's rows.
    #[test]
    fn a_row_is_the_same_alone_and_in_any_company(
        ty in prop::sample::select(WeightType::ALL.to_vec()),
        n in 1usize..70,
        blocks in 1usize..12,
        rows in 1usize..36,
        pick in any::<prop::sample::Index>(),
        threads in 1usize..4,
        seed in 1u64..u64::MAX,
    ) {
        let k = if ty.block_len() == 256 { 256 * blocks.div_ceil(4) } else { 32 * blocks };
        let w = Matrix::pack(ty, &random_raw(ty, n, k, seed), n, k).unwrap();
        let x = inputs(rows, k);
        let mut a = Activations::new();
        let best = pool(threads, Isa::best());
        a.quantize_and_keep(&best, &x, rows, k);
        let together = multiply(&best, &a, &w);
        let r = pick.index(rows);
        let scalar = pool(1, Isa::Scalar);
        a.quantize_and_keep(&scalar, &x[r * k..][..k], 1, k);
        let alone = multiply(&scalar, &a, &w);
        prop_assert_eq!(&together[r * n..][..n], &alone[..]);
    }
}

//! Against double precision, and bit for bit across paths, threads and row counts.

use std::time::Duration;

use super::*;
use crate::Isa;

/// Values that reach every branch: ordinary, large, tiny, both signs.
fn values(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state
    };
    let value = |bits: u32, kind: u32| {
        let unit = (bits >> 8) as f32 / (1 << 23) as f32 - 1.0;
        match kind % 16 {
            0 => unit * 200.0,
            1 => unit * 1e-6,
            2..6 => unit * 20.0,
            _ => unit * 3.0,
        }
    };
    (0..n).map(|_| value(next(), next())).collect()
}

fn pools() -> Vec<Pool> {
    let pool = |threads, isa| Pool::with_options(threads, isa, Duration::ZERO).unwrap();
    let mut all = vec![pool(3, Isa::best())];
    all.extend(Isa::available().into_iter().map(|isa| pool(1, isa)));
    all
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|v| v.to_bits()).collect()
}

/// Runs `f` on every pool, checks that the results are equal bit for bit, returns one of them.
fn everywhere(f: impl Fn(&Pool) -> Vec<f32>) -> Vec<f32> {
    let mut results = pools().into_iter().map(|pool| (f(&pool), pool));
    let (first, _) = results.next().unwrap();
    for (other, pool) in results {
        assert_eq!(bits(&first), bits(&other), "{} differs", pool.isa());
    }
    first
}

/// Error in units in the last place of the exact value.
fn ulps(got: f32, want: f64) -> f64 {
    let unit = (want.abs().max(f64::from(f32::MIN_POSITIVE))).log2().floor() - 23.0;
    (f64::from(got) - want).abs() / unit.exp2()
}

#[test]
fn the_exponential_is_as_accurate_as_it_says() {
    // Softmax terms against a shift of zero: log_sum_exp of one value is the value itself, so the
    // exponential is observed through sums with a second, known term.
    let mut x: Vec<f32> = Vec::new();
    let mut v = -86.5f32;
    while v < 0.0 {
        x.push(v);
        v += 0.000_917;
    }
    let max = *x.last().unwrap();
    let got = everywhere(|pool| {
        let mut p = x.clone();
        softmax(pool, &mut p);
        p
    });
    let total: f64 = x.iter().map(|v| f64::from(v - max).exp()).sum();
    let mut worst = 0.0f64;
    for (p, v) in got.iter().zip(&x) {
        let want = f64::from(v - max).exp() / total;
        if want > 1e-36 {
            worst = worst.max(ulps(*p, want));
        }
    }
    // 1.1 for the exponential, the rounding of the factor and of the product.
    assert!(worst < 2.6, "{worst} units");
}

#[test]
fn activations_agree_with_double_precision() {
    let n = 20_011;
    let (gate, up) = (values(n, 3), values(n, 5));
    type Act = fn(&Pool, &mut [f32], &[f32]) -> crate::Result<()>;
    type Case<'a> = (Act, &'a dyn Fn(f64) -> f64, f64);
    let silu = |x: f64| x / (1.0 + (-x).exp());
    let gelu = |x: f64| {
        0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh())
    };
    // The sigmoid's argument is rounded, so the tail of GELU is good absolutely, not relatively.
    let cases: [Case<'_>; 2] = [(silu_mul, &silu, 0.0), (gelu_tanh_mul, &gelu, 3e-7)];
    for (act, exact, absolute) in cases {
        let got = everywhere(|pool| {
            let mut x = gate.clone();
            act(pool, &mut x, &up).unwrap();
            x
        });
        for ((g, u), y) in gate.iter().zip(&up).zip(&got) {
            let (g, u) = (f64::from(*g), f64::from(*u));
            let want = exact(g) * u;
            let allowed = 6e-7 * want.abs() + absolute * (g * u).abs() + 1e-30;
            assert!((f64::from(*y) - want).abs() <= allowed, "at {g}, {u}: {y}, expected {want}");
        }
    }
    for f in [silu_mul as Act, gelu_tanh_mul] {
        let pool = &pools()[0];
        let mut x = [f32::NAN, -1e30, f32::NEG_INFINITY, 1e30];
        f(pool, &mut x, &[1.0; 4]).unwrap();
        assert!(x[0].is_nan() && x[1].abs() < 1e-5 && x[3] == 1e30, "{x:?}");
        assert!(f(pool, &mut x, &[1.0; 3]).is_err());
    }
}

#[test]
fn caps_sums_and_factors() {
    let x = values(5003, 9);
    let capped = everywhere(|pool| {
        let mut x = x.clone();
        softcap(pool, &mut x, 30.0).unwrap();
        x
    });
    for (x, y) in x.iter().zip(&capped) {
        let want = 30.0 * (f64::from(*x) / 30.0).tanh();
        assert!((f64::from(*y) - want).abs() < 8e-6, "{x}: {y}, expected {want}");
    }
    let y = values(70_003, 10);
    let sum = everywhere(|pool| {
        let mut x = values(70_003, 11);
        add(pool, &mut x, &y).unwrap();
        scale(pool, &mut x, 0.3);
        x
    });
    for ((s, x), y) in sum.iter().zip(values(70_003, 11)).zip(&y) {
        assert_eq!(*s, (x + y) * 0.3);
    }
    let pool = &pools()[0];
    for cap in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        assert!(softcap(pool, &mut [1.0], cap).is_err());
    }
}

#[test]
fn norms_agree_with_double_precision_and_ignore_their_neighbours() {
    for n in [1, 15, 64, 576, 640, 1000] {
        let rows = 70;
        let (x, w) = (values(n * rows, 21), values(n, 22));
        let got = everywhere(|pool| {
            let mut out = vec![0.0; x.len()];
            rms_norm(pool, &x, &w, 1e-5, &mut out).unwrap();
            let mut again = x.clone();
            rms_norm_in_place(pool, &mut again, &w, 1e-5).unwrap();
            assert_eq!(bits(&out), bits(&again));
            let mut one = vec![0.0; n];
            rms_norm(pool, &x[n * 7..n * 8], &w, 1e-5, &mut one).unwrap();
            assert_eq!(bits(&one), bits(&out[n * 7..n * 8]));
            out
        });
        for (row, y) in x.chunks(n).zip(got.chunks(n)) {
            let mean = row.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / n as f64;
            for ((v, w), y) in row.iter().zip(&w).zip(y) {
                let want = f64::from(*v) / (mean + 1e-5).sqrt() * f64::from(*w);
                assert!((f64::from(*y) - want).abs() <= 5e-7 * want.abs() + 1e-30);
            }
        }
    }
    let pool = &pools()[0];
    assert!(rms_norm(pool, &[1.0; 6], &[1.0; 4], 1e-5, &mut [0.0; 6]).is_err());
    assert!(rms_norm(pool, &[1.0; 8], &[1.0; 4], 1e-5, &mut [0.0; 6]).is_err());
    assert!(rms_norm_in_place(pool, &mut [1.0; 6], &[], 1e-5).is_err());
}

#[test]
fn rotations_agree_with_double_precision() {
    for (dim, head_dim, heads) in
        [(64, 64, 9), (128, 128, 2), (20, 32, 3), (256, 256, 4), (2, 2, 1)]
    {
        for interleaved in [true, false] {
            let factors: Vec<f32> = (0..dim / 2).map(|i| 1.0 + i as f32 * 0.1).collect();
            for factors in [None, Some(factors.as_slice())] {
                let positions = [0, 1, 7, 4095, 300, 7, 70_000, 3_000_000_000];
                let x = values(positions.len() * heads * head_dim, 31);
                let rope = Rope::new(dim, 10_000.0, factors, interleaved).unwrap();
                let got = everywhere(|pool| {
                    let mut x = x.clone();
                    rope.apply(pool, &mut x, heads, head_dim, &positions).unwrap();
                    x
                });
                for (i, (head, turned)) in x.chunks(head_dim).zip(got.chunks(head_dim)).enumerate()
                {
                    let p = f64::from(positions[i / heads]);
                    for pair in 0..dim / 2 {
                        let (a, b) = if interleaved {
                            (2 * pair, 2 * pair + 1)
                        } else {
                            (pair, pair + dim / 2)
                        };
                        let f = 10_000f64.powf(-2.0 * pair as f64 / dim as f64)
                            / factors.map_or(1.0, |f| f64::from(f[pair]));
                        let (sin, cos) = (p * f).sin_cos();
                        let (x, y) = (f64::from(head[a]), f64::from(head[b]));
                        let size = (x.abs() + y.abs()) * 2e-7;
                        assert!((f64::from(turned[a]) - (x * cos - y * sin)).abs() <= size);
                        assert!((f64::from(turned[b]) - (y * cos + x * sin)).abs() <= size);
                    }
                    assert_eq!(bits(&head[dim..]), bits(&turned[dim..]), "the rest stays");
                }
            }
        }
    }
}

#[test]
fn a_rotation_checks_its_sizes() {
    let pool = &pools()[0];
    assert!(Rope::new(3, 1e4, None, true).is_err());
    assert!(Rope::new(0, 1e4, None, true).is_err());
    assert!(Rope::new(4, f32::NAN, None, true).is_err());
    assert!(Rope::new(4, 1e4, Some(&[1.0]), true).is_err());
    assert!(Rope::new(4, 1e4, Some(&[1.0, 0.0]), true).is_err());
    let rope = Rope::new(4, 1e4, None, true).unwrap();
    assert!(rope.apply(pool, &mut [0.0; 8], 1, 4, &[1]).is_err());
    assert!(rope.apply(pool, &mut [0.0; 2], 1, 2, &[1]).is_err());
    assert!(rope.apply(pool, &mut [], 1, 4, &[]).is_ok());
}

#[test]
fn distributions_agree_with_double_precision() {
    for n in [1, 15, 16, 17, 1023, 1025, 50_000] {
        let x = values(n, 41);
        let max = x.iter().copied().fold(f32::MIN, f32::max);
        let total: f64 = x.iter().map(|v| f64::from(v - max).exp()).sum();
        let p = everywhere(|pool| {
            let mut p = x.clone();
            softmax(pool, &mut p);
            p
        });
        for (v, p) in x.iter().zip(&p) {
            let want = f64::from(v - max).exp() / total;
            assert!((f64::from(*p) - want).abs() <= 1e-6 * want + 1e-37);
        }
        let lse = everywhere(|pool| vec![log_sum_exp(pool, &x)]);
        assert!(
            (f64::from(lse[0]) - (f64::from(max) + total.ln())).abs() < 1e-6 * f64::from(max.abs())
        );
    }
    let pool = &pools()[0];
    let mut none = [f32::NEG_INFINITY; 3];
    assert_eq!(log_sum_exp(pool, &none), f32::NEG_INFINITY);
    softmax(pool, &mut none);
    assert_eq!(none, [0.0; 3]);
}

#[test]
fn the_first_of_equal_maxima_wins() {
    for pool in pools() {
        let mut x = values(5000, 51);
        x[1234] = 1e9;
        x[1235] = 1e9;
        x[4000] = 1e9;
        x[7] = f32::NAN;
        assert_eq!(argmax(&pool, &x), Some(1234));
        x[4999] = 2e9;
        assert_eq!(argmax(&pool, &x), Some(4999));
        assert_eq!(argmax(&pool, &[]), None);
        assert_eq!(argmax(&pool, &[f32::NAN; 40]), None);
        assert_eq!(argmax(&pool, &[f32::NAN, f32::NEG_INFINITY]), Some(1));
        assert_eq!(argmax(&pool, &[f32::INFINITY, f32::NAN, f32::INFINITY]), Some(0));
        let mut late = vec![f32::NAN; 3000];
        late[2500] = f32::NEG_INFINITY;
        assert_eq!(argmax(&pool, &late), Some(2500));
        assert_eq!(argmax(&pool, &[-0.0, 0.0]), Some(0));
    }
}

//! Each kernel against a plain definition in f64, on every instruction path of the machine.

use std::time::Duration;

use super::*;
use crate::{Isa, Pool};

fn numbers(n: usize, seed: u64) -> Vec<f32> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = move || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    std::iter::repeat_with(next).take(n).collect()
}

fn pools() -> Vec<Pool> {
    let each = |isa| [1, 2].map(|t| Pool::with_options(t, isa, Duration::ZERO).unwrap());
    Isa::available().into_iter().flat_map(each).collect()
}

fn close(a: &[f32], b: &[f32], tolerance: f32, what: &str) {
    assert_eq!(a.len(), b.len());
    for (i, (x, y)) in a.iter().zip(b).enumerate() {
        assert!((x - y).abs() <= tolerance * (1.0 + y.abs()), "{what}[{i}]: {x} {y}");
    }
}

#[test]
fn products_of_every_transposition_and_odd_shapes() {
    for pool in pools() {
        let mut gemm = Gemm::new();
        for (m, n, k) in [(1, 1, 1), (13, 33, 17), (49, 70, 300), (96, 64, 256), (5, 100, 513)] {
            let (a, b) = (numbers(m * k, 1), numbers(k * n, 2));
            let mut want = vec![0.0f32; m * n];
            for i in 0..m {
                for j in 0..n {
                    let sum: f64 =
                        (0..k).map(|p| f64::from(a[i * k + p]) * f64::from(b[p * n + j])).sum();
                    want[i * n + j] = sum as f32;
                }
            }
            let turned = |x: &[f32], r: usize, c: usize| -> Vec<f32> {
                (0..r * c).map(|i| x[(i % r) * c + i / r]).collect()
            };
            let (at, bt) = (turned(&a, m, k), turned(&b, k, n));
            for (flip_a, flip_b) in [(false, false), (true, false), (false, true), (true, true)] {
                let a =
                    if flip_a { View::new(&at, k, m).transposed() } else { View::new(&a, m, k) };
                let b =
                    if flip_b { View::new(&bt, n, k).transposed() } else { View::new(&b, k, n) };
                let mut c = vec![7.0; m * n];
                gemm.run(&pool, a, b, &mut c, false).unwrap();
                close(&c, &want, 1e-5, "product");
                gemm.run(&pool, a, b, &mut c, true).unwrap();
                let twice: Vec<f32> = want.iter().map(|x| 2.0 * x).collect();
                close(&c, &twice, 2e-5, "sum of products");
            }
        }
        let short = vec![0.0; 5];
        let bad =
            gemm.run(&pool, View::new(&short, 2, 3), View::new(&short, 3, 1), &mut [0.0; 2], false);
        assert!(bad.is_err());
    }
}

#[test]
fn a_product_does_not_depend_on_threads_or_path() {
    let (m, n, k) = (100, 80, 600);
    let (a, b) = (numbers(m * k, 3), numbers(k * n, 4));
    let mut all = pools().into_iter().map(|pool| {
        let mut c = vec![0.0; m * n];
        Gemm::new().run(&pool, View::new(&a, m, k), View::new(&b, k, n), &mut c, false).unwrap();
        c
    });
    let first = all.next().unwrap();
    all.for_each(|c| assert_eq!(c, first));
}

/// The directional derivative of `f` at `x` along `d`, by central differences.
fn slope(f: &dyn Fn(&[f32]) -> f64, x: &[f32], d: &[f32]) -> f64 {
    let h = 1e-2f32;
    let moved = |s: f32| -> Vec<f32> { x.iter().zip(d).map(|(x, d)| x + s * d).collect() };
    // Two step sizes cancel the cubic error.
    let central = |h: f32| (f(&moved(h)) - f(&moved(-h))) / (2.0 * f64::from(h));
    (4.0 * central(h / 2.0) - central(h)) / 3.0
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

fn agrees(slope: f64, gradient: f64, what: &str) {
    let error = (slope - gradient).abs() / (slope.abs() + gradient.abs()).max(0.1);
    assert!(error < 2e-3, "{what}: {slope} by differences, {gradient} by the gradient");
}

#[test]
fn norm_swiglu_and_turns_have_the_gradients_of_their_values() {
    let (rows, n) = (6, 32);
    for pool in pools() {
        let (x, w, r) = (numbers(rows * n, 5), numbers(n, 6), numbers(rows * n, 7));
        let run = |x: &[f32], w: &[f32]| {
            let (mut y, mut f) = (vec![0.0; rows * n], vec![0.0; rows]);
            norm(&pool, x, w, 1e-5, &mut y, &mut f).unwrap();
            (y, f)
        };
        let (mut dx, mut dw) = (vec![0.0; rows * n], vec![0.0; n]);
        let factors = run(&x, &w).1;
        norm_backward(&pool, &r, (&x, &w, &factors), &mut dx, &mut dw).unwrap();
        let (d, e) = (numbers(rows * n, 8), numbers(n, 9));
        agrees(slope(&|x| dot(&run(x, &w).0, &r), &x, &d), dot(&dx, &d), "norm, rows");
        agrees(slope(&|w| dot(&run(&x, w).0, &r), &w, &e), dot(&dw, &e), "norm, weight");

        let gu = numbers(2 * rows * n, 10);
        let run = |gu: &[f32]| {
            let mut a = vec![0.0; rows * n];
            swiglu(&pool, gu, n, &mut a).unwrap();
            a
        };
        let mut back = gu.clone();
        swiglu_backward(&pool, &r, n, &mut back).unwrap();
        let d = numbers(2 * rows * n, 11);
        agrees(slope(&|gu| dot(&run(gu), &r), &gu, &d), dot(&back, &d), "swiglu");

        let turns = Turns::new(16, 10_000.0, 3).unwrap();
        let mut there = x.clone();
        turns.apply(&pool, &mut there, n, 2, false).unwrap();
        assert_eq!(there[..n], x[..n], "position 0 stays");
        assert_ne!(there[n..], x[n..]);
        turns.apply(&pool, &mut there, n, 2, true).unwrap();
        close(&there, &x, 1e-6, "turned there and back");
    }
}

#[test]
fn cross_entropy_by_hand_and_its_gradient() {
    let (rows, n) = (3, 32);
    let (targets, weights) = ([4u32, 31, 0], [0.5f32, 2.0, 0.0]);
    for pool in pools() {
        let mut losses = [0.0; 3];
        let mut flat = vec![1.5; rows * n];
        cross_entropy(&pool, &mut flat, n, (&targets, &weights), None, &mut losses).unwrap();
        losses.iter().for_each(|loss| assert!((loss - 32f64.ln()).abs() < 1e-6));
        let x = numbers(rows * n, 12);
        let run = |x: &[f32]| {
            let (mut x, mut losses) = (x.to_vec(), [0.0; 3]);
            cross_entropy(&pool, &mut x, n, (&targets, &weights), Some(7), &mut losses).unwrap();
            let sum = losses.iter().zip(weights).map(|(l, w)| l * f64::from(w)).sum::<f64>();
            (sum, x)
        };
        let gradient = run(&x).1;
        assert!((0..rows).all(|r| gradient[r * n + 7] == 0.0), "the forbidden token");
        let d = numbers(rows * n, 13);
        agrees(slope(&|x| run(x).0, &x, &d), dot(&gradient, &d), "cross-entropy");
        let bad = cross_entropy(&pool, &mut flat, n, (&[7, 1, 2], &weights), Some(7), &mut losses);
        assert!(bad.is_err());
    }
}

#[test]
fn attention_reads_what_it_may_and_has_the_gradient_of_its_values() {
    let (length, heads, dim, sequences) = (16, 2, 16, 2);
    let width = heads * dim;
    let bits: Vec<bool> =
        (0..length * length).map(|i| i % length == i / length || i % 3 == 0).collect();
    let (qkv, r) =
        (numbers(sequences * length * 3 * width, 14), numbers(sequences * length * width, 15));
    for pool in pools() {
        for sight in [Sight::Full, Sight::Causal, Sight::Bits(&bits)] {
            let shape = Heads { length, heads, dim, sight };
            let run = |qkv: &[f32]| {
                let mut out = vec![0.0; sequences * length * width];
                let mut kept = vec![0.0; sequences * heads * length];
                attention(&pool, &shape, qkv, &mut out, &mut kept).unwrap();
                (out, kept)
            };
            let (out, kept) = run(&qkv);
            // One value by the definition.
            let (s, h, i, c) = (1, 1, 5, 3);
            let at = |j: usize, which: usize, c: usize| {
                f64::from(qkv[(s * length + j) * 3 * width + which * width + h * dim + c])
            };
            let seen = |j: usize| match sight {
                Sight::Full => true,
                Sight::Causal => j <= i,
                Sight::Bits(bits) => bits[i * length + j],
            };
            let weight = |j: usize| {
                let score: f64 = (0..dim).map(|c| at(i, 0, c) * at(j, 1, c)).sum();
                if seen(j) { (score / (dim as f64).sqrt()).exp() } else { 0.0 }
            };
            let sum: f64 = (0..length).map(weight).sum();
            let want: f64 = (0..length).map(|j| weight(j) / sum * at(j, 2, c)).sum();
            let got = f64::from(out[(s * length + i) * width + h * dim + c]);
            assert!((got - want).abs() < 1e-5, "{got} {want}");
            let mut dqkv = vec![0.0; qkv.len()];
            attention_backward(&pool, &shape, (&qkv, &out, &kept), &r, &mut dqkv).unwrap();
            let d = numbers(qkv.len(), 16);
            agrees(slope(&|x| dot(&run(x).0, &r), &qkv, &d), dot(&dqkv, &d), "attention");
        }
    }
}

#[test]
fn adamw_by_hand() {
    let step = AdamW {
        rate: 0.1,
        beta1: 0.9,
        beta2: 0.99,
        epsilon: 1e-8,
        decay: 0.5,
        step: 1,
        scale: 2.0,
        average: 0.75,
    };
    for pool in pools() {
        let mut w = vec![1.0; 19];
        let (g, mut m, mut v, mut mean) =
            (vec![0.25; 19], vec![0.0; 19], vec![0.0; 19], vec![2.0; 19]);
        adamw(&pool, &step, &mut w, &g, [&mut m, &mut v, &mut mean]).unwrap();
        // The first step moves by the rate, whatever the gradient, after the decay.
        close(&w, &[1.0 - 0.05 - 0.1; 19], 1e-6, "weights");
        close(&m, &[0.05; 19], 1e-6, "first moments");
        close(&v, &[0.0025; 19], 1e-6, "second moments");
        close(&mean, &[0.75 * 2.0 + 0.25 * 0.85; 19], 1e-6, "mean");
        assert!(adamw(&pool, &step, &mut w, &g[1..], [&mut m, &mut v, &mut mean]).is_err());
    }
    assert_eq!(sum_of_squares(&[3.0; 10_000]), 90_000.0);
}

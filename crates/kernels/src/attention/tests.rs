//! Against a plain double-precision reference for every kind of mask, and bit for bit across row
//! counts, threads, storage places and instruction paths.

use std::time::Duration;

use super::*;
use crate::Isa;

/// A small deterministic generator of values in -1..1.
pub(super) struct Noise(u64);

impl Noise {
    pub(super) fn new(seed: u64) -> Noise {
        Noise(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(super) fn bits(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(super) fn below(&mut self, n: usize) -> usize {
        (self.bits() >> 11) as usize % n.max(1)
    }

    pub(super) fn value(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    pub(super) fn values(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.value()).collect()
    }
}

#[derive(Clone, Copy)]
struct Shape {
    heads: usize,
    kv_heads: usize,
    dim: usize,
}

const SHAPES: [Shape; 7] = [
    Shape { heads: 9, kv_heads: 3, dim: 64 },
    Shape { heads: 14, kv_heads: 2, dim: 64 },
    Shape { heads: 12, kv_heads: 2, dim: 128 },
    Shape { heads: 4, kv_heads: 1, dim: 256 },
    Shape { heads: 2, kv_heads: 2, dim: 32 },
    Shape { heads: 11, kv_heads: 1, dim: 20 },
    Shape { heads: 8, kv_heads: 1, dim: 80 },
];

fn layer(shape: Shape, rows: usize, seed: u64) -> KvLayer {
    let mut layer = KvLayer::new(shape.kv_heads, shape.dim).unwrap();
    let mut noise = Noise::new(seed);
    for row in 0..rows {
        let n = shape.kv_heads * shape.dim;
        layer.write(row, &noise.values(n), &noise.values(n)).unwrap();
    }
    layer
}

fn pool(threads: usize, isa: Isa) -> Pool {
    Pool::with_options(threads, isa, Duration::ZERO).unwrap()
}

fn input<'a>(
    shape: Shape,
    layer: &'a KvLayer,
    q: &'a [f32],
    spans: &'a SpanTable,
) -> AttendInput<'a> {
    AttendInput {
        layer,
        q,
        rows: q.len() / (shape.heads * shape.dim),
        heads: shape.heads,
        scale: 2.0 / (shape.dim as f32).sqrt(),
        softcap: None,
        bias: None,
        spans,
    }
}

fn run_on(pool: &Pool, input: &AttendInput<'_>) -> Vec<f32> {
    let mut out = vec![f32::NAN; input.q.len()];
    attend(pool, input, &mut AttendScratch::new(), &mut out).unwrap();
    out
}

/// The definition in double precision, key by key.
fn reference(input: &AttendInput<'_>) -> Vec<f64> {
    let (layer, dim) = (input.layer, input.layer.dim());
    let (mut k, mut v) = (vec![0.0; dim], vec![0.0; dim]);
    let mut out = Vec::new();
    for row in 0..input.rows {
        for head in 0..input.heads {
            let kv = head / input.group();
            let q = &input.q[(row * input.heads + head) * dim..][..dim];
            let mut scored: Vec<(f64, Vec<f32>)> = Vec::new();
            for span in input.list(row, kv) {
                for at in span.row..span.row + span.len {
                    layer.read_row(kv, at as usize, &mut k, &mut v).unwrap();
                    let dot: f64 =
                        q.iter().zip(&k).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                    let mut s = dot * f64::from(input.scale);
                    if let Some(cap) = input.softcap {
                        s = f64::from(cap) * (s / f64::from(cap)).tanh();
                    }
                    if let Some(bias) = input.bias {
                        s += f64::from(bias.data[row * bias.stride + at as usize]);
                    }
                    scored.push((s, v.clone()));
                }
            }
            let max = scored.iter().fold(f64::NEG_INFINITY, |m, (s, _)| m.max(*s));
            let total: f64 = scored.iter().map(|(s, _)| (s - max).exp()).sum();
            for d in 0..dim {
                let sum: f64 = scored
                    .iter()
                    .filter(|(s, _)| *s > f64::NEG_INFINITY)
                    .map(|(s, v)| (s - max).exp() * f64::from(v[d]))
                    .sum();
                out.push(if max == f64::NEG_INFINITY { 0.0 } else { sum / total });
            }
        }
    }
    out
}

fn assert_close(got: &[f32], want: &[f64], what: &str) {
    assert_eq!(got.len(), want.len());
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let error = (f64::from(*g) - w).abs();
        assert!(error <= 4e-6, "{what}: value {i} is {g}, expected {w}");
    }
}

#[track_caller]
fn assert_bits(a: &[f32], b: &[f32], what: &str) {
    assert_eq!(a.len(), b.len(), "{what}");
    if let Some(i) = (0..a.len()).find(|&i| a[i].to_bits() != b[i].to_bits()) {
        panic!("{what}: value {i} differs: {} and {}", a[i], b[i]);
    }
}

/// The paths whose results must be equal bit for bit.
fn paths() -> Vec<Isa> {
    Isa::available()
}

/// Every kind of mask over `rows` query rows and at least `keys` cache rows.
fn masks(rows: usize, keys: usize, kv_heads: usize) -> Vec<(&'static str, SpanTable)> {
    let mut noise = Noise::new((rows * 1009 + keys) as u64);
    let first = (keys - rows) as u32;
    let mut all = Vec::new();
    let mut add = |name, fill: &mut dyn FnMut(&mut SpanTable)| {
        let mut table = SpanTable::new();
        fill(&mut table);
        all.push((name, table));
    };
    add("causal", &mut |t| t.causal(first, rows as u32));
    add("window", &mut |t| t.window(first, rows as u32, 37));
    add("bidirectional", &mut |t| t.bidirectional(rows as u32, keys as u32));
    let parents: Vec<Option<u32>> =
        (0..rows).map(|i| (i > 0 && noise.below(5) > 0).then(|| noise.below(i) as u32)).collect();
    add("tree", &mut |t| t.tree(first, &parents).unwrap());
    let mut random = |t: &mut SpanTable, step: usize| {
        let (mut slot, mut row) = (noise.below(3 * step), noise.below(step));
        while row < keys {
            let len = (1 + noise.below(step)).min(keys - row);
            t.push_span(Span { slot: slot as u32, row: row as u32, len: len as u32 });
            slot += len + noise.below(2) * noise.below(700);
            row += len + noise.below(step);
        }
        t.end_list();
    };
    add("scattered", &mut |t| (0..rows).for_each(|_| random(t, 3)));
    add("explicit", &mut |t| (0..rows).for_each(|_| random(t, 90)));
    add("ring", &mut |t| {
        // The last `keys` positions, kept in a ring that starts in its middle.
        let (turn, n) = (keys as u32 / 3, keys as u32);
        for _ in 0..rows {
            t.push_list(&[
                Span { slot: 1000, row: turn, len: n - turn },
                Span { slot: 1000 + n - turn, row: 0, len: turn },
            ]);
        }
    });
    add("nothing", &mut |t| {
        for row in 0..rows {
            if row % 2 == 0 { t.end_list() } else { t.push_range(0, 1 + row as u32) }
        }
    });
    let mut heads = SpanTable::per_head();
    (0..rows * kv_heads).for_each(|_| random(&mut heads, 11));
    all.push(("per head", heads));
    all
}

#[test]
fn every_mask_agrees_with_the_definition() {
    for (i, shape) in SHAPES.into_iter().enumerate() {
        for (rows, keys) in [(1, 1), (1, 700), (3, 513), (17, 530), (40, 1100)] {
            if rows == 40 && i > 2 {
                continue;
            }
            let layer = layer(shape, keys, 7);
            let q = Noise::new(3).values(rows * shape.heads * shape.dim);
            for (name, spans) in masks(rows, keys, shape.kv_heads) {
                let input = input(shape, &layer, &q, &spans);
                let want = reference(&input);
                for isa in paths() {
                    let got = run_on(&pool(2, isa), &input);
                    assert_close(&got, &want, &format!("{name} {isa} {rows} rows {keys} keys"));
                }
            }
        }
    }
}

#[test]
fn bias_and_soft_cap_agree_with_the_definition() {
    let (shape, rows, keys) = (SHAPES[0], 5, 600);
    let layer = layer(shape, keys, 11);
    let q = Noise::new(5).values(rows * shape.heads * shape.dim);
    let mut bias = Noise::new(6).values(rows * (keys + 3));
    for (i, b) in bias.iter_mut().enumerate() {
        if i % 7 == 0 || i / (keys + 3) == 2 {
            *b = f32::NEG_INFINITY;
        }
    }
    for (name, spans) in masks(rows, keys, shape.kv_heads) {
        for softcap in [None, Some(0.7), Some(50.0)] {
            for bias in [None, Some(Bias { data: &bias, stride: keys + 3 })] {
                let input = AttendInput { softcap, bias, ..input(shape, &layer, &q, &spans) };
                let want = reference(&input);
                for isa in paths() {
                    assert_close(&run_on(&pool(1, isa), &input), &want, name);
                }
            }
        }
    }
}

#[test]
fn threads_rows_and_paths_do_not_change_a_bit() {
    for shape in [SHAPES[0], SHAPES[1], SHAPES[5]] {
        for (rows, keys) in [(1, 511), (2, 512), (3, 513), (8, 1024), (64, 1600)] {
            let layer = layer(shape, keys, 23);
            let q = Noise::new(9).values(rows * shape.heads * shape.dim);
            for (name, spans) in masks(rows, keys, shape.kv_heads) {
                let whole = input(shape, &layer, &q, &spans);
                let want = run_on(&pool(1, Isa::best()), &whole);
                let what = format!("{name}, {rows} rows, {keys} keys");
                for threads in [2, 3] {
                    let got = run_on(&pool(threads, Isa::best()), &whole);
                    assert_bits(&got, &want, &format!("{what}, {threads} threads"));
                }
                for isa in paths() {
                    if isa != Isa::Scalar || rows < 64 {
                        let got = run_on(&pool(1, isa), &whole);
                        assert_bits(&got, &want, &format!("{what}, {isa}"));
                    }
                }
                // One row at a time.
                let width = shape.heads * shape.dim;
                let lists = if spans.is_per_head() { shape.kv_heads } else { 1 };
                for row in (0..rows).step_by(1 + rows / 9) {
                    let mut one = if lists > 1 { SpanTable::per_head() } else { SpanTable::new() };
                    for list in 0..lists {
                        one.push_list(spans.list(row * lists + list));
                    }
                    let q = &q[row * width..(row + 1) * width];
                    let got = run_on(&pool(2, Isa::best()), &input(shape, &layer, q, &one));
                    assert_bits(&got, &want[row * width..(row + 1) * width], &what);
                }
            }
        }
    }
}

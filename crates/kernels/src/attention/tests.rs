//! Long because every kind of mask meets every way of computing it.
//!
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
pub(super) struct Shape {
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) dim: usize,
}

pub(super) const SHAPES: [Shape; 7] = [
    Shape { heads: 9, kv_heads: 3, dim: 64 },
    Shape { heads: 14, kv_heads: 2, dim: 64 },
    Shape { heads: 12, kv_heads: 2, dim: 128 },
    Shape { heads: 4, kv_heads: 1, dim: 256 },
    Shape { heads: 2, kv_heads: 2, dim: 32 },
    Shape { heads: 11, kv_heads: 1, dim: 20 },
    Shape { heads: 8, kv_heads: 1, dim: 80 },
];

pub(super) fn layer(shape: Shape, rows: usize, seed: u64) -> KvLayer {
    let mut layer = KvLayer::new(shape.kv_heads, shape.dim).unwrap();
    let mut noise = Noise::new(seed);
    for row in 0..rows {
        let n = shape.kv_heads * shape.dim;
        layer.write(row, &noise.values(n), &noise.values(n)).unwrap();
    }
    layer
}

pub(super) fn pool(threads: usize, isa: Isa) -> Pool {
    Pool::with_options(threads, isa, Duration::ZERO).unwrap()
}

pub(super) fn input<'a>(
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

pub(super) fn run_on(pool: &Pool, input: &AttendInput<'_>) -> Vec<f32> {
    let mut out = vec![f32::NAN; input.q.len()];
    attend(pool, input, &mut AttendScratch::new(), &mut out).unwrap();
    out
}

/// The definition in double precision, key by key: the output, and the probabilities by row.
pub(super) fn reference(input: &AttendInput<'_>) -> (Vec<f64>, Vec<f64>) {
    let (layer, dim) = (input.layer, input.layer.dim());
    let keys = layer.rows();
    let (mut out, mut weights) = (Vec::new(), vec![0.0; input.rows * input.heads * keys]);
    let stored: Vec<Vec<(Vec<f32>, Vec<f32>)>> = (0..layer.kv_heads())
        .map(|head| (0..layer.head_rows(head)).map(|row| stored(layer, head, row)).collect())
        .collect();
    for row in 0..input.rows {
        for head in 0..input.heads {
            let kv = head / input.group();
            let place = row * input.heads + head;
            let q = &input.q[place * dim..][..dim];
            let weights = &mut weights[place * keys..][..keys];
            let mut scored: Vec<(f64, usize)> = Vec::new();
            for at in input.list(row, kv).iter().flat_map(|s| s.row..s.row + s.len) {
                let k = &stored[kv][at as usize].0;
                let dot: f64 = q.iter().zip(k).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                let mut s = dot * f64::from(input.scale);
                if let Some(cap) = input.softcap {
                    s = f64::from(cap) * (s / f64::from(cap)).tanh();
                }
                if let Some(bias) = input.bias {
                    s += f64::from(bias.data[row * bias.stride + at as usize]);
                }
                if s > f64::NEG_INFINITY {
                    scored.push((s, at as usize));
                }
            }
            let max = scored.iter().fold(f64::NEG_INFINITY, |m, (s, _)| m.max(*s));
            let total: f64 = scored.iter().map(|(s, _)| (s - max).exp()).sum();
            let mut sum = vec![0.0; dim];
            for (s, at) in scored {
                weights[at] = (s - max).exp() / total;
                for (o, v) in sum.iter_mut().zip(&stored[kv][at].1) {
                    *o += weights[at] * f64::from(*v);
                }
            }
            out.extend(sum);
        }
    }
    (out, weights)
}

/// A stored row, as it was rounded.
fn stored(layer: &KvLayer, head: usize, row: usize) -> (Vec<f32>, Vec<f32>) {
    let (mut k, mut v) = (vec![0.0; layer.dim()], vec![0.0; layer.dim()]);
    layer.read_row(head, row, &mut k, &mut v).unwrap();
    (k, v)
}

fn assert_close(got: &[f32], want: &[f64], what: &str) {
    assert_eq!(got.len(), want.len());
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let error = (f64::from(*g) - w).abs();
        assert!(error <= 4e-6, "{what}: value {i} is {g}, expected {w}");
    }
}

#[track_caller]
pub(super) fn assert_bits(a: &[f32], b: &[f32], what: &str) {
    assert_eq!(a.len(), b.len(), "{what}");
    if let Some(i) = (0..a.len()).find(|&i| a[i].to_bits() != b[i].to_bits()) {
        panic!("{what}: value {i} differs: {} and {}", a[i], b[i]);
    }
}

/// Every kind of mask over `rows` query rows and at least `keys` cache rows.
pub(super) fn masks(rows: usize, keys: usize, kv_heads: usize) -> Vec<(&'static str, SpanTable)> {
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
            if (rows == 17 && i > 2) || (rows == 40 && i != 4) {
                continue;
            }
            let layer = layer(shape, keys, 7);
            let q = Noise::new(3).values(rows * shape.heads * shape.dim);
            for (name, spans) in masks(rows, keys, shape.kv_heads) {
                let input = input(shape, &layer, &q, &spans);
                let what = format!("{name}, {rows} rows, {keys} keys");
                let (out, weights) = reference(&input);
                let pool = pool(2, Isa::best());
                assert_close(&run_on(&pool, &input), &out, &what);
                let mut got = vec![f32::NAN; weights.len()];
                attention_weights(&pool, &input, &mut got).unwrap();
                assert_close(&got, &weights, &what);
            }
        }
    }
}

/// Sums of what the reference gives, in the layout of [`attention_received`].
fn summed(weights: &[f64], rows: usize, heads: usize, together: usize, by_row: bool) -> Vec<f64> {
    let keys = weights.len() / (rows * heads);
    let lines = heads / together;
    let mut out = vec![0.0; if by_row { rows } else { 1 } * lines * keys];
    for (i, line) in weights.chunks_exact(keys).enumerate() {
        let (row, head) = (i / heads, i % heads);
        let at = (if by_row { row } else { 0 } * lines + head / together) * keys;
        out[at..at + keys].iter_mut().zip(line).for_each(|(sum, p)| *sum += p);
    }
    out
}

#[test]
fn received_attention_is_the_sum_of_the_probabilities() {
    for shape in [SHAPES[0], SHAPES[1], SHAPES[4]] {
        for (rows, keys) in [(1, 40), (3, 513), (40, 700)] {
            let layer = layer(shape, keys, 31);
            let q = Noise::new(7).values(rows * shape.heads * shape.dim);
            for (name, spans) in masks(rows, keys, shape.kv_heads) {
                let input = input(shape, &layer, &q, &spans);
                let (_, weights) = reference(&input);
                for together in [false, true] {
                    for by_row in [false, true] {
                        let most = if by_row { 1 } else { rows } * 12;
                        let heads = if together { shape.heads / shape.kv_heads } else { 1 };
                        let want = summed(&weights, rows, shape.heads, heads, by_row);
                        let what = format!("{name}, {rows} rows, {keys} keys, {together} {by_row}");
                        let mut scratch = AttendScratch::new();
                        let mut run = |threads| {
                            let pool = pool(threads, Isa::best());
                            let mut got = vec![f32::NAN; want.len()];
                            let sum = &mut scratch;
                            attention_received(&pool, &input, sum, together, by_row, &mut got)
                                .unwrap();
                            got
                        };
                        let one = run(1);
                        let parts: Vec<f32> = one.iter().map(|p| p / most as f32).collect();
                        let want: Vec<f64> = want.iter().map(|p| p / most as f64).collect();
                        assert_close(&parts, &want, &what);
                        assert_bits(&run(3), &one, &what);
                    }
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
        // Hides some keys everywhere, and all of them from row 2.
        if i % 7 == 0 || i / (keys + 3) == 2 {
            *b = f32::NEG_INFINITY;
        }
    }
    for (name, spans) in masks(rows, keys, shape.kv_heads) {
        for softcap in [None, Some(0.7), Some(50.0)] {
            for bias in [None, Some(Bias { data: &bias, stride: keys + 3 })] {
                let input = AttendInput { softcap, bias, ..input(shape, &layer, &q, &spans) };
                let (out, weights) = reference(&input);
                let pool = pool(1, Isa::best());
                let got = run_on(&pool, &input);
                assert_close(&got, &out, name);
                if shape.dim == 64 {
                    let mut got = vec![f32::NAN; weights.len()];
                    attention_weights(&pool, &input, &mut got).unwrap();
                    assert_close(&got, &weights, name);
                }
                if bias.is_some() {
                    let row = shape.heads * shape.dim;
                    assert!(got[2 * row..3 * row].iter().all(|v| v.to_bits() == 0), "{name}");
                }
            }
        }
    }
}

#[test]
fn threads_rows_and_paths_do_not_change_a_bit() {
    for (i, shape) in SHAPES.into_iter().enumerate() {
        for (rows, keys) in [(1, 511), (2, 512), (3, 513), (8, 1024), (64, 1600)] {
            if rows > 3 && i > 1 {
                continue;
            }
            let layer = layer(shape, keys, 23);
            let q = Noise::new(9).values(rows * shape.heads * shape.dim);
            let mut scratch = AttendScratch::new();
            for (name, spans) in masks(rows, keys, shape.kv_heads) {
                let whole = input(shape, &layer, &q, &spans);
                let want = run_on(&pool(1, Isa::best()), &whole);
                let what = format!("{name}, {rows} rows, {keys} keys");
                for threads in [2, 3] {
                    let mut got = vec![f32::NAN; want.len()];
                    attend(&pool(threads, Isa::best()), &whole, &mut scratch, &mut got).unwrap();
                    assert_bits(&got, &want, &format!("{what}, {threads} threads"));
                }
                for isa in Isa::available() {
                    // The portable path is slow: few rows show as much.
                    if isa != Isa::Scalar || (rows < 3 && i < 2) || (rows == 3 && i == 5) {
                        let got = run_on(&pool(1, isa), &whole);
                        assert_bits(&got, &want, &format!("{what}, {isa}"));
                    }
                }
                // One row at a time, in the scratch that the whole call left.
                let width = shape.heads * shape.dim;
                let lists = if spans.is_per_head() { shape.kv_heads } else { 1 };
                for row in (0..rows).step_by(1 + rows / 9) {
                    let mut one = if lists > 1 { SpanTable::per_head() } else { SpanTable::new() };
                    for list in 0..lists {
                        one.push_list(spans.list(row * lists + list));
                    }
                    let q = &q[row * width..(row + 1) * width];
                    let mut got = vec![f32::NAN; width];
                    let one = input(shape, &layer, q, &one);
                    attend(&pool(2, Isa::best()), &one, &mut scratch, &mut got).unwrap();
                    assert_bits(&got, &want[row * width..(row + 1) * width], &what);
                }
            }
        }
    }
}

/// Copies rows of `from` into a new layer: row `i` of it is row `rows[i]`.
fn rearranged(from: &KvLayer, rows: &[usize]) -> KvLayer {
    let mut to = KvLayer::new(from.kv_heads(), from.dim()).unwrap();
    for head in 0..from.kv_heads() {
        for (i, row) in rows.iter().enumerate() {
            let (k, v) = stored(from, head, *row);
            to.write_head(head, i, &k, &v).unwrap();
        }
    }
    to
}

#[test]
fn where_keys_are_kept_does_not_change_a_bit() {
    let shape = SHAPES[0];
    for keys in [40, 511, 512, 513, 1024, 1100] {
        let chain = layer(shape, keys, 31);
        let q = Noise::new(1).values(2 * shape.heads * shape.dim);
        let mut spans = SpanTable::new();
        spans.causal(keys as u32 - 2, 2);
        let want = run_on(&pool(1, Isa::best()), &input(shape, &chain, &q, &spans));
        // The rows in another order, in runs and one by one.
        for run in [1, 5, 100] {
            let mut runs: Vec<usize> = (0..keys.div_ceil(run)).collect();
            let mut noise = Noise::new(run as u64);
            for i in (1..runs.len()).rev() {
                runs.swap(i, noise.below(i + 1));
            }
            let order: Vec<usize> =
                runs.iter().flat_map(|r| r * run..((r + 1) * run).min(keys)).collect();
            let mut place = vec![0; keys];
            order.iter().enumerate().for_each(|(i, row)| place[*row] = i as u32);
            let moved = rearranged(&chain, &order);
            let mut spans = SpanTable::new();
            for end in [keys - 1, keys] {
                for (slot, row) in place.iter().enumerate().take(end) {
                    spans.push_span(Span { slot: slot as u32, row: *row, len: 1 });
                }
                spans.end_list();
            }
            for threads in [1, 2] {
                let got = run_on(&pool(threads, Isa::best()), &input(shape, &moved, &q, &spans));
                assert_bits(&got, &want, &format!("{keys} keys in runs of {run}"));
            }
        }
    }
}

#[test]
fn a_tree_node_equals_its_chain() {
    let shape = SHAPES[1];
    // Two branches and a bushy third; the node's path is found from the parents.
    let parents =
        [None, Some(0), Some(1), Some(0), Some(3), Some(4), None, Some(6), Some(6), Some(8)];
    for context in [0, 3, 506, 509, 1020] {
        let all = layer(shape, context + parents.len(), 41);
        let width = shape.heads * shape.dim;
        let q = Noise::new(2).values(parents.len() * width);
        let mut spans = SpanTable::new();
        spans.tree(context as u32, &parents).unwrap();
        let tree = run_on(&pool(2, Isa::best()), &input(shape, &all, &q, &spans));
        for node in 0..parents.len() {
            let mut path = vec![context + node];
            let mut at = parents[node];
            while let Some(p) = at {
                path.insert(0, context + p as usize);
                at = parents[p as usize];
            }
            let rows: Vec<usize> = (0..context).chain(path).collect();
            let chain = rearranged(&all, &rows);
            let mut spans = SpanTable::new();
            spans.causal(rows.len() as u32 - 1, 1);
            let q = &q[node * width..(node + 1) * width];
            let got = run_on(&pool(1, Isa::best()), &input(shape, &chain, q, &spans));
            assert_bits(&got, &tree[node * width..(node + 1) * width], "tree and chain");
        }
    }
    assert!(SpanTable::new().tree(4, &[Some(0)]).is_err());
    assert!(SpanTable::new().tree(4, &[None, Some(2), None]).is_err());
}

#[test]
fn cached_rows_equal_recomputed_ones() {
    // A prompt in one pass, or in pieces with each piece written just before it is attended to.
    let (shape, keys) = (SHAPES[0], 600);
    let (width, kv_width) = (shape.heads * shape.dim, shape.kv_heads * shape.dim);
    let mut noise = Noise::new(77);
    let q = noise.values(keys * width);
    let (k, v) = (noise.values(keys * kv_width), noise.values(keys * kv_width));
    let run = |pieces: &[usize]| {
        let mut layer = KvLayer::new(shape.kv_heads, shape.dim).unwrap();
        let (mut out, mut at) = (Vec::new(), 0);
        for rows in pieces {
            let part = at * kv_width..(at + rows) * kv_width;
            layer.write_rows(at, &k[part.clone()], &v[part]).unwrap();
            let mut spans = SpanTable::new();
            spans.causal(at as u32, *rows as u32);
            let q = &q[at * width..(at + rows) * width];
            out.extend(run_on(&pool(2, Isa::best()), &input(shape, &layer, q, &spans)));
            at += rows;
        }
        out
    };
    let whole = run(&[keys]);
    assert_bits(&run(&[1, 2, 300, 8, 64, 200, 25]), &whole, "in pieces");
    assert_bits(&run(&[599, 1]), &whole, "one row at the end");
}

#[test]
fn a_case_by_hand() {
    // Keys e0 and 3 e0, values (1, 2) and (5, 10), query ln 3 / 2 * e0 at scale 1: the scores
    // are ln(3) / 2 and 3 ln(3) / 2, the weights 1/4 and 3/4, the output (4, 8).
    let mut layer = KvLayer::new(1, 2).unwrap();
    layer.write(0, &[1.0, 0.0], &[1.0, 2.0]).unwrap();
    layer.write(1, &[3.0, 0.0], &[5.0, 10.0]).unwrap();
    let q = [3f32.ln() / 2.0, 7.0, 3f32.ln() / 2.0, 7.0];
    let mut spans = SpanTable::new();
    spans.causal(0, 2);
    let input = AttendInput {
        scale: 1.0,
        ..input(Shape { heads: 1, kv_heads: 1, dim: 2 }, &layer, &q, &spans)
    };
    for isa in Isa::available() {
        let out = run_on(&pool(1, isa), &input);
        assert_eq!(out[..2], [1.0, 2.0]);
        assert!((out[2] - 4.0).abs() < 1e-6 && (out[3] - 8.0).abs() < 2e-6, "{out:?}");
        let mut weights = [0.0; 4];
        attention_weights(&pool(1, isa), &input, &mut weights).unwrap();
        assert!((weights[2] - 0.25).abs() < 1e-7 && weights[..2] == [1.0, 0.0], "{weights:?}");
    }
}

#[test]
fn impossible_calls_are_refused() {
    let shape = SHAPES[4];
    let layer = layer(shape, 10, 1);
    let q = vec![0.0; 2 * shape.heads * shape.dim];
    let pool = pool(1, Isa::best());
    let table = |lists: &[&[Span]]| {
        let mut t = SpanTable::new();
        lists.iter().for_each(|l| t.push_list(l));
        t
    };
    let span = |slot, row, len| Span { slot, row, len };
    let good = table(&[&[span(0, 0, 10)], &[span(0, 0, 10)]]);
    let refused = |change: &dyn Fn(&mut AttendInput<'_>)| {
        let mut call = input(shape, &layer, &q, &good);
        change(&mut call);
        attend(&pool, &call, &mut AttendScratch::new(), &mut vec![0.0; q.len()]).is_err()
    };
    assert!(!refused(&|_| ()));
    assert!(refused(&|c| c.rows = 3));
    assert!(refused(&|c| c.heads = 3));
    assert!(refused(&|c| c.heads = 0));
    assert!(refused(&|c| c.softcap = Some(0.0)));
    assert!(refused(&|c| c.bias = Some(Bias { data: &[0.0; 20], stride: 9 })));
    assert!(refused(&|c| c.bias = Some(Bias { data: &[0.0; 19], stride: 10 })));
    for bad in [
        table(&[&[span(0, 0, 10)]]),
        table(&[&[span(0, 0, 11)], &[]]),
        table(&[&[span(0, 1, 10)], &[]]),
        table(&[&[span(0, u32::MAX, 2)], &[]]),
        table(&[&[span(u32::MAX - 1, 0, 3)], &[]]),
        table(&[&[span(0, 0, 4), span(3, 5, 1)], &[]]),
        table(&[&[span(5, 5, 1), span(0, 0, 1)], &[]]),
    ] {
        let call = input(shape, &layer, &q, &bad);
        let mut out = vec![0.0; q.len()];
        assert!(attend(&pool, &call, &mut AttendScratch::new(), &mut out).is_err(), "{bad:?}");
        assert!(attention_weights(&pool, &call, &mut [0.0; 40]).is_err());
    }
    let call = input(shape, &layer, &q, &good);
    assert!(attend(&pool, &call, &mut AttendScratch::new(), &mut [0.0; 3]).is_err());
}

#[test]
fn heads_of_different_lengths() {
    let shape = SHAPES[4];
    let mut layer = KvLayer::new(shape.kv_heads, shape.dim).unwrap();
    let mut noise = Noise::new(5);
    for (head, rows) in [(0, 600), (1, 37)] {
        for row in 0..rows {
            let (k, v) = (noise.values(shape.dim), noise.values(shape.dim));
            layer.write_head(head, row, &k, &v).unwrap();
        }
    }
    let q = noise.values(shape.heads * shape.dim);
    let mut spans = SpanTable::per_head();
    spans.push_range(0, 600);
    spans.push_range(0, 37);
    let call = input(shape, &layer, &q, &spans);
    let (out, _) = reference(&call);
    assert_close(&run_on(&pool(2, Isa::best()), &call), &out, "uneven heads");
    let mut shared = SpanTable::new();
    shared.push_range(0, 38);
    let call = input(shape, &layer, &q, &shared);
    assert!(
        attend(&pool(1, Isa::best()), &call, &mut AttendScratch::new(), &mut [0.0; 64]).is_err()
    );
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(48))]

    /// Any sorted spans: the definition holds, and any split of the rows gives the same bits.
    #[test]
    fn any_mask_agrees_with_the_definition(
        lists in proptest::collection::vec(
            proptest::collection::vec((0u32..200, 0u32..640, 1u32..120), 0..12), 1..7),
        shape in 0usize..SHAPES.len(),
        threads in 1usize..4,
        cut in 0usize..7,
    ) {
        let (shape, keys) = (SHAPES[shape], 640);
        let layer = layer(shape, keys as usize, 3);
        let mut spans = SpanTable::new();
        for list in &lists {
            let mut slot = 0;
            for (gap, row, len) in list {
                let len = (*len).min(keys - row);
                spans.push_span(Span { slot: slot + gap, row: *row, len });
                slot += gap + len;
            }
            spans.end_list();
        }
        let width = shape.heads * shape.dim;
        let q = Noise::new(8).values(lists.len() * width);
        let call = input(shape, &layer, &q, &spans);
        let got = run_on(&pool(threads, Isa::best()), &call);
        // Spans may name a key twice; the reference sums it twice, its weights once.
        assert_close(&got, &reference(&call).0, "random spans");
        let cut = cut.min(lists.len());
        for rows in [0..cut, cut..lists.len()] {
            let mut part = SpanTable::new();
            rows.clone().for_each(|row| part.push_list(spans.list(row)));
            let range = rows.start * width..rows.end * width;
            let part = run_on(&pool(1, Isa::best()), &input(shape, &layer, &q[range.clone()], &part));
            assert_bits(&part, &got[range], "a part of the rows");
        }
    }
}

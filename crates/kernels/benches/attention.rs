//! Attention at the shapes of SmolLM2-135M, Qwen2.5 0.5B and 1.5B, and Gemma 3 270M: one row (a
//! decoded token), 16 rows (a drafted tree) and 512 rows (a prompt) over contexts of 256, 1024
//! and 4096. `TESSERA_THREADS` sets the threads (default: 2).
//!
//! The throughput that criterion prints is bytes of keys and values for few rows, and floating
//! point operations (two products of `keys * dim` multiply-adds per row and head) for a prompt.

#![allow(clippy::expect_used)]

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::time::Duration;
use tessera_kernels::attention::{AttendInput, AttendScratch, SpanTable, attend};
use tessera_kernels::{KvLayer, Pool};

const SHAPES: [(usize, usize, usize); 4] = [(9, 3, 64), (14, 2, 64), (12, 2, 128), (4, 1, 256)];

fn noise(n: usize) -> Vec<f32> {
    let mut state = 0x9e37_79b9u32;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

fn attention(c: &mut Criterion) {
    let threads = std::env::var("TESSERA_THREADS").ok().and_then(|t| t.parse().ok()).unwrap_or(2);
    let pool = Pool::new(threads);
    for (heads, kv_heads, dim) in SHAPES {
        let mut group = c.benchmark_group(format!("attention {heads}/{kv_heads}/{dim}"));
        group.sample_size(10).warm_up_time(Duration::from_millis(100));
        group.measurement_time(Duration::from_millis(300));
        for context in [256, 1024, 4096] {
            for rows in [1, 16, 512] {
                let rows = rows.min(context);
                // Several layers, as a pass has: keys and values come from the last cache level.
                let layers: Vec<KvLayer> = (0..if rows > 16 { 1 } else { 8 })
                    .map(|_| {
                        let mut layer = KvLayer::new(kv_heads, dim).expect("a shape");
                        layer.reserve(context).expect("memory");
                        let x = noise(context * kv_heads * dim);
                        layer.write_rows(0, &x, &x).expect("rows that fit");
                        layer
                    })
                    .collect();
                let q = noise(rows * heads * dim);
                let mut out = vec![0.0; q.len()];
                let mut spans = SpanTable::new();
                spans.causal((context - rows) as u32, rows as u32);
                let mut scratch = AttendScratch::new();
                let keys = rows * context - rows * (rows - 1) / 2;
                group.throughput(if rows > 16 {
                    Throughput::Elements((keys * heads * dim * 4) as u64)
                } else {
                    Throughput::Bytes((layers.len() * context * kv_heads * dim * 4) as u64)
                });
                let id = BenchmarkId::new(format!("{rows} rows"), context);
                group.bench_function(id, |b| {
                    b.iter(|| {
                        for layer in &layers {
                            let input = AttendInput {
                                layer,
                                q: &q,
                                rows,
                                heads,
                                scale: 1.0 / (dim as f32).sqrt(),
                                softcap: None,
                                bias: None,
                                spans: &spans,
                            };
                            attend(&pool, &input, &mut scratch, &mut out).expect("sizes that fit");
                        }
                    });
                });
            }
        }
        group.finish();
    }
}

criterion_group!(benches, attention);
criterion_main!(benches);

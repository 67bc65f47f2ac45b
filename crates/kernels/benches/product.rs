//! Products of named shapes, each fast type, by number of rows. Quantising the activations is
//! part of what is timed, as it is part of every pass.
//!
//! `cargo bench -p tessera-kernels --bench product -- 'Q4_1'`

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tessera_kernels::{Activations, Matrix, Pool, Target, WeightType, product};

/// (name, outputs, inputs).
const SHAPES: [(&str, usize, usize); 4] =
    [("attention", 576, 576), ("gate", 1536, 576), ("down", 576, 1536), ("wide", 4096, 2048)];

/// A matrix with varied codes and harmless scales.
fn matrix(ty: WeightType, n: usize, k: usize) -> Option<Matrix> {
    let mut raw: Vec<u8> =
        (0..ty.matrix_bytes(n, k).ok()?).map(|i| ((i * 2_654_435_761) >> 7) as u8).collect();
    for block in raw.chunks_exact_mut(ty.block_bytes()) {
        for at in [1, 3, ty.block_bytes() - 1] {
            block[at] = 0x1c;
        }
    }
    Matrix::pack(ty, &raw, n, k).ok()
}

fn products(c: &mut Criterion) {
    let pool = Pool::new(std::thread::available_parallelism().map_or(1, usize::from));
    let types =
        [WeightType::Q4_1, WeightType::Q8_0, WeightType::Q5_0, WeightType::Q4K, WeightType::Q6K];
    let mut a = Activations::new();
    for ty in types {
        let mut group = c.benchmark_group(ty.name());
        group.sample_size(20).measurement_time(Duration::from_secs(1));
        for (name, n, k) in SHAPES {
            // K-quants exist only for whole blocks of 256.
            let Some(w) = matrix(ty, n, k) else { continue };
            for rows in [1, 8, 64] {
                let x: Vec<f32> = (0..rows * k).map(|i| (i % 97) as f32 / 48.0 - 1.0).collect();
                let mut out = vec![0.0f32; rows * n];
                group.throughput(Throughput::Elements((2 * rows * n * k) as u64));
                group.bench_function(BenchmarkId::new(name, rows), |b| {
                    b.iter(|| {
                        a.quantize(&pool, black_box(&x), rows, k);
                        let done = product(&pool, &a, &mut [Target::new(&w, &mut out)]);
                        black_box(done)
                    });
                });
            }
        }
    }
}

/// What one hand-off costs: a part for each thread, doing nothing.
fn hand_off(c: &mut Criterion) {
    let pool = Pool::new(2);
    c.bench_function("hand-off to 2 threads", |b| {
        b.iter(|| {
            pool.run(2, &|part| {
                black_box(part);
            })
        });
    });
}

criterion_group!(benches, products, hand_off);
criterion_main!(benches);

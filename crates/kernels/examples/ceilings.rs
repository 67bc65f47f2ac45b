//! What the products reach on this machine: time, weight bytes per second and operations per
//! second, for the products of one token of a model shape and for single matrices of each fast
//! type.
//!
//! `cargo run --release -p tessera-kernels --example ceilings -- [set] [threads] [rounds] [rows]`
//! with `set` one of `smollm2`, `qwen1.5b`, `types`, `load`; `rows` a list such as `1,2,16`.
//! Each hand-off is timed by itself; the sums of their least times over the interleaved rounds, and
//! of their medians, are printed, so that a busy machine disturbs the first column little.
#![allow(clippy::print_stdout)]

use std::time::{Duration, Instant};

use tessera_kernels::{Activations, Isa, Matrix, Pool, Result, Target, WeightType, product};

/// Matrices that share their input: one hand-off.
struct Fused {
    inputs: usize,
    weights: Vec<Matrix>,
}

struct Set {
    name: String,
    fused: Vec<Fused>,
}

/// Bytes of a matrix with harmless scales.
fn raw(ty: WeightType, n: usize, k: usize, seed: &mut u64) -> Result<Vec<u8>> {
    let mut raw = vec![0u8; ty.matrix_bytes(n, k)?];
    for chunk in raw.chunks_mut(8) {
        *seed ^= *seed << 13;
        *seed ^= *seed >> 7;
        *seed ^= *seed << 17;
        chunk.copy_from_slice(&seed.to_le_bytes()[..chunk.len()]);
    }
    let scales: &[usize] = match ty {
        WeightType::Q4_1 | WeightType::Q4K => &[1, 3],
        WeightType::Q6K => &[209],
        _ => &[1],
    };
    for block in raw.chunks_exact_mut(ty.block_bytes()) {
        for &at in scales {
            block[at] = 0x10;
        }
    }
    Ok(raw)
}

fn matrix(ty: WeightType, n: usize, k: usize, seed: &mut u64) -> Result<Matrix> {
    Matrix::pack(ty, &raw(ty, n, k, seed)?, n, k)
}

/// `layers` times (q k v, o, gate up, down), then the head as a set of its own.
fn model(
    name: &str,
    layers: usize,
    (width, kv, inner): (usize, usize, usize),
    types: [WeightType; 4],
    head: (WeightType, usize),
) -> Result<Vec<Set>> {
    let mut seed = 0x9e37_79b9_7f4a_7c15;
    let [qk, v, mlp, down] = types;
    let mut fused = Vec::new();
    for _ in 0..layers {
        let weights = vec![
            matrix(qk, width, width, &mut seed)?,
            matrix(qk, kv, width, &mut seed)?,
            matrix(v, kv, width, &mut seed)?,
        ];
        fused.push(Fused { inputs: width, weights });
        let weights = vec![matrix(qk, width, width, &mut seed)?];
        fused.push(Fused { inputs: width, weights });
        let weights =
            vec![matrix(mlp, inner, width, &mut seed)?, matrix(mlp, inner, width, &mut seed)?];
        fused.push(Fused { inputs: width, weights });
        let weights = vec![matrix(down, width, inner, &mut seed)?];
        fused.push(Fused { inputs: inner, weights });
    }
    let weights = vec![matrix(head.0, head.1, width, &mut seed)?];
    let head = Fused { inputs: width, weights };
    Ok(vec![
        Set { name: format!("{name} layers"), fused },
        Set { name: format!("{name} head"), fused: vec![head] },
    ])
}

fn sets(name: &str) -> Result<Vec<Set>> {
    use WeightType::{Q4_1, Q4K, Q5_0, Q6K, Q8_0};
    match name {
        "smollm2" => model(name, 30, (576, 192, 1536), [Q4_1; 4], (Q8_0, 49152)),
        "qwen1.5b" => model(name, 28, (1536, 256, 8960), [Q4K, Q6K, Q4K, Q6K], (Q6K, 151_936)),
        _ => {
            let mut seed = 88_172_645_463_325_252;
            [Q4_1, Q8_0, Q5_0, Q4K, Q6K]
                .into_iter()
                .map(|ty| {
                    // Sixteen distinct matrices, more than the second-level cache holds.
                    let fused = (0..16)
                        .map(|_| {
                            let weights = vec![matrix(ty, 1536, 768, &mut seed)?];
                            Ok(Fused { inputs: 768, weights })
                        })
                        .collect::<Result<_>>()?;
                    Ok(Set { name: format!("{ty} 1536x768"), fused })
                })
                .collect()
        }
    }
}

impl Set {
    fn bytes(&self) -> usize {
        self.fused.iter().flat_map(|f| &f.weights).map(Matrix::bytes).sum()
    }

    fn values(&self) -> usize {
        self.fused.iter().flat_map(|f| &f.weights).map(|w| w.rows() * w.cols()).sum()
    }

    fn pass(
        &self,
        pool: &Pool,
        rows: usize,
        x: &[f32],
        out: &mut [Vec<f32>],
        times: &mut [Vec<Duration>],
    ) -> Result<()> {
        thread_local! {
            static A: std::cell::RefCell<Activations> = std::cell::RefCell::default();
        }
        A.with_borrow_mut(|a| {
            for (fused, times) in self.fused.iter().zip(times) {
                let begun = Instant::now();
                a.quantize(pool, x, rows, fused.inputs);
                let mut targets: Vec<Target<'_>> = fused
                    .weights
                    .iter()
                    .zip(out.iter_mut())
                    .map(|(w, out)| Target::new(w, out))
                    .collect();
                product(pool, a, &mut targets)?;
                times.push(begun.elapsed());
            }
            Ok(())
        })
    }
}

fn load() -> Result<()> {
    use WeightType::{Q4_1, Q4K, Q5_0, Q6K, Q8_0};
    let mut seed = 1;
    for ty in [Q4_1, Q8_0, Q5_0, Q4K, Q6K] {
        let (n, k) = (1536, 768);
        let raw = raw(ty, n, k, &mut seed)?;
        let mut least = f64::INFINITY;
        // All kept, so that each is packed into memory not touched before.
        let mut kept = Vec::new();
        for _ in 0..100 {
            let begun = Instant::now();
            kept.push(Matrix::pack(ty, &raw, n, k)?);
            least = least.min(begun.elapsed().as_secs_f64());
        }
        println!("pack {ty}: {:.2} GB/s", raw.len() as f64 / least / 1e9);
    }
    Ok(())
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let arg = |i: usize, or: &str| args.get(i).cloned().unwrap_or_else(|| or.to_owned());
    let name = arg(0, "smollm2");
    if name == "load" {
        return load();
    }
    let threads = arg(1, "1").parse().unwrap_or(1);
    let rounds: usize = arg(2, "10").parse().unwrap_or(10);
    let rows: Vec<usize> =
        arg(3, "1,2,4,8,16,32,64").split(',').filter_map(|v| v.parse().ok()).collect();
    let most = rows.iter().copied().max().unwrap_or(1);
    let isa = Isa::active()?;
    let pool = Pool::new(threads);
    println!("{isa}, {} threads, least of {rounds} interleaved rounds (median)", pool.threads());
    let sets = sets(&name)?;
    let widest = sets.iter().flat_map(|s| &s.fused).flat_map(|f| &f.weights).map(Matrix::rows);
    let deepest = sets.iter().flat_map(|s| &s.fused).map(|f| f.inputs).max().unwrap_or(0);
    let x: Vec<f32> = (0..most * deepest).map(|i| (i * 7919 % 1009) as f32 / 505.0 - 1.0).collect();
    let mut out = vec![vec![0.0f32; most * widest.max().unwrap_or(0)]; 3];
    let mut times: Vec<Vec<Vec<Vec<Duration>>>> =
        sets.iter().map(|s| vec![vec![Vec::new(); s.fused.len()]; rows.len()]).collect();
    for _ in 0..rounds {
        for (set, times) in sets.iter().zip(&mut times) {
            for (&rows, times) in rows.iter().zip(times) {
                set.pass(&pool, rows, &x, &mut out, times)?;
            }
        }
    }
    println!(
        "{:>20} {:>5} {:>9} {:>10} {:>7} {:>7}",
        "", "rows", "ms", "(median)", "GB/s", "TOP/s"
    );
    for (set, times) in sets.iter().zip(&mut times) {
        for (&rows, times) in rows.iter().zip(times) {
            times.iter_mut().for_each(|t| t.sort());
            let least: f64 = times.iter().map(|t| t[0].as_secs_f64()).sum();
            let median: f64 = times.iter().map(|t| t[t.len() / 2].as_secs_f64()).sum();
            println!(
                "{:>20} {rows:>5} {:>9.3} {:>10.3} {:>7.1} {:>7.3}",
                set.name,
                least * 1e3,
                median * 1e3,
                set.bytes() as f64 / least / 1e9,
                2.0 * (set.values() * rows) as f64 / least / 1e12,
            );
        }
    }
    Ok(())
}

//! Attention of a decoded token, dense and over the best eighth of the rows, at the shape of
//! Qwen2.5 0.5B (24 layers of 14 query and 2 key/value heads of 64 values), for 1 and 16 sequences and
//! contexts of 1024 to 16384. `TESSERA_COLUMNS` sets how many columns of a key rows are ranked by
//! (default: 24, as `fasa` does at this shape), `TESSERA_THREADS` the threads (default: 2),
//! `TESSERA_LAYERS` the layers (default: 24 for one sequence, 4 for several), `TESSERA_CONTEXT` one
//! context (default: all).
//!
//! Prints milliseconds a step for all sequences, brought to 24 layers: the median of the repetitions,
//! and the bytes read by each. Ranking, listing and attending are shown apart.

#![allow(clippy::expect_used, clippy::print_stdout)]

use std::time::Instant;
use tessera_kernels::attention::{
    AttendInput, AttendScratch, Pooling, RankInput, RankScratch, SpanTable, attend, rank,
};
use tessera_kernels::{KvLayer, Pool};

const HEADS: usize = 14;
const KV_HEADS: usize = 2;
const DIM: usize = 64;
const LAYERS: usize = 24;
const REPEATS: usize = 9;

fn noise(n: usize, seed: usize) -> Vec<f32> {
    let mut state = 0x9e37_79b9u32 ^ (seed as u32).wrapping_mul(0x85eb_ca6b) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn number(name: &str) -> Option<usize> {
    std::env::var(name).ok().and_then(|t| t.parse().ok())
}

fn main() {
    let pool = Pool::new(number("TESSERA_THREADS").unwrap_or(2));
    let columns = number("TESSERA_COLUMNS").unwrap_or(24).clamp(1, DIM);
    println!(
        "threads {}, {}; ms a step of {LAYERS} layers, ranked by {columns} of {DIM} columns",
        pool.threads(),
        pool.isa()
    );
    println!(
        "sequences context |  dense    MB |   rank   list attend | sparse    MB |  ratio  pooling"
    );
    for sequences in [1, 16] {
        let layers = number("TESSERA_LAYERS").unwrap_or(if sequences == 1 { LAYERS } else { 4 });
        let one = number("TESSERA_CONTEXT");
        for context in [1024, 2048, 4096, 8192, 16384] {
            if one.is_none_or(|one| one == context) {
                measure(&pool, sequences, layers, context, columns);
            }
        }
    }
}

fn input<'a>(layer: &'a KvLayer, q: &'a [f32], spans: &'a SpanTable) -> AttendInput<'a> {
    AttendInput { layer, q, rows: 1, heads: HEADS, scale: 0.125, softcap: None, bias: None, spans }
}

fn measure(pool: &Pool, sequences: usize, layers: usize, context: usize, ranked_by: usize) {
    let count = context / 8;
    let width = KV_HEADS * DIM;
    let mut caches: Vec<KvLayer> = (0..sequences * layers)
        .map(|i| {
            let mut layer = KvLayer::new(KV_HEADS, DIM).expect("a shape");
            layer.reserve(context).expect("memory");
            let x = noise(context * width, i);
            layer.write_rows(0, &x, &x).expect("rows that fit");
            layer
        })
        .collect();
    let q = noise(HEADS * DIM, 99);
    let mut out = vec![0.0; q.len()];
    let mut scratch = AttendScratch::new();
    let mut spans = SpanTable::new();
    spans.causal(context as u32 - 1, 1);
    let scale = LAYERS as f64 / layers as f64 * 1e3;
    let mut dense = Vec::new();
    for _ in 0..REPEATS {
        let start = Instant::now();
        for layer in &caches {
            attend(pool, &input(layer, &q, &spans), &mut scratch, &mut out)
                .expect("sizes that fit");
        }
        dense.push(start.elapsed().as_secs_f64() * scale);
    }
    let columns: Vec<Vec<u16>> = (0..KV_HEADS as u16)
        .map(|h| (0..ranked_by as u16).map(|c| (c * 3 + h) % DIM as u16).collect())
        .collect();
    for layer in &mut caches {
        layer.index(&columns).expect("memory");
    }
    let per_row = KV_HEADS * DIM * 2 * LAYERS * sequences;
    let all = (2 * context * per_row) as f64 / 1e6;
    let few = ((context * per_row * ranked_by / DIM) + 2 * count * per_row) as f64 / 1e6;
    for (pooling, name) in [(Pooling::Sum, "sum"), (Pooling::Max, "max")] {
        let mut ranks = RankScratch::default();
        let mut chosen = vec![Vec::new(); KV_HEADS];
        let (mut ranked, mut listed, mut attended) = (vec![], vec![], vec![]);
        let mut sparse = Vec::new();
        for _ in 0..REPEATS {
            let (mut a, mut b, mut c) = (0.0, 0.0, 0.0);
            for layer in &caches {
                let among = [0..context - 1, 0..context - 1];
                let ask = RankInput { layer, q: &q, heads: HEADS, pooling, among: &among, count };
                let start = Instant::now();
                rank(pool, &ask, &mut ranks, &mut chosen).expect("an indexed layer");
                let middle = Instant::now();
                let mut table = SpanTable::after(chosen.clone());
                table.push_range(context as u32 - 1, context as u32);
                let end = Instant::now();
                attend(pool, &input(layer, &q, &table), &mut scratch, &mut out)
                    .expect("sizes that fit");
                a += (middle - start).as_secs_f64();
                b += (end - middle).as_secs_f64();
                c += end.elapsed().as_secs_f64();
            }
            ranked.push(a * scale);
            listed.push(b * scale);
            attended.push(c * scale);
            sparse.push((a + b + c) * scale);
        }
        let (dense, sparse) = (median(dense.clone()), median(sparse));
        println!(
            "{sequences:9} {context:7} | {dense:6.2} {all:5.0} | {:6.2} {:6.2} {:6.2} | {sparse:6.2} {few:5.0} | {:5.2}x  {name}",
            median(ranked),
            median(listed),
            median(attended),
            dense / sparse,
        );
    }
}

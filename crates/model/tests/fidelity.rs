//! How far int8 activations and an f16 cache move a model from an f32 reference, on the same file
//! and the same text, beside llama.cpp's own distance (`bench/fidelity` made the goldens).
//!
//! The gate compares the eight most probable tokens of each row with the golden's reference;
//! `TESSERA_LONG=1` compares whole distributions with our own f32 arithmetic, after checking that
//! arithmetic against the golden's independent reference.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "helpers of tests")]

use std::path::Path;

use serde_json::Value;
use tessera_core::{Backbone, CacheOptions, Pass, Position, Reveal, RowsOut, Segment, TokenId};
use tessera_model::arch::Blueprint;
use tessera_model::cpu::{Arithmetic, CpuBackbone, Options};
use tessera_model::open_weights;
use tessera_model::store::testing::find_test_model;

struct Golden {
    tokens: Vec<TokenId>,
    next: Vec<f64>,
    perplexity: f64,
    top_ids: Vec<Vec<usize>>,
    top_log_probs: Vec<Vec<f64>>,
    peers: Vec<Value>,
}

fn numbers(v: &Value) -> Vec<f64> {
    v.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

impl Golden {
    fn read(name: &str) -> Self {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/fidelity");
        let text = std::fs::read_to_string(dir.join(format!("{name}.json"))).unwrap();
        let v: Value = serde_json::from_str(&text).unwrap();
        let r = &v["reference"];
        Self {
            tokens: numbers(&v["tokens"]).iter().map(|&t| t as u32).collect(),
            next: numbers(&r["next_log_prob"]),
            perplexity: r["perplexity"].as_f64().unwrap(),
            top_ids: r["top_ids"]
                .as_array()
                .unwrap()
                .iter()
                .map(|x| numbers(x).iter().map(|&i| i as usize).collect())
                .collect(),
            top_log_probs: r["top_log_probs"].as_array().unwrap().iter().map(numbers).collect(),
            peers: v["llama_cpp"].as_array().unwrap().clone(),
        }
    }

    /// The better of llama.cpp's two runs: its mean, and the upper end of its 95 % interval.
    fn peer(&self, mean: &str, interval: &str) -> (f64, f64) {
        let best = self
            .peers
            .iter()
            .min_by(|a, b| a[mean].as_f64().unwrap().total_cmp(&b[mean].as_f64().unwrap()))
            .unwrap();
        (best[mean].as_f64().unwrap(), numbers(&best[interval])[1])
    }
}

fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max) as f64;
    let sum: f64 = logits.iter().map(|&l| (l as f64 - max).exp()).sum();
    let norm = max + sum.ln();
    logits.iter().map(|&l| l as f64 - norm).collect()
}

/// Calls `f` with the row number and the log-probabilities of each row.
fn rows(m: &CpuBackbone, tokens: &[TokenId], count: usize, mut f: impl FnMut(usize, &[f64])) {
    let mut cache = m.new_cache(CacheOptions { capacity: count, ..Default::default() }).unwrap();
    let mut reveal = Reveal::new();
    let mut at = 0;
    for piece in tokens[..count].chunks(100) {
        let positions: Vec<Position> = (at as u32..(at + piece.len()) as u32).collect();
        let mut segment = Segment::causal(piece, &positions, cache.as_mut());
        segment.rows_out = RowsOut::All;
        m.forward(&mut Pass::new(&mut [segment]), &mut reveal).unwrap();
        for i in 0..piece.len() {
            f(at + i, &log_softmax(reveal.logits(0, i)));
        }
        at += piece.len();
    }
}

fn backbone(path: &Path, arithmetic: Arithmetic) -> CpuBackbone {
    let weights = open_weights(path).unwrap();
    let blueprint = Blueprint::new(weights.hyper_params());
    let options = Options { threads: 0, arithmetic };
    CpuBackbone::load(blueprint, &weights, options, &|_| ()).unwrap()
}

/// KL of the reference to us with all tokens but its eight best in one bucket: a lower bound.
fn coarse(golden: &Golden, row: usize, ours: &[f64]) -> f64 {
    let (mut kl, mut p_rest, mut q_rest) = (0.0, 1.0, 1.0);
    for (&id, &lp) in golden.top_ids[row].iter().zip(&golden.top_log_probs[row]) {
        let p = lp.exp();
        kl += p * (lp - ours[id]);
        p_rest -= p;
        q_rest -= ours[id].exp();
    }
    let (p, q): (f64, f64) = (p_rest.max(1e-9), q_rest.max(1e-9));
    kl + p * (p / q).ln()
}

fn check(name: &str, golden: &str) {
    let Some(path) = find_test_model(name) else { return };
    let golden = Golden::read(golden);
    let count = golden.next.len();
    let long = std::env::var_os("TESSERA_LONG").is_some_and(|v| v == "1");

    let int8 = backbone(&path, Arithmetic::Int8);
    let mut nll = 0.0;
    let mut top_kl = 0.0;
    let mut agree = 0;
    rows(&int8, &golden.tokens, count, |i, lp| {
        nll -= lp[golden.tokens[i + 1] as usize];
        top_kl += coarse(&golden, i, lp);
        let best = (0..lp.len()).fold(0, |b, j| if lp[j] > lp[b] { j } else { b });
        agree += usize::from(best == golden.top_ids[i][0]);
    });
    let (perplexity, top_kl) = ((nll / count as f64).exp(), top_kl / count as f64);
    let (peer, upper) = golden.peer("mean_top_kl", "mean_top_kl_95");
    println!(
        "{name}: perplexity {perplexity:.4} (reference {:.4}), top-8 KL {top_kl:.3e} \
         (llama.cpp {peer:.3e}, up to {upper:.3e}), top-1 {:.1} %",
        golden.perplexity,
        100.0 * agree as f64 / count as f64
    );
    let off = (perplexity / golden.perplexity - 1.0).abs();
    assert!(off < 0.005, "{name}: perplexity is {:.2} % off the reference's", off * 100.0);
    assert!(
        top_kl <= (1.1 * peer).max(upper),
        "{name}: top-8 KL {top_kl:.3e}, llama.cpp's is {peer:.3e}"
    );

    if !long {
        return;
    }
    let exact = backbone(&path, Arithmetic::F32);
    // In pieces, so that only a few hundred whole distributions are in memory at a time.
    let (mut kl, mut done) = (0.0, 0);
    let mut worst = 0.0f64;
    let mut reference = Vec::with_capacity(count);
    rows(&exact, &golden.tokens, count, |i, lp| {
        worst = worst.max((lp[golden.tokens[i + 1] as usize] - golden.next[i]).abs());
        reference.push(lp.iter().map(|&v| v as f32).collect::<Vec<f32>>());
    });
    rows(&int8, &golden.tokens, count, |i, lp| {
        let r = &reference[i];
        kl += r.iter().zip(lp).map(|(&p, q)| f64::from(p).exp() * (f64::from(p) - q)).sum::<f64>();
        done += 1;
    });
    assert_eq!(done, count);
    let kl = kl / count as f64;
    let (peer, upper) = golden.peer("mean_kl", "mean_kl_95");
    println!(
        "{name}: mean KL {kl:.3e} (llama.cpp {peer:.3e}, up to {upper:.3e}); our f32 arithmetic \
         is within {worst:.1e} nat of the independent reference"
    );
    // The f32 arithmetic rounds keys and values to f16 like every cache here.
    assert!(worst < 0.05, "{name}: f32 arithmetic is {worst} off the reference");
    assert!(
        kl < 1e-2 && kl <= (1.1 * peer).max(upper),
        "{name}: mean KL {kl:.3e} against {peer:.3e}"
    );
}

#[test]
fn smollm2_stays_near_the_reference() {
    check("smollm2", "smollm2");
}

#[test]
fn gemma3_stays_near_the_reference() {
    check("gemma3:270m", "gemma3-270m");
}

#[test]
fn qwen_stays_near_the_reference() {
    check("qwen2.5-coder:0.5b", "qwen2.5-coder-0.5b");
}

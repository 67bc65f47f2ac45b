//! Real files through the candle backbone, against the goldens of `bench/fidelity`: another
//! program's `f32` forward pass over the same dequantised weights and the same tokens.
//!
//! 64 positions of each; all 1,000 with `TESSERA_LONG=1`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

use std::path::Path;

use tessera_core::{Backbone, CacheOptions, KvStore, Pass, Position, Reveal, RowsOut, Segment};
use tessera_model::arch::Blueprint;
use tessera_model::candle::{CandleBackbone, CandleOptions};
use tessera_model::store::testing::find_test_model;
use tessera_model::{WeightSource, open_weights};

fn load(source: Box<dyn WeightSource>, kv_f16: bool) -> CandleBackbone {
    let options = CandleOptions { kv_f16, ..CandleOptions::default() };
    let blueprint = Blueprint::new(source.hyper_params());
    CandleBackbone::from_weights(blueprint, &source, options).unwrap()
}

/// Appends `tokens` and gives the logits of each row to `see`, with its index.
fn append(
    backbone: &dyn Backbone,
    cache: &mut dyn KvStore,
    tokens: &[u32],
    mut see: impl FnMut(usize, &[f32]),
) {
    let mut reveal = Reveal::new();
    for (chunk, tokens) in tokens.chunks(128).enumerate() {
        let next = cache.table().next_position();
        let positions: Vec<Position> = (next..next + tokens.len() as u32).collect();
        let segment = Segment::causal(tokens, &positions, &mut *cache);
        let mut segments = [Segment { rows_out: RowsOut::All, ..segment }];
        backbone.forward(&mut Pass::new(&mut segments), &mut reveal).unwrap();
        for row in 0..tokens.len() {
            see(chunk * 128 + row, reveal.logits(0, row));
        }
    }
}

fn log_sum_exp(logits: &[f32]) -> f64 {
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&x| f64::from(x - top).exp()).sum();
    f64::from(top) + sum.ln()
}

fn best(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (i, x) in logits.iter().enumerate() {
        if *x > logits[best] {
            best = i;
        }
    }
    best as u32
}

/// The golden's log-probabilities, row by row, for the model that the catalogue calls `known`.
fn meets_golden(known: &str, name: &str) {
    let Some(path) = find_test_model(known) else { return };
    let golden = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/goldens/fidelity")
        .join(format!("{name}.json"));
    let golden: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(golden).unwrap()).unwrap();
    let rows = if std::env::var_os("TESSERA_LONG").is_some() { 1000 } else { 64 };
    let numbers = |v: &serde_json::Value| -> Vec<f64> {
        v.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
    };
    let tokens: Vec<u32> = numbers(&golden["tokens"]).iter().map(|&t| t as u32).collect();
    let reference = &golden["reference"];
    let next = numbers(&reference["next_log_prob"]);

    let backbone = load(open_weights(&path).unwrap(), false);
    let mut cache = backbone.new_cache(CacheOptions::default()).unwrap();
    let (mut worst, mut sum) = (0f64, 0f64);
    append(&backbone, &mut *cache, &tokens[..rows], |row, logits| {
        let norm = log_sum_exp(logits);
        let log_prob = |token: u32| f64::from(logits[token as usize]) - norm;
        let mut check = |token: u32, expected: f64| {
            let off = (log_prob(token) - expected).abs();
            worst = worst.max(off);
            sum += off;
            assert!(off < 5e-3, "{name}, row {row}, token {token}: off by {off}");
        };
        check(tokens[row + 1], next[row]);
        let ids = numbers(&reference["top_ids"][row]);
        for (id, expected) in ids.iter().zip(numbers(&reference["top_log_probs"][row])) {
            check(*id as u32, expected);
        }
    });
    let mean = sum / (9 * rows) as f64;
    println!("{name}: {rows} rows, mean difference {mean:.1e}, largest {worst:.1e} nat");
    assert!(mean < 3e-4, "{name}: {mean}");
}

#[test]
fn smollm2_meets_its_golden() {
    meets_golden("smollm2", "smollm2");
}

#[test]
fn gemma3_meets_its_golden() {
    meets_golden("gemma3:270m", "gemma3-270m");
}

#[test]
fn qwen2_meets_its_golden() {
    meets_golden("qwen2.5-coder:0.5b", "qwen2.5-coder-0.5b");
}

#[test]
fn smollm2_decodes_what_one_whole_pass_would_choose() {
    let Some(path) = find_test_model("smollm2") else { return };
    let source = open_weights(&path).unwrap();
    let words = source.gguf().unwrap().metadata().arr_str("tokenizer.ggml.tokens").unwrap();
    let words: Vec<String> = words.iter().map(str::to_owned).collect();
    let backbone = load(source, true);
    let prompt = ["The", "Ġcapital", "Ġof", "ĠFrance", "Ġis"];
    let mut text: Vec<u32> =
        prompt.iter().map(|word| words.iter().position(|w| w == word).unwrap() as u32).collect();
    let mut cache = backbone.new_cache(CacheOptions::default()).unwrap();
    let mut chosen = 0;
    append(&backbone, &mut *cache, &text, |_, logits| chosen = best(logits));
    while text.len() < prompt.len() + 64 {
        text.push(chosen);
        append(&backbone, &mut *cache, &[chosen], |_, logits| chosen = best(logits));
    }
    let readable: String = text.iter().map(|&t| words[t as usize].as_str()).collect();
    println!("{}", readable.replace('Ġ', " ").replace('Ċ', "\n"));
    assert_eq!(words[text[prompt.len()] as usize], "ĠParis");

    let mut whole = backbone.new_cache(CacheOptions::default()).unwrap();
    append(&backbone, &mut *whole, &text, |row, logits| {
        if row + 1 >= prompt.len() && row + 1 < text.len() {
            let (a, b) = (text[row + 1], best(logits));
            let lead = logits[b as usize] - logits[a as usize];
            assert!(lead < 1e-3, "row {row}: decoding chose {a}, one pass {b} by {lead}");
        }
    });
}

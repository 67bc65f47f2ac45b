//! Draws of `awrs` on distributions from a file, as JSON: for `bench/constrain`.
//!
//!     cargo run --release -p tessera-methods --example awrs -- bench/constrain/toys.json 20000

#![allow(clippy::print_stdout, reason = "its output is its purpose")]

use std::time::Instant;

use serde::Deserialize;
use serde_json::json;
use tessera_core::dist::{Key, Sampler, Sampling};
use tessera_core::{ConstrainedDraw, ConstrainedSampler, Guard, TokenId, Vocabulary};
use tessera_methods::constrain::awrs::{Adaptive, Awrs, Form};
use tessera_testkit::Listed;

#[derive(Deserialize)]
struct Toy {
    name: String,
    p: Vec<f64>,
    allowed: Vec<TokenId>,
}

/// One text token per probability.
struct Tokens(usize);

impl Vocabulary for Tokens {
    fn len(&self) -> usize {
        self.0
    }

    fn bytes(&self, token: TokenId) -> &[u8] {
        if (token as usize) < self.0 { b"x" } else { b"" }
    }

    fn is_control(&self, _: TokenId) -> bool {
        false
    }

    fn is_end(&self, _: TokenId) -> bool {
        false
    }

    fn encode(&self, _: &str) -> Vec<TokenId> {
        Vec::new()
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().unwrap_or_else(|| "bench/constrain/toys.json".to_owned());
    let draws: u32 = arguments.next().map_or(Ok(20_000), |n| n.parse())?;
    let toys: Vec<Toy> = serde_json::from_str(&std::fs::read_to_string(path)?)?;
    let mut rows = Vec::new();
    for toy in &toys {
        let forms = [
            ("auto", Form::Auto),
            ("two_loops", Form::TwoLoops),
            ("recursive", Form::Recursive),
            ("geometric", Form::Geometric),
        ];
        for (name, form) in forms {
            let mut rule = Adaptive::new(Awrs { form, ..Awrs::default() });
            let vocabulary = Tokens(toy.p.len());
            let logits: Vec<f32> = toy.p.iter().map(|p| p.ln() as f32).collect();
            let mut sampler = Sampler::new(Sampling::neutral())?;
            let (mut sum, mut squares, mut asked) = (0.0, 0.0, 0);
            let mut counts = vec![0u64; toy.p.len()];
            let start = Instant::now();
            for position in 0..draws {
                let mut guard = Guard::new(Box::new(Listed(toy.allowed.clone())), &vocabulary);
                let drawn = rule.draw(&mut ConstrainedDraw {
                    logits: &logits,
                    history: &[],
                    key: Key::new(1, 0, position),
                    sampler: &mut sampler,
                    guard: &mut guard,
                    vocabulary: &vocabulary,
                    weighted: true,
                })?;
                if let Some(token) = drawn.token {
                    let weight = drawn.log_weight.exp();
                    sum += weight;
                    squares += weight * weight;
                    counts[token as usize] += 1;
                }
                asked += guard.stats().evaluations;
            }
            let n = f64::from(draws);
            let mean = sum / n;
            rows.push(json!({
                "toy": toy.name,
                "form": name,
                "draws": draws,
                "mean_weight": mean,
                "error": (f64::max(squares / n - mean * mean, 0.0) / n).sqrt(),
                "counts": counts,
                "questions": asked as f64 / n,
                "seconds": start.elapsed().as_secs_f64(),
            }));
        }
    }
    println!("{}", serde_json::to_string_pretty(&rows)?);
    Ok(())
}

//! One pass over a whole canvas, every row reading every row: its logits and its time, for comparison with
//! other engines (`bench/diffusion`).
//!
//!     canvas_pass FILE TOKENS OUT [--f32] [--threads N] [--repeat N]
//!
//! TOKENS is a text file of token ids; OUT receives the logits, `rows x vocabulary`, 32-bit floats of this
//! machine's order. Prints one line of JSON: how the model fills masks, and the milliseconds of each pass.

#![allow(clippy::print_stdout, reason = "its output is its purpose")]

use std::path::Path;
use std::time::Instant;

use serde_json::json;
use tessera_core::{Backbone, Pass, Position, Reveal, RowsOut, Segment, TokenId};
use tessera_model::arch::Blueprint;
use tessera_model::cpu::{Arithmetic, CpuBackbone, Options};
use tessera_model::open_weights;

type Failure = Box<dyn std::error::Error>;

/// The value of a flag, or what stands for it.
fn number(arguments: &[String], flag: &str, otherwise: usize) -> Result<usize, Failure> {
    match arguments.iter().position(|a| a == flag) {
        None => Ok(otherwise),
        Some(at) => Ok(arguments.get(at + 1).ok_or("a flag without its value")?.parse()?),
    }
}

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [file, tokens, out, ..] = arguments.as_slice() else {
        return Err("usage: canvas_pass FILE TOKENS OUT [--f32] [--threads N] [--repeat N]".into());
    };
    let arithmetic = match arguments.iter().any(|a| a == "--f32") {
        true => Arithmetic::F32,
        false => Arithmetic::Int8,
    };
    let options = Options { threads: number(&arguments, "--threads", 0)?, arithmetic };
    let weights = open_weights(Path::new(file))?;
    let blueprint = Blueprint::new(weights.hyper_params());
    let filling = blueprint.filling.ok_or("the model fills no masks")?;
    let model = CpuBackbone::load(blueprint, &weights, options, &|_| ())?;
    let tokens: Vec<TokenId> = std::fs::read_to_string(tokens)?
        .split_whitespace()
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    let positions: Vec<Position> = (0..tokens.len() as Position).collect();
    let (mut reveal, mut times) = (Reveal::new(), Vec::new());
    for _ in 0..number(&arguments, "--repeat", 1)?.max(1) {
        let mut segments = [Segment::canvas(&tokens, &positions, RowsOut::All)];
        let start = Instant::now();
        model.forward(&mut Pass::new(&mut segments), &mut reveal)?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    let rows = (0..tokens.len()).flat_map(|row| reveal.logits(0, row));
    let bytes: Vec<u8> = rows.flat_map(|value| value.to_ne_bytes()).collect();
    std::fs::write(out, bytes)?;
    println!("{}", json!({ "filling": filling, "milliseconds": times }));
    Ok(())
}

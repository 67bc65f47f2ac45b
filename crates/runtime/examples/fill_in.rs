//! Filling in the middle where the cursor cuts a token: plain prompts, token healing, exact bytes.
//!
//! `cargo run --release -p tessera-runtime --example fill_in -- [MODEL] [CASES] [MODE...]`; `bench/bytes`
//! describes it. The modes are `plain`, `plain-line`, `heal-line`, `fast` and `exact`.
#![allow(clippy::print_stdout, reason = "an example talks")]

use std::error::Error;
use std::io::Write;
use std::sync::Arc;
use std::time::Instant;

use tessera_core::Control;
use tessera_core::dist::{Key, Sampler, Sampling};
use tessera_runtime::bytes::MiddleFrom;
use tessera_runtime::exact_byte_level::complete::{Tokens, bytes};
use tessera_runtime::exact_byte_level::{Ensemble, ExactByteLevel, Healing, Lexicon, Mode};
use tessera_runtime::{Continuations, Options, Session};

const SNIPPETS: &str = include_str!("../../../bench/bytes/snippets.txt");
const MODES: [&str; 5] = ["plain", "plain-line", "heal-line", "fast", "exact"];

/// A program with a hole: from inside a word to the end of its line.
struct Case {
    prefix: String,
    answer: String,
    suffix: String,
}

/// Cuts words of five letters and more, at least two letters from both ends, where the model's own
/// tokens of the program have no boundary; the same cases every time.
fn cases(lexicon: &Lexicon<'_>, count: usize) -> Vec<Case> {
    let mut all = Vec::new();
    for (number, snippet) in (0..).zip(SNIPPETS.split("-----\n")) {
        let tokens = lexicon.encode(snippet.as_bytes());
        let mut boundaries = vec![0];
        for &token in &tokens {
            boundaries.push(boundaries[boundaries.len() - 1] + lexicon.bytes(token).len());
        }
        let bytes = snippet.as_bytes();
        let first = snippet.find('\n').unwrap_or(0);
        let mut at = first;
        while at < bytes.len() {
            let word = bytes[at..].iter().take_while(|b| b.is_ascii_alphabetic()).count();
            if word >= 5 {
                let key = Key::new(2024, number, at as u32);
                let cut = at + 2 + (key.uniform(0) * (word - 3) as f64) as usize;
                let end = snippet[cut..].find('\n').map_or(snippet.len(), |n| cut + n);
                if !boundaries.contains(&cut) && end - cut <= 40 {
                    let [prefix, answer, suffix] =
                        [&snippet[..cut], &snippet[cut..end], &snippet[end..]].map(str::to_owned);
                    all.push((key.bits(1), Case { prefix, answer, suffix }));
                }
            }
            at += word.max(1);
        }
    }
    all.sort_by_key(|(order, _)| *order);
    all.into_iter().map(|(_, case)| case).take(count).collect()
}

fn complete<'s>(
    session: &'s Session,
    lexicon: &Arc<Lexicon<'s>>,
    mode: &str,
    case: &Case,
) -> Result<String, Box<dyn Error>> {
    let from = if mode == "plain" { MiddleFrom::Cursor } else { MiddleFrom::Line };
    let opening = session.fill_in(&case.prefix, &case.suffix, from)?;
    let mut sampler = Sampler::new(Sampling::greedy())?;
    let most = case.answer.len() + 8;
    let mut made = Vec::new();
    let mut hear = |new: &[u8]| {
        made.extend_from_slice(new);
        if made.contains(&b'\n') { Control::Stop } else { Control::Continue }
    };
    if let "fast" | "exact" = mode {
        let mode = if mode == "fast" { Mode::Fast } else { Mode::Exact };
        let settings = ExactByteLevel { mode, ..ExactByteLevel::default() };
        let byte_model = session.byte_model(lexicon, settings, &opening.stem)?;
        let mut ensemble = Ensemble::new(vec![byte_model], &[])?;
        ensemble.start(&opening.text)?;
        bytes(&mut ensemble, &mut sampler, 0, most, false, &mut hear)?;
    } else {
        let mut tokens = session.plain(&opening);
        let mut healing = Healing::default();
        if mode == "heal-line" {
            healing = Healing::new(lexicon, &mut tokens);
        }
        let mut ask = Continuations::new(session.backbone())?;
        let mut run = Tokens { ask: &mut ask, lexicon, tokens, healing };
        run.run(&mut sampler, 0, most, &mut hear)?;
    }
    let text = String::from_utf8_lossy(&made).into_owned();
    Ok(text.split('\n').next().unwrap_or_default().to_owned())
}

/// The letters at the start of a text: the rest of the word that was cut.
fn word(text: &str) -> &str {
    &text[..text.bytes().take_while(u8::is_ascii_alphabetic).count()]
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let model = arguments.first().map_or("qwen2.5-coder:0.5b", String::as_str);
    let count = arguments.get(1).map_or(Ok(200), |n| n.parse::<usize>())?;
    let asked: Vec<&str> = arguments.iter().skip(2).map(String::as_str).collect();
    let modes = if asked.is_empty() { MODES.to_vec() } else { asked };
    let session = Session::open(model, &Options::default())?;
    let lexicon = Arc::new(session.lexicon());
    let cases = cases(&lexicon, count);
    println!(
        "{model}: {} programs cut inside a token, greedy, up to the end of the line",
        cases.len()
    );
    println!("{:<12}{:>12}{:>12}{:>12}", "mode", "whole line", "word", "seconds");
    for mode in modes {
        let start = Instant::now();
        let (mut lines, mut words) = (0, 0);
        for case in &cases {
            let text = complete(&session, &lexicon, mode, case)?;
            lines += usize::from(text == case.answer);
            words += usize::from(word(&text) == word(&case.answer));
        }
        let share = |n: usize| format!("{:.1} %", 100.0 * n as f64 / cases.len() as f64);
        let seconds = start.elapsed().as_secs_f64();
        println!("{mode:<12}{:>12}{:>12}{seconds:>12.1}", share(lines), share(words));
        std::io::stdout().flush()?;
    }
    Ok(())
}

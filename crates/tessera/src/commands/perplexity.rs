//! `tessera perplexity`: how well a model predicts a text. Of a model that fills masks an upper bound is
//! measured, which is the mean over all orders of writing.

use std::path::PathBuf;

use serde::Serialize;
use tessera_core::{
    Backbone, CacheOptions, Input, Mask, Pass, Position, Reveal, RowsOut, Segment, TokenId, Write,
};
use tessera_measure::bound;
use tessera_runtime::Prompt;

use super::result;
use crate::Globals;
use crate::failure::BadUsage;
use crate::flags::ModelFlags;
use crate::slow_bar::SlowBar;

/// A chapter in the public domain; `bench/fidelity` describes it.
const TEXT: &str = include_str!("../../../../bench/fidelity/prose.txt");
/// Rows of a pass.
const ROWS: usize = 256;
/// Context of a chunk when none is given, in tokens: what llama.cpp's tool of this name takes.
const CHUNK: usize = 512;
/// Draws of each chunk for a bound.
const DRAWS: usize = 32;

/// What `perplexity` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// A text file (default: a chapter of prose that comes with Tessera).
    file: Option<PathBuf>,
    /// A name from `tessera list`, `org/repo[:QUANT][@revision]`, or a path.
    #[arg(short, long, env = "TESSERA_MODEL", default_value = "smollm2")]
    model: String,
    /// Only the first N chunks.
    #[arg(long, value_name = "N")]
    chunks: Option<usize>,
    #[command(flatten)]
    flags: ModelFlags,
}

/// The measurement.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Measured {
    model: String,
    text: String,
    /// `exp` of the mean negative log-probability of the predicted tokens.
    perplexity: f64,
    /// Standard error of the mean, times the perplexity.
    error: f64,
    /// Whether it is an upper bound: the model fills masks.
    bound: bool,
    /// Tokens that were predicted.
    predicted: usize,
    chunks: usize,
    context: usize,
}

pub(crate) fn run(globals: &Globals, arguments: &Arguments) -> anyhow::Result<()> {
    let (name, text) = match &arguments.file {
        None => ("bench/fidelity/prose.txt".to_owned(), TEXT.to_owned()),
        Some(path) => {
            let shown = path.display();
            let text = std::fs::read_to_string(path).map_err(|e| {
                anyhow::anyhow!("{shown}: {e}. Next: give a readable text file in UTF-8")
            })?;
            (shown.to_string(), text)
        }
    };
    let context = arguments.flags.context.unwrap_or(CHUNK);
    if context < 2 || arguments.chunks == Some(0) {
        return Err(BadUsage("context and chunks: must be at least 2 and 1".to_owned()).into());
    }
    let session = arguments.flags.open(globals, &arguments.model, None)?;
    let context = context.min(session.info().context);
    let tokens = session.tokens(&Prompt::Raw(&text))?;
    // Chunks restart the text; where texts begin with a mark, chunks do.
    let mark = session.tokens(&Prompt::Raw(""))?;
    let body = tokens.strip_prefix(&mark[..]).unwrap_or(&tokens);
    let step = context.saturating_sub(mark.len());
    let most = arguments.chunks.unwrap_or(usize::MAX);
    let chunks: Vec<Vec<TokenId>> = body
        .chunks(step.max(1))
        .filter(|chunk| chunk.len() + mark.len() > 1)
        .take(most)
        .map(|chunk| [&mark[..], chunk].concat())
        .collect();
    if chunks.is_empty() {
        anyhow::bail!("{name}: has no two tokens to predict. Next: give a longer text");
    }
    let bar = SlowBar::new("reading", chunks.len() as u64, globals.quiet);
    let (mut losses, mut means) = (Vec::new(), Vec::new());
    let filling = session.model().filling;
    for (i, chunk) in chunks.iter().enumerate() {
        match filling {
            None => losses.extend(surprise(session.backbone(), chunk)?),
            Some(filling) => {
                // The first token is given, as in a causal model; every draw bounds the others' sum.
                let seed = i as u64;
                let draws = bound::draws(session.backbone(), filling, chunk, 1, DRAWS, seed)?;
                let mean = draws.iter().sum::<f64>() / draws.len() as f64;
                let others = chunk.len() - 1;
                losses.extend(std::iter::repeat_n(mean / others as f64, others));
                means.push(mean / others as f64);
            }
        }
        bar.at(i as u64 + 1);
    }
    bar.clear();
    let all = summary(&losses);
    // Tokens of a chunk share its draws: only chunks are independent.
    let error = match means.is_empty() {
        true => all.error,
        false => summary(&means).error,
    };
    let measured = Measured {
        model: arguments.model.clone(),
        text: name,
        chunks: chunks.len(),
        context,
        bound: filling.is_some(),
        error,
        ..all
    };
    let Measured { perplexity, error, predicted, .. } = measured;
    let at_most = if measured.bound { "at most " } else { "" };
    let line = format!(
        "perplexity {at_most}{perplexity:.4} +/- {error:.4} over {predicted} tokens of {} ({} chunks of {context})\n",
        measured.text, measured.chunks
    );
    result(globals, &measured, &line)
}

fn summary(losses: &[f64]) -> Measured {
    let n = losses.len().max(1) as f64;
    let mean = losses.iter().sum::<f64>() / n;
    let variance = losses.iter().map(|l| (l - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
    Measured {
        model: String::new(),
        text: String::new(),
        perplexity: mean.exp(),
        error: mean.exp() * (variance / n).sqrt(),
        bound: false,
        predicted: losses.len(),
        chunks: 0,
        context: 0,
    }
}

/// The negative log-probability of every token but the first, in nats.
fn surprise(backbone: &dyn Backbone, tokens: &[TokenId]) -> tessera_core::Result<Vec<f64>> {
    let options = CacheOptions { capacity: tokens.len(), ..Default::default() };
    let mut cache = backbone.new_cache(options)?;
    let positions: Vec<Position> = (0..tokens.len() as Position).collect();
    let mut reveal = Reveal::new();
    let mut losses = Vec::with_capacity(tokens.len());
    // The last token predicts nothing that is known.
    let inputs = tokens.len().saturating_sub(1);
    for start in (0..inputs).step_by(ROWS) {
        let range = start..inputs.min(start + ROWS);
        let mut segments = [Segment {
            input: Input::Tokens(&tokens[range.clone()]),
            positions: &positions[range.clone()],
            mask: Mask::Causal,
            keys: None,
            bias: &[],
            write: Write::Append,
            rows_out: RowsOut::All,
            condition: None,
            cache: Some(&mut *cache),
        }];
        backbone.forward(&mut Pass::new(&mut segments), &mut reveal)?;
        for (i, at) in range.enumerate() {
            losses.push(nats(reveal.logits(0, i), tokens[at + 1]));
        }
    }
    Ok(losses)
}

/// `-ln softmax(logits)[token]`, summed in f64.
fn nats(logits: &[f32], token: TokenId) -> f64 {
    let top = logits.iter().fold(f32::NEG_INFINITY, |m, l| m.max(*l));
    let sum: f64 = logits.iter().map(|l| f64::from(l - top).exp()).sum();
    let own = logits.get(token as usize).map_or(f64::NEG_INFINITY, |l| f64::from(l - top));
    sum.ln() - own
}

#[cfg(test)]
mod tests {
    use super::*;
    use tessera_testkit::Scripted;

    #[test]
    fn surprise_by_hand() {
        assert!((nats(&[1.0, 1.0, 1.0, 1.0], 2) - 4f64.ln()).abs() < 1e-12);
        assert!(nats(&[0.0, 100.0], 1) < 1e-12);
        let s = summary(&[1.0, 3.0]);
        assert!((s.perplexity - 2f64.exp()).abs() < 1e-12 && s.predicted == 2);
        assert!((s.error - 2f64.exp()).abs() < 1e-12);
    }

    #[test]
    fn every_token_but_the_first_is_predicted_whatever_the_passes() {
        let toy = Scripted::hashed(50, 1024, 3, 1.0);
        let tokens: Vec<TokenId> = (0..2 * ROWS as u32 + 7).map(|i| i * 7 % 50).collect();
        let all = surprise(&toy, &tokens).unwrap();
        assert_eq!(all.len(), tokens.len() - 1);
        assert_eq!(all[..99], surprise(&toy, &tokens[..100]).unwrap()[..]);
        assert!(surprise(&toy, &tokens[..1]).unwrap().is_empty());
    }
}

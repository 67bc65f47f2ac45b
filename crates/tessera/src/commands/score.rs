//! `tessera score`: how many bits a model needs for each byte of a text. Bytes are the same for every
//! vocabulary, so models can be compared.

use std::fmt::Write;
use std::path::PathBuf;

use serde::Serialize;
use tessera_runtime::bytes::{Score, Windows, score_bytes, score_tokens};

use super::complete::{ExactFlags, Models};
use super::result;
use crate::Globals;
use crate::failure::BadUsage;
use crate::flags::ModelFlags;
use crate::slow_bar::SlowBar;

/// What `score` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// A text file in UTF-8.
    file: PathBuf,
    #[command(flatten)]
    models: Models,
    /// Byte by byte under the exact law: slower, and several models also score together.
    #[arg(long)]
    exact_bytes: bool,
    #[command(flatten)]
    exact: ExactFlags,
    /// Most bytes that a prediction sees.
    #[arg(long, value_name = "BYTES", default_value_t = 2048)]
    window: usize,
    /// Bytes by which the window moves on (default: half of it).
    #[arg(long, value_name = "BYTES")]
    stride: Option<usize>,
    /// Only the first N bytes of the file.
    #[arg(long, value_name = "BYTES")]
    first: Option<usize>,
    #[command(flatten)]
    flags: ModelFlags,
}

#[derive(Debug, Serialize)]
struct Scored {
    text: String,
    bytes: usize,
    /// `tokens`, `exact` or `fast`.
    mode: &'static str,
    #[serde(flatten)]
    windows: Windows,
    scores: Vec<Score>,
}

pub(crate) fn run(globals: &Globals, arguments: &Arguments) -> anyhow::Result<()> {
    let settings = arguments.exact.settings()?;
    let windows = Windows {
        window: arguments.window,
        stride: arguments.stride.unwrap_or(arguments.window / 2),
    };
    if windows.window < 16 || windows.stride == 0 || windows.stride > windows.window {
        let what = "window and stride: at least 16, and from 1 to the window";
        return Err(BadUsage(what.to_owned()).into());
    }
    let shown = arguments.file.display().to_string();
    let mut text = std::fs::read_to_string(&arguments.file)
        .map_err(|e| anyhow::anyhow!("{shown}: {e}. Next: give a readable text file in UTF-8"))?;
    if let Some(first) = arguments.first {
        text.truncate(text.floor_char_boundary(first));
    }
    if text.is_empty() {
        return Err(BadUsage(format!("{shown}: is empty, so there is nothing to score")).into());
    }
    let sessions = arguments.models.open(globals, &arguments.flags)?;
    sessions.iter().try_for_each(|session| session.expect_causal("score"))?;
    let plan = windows.of(&text);
    let bar = SlowBar::new("scoring", text.len() as u64, globals.quiet);
    let mut progress = |done: usize| bar.at(done as u64);
    let scores = if arguments.exact_bytes {
        score_bytes(&sessions, settings, &arguments.models.weights, &text, &plan, &mut progress)?
    } else {
        let each = sessions.iter();
        each.map(|s| score_tokens(s, &text, &plan, &mut progress)).collect::<Result<_, _>>()?
    };
    bar.clear();
    let mode = if arguments.exact_bytes { settings.mode.word() } else { "tokens" };
    let scored = Scored { text: shown, bytes: text.len(), mode, windows, scores };
    result(globals, &scored, &describe(&scored))
}

fn describe(scored: &Scored) -> String {
    let mut text = String::new();
    let Scored { windows: Windows { window, stride }, .. } = scored;
    let _ = writeln!(
        text,
        "{}: {} bytes, mode {}, window {window}, stride {stride}, each window after the model's document mark",
        scored.text, scored.bytes, scored.mode
    );
    let _ = writeln!(
        text,
        "{:<24}{:>12}{:>12}{:>10}{:>10}",
        "model", "bits/byte", "bits", "tokens", "seconds"
    );
    for score in &scored.scores {
        let tokens = if score.tokens > 0 { score.tokens.to_string() } else { "-".to_owned() };
        let _ = writeln!(
            text,
            "{:<24}{:>12.4}{:>12.1}{tokens:>10}{:>10.1}",
            score.model, score.bits_per_byte, score.bits, score.seconds
        );
    }
    text
}

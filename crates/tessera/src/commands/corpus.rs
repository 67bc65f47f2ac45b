//! `tessera corpus`: samples simple stories from a model, many at a time, into a text file; or writes
//! texts there that are made by a rule.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use anyhow::Context as _;
use tessera_learn::corpus::sampled::{Order, State, sample};
use tessera_learn::corpus::speech::{self, Ear};
use tessera_learn::corpus::tasks;
use tessera_runtime::Sampling;

use super::result;
use crate::Globals;
use crate::failure::BadUsage;
use crate::flags::ModelFlags;
use crate::interrupt;
use crate::slow_bar::SlowBar;

/// What `corpus` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The text file: one story a block. A file that this command began is continued.
    file: PathBuf,
    /// A name from `tessera list`, `org/repo[:QUANT][@revision]`, or a path.
    #[arg(short, long, env = "TESSERA_MODEL", default_value = "smollm2")]
    model: String,
    /// Stop after this many stories, dropped ones included.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    stories: u32,
    /// Write this many small tasks with one right answer (copy, sort, cloze, transcribe) instead, without a model.
    #[arg(long, value_name = "N", conflicts_with_all = ["stories", "utterances"])]
    tasks: Option<u32>,
    /// Write this many utterances (letters that were misheard, and what was said) instead, without a model.
    #[arg(long, value_name = "N", conflicts_with = "stories")]
    utterances: Option<u32>,
    /// Most frames of a letter of those, 1 to 9.
    #[arg(long, value_name = "N", requires = "utterances", default_value_t = Ear::USUAL.frames,
          value_parser = clap::value_parser!(u32).range(1..=9))]
    frames: u32,
    /// Share of their frames that are heard as another letter, 0 to 1.
    #[arg(long, value_name = "X", requires = "utterances", default_value_t = Ear::USUAL.misheard)]
    misheard: f64,
    /// Stop once the kept stories have this many tokens of the model.
    #[arg(long, value_name = "N")]
    tokens: Option<u64>,
    /// Most tokens of a story.
    #[arg(short = 'n', long = "max-tokens", value_name = "N", default_value_t = 220)]
    most: usize,
    /// Texts that share a pass.
    #[arg(long, value_name = "N", default_value_t = 64)]
    batch: usize,
    /// Seed of words and draws.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Divides the logits.
    #[arg(long, default_value_t = 0.6)]
    temperature: f32,
    #[command(flatten)]
    flags: ModelFlags,
}

/// Writes texts that are made by a rule: so many of this kind.
fn write(globals: &Globals, file: &Path, kind: &str, count: u32, text: &str) -> anyhow::Result<()> {
    std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))?;
    let made = serde_json::json!({ kind: count, "bytes": text.len() });
    result(globals, &made, &format!("{count} {kind}, {} bytes\n", text.len()))
}

pub(crate) fn run(globals: &Globals, arguments: &Arguments) -> anyhow::Result<()> {
    if let Some(count) = arguments.tasks {
        let text = tasks::corpus(arguments.seed, count);
        return write(globals, &arguments.file, "tasks", count, &text);
    }
    if let Some(count) = arguments.utterances {
        if !(0.0..=1.0).contains(&arguments.misheard) {
            let what = format!("misheard = {}: must be between 0 and 1", arguments.misheard);
            return Err(BadUsage(what).into());
        }
        let ear = Ear { frames: arguments.frames, misheard: arguments.misheard };
        let text = speech::corpus(arguments.seed, count, ear);
        return write(globals, &arguments.file, "utterances", count, &text);
    }
    let session = arguments.flags.open(globals, &arguments.model, None)?;
    // A small model runs in circles without the penalty.
    let sampling = Sampling {
        temperature: arguments.temperature,
        repeat_penalty: 1.06,
        penalty_window: 64,
        ..Sampling::default()
    };
    let (seed, most) = (arguments.seed, arguments.most);
    let order = Order { model: arguments.model.clone(), seed, most, sampling };
    let bar = SlowBar::new("stories", u64::from(arguments.stories), globals.quiet);
    let cancel = interrupt::flag();
    let until = (arguments.stories, arguments.tokens.unwrap_or(u64::MAX));
    let mut hear = |state: &State| {
        bar.at(u64::from(state.judged));
        !cancel.load(Ordering::Relaxed)
    };
    let state = sample(&session, &arguments.file, &order, arguments.batch, until, &mut hear)?;
    bar.clear();
    result(globals, &state, &line(&state))
}

fn line(state: &State) -> String {
    let kept = state.verdicts.get("kept").copied().unwrap_or(0);
    let dropped: Vec<String> = state
        .verdicts
        .iter()
        .filter(|(name, _)| *name != "kept")
        .map(|(name, count)| format!("{count} {name}"))
        .collect();
    format!(
        "{kept} stories of {} kept ({} tokens, {} bytes); dropped: {}\n{} tokens in {:.0} s, {:.1} tok/s\n",
        state.judged,
        state.kept_tokens,
        state.bytes,
        if dropped.is_empty() { "none".to_owned() } else { dropped.join(", ") },
        state.tokens,
        state.seconds,
        state.tokens_per_second(),
    )
}
